"""Zones, pods, clusters."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response, status

from api.allocation import start_allocation
from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory, TheOperations
from api.operations import Operations
from api.paging import page_of
from api.requests import (
    ClusterQuery,
    ClusterRequest,
    Page,
    PlaceRequest,
    PodQuery,
    PodRequest,
    ZoneQuery,
    ZoneRequest,
)
from contracts.access import Principal
from contracts.allocation import AllocationLevel, AllocationStateInput
from contracts.hosts import Cluster, Pod, Zone
from contracts.operations import Operation
from inventory import Inventory

router = APIRouter(prefix="/v1", tags=["topology"], dependencies=[VIEWER])

_STARTED: dict[int | str, dict[str, Any]] = {
    status.HTTP_202_ACCEPTED: {"model": Operation, "description": "An operation was started."}
}


@router.get("/zones")
async def list_zones(query: Annotated[ZoneQuery, Query()], inventory: TheInventory) -> Page[Zone]:
    """The zones that match all that is given, by name."""
    return await page_of(inventory.topology.list_zones, query)


@router.post("/zones", status_code=status.HTTP_201_CREATED)
async def create_zone(
    request: ZoneRequest, caller: Admin, inventory: TheInventory, response: Response
) -> Zone:
    """Create a zone, disabled."""
    zone = await inventory.topology.create_zone(request.name, actor=actor(caller))
    response.headers["Location"] = f"/v1/zones/{zone.name}"
    return zone


@router.get("/zones/{name}")
async def get_zone(name: NameInPath, inventory: TheInventory) -> Zone:
    """One zone."""
    return await inventory.topology.get_zone(name)


@router.patch("/zones/{name}", responses=_STARTED)
async def change_zone(
    name: NameInPath,
    request: PlaceRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Zone | Operation:
    """Rename a zone; or enable or disable it, and tell its hosts: starts an AllocationState."""
    found = await inventory.topology.get_zone(name)
    if request.name == name:
        return found
    if request.name is not None:
        # Operations on its hosts go on: none of them goes by the zone's name.
        await operations.require_unnamed("zone", name)
        return await inventory.topology.rename_zone(name, request.name, actor=actor(caller))
    return await _allocate(
        AllocationLevel.ZONE, name, request, caller, inventory, operations, response
    )


@router.delete("/zones/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_zone(
    name: NameInPath, caller: Admin, inventory: TheInventory, operations: TheOperations
) -> None:
    """Delete a zone that has no pods, with its settings."""
    await operations.require_unnamed("zone", name)
    await inventory.topology.delete_zone(name, actor=actor(caller))


@router.get("/pods")
async def list_pods(query: Annotated[PodQuery, Query()], inventory: TheInventory) -> Page[Pod]:
    """The pods that match all that is given, by name."""
    return await page_of(inventory.topology.list_pods, query)


@router.post("/pods", status_code=status.HTTP_201_CREATED)
async def create_pod(
    request: PodRequest, caller: Admin, inventory: TheInventory, response: Response
) -> Pod:
    """Create a pod, disabled."""
    pod = await inventory.topology.create_pod(request.name, request.zone, actor=actor(caller))
    response.headers["Location"] = f"/v1/pods/{pod.name}"
    return pod


@router.get("/pods/{name}")
async def get_pod(name: NameInPath, inventory: TheInventory) -> Pod:
    """One pod."""
    return await inventory.topology.get_pod(name)


@router.patch("/pods/{name}", responses=_STARTED)
async def change_pod(
    name: NameInPath,
    request: PlaceRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Pod | Operation:
    """Rename a pod; or enable or disable it, and tell its hosts: starts an AllocationState."""
    found = await inventory.topology.get_pod(name)
    if request.name == name:
        return found
    if request.name is not None:
        # Operations on its hosts go on: none of them goes by the pod's name.
        await operations.require_unnamed("pod", name)
        return await inventory.topology.rename_pod(name, request.name, actor=actor(caller))
    return await _allocate(
        AllocationLevel.POD, name, request, caller, inventory, operations, response
    )


@router.delete("/pods/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_pod(
    name: NameInPath, caller: Admin, inventory: TheInventory, operations: TheOperations
) -> None:
    """Delete a pod that has no clusters."""
    await operations.require_unnamed("pod", name)
    await inventory.topology.delete_pod(name, actor=actor(caller))


@router.get("/clusters")
async def list_clusters(
    query: Annotated[ClusterQuery, Query()], inventory: TheInventory
) -> Page[Cluster]:
    """The clusters that match all that is given, by name."""
    return await page_of(inventory.topology.list_clusters, query)


@router.post("/clusters", status_code=status.HTTP_201_CREATED)
async def create_cluster(
    request: ClusterRequest, caller: Admin, inventory: TheInventory, response: Response
) -> Cluster:
    """Create a cluster, disabled."""
    cluster = await inventory.topology.create_cluster(
        request.name, request.pod, actor=actor(caller)
    )
    response.headers["Location"] = f"/v1/clusters/{cluster.name}"
    return cluster


@router.get("/clusters/{name}")
async def get_cluster(name: NameInPath, inventory: TheInventory) -> Cluster:
    """One cluster."""
    return await inventory.topology.get_cluster(name)


@router.patch("/clusters/{name}", responses=_STARTED)
async def change_cluster(
    name: NameInPath,
    request: PlaceRequest,
    caller: Admin,
    inventory: TheInventory,
    operations: TheOperations,
    response: Response,
) -> Cluster | Operation:
    """Rename a cluster; or enable or disable it, and tell its hosts: starts an AllocationState."""
    found = await inventory.topology.get_cluster(name)
    if request.name == name:
        return found
    if request.name is not None:
        holders = await inventory.topology.cluster_holders(name)
        owners = frozenset(holder.owner for holder in holders)
        await operations.require_ended(name, owners)
        await operations.require_unnamed("cluster", name)
        return await inventory.topology.rename_cluster(
            name, request.name, ended=owners, actor=actor(caller)
        )
    return await _allocate(
        AllocationLevel.CLUSTER, name, request, caller, inventory, operations, response
    )


@router.delete("/clusters/{name}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_cluster(
    name: NameInPath, caller: Admin, inventory: TheInventory, operations: TheOperations
) -> None:
    """Delete a cluster that has no hosts, with its settings, VM policies and affinity groups."""
    await operations.require_unnamed("cluster", name)
    await inventory.topology.delete_cluster(name, actor=actor(caller))


async def _allocate(
    level: AllocationLevel,
    name: str,
    request: PlaceRequest,
    caller: Principal,
    inventory: Inventory,
    operations: Operations,
    response: Response,
) -> Operation:
    if request.allocation_state is None:
        raise AssertionError("the validator lets no request through without a change")
    response.status_code = status.HTTP_202_ACCEPTED
    return await start_allocation(
        AllocationStateInput(
            level=level,
            name=name,
            allocation_state=request.allocation_state,
            reason=request.reason,
        ),
        caller,
        inventory,
        operations,
        response,
    )
