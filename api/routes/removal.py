"""Hosts leave the inventory, and what is remembered of them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, status

from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import as_operation, link
from api.requests import Items, RemovalQuery, SettleRemovedRequest
from api.takeover import require_ready
from contracts.errors import NotFound
from contracts.hosts import RemovedHost
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.removal import HostRemovalInput, ResolveRemovalInput

router = APIRouter(prefix="/v1", tags=["hosts"], dependencies=[VIEWER])

_KIND = OperationKind.REMOVAL


@router.delete("/hosts/{name}", status_code=status.HTTP_202_ACCEPTED)
async def remove_host(
    name: NameInPath,
    query: Annotated[RemovalQuery, Query()],
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Start a HostRemoval: from `Maintenance`, which it takes over, or after a maintenance that it
    starts itself. `forced`, with a reason: also a host that does not answer. `dry_run`: list every
    effect and change nothing. `power_off`: by its BMC, once it is clean."""
    await inventory.hosts.get(name)
    if query.power_off:
        await inventory.oobm.require([name], "power_off")
    await operations.require_free(name, but=OperationKind.MAINTENANCE)
    if not query.dry_run:
        await require_ready(name, operations)
    await operations.start(
        _KIND, name, HostRemovalInput(host=name, **dict(query)), caller, query.reason
    )
    await inventory.events.record(
        "removal.requested",
        f"host/{name}",
        _in_words(query),
        operation=workflow_id(_KIND, name),
        actor=actor(caller),
    )
    started = await operations.find(_KIND, name)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.post("/hosts/{name}/removal", status_code=status.HTTP_204_NO_CONTENT)
async def resolve_removal(
    name: NameInPath,
    request: ResolveRemovalInput,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
) -> None:
    """Answer a removal whose host can't be cleaned."""
    running = await operations.running(name, _KIND)
    if running is None:
        raise NotFound(
            f"No removal of {name!r} is running.", remedy="Start it with DELETE /v1/hosts/{name}."
        )
    await operations.update(running, "resolve", request)
    await inventory.events.record(
        "removal.resolved",
        f"host/{name}",
        request.action,
        operation=running.id,
        actor=actor(caller),
    )


@router.get("/removed-hosts")
async def list_removed_hosts(inventory: TheInventory) -> Items[RemovedHost]:
    """The tombstones of all that were removed, the latest first."""
    return Items(items=await inventory.removed_hosts.list())


@router.post("/removed-hosts/{tombstone}/settlement")
async def settle_removed_host(
    tombstone: Annotated[int, Path(ge=1, le=2**31 - 1)],
    request: SettleRemovedRequest,
    caller: Admin,
    inventory: TheInventory,
) -> RemovedHost:
    """Give up cleaning a removed host that never comes back: the credential that was kept for that
    is deleted. The machine is still only added again on purpose."""
    return await inventory.removed_hosts.settle(
        tombstone, reason=request.reason, actor=actor(caller)
    )


def _in_words(query: RemovalQuery) -> str:
    how = [
        word
        for word, asked in (
            ("dry run", query.dry_run),
            ("after maintenance", query.after_maintenance),
            ("forced", query.forced),
            ("leaves VMs", query.leave_vms),
            ("powers off", query.power_off),
        )
        if asked
    ]
    return ": ".join([*([", ".join(how)] if how else []), query.reason or "no reason given"])
