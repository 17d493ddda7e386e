"""What Temporal starts by itself: schedules, which people see, pause and trigger there."""

from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
)
from temporalio.service import RPCError

from contracts.base import Contract
from contracts.errors import Unavailable
from contracts.host_checks import HOST_CHECK, HOST_CHECK_SCHEDULE, HostCheckInput
from contracts.power_actions import POWER_SYNC, POWER_SYNC_SCHEDULE, PowerSyncInput
from contracts.settings import HOST_CHECK_INTERVAL, OOBM_SYNC_INTERVAL, Setting
from inventory import Inventory

# Rounds that were missed while Temporal was away are not made up for.
_CATCHUP = timedelta(seconds=10)


@dataclass(frozen=True)
class _Periodic:
    """A workflow that a schedule starts; the setting says how often, in seconds."""

    schedule: str
    workflow: str
    request: Contract
    interval: Setting[int]
    summary: str


_PERIODIC = (
    _Periodic(
        HOST_CHECK_SCHEDULE,
        HOST_CHECK,
        HostCheckInput(),
        HOST_CHECK_INTERVAL,
        "Looks at every host",
    ),
    _Periodic(
        POWER_SYNC_SCHEDULE,
        POWER_SYNC,
        PowerSyncInput(),
        OOBM_SYNC_INTERVAL,
        "Asks every BMC how the power is",
    ),
)


async def ensure_schedules(client: Client, inventory: Inventory, task_queue: str) -> None:
    """Create those that are missing. One that is there stays as it is: somebody may have paused
    it, and each round sets its interval. Raises Unavailable."""
    settings = await inventory.settings.resolve()
    for periodic in _PERIODIC:
        every = timedelta(seconds=settings[periodic.interval])
        await _ensure(client, periodic, every, task_queue)


async def _ensure(client: Client, periodic: _Periodic, every: timedelta, task_queue: str) -> None:
    action = ScheduleActionStartWorkflow(
        periodic.workflow,
        periodic.request,
        id=periodic.schedule,
        task_queue=task_queue,
        static_summary=periodic.summary,
    )
    try:
        await client.create_schedule(
            periodic.schedule,
            Schedule(
                action=action,
                spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
                policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCHUP),
            ),
        )
    except ScheduleAlreadyRunningError:
        return
    except RPCError as error:
        raise Unavailable(
            f"Temporal did not create the schedule {periodic.schedule}: {error.message}."
        ) from error
