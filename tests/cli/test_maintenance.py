import json
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contracts.evacuation import Blocker, BlockerKind, EvacuationPlan
from contracts.maintenance import (
    HostMaintenanceResult,
    MaintenanceOutcome,
    MigrationMode,
    OnBlocker,
    VmAction,
    VmStatus,
)
from contracts.operations import OperationKind
from contracts.states import Phase, ResourceState
from contracts.vm_return import VmReturnResult, VmReturnStatus
from contracts.vms import MigrationState
from tests.cli.answers import PLAN, migration, operation, view, vm
from tests.cli.conftest import (
    NOT_FOUND,
    UNAVAILABLE,
    Answer,
    FakeApi,
    Terminal,
    hostler,
    items,
    ok,
    problem,
    process,
)
from tests.samples import WHEN, host

ENTER = "POST /v1/hosts/kvm-1/maintenance"
LEAVE = "DELETE /v1/hosts/kvm-1/maintenance"
VIEW = "GET /v1/hosts/kvm-1/maintenance"
HOST = "GET /v1/hosts/kvm-1"
OPERATION = "GET /v1/operations/maintenance/kvm-1"
RETURN = "POST /v1/hosts/kvm-1/maintenance/return"
RETURNING = "GET /v1/operations/return/kvm-1"

WAITING, MIGRATING, MOVED = MigrationState.WAITING, MigrationState.MIGRATING, MigrationState.MOVED
COMMANDS = (
    "hostler maintenance resolve kvm-1 vm-2 retry",
    "hostler maintenance resolve kvm-1 vm-2 shutdown",
    "hostler maintenance resolve kvm-1 vm-2 keep",
    "hostler maintenance leave kvm-1",
)
ACTIONS = (VmAction.RETRY, VmAction.SHUTDOWN, VmAction.KEEP)
MOVING = view(
    Phase.EVACUATING,
    "2 VMs to move, 1 at a time",
    vm("vm-1", MIGRATING, destination="kvm-2", attempt=1),
    vm("vm-2", WAITING, destination="kvm-3"),
    migrations=(migration("vm-1", 40),),
)
HALF = view(
    Phase.EVACUATING,
    "2 VMs to move, 1 at a time",
    vm("vm-1", MOVED, destination="kvm-2", attempt=1, seconds=4.21),
    vm("vm-2", MIGRATING, destination="kvm-3", attempt=1),
)
ASKING = view(
    Phase.QUESTION,
    "vm-2 can't be moved: no room",
    vm("vm-1", MOVED, destination="kvm-2", attempt=1, seconds=4.21),
    vm(
        "vm-2",
        MigrationState.FAILED,
        destination="kvm-3",
        attempt=1,
        error="no room",
        actions=ACTIONS,
    ),
    questions=("vm-2",),
    troubles=("vm-2 can't be moved: no room",),
    commands=COMMANDS,
)
READY = view(
    Phase.READY,
    "Ready for maintenance",
    vm("vm-1", MOVED, destination="kvm-2", attempt=1, seconds=4.21),
    vm("vm-2", MOVED, destination="kvm-3", attempt=1, seconds=5.0),
)
LEAVING = view(Phase.LEAVING, "Checks the host, then takes the fence down")


@pytest.fixture(autouse=True)
def started(api: FakeApi) -> None:
    api.on(ENTER, Answer(202, operation()))
    api.on(LEAVE, Answer(202, operation()))
    api.on(OPERATION, ok(operation()))


# --- enter --------------------------------------------------------------------------------------


def test_enter_starts_it_and_says_how_to_watch(api: FakeApi) -> None:
    done = hostler("maintenance", "enter", "kvm-1")
    assert done.exit_code == 0, done.output
    assert "hostler maintenance status kvm-1 --watch" in done.stdout
    assert api.bodies(ENTER) == [
        {
            "reason": "",
            "dry_run": False,
            "on_blocker": "refuse",
            "return_vms": False,
            "queue": True,
            "host_is_down": False,
            "power_off_when_ready": False,
            "fall_back_to_off": False,
        }
    ]


def test_enter_sends_every_option(api: FakeApi) -> None:
    done = hostler(
        *("maintenance", "enter", "kvm-1", "--reason", "new RAM"),
        *("--on-blocker", "keep", "--max-parallel", "3"),
        *("--return-vms", "--no-queue", "--host-is-down"),
    )
    assert done.exit_code == 0, done.output
    assert api.bodies(ENTER) == [
        {
            "reason": "new RAM",
            "dry_run": False,
            "on_blocker": OnBlocker.KEEP,
            "max_parallel": 3,
            "return_vms": True,
            "queue": False,
            "host_is_down": True,
            "power_off_when_ready": False,
            "fall_back_to_off": False,
        }
    ]


