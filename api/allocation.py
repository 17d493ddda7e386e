"""Starting an AllocationState, the same way for a zone, a pod, a cluster and a host."""

from fastapi import Response

from api.authentication import actor
from api.operations import Operations, as_operation, link
from contracts.access import Principal
from contracts.allocation import AllocationStateInput
from contracts.operations import ALLOCATION_KINDS, Operation, workflow_id
from inventory import Inventory


async def start_allocation(
    request: AllocationStateInput,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
    response: Response,
) -> Operation:
    """Start it, with a line in the audit trail. Raises LeaseHeld while one of the same subject
    runs."""
    kind = ALLOCATION_KINDS[request.level]
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
