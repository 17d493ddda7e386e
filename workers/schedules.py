"""What Temporal starts by itself: schedules, which people see, pause and trigger there."""

import dataclasses
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
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError

from contracts.errors import Unavailable
from contracts.host_checks import HOST_CHECK, HOST_CHECK_SCHEDULE, HostCheckInput
from contracts.settings import HOST_CHECK_INTERVAL
from inventory import Inventory

# Rounds that were missed while Temporal was away are not made up for.
_CATCHUP = timedelta(seconds=10)


async def ensure_schedules(client: Client, inventory: Inventory, task_queue: str) -> None:
    """Create those that are missing. One that is there gets what this version starts, and how; its
    interval, which each round sets, and its state stay: somebody may have paused it. Raises
    Unavailable."""
    settings = await inventory.settings.resolve()
    every = timedelta(seconds=settings[HOST_CHECK_INTERVAL])
    wanted = Schedule(
        action=ScheduleActionStartWorkflow(
            HOST_CHECK,
            HostCheckInput(),
            id=HOST_CHECK_SCHEDULE,
            task_queue=task_queue,
            static_summary="Looks at every host",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_CATCHUP),
    )

    def bring_up_to_date(found: ScheduleUpdateInput) -> ScheduleUpdate:
        there = found.description.schedule
        return ScheduleUpdate(
            dataclasses.replace(there, action=wanted.action, policy=wanted.policy)
        )

    try:
        try:
            await client.create_schedule(HOST_CHECK_SCHEDULE, wanted)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(HOST_CHECK_SCHEDULE).update(bring_up_to_date)
    except RPCError as error:
        raise Unavailable(
            f"Temporal did not create or update the schedule {HOST_CHECK_SCHEDULE}: "
            f"{error.message}."
        ) from error