def test_enter_may_switch_it_off(api: FakeApi) -> None:
    done = hostler("maintenance", "enter", "kvm-1", "--power-off-when-ready", "--or-off")
    assert done.exit_code == 0, done.output
    (body,) = api.bodies(ENTER)
    assert (body["power_off_when_ready"], body["fall_back_to_off"]) == (True, True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--or-off",), "fall_back_to_off goes with power_off_when_ready only"),
        (("--max-parallel", "65"), "max_parallel: input should be less than or equal to 64"),
        (("--max-parallel", "0"), "max_parallel: input should be greater than or equal to 1"),
        (("--reason", "x" * 1001), "reason: string should have at most 1000 characters"),
        (("--max-parallel", "two"), "Invalid value for '--max-parallel'"),
        (("--on-blocker", "leave"), "Invalid value for '--on-blocker'"),
    ],
)
def test_input_that_is_not_valid(api: FakeApi, more: tuple[str, ...], said: str) -> None:
    done = hostler("maintenance", "enter", "kvm-1", *more)
    assert done.exit_code == 2
    assert said in done.stderr
    assert api.requests == []


# --- enter --dry-run ----------------------------------------------------------------------------


def planned(plan: EvacuationPlan | None) -> Answer:
    return ok(
        operation(
            "COMPLETED",
            details=HostMaintenanceResult(
                host="kvm-1",
                outcome=MaintenanceOutcome.PLANNED,
                resource_state=ResourceState.ENABLED,
                plan=plan,
            ),
        )
    )


def test_dry_run_waits_for_the_plan_and_shows_it(api: FakeApi) -> None:
    api.on(OPERATION, ok(operation()), ok(operation()), planned(PLAN))
    done = hostler("maintenance", "enter", "kvm-1", "--dry-run")
    assert done.exit_code == 0, done.output
    assert [line.split(maxsplit=3) for line in done.stdout.splitlines()[:2]] == [
        ["VM", "DESTINATION", "MEMORY", "MIB  VCPUS"],
        ["vm-1", "kvm-2", "64", "1    "],
    ]
    assert [line.rstrip() for line in done.stdout.splitlines()[2:]] == [
        "BLOCKED VM  KIND            CANDIDATE  REASON",
        "vm-2        no destination             no host can take it",
        "                            kvm-2      32 MiB free, 64 needed",
        "                            kvm-3      is Disabled",
        "kvm-1: 1 VMs can move, 1 can't. Nothing was changed. With --on-blocker refuse, its "
        "maintenance would be refused.",
    ]
    assert api.bodies(ENTER)[0]["dry_run"] is True


def test_dry_run_without_blockers(api: FakeApi) -> None:
    api.on(OPERATION, planned(PLAN.model_copy(update={"blockers": ()})))
    done = hostler("maintenance", "enter", "kvm-1", "--dry-run")
    assert done.exit_code == 0
    assert "BLOCKED" not in done.stdout
    assert done.stdout.endswith("kvm-1: 1 VMs can move, 0 can't. Nothing was changed.\n")


def test_dry_run_shows_what_was_broken_before(api: FakeApi) -> None:
    crashed = Blocker(vm="vm-7", kind=BlockerKind.VM_STATE, message="is crashed")
    api.on(OPERATION, planned(PLAN.model_copy(update={"blockers": (), "broken": (crashed,)})))
    done = hostler("maintenance", "enter", "kvm-1", "--dry-run")
    assert done.exit_code == 0
    assert [line.rstrip() for line in done.stdout.splitlines()[2:]] == [
        "BROKEN VM  REASON",
        "vm-7       is crashed",
        "kvm-1: 1 VMs can move, 0 can't, 1 were broken before and are left alone. Nothing was "
        "changed.",
    ]


def test_dry_run_shows_whom_it_would_wait_for(api: FakeApi) -> None:
    api.on(OPERATION, planned(PLAN.model_copy(update={"waits_for": ("kvm-3", "kvm-4")})))
    done = hostler("maintenance", "enter", "kvm-1", "--dry-run")
    assert done.stdout.endswith(
        "kvm-1: 1 VMs can move, 1 can't. Nothing was changed. With --on-blocker refuse, its "
        "maintenance would wait for kvm-3, kvm-4 to come back, when there is room for all; with "
        "--no-queue, it would be refused.\n"
    )


