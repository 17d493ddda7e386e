"""The maintenance of a host: enter, look, answer, leave, bring its VMs back."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, status
from temporalio.client import WorkflowExecutionDescription

from api.authentication import VIEWER, Operator, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import Operations, as_operation, link
from api.requests import HostMaintenanceRequest, LeaveQuery, ResolveVmRequest
from contracts.base import VmName
from contracts.errors import Conflict, NotFound
from contracts.hosts import Host
from contracts.maintenance import (
    HostMaintenanceInput,
    LeaveInput,
    MaintenanceView,
    ResolveVmInput,
)
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.states import MAINTENANCE_STATES, ResourceState
from contracts.vm_return import VmReturnInput

router = APIRouter(
    prefix="/v1/hosts/{name}/maintenance", tags=["maintenance"], dependencies=[VIEWER]
)

_KIND = OperationKind.MAINTENANCE
_ADOPTED = "given back after its maintenance had ended without that"
_NO_CHOICES = HostMaintenanceRequest()
_IN_SERVICE = frozenset({ResourceState.ENABLED, ResourceState.DISABLED})


@router.post("", status_code=status.HTTP_202_ACCEPTED)
async def enter_maintenance(
    name: NameInPath,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: HostMaintenanceRequest = _NO_CHOICES,
) -> Operation:
    """Start a HostMaintenance. `power_off_when_ready`: by its BMC, it is off while it is out."""
    await inventory.hosts.get(name)
    if request.power_off_when_ready:
        await inventory.oobm.require([name], "power_off_when_ready")
    await operations.require_free(name)
    await operations.start(
        _KIND, name, HostMaintenanceInput(host=name, **dict(request)), caller, request.reason
    )
    await inventory.events.record(
        "maintenance.requested",
        f"host/{name}",
        ("dry run: " if request.dry_run else "") + (request.reason or "no reason given"),
        operation=workflow_id(_KIND, name),
        actor=actor(caller),
    )
    return _accepted(await operations.find(_KIND, name), response)


@router.get("")
async def get_maintenance(
    name: NameInPath, inventory: TheInventory, operations: TheOperations
) -> MaintenanceView:
    """Where the host's open maintenance stands."""
    host = await inventory.hosts.get(name)
    running = await _open_maintenance(host, operations)
    status_now = await operations.status(running)
    migrations = await inventory.vm_migrations.list(f"{running.id}#{running.raw_info.first_run_id}")
    return MaintenanceView(
        **dict(status_now),
        workflow_id=running.id,
        run_id=running.run_id,
        migrations=tuple(migrations),
    )


@router.delete("", status_code=status.HTTP_202_ACCEPTED)
async def leave_maintenance(
    name: NameInPath,
    query: Annotated[LeaveQuery, Query()],
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Put the host back into service, also when its maintenance was terminated.

    `return_vms`: bring back what was moved; without it, as the maintenance was asked to. `force`:
    although networks or storage that the host had before are missing.
    """
    host = await inventory.hosts.get(name)
    asked = LeaveInput(**dict(query))
    running = await operations.running(name, _KIND)
    if running is not None:
        await operations.update(running, "leave", asked)
    elif host.resource_state in MAINTENANCE_STATES:
        await operations.start_with_update(
            _KIND,
            name,
            HostMaintenanceInput(host=name, reason=_ADOPTED),
            caller,
            _ADOPTED,
            update="leave",
            argument=asked,
        )
        running = await operations.find(_KIND, name)
    else:
        raise Conflict(f"{name} is not in maintenance.", remedy="It needs not leave it.")
    await inventory.events.record(
        "maintenance.leave_requested",
        f"host/{name}",
        _leaving_in_words(asked),
        operation=running.id,
        actor=actor(caller),
    )
    return _accepted(running, response)


@router.post("/return", status_code=status.HTTP_202_ACCEPTED)
async def return_vms(
    name: NameInPath,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Operation:
    """Start a VmReturn: what the host's last maintenance has moved comes back, as far as there is
    room."""
    host = await inventory.hosts.get(name)
    await _require_in_service(host, operations)
    await operations.require_free(name)
    kind = OperationKind.RETURN
    await operations.start(kind, name, VmReturnInput(host=name), caller, "")
    await inventory.events.record(
        "maintenance.return_requested",
        f"host/{name}",
        "what its last maintenance has moved is to come back",
        operation=workflow_id(kind, name),
        actor=actor(caller),
    )
    return _accepted(await operations.find(kind, name), response)


@router.post("/vms/{vm}", status_code=status.HTTP_204_NO_CONTENT)
async def resolve_vm(
    name: NameInPath,
    vm: Annotated[VmName, Path()],
    request: ResolveVmRequest,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
) -> None:
    """Answer the maintenance's question about a VM that could not be moved."""
    host = await inventory.hosts.get(name)
    running = await _open_maintenance(host, operations)
    await operations.update(running, "resolve_vm", ResolveVmInput(vm=vm, action=request.action))
    await inventory.events.record(
        "maintenance.vm_answered",
        f"host/{name}",
        f"{vm}: {request.action}",
        operation=running.id,
        actor=actor(caller),
    )


async def _open_maintenance(host: Host, operations: Operations) -> WorkflowExecutionDescription:
    """Raises NotFound."""
    running = await operations.running(host.name, _KIND)
    if running is not None:
        return running
    if host.resource_state in MAINTENANCE_STATES:
        raise NotFound(
            f"No maintenance of {host.name} is open, yet it is {host.resource_state}: the last one "
            "ended without putting it back.",
            remedy=f"Put it back with `hostler maintenance leave {host.name}`, or enter again.",
        )
    raise NotFound(f"{host.name} is not in maintenance.")


async def _require_in_service(host: Host, operations: Operations) -> None:
    """Raises Conflict."""
    running = await operations.running(host.name, _KIND)
    if running is not None:
        raise Conflict(
            f"The VMs of {host.name} can't come back while {running.id} is open.",
            remedy=f"End it first: `hostler maintenance leave {host.name} --return-vms` does both.",
            details={
                "workflow_id": running.id,
                "run_id": running.raw_info.first_run_id,
                "operation": link(running),
            },
        )
    if host.resource_state not in _IN_SERVICE:
        out = host.resource_state in MAINTENANCE_STATES
        leave = f"Put it back first: `hostler maintenance leave {host.name}`."
        raise Conflict(
            f"{host.name} is {host.resource_state}: VMs come back to a host that is in service.",
            remedy=leave if out else "It takes VMs when it is Enabled.",
        )


def _leaving_in_words(asked: LeaveInput) -> str:
    words = "to be put back into service"
    if asked.return_vms is not None:
        words += ", with its VMs" if asked.return_vms else ", without its VMs"
    if asked.force:
        words += ", forced: also without networks or storage that it had before"
    return words


def _accepted(execution: WorkflowExecutionDescription, response: Response) -> Operation:
    response.headers["Location"] = link(execution)
    return as_operation(execution)
