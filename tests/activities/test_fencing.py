"""The fence: wanted in the inventory, up on the host, proven through libvirt."""

import pytest

from activities.directory import HostDirectory
from activities.fencing import FencingActivities
from contracts.errors import LeaseLost
from contracts.leases import LeaseRef
from contracts.steps import FenceInput
from drivers.errors import EpochRefused
from drivers.fence import HookFence
from drivers.libvirt import LibvirtHypervisor
from drivers.ssh import AsyncSshShell
from inventory import Inventory
from tests.activities.conftest import SOURCE, run, take_over
from tests.lab import Lab

OPERATION = "maintenance/kvm-1"
HOOK = "/etc/libvirt/hooks/qemu.d/hostler"


@pytest.fixture
async def activities(
    inventory: Inventory,
    directory: HostDirectory,
    shell: AsyncSshShell,
    hypervisor: LibvirtHypervisor,
    lab: Lab,
) -> FencingActivities:
    await lab.exec(SOURCE, "rm", "-rf", "/etc/hostler", HOOK)
    return FencingActivities(inventory, directory, HookFence(shell), hypervisor)


async def fence_file(lab: Lab) -> str:
    return (await lab.exec(SOURCE, "cat", "/etc/hostler/fence", check=False)).stdout.strip()


async def test_installed_put_up_and_taken_down_again_and_again(
    activities: FencingActivities, inventory: Inventory, lease: LeaseRef, lab: Lab
) -> None:
    order = FenceInput(lease=lease, operation=OPERATION)
    for _ in range(2):
        await run(activities.install_fence, order)
    assert await fence_file(lab) == ""
    for _ in range(2):
        await run(activities.put_up_fence, order)
    assert await fence_file(lab) == OPERATION
    assert (await inventory.hosts.get(SOURCE)).fence == OPERATION
    for _ in range(2):
        await run(activities.take_down_fence, lease)
    assert await fence_file(lab) == ""
    assert (await inventory.hosts.get(SOURCE)).fence is None


async def test_whoever_lost_the_lease_moves_no_fence(
    activities: FencingActivities, inventory: Inventory, lease: LeaseRef, lab: Lab
) -> None:
    await run(activities.install_fence, FenceInput(lease=lease, operation=OPERATION))
    successor = await take_over(inventory)
    await run(activities.put_up_fence, FenceInput(lease=successor, operation="maintenance/other"))
    for work in (
        run(activities.take_down_fence, lease),
        run(activities.put_up_fence, FenceInput(lease=lease, operation=OPERATION)),
        run(activities.install_fence, FenceInput(lease=lease, operation=OPERATION)),
    ):
        with pytest.raises(LeaseLost):
            await work
    assert await fence_file(lab) == "maintenance/other"
    await run(activities.take_down_fence, successor)


async def test_once_down_the_same_operation_can_not_fence_it_again(
    activities: FencingActivities, inventory: Inventory, lease: LeaseRef, lab: Lab
) -> None:
    """A worker that was stopped before the fence went down, and goes on after."""
    order = FenceInput(lease=lease, operation=OPERATION)
    await run(activities.install_fence, order)
    await run(activities.put_up_fence, order)
    await run(activities.take_down_fence, lease)
    with pytest.raises(EpochRefused):
        await run(activities.put_up_fence, order)
    assert await fence_file(lab) == ""
    # The next operation can.
    successor = await take_over(inventory)
    await run(activities.put_up_fence, FenceInput(lease=successor, operation="maintenance/other"))
    assert await fence_file(lab) == "maintenance/other"
    await run(activities.take_down_fence, successor)


async def test_the_host_itself_refuses_an_earlier_epoch(
    activities: FencingActivities, inventory: Inventory, lease: LeaseRef, lab: Lab
) -> None:
    """As of a worker that checked its lease, was stopped, and goes on after a takeover."""
    await lab.exec(SOURCE, "sh", "-c", "mkdir -p /etc/hostler; echo 9 >/etc/hostler/epoch")
    with pytest.raises(EpochRefused):
        await run(activities.put_up_fence, FenceInput(lease=lease, operation=OPERATION))
    assert await fence_file(lab) == ""
    await lab.exec(SOURCE, "rm", "-rf", "/etc/hostler")
