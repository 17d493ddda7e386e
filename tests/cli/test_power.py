"""`hostler power` and `hostler oobm`."""

from pathlib import Path
from typing import Any

import pytest

from contracts.oobm import (
    BmcLook,
    HostPower,
    Oobm,
    OobmOverview,
    OobmSwitch,
    PowerCount,
    PowerProblem,
    PowerRound,
)
from contracts.operations import Operation, OperationKind
from contracts.power import BmcPrivilege, PowerState
from contracts.power_actions import (
    Action,
    BmcPasswordChangeResult,
    PowerActionResult,
    PowerActionStatus,
    PowerOutcome,
)
from contracts.states import Phase
from tests.cli.answers import operation
from tests.cli.conftest import NOT_FOUND, Answer, FakeApi, hostler, ok, problem
from tests.samples import WHEN, host

POWER = "POST /v1/hosts/kvm-1/power"
LOOK = "GET /v1/operations/power/kvm-1"
OOBM = "/v1/hosts/kvm-1/oobm"


def state(status: str = "RUNNING", details: Any = None, **more: Any) -> Operation:
    started = operation(status, OperationKind.POWER, details=details)
    return started.model_copy(update=more)


def ended(**more: Any) -> Answer:
    values: dict[str, Any] = {
        "outcome": PowerOutcome.DONE,
        "state": PowerState.OFF,
        "proof": "its BMC says Off",
    }
    result = PowerActionResult(
        host="kvm-1", action=Action.OFF, observed_at=WHEN, **{**values, **more}
    )
    return ok(state("COMPLETED", result))


def oobm(**more: Any) -> Oobm:
    values: dict[str, Any] = {
        "host": "kvm-1",
        "enabled": True,
        "driver": "ipmi",
        "address": "198.18.1.11",
        "port": None,
        "user": "admin",
        "privilege": BmcPrivilege.ADMINISTRATOR,
        "cipher_suite": 3,
        "certificate": None,
        "guid": None,
        "password_changing": False,
        "power": HostPower(state=PowerState.ON, observed_at=WHEN, stale=True),
        "updated_at": WHEN,
    }
    return Oobm(**{**values, **more})


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text("canary-bmc\n")
    return str(path)


# --- power --------------------------------------------------------------------------------------


def test_off_waits_tells_each_step_and_warns(api: FakeApi) -> None:
    warning = "kvm-1 is Maintenance: somebody may be working on it"
    api.on(POWER, Answer(202, state(warnings=(warning,))))
    step = PowerActionStatus(
        host="kvm-1", action=Action.OFF, phase=Phase.VERIFYING, reason="", message="Watches kvm-1"
    )
    api.on(LOOK, ok(state(details=step)), ok(state(details=step)), ended(warnings=(warning,)))
    done = hostler("power", "off", "kvm-1", "--reason", "fire", "--force", "--timeout", "9")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "kvm-1: Verifying: Watches kvm-1",
        "kvm-1 is Off: its BMC says Off.",
    ]
    assert done.stderr.splitlines() == [f"Warning: {warning}."]
    assert api.bodies(POWER) == [{"action": "off", "reason": "fire", "force": True, "timeout": 9}]


@pytest.mark.parametrize("action", ["on", "reset", "cycle", "soft"])
def test_each_action_is_asked_for_by_its_name(api: FakeApi, action: str) -> None:
    api.on(POWER, Answer(202, state()))
    api.on(LOOK, ended(outcome=PowerOutcome.THERE_ALREADY))
    done = hostler("power", action, "kvm-1")
    assert "kvm-1 is Off already" in done.stdout
    (body,) = api.bodies(POWER)
    assert body["action"] == action
    assert body["force"] is False


def test_soft_may_fall_back(api: FakeApi) -> None:
    api.on(POWER, Answer(202, state()))
    done = hostler("power", "soft", "kvm-1", "--or-off", "--no-wait")
    assert "hostler operation show power kvm-1" in done.stdout
    assert api.bodies(POWER)[0]["fall_back_to_off"] is True


