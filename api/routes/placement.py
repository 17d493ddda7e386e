"""Placement: host tags, VM policies and affinity groups, the operators' rules for evacuations."""

from typing import Annotated

from fastapi import APIRouter, Path, status

from api.authentication import VIEWER, Operator, actor
from api.dependencies import NameInPath, TheInventory
from api.requests import AffinityGroupRequest, HostTagsRequest, Items, VmPolicyRequest
from contracts.base import VmName
from contracts.evacuation import AffinityGroup, VmPolicy
from contracts.hosts import Host

router = APIRouter(prefix="/v1", tags=["placement"], dependencies=[VIEWER])

VmInPath = Annotated[VmName, Path()]


@router.put("/hosts/{name}/tags")
async def set_host_tags(
    name: NameInPath, request: HostTagsRequest, caller: Operator, inventory: TheInventory
) -> Host:
    """Give the host exactly these tags: evacuations send a VM whose policy asks for tags only to a
    host that has all of them."""
    await inventory.placement.set_host_tags(name, request.tags, actor=actor(caller))
    return await inventory.hosts.get(name)


@router.get("/clusters/{name}/vms")
async def list_vm_policies(name: NameInPath, inventory: TheInventory) -> Items[VmPolicy]:
    """The VMs that have a policy, by name. Evacuations may send any other VM to any host of the
    cluster that can run it."""
    return Items(items=await inventory.placement.policies(name))


@router.get("/clusters/{name}/vms/{vm}/policy")
async def get_vm_policy(name: NameInPath, vm: VmInPath, inventory: TheInventory) -> VmPolicy:
    """What was decided about the VM."""
    return await inventory.placement.policy(name, vm)


@router.put("/clusters/{name}/vms/{vm}/policy")
async def set_vm_policy(
    name: NameInPath,
    vm: VmInPath,
    request: VmPolicyRequest,
    caller: Operator,
    inventory: TheInventory,
) -> VmPolicy:
    """Replace what was decided about the VM: pinned, it blocks every evacuation of its host; tags
    narrow down where it may be sent. The VM need not be there yet."""
    policy = VmPolicy(vm=vm, **dict(request))
    await inventory.placement.set_policy(name, policy, actor=actor(caller))
    return policy


@router.delete("/clusters/{name}/vms/{vm}/policy", status_code=status.HTTP_204_NO_CONTENT)
async def delete_vm_policy(
    name: NameInPath, vm: VmInPath, caller: Operator, inventory: TheInventory
) -> None:
    """Let evacuations send the VM to any host that can run it."""
    await inventory.placement.delete_policy(name, vm, actor=actor(caller))


@router.get("/clusters/{name}/affinity-groups")
async def list_affinity_groups(name: NameInPath, inventory: TheInventory) -> Items[AffinityGroup]:
    """The cluster's affinity and anti-affinity groups, by name."""
    return Items(items=await inventory.placement.groups(name))


@router.get("/clusters/{name}/affinity-groups/{group}")
async def get_affinity_group(
    name: NameInPath, group: NameInPath, inventory: TheInventory
) -> AffinityGroup:
    """One group."""
    return await inventory.placement.group(name, group)


@router.put("/clusters/{name}/affinity-groups/{group}")
async def set_affinity_group(
    name: NameInPath,
    group: NameInPath,
    request: AffinityGroupRequest,
    caller: Operator,
    inventory: TheInventory,
) -> AffinityGroup:
    """Create or replace a group: evacuations send the VMs of an affinity group to one host, those
    of an anti-affinity group to a different host each."""
    wanted = AffinityGroup(name=group, **dict(request))
    await inventory.placement.set_group(name, wanted, actor=actor(caller))
    return wanted


@router.delete("/clusters/{name}/affinity-groups/{group}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_affinity_group(
    name: NameInPath, group: NameInPath, caller: Operator, inventory: TheInventory
) -> None:
    """Delete a group: evacuations send its VMs wherever their other rules allow."""
    await inventory.placement.delete_group(name, group, actor=actor(caller))