def test_dry_run_that_fails(api: FakeApi) -> None:
    api.on(OPERATION, ok(operation("FAILED", error="kvm-1 is Down: its VMs can't be moved.")))
    done = hostler("maintenance", "enter", "kvm-1", "--dry-run")
    assert done.exit_code == 1
    assert done.stderr == "hostler: kvm-1 is Down: its VMs can't be moved.\n"


# --- enter --watch ------------------------------------------------------------------------------


def test_watch_in_a_pipe_has_one_line_per_change(api: FakeApi) -> None:
    # At first no lease is taken, so there is no view yet.
    api.on(VIEW, NOT_FOUND, ok(MOVING), ok(MOVING), ok(HALF), ok(HALF), ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "kvm-1: Evacuating: 2 VMs to move, 1 at a time",
        "vm-1: migrating to kvm-2, 40 %, 12.3 MiB/s, no end in sight",
        "vm-2: waiting to kvm-3",
        "vm-1: moved to kvm-2 in 4.2 s",
        "vm-2: migrating to kvm-3",
        "kvm-1: Ready: Ready for maintenance",
        "vm-2: moved to kvm-3 in 5.0 s",
        "kvm-1 is ready for maintenance. Put it back: hostler maintenance leave kvm-1",
    ]
    assert done.stderr == ""


def test_watch_in_a_pipe_has_at_most_a_line_per_ten_per_cent(api: FakeApi) -> None:
    def at(percent: int, rate: float, end_s: float | None, throttle: int = 0) -> Answer:
        end = None if end_s is None else datetime.now(UTC) + timedelta(seconds=end_s)
        figures = {"rate_mib_s": rate, "expected_end_at": end, "throttle_percent": throttle}
        seen = migration("vm-1", percent).model_copy(update=figures)
        moving = vm("vm-1", MIGRATING, destination="kvm-2", attempt=1)
        return ok(view(Phase.EVACUATING, "1 VMs to move", moving, migrations=(seen,)))

    began = view(Phase.EVACUATING, "1 VMs to move", vm("vm-1", WAITING, destination="kvm-2"))
    api.on(
        VIEW,
        ok(began),
        # The end comes into sight and goes away again; the figures are others at every look.
        at(3, 1, None),
        at(5, 2, 9000),
        at(9, 3, None),
        at(11, 4, None),
        at(19, 5, 400),
        # A guest that writes a lot: less is copied than was before.
        at(9, 6, None),
        at(11, 7, None, throttle=20),
        at(35, 8, None, throttle=30),
        ok(READY),
    )
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 0, done.output
    assert [line for line in done.stdout.splitlines() if line.startswith("vm-1")] == [
        "vm-1: waiting to kvm-2",
        "vm-1: migrating to kvm-2, 3 %, 1.0 MiB/s, no end in sight",
        "vm-1: migrating to kvm-2, 11 %, 4.0 MiB/s, no end in sight",
        "vm-1: migrating to kvm-2, 35 %, 8.0 MiB/s, no end in sight, guest throttled by 30 %",
        "vm-1: moved to kvm-2 in 4.2 s",
    ]


