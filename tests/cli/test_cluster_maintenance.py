import json
from typing import Any

import pytest

from contracts.cluster_maintenance import (
    ClusterMaintenanceOutcome,
    ClusterMaintenanceResult,
    ClusterMaintenanceView,
    ClusterPhase,
    HookOutcome,
    HookRun,
    HostProgress,
    HostWork,
    Stage,
    Step,
)
from contracts.operations import OperationKind
from tests.cli.answers import operation
from tests.cli.conftest import NOT_FOUND, UNAVAILABLE, Answer, FakeApi, hostler, items, ok, problem
from tests.samples import WHEN

PATH = "/v1/clusters/cluster-1/maintenance"
START, VIEW, HOOKS = f"POST {PATH}", f"GET {PATH}", f"GET {PATH}/hooks"
OPERATION = "GET /v1/operations/cluster-maintenance/cluster-1"
PASSED = HookOutcome(stage=Stage.PRE_FLIGHT, attempt=1, exit_status=0)
COMMANDS = ("hostler cluster maintenance resume cluster-1",)


def progress(number: int, state: HostWork, step: Step, **more: Any) -> HostProgress:
    return HostProgress(host=f"kvm-{number}", state=state, step=step, hooks=(PASSED,), **more)


def view(phase: ClusterPhase, *hosts: HostProgress, **more: Any) -> ClusterMaintenanceView:
    return ClusterMaintenanceView(
        **{
            "cluster": "cluster-1",
            "phase": phase,
            "reason": "kernel",
            "message": "kvm-2: drain; 1 of 2 hosts are done",
            "since": WHEN,
            "parallel": 1,
            "reboot": True,
            "hosts": hosts,
            "workflow_id": "cluster-maintenance/cluster-1",
            "run_id": "0198-run",
            **more,
        }
    )


DONE = progress(
    1,
    HostWork.DONE,
    Step.LEAVE,
    boot_id_before="aaaaaaaa-1",
    boot_id_after="bbbbbbbb-2",
)
WORKING = view(ClusterPhase.WORKING, DONE, progress(2, HostWork.WORKING, Step.DRAIN))
FAILED = view(
    ClusterPhase.QUESTION,
    DONE,
    progress(2, HostWork.FAILED, Step.REBOOT, error="kvm-2 is not back"),
    message="kvm-2 has failed at reboot: kvm-2 is not back",
    commands=COMMANDS,
)


def ended(outcome: ClusterMaintenanceOutcome, *hosts: HostProgress) -> Answer:
    result = ClusterMaintenanceResult(cluster="cluster-1", outcome=outcome, hosts=hosts)
    return ok(cluster_operation("COMPLETED", result))


def cluster_operation(status: str, details: Any = None, error: str | None = None) -> Any:
    return operation(status, OperationKind.CLUSTER_MAINTENANCE, "cluster-1", details, error)


@pytest.fixture(autouse=True)
def started(api: FakeApi) -> None:
    api.on(START, Answer(202, cluster_operation("RUNNING")))


def maintain(*more: str) -> Any:
    return hostler("cluster", "maintain", "cluster-1", *more)


def test_it_starts_and_says_how_to_watch(api: FakeApi) -> None:
    done = maintain()
    assert done.exit_code == 0, done.output
    assert "hostler cluster maintenance status cluster-1 --watch" in done.stdout
    assert api.bodies(START) == [
        {
            "parallel": 1,
            "reason": "",
            "on_blocker": "refuse",
            "reboot": False,
            "power_cycle_when_lost": False,
            "hooks": {},
            "return_vms": False,
        }
    ]


