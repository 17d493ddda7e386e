"""`hostler host remove`, `resolve-removal` and `removed`."""

import json
from typing import Any

import pytest

from contracts.hosts import RemovedHost
from contracts.operations import Operation, OperationKind
from contracts.removal import (
    EffectKind,
    HostRemovalResult,
    HostRemovalStatus,
    RemovalEffect,
    RemovalOutcome,
)
from contracts.states import Phase
from tests.cli.answers import operation
from tests.cli.conftest import Answer, FakeApi, Terminal, hostler, items, ok, problem
from tests.samples import FINGERPRINT, WHEN

DELETE = "DELETE /v1/hosts/kvm-1"
LOOK = "GET /v1/operations/removal/kvm-1"
EFFECTS = (
    RemovalEffect(kind=EffectKind.HOST, message="removed from kvm-1: file /etc/hostler/fence"),
    RemovalEffect(kind=EffectKind.INVENTORY, message="deleted: the host kvm-1"),
)


def removal(status: str = "RUNNING", details: Any = None, error: str | None = None) -> Operation:
    return operation(status, OperationKind.REMOVAL, details=details, error=error)


def running(phase: Phase, message: str, *commands: str) -> Answer:
    status = HostRemovalStatus(
        host="kvm-1", phase=phase, reason="", message=message, commands=commands
    )
    return ok(removal(details=status))


def ended(outcome: RemovalOutcome = RemovalOutcome.REMOVED, **more: Any) -> Answer:
    result = HostRemovalResult(host="kvm-1", outcome=outcome, effects=EFFECTS, **more)
    return ok(removal("COMPLETED", result))


REMOVED = ended(
    removed_from_host=("file /etc/hostler/fence",), proof="Hostler's key is refused", tombstone=7
)
CLEANING = running(Phase.CLEANING, "Takes off kvm-1 what Hostler has put there")


def test_remove_waits_and_tells_each_step(api: FakeApi) -> None:
    api.on(DELETE, Answer(202, removal()))
    api.on(LOOK, CLEANING, CLEANING, running(Phase.REMOVING, "Deletes kvm-1"), REMOVED)
    done = hostler("host", "remove", "kvm-1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "kvm-1: Cleaning: Takes off kvm-1 what Hostler has put there",
        "kvm-1: Removing: Deletes kvm-1",
        "removed: file /etc/hostler/fence",
        "proof: Hostler's key is refused",
        "kvm-1 is removed.",
    ]
    assert api.bodies(DELETE) == [None]


def test_every_option_is_sent(api: FakeApi) -> None:
    route = (
        f"{DELETE}?reason=sold&after_maintenance=True&leave_vms=True&on_blocker=shutdown"
        "&max_parallel=3&queue=False&power_off=True&fall_back_to_off=True"
    )
    api.on(route, Answer(202, removal()))
    done = hostler(
        *("host", "remove", "kvm-1", "--reason", "sold", "--after-maintenance", "--leave-vms"),
        *("--on-blocker", "shutdown", "--max-parallel", "3", "--no-queue", "--no-wait"),
        *("--power-off", "--or-off"),
    )
    assert done.exit_code == 0, done.output
    assert "hostler operation show removal kvm-1" in done.stdout
    assert len(api.requests) == 1


def test_a_dry_run_lists_the_effects(api: FakeApi) -> None:
    api.on(f"{DELETE}?reason=sold&forced=True&dry_run=True", Answer(202, removal()))
    api.on(LOOK, CLEANING, ended(RemovalOutcome.PLANNED))
    arguments = ("host", "remove", "kvm-1", "--forced", "--reason", "sold", "--dry-run")
    done = hostler(*arguments)
    assert done.exit_code == 0, done.output
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["ON", "EFFECT"],
        ["host", "removed", "from", "kvm-1:", "file", "/etc/hostler/fence"],
        ["inventory", "deleted:", "the", "host", "kvm-1"],
        ["Nothing", "was", "changed", "on", "kvm-1."],
    ]
    api.on(LOOK, ended(RemovalOutcome.PLANNED))
    listed = json.loads(hostler(*arguments, "--json").stdout)
    assert listed["effects"] == [effect.model_dump(mode="json") for effect in EFFECTS]


def test_a_lost_host_names_what_is_left(api: FakeApi) -> None:
    api.on(f"{DELETE}?reason=burnt&forced=True", Answer(202, removal()))
    api.on(LOOK, ended(left=("what Hostler has put on it, until it answers",), vms=("vm-1",)))
    done = hostler("host", "remove", "kvm-1", "--forced", "--reason", "burnt")
    assert done.stdout.splitlines() == [
        "left: what Hostler has put on it, until it answers",
        "VMs last seen there: vm-1",
        "kvm-1 is removed.",
    ]


