"""Zones, pods, clusters."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from api.authentication import VIEWER, Admin, actor
from api.dependencies import NameInPath, TheInventory
from api.requests import (
    AllocationRequest,
    ClusterQuery,
    ClusterRequest,
    Items,
    PodQuery,
    PodRequest,
    ZoneRequest,
)
from contracts.hosts import Cluster, Pod, Zone

router = APIRouter(prefix="/v1", tags=["topology"], dependencies=[VIEWER])


@router.get("/zones")
async def list_zones(inventory: TheInventory) -> Items[Zone]:
    """All zones, by name."""
    return Items(items=await inventory.topology.list_zones())


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


@router.patch("/zones/{name}")
async def change_zone(
    name: NameInPath, request: AllocationRequest, caller: Admin, inventory: TheInventory
) -> Zone:
    """Enable or disable a zone; no effect if it is so already."""
    return await inventory.topology.set_zone_state(
        name, request.allocation_state, actor=actor(caller)
    )


@router.get("/pods")
async def list_pods(query: Annotated[PodQuery, Query()], inventory: TheInventory) -> Items[Pod]:
    """All pods, or those of a zone, by name."""
    return Items(items=await inventory.topology.list_pods(zone=query.zone))


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


@router.patch("/pods/{name}")
async def change_pod(
    name: NameInPath, request: AllocationRequest, caller: Admin, inventory: TheInventory
) -> Pod:
    """Enable or disable a pod; no effect if it is so already."""
    return await inventory.topology.set_pod_state(
        name, request.allocation_state, actor=actor(caller)
    )


@router.get("/clusters")
async def list_clusters(
    query: Annotated[ClusterQuery, Query()], inventory: TheInventory
) -> Items[Cluster]:
    """All clusters, or those of a zone or pod, by name."""
    return Items(items=await inventory.topology.list_clusters(zone=query.zone, pod=query.pod))


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


@router.patch("/clusters/{name}")
async def change_cluster(
    name: NameInPath, request: AllocationRequest, caller: Admin, inventory: TheInventory
) -> Cluster:
    """Enable or disable a cluster; no effect if it is so already."""
    return await inventory.topology.set_cluster_state(
        name, request.allocation_state, actor=actor(caller)
    )
