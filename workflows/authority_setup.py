"""AuthoritySetup: the provider makes its certificate authority, or takes an operator's own.

set up -> the copy of the key that came in goes -> its first revocation list
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.certificates import CertificateActivities
    from contracts.certificates import (
        Authority,
        AuthoritySetupInput,
        CertificateStatus,
        CrlFacts,
        PublishCrlInput,
        SetUpAuthorityInput,
    )
    from workflows import policies
    from workflows.failures import as_application_error


@workflow.defn(name="AuthoritySetup")
class AuthoritySetup:
    """Does nothing to an authority that is there, unless another one is imported."""

    def __init__(self) -> None:
        self._message = "Sets up the certificate authority"

    @workflow.run
    async def run(self, request: AuthoritySetupInput) -> Authority:
        """Returns what issues from now on."""
        step = SetUpAuthorityInput(**dict(request), operation=workflow.info().workflow_id)
        workflow.set_current_details(self._message)
        try:
            try:
                authority: Authority = await workflow.execute_activity_method(
                    CertificateActivities.set_up_authority,
                    step,
                    summary="The certificate authority",
                    **policies.CA_CALL,
                )
            finally:
                # Whether it was taken or not, and also after a cancel.
                await asyncio.shield(self._discard(step))
            crl: CrlFacts = await workflow.execute_activity_method(
                CertificateActivities.publish_crl,
                PublishCrlInput(
                    provider=authority.provider,
                    generation=authority.generation,
                    operation=workflow.info().workflow_id,
                ),
                summary="Its revocation list",
                **policies.CA_CALL,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        self._message = f"{authority.subject} issues"
        workflow.set_current_details(self._message)
        return authority.model_copy(update={"crl": crl})

    async def _discard(self, step: SetUpAuthorityInput) -> None:
        if step.key_secret is not None:
            await workflow.execute_activity_method(
                CertificateActivities.discard_imported_key,
                step,
                summary="The key that came in with the request",
                **policies.RECORD,
            )

    @workflow.query(name="status")
    def status(self) -> CertificateStatus:
        """Where it stands."""
        return CertificateStatus(message=self._message)
