"""How other operations switch the power of a host: by a PowerAction, and in no other way."""

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.power import PowerActivities
    from contracts.power import PowerState
    from contracts.power_actions import (
        Action,
        PowerActionInput,
        PowerActionResult,
        PowerUse,
        PowerWord,
        RequirePowerInput,
    )
    from contracts.steps import HostRef
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.power_action import PowerAction
    from workflows.takeover import conflict

# What a BMC answers that has no such command: it has certainly not done it.
_REJECTED = "BmcCommandRejected"
_LEASE_LOST, _CONFLICT = "LeaseLost", "Conflict"


async def require_power(host: str, option: str, *, network_boot: bool = False) -> PowerUse:
    """Before anything is changed. Raises ApplicationError, which says why the host's power can't be
    switched, and that nothing was changed. `option`: the field that asks for it."""
    try:
        use: PowerUse = await workflow.execute_activity_method(
            PowerActivities.require_power,
            RequirePowerInput(host=host, option=option, network_boot=network_boot),
            summary=f"Can the power of {host} be switched?",
            **policies.FIRST_CONTACT,
        )
    except ActivityError as error:
        refusal = as_application_error(error)
        text = refusal.message if option in refusal.message else f"{option}: {refusal.message}"
        raise ApplicationError(
            f"{text} Nothing was changed.", *refusal.details, type=refusal.type, non_retryable=True
        ) from error
    return use


async def switch(request: PowerActionInput) -> PowerActionResult:
    """By a PowerAction that comes to its end whatever becomes of this workflow. Raises the
    ApplicationError that it ends with."""
    host = request.host
    try:
        return await workflow.execute_child_workflow(
            PowerAction.run,
            request,
            # Not the usual one: of two actions the second waits for the lease.
            id=f"{workflow.info().workflow_id}/power/{host}",
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            static_summary=f"Power of {host}: {request.action!s}",
        )
    except WorkflowAlreadyStartedError as error:
        raise conflict(
            f"{error.workflow_id}, which an operation before this one has started, still runs."
        ) from error
    except ChildWorkflowError as error:
        if is_cancelled_exception(error):
            raise
        raise _as_own(error, host) from error


def _as_own(error: ChildWorkflowError, host: str) -> ApplicationError:
    cause = error.cause
    if isinstance(cause, ActivityError):
        cause = as_application_error(cause)
    if not isinstance(cause, ApplicationError):
        text = f"The power of {host} was not switched: {cause or error}"
        return ApplicationError(text, type="Failed", non_retryable=True)
    # The lease that is lost then is that of the BMC, not the caller's.
    kind = _CONFLICT if cause.type == _LEASE_LOST else cause.type
    return ApplicationError(cause.message, *cause.details, type=kind, non_retryable=True)


async def boot(host: str, reason: str, *, network_boot: bool = False) -> None:
    """Have the host boot whether it is on or off, once. Raises ApplicationError."""

    async def act(action: Action, *, network_boot: bool = False) -> None:
        await switch(
            PowerActionInput(host=host, action=action, reason=reason, network_boot=network_boot)
        )

    try:
        word: PowerWord = await workflow.execute_activity_method(
            PowerActivities.ask_power,
            HostRef(host=host),
            summary=f"Is {host} on?",
            **policies.FIRST_CONTACT,
        )
    except ActivityError as error:
        raise as_application_error(error) from error
    if word.state is PowerState.OFF:
        await act(Action.ON, network_boot=network_boot)
        return
    try:
        await act(Action.CYCLE, network_boot=network_boot)
    except ApplicationError as error:
        if error.type != _REJECTED:
            raise
        # Not every BMC has a cycle.
        await act(Action.OFF)
        await act(Action.ON, network_boot=network_boot)
