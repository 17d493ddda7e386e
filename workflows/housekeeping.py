"""Housekeeping: what a round of checks leaves behind, because single hosts may take long.

    tell hosts that are back whether they take new VMs, and beside it clean removed ones that are

HostCheck starts it at the end of a round, unless the last one still works: there is one at a time.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.allocation import AllocationActivities
    from activities.removal import RemovalActivities
    from contracts.allocation import HostsUntold, TellHostsInput, TellHostsResult
    from contracts.host_checks import HOUSEKEEPING, HousekeepingInput, HousekeepingResult
    from contracts.removal import RemovedHostsCleaned
    from workflows import policies
    from workflows.failures import as_application_error


@workflow.defn(name=HOUSEKEEPING)
class Housekeeping:
    """Both chores, each at its own pace."""

    @workflow.run
    async def run(self, request: HousekeepingInput) -> HousekeepingResult:
        """Returns when each host was tried. One that does not answer is tried again next time."""
        try:
            (told, not_told), cleaned = await asyncio.gather(_tell(request.batch), _clean())
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        return HousekeepingResult(
            told=told,
            not_told=not_told,
            cleaned=cleaned.cleaned,
            waiting=len(cleaned.waiting),
        )


async def _tell(batch: int) -> tuple[int, int]:
    """How many were told, and how many could not be."""
    untold: HostsUntold = await workflow.execute_activity_method(
        AllocationActivities.list_untold_hosts,
        summary="Hosts that do not know yet whether they take new VMs",
        **policies.RECORD,
    )
    told = not_told = 0
    for begin in range(0, len(untold.hosts), batch):
        result: TellHostsResult = await workflow.execute_activity_method(
            AllocationActivities.tell_hosts,
            TellHostsInput(hosts=untold.hosts[begin : begin + batch]),
            summary="Whether they take new VMs",
            **policies.SWEEP,
        )
        told += len(result.told)
        not_told += len(result.untold)
    return told, not_told


async def _clean() -> RemovedHostsCleaned:
    cleaned: RemovedHostsCleaned = await workflow.execute_activity_method(
        RemovalActivities.clean_removed,
        summary="Removed hosts that were not clean yet",
        **policies.SWEEP,
    )
    return cleaned