def test_every_option_is_sent(api: FakeApi) -> None:
    done = maintain(
        *("--host", "kvm-2", "--host", "kvm-1", "--parallel", "2", "--reason", "kernel"),
        *("--reboot", "--hook", "pre_flight=test -e '/a b'", "--apply-updates"),
        *("--hook-timeout", "60", "--on-blocker", "shutdown", "--max-parallel", "3"),
        *("--return-vms", "--power-cycle-when-lost"),
    )
    assert done.exit_code == 0, done.output
    assert api.bodies(START) == [
        {
            "hosts": ["kvm-2", "kvm-1"],
            "parallel": 2,
            "reason": "kernel",
            "reboot": True,
            "power_cycle_when_lost": True,
            "hooks": {
                "pre_flight": {"command": ["test", "-e", "/a b"], "timeout_s": 60},
                "maintenance": {"builtin": "apply-updates", "timeout_s": 60},
            },
            "on_blocker": "shutdown",
            "max_parallel": 3,
            "return_vms": True,
        }
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--hook", "lunch=true"), "'lunch=true' is not STAGE=COMMAND with a stage of pre_flight"),
        (("--hook", "pre_flight"), "is not STAGE=COMMAND"),
        (("--hook", "pre_flight= "), "is not STAGE=COMMAND"),
        (("--hook", "pre_flight='a"), "No closing quotation"),
        (("--hook", "pre_flight=a", "--hook", "pre_flight=b"), "pre_flight is given twice"),
        (("--hook", "maintenance=a", "--apply-updates"), "which has one by --hook"),
        (("--hook", "pre_flight=a", "--hook-timeout", "0"), "timeout_s: input should be greater"),
        (("--on-blocker", "keep"), "on_blocker: with VMs kept on it"),
        (("--parallel", "0"), "parallel: input should be greater than or equal to 1"),
        (("--host", "kvm 1"), "hosts.0: must match"),
        (("--host", "kvm-1", "--host", "kvm-1"), "hosts: a host is named twice"),
    ],
)
def test_what_is_not_valid_is_not_sent(api: FakeApi, more: tuple[str, ...], said: str) -> None:
    done = maintain(*more)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())
    assert api.requests == []


def test_watch_says_each_change_once_to_the_end(api: FakeApi) -> None:
    api.on(VIEW, ok(WORKING), UNAVAILABLE, ok(WORKING), NOT_FOUND)
    api.on(OPERATION, ended(ClusterMaintenanceOutcome.COMPLETED, DONE, DONE))
    done = maintain("--watch")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "kvm-1: done, boot aaaaaaaa -> bbbbbbbb",
        "kvm-2: working, drain",
        "cluster-1: Working",
        "Temporal does not answer. Trying again.",
        "The maintenance of cluster-1 is done: 2 hosts.",
    ]


def test_watch_of_one_that_has_ended_says_how(api: FakeApi) -> None:
    api.on(VIEW, NOT_FOUND)
    api.on(OPERATION, ended(ClusterMaintenanceOutcome.COMPLETED, DONE))
    done = hostler("cluster", "maintenance", "status", "cluster-1", "--watch")
    assert (done.exit_code, done.stdout) == (0, "The maintenance of cluster-1 is done: 1 hosts.\n")


def test_watch_ends_with_the_failure_and_the_way_on(api: FakeApi) -> None:
    # Others still in work are waited for.
    third = progress(3, HostWork.WORKING, Step.LEAVE)
    busy = FAILED.model_copy(update={"hosts": (*FAILED.hosts, third)})
    api.on(VIEW, ok(WORKING), ok(busy), ok(FAILED))
    done = hostler("cluster", "maintenance", "status", "cluster-1", "--watch")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-4:] == [
        "kvm-2: failed at reboot (kvm-2 is not back)",
        "kvm-3: working, leave",
        "cluster-1: Question",
        f"Run: {COMMANDS[0]}",
    ]
    assert done.stderr == (
        "hostler: The maintenance of cluster-1 waits: kvm-2 has failed at reboot: "
        "kvm-2 is not back\n"
    )


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (
            ended(ClusterMaintenanceOutcome.STOPPED, DONE, WORKING.hosts[1]),
            "The maintenance of cluster-1 was stopped: 1 of 2 hosts done.",
        ),
        (ok(cluster_operation("FAILED", error="no hosts")), "no hosts"),
        (ok(cluster_operation("CANCELED")), "The cluster-maintenance of cluster-1 was cancelled."),
        (NOT_FOUND, "cluster-1 was not in maintenance."),
    ],
)
def test_watch_of_one_that_does_not_complete(api: FakeApi, ending: Answer, said: str) -> None:
    api.on(VIEW, ok(WORKING), NOT_FOUND)
    api.on(OPERATION, ending)
    done = maintain("--watch")
    assert done.exit_code == 1
    assert done.stderr == f"hostler: {said}\n"


