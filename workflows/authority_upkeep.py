"""AuthorityUpkeep: a schedule's round over certificate authorities.

its interval from the settings -> revocation lists that are over half of their time
"""

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.certificates import CertificateActivities
    from activities.schedules import ScheduleActivities
    from contracts.certificates import (
        AUTHORITY_UPKEEP,
        AUTHORITY_UPKEEP_SCHEDULE,
        AuthorityUpkeepInput,
        AuthorityUpkeepResult,
        CrlFacts,
        PublishCrlInput,
        UpkeepPlan,
    )
    from contracts.host_checks import AlignScheduleInput
    from workflows import policies
    from workflows.failures import as_application_error


@workflow.defn(name=AUTHORITY_UPKEEP)
class AuthorityUpkeep:
    """One round. An external CA that does not answer fails it; the next round asks again."""

    @workflow.run
    async def run(self, _request: AuthorityUpkeepInput) -> AuthorityUpkeepResult:
        """Returns when each list that was due is a new one."""
        crls: dict[str, CrlFacts] = {}
        try:
            plan: UpkeepPlan = await workflow.execute_activity_method(
                CertificateActivities.plan_upkeep,
                summary="Whose revocation list is due",
                **policies.RECORD,
            )
            await workflow.execute_activity_method(
                ScheduleActivities.align_schedule,
                AlignScheduleInput(schedule=AUTHORITY_UPKEEP_SCHEDULE, every_s=plan.every_s),
                summary="The interval of these rounds",
                **policies.RECORD,
            )
            for provider in plan.due:
                crls[provider] = await workflow.execute_activity_method(
                    CertificateActivities.publish_crl,
                    PublishCrlInput(provider=provider, operation=workflow.info().workflow_id),
                    summary=f"Revocation list of {provider}",
                    **policies.CA_ROUND,
                )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        return AuthorityUpkeepResult(crls=crls)
