"""How a VM stands, in words."""

from datetime import timedelta

import pytest

from cli.progress import answers, in_words, other_commands
from contracts.maintenance import MigrationMode, VmAction, VmStatus
from contracts.states import Phase
from contracts.vms import MigrationState
from tests.cli.answers import migration, view, vm
from tests.samples import WHEN

MOVING = vm("vm-1", MigrationState.MIGRATING, destination="kvm-2", attempt=1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-30, "about to end"),
        (0.9, "about to end"),
        (12.2, "ends in about 12 s"),
        (99, "ends in about 99 s"),
        (100, "ends in about 2 min"),
        (5999, "ends in about 100 min"),
        (7200, "ends in about 2 h"),
    ],
)
def test_the_expected_end(seconds: float, said: str) -> None:
    seen = migration("vm-1", 40).model_copy(
        update={"expected_end_at": WHEN + timedelta(seconds=seconds)}
    )
    assert in_words(MOVING, seen, WHEN) == f"migrating to kvm-2, 40 %, 12.3 MiB/s, {said}"
    assert in_words(MOVING, seen, WHEN, percent=False) == (
        f"migrating to kvm-2, 12.3 MiB/s, {said}"
    )


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        # Nothing was seen of it yet, so nothing is said about its end.
        ({"percent": 0, "rate_mib_s": 0}, "0 %, 0.0 MiB/s"),
        ({"rate_mib_s": 0, "iteration": 1}, "40 %, 0.0 MiB/s"),
        ({"rate_mib_s": 0, "iteration": 2}, "40 %, 0.0 MiB/s, no end in sight"),
        (
            {"dirty_rate_mib_s": 99.96, "iteration": 3},
            "40 %, 12.3 MiB/s, dirty rate 100.0 MiB/s, no end in sight",
        ),
    ],
)
def test_no_end_in_sight(figures: dict[str, object], said: str) -> None:
    seen = migration("vm-1", 40).model_copy(update=figures)
    assert in_words(MOVING, seen, WHEN) == f"migrating to kvm-2, {said}"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (MigrationMode.AUTO_CONVERGE, "with auto-converge, guest throttled by 20 %"),
        (MigrationMode.UNBOUNDED, "without a time limit, guest throttled by 20 %"),
        (MigrationMode.PAUSED, "pausing the guest to finish, guest throttled by 20 %"),
    ],
)
def test_a_mode_that_is_not_the_usual_one(mode: MigrationMode, said: str) -> None:
    moving = MOVING.model_copy(update={"mode": mode})
    seen = migration("vm-1", 40).model_copy(
        update={"throttle_percent": 20, "expected_end_at": WHEN + timedelta(seconds=5)}
    )
    assert in_words(moving, seen, WHEN).endswith(f"ends in about 5 s, {said}")
    moved = moving.model_copy(update={"state": MigrationState.MOVED, "seconds": 4.21})
    assert in_words(moved, None, WHEN) == "moved to kvm-2 in 4.2 s"


@pytest.mark.parametrize(
    ("stands", "said"),
    [
        (vm("vm-1", MigrationState.KEPT, error="an old story"), "kept"),
        (vm("vm-1", MigrationState.SHUT_OFF), "shut off"),
        (
            vm("vm-1", MigrationState.SHUT_OFF, start_again=True),
            "shut off, starts again when the host is back",
        ),
        (vm("vm-1", MigrationState.STAYED, error="kvm-1:\nno room"), "stayed (kvm-1: no room)"),
        (vm("vm-1", MigrationState.WAITING, destination="kvm-2"), "waiting to kvm-2"),
    ],
)
def test_states(stands: VmStatus, said: str) -> None:
    assert in_words(stands, None, WHEN) == said


def test_each_answer_is_a_command_of_its_own() -> None:
    """`hostler ... retry|shutdown`, pasted by root, would switch off root's own machine."""
    asked = vm("a vm", MigrationState.FAILED, actions=(VmAction.RETRY, VmAction.SHUTDOWN))
    own = [
        "hostler maintenance resolve kvm-1 'a vm' retry",
        "hostler maintenance resolve kvm-1 'a vm' shutdown",
    ]
    assert answers("kvm-1", asked) == own
    others = (
        "hostler maintenance resolve kvm-1 vm-2 retry",
        "hostler maintenance leave kvm-1",
    )
    shown = view(Phase.QUESTION, "", asked, commands=(*own, *others))
    assert other_commands(shown) == [*others]
