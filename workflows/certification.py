"""Certificates for a host that an addition or a re-installation has in hand: before VMs come to it.

The caller holds the host's lease `trust`, and gives it back.
"""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.securing import SecuringActivities
    from contracts.certificates import (
        CertificateProvisioningInput,
        CertificateRevocationInput,
        RevocationReason,
    )
    from contracts.leases import LeaseRef
    from contracts.operations import WORKFLOW_TYPES, OperationKind, workflow_id
    from contracts.states import TlsState
    from workflows import policies
    from workflows.takeover import conflict

_LOOK_AGAIN = timedelta(seconds=5)
_WAITS = timedelta(minutes=10)


async def certify(trust: LeaseRef, wanted: TlsState, reason: str) -> None:
    """Give it certificates, proven, and have it take and give VMs by TLS only where that is wanted.

    What goes wrong with its certificates is put back before this raises an ApplicationError or
    an ActivityError; a cancel is waited for likewise.
    """
    await _provide(trust, reason)
    if wanted is TlsState.SECURED:
        await workflow.execute_activity_method(
            SecuringActivities.secure_host,
            trust,
            summary=f"{trust.host}: by TLS only, and proven",
            **policies.CERTIFICATE_CHANGE,
        )


async def revoke_all(host: str, reason: RevocationReason, summary: str) -> None:
    """Those that it has so far, by an operation that goes on by itself: it may have to wait for an
    external CA."""
    info = workflow.info()
    await workflow.start_child_workflow(
        WORKFLOW_TYPES[OperationKind.REVOCATION],
        CertificateRevocationInput(
            host=host, reason=reason, requester=info.workflow_id, issued_before=workflow.now()
        ),
        id=f"{workflow_id(OperationKind.REVOCATION, host)}/{info.run_id}",
        parent_close_policy=ParentClosePolicy.ABANDON,
        static_summary=summary,
    )


async def _provide(trust: LeaseRef, reason: str) -> None:
    """By a child of the usual id. What another operation has begun, that held the lease before,
    finds that it has lost it, and ends."""
    kind = OperationKind.PROVISIONING
    usual = workflow_id(kind, trust.host)
    deadline = workflow.now() + _WAITS
    while True:
        try:
            await workflow.execute_child_workflow(
                WORKFLOW_TYPES[kind],
                CertificateProvisioningInput(
                    host=trust.host,
                    reason=reason,
                    requester=workflow.info().workflow_id,
                    held=trust,
                ),
                id=usual,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                # If this one is terminated, it puts back what it did.
                parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
                static_summary=f"Certificates of {trust.host}: {reason}",
            )
        except WorkflowAlreadyStartedError as error:
            if workflow.now() >= deadline:
                raise conflict(f"{usual} runs already, for longer than {_WAITS}.") from error
            await workflow.sleep(_LOOK_AGAIN, summary=f"{usual} runs already")
        except ChildWorkflowError as error:
            raise _explained(trust.host, error) from error
        else:
            return


def _explained(host: str, error: ChildWorkflowError) -> ApplicationError:
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return ApplicationError(
            f"{host} got no certificates: {cause.message}",
            *cause.details,
            type=cause.type,
            non_retryable=True,
        )
    said = cause.message if isinstance(cause, FailureError) else str(error)
    if is_cancelled_exception(error):
        said = "its provisioning was cancelled."
    return ApplicationError(
        f"{host} got no certificates: {said}", type="Failed", non_retryable=True
    )