def test_watch_tells_whom_a_queued_host_waits_for(api: FakeApi) -> None:
    message = "Waits for its turn: 1 of cluster-1 may be out at a time, and it is kvm-2"
    queued = view(Phase.QUEUED, message)
    api.on(VIEW, ok(queued), ok(queued), ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 0, done.output
    assert done.stdout.count(f"kvm-1: Queued: {message}\n") == 1


def test_watch_tells_each_trouble_and_when_it_is_over(api: FakeApi) -> None:
    away = "kvm-1 does not answer: no route"
    troubled = MOVING.model_copy(update={"troubles": (away,)})
    both = ASKING.model_copy(update={"troubles": (away, *ASKING.troubles)})
    api.on(VIEW, ok(MOVING), ok(troubled), ok(troubled), ok(both), ok(HALF), ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 0, done.output
    told = [line for line in done.stdout.splitlines() if line.startswith(("Trouble", "Over"))]
    # A question is told as such, not as a trouble too.
    assert told == [f"Trouble: {away}", f"Over: {away}"]
    assert done.stdout.count("Question: vm-2 can't be moved: no room\n") == 1


def test_lines_reach_the_pipe_at_once(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING))
    watching = process("maintenance", "enter", "kvm-1", "--watch")
    assert watching.stdout
    assert watching.stdout.readline() == "kvm-1: Evacuating: 2 VMs to move, 1 at a time\n"
    assert watching.poll() is None
    api.on(VIEW, ok(READY))
    out, _ = watching.communicate()
    assert watching.returncode == 0
    assert "is ready for maintenance" in out


def test_watch_asks_each_question_once_and_goes_on(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING), ok(ASKING), ok(ASKING), ok(ASKING), ok(HALF), ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("Question: vm-2 can't be moved: no room\n") == 1
    for command in COMMANDS:
        assert done.stdout.count(f"Run: {command}\n") == 1


def test_another_question_comes_with_its_own_answers_only(api: FakeApi) -> None:
    actions = (VmAction.WAIT, VmAction.PAUSE)
    other = vm("vm-3", MigrationState.FAILED, error="it writes 90 MiB/s", actions=actions)
    both = ASKING.model_copy(update={"vms": (*ASKING.vms, other), "questions": ("vm-2", "vm-3")})
    api.on(VIEW, ok(ASKING), ok(both), ok(both), ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    lines = done.stdout.splitlines()
    first = lines.index("Question: vm-2 can't be moved: no room")
    assert lines[first + 1 : first + 5] == [f"Run: {command}" for command in COMMANDS]
    second = lines.index("Question: vm-3 can't be moved: it writes 90 MiB/s")
    assert lines[second + 1 : second + 3] == [
        "Run: hostler maintenance resolve kvm-1 vm-3 wait",
        "Run: hostler maintenance resolve kvm-1 vm-3 pause",
    ]
    assert len([line for line in lines if line.startswith("Run: ")]) == 6


def test_a_question_that_comes_again_is_asked_again(api: FakeApi) -> None:
    api.on(VIEW, ok(ASKING), ok(HALF), ok(ASKING), ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.stdout.count("Question: vm-2 can't be moved: no room\n") == 2


def test_kept_vms_are_told(api: FakeApi) -> None:
    message = "Fenced, with VMs kept on purpose: vm-2"
    commands = (COMMANDS[0], COMMANDS[-1])
    kept = view(Phase.QUESTION, message, vm("vm-2", MigrationState.KEPT), commands=commands)
    api.on(VIEW, ok(kept), ok(kept), ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.stdout.count(f"Question: {message}\n") == 1
    assert "vm-2: kept\n" in done.stdout
    for command in commands:
        assert done.stdout.count(f"Run: {command}\n") == 1


def test_a_refused_maintenance_says_why(api: FakeApi) -> None:
    error = (
        "kvm-1 can't be evacuated, and nothing was changed:\n"
        "vm-1: no host can take it (kvm-2: no room; kvm-3: is Down)\n"
        "vm-2: local disk\n"
        "Remove these blockers, or choose with on_blocker: shutdown or keep."
    )
    planning = view(Phase.PLANNING, "Reads the host and plans the evacuation")
    api.on(VIEW, ok(planning), NOT_FOUND)
    api.on(OPERATION, ok(operation("FAILED", error=error)))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 1
    assert done.stderr == (
        "hostler: kvm-1 can't be evacuated, and nothing was changed: "
        "vm-1: no host can take it (kvm-2: no room; kvm-3: is Down); vm-2: local disk; "
        "Remove these blockers, or choose with on_blocker: shutdown or keep.\n"
    )


@pytest.mark.parametrize(
    ("status", "said"), [("CANCELED", "was cancelled"), ("TERMINATED", "was terminated")]
)
def test_a_maintenance_that_others_end(api: FakeApi, status: str, said: str) -> None:
    api.on(VIEW, ok(MOVING), NOT_FOUND)
    api.on(OPERATION, ok(operation(status, error="Workflow ended")))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 1
    assert done.stderr == f"hostler: The maintenance of kvm-1 {said}.\n"


def test_a_maintenance_that_is_left_before_it_is_ready(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING), NOT_FOUND)
    api.on(OPERATION, ok(operation("COMPLETED")))
    api.on(HOST, ok(host()))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 1
    assert done.stderr == (
        "hostler: kvm-1 is back in service before it was ready for maintenance.\n"
    )


def test_watch_outlives_an_absence_of_the_api(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING), UNAVAILABLE, UNAVAILABLE, ok(READY))
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("Temporal does not answer. Trying again.\n") == 1


def test_watch_gives_up_after_a_while(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.waiting._PATIENCE_S", 0)
    api.on(VIEW, ok(MOVING), UNAVAILABLE)
    done = hostler("maintenance", "enter", "kvm-1", "--watch")
    assert done.exit_code == 1
    assert done.stderr == "hostler: Temporal does not answer.\n"


def test_ctrl_c_says_that_it_goes_on(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING))
    watching = process("maintenance", "enter", "kvm-1", "--watch")
    assert api.asked[VIEW].wait(60)
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate()
    assert watching.returncode == 130
    assert err == (
        "The maintenance of kvm-1 goes on. Watch it again: "
        "hostler maintenance status kvm-1 --watch\n"
    )
    assert api.bodies(LEAVE) == []


def test_bars_on_a_terminal(api: FakeApi) -> None:
    message = "Waits for kvm-2 to come back"
    api.on(VIEW, ok(view(Phase.QUEUED, message, vm("vm-1", WAITING), vm("vm-2", WAITING))))
    terminal = Terminal("maintenance", "enter", "kvm-1", "--watch")
    terminal.until(message)
    api.on(VIEW, ok(MOVING))
    terminal.until("40 %")
    terminal.until("migrating to kvm-2, 12.3 MiB/s, no end in sight")
    terminal.until("0 of 2 VMs")
    api.on(VIEW, ok(ASKING))
    terminal.until("Question: vm-2 can't be moved: no room")
    terminal.until(COMMANDS[0])
    api.on(VIEW, ok(READY))
    assert terminal.end() == 0
    assert "2 of 2 VMs" in terminal.shown
    assert "moved to kvm-3 in 5.0 s" in terminal.shown
    assert "kvm-1 is ready for maintenance." in terminal.shown


def test_ctrl_c_on_a_terminal(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING))
    terminal = Terminal("maintenance", "enter", "kvm-1", "--watch")
    terminal.until("40 %")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "The maintenance of kvm-1 goes on." in terminal.shown
    assert "Traceback" not in terminal.shown


# --- status -------------------------------------------------------------------------------------


def shown() -> list[str]:
    """The lines of `status`, each with single spaces."""
    done = hostler("maintenance", "status", "kvm-1")
    assert done.exit_code == 0, done.output
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_status_json_is_the_view(api: FakeApi) -> None:
    api.on(VIEW, ok(READY))
    done = hostler("maintenance", "status", "kvm-1", "--json")
    shown = json.loads(done.stdout)
    assert shown == READY.model_dump(mode="json")
    assert {one["vm"]: one["seconds"] for one in shown["vms"]} == {"vm-1": 4.21, "vm-2": 5.0}


def test_status(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING.model_copy(update={"commands": COMMANDS[-1:]})))
    lines = shown()
    assert "phase Evacuating" in lines
    assert "since 2026-11-24 09:30:00 UTC" in lines
    assert "vm-1 migrating kvm-2 40 %, 12.3 MiB/s, no end in sight" in lines
    assert "vm-2 waiting kvm-3" in lines
    assert lines[-2:] == ["What moves it on:", COMMANDS[-1]]
    assert "In an error state, until this is over:" not in lines