def test_a_failure_is_one_line(api: FakeApi) -> None:
    api.on(POWER, Answer(202, state()))
    api.on(LOOK, ok(state("FAILED", error="off of kvm-1: it is On after 60 s.")))
    done = hostler("power", "off", "kvm-1")
    assert done.exit_code == 1
    assert done.stderr == "hostler: off of kvm-1: it is On after 60 s.\n"
    api.on(POWER, problem(409, "LeaseHeld", "kvm-1 is held by power/kvm-1."))
    assert "held by power/kvm-1" in hostler("power", "off", "kvm-1").stderr


def test_status_asks_and_unknown_is_a_failure(api: FakeApi) -> None:
    api.on(POWER, Answer(202, state(subject="kvm-1/status")))
    route = "GET /v1/operations/power/kvm-1%2Fstatus"
    api.on(route, ended(outcome=PowerOutcome.OBSERVED))
    assert hostler("power", "status", "kvm-1").stdout == "kvm-1 is Off.\n"
    api.on(route, ended(state=PowerState.UNKNOWN, proof="no answer"))
    done = hostler("power", "status", "kvm-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: kvm-1: Unknown: no answer.\n")


def test_what_was_seen_last_is_told_with_its_age(api: FakeApi) -> None:
    known = HostPower(state=PowerState.ON, observed_at=WHEN, stale=True)
    api.on("GET /v1/hosts/kvm-1/power", ok(known))
    done = hostler("power", "status", "kvm-1", "--known")
    assert "On (stale)" in done.stdout
    assert "2026-11-24" in done.stdout


def test_hosts_are_shown_with_their_power(api: FakeApi) -> None:
    shown = host(power=HostPower(state=PowerState.OFF, observed_at=WHEN))
    api.on("GET /v1/hosts/kvm-1", ok(shown))
    assert "power" in hostler("host", "show", "kvm-1").stdout
    api.on("GET /v1/hosts?limit=1000", ok({"items": [shown], "next": None}))
    assert "Off" in hostler("host", "list").stdout


# --- oobm ---------------------------------------------------------------------------------------


def test_the_first_configuration_is_put_and_later_ones_are_changes(
    api: FakeApi, password_file: str
) -> None:
    api.on("GET /v1/hosts/kvm-1", ok(host()))
    api.on(f"PUT {OOBM}", ok(oobm(enabled=False)))
    options = ("--address", "198.18.1.11", "--user", "admin", "--password-file", password_file)
    done = hostler("oobm", "configure", "kvm-1", *options)
    assert done.exit_code == 0, done.output
    assert "hostler oobm enable kvm-1" in done.stdout
    assert api.bodies(f"PUT {OOBM}") == [
        {"address": "198.18.1.11", "user": "admin", "password": "canary-bmc"}
    ]
    api.on(f"PATCH {OOBM}", ok(oobm()))
    hostler("oobm", "configure", "kvm-1", "--port", "1623", "--enable")
    assert api.bodies(f"PATCH {OOBM}") == [{"port": 1623, "enabled": True}]
    assert hostler("oobm", "configure", "kvm-1").exit_code == 2


def test_what_was_given_is_taken_back(api: FakeApi) -> None:
    api.on(f"PATCH {OOBM}", ok(oobm()))
    options = ("--unset", "port", "--unset", "cipher-suite", "--unset", "certificate")
    done = hostler("oobm", "configure", "kvm-1", *options, "--driver", "redfish")
    assert done.exit_code == 0, done.output
    nothing = {"port": None, "cipher_suite": None, "certificate": None}
    assert api.bodies(f"PATCH {OOBM}") == [{"driver": "redfish", **nothing}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--unset", "port", "--port", "1623"), "does not go with another port"),
        (("--unset", "address"), "'port', 'cipher-suite', 'certificate'"),
    ],
)
def test_what_can_not_be_taken_back_is_refused(
    api: FakeApi, options: tuple[str, ...], said: str
) -> None:
    done = hostler("oobm", "configure", "kvm-1", *options)
    assert done.exit_code == 2
    assert said in done.output
    assert api.requests == []


