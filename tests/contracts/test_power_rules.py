"""What becomes of a power state by what a BMC shows."""

from datetime import timedelta

import pytest

from contracts.oobm import PowerProblem
from contracts.power import PowerState
from contracts.power_actions import PowerSighting
from contracts.power_rules import PowerStanding, judge_power, left_alone
from tests.samples import WHEN

INTERVAL = timedelta(seconds=30)
ON = PowerStanding(PowerState.ON, None, "", guid="guid-1")


def seen(state: PowerState, problem: PowerProblem | None = None, **more: str) -> PowerSighting:
    return PowerSighting(
        host="kvm-1", generation=1, began_at=WHEN, state=state, problem=problem, **more
    )


def test_silence_is_unknown_and_never_off() -> None:
    silent = seen(PowerState.UNKNOWN, PowerProblem.UNREACHABLE, reason="no answer")
    after = judge_power(ON, silent, INTERVAL)
    assert (after.state, after.problem, after.reason) == (
        PowerState.UNKNOWN,
        PowerProblem.UNREACHABLE,
        "no answer",
    )
    assert (after.failures, after.guid) == (1, "guid-1")
    assert after.retry_at == WHEN + INTERVAL / 2


def test_an_answer_ends_the_waiting() -> None:
    silent = seen(PowerState.UNKNOWN, PowerProblem.UNREACHABLE)
    once = judge_power(ON, silent, INTERVAL)
    assert judge_power(judge_power(once, silent, INTERVAL), seen(PowerState.ON), INTERVAL) == ON


def test_a_bmc_that_answers_with_neither_has_failed() -> None:
    after = judge_power(ON, seen(PowerState.UNKNOWN), INTERVAL)
    assert (after.state, after.problem) == (PowerState.UNKNOWN, PowerProblem.FAILED)


def test_what_another_bmc_says_is_not_believed() -> None:
    after = judge_power(ON, seen(PowerState.OFF, guid="guid-2"), INTERVAL)
    assert (after.state, after.problem, after.guid) == (
        PowerState.UNKNOWN,
        PowerProblem.ANOTHER_BMC,
        "guid-1",
    )
    assert "guid-2" in after.reason


def test_the_first_guid_is_kept() -> None:
    new = PowerStanding(PowerState.UNKNOWN, PowerProblem.NOT_ASKED, "")
    after = judge_power(new, seen(PowerState.ON, guid="guid-1"), INTERVAL)
    assert after == ON
    assert judge_power(after, seen(PowerState.ON), INTERVAL).guid == "guid-1"


def test_another_problem_counts_anew() -> None:
    silent = seen(PowerState.UNKNOWN, PowerProblem.UNREACHABLE)
    refused = seen(PowerState.UNKNOWN, PowerProblem.LOGIN_REFUSED)
    twice = judge_power(judge_power(ON, silent, INTERVAL), silent, INTERVAL)
    assert (twice.failures, judge_power(twice, refused, INTERVAL).failures) == (2, 1)


@pytest.mark.parametrize(
    ("problem", "failures", "expected"),
    [
        (PowerProblem.UNREACHABLE, 1, timedelta(seconds=15)),
        (PowerProblem.UNREACHABLE, 2, timedelta(seconds=45)),
        (PowerProblem.UNREACHABLE, 100, timedelta(minutes=10) - INTERVAL / 2),
        (PowerProblem.LOGIN_REFUSED, 1, timedelta(hours=1)),
        (PowerProblem.ANOTHER_BMC, 2, timedelta(hours=2)),
        (PowerProblem.PRIVILEGE_REFUSED, 100, timedelta(days=1)),
    ],
)
def test_how_long_it_is_left_alone(
    problem: PowerProblem, failures: int, expected: timedelta
) -> None:
    assert left_alone(problem, failures, INTERVAL) == expected