def test_status_of_a_host_that_waits_for_its_turn(api: FakeApi) -> None:
    message = "Waits for its turn: 1 of cluster-1 may be out at a time, and it is kvm-2"
    api.on(VIEW, ok(view(Phase.QUEUED, message)))
    assert shown()[1:3] == ["phase Queued", f"message {message}"]


def test_status_shows_how_each_migration_goes(api: FakeApi) -> None:
    slow = vm("vm-1", MIGRATING, destination="kvm-2", attempt=2, mode=MigrationMode.AUTO_CONVERGE)
    end = datetime.now(UTC) + timedelta(minutes=12, seconds=25)
    figures = {"dirty_rate_mib_s": 3.5, "throttle_percent": 20, "expected_end_at": end}
    seen = migration("vm-1", 40).model_copy(update=figures)
    api.on(VIEW, ok(view(Phase.EVACUATING, "1 VMs to move", slow, migrations=(seen,))))
    assert (
        "vm-1 migrating kvm-2 40 %, 12.3 MiB/s, dirty rate 3.5 MiB/s, ends in about 12 min, with "
        "auto-converge, guest throttled by 20 %"
    ) in shown()


def test_status_shows_each_question_with_the_commands_that_answer_it(api: FakeApi) -> None:
    api.on(VIEW, ok(ASKING))
    lines = shown()
    assert "vm-2 failed kvm-3 no room" in lines
    trouble = lines.index("In an error state, until this is over:")
    assert lines[trouble + 1] == "vm-2 can't be moved: no room"
    question = lines.index("vm-2 waits for one of these answers:")
    assert lines[question + 1 :] == [*COMMANDS[:-1], "", "What moves it on:", COMMANDS[-1]]


def test_status_shows_what_stays_and_what_starts_again(api: FakeApi) -> None:
    message = "Fenced, with VMs kept on purpose: vm-2"
    commands = (COMMANDS[0], COMMANDS[-1])
    kept = view(
        Phase.QUESTION,
        message,
        vm("vm-1", MigrationState.SHUT_OFF, start_again=True),
        vm("vm-2", MigrationState.KEPT),
        commands=commands,
    )
    api.on(VIEW, ok(kept))
    lines = shown()
    assert "vm-1 shut off, starts again when the host is back" in lines
    assert "vm-2 kept" in lines
    assert lines[-3:] == ["What moves it on:", *commands]