def test_show_says_all_but_the_password(api: FakeApi) -> None:
    api.on(f"GET {OOBM}", ok(oobm()))
    done = hostler("oobm", "show", "kvm-1")
    assert "On (stale)" in done.stdout
    assert "198.18.1.11" in done.stdout


def test_show_without_a_name_tells_how_all_stand(api: FakeApi) -> None:
    count = PowerCount(state=PowerState.UNKNOWN, problem=PowerProblem.UNREACHABLE, hosts=7)
    done_round = PowerRound(
        started_at=WHEN,
        ended_at=WHEN,
        seconds=1.25,
        asked=100,
        answered=93,
        waiting=7,
        changed=0,
        oldest_observed_at=WHEN,
        counts=(count,),
    )
    api.on("GET /v1/oobm", ok(OobmOverview(counts=(count,), rounds=(done_round,))))
    done = hostler("oobm", "show")
    assert "unreachable" in done.stdout
    assert "93" in done.stdout


def test_test_tells_each_step_and_fails_with_the_problem(api: FakeApi, password_file: str) -> None:
    route = f"POST {OOBM}/test"
    look = BmcLook(
        reachable=True,
        logged_in=True,
        privilege=BmcPrivilege.OPERATOR,
        power_state=PowerState.ON,
        guid="guid-1",
    )
    api.on(route, ok(look))
    done = hostler("oobm", "test", "kvm-1", "--password-file", password_file)
    assert done.exit_code == 0, done.output
    assert "operator" in done.stdout
    assert api.bodies(route) == [{"password": "canary-bmc"}]
    api.on(route, ok(BmcLook(reachable=True, logged_in=False, problem="It refuses the login.")))
    done = hostler("oobm", "test", "kvm-1")
    assert done.exit_code == 1
    assert done.stderr == "hostler: kvm-1: It refuses the login.\n"


def test_hosts_clusters_and_zones_are_switched(api: FakeApi) -> None:
    power = HostPower(state=PowerState.DISABLED, disabled_by=("zone zone-1",))
    api.on(f"PATCH {OOBM}", ok(oobm(power=power)))
    assert "not in force: zone zone-1" in hostler("oobm", "enable", "kvm-1").stdout
    switch = OobmSwitch(name="zone-1", enabled=False, hosts=3)
    api.on("PATCH /v1/zones/zone-1/oobm", ok(switch))
    done = hostler("oobm", "disable", "--zone", "zone-1")
    assert "zone zone-1 is disabled; 3 of its hosts" in done.stdout
    assert api.bodies("PATCH /v1/zones/zone-1/oobm") == [{"enabled": False}]
    assert hostler("oobm", "enable").exit_code == 2
    assert hostler("oobm", "enable", "kvm-1", "--zone", "zone-1").exit_code == 2


def test_a_password_is_changed_and_never_shown(api: FakeApi) -> None:
    started = operation("RUNNING", OperationKind.BMC_PASSWORD)
    api.on(f"POST {OOBM}/password", Answer(202, started))
    result = BmcPasswordChangeResult(host="kvm-1", proof="a login")
    api.on(
        "GET /v1/operations/bmc-password/kvm-1",
        ok(operation("COMPLETED", OperationKind.BMC_PASSWORD, details=result)),
    )
    done = hostler("oobm", "change-password", "kvm-1")
    assert done.stdout == "The BMC of kvm-1 has a new password, proven by a login.\n"
    assert api.bodies(f"POST {OOBM}/password") == [{"reason": ""}]


def test_it_is_deleted(api: FakeApi) -> None:
    api.on(f"DELETE {OOBM}", Answer(204))
    assert hostler("oobm", "delete", "kvm-1").exit_code == 0
    api.on(f"DELETE {OOBM}", NOT_FOUND)
    assert hostler("oobm", "delete", "kvm-1").exit_code == 1
