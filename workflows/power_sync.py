"""PowerSync: ask all BMCs how the power of their hosts is.

    plan -> all shards beside each other -> count

A schedule starts a round (`power-sync`). Only what was seen is written, and nothing is switched.
Names stay in the inventory: the history grows with shards, not with hosts. BMCs that did not answer
before are left to PowerProbe, which outlives the round: a round takes as long as those that answer.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.power_sync import PowerSyncActivities
    from activities.schedules import ScheduleActivities
    from contracts.host_checks import AlignScheduleInput
    from contracts.power_actions import (
        POWER_PROBE,
        POWER_PROBE_ID,
        POWER_SYNC,
        POWER_SYNC_SCHEDULE,
        FinishPowerRoundInput,
        PowerProbeInput,
        PowerRoundBegun,
        PowerRoundPlan,
        PowerSwept,
        PowerSyncInput,
        PowerSyncResult,
        SweepPowerInput,
    )
    from workflows import policies


@workflow.defn(name=POWER_SYNC)
class PowerSync:
    """One round."""

    @workflow.run
    async def run(self, _request: PowerSyncInput) -> PowerSyncResult:
        """Returns when every BMC was asked that answered before."""
        begun = await self._begin()
        if begun.silent_due:
            await self._try_silent(begun.plan)
        swept: list[PowerSwept] = await asyncio.gather(
            *(self._sweep(SweepPowerInput(plan=begun.plan, shard=one)) for one in begun.shards),
        )
        result: PowerSyncResult = await workflow.execute_activity_method(
            PowerSyncActivities.finish_power_sync,
            FinishPowerRoundInput(
                plan=begun.plan,
                asked=sum(one.asked for one in swept),
                answered=sum(one.answered for one in swept),
                changed=sum(one.changed for one in swept),
            ),
            summary="What the round has come to",
            **policies.RECORD,
        )
        self._show(result)
        return result

    async def _begin(self) -> PowerRoundBegun:
        """With the settings of now; so are the schedule's next rounds."""
        begun: PowerRoundBegun = await workflow.execute_activity_method(
            PowerSyncActivities.plan_power_sync, summary="Settings and shards", **policies.RECORD
        )
        await workflow.execute_activity_method(
            ScheduleActivities.align_schedule,
            AlignScheduleInput(schedule=POWER_SYNC_SCHEDULE, every_s=begun.plan.interval),
            summary=f"A round every {begun.plan.interval} s",
            **policies.RECORD,
        )
        return begun

    async def _sweep(self, request: SweepPowerInput) -> PowerSwept:
        swept: PowerSwept = await workflow.execute_activity_method(
            PowerSyncActivities.sweep_power,
            request,
            summary=f"Up to {request.shard.last}",
            **policies.SWEEP,
        )
        return swept

    async def _try_silent(self, plan: PowerRoundPlan) -> None:
        try:
            await workflow.start_child_workflow(
                POWER_PROBE,
                PowerProbeInput(plan=plan),
                id=POWER_PROBE_ID,
                parent_close_policy=ParentClosePolicy.ABANDON,
                static_summary="Asks the BMCs that did not answer before",
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.info("that of an earlier round still waits for silent BMCs")

    def _show(self, result: PowerSyncResult) -> None:
        table = "\n".join(
            f"| {count.state} | {count.problem or ''} | {count.hosts} |" for count in result.counts
        )
        workflow.set_current_details(
            f"### {result.asked} BMCs asked, {result.answered} answered in {result.seconds:.1f} s\n"
            f"\n| power | why not known | hosts |\n|---|---|---|\n{table}"
        )
