"""What is known of a host's power after its BMC was asked: pure rules, without a clock.

A BMC that is silent is `Unknown`, never `Off`. One that does not answer is asked again after one
interval, then after twice as long, up to ten minutes; one that refuses the login, or is another one
than before, after an hour, up to a day: BMCs lock accounts. A new configuration ends the waiting.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from contracts.oobm import LOGIN_PROBLEMS, PowerProblem
from contracts.power import PowerState
from contracts.power_actions import PowerSighting

_LONGEST_SILENCE = timedelta(minutes=10)
_FIRST_REFUSAL = timedelta(hours=1)
_LONGEST_REFUSAL = timedelta(days=1)
_REFUSALS = LOGIN_PROBLEMS | {PowerProblem.ANOTHER_BMC}
# Beyond this the bounds above are reached, and numbers stay small.
_MOST_DOUBLINGS = 16


@dataclass(frozen=True)
class PowerStanding:
    """How a host's power stands: what the rules start from, and what they come to.

    Attributes:
        guid: the BMC's, from its first answer on.
        failures: in a row.
        retry_at: until then it is left alone.
    """

    state: PowerState
    problem: PowerProblem | None
    reason: str
    guid: str | None = None
    failures: int = 0
    retry_at: datetime | None = None


def judge_power(now: PowerStanding, seen: PowerSighting, interval: timedelta) -> PowerStanding:
    """How the power stands after a sighting."""
    seen = _of_the_same_bmc(now, seen)
    if seen.problem is None and seen.state in (PowerState.ON, PowerState.OFF):
        return PowerStanding(seen.state, None, "", guid=now.guid or seen.guid)
    problem = seen.problem or PowerProblem.FAILED
    failures = now.failures + 1 if now.problem is problem else 1
    return PowerStanding(
        PowerState.UNKNOWN,
        problem,
        seen.reason or "it does not say",
        guid=now.guid,
        failures=failures,
        retry_at=seen.began_at + left_alone(problem, failures, interval),
    )


def left_alone(problem: PowerProblem, failures: int, interval: timedelta) -> timedelta:
    """How long a BMC is not asked after so many failures in a row."""
    times: int = 2 ** min(failures - 1, _MOST_DOUBLINGS)
    if problem in _REFUSALS:
        return min(_FIRST_REFUSAL * times, _LONGEST_REFUSAL)
    # Half an interval less: a BMC is not asked at the very beginning of a round.
    return min(interval * times, max(_LONGEST_SILENCE, interval)) - interval / 2


def _of_the_same_bmc(now: PowerStanding, seen: PowerSighting) -> PowerSighting:
    """What another BMC says is not about this host."""
    if now.guid is None or seen.guid is None or now.guid == seen.guid:
        return seen
    return seen.model_copy(
        update={
            "state": PowerState.UNKNOWN,
            "problem": PowerProblem.ANOTHER_BMC,
            "reason": f"what answers at its address has the GUID {seen.guid}, "
            f"its BMC had {now.guid}",
        }
    )
