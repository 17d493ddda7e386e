"""BmcTest: look at one BMC for somebody who waits for it. Nothing is written down, but which of two
passwords counts that a change has left."""

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.bmc_accounts import BmcAccountActivities
    from contracts.power_actions import BMC_TEST, BmcTestInput, BmcTestResult
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_NAME


@workflow.defn(name=BMC_TEST)
class BmcTest:
    """One look."""

    @workflow.run
    async def run(self, request: BmcTestInput) -> BmcTestResult:
        """Returns what was seen; a password that was stored for it is deleted."""
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        try:
            result: BmcTestResult = await workflow.execute_activity_method(
                BmcAccountActivities.test_bmc,
                request,
                summary=f"Logs in to the BMC of {request.host}, and looks",
                **policies.BMC_LOOK,
            )
        except ActivityError as error:
            raise as_application_error(error) from error
        finally:
            if request.secret is not None:
                await workflow.execute_activity_method(
                    BmcAccountActivities.discard_bmc_secret,
                    request.secret,
                    summary="The password that was given for it goes",
                    **policies.RECORD,
                )
        return result
