"""Schedules, through Temporal's client."""

from datetime import timedelta

from temporalio import activity
from temporalio.client import (
    Client,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from contracts.errors import Failed, Unavailable
from contracts.host_checks import AlignScheduleInput, TriggerScheduleInput

_REFUSALS = (RPCStatusCode.INVALID_ARGUMENT, RPCStatusCode.PERMISSION_DENIED)


class ScheduleActivities:
    """Changes what a schedule goes by."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @activity.defn(name="align_schedule")
    async def align_schedule(self, request: AlignScheduleInput) -> bool:
        """Let it start its workflow that often; whether it is paused stays as it is. True: it went
        by another interval before. One that somebody has deleted stays so."""
        wanted = [ScheduleIntervalSpec(every=timedelta(seconds=request.every_s))]
        changed = False

        def align(found: ScheduleUpdateInput) -> ScheduleUpdate | None:
            nonlocal changed
            schedule = found.description.schedule
            changed = schedule.spec.intervals != wanted
            if not changed:
                return None
            schedule.spec = ScheduleSpec(intervals=wanted)
            return ScheduleUpdate(schedule)

        try:
            await self._client.get_schedule_handle(request.schedule).update(align)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            message = f"Temporal did not change its schedule {request.schedule}: {error.message}."
            # Somebody else may be changing it at this moment.
            if error.status in _REFUSALS:
                raise Failed(message) from error
            raise Unavailable(message) from error
        return changed

    @activity.defn(name="trigger_schedule")
    async def trigger_schedule(self, request: TriggerScheduleInput) -> bool:
        """Have it start its workflow now. False: somebody has paused or deleted it. No effect while
        the workflow runs."""
        handle = self._client.get_schedule_handle(request.schedule)
        try:
            if (await handle.describe()).schedule.state.paused:
                return False
            await handle.trigger(overlap=ScheduleOverlapPolicy.SKIP)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            message = f"Temporal did not trigger its schedule {request.schedule}: {error.message}."
            if error.status in _REFUSALS:
                raise Failed(message) from error
            raise Unavailable(message) from error
        return True
