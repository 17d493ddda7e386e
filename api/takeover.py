"""What stands in the way of an operation that takes a host over from its maintenance."""

from api.operations import Operations
from contracts.errors import Conflict
from contracts.operations import OperationKind
from contracts.states import Phase


async def require_ready(name: str, operations: Operations) -> None:
    """Raises Conflict while a maintenance is open that can't hand its host over yet."""
    maintenance = await operations.running(name, OperationKind.MAINTENANCE)
    if maintenance is None:
        return
    now = await operations.status(maintenance)
    if now.phase is not Phase.READY:
        raise Conflict(
            f"{maintenance.id} is not ready ({now.phase}: {now.message}).",
            remedy="Wait until it is, or end it; of a host that is lost, terminate it in Temporal.",
        )
