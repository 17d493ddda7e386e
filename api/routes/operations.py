"""Operations of every kind, whoever started them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, status
from temporalio.client import WorkflowExecutionDescription

from api.authentication import VIEWER, Operator, actor, require_role
from api.dependencies import TheInventory, TheOperations
from api.operations import Operations, as_operation, event_subject, is_open, link
from api.requests import Items, OperationQuery, SearchText
from contracts.access import Role
from contracts.errors import Conflict
from contracts.operations import Operation, OperationKind

router = APIRouter(prefix="/v1/operations", tags=["operations"], dependencies=[VIEWER])

Subject = Annotated[
    SearchText,
    Path(
        description="The host, cluster, pod or zone; or the workflow's id, should a person have "
        "chosen that."
    ),
]

_ADMINS = frozenset(
    {
        OperationKind.ADDITION,
        OperationKind.IMPORT,
        OperationKind.REMOVAL,
        OperationKind.REINSTALLATION,
        OperationKind.ZONE_ALLOCATION,
        OperationKind.POD_ALLOCATION,
        OperationKind.CLUSTER_ALLOCATION,
        OperationKind.SIGNING,
        OperationKind.REVOCATION,
        OperationKind.CA_SETUP,
    }
)

# Why an operation whose status says `final` is not cancelled, and what to do.
_POINTS_OF_NO_RETURN = {
    OperationKind.REMOVAL: (
        "Hostler is being taken off the host",
        "Wait for its end; add the host again if it is to stay.",
    ),
    OperationKind.REINSTALLATION: (
        "the old installation is trusted no more",
        "Wait until the host is back; to give it up, terminate the workflow in Temporal, then "
        "remove the host with forced.",
    ),
}


@router.get("")
async def list_operations(
    query: Annotated[OperationQuery, Query()], operations: TheOperations
) -> Items[Operation]:
    """The open operations and those that Temporal still keeps, newest first, without details."""
    return Items(
        items=await operations.search(kind=query.kind, status=query.status, limit=query.limit)
    )


@router.get("/{kind}/{subject:path}")
async def get_operation(
    kind: OperationKind, subject: Subject, operations: TheOperations
) -> Operation:
    """The newest operation of that kind, with what it says of itself, or how it ended."""
    return await operations.show(await operations.find(kind, subject))


@router.delete("/{kind}/{subject:path}", status_code=status.HTTP_202_ACCEPTED)
async def cancel_operation(
    kind: OperationKind,
    subject: Subject,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Ask an operation to take back what it did and end. An addition, a removal, a re-installation
    or an import, and the allocation of a zone, pod or cluster, is its admin's; a removal that
    cleans its host already, and a re-installation once trust is withdrawn, can't be taken back."""
    if kind in _ADMINS:
        require_role(caller, Role.ADMIN)
    execution = await operations.find(kind, subject)
    if kind in _POINTS_OF_NO_RETURN and is_open(execution):
        await _require_not_final(operations, execution, *_POINTS_OF_NO_RETURN[kind])
    await operations.cancel(execution, caller)
    await inventory.events.record(
        f"{kind}.cancel_requested",
        event_subject(execution),
        "to be taken back",
        operation=execution.id,
        actor=actor(caller),
    )
    response.headers["Location"] = link(execution)
    return as_operation(execution)


async def _require_not_final(
    operations: Operations, execution: WorkflowExecutionDescription, why: str, remedy: str
) -> None:
    """Raises Conflict."""
    details = (await operations.show(execution)).details or {}
    if details.get("final"):
        raise Conflict(f"{execution.id} can't be taken back any more: {why}.", remedy=remedy)
