import pytest

from cli import allocation
from contracts.allocation import (
    AllocationLevel,
    AllocationStateInput,
    AllocationStateResult,
    AllocationStateStatus,
    UntoldHost,
)
from contracts.operations import ALLOCATION_KINDS, Operation
from contracts.states import AllocationState, Phase
from tests.cli.answers import operation
from tests.cli.conftest import Answer, FakeApi, hostler, ok, problem
from tests.samples import WHEN

ENABLED, DISABLED = AllocationState.ENABLED, AllocationState.DISABLED


def asked(level: str, state: AllocationState) -> AllocationStateInput:
    return AllocationStateInput(
        level=AllocationLevel(level), name=f"{level}-1", allocation_state=state
    )


def running(level: str, state: AllocationState) -> Operation:
    status = AllocationStateStatus(
        **dict(asked(level, state)), phase=Phase.TELLING, message="", since=WHEN
    )
    return operation(kind=ALLOCATION_KINDS[status.level], subject=f"{level}-1", details=status)


def completed(level: str, state: AllocationState, *untold: UntoldHost, more: int = 0) -> Operation:
    fields = asked(level, state).model_dump(exclude={"reason"})
    result = AllocationStateResult(
        **fields, told=498, not_told=len(untold) + more, untold=tuple(untold)
    )
    return operation(
        "COMPLETED",
        kind=ALLOCATION_KINDS[AllocationLevel(level)],
        subject=f"{level}-1",
        details=result,
    )


@pytest.mark.parametrize(("verb", "state"), [("enable", ENABLED), ("disable", DISABLED)])
@pytest.mark.parametrize("level", ["zone", "pod", "cluster", "host"])
def test_it_waits_until_the_hosts_know(
    api: FakeApi, level: str, verb: str, state: AllocationState
) -> None:
    route = f"PATCH /v1/{level}s/{level}-1"
    api.on(route, Answer(202, running(level, state)))
    look = f"GET /v1/operations/{level}-allocation/{level}-1"
    api.on(look, ok(running(level, state)), ok(completed(level, state)))
    done = hostler(level, verb, f"{level}-1", "--reason", "new switch")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{level} {level}-1 is {state}. 498 hosts were told.\n"
    assert done.stderr == ""
    field = "resource_state" if level == "host" else "allocation_state"
    assert api.bodies(route) == [{field: state, "reason": "new switch"}]


def test_it_names_who_could_not_be_told(api: FakeApi) -> None:
    api.on("PATCH /v1/zones/zone-1", Answer(202, running("zone", DISABLED)))
    untold = [UntoldHost(host=f"kvm-{n}", reason="does not\nanswer") for n in (1, 2)]
    api.on(
        "GET /v1/operations/zone-allocation/zone-1",
        ok(completed("zone", DISABLED, *untold, more=3)),
    )
    done = hostler("zone", "disable", "zone-1")
    assert done.exit_code == 0
    assert done.stdout == "zone zone-1 is Disabled. 498 hosts were told.\n"
    assert done.stderr.splitlines() == [
        "kvm-1 could not be told: does not; answer",
        "kvm-2 could not be told: does not; answer",
        "Neither could 3 more.",
        "Hosts that could not be told now will be when they answer again.",
    ]


def test_one_that_was_turned_round_meanwhile_has_failed(api: FakeApi) -> None:
    api.on("PATCH /v1/zones/zone-1", Answer(202, running("zone", DISABLED)))
    api.on("GET /v1/operations/zone-allocation/zone-1", ok(completed("zone", ENABLED)))
    done = hostler("zone", "disable", "zone-1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "hostler: zone zone-1 is Enabled: somebody has asked for that meanwhile. "
        "Who did: hostler event list --subject zone/zone-1\n"
    )


def test_it_need_not_wait(api: FakeApi) -> None:
    api.on("PATCH /v1/clusters/cluster-1", Answer(202, running("cluster", DISABLED)))
    done = hostler("cluster", "disable", "cluster-1", "--no-wait")
    assert done.stdout == (
        "cluster cluster-1 becomes Disabled. See how it goes: "
        "hostler operation show cluster-allocation cluster-1\n"
    )
    assert len(api.requests) == 1


def test_without_a_worker_it_says_so(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_NO_WORKER_S", 0.05)
    silent = running("zone", ENABLED).model_copy(update={"details": None})
    api.on("PATCH /v1/zones/zone-1", Answer(202, silent))
    api.on("GET /v1/operations/zone-allocation/zone-1", ok(silent))
    done = hostler("zone", "enable", "zone-1")
    assert done.exit_code == 1
    assert done.stderr == (
        "hostler: The zone-allocation of zone-1 has started, but no worker takes it up. Start one "
        "with `hostler worker`, and it goes on by itself: "
        "hostler operation show zone-allocation zone-1\n"
    )


def test_a_worker_that_goes_away_meanwhile_is_waited_for(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "_NO_WORKER_S", 0.0)
    known = running("zone", ENABLED)
    silent = known.model_copy(update={"details": None})
    api.on("PATCH /v1/zones/zone-1", Answer(202, known))
    api.on(
        "GET /v1/operations/zone-allocation/zone-1",
        *(ok(known), ok(silent), ok(silent), ok(completed("zone", ENABLED))),
    )
    assert hostler("zone", "enable", "zone-1").exit_code == 0


def test_what_failed_says_why(api: FakeApi) -> None:
    api.on("PATCH /v1/hosts/host-1", Answer(202, running("host", DISABLED)))
    failed = running("host", DISABLED).model_copy(
        update={"status": "FAILED", "error": "host-1 is Maintenance.", "details": None}
    )
    api.on("GET /v1/operations/host-allocation/host-1", ok(failed))
    done = hostler("host", "disable", "host-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: host-1 is Maintenance.\n")
    api.on("PATCH /v1/hosts/host-1", problem(409, "LeaseHeld", "host-1 is held by another."))
    done = hostler("host", "disable", "host-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: host-1 is held by another.\n")
