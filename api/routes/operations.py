"""Operations of every kind, whoever started them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, status

from api.authentication import VIEWER, Operator, actor, require_role
from api.dependencies import TheInventory, TheOperations
from api.operations import as_operation, event_subject, link
from api.requests import Items, OperationQuery, SearchText
from contracts.access import Role
from contracts.operations import Operation, OperationKind

router = APIRouter(prefix="/v1/operations", tags=["operations"], dependencies=[VIEWER])

Subject = Annotated[
    SearchText,
    Path(
        description="The host or cluster; or the workflow's id, should a person have chosen that."
    ),
]


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
    """Ask an operation to take back what it did and end. An addition is its admin's."""
    if kind is OperationKind.ADDITION:
        require_role(caller, Role.ADMIN)
    execution = await operations.find(kind, subject)
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