def test_status(api: FakeApi) -> None:
    api.on(VIEW, ok(FAILED))
    done = hostler("cluster", "maintenance", "status", "cluster-1")
    lines = done.stdout.splitlines()
    assert "message    kvm-2 has failed at reboot: kvm-2 is not back" in lines
    assert "reboot     yes" in lines
    first, second = (line for line in lines if line.startswith("kvm-"))
    assert first.split() == ["kvm-1", "done", "pre_flight", "0", "aaaaaaaa", "->", "bbbbbbbb"]
    assert second.split(maxsplit=5) == [
        *("kvm-2", "failed", "reboot", "pre_flight", "0"),
        "kvm-2 is not back",
    ]
    assert lines[-2:] == ["What moves it on:", f"    {COMMANDS[0]}"]
    told = hostler("cluster", "maintenance", "status", "cluster-1", "--json")
    assert json.loads(told.stdout) == FAILED.model_dump(mode="json")


def test_status_of_none(api: FakeApi) -> None:
    api.on(VIEW, problem(404, "NotFound", "No maintenance of cluster-1 is open."))
    done = hostler("cluster", "maintenance", "status", "cluster-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: No maintenance of cluster-1 is open.\n")


@pytest.mark.parametrize(
    ("update", "said"),
    [("pause", "is paused"), ("resume", "goes on"), ("stop", "ends as soon as no host is in work")],
)
def test_steering(api: FakeApi, update: str, said: str) -> None:
    api.on(f"POST {PATH}/{update}", Answer(204))
    done = hostler("cluster", "maintenance", update, "cluster-1")
    assert done.stdout == f"The maintenance of cluster-1 {said}.\n"


def test_a_refusal_is_the_answer(api: FakeApi) -> None:
    api.on(f"POST {PATH}/resume", problem(409, "Conflict", "There is nothing to resume."))
    done = hostler("cluster", "maintenance", "resume", "cluster-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: There is nothing to resume.\n")


def hook_run(attempt: int, **more: Any) -> HookRun:
    return HookRun(
        **{
            "operation": "cluster-maintenance/cluster-1#run",
            "host": "kvm-1",
            "stage": Stage.MAINTENANCE,
            "attempt": attempt,
            "command": ("sh", "-c", "a b"),
            "exit_status": 0,
            "problem": None,
            "output": None,
            "started_at": WHEN,
            "finished_at": WHEN,
            **more,
        }
    )


def test_hooks_of_all_hosts(api: FakeApi) -> None:
    interrupted = hook_run(1, exit_status=None, problem="it was interrupted by a reboot")
    running = hook_run(2, exit_status=None, finished_at=None)
    api.on(HOOKS, items(interrupted, running, hook_run(3)))
    header, *rows = hostler("cluster", "maintenance", "hooks", "cluster-1").stdout.splitlines()
    assert header.split()[:4] == ["HOST", "STAGE", "ATTEMPT", "RESULT"]
    assert [row.split("maintenance  ")[1][9:40].strip().split("  ")[0] for row in rows] == [
        "it was interrupted by a reboot",
        "running",
        "status 0",
    ]
    assert rows[0].rstrip().endswith("sh -c 'a b'")


def test_hooks_of_one_host_with_what_they_printed(api: FakeApi) -> None:
    api.on(f"{HOOKS}/kvm-1", items(hook_run(1, output="one\n\x1b[31mtwo\n"), hook_run(2)))
    done = hostler("cluster", "maintenance", "hooks", "cluster-1", "kvm-1")
    assert done.stdout.splitlines() == [
        "maintenance, attempt 1: sh -c 'a b': status 0",
        "    one",
        "    \N{REPLACEMENT CHARACTER}[31mtwo",
        "maintenance, attempt 2: sh -c 'a b': status 0",
    ]
    assert hostler("cluster", "maintenance", "hooks", "cluster-1", "kvm 1").exit_code == 2
