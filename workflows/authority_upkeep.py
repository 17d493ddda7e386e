"""AuthorityUpkeep: a schedule's round over certificate authorities.

its interval from the settings -> revocation lists that are over half of their time -> hosts that do
not have the newest ones get them
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
        PlanUpkeepInput,
        UpkeepPlan,
    )
    from contracts.host_checks import AlignScheduleInput
    from workflows import policies
    from workflows.crl_delivery import deliver_crls, named
    from workflows.failures import all_of, as_application_error


@workflow.defn(name=AUTHORITY_UPKEEP)
class AuthorityUpkeep:
    """One round. A CA that does not answer fails it in the end; the next round asks again."""

    @workflow.run
    async def run(self, _request: AuthorityUpkeepInput) -> AuthorityUpkeepResult:
        """Returns when each list that was due is a new one, and was brought to the hosts."""
        crls: dict[str, CrlFacts] = {}
        problems: list[BaseException] = []
        try:
            plan: UpkeepPlan = await workflow.execute_activity_method(
                CertificateActivities.plan_upkeep,
                PlanUpkeepInput(operation=workflow.info().workflow_id),
                summary="Whose revocation list is due",
                **policies.CA_ROUND,
            )
            await workflow.execute_activity_method(
                ScheduleActivities.align_schedule,
                AlignScheduleInput(schedule=AUTHORITY_UPKEEP_SCHEDULE, every_s=plan.every_s),
                summary="The interval of these rounds",
                **policies.RECORD,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        for one in plan.due:
            try:
                crls[f"{one.provider}/{one.generation}"] = await workflow.execute_activity_method(
                    CertificateActivities.publish_crl,
                    one,
                    summary=f"Revocation list of {one.provider} ({one.generation})",
                    **policies.CA_ROUND,
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                problems.append(as_application_error(error))
        try:
            delivery = await deliver_crls()
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            problems.append(as_application_error(error))
        if problems:
            raise all_of(problems)
        return AuthorityUpkeepResult(crls=crls, **named(delivery))
