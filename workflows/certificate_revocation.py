"""CertificateRevocation: certificates are taken back, and the revocation lists say so.

revoked at the CA and in the inventory -> a list of each CA concerned
"""

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.certificates import CertificateActivities
    from contracts.certificates import (
        CertificateRevocationInput,
        CertificateRevocationResult,
        CertificateStatus,
        PublishCrlInput,
        RevokeCertificatesInput,
        RevokedCertificates,
    )
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_NAME


@workflow.defn(name="CertificateRevocation")
class CertificateRevocation:
    """Of one certificate, or of all of a host."""

    def __init__(self) -> None:
        self._message = "Revokes"

    @workflow.run
    async def run(self, request: CertificateRevocationInput) -> CertificateRevocationResult:
        """Returns when the newest lists tell of it."""
        what = request.serial or f"all certificates of {request.host}"
        if request.host is not None:
            workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._say(f"Revokes {what}")
        try:
            revoked: RevokedCertificates = await workflow.execute_activity_method(
                CertificateActivities.revoke_certificates,
                RevokeCertificatesInput(**dict(request), operation=workflow.info().workflow_id),
                summary=f"{what}: {request.reason}",
                **policies.CA_CALL,
            )
            self._say(f"{len(revoked.serials)} revoked; makes the revocation lists")
            crls = {
                provider: await workflow.execute_activity_method(
                    CertificateActivities.publish_crl,
                    PublishCrlInput(provider=provider, operation=workflow.info().workflow_id),
                    summary=f"Revocation list of {provider}",
                    **policies.CA_CALL,
                )
                for provider in revoked.providers
            }
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        self._say(f"{len(revoked.serials)} revoked, and listed")
        return CertificateRevocationResult(serials=revoked.serials, crls=crls)

    def _say(self, message: str) -> None:
        self._message = message
        workflow.set_current_details(message)

    @workflow.query(name="status")
    def status(self) -> CertificateStatus:
        """Where it stands."""
        return CertificateStatus(message=self._message)
