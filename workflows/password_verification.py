"""PasswordVerification: look whether every host has the password of its cluster.

A schedule starts it for all clusters, and people for one. Nothing is changed: hosts that are stale
are brought up to date by Housekeeping, and a password that somebody else has set is an event.
"""

from collections import Counter
from collections.abc import Iterator

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.password_checks import PasswordCheckActivities
    from activities.schedules import ScheduleActivities
    from contracts.host_checks import AlignScheduleInput
    from contracts.passwords import (
        PASSWORD_VERIFICATION,
        PASSWORD_VERIFICATION_SCHEDULE,
        HostPasswordReport,
        HostsToVerify,
        PasswordState,
        PasswordVerificationInput,
        PasswordVerificationResult,
        VerifyHostsInput,
        VerifyHostsResult,
    )
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_CLUSTER

_BATCH = 200
_MOST_LISTED = 500


@workflow.defn(name=PASSWORD_VERIFICATION)
class PasswordVerification:
    """One look at each host."""

    @workflow.run
    async def run(self, request: PasswordVerificationInput) -> PasswordVerificationResult:
        """Returns when each was looked at; that some differ does not fail it."""
        if request.cluster is not None:
            workflow.upsert_search_attributes([HOST_CLUSTER.value_set(request.cluster)])
        try:
            return await _verify(request)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error


async def _verify(request: PasswordVerificationInput) -> PasswordVerificationResult:
    listed: HostsToVerify = await workflow.execute_activity_method(
        PasswordCheckActivities.list_hosts_to_verify,
        request,
        summary="Hosts of clusters that have a password",
        **policies.RECORD,
    )
    counts: Counter[PasswordState] = Counter()
    differing: list[HostPasswordReport] = []
    for account, hosts in _batches(listed):
        seen: VerifyHostsResult = await workflow.execute_activity_method(
            PasswordCheckActivities.verify_passwords,
            VerifyHostsInput(hosts=hosts, account=account),
            summary=f"{account} on {hosts[0]} and on",
            **policies.SWEEP,
        )
        counts.update(one.state for one in seen.hosts)
        differing += [one for one in seen.hosts if one.state is not PasswordState.AGREES]
    if request.cluster is None:
        await workflow.execute_activity_method(
            ScheduleActivities.align_schedule,
            AlignScheduleInput(schedule=PASSWORD_VERIFICATION_SCHEDULE, every_s=listed.every_s),
            summary="When the next look is due",
            **policies.RECORD,
        )
    workflow.set_current_details(
        f"### Passwords of {sum(counts.values())} hosts\n\n"
        + ", ".join(f"{state}: {number}" for state, number in sorted(counts.items()))
    )
    return PasswordVerificationResult(
        counts=dict(sorted(counts.items())),
        hosts=tuple(differing[:_MOST_LISTED]),
        accounts=listed.accounts,
    )


def _batches(listed: HostsToVerify) -> Iterator[tuple[str, tuple[str, ...]]]:
    for one in listed.found:
        for begin in range(0, len(one.hosts), _BATCH):
            yield one.account, one.hosts[begin : begin + _BATCH]
