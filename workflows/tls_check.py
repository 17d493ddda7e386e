"""TlsCheck: look at the TLS of one host for somebody who waits for it. Nothing is written down."""

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.tls_check import TlsCheckActivities
    from contracts.tls_check import TLS_CHECK, TlsCheckInput, TlsReport
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_NAME


@workflow.defn(name=TLS_CHECK)
class TlsCheck:
    """One look."""

    @workflow.run
    async def run(self, request: TlsCheckInput) -> TlsReport:
        """Returns what is wrong, in words; that something is does not fail it."""
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        try:
            report: TlsReport = await workflow.execute_activity_method(
                TlsCheckActivities.check_tls,
                request,
                summary=f"What {request.host} has, and what it shows",
                **policies.FIRST_LOOK,
            )
        except ActivityError as error:
            raise as_application_error(error) from error
        workflow.set_current_details(
            f"### TLS of {request.host}\n\n"
            + ("\n".join(f"- {finding}" for finding in report.findings) or "It works.")
        )
        return report
