"""Housekeeping: what a round of checks leaves behind, because single hosts may take long.

    tell hosts that are back whether they take new VMs; beside it clean removed ones that are back,
    give hosts the password that their cluster has got meanwhile, and the newest revocation lists;
    have certificates renewed that were due while their host was away

HostCheck starts it at the end of a round, unless the last one still works: there is one at a time.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.allocation import AllocationActivities
    from activities.passwords import PasswordActivities
    from activities.removal import RemovalActivities
    from activities.renewal import RenewalActivities
    from activities.schedules import ScheduleActivities
    from contracts.allocation import HostsUntold, TellHostsInput, TellHostsResult
    from contracts.certificate_renewal import CERTIFICATE_RENEWAL_SCHEDULE, ReturnedHosts
    from contracts.host_checks import (
        HOUSEKEEPING,
        HousekeepingInput,
        HousekeepingResult,
        TriggerScheduleInput,
    )
    from contracts.leases import Owner
    from contracts.passwords import BringUpInput, BringUpResult, StaleHosts
    from contracts.removal import RemovedHostsCleaned
    from workflows import policies
    from workflows.crl_delivery import deliver_crls
    from workflows.failures import as_application_error


@workflow.defn(name=HOUSEKEEPING)
class Housekeeping:
    """All chores, each at its own pace."""

    @workflow.run
    async def run(self, request: HousekeepingInput) -> HousekeepingResult:
        """Returns when each host was tried. One that does not answer is tried again next time."""
        try:
            (told, not_told), cleaned, brought_up, crls, _ = await asyncio.gather(
                _tell(request.batch),
                _clean(),
                _bring_passwords_up(request.batch),
                _bring_crls(request.batch),
                _have_renewed(),
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        return HousekeepingResult(
            told=told,
            not_told=not_told,
            cleaned=cleaned.cleaned,
            waiting=len(cleaned.waiting),
            passwords=brought_up,
            crls=crls,
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


async def _bring_passwords_up(batch: int) -> int:
    """How many have the current password of their cluster now, that did not before."""
    if not workflow.patched("passwords"):
        return 0
    stale: StaleHosts = await workflow.execute_activity_method(
        PasswordActivities.list_stale_passwords,
        summary="Hosts that do not have the password of their cluster",
        **policies.RECORD,
    )
    info, done = workflow.info(), 0
    for begin in range(0, len(stale.hosts), batch):
        result: BringUpResult = await workflow.execute_activity_method(
            PasswordActivities.bring_passwords_up,
            BringUpInput(
                hosts=stale.hosts[begin : begin + batch],
                owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
            ),
            summary="The password of their cluster",
            **policies.SWEEP,
        )
        done += len(result.done)
    return done


async def _bring_crls(batch: int) -> int:
    """How many hosts have the newest revocation lists now, that did not before."""
    if not workflow.patched("revocation-lists"):
        return 0
    return len((await deliver_crls(batch)).delivered)


async def _have_renewed() -> None:
    """The schedule's round does it, which goes by what each cluster can bear."""
    if not workflow.patched("certificate-renewal"):
        return
    returned: ReturnedHosts = await workflow.execute_activity_method(
        RenewalActivities.list_returned_for_renewal,
        summary="Hosts that are back, and whose certificates are due",
        **policies.RECORD,
    )
    if returned.hosts:
        await workflow.execute_activity_method(
            ScheduleActivities.trigger_schedule,
            TriggerScheduleInput(schedule=CERTIFICATE_RENEWAL_SCHEDULE),
            summary="A round of renewals",
            **policies.RECORD,
        )