def test_status_of_a_host_that_is_in_service(api: FakeApi) -> None:
    api.on(VIEW, problem(404, "NotFound", "kvm-1 is not in maintenance."))
    for more in ((), ("--json",), ("--watch",)):
        done = hostler("maintenance", "status", "kvm-1", *more)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == "hostler: kvm-1 is not in maintenance.\n"


def test_status_watch_of_a_workflow_under_another_id(api: FakeApi) -> None:
    # An old maintenance/kvm-1 that failed says nothing about this one.
    api.on(OPERATION, ok(operation("FAILED", error="an old story")))
    api.on(VIEW, *[ok(MOVING.model_copy(update={"workflow_id": "my/own"}))] * 2, NOT_FOUND)
    api.on(
        "GET /v1/operations/maintenance/my%2Fown",
        ok(operation("FAILED", error="The lease was lost.")),
    )
    done = hostler("maintenance", "status", "kvm-1", "--watch")
    assert (done.exit_code, done.stderr) == (1, "hostler: The lease was lost.\n")


def test_status_watch_of_a_maintenance_that_ends_and_leaves_the_host_out(api: FakeApi) -> None:
    api.on(VIEW, ok(MOVING), ok(MOVING), NOT_FOUND)
    api.on(OPERATION, NOT_FOUND)
    api.on(HOST, ok(host(state=ResourceState.MAINTENANCE)))
    done = hostler("maintenance", "status", "kvm-1", "--watch")
    assert done.exit_code == 1
    assert done.stderr == (
        "hostler: The maintenance of kvm-1 has ended, but it is still Maintenance. "
        "`hostler maintenance leave kvm-1` puts it back into service.\n"
    )


def test_status_watch_until_the_host_is_back(api: FakeApi) -> None:
    api.on(VIEW, ok(LEAVING), ok(LEAVING), NOT_FOUND)
    api.on(OPERATION, ok(operation("COMPLETED")))
    api.on(HOST, ok(host()))
    done = hostler("maintenance", "status", "kvm-1", "--watch")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("kvm-1 is Enabled.\n")


def test_status_is_watched_or_json(api: FakeApi) -> None:
    done = hostler("maintenance", "status", "kvm-1", "--watch", "--json")
    assert done.exit_code == 2
    assert api.requests == []


# --- leave, return and resolve ------------------------------------------------------------------


def test_leave_waits_until_the_host_is_back(api: FakeApi) -> None:
    api.on(VIEW, ok(LEAVING), ok(LEAVING), NOT_FOUND)
    api.on(OPERATION, ok(operation()), ok(operation("COMPLETED")))
    api.on(HOST, ok(host()))
    done = hostler("maintenance", "leave", "kvm-1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "kvm-1: Leaving: Checks the host, then takes the fence down",
        "kvm-1 is Enabled.",
    ]
    assert len(api.bodies(LEAVE)) == 1


@pytest.mark.parametrize(
    ("options", "query"),
    [
        (("--return-vms",), "?return_vms=True"),
        (("--no-return-vms", "--force"), "?return_vms=False&force=True"),
        (("--force",), "?force=True"),
    ],
)
def test_leave_says_how(api: FakeApi, options: tuple[str, ...], query: str) -> None:
    api.on(LEAVE)
    api.on(f"{LEAVE}{query}", Answer(202, operation()))
    api.on(VIEW, NOT_FOUND)
    api.on(OPERATION, ok(operation("COMPLETED")))
    api.on(HOST, ok(host()))
    done = hostler("maintenance", "leave", "kvm-1", *options)
    assert (done.exit_code, done.stdout) == (0, "kvm-1 is Enabled.\n"), done.output


@pytest.mark.parametrize(("hours", "said"), [(-1, False), (0, True), (1, True)])
def test_leave_says_where_the_return_is_seen(api: FakeApi, hours: int, said: bool) -> None:
    """That of an earlier maintenance is none of this one's."""
    api.on(VIEW, NOT_FOUND)
    api.on(OPERATION, ok(operation("COMPLETED")))
    api.on(HOST, ok(host()))
    begun = {"started_at": WHEN + timedelta(hours=hours)}
    api.on(RETURNING, ok(operation(kind=OperationKind.RETURN).model_copy(update=begun)))
    done = hostler("maintenance", "leave", "kvm-1")
    assert done.exit_code == 0, done.output
    where = "Its VMs come back: hostler operation show return kvm-1\n"
    assert done.stdout == "kvm-1 is Enabled.\n" + (where if said else "")


