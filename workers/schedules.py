"""What Temporal starts by itself: schedules, which people see, pause and trigger there."""

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

from contracts.errors import Unavailable
from contracts.host_checks import HOST_CHECK, HOST_CHECK_SCHEDULE, HostCheckInput
from contracts.settings import HOST_CHECK_INTERVAL
from inventory import Inventory

# Rounds that were missed while Temporal was away are not made up for.
_CATCHUP = timedelta(seconds=10)


async def ensure_schedules(client: Client, inventory: Inventory, task_queue: str) -> None:
    """Create those that are missing. One that is there stays as it is: somebody may have paused
    it, and each round sets its interval. Raises Unavailable."""
    settings = await inventory.settings.resolve()
    every = timedelta(seconds=settings[HOST_CHECK_INTERVAL])
    action = ScheduleActionStartWorkflow(
        HOST_CHECK,
        HostCheckInput(),
        id=HOST_CHECK_SCHEDULE,
        task_queue=task_queue,
        static_summary="Looks at every host",
    )
    try:
        await client.create_schedule(
            HOST_CHECK_SCHEDULE,
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
            f"Temporal did not create the schedule {HOST_CHECK_SCHEDULE}: {error.message}."
        ) from error