def test_a_question_shows_its_commands(api: FakeApi) -> None:
    command = "hostler host resolve-removal kvm-1 retry"
    api.on(DELETE, Answer(202, removal()))
    api.on(LOOK, running(Phase.QUESTION, "kvm-1 can't be cleaned", command), REMOVED)
    done = hostler("host", "remove", "kvm-1")
    assert "kvm-1: Question: kvm-1 can't be cleaned\n" in done.stdout
    assert f"{command}\n" in done.stdout


def test_on_a_terminal_it_asks(api: FakeApi) -> None:
    api.on(DELETE, Answer(202, removal()))
    api.on(LOOK, REMOVED)
    terminal = Terminal("host", "remove", "kvm-1")
    terminal.until("Remove kvm-1 for good? See --dry-run for what that does. [y/N]: ")
    terminal.type("\n")
    assert terminal.end() == 1
    assert api.requests == []
    terminal = Terminal("host", "remove", "kvm-1", "--yes")
    assert terminal.end() == 0, terminal.shown
    assert "kvm-1 is removed." in terminal.shown


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ok(removal("FAILED", error="VMs run on kvm-1: vm-1.")), "VMs run on kvm-1: vm-1."),
        (ok(removal("CANCELED")), "The removal of kvm-1 was cancelled."),
    ],
)
def test_a_removal_that_fails(api: FakeApi, answer: Answer, said: str) -> None:
    api.on(DELETE, Answer(202, removal()))
    api.on(LOOK, answer)
    done = hostler("host", "remove", "kvm-1")
    assert (done.exit_code, done.stderr) == (1, f"hostler: {said}\n")


def test_a_refusal(api: FakeApi) -> None:
    api.on(f"{DELETE}?forced=True", problem(422, "InvalidInput", "forced needs a reason."))
    done = hostler("host", "remove", "kvm-1", "--forced")
    assert (done.exit_code, done.stderr) == (2, "hostler: forced needs a reason.\n")


def test_resolve(api: FakeApi) -> None:
    api.on("POST /v1/hosts/kvm-1/removal", Answer(204))
    done = hostler("host", "resolve-removal", "kvm-1", "leave_uncleaned")
    assert (done.exit_code, done.stdout) == (0, "kvm-1: leave_uncleaned.\n")
    assert api.bodies("POST /v1/hosts/kvm-1/removal") == [{"action": "leave_uncleaned"}]


def tombstone(**more: Any) -> RemovedHost:
    return RemovedHost(
        id=7,
        name="kvm-1",
        cluster="cluster-1",
        address="198.18.0.11",
        ssh_port=22,
        uuid=None,
        host_key_sha256=FINGERPRINT,
        forced=True,
        reason="burnt",
        vms=("vm-1",),
        operation="removal/kvm-1#run-1",
        removed_at=WHEN,
        cleaned_at=None,
        cleaning_problem="it does not answer",
    ).model_copy(update=more)


def test_removed(api: FakeApi) -> None:
    settled = tombstone(id=5, settled_at=WHEN, cleaning_problem="scrapped")
    listed = (tombstone(), tombstone(id=6, forced=False, cleaned_at=WHEN, vms=()), settled)
    api.on("GET /v1/removed-hosts", items(*listed))
    done = hostler("host", "removed")
    assert done.exit_code == 0, done.output
    header, first, second, third = done.stdout.splitlines()
    assert header.split()[:3] == ["ID", "HOST", "CLUSTER"]
    assert "not yet: it does not answer" in first
    assert first.rstrip().endswith("vm-1")
    assert second.count("2026-11-24 09:30:00 UTC") == 2
    assert "given up: scrapped" in third
    shown = json.loads(hostler("host", "removed", "--json").stdout)
    assert shown == [one.model_dump(mode="json") for one in listed]


def test_settle_removed(api: FakeApi) -> None:
    settled = tombstone(settled_at=WHEN, cleaning_problem="scrapped")
    api.on("POST /v1/removed-hosts/7/settlement", ok(settled))
    done = hostler("host", "settle-removed", "7", "--reason", "scrapped")
    assert done.exit_code == 0, done.output
    assert done.stdout == "kvm-1 (removed host 7) is not cleaned any more.\n"
    assert api.bodies("POST /v1/removed-hosts/7/settlement") == [{"reason": "scrapped"}]
    shown = hostler("host", "settle-removed", "7", "--reason", "scrapped", "--json").stdout
    assert json.loads(shown) == settled.model_dump(mode="json")


@pytest.mark.parametrize("arguments", [("7",), ("0", "--reason", "x"), ("x", "--reason", "x")])
def test_settle_removed_wants_a_number_and_a_reason(
    api: FakeApi, arguments: tuple[str, ...]
) -> None:
    assert hostler("host", "settle-removed", *arguments).exit_code == 2
    assert api.requests == []


def test_settle_removed_asks_on_a_terminal(api: FakeApi) -> None:
    terminal = Terminal("host", "settle-removed", "7", "--reason", "scrapped")
    terminal.until("Delete the credential of the removed host 7? [y/N]: ")
    terminal.type("\n")
    assert terminal.end() == 1
    assert api.requests == []
