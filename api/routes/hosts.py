"""Hosts: what the inventory has, and how one is added."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from api.allocation import start_allocation
from api.authentication import VIEWER, Admin, Operator, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import as_operation, link
from api.paging import page_of
from api.requests import HostAdditionRequest, HostAllocationRequest, HostQuery, Page
from contracts.addition import AcceptHostKeyInput, HostAdditionInput
from contracts.allocation import AllocationLevel, AllocationStateInput
from contracts.errors import AlreadyExists, HostlerError, NotFound, Unavailable
from contracts.host_checks import HostSighting
from contracts.hosts import Host
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.states import AllocationState, ResourceState
from inventory import Inventory
from inventory.closings import require_in_service

router = APIRouter(prefix="/v1/hosts", tags=["hosts"], dependencies=[VIEWER])


@router.get("")
async def list_hosts(query: Annotated[HostQuery, Query()], inventory: TheInventory) -> Page[Host]:
    """The hosts that match all that is given, by name."""
    return await page_of(inventory.hosts.list, query)


@router.get("/{name}")
async def get_host(name: NameInPath, inventory: TheInventory) -> Host:
    """One host."""
    return await inventory.hosts.get(name)


@router.patch("/{name}", status_code=status.HTTP_202_ACCEPTED)
async def change_host(
    name: NameInPath,
    request: HostAllocationRequest,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Enable or disable a host, and tell it: starts an AllocationState."""
    host = await inventory.hosts.get(name)
    require_in_service(host)
    return await start_allocation(
        AllocationStateInput(
            level=AllocationLevel.HOST,
            name=name,
            allocation_state=AllocationState(request.resource_state.value),
            reason=request.reason,
        ),
        caller,
        inventory,
        operations,
        response,
    )


@router.post("", status_code=status.HTTP_202_ACCEPTED)
async def add_host(
    request: HostAdditionRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Start a HostAddition. The credential is stored encrypted; the workflow gets its id alone.

    With `dry_run` it only looks, and its result has every finding.
    """
    if not request.dry_run:
        await _require_new(inventory, request.name)
    await inventory.topology.get_cluster(request.cluster)
    await operations.require_free(request.name)
    kind, plaintext = request.credential()
    secret = await inventory.secrets.store(kind, plaintext, actor=actor(caller))
    fields = request.model_dump(exclude={"password", "private_key"})
    try:
        await operations.start(
            OperationKind.ADDITION,
            request.name,
            HostAdditionInput(**fields, secret=secret),
            caller,
            f"{request.address}, {request.cluster}",
        )
    except Unavailable:
        # It may have started and need the secret; if not, the inventory drops it after a day.
        raise
    except HostlerError:
        await inventory.secrets.discard(secret)
        raise
    await inventory.events.record(
        "addition.requested",
        f"host/{request.name}",
        f"into {request.cluster}, at {request.address} port {request.ssh_port}",
        operation=workflow_id(OperationKind.ADDITION, request.name),
        actor=actor(caller),
    )
    started = await operations.find(OperationKind.ADDITION, request.name)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.post("/{name}/host-key", status_code=status.HTTP_204_NO_CONTENT)
async def accept_host_key(
    name: NameInPath,
    request: AcceptHostKeyInput,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
) -> None:
    """Tell the addition that waits for it that this fingerprint is the host's own."""
    addition = await operations.running(name, OperationKind.ADDITION)
    if addition is None:
        raise NotFound(
            f"No addition of {name!r} is running.", remedy="Start it with POST /v1/hosts."
        )
    await operations.update(addition, "accept_host_key", request)
    await inventory.events.record(
        "addition.host_key_accepted",
        f"host/{name}",
        request.fingerprint,
        operation=addition.id,
        actor=actor(caller),
    )


@router.post("/{name}/check")
async def check_host(
    name: NameInPath, caller: Operator, inventory: TheInventory, operations: TheOperations
) -> HostSighting:
    """Have a worker look at the host now, out of turn, and answer what it has shown. A host that
    does not answer is told, and not counted: the status follows the checks of the schedule."""
    await inventory.hosts.get(name)
    return await operations.check_host(name, caller)


async def _require_new(inventory: Inventory, name: str) -> None:
    """Raises AlreadyExists. One that is `Creating` was left by an addition that ended."""
    host = await inventory.hosts.find(name)
    if host is not None and host.resource_state is not ResourceState.CREATING:
        raise AlreadyExists(f"There is a host {name!r} already.", remedy="Choose another name.")
