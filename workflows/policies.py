"""Time-outs and retries, by kind of work. Every activity call takes one of these as `**POLICY`.

Typed errors that trying again can't help are non-retryable where they are raised, so a policy
says only how long a system may be away. Nothing here gives up on a host half-way through an
operation: a disconnect is a pause.
"""

import dataclasses
from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType

from contracts.settings import LONGEST_BMC_ANSWER_S


class ActivityPolicy(TypedDict, total=False):
    """The options of `workflow.execute_activity_method` that a policy may set."""

    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta
    heartbeat_timeout: timedelta
    retry_policy: RetryPolicy
    cancellation_type: ActivityCancellationType


# The longest a dead activity goes unnoticed; a takeover waits this long before it acts.
HEARTBEAT_TIMEOUT = timedelta(seconds=20)

# What only reads, or writes a row, may be begun again while a worker that is only slow still does
# it. Heartbeats leave the worker at most every 5 s.
_NOTICED_SOON = timedelta(seconds=15)

_PATIENT = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=15),
)

# About two minutes of somebody's absence, after which the workflow says so and goes on.
_BOUNDED = dataclasses.replace(_PATIENT, maximum_attempts=8)

# Not waited for when cancelled: a step that ends well in spite of its cancel would swallow it.
RECORD = ActivityPolicy(
    start_to_close_timeout=timedelta(seconds=30),
    heartbeat_timeout=_NOTICED_SOON,
    retry_policy=_PATIENT,
)
"""Reads and writes of the inventory, and questions to Temporal."""

DECISION = ActivityPolicy(RECORD)  # type: ignore[misc] # mypy takes no TypedDict for its own type
DECISION["cancellation_type"] = ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
"""A write after which nothing is taken back: a cancel waits for its end."""

FIRST_CONTACT = ActivityPolicy(
    start_to_close_timeout=timedelta(seconds=20),
    schedule_to_close_timeout=timedelta(seconds=30),
    retry_policy=_PATIENT,
)
"""Is anybody there at all? Somebody waits for the answer, and may have mistyped the address."""

FIRST_LOOK = ActivityPolicy(
    start_to_close_timeout=timedelta(seconds=90),
    schedule_to_close_timeout=timedelta(minutes=3),
    heartbeat_timeout=_NOTICED_SOON,
    retry_policy=_PATIENT,
)
"""Reads of hosts before anything has changed: an absent host refuses the operation soon."""

HOST_READ = ActivityPolicy(
    start_to_close_timeout=timedelta(seconds=90),
    heartbeat_timeout=_NOTICED_SOON,
    retry_policy=_PATIENT,
)
"""Reads of hosts while the operation is under way: they wait until the host is back."""

HOST_WAIT = ActivityPolicy(
    start_to_close_timeout=timedelta(hours=2),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    retry_policy=_PATIENT,
)
"""Waiting for something to happen on a host: only looks, and ends by itself after an hour."""

HOST_CHANGE = ActivityPolicy(
    start_to_close_timeout=timedelta(minutes=5),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    retry_policy=_PATIENT,
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""Short changes on a host: the fence, a restart of libvirtd, cleaning up after a migration."""

HOST_JOB = ActivityPolicy(
    start_to_close_timeout=timedelta(days=60),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    retry_policy=_PATIENT,
)
"""What goes on without us and has a bound of its own: a hook, a reboot, another operation. A next
attempt joins it."""

LIVE_MIGRATION = ActivityPolicy(
    start_to_close_timeout=timedelta(hours=24),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    retry_policy=_BOUNDED,
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""One VM's way to one destination, and a guest's shutdown: as long as the guest needs."""

# What a look takes beside the answer of the BMC: the host itself, the inventory, and a driver that
# does not keep its own deadline.
_LOOK_GRACE = timedelta(seconds=20)


def bmc_look(seconds: int) -> ActivityPolicy:
    """One look at a BMC, which has so many seconds to answer, for somebody who waits for it."""
    one = timedelta(seconds=seconds) + _LOOK_GRACE
    return ActivityPolicy(
        start_to_close_timeout=one,
        # One that is silent is asked once more, if that does not take long.
        schedule_to_close_timeout=one + timedelta(seconds=10),
        retry_policy=_PATIENT,
    )


BMC_LOOK = bmc_look(LONGEST_BMC_ANSWER_S)
"""The same where the setting is not known."""


def bmc_watch(seconds: int, answer_timeout: int) -> ActivityPolicy:
    """Look for so many seconds at a BMC, which has `answer_timeout` seconds to answer. The last two
    looks may begin at their very end."""
    last_looks = 2 * (timedelta(seconds=answer_timeout) + _LOOK_GRACE)
    policy = ActivityPolicy(**HOST_READ)
    policy["start_to_close_timeout"] = timedelta(seconds=seconds) + last_looks
    return policy


BMC_COMMAND = ActivityPolicy(
    start_to_close_timeout=timedelta(minutes=2),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    retry_policy=_BOUNDED,
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""A command to a BMC. A next attempt finds that it was sent, and does not send it again."""

BMC_ACCOUNT = ActivityPolicy(
    start_to_close_timeout=timedelta(minutes=10),
    schedule_to_close_timeout=timedelta(minutes=20),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    retry_policy=_BOUNDED,
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""A BMC's own password, proven several times. A next attempt finds out first which one it takes."""

SWEEP = ActivityPolicy(
    start_to_close_timeout=timedelta(hours=2),
    heartbeat_timeout=HEARTBEAT_TIMEOUT,
    retry_policy=_PATIENT,
)
"""Many hosts, each with a time-out of its own. A next attempt goes on where the last one ended."""

CERTIFICATE_CHANGE = ActivityPolicy(HOST_CHANGE)  # type: ignore[misc] # mypy takes no TypedDict for its own type
CERTIFICATE_CHANGE["retry_policy"] = _BOUNDED
"""Changes of a host's certificates: what does not succeed within minutes is put back."""

CA_CALL = ActivityPolicy(
    start_to_close_timeout=timedelta(minutes=1),
    heartbeat_timeout=_NOTICED_SOON,
    retry_policy=_PATIENT,
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""Questions to a certificate authority: of an external one, they wait until it is back."""

CA_ROUND = ActivityPolicy(CA_CALL)  # type: ignore[misc] # mypy takes no TypedDict for its own type
CA_ROUND["retry_policy"] = _BOUNDED
"""The same where the next round comes by itself."""

_LONGEST_ABSENCE = 240  # attempts: about an hour


def after_absences(policy: ActivityPolicy, number: int) -> ActivityPolicy:
    """The policy with twice the attempts for each absence that was reported before: the longer
    somebody is away, the less often a workflow says so in its history."""
    most = min(2**number * (_BOUNDED.maximum_attempts), _LONGEST_ABSENCE)
    changed = ActivityPolicy(**policy)
    changed["retry_policy"] = dataclasses.replace(_BOUNDED, maximum_attempts=most)
    return changed