def returning(*vms: VmStatus) -> Answer:
    details = VmReturnStatus(
        host="kvm-1", phase=Phase.RETURNING, message="VMs come back", since=WHEN, vms=vms
    )
    return ok(operation(kind=OperationKind.RETURN, details=details))


def returned(*vms: VmStatus) -> Answer:
    details = VmReturnResult(host="kvm-1", vms=vms)
    return ok(operation("COMPLETED", OperationKind.RETURN, details=details))


def test_return_waits_and_shows_where_the_vms_are(api: FakeApi) -> None:
    api.on(RETURN, Answer(202, operation(kind=OperationKind.RETURN)))
    back = vm("vm-1", MOVED, destination="kvm-1")
    # It was on its way back when somebody moved it on.
    away = vm("vm-2", MOVED, destination="kvm-3")
    stayed = vm("vm-3", MigrationState.STAYED, destination="kvm-2", error="kvm-1: no room")
    gone = vm("vm-4", MigrationState.GONE, error="runs on no other host of the cluster")
    moving = returning(vm("vm-1", MIGRATING, destination="kvm-1"), stayed)
    api.on(RETURNING, moving, moving, returned(back, away, stayed, gone))
    done = hostler("maintenance", "return", "kvm-1")
    assert done.exit_code == 0, done.output
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        "vm-1: migrating to kvm-1",
        "vm-3: stayed (kvm-1: no room)",
        "VM STATE HOST REASON",
        "vm-1 moved kvm-1",
        "vm-2 moved kvm-3",
        "vm-3 stayed kvm-2 kvm-1: no room",
        "vm-4 gone runs on no other host of the cluster",
        "1 of 4 VMs came back to kvm-1.",
    ]
    assert len(api.bodies(RETURN)) == 1


def test_return_of_nothing(api: FakeApi) -> None:
    api.on(RETURN, Answer(202, operation(kind=OperationKind.RETURN)))
    api.on(RETURNING, returned())
    done = hostler("maintenance", "return", "kvm-1")
    assert (done.exit_code, done.stdout) == (0, "There are no VMs to bring back to kvm-1.\n")


def test_return_that_fails(api: FakeApi) -> None:
    api.on(RETURN, Answer(202, operation(kind=OperationKind.RETURN)))
    api.on(RETURNING, ok(operation("FAILED", OperationKind.RETURN, error="The lease was lost.")))
    done = hostler("maintenance", "return", "kvm-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: The lease was lost.\n")


def test_return_to_a_host_in_maintenance(api: FakeApi) -> None:
    api.on(RETURN, problem(409, "Conflict", "kvm-1 is in maintenance."))
    done = hostler("maintenance", "return", "kvm-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: kvm-1 is in maintenance.\n")


def test_ctrl_c_says_that_the_return_goes_on(api: FakeApi) -> None:
    api.on(RETURN, Answer(202, operation(kind=OperationKind.RETURN)))
    api.on(RETURNING, returning())
    waiting = process("maintenance", "return", "kvm-1")
    assert api.asked[RETURNING].wait(60)
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate()
    assert waiting.returncode == 130
    assert err == "The return to kvm-1 goes on: hostler operation show return kvm-1\n"


@pytest.mark.parametrize(
    "views",
    [
        # With and without a look at the moment in between.
        (LEAVING, view(Phase.READY, "Stays out", leave_problem="kvm-1 does not answer.")),
        (view(Phase.QUESTION, "Stays out", leave_problem="kvm-1 does not answer."),),
    ],
)
def test_leave_that_a_check_stops(api: FakeApi, views: tuple[Any, ...]) -> None:
    api.on(VIEW, *map(ok, views))
    done = hostler("maintenance", "leave", "kvm-1")
    assert done.exit_code == 1
    assert done.stderr == "hostler: kvm-1 stays out of service: kvm-1 does not answer.\n"


def test_leave_in_the_middle_of_a_question(api: FakeApi) -> None:
    back = view(Phase.ROLLING_BACK, "Goes back: no migration stays half done")
    api.on(VIEW, ok(ASKING), ok(back), NOT_FOUND)
    api.on(OPERATION, ok(operation("COMPLETED")))
    api.on(HOST, ok(host(state=ResourceState.DISABLED)))
    done = hostler("maintenance", "leave", "kvm-1")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("kvm-1 is Disabled.\n")


