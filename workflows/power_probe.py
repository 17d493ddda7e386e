"""PowerProbe: ask the BMCs that did not answer before, and whose time has come.

PowerSync starts it, unless the last one still works: there is one at a time. Each of these BMCs may
take its whole time-out, which is no part of a round over those that answer.
"""

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.power_sync import PowerSyncActivities
    from contracts.power_actions import POWER_PROBE, PowerProbeInput, PowerSwept
    from workflows import policies
    from workflows.failures import as_application_error


@workflow.defn(name=POWER_PROBE)
class PowerProbe:
    """One look at each."""

    @workflow.run
    async def run(self, request: PowerProbeInput) -> PowerSwept:
        """Returns when each was asked. One that is silent still is left alone for longer."""
        try:
            swept: PowerSwept = await workflow.execute_activity_method(
                PowerSyncActivities.try_silent_bmcs,
                request.plan,
                summary="Those that did not answer before",
                **policies.SWEEP,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        workflow.set_current_details(f"### {swept.asked} asked, {swept.answered} answered again")
        return swept
