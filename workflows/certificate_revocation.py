"""CertificateRevocation: certificates are taken back, and the revocation lists say so.

for each CA that has issued some: revoked there, and in the inventory -> its list names them
-> the lists brought to all hosts that are there
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.certificates import CertificateActivities
    from contracts.certificates import (
        CertificateIssuers,
        CertificateRevocationInput,
        CertificateRevocationResult,
        CertificateStatus,
        CrlFacts,
        PublishCrlInput,
        RevokeCertificatesInput,
        RevokedCertificates,
    )
    from workflows import policies
    from workflows.crl_delivery import deliver_crls, named
    from workflows.failures import all_of, as_application_error
    from workflows.search_attributes import HOST_NAME


@workflow.defn(name="CertificateRevocation")
class CertificateRevocation:
    """Of one certificate, or of all of a host."""

    def __init__(self) -> None:
        self._message = "Revokes"
        self._serials: list[str] = []
        self._crls: dict[str, CrlFacts] = {}

    @workflow.run
    async def run(self, request: CertificateRevocationInput) -> CertificateRevocationResult:
        """Returns when the newest lists tell of it, and each host that is there has them."""
        what = request.serial or f"all certificates of {request.host}"
        if request.host is not None:
            workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._say(f"Revokes {what}")
        step = RevokeCertificatesInput(**dict(request), operation=workflow.info().workflow_id)
        try:
            issuers: CertificateIssuers = await workflow.execute_activity_method(
                CertificateActivities.find_issuers,
                step,
                summary=f"Who has issued {what}",
                **policies.RECORD,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        # One that is away or refuses keeps no other one's certificates valid.
        ended = await asyncio.gather(
            *(self._revoke(step, provider) for provider in issuers.providers),
            return_exceptions=True,
        )
        problems = [one for one in ended if isinstance(one, BaseException)]
        if any(is_cancelled_exception(one) for one in problems):
            raise all_of(problems)
        self._say(f"{len(self._serials)} revoked, and listed; brings the lists to the hosts")
        try:
            delivery = await deliver_crls()
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            problems.append(as_application_error(error))
        if problems:
            raise all_of(problems)
        self._say(
            f"{len(self._serials)} revoked, and listed; {len(delivery.delivered)} hosts have got "
            f"the lists, {len(delivery.missing)} not yet"
        )
        return CertificateRevocationResult(
            serials=tuple(self._serials),
            crls=self._crls,
            **named(delivery),
        )

    async def _revoke(self, step: RevokeCertificatesInput, provider: str) -> None:
        """What one provider has issued. Whatever ends it between its steps, a round of the schedule
        finds what is revoked and in no list."""
        try:
            revoked: RevokedCertificates = await workflow.execute_activity_method(
                CertificateActivities.revoke_certificates,
                step.model_copy(update={"provider": provider}),
                summary=f"By {provider}: {step.reason}",
                **policies.CA_CALL,
            )
            self._serials += revoked.serials
            self._say(f"{len(self._serials)} revoked; makes the revocation lists")
            for generation in revoked.generations:
                self._crls[f"{provider}/{generation}"] = await workflow.execute_activity_method(
                    CertificateActivities.publish_crl,
                    PublishCrlInput(
                        provider=provider, generation=generation, operation=step.operation
                    ),
                    summary=f"Revocation list of {provider} ({generation})",
                    **policies.CA_ROUND,
                )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error

    def _say(self, message: str) -> None:
        self._message = message
        workflow.set_current_details(message)

    @workflow.query(name="status")
    def status(self) -> CertificateStatus:
        """Where it stands."""
        return CertificateStatus(message=self._message)
