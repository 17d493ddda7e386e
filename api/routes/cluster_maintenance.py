"""The maintenance of a cluster's hosts: start, look, steer, see what its hooks have printed."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status
from temporalio.client import WorkflowExecutionDescription

from api.authentication import VIEWER, Operator, actor, require_role
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import Operations, as_operation, is_open, link
from api.requests import ClusterMaintenanceRequest, Items
from contracts.access import Principal, Role
from contracts.base import Contract, Name
from contracts.cluster_maintenance import (
    ClusterMaintenanceInput,
    ClusterMaintenanceView,
    HookRun,
    PauseInput,
    PlanClusterInput,
    ResumeInput,
    StopInput,
)
from contracts.errors import NotFound
from contracts.operations import Operation, OperationKind, workflow_id
from inventory import Inventory
from inventory.cluster_maintenance import plan_cluster_maintenance

router = APIRouter(
    prefix="/v1/clusters/{name}/maintenance",
    tags=["cluster maintenance"],
    dependencies=[VIEWER],
)

_KIND = OperationKind.CLUSTER_MAINTENANCE
_NO_CHOICES = ClusterMaintenanceRequest()


@router.post("", status_code=status.HTTP_202_ACCEPTED)
async def start_cluster_maintenance(
    name: NameInPath,
    caller: Operator,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
    request: ClusterMaintenanceRequest = _NO_CHOICES,
) -> Operation:
    """Start a ClusterMaintenance. Commands to run as root on the hosts are their admin's."""
    if any(hook.command is not None for hook in request.hooks.values()):
        require_role(caller, Role.ADMIN)
    # The workflow does so too; whoever is here to hear of it needs not go looking.
    plan = await plan_cluster_maintenance(
        inventory,
        PlanClusterInput(
            cluster=name,
            hosts=request.hosts,
            parallel=request.parallel,
            power_cycle_when_lost=request.power_cycle_when_lost,
        ),
    )
    await operations.start(
        _KIND, name, ClusterMaintenanceInput(cluster=name, **dict(request)), caller, request.reason
    )
    await inventory.events.record(
        "cluster_maintenance.requested",
        f"cluster/{name}",
        f"{', '.join(plan.hosts)}: {request.reason or 'no reason given'}",
        operation=workflow_id(_KIND, name),
        actor=actor(caller),
    )
    started = await operations.find(_KIND, name)
    response.headers["Location"] = link(started)
    return as_operation(started)


@router.get("")
async def get_cluster_maintenance(
    name: NameInPath, inventory: TheInventory, operations: TheOperations
) -> ClusterMaintenanceView:
    """Where the cluster's open maintenance stands."""
    running = await _open_maintenance(name, inventory, operations)
    return ClusterMaintenanceView(
        **dict(await operations.cluster_status(running)),
        workflow_id=running.id,
        run_id=running.run_id,
    )


@router.post("/pause", status_code=status.HTTP_204_NO_CONTENT)
async def pause_cluster_maintenance(
    name: NameInPath, caller: Operator, inventory: TheInventory, operations: TheOperations
) -> None:
    """No new host begins; those in work go on to their end."""
    await _steer(name, "pause", PauseInput(), caller, inventory, operations)


@router.post("/resume", status_code=status.HTTP_204_NO_CONTENT)
async def resume_cluster_maintenance(
    name: NameInPath, caller: Operator, inventory: TheInventory, operations: TheOperations
) -> None:
    """Go on after a pause, or after a failure: what has failed is tried again."""
    await _steer(name, "resume", ResumeInput(), caller, inventory, operations)


@router.post("/stop", status_code=status.HTTP_204_NO_CONTENT)
async def stop_cluster_maintenance(
    name: NameInPath, caller: Operator, inventory: TheInventory, operations: TheOperations
) -> None:
    """End when the hosts in work are done; one that has failed stays as it is."""
    await _steer(name, "stop", StopInput(), caller, inventory, operations)


@router.get("/hooks")
async def list_hook_runs(
    name: NameInPath, inventory: TheInventory, operations: TheOperations
) -> Items[HookRun]:
    """The hooks that the newest maintenance has run, in their order, without what they printed."""
    operation = await _newest(name, inventory, operations)
    return Items(items=await inventory.hook_runs.list(operation))


@router.get("/hooks/{host}")
async def list_hook_runs_of_host(
    name: NameInPath,
    host: Annotated[Name, Path()],
    inventory: TheInventory,
    operations: TheOperations,
) -> Items[HookRun]:
    """Those of one host, with the end of what they printed."""
    operation = await _newest(name, inventory, operations)
    return Items(items=await inventory.hook_runs.of_host(operation, host))


async def _steer(
    name: str,
    update: str,
    argument: Contract,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
) -> None:
    running = await _open_maintenance(name, inventory, operations)
    await operations.update(running, update, argument)
    await inventory.events.record(
        f"cluster_maintenance.{update}_requested",
        f"cluster/{name}",
        f"{update} asked for",
        operation=running.id,
        actor=actor(caller),
    )


async def _open_maintenance(
    name: str, inventory: Inventory, operations: Operations
) -> WorkflowExecutionDescription:
    """Raises NotFound."""
    await inventory.topology.get_cluster(name)
    try:
        found = await operations.find(_KIND, name)
    except NotFound:
        found = None
    if found is None or not is_open(found):
        raise NotFound(
            f"No maintenance of {name} is open.",
            remedy=f"See `hostler operation show {_KIND} {name}` for how the last one ended.",
        )
    return found


async def _newest(name: str, inventory: Inventory, operations: Operations) -> str:
    """The key of its hook runs. Raises NotFound."""
    await inventory.topology.get_cluster(name)
    found = await operations.find(_KIND, name)
    return f"{found.id}#{found.raw_info.first_run_id}"
