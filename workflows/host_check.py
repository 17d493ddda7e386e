"""HostCheck: look at every host, and say how it stands.

    check -> investigate the absent -> compare fences -> tidy up

A schedule starts a round (`host-check`); with a `host`, that one alone is looked at, out of turn.
The history grows with batches, not with hosts: names stay in the inventory.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.allocation import AllocationActivities
    from activities.host_checks import HostCheckActivities
    from activities.reconciliation import ReconciliationActivities
    from activities.removal import RemovalActivities
    from activities.schedules import ScheduleActivities
    from contracts.allocation import HostsUntold, TellHostsInput
    from contracts.host_checks import (
        HOST_CHECK,
        HOST_CHECK_SCHEDULE,
        AlignScheduleInput,
        HostCheckInput,
        HostCheckResult,
        HostSighting,
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
    RoundStep.CHECK: RoundStep.INVESTIGATE,
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
        await self._sweep(RoundStep.CHECK, HostCheckActivities.check_hosts)
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
            done = swept.last is None
            self._round = Round(
                plan=now.plan,
                step=_NEXT[step] if done else step,
                after=swept.last or "",
                hosts=now.hosts + (swept.hosts if step is RoundStep.CHECK else 0),
                seen=dict(Counter(now.seen) + Counter(swept.seen)),
            )
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(HostCheckInput(continued=self._round))

    async def _tidy(self) -> None:
        """What operations that have ended still hold, what hosts that are back do not know, and
        what removed ones that are back still have."""
        await workflow.execute_activity_method(
            ReconciliationActivities.free_abandoned,
            summary="Room and turns of ended operations",
            **policies.SWEEP,
        )
        untold: HostsUntold = await workflow.execute_activity_method(
            AllocationActivities.list_untold_hosts,
            summary="Hosts that do not know yet whether they take new VMs",
            **policies.RECORD,
        )
        batch = self._now.plan.batch
        for begin in range(0, len(untold.hosts), batch):
            await workflow.execute_activity_method(
                AllocationActivities.tell_hosts,
                TellHostsInput(hosts=untold.hosts[begin : begin + batch]),
                summary="Whether they take new VMs",
                **policies.SWEEP,
            )
        await workflow.execute_activity_method(
            RemovalActivities.clean_removed,
            summary="Removed hosts that were not clean yet",
            **policies.SWEEP,
        )
        self._show()

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
