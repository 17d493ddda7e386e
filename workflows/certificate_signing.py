"""CertificateSigning: an operator's signing request, for a host that is set up outside.

    names from the inventory -> the CA signs -> recorded

It touches no host, so it holds no lease.
"""

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.certificates import CertificateActivities
    from contracts.certificates import (
        CertificateSigningInput,
        CertificateSigningResult,
        CertificateStatus,
        IssueCertificateInput,
    )
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_NAME


@workflow.defn(name="CertificateSigning")
class CertificateSigning:
    """One request."""

    def __init__(self) -> None:
        self._message = "Asks the CA"

    @workflow.run
    async def run(self, request: CertificateSigningInput) -> CertificateSigningResult:
        """Returns the certificate with its chain; what it may not have fails it at once."""
        info, holder = workflow.info(), request.host or "Hostler itself"
        if request.host is not None:
            workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._message = f"Asks the CA for a certificate of {holder}"
        workflow.set_current_details(self._message)
        try:
            result: CertificateSigningResult = await workflow.execute_activity_method(
                CertificateActivities.issue_certificate,
                IssueCertificateInput(
                    **dict(request),
                    request=f"{info.workflow_id}/{info.first_execution_run_id}",
                    operation=info.workflow_id,
                ),
                summary=f"A certificate for {holder}",
                **policies.CA_CALL,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        self._message = f"Certificate {result.certificate.serial} of {holder} is issued"
        workflow.set_current_details(self._message)
        return result

    @workflow.query(name="status")
    def status(self) -> CertificateStatus:
        """Where it stands."""
        return CertificateStatus(message=self._message)
