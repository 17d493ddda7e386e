"""Starting an AllocationState, the same way for a zone, a pod, a cluster and a host."""

from fastapi import Response

from api.authentication import actor
from api.operations import Operations, as_operation, link
from contracts.access import Principal
from contracts.allocation import AllocationStateInput, ChangeAllocationInput
from contracts.errors import Conflict, LeaseHeld, NotFound
from contracts.operations import ALLOCATION_KINDS, Operation, workflow_id
from inventory import Inventory


async def start_allocation(
    request: AllocationStateInput,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
    response: Response,
) -> Operation:
    """Start it, or turn round one of the same subject that runs; with a line in the audit trail.
    Raises LeaseHeld if that comes to the same state."""
    kind = ALLOCATION_KINDS[request.level]
    try:
        await operations.start(kind, request.name, request, caller, request.reason)
    except LeaseHeld:
        if not await _turn_round(request, operations):
            # It comes to the same, which is refused again; or it has ended just now.
            await operations.start(kind, request.name, request, caller, request.reason)
    await inventory.events.record(
        f"{request.level}.allocation_requested",
        f"{request.level}/{request.name}",
        f"{request.allocation_state}: {request.reason or 'no reason given'}",
        operation=workflow_id(kind, request.name),
        actor=actor(caller),
    )
    started = await operations.find(kind, request.name)
    response.headers["Location"] = link(started)
    return as_operation(started)


async def _turn_round(request: AllocationStateInput, operations: Operations) -> bool:
    """Whether the one that runs took it."""
    change = ChangeAllocationInput(allocation_state=request.allocation_state, reason=request.reason)
    try:
        running = await operations.find(ALLOCATION_KINDS[request.level], request.name)
        await operations.update(running, "change", change)
    except (Conflict, NotFound):
        return False
    return True
