"""Whether a host can be re-installed as it is, and what that does."""

from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from contracts.reinstallation import HostReinstallationInput
from contracts.removal import RemovalSurvey
from contracts.states import ResourceState
from tests.samples import FINGERPRINT, host
from workflows.reinstallation_plan import check, effects, lost_vms, needs_maintenance

R = ResourceState
SILENT: dict[str, Any] = {"answers": False, "problem": "kvm-1 does not answer."}


def survey(
    state: R = R.MAINTENANCE, *, being_reinstalled: bool = False, **more: Any
) -> RemovalSurvey:
    before = R.ENABLED if state is R.MAINTENANCE else None
    row = host("kvm-1", state, state_before_maintenance=before, being_reinstalled=being_reinstalled)
    return RemovalSurvey(host=row, **{"answers": True, **more})


def asked(**more: Any) -> HostReinstallationInput:
    return HostReinstallationInput(host="kvm-1", **more)


@pytest.mark.parametrize(
    ("choices", "found"),
    [
        ({}, survey()),
        ({"after_maintenance": True}, survey(R.ENABLED, active=("vm-1",))),
        ({"after_maintenance": True}, survey(R.DISABLED)),
        ({"lose_vms": True}, survey(defined=("vm-1",))),
        ({"host_is_down": True}, survey(R.ENABLED, last_seen=("vm-1",), **SILENT)),
        ({"host_is_down": True}, survey(**SILENT)),
        ({}, survey(being_reinstalled=True, **SILENT)),
    ],
)
def test_what_can_be(choices: dict[str, Any], found: RemovalSurvey) -> None:
    check(asked(**choices), found)


@pytest.mark.parametrize(
    ("choices", "found", "said"),
    [
        ({}, survey(R.ENABLED, active=("vm-1", "vm-2")), "VMs that run there: vm-1, vm-2"),
        ({}, survey(R.ENABLED, **SILENT), "re-installed from Maintenance"),
        ({}, survey(R.ERROR_IN_MAINTENANCE), "hostler maintenance status kvm-1"),
        ({"host_is_down": True}, survey(R.PREPARE_FOR_MAINTENANCE, **SILENT), "maintenance status"),
        ({}, survey(R.REMOVED), "event list"),
        ({}, survey(active=("vm-1",)), "VMs run on kvm-1: vm-1"),
        ({}, survey(defined=("vm-1",)), "VMs are defined on kvm-1, shut off: vm-1"),
        (
            {"after_maintenance": True},
            survey(R.ENABLED, active=("vm-1",), defined=("vm-2",)),
            "lose_vms",
        ),
        ({}, survey(**SILENT), "say so with host_is_down"),
        ({"after_maintenance": True}, survey(R.ENABLED, **SILENT), "say so with host_is_down"),
        ({"host_is_down": True}, survey(), "kvm-1 answers: it is not down"),
        ({"host_is_down": True}, survey(R.ENABLED), "kvm-1 answers: it is not down"),
        ({}, survey(problem="libvirt is silent."), "does not tell which VMs it has"),
    ],
)
def test_what_can_not_be_says_why(choices: dict[str, Any], found: RemovalSurvey, said: str) -> None:
    with pytest.raises(ApplicationError) as refused:
        check(asked(**choices), found)
    assert said in refused.value.message
    assert refused.value.message.endswith("Nothing was changed.")
    assert refused.value.type == "Conflict"


def test_every_effect_is_listed() -> None:
    found = survey(R.ENABLED, active=("vm-1",), defined=("vm-2",))
    choices = {
        "after_maintenance": True,
        "lose_vms": True,
        "return_vms": True,
        "command": ("a", "b"),
    }
    assert [str(effect.message) for effect in effects(asked(**choices), found)] == [
        "kvm-1 is taken out of service first; VMs that leave it: vm-1",
        "run on kvm-1 as root: a b",
        f"the host key {FINGERPRINT} is accepted no more; from here on there is no way back",
        "connections that are kept to kvm-1 are closed",
        "removed from kvm-1: Hostler's own key; the fence stays up",
        "Hostler's own key is deleted; a password that is known is kept",
        "lost with the old installation, as they are defined there: vm-2",
        "kvm-1 is waited for, until it shows another SSH host key",
        "that key is shown, and pinned when somebody accepts it",
        "the new installation gets the fence, and a key of Hostler's own",
        "networks, bridges and storage pools are to be there as before",
        "kvm-1 keeps its name, cluster, tags and history, and becomes Enabled again",
        "VMs that its last maintenance has moved come back",
    ]


def test_nothing_is_done_on_a_host_that_is_down() -> None:
    found = survey(R.DISABLED, last_seen=("vm-1",), **SILENT)
    told = [effect.message for effect in effects(asked(host_is_down=True), found)]
    assert told[0] == "kvm-1 is taken out as it is: no VM is moved"
    assert not any("removed from kvm-1" in message for message in told)
    assert "lost with the old installation, as they are last seen there: vm-1" in told
    assert any(message.endswith("becomes Disabled again") for message in told)
    assert lost_vms(found) == ("vm-1",)


def test_one_that_has_begun_only_goes_on() -> None:
    found = survey(being_reinstalled=True, **SILENT)
    told = [effect.message for effect in effects(asked(host_key_sha256=FINGERPRINT), found)]
    assert told[0] == "kvm-1 is waited for, until it shows another SSH host key"
    assert told[1] == f"that key is pinned if it is {FINGERPRINT}"
    assert not needs_maintenance(found.host)
