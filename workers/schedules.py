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

from contracts.certificates import (
    AUTHORITY_UPKEEP,
    AUTHORITY_UPKEEP_SCHEDULE,
    AuthorityUpkeepInput,
)
from contracts.errors import Unavailable
from contracts.host_checks import HOST_CHECK, HOST_CHECK_SCHEDULE, HostCheckInput
from contracts.settings import CA_TASK_DELAY, HOST_CHECK_INTERVAL
from inventory import Inventory

# Rounds that were missed while Temporal was away are not made up for.
_CATCHUP = timedelta(seconds=10)


async def ensure_schedules(client: Client, inventory: Inventory, task_queue: str) -> None:
    """Create those that are missing. One that is there gets what this version starts, and how; its
    interval, which each round sets, and its state stay: somebody may have paused it. Raises
    Unavailable."""
    settings = await inventory.settings.resolve()
    for name, workflow, argument, every_s, summary in (
        (
            *(HOST_CHECK_SCHEDULE, HOST_CHECK, HostCheckInput()),
            *(settings[HOST_CHECK_INTERVAL], "Looks at every host"),
        ),
        (
            *(AUTHORITY_UPKEEP_SCHEDULE, AUTHORITY_UPKEEP, AuthorityUpkeepInput()),
            *(settings[CA_TASK_DELAY], "Looks after the certificate authorities"),
        ),
    ):
        action = ScheduleActionStartWorkflow(
            workflow, argument, id=name, task_queue=task_queue, static_summary=summary
        )
        await _ensure(client, name, action, timedelta(seconds=every_s))


async def _ensure(
    client: Client, name: str, action: ScheduleActionStartWorkflow, every: timedelta
) -> None:
    wanted = Schedule(
        action=action,
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
            await client.create_schedule(name, wanted)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(name).update(bring_up_to_date)
    except RPCError as error:
        raise Unavailable(
            f"Temporal did not create or update the schedule {name}: {error.message}."
        ) from error