def test_leave_that_is_terminated(api: FakeApi) -> None:
    api.on(VIEW, ok(LEAVING), NOT_FOUND)
    api.on(OPERATION, ok(operation("TERMINATED")))
    api.on(HOST, ok(host(state=ResourceState.MAINTENANCE)))
    done = hostler("maintenance", "leave", "kvm-1")
    assert done.exit_code == 1
    assert "it is still Maintenance" in done.stderr


def test_leave_of_a_host_in_service(api: FakeApi) -> None:
    api.on(LEAVE, problem(409, "Conflict", "kvm-1 is not in maintenance."))
    done = hostler("maintenance", "leave", "kvm-1")
    assert (done.exit_code, done.stderr) == (1, "hostler: kvm-1 is not in maintenance.\n")


@pytest.mark.parametrize("action", ["retry", "wait", "pause", "copy_storage", "shutdown", "keep"])
def test_resolve(api: FakeApi, action: str) -> None:
    route = "POST /v1/hosts/kvm-1/maintenance/vms/vm-2"
    api.on(route, Answer(204))
    assert hostler("maintenance", "resolve", "kvm-1", "vm-2", action).exit_code == 0
    assert api.bodies(route) == [{"action": action}]


def test_resolve_what_was_not_asked(api: FakeApi) -> None:
    detail = "vm-9 waits for no answer; VMs that do: vm-2."
    api.on("POST /v1/hosts/kvm-1/maintenance/vms/vm-9", problem(409, "Conflict", detail))
    done = hostler("maintenance", "resolve", "kvm-1", "vm-9", "retry")
    assert (done.exit_code, done.stderr) == (1, f"hostler: {detail}\n")


def test_resolve_with_what_is_no_answer(api: FakeApi) -> None:
    done = hostler("maintenance", "resolve", "kvm-1", "vm-2", "destroy")
    assert done.exit_code == 2
    assert "'retry', 'wait', 'pause', 'copy_storage', 'shutdown', 'keep'" in done.stderr
    assert api.requests == []


# --- list ---------------------------------------------------------------------------------------

RUNNING = "GET /v1/operations?kind=maintenance&status=RUNNING&limit=1000"


def test_list_has_hosts_that_wait_for_their_turn(api: FakeApi) -> None:
    api.on("GET /v1/hosts?limit=1000", items(host("kvm-1"), host("kvm-2"), host("kvm-3")))
    # The list of what runs lags behind: one has ended, one is none of the inventory's hosts.
    api.on(RUNNING, items(*(operation(subject=name) for name in ("kvm-1", "kvm-2", "kvm-9"))))
    message = "Waits for its turn: 1 of cluster-1 may be out at a time, and it is kvm-4"
    api.on(VIEW, ok(view(Phase.QUEUED, message)))
    api.on("GET /v1/hosts/kvm-2/maintenance", NOT_FOUND)
    (queued,) = json.loads(hostler("maintenance", "list", "--json").stdout)
    assert (queued["host"], queued["resource_state"]) == ("kvm-1", "Enabled")
    assert (queued["phase"], queued["message"]) == ("Queued", message)
    assert {one.path for one in api.requests} == {
        "/v1/hosts?limit=1000",
        "/v1/operations?kind=maintenance&status=RUNNING&limit=1000",
        "/v1/hosts/kvm-1/maintenance",
        "/v1/hosts/kvm-2/maintenance",
    }


def test_list_says_what_is_out_why_and_since_when(api: FakeApi) -> None:
    api.on(
        "GET /v1/hosts?limit=1000",
        items(
            host("kvm-1", ResourceState.MAINTENANCE),
            host("kvm-2"),
            host("kvm-3", ResourceState.ERROR_IN_MAINTENANCE),
        ),
    )
    api.on(RUNNING, items(operation()))
    api.on(VIEW, ok(READY))
    api.on("GET /v1/hosts/kvm-3/maintenance", NOT_FOUND)
    ready, orphan = json.loads(hostler("maintenance", "list", "--json").stdout)
    assert ready == {
        "host": "kvm-1",
        "cluster": "cluster-1",
        "resource_state": "Maintenance",
        "phase": "Ready",
        "since": "2026-11-24T09:30:00Z",
        "reason": "new RAM",
        "message": "Ready for maintenance",
        "workflow_id": "maintenance/kvm-1",
    }
    assert orphan["host"] == "kvm-3"
    assert orphan["since"] is None
    assert "`hostler maintenance leave kvm-3`" in orphan["message"]
    _, first, second = hostler("maintenance", "list").stdout.splitlines()
    assert first.split()[:4] == ["kvm-1", "cluster-1", "Maintenance", "Ready"]
    assert "new RAM" in first
    assert second.startswith("kvm-3")
