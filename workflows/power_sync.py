"""PowerSync: ask all BMCs how the power of their hosts is.

    plan -> all shards, and those that were silent before, beside each other -> count

A schedule starts a round (`power-sync`). Only what was seen is written, and nothing is switched.
Names stay in the inventory: the history grows with shards, not with hosts.
"""

import asyncio

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.power_sync import PowerSyncActivities
    from activities.schedules import ScheduleActivities
    from contracts.host_checks import AlignScheduleInput
    from contracts.power_actions import (
        POWER_SYNC,
        POWER_SYNC_SCHEDULE,
        FinishPowerRoundInput,
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
        """Returns when every BMC that is to be asked was asked."""
        begun = await self._begin()
        swept: list[PowerSwept] = await asyncio.gather(
            self._try_silent(begun.plan),
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

    async def _try_silent(self, plan: PowerRoundPlan) -> PowerSwept:
        swept: PowerSwept = await workflow.execute_activity_method(
            PowerSyncActivities.try_silent_bmcs,
            plan,
            summary="Those that did not answer before",
            **policies.SWEEP,
        )
        return swept

    def _show(self, result: PowerSyncResult) -> None:
        table = "\n".join(
            f"| {count.state} | {count.problem or ''} | {count.hosts} |" for count in result.counts
        )
        workflow.set_current_details(
            f"### {result.asked} BMCs asked, {result.answered} answered in {result.seconds:.1f} s\n"
            f"\n| power | why not known | hosts |\n|---|---|---|\n{table}"
        )
