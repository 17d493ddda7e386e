"""HostCheck: look at every host, and say how it stands.

    check -> investigate the absent -> compare fences -> tidy up

A schedule starts a round (`host-check`); with a `host`, that one alone is looked at, out of turn.
The history grows with batches, not with hosts: names stay in the inventory. Hosts that missed their
last check are looked at beside the others, and what may take long at single hosts is left to
Housekeeping, which outlives the round: the next one is due soon.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.accepted_operations import AcceptedActivities
    from activities.host_checks import HostCheckActivities
    from activities.reconciliation import ReconciliationActivities
    from activities.schedules import ScheduleActivities
    from contracts.host_checks import (
        HOST_CHECK,
        HOST_CHECK_SCHEDULE,
        HOUSEKEEPING,
        HOUSEKEEPING_ID,
        AlignScheduleInput,
        HostCheckInput,
        HostCheckResult,
        HostSighting,
        HousekeepingInput,
        Lane,
        Round,
        RoundPlan,
        RoundStep,
        SweepInput,
        Swept,
    )
    from contracts.host_status import Seen
    from contracts.steps import HostRef
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_NAME

_NEXT = {
    RoundStep.INVESTIGATE: RoundStep.FENCES,
    RoundStep.FENCES: RoundStep.TIDY,
}


@workflow.defn(name=HOST_CHECK)
class HostCheck:
    """One round, or one look at one host."""

    def __init__(self) -> None:
        self._round: Round | None = None

    @workflow.run
    async def run(self, request: HostCheckInput) -> HostCheckResult:
        """Returns when every host was looked at."""
        if request.host is not None:
            return await self._look_at(request.host)
        self._round = request.continued or await self._begin()
        await self._check()
        await self._sweep(RoundStep.INVESTIGATE, HostCheckActivities.investigate_hosts)
        await self._sweep(RoundStep.FENCES, ReconciliationActivities.reconcile_fences)
        await self._tidy()
        return HostCheckResult(hosts=self._now.hosts, seen=self._now.seen)

    async def _look_at(self, host: str) -> HostCheckResult:
        workflow.upsert_search_attributes([HOST_NAME.value_set(host)])
        try:
            sighting: HostSighting = await workflow.execute_activity_method(
                HostCheckActivities.look_at_host,
                HostRef(host=host),
                summary=f"What {host} shows",
                **policies.FIRST_LOOK,
            )
        except ActivityError as error:
            raise as_application_error(error) from error
        workflow.set_current_details(
            f"### {host}: {sighting.seen}\n\n{sighting.problem}\n\nIt is {sighting.status}."
        )
        return HostCheckResult(hosts=1, seen={sighting.seen: 1}, sighting=sighting)

    async def _begin(self) -> Round:
        """With the settings of now; so are the schedule's next rounds."""
        plan: RoundPlan = await workflow.execute_activity_method(
            HostCheckActivities.plan_host_check, summary="Settings", **policies.RECORD
        )
        await workflow.execute_activity_method(
            ScheduleActivities.align_schedule,
            AlignScheduleInput(schedule=HOST_CHECK_SCHEDULE, every_s=plan.interval),
            summary=f"A round every {plan.interval} s",
            **policies.RECORD,
        )
        return Round(plan=plan)

    async def _check(self) -> None:
        """All lanes at the same time, from where the round stands."""
        if self._now.step is not RoundStep.CHECK:
            return
        await asyncio.gather(*(self._check_lane(lane) for lane in self._now.lanes))
        self._continue_as_new_if_suggested()
        self._go_on(step=RoundStep.INVESTIGATE)

    async def _check_lane(self, lane: Lane) -> None:
        """Its batches, to its end or until the run has become long."""
        while lane in self._now.lanes and not workflow.info().is_continue_as_new_suggested():
            self._show()
            after = self._now.lanes[lane]
            swept: Swept = await workflow.execute_activity_method(
                HostCheckActivities.check_hosts,
                SweepInput(plan=self._now.plan, after=after, lane=lane),
                summary=f"{lane}, after {after}" if after else lane.value,
                **policies.SWEEP,
            )
            # The other lane has gone on meanwhile.
            lanes = {other: at for other, at in self._now.lanes.items() if other is not lane}
            if swept.last is not None:
                lanes[lane] = swept.last
            self._go_on(
                lanes=lanes,
                hosts=self._now.hosts + swept.hosts,
                seen=dict(Counter(self._now.seen) + Counter(swept.seen)),
            )

    async def _sweep(
        self, step: RoundStep, activity: Callable[[Any, SweepInput], Awaitable[Swept]]
    ) -> None:
        """All batches of one step, from where the round stands."""
        while self._now.step is step:
            now = self._now
            self._show()
            swept: Swept = await workflow.execute_activity_method(
                activity,
                SweepInput(plan=now.plan, after=now.after),
                summary=f"{step}, after {now.after}" if now.after else step.value,
                **policies.SWEEP,
            )
            self._go_on(step=step if swept.last else _NEXT[step], after=swept.last or "")
            self._continue_as_new_if_suggested()

    async def _tidy(self) -> None:
        """What operations that have ended still hold, and what was asked for and never started; and
        begin the housekeeping, unless that of an earlier round is still at work."""
        await workflow.execute_activity_method(
            ReconciliationActivities.free_abandoned,
            summary="Room and turns of ended operations",
            **policies.SWEEP,
        )
        if workflow.patched("accepted-operations"):
            await workflow.execute_activity_method(
                AcceptedActivities.start_accepted,
                summary="Operations that were asked for and not started",
                **policies.RECORD,
            )
        try:
            await workflow.start_child_workflow(
                HOUSEKEEPING,
                HousekeepingInput(batch=self._now.plan.batch),
                id=HOUSEKEEPING_ID,
                parent_close_policy=ParentClosePolicy.ABANDON,
                static_summary="What hosts do not know, and removed ones still have",
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.info("the housekeeping of an earlier round is still at work")
        self._show()

    def _go_on(self, **changes: Any) -> None:
        self._round = self._now.model_copy(update=changes)

    def _continue_as_new_if_suggested(self) -> None:
        if workflow.info().is_continue_as_new_suggested():
            workflow.continue_as_new(HostCheckInput(continued=self._round))

    def _show(self) -> None:
        now = self._now
        table = "\n".join(f"| {seen} | {now.seen[seen]} |" for seen in Seen if seen in now.seen)
        workflow.set_current_details(
            f"### {now.hosts} hosts: {now.step}\n\n| seen | hosts |\n|---|---|\n{table}"
        )

    @property
    def _now(self) -> Round:
        if self._round is None:
            raise AssertionError("a step comes after the plan")
        return self._round
