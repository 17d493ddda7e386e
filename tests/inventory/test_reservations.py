"""Room and slots on hosts, shared by all operations."""

import asyncio

import pytest

from contracts.errors import LeaseLost, NotFound
from contracts.leases import LeaseRef
from contracts.states import AllocationState, HostStatus
from inventory import Inventory
from inventory.errors import DestinationFull, DestinationUnfit, SlotsBusy
from inventory.reservations import Reserved
from tests.inventory.conftest import OTHER, OWNER, acquire, enabled, ref, register


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    for number in (1, 2, 3):
        await enabled(inventory, number)
    return ref(await acquire(inventory))


async def reserve(
    inventory: Inventory,
    lease: LeaseRef,
    vm: str,
    *,
    destination: str = "kvm-2",
    memory_mib: int = 96,
    vcpus: int = 1,
    free: tuple[int, int] = (1024, 8),
    most: int = 10,
) -> None:
    await inventory.reservations.reserve(
        destination,
        vm_uuid=f"uuid-{vm}",
        vm=vm,
        memory_mib=memory_mib,
        vcpus=vcpus,
        source=lease.host,
        lease=lease,
        memory_free_mib=free[0],
        cpus_free=free[1],
        max_parallel_per_host=most,
    )


async def test_reserve_release_and_the_sum(inventory: Inventory, lease: LeaseRef) -> None:
    for vm in ("vm-1", "vm-2", "vm-1"):
        await reserve(inventory, lease, vm)
    assert await inventory.reservations.total("kvm-2") == Reserved(memory_mib=192, vcpus=2)
    coming = await inventory.reservations.pointing_at("kvm-2")
    assert {one.vm for one in coming} == {"vm-1", "vm-2"}
    for _ in range(2):
        await inventory.reservations.release("kvm-2", "uuid-vm-1", lease)
    assert await inventory.reservations.total("kvm-2") == Reserved(memory_mib=96, vcpus=1)
    await inventory.reservations.release_all(lease)
    assert await inventory.reservations.total("kvm-2") == Reserved(memory_mib=0, vcpus=0)


async def test_another_destination_gives_the_first_one_back(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await reserve(inventory, lease, "vm-1")
    await reserve(inventory, lease, "vm-1", destination="kvm-3")
    assert (await inventory.reservations.total("kvm-2")).memory_mib == 0


async def test_what_is_reserved_is_not_free(inventory: Inventory, lease: LeaseRef) -> None:
    await reserve(inventory, lease, "vm-1", memory_mib=600)
    with pytest.raises(DestinationFull, match="kvm-2 has 424 MiB of memory free, vm-2 needs 600"):
        await reserve(inventory, lease, "vm-2", memory_mib=600)
    with pytest.raises(DestinationFull, match="kvm-2 has 7 CPUs free, vm-2 needs 8"):
        await reserve(inventory, lease, "vm-2", vcpus=8)
    await reserve(inventory, lease, "vm-1", memory_mib=600)


async def test_many_at_once_never_take_more_than_there_is(
    inventory: Inventory, lease: LeaseRef
) -> None:
    results = await asyncio.gather(
        *(reserve(inventory, lease, f"vm-{number}", memory_mib=300) for number in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, DestinationFull) for result in results) == 5
    assert (await inventory.reservations.total("kvm-2")).memory_mib == 900


async def test_slots_count_at_both_ends(inventory: Inventory, lease: LeaseRef) -> None:
    await reserve(inventory, lease, "vm-1", most=2)
    await reserve(inventory, lease, "vm-2", destination="kvm-3", most=2)
    with pytest.raises(SlotsBusy, match="2 migrations run from or to kvm-1, 2 may"):
        await reserve(inventory, lease, "vm-3", destination="kvm-3", most=2)
    other = ref(await acquire(inventory, OTHER, host="kvm-3"))
    await reserve(inventory, other, "vm-9", most=2)
    with pytest.raises(SlotsBusy, match="from or to kvm-3"):
        await reserve(inventory, other, "vm-8", most=2)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("disconnected", "is Disconnected"),
        ("fenced", "is fenced by maintenance/kvm-2"),
        ("pod", "Disabled zone, pod or cluster"),
        ("creating", "is Creating"),
    ],
)
async def test_a_host_that_takes_no_vm(
    inventory: Inventory, lease: LeaseRef, spoil: str, says: str
) -> None:
    destination = "kvm-2"
    if spoil == "disconnected":
        await inventory.hosts.set_status(
            destination, HostStatus.DISCONNECTED, actor="test", reason="seen"
        )
    elif spoil == "fenced":
        await inventory.hosts.want_fence(destination, "maintenance/kvm-2", 1)
    elif spoil == "pod":
        await inventory.topology.set_pod_state("pod-1", AllocationState.DISABLED, actor="test")
    else:
        destination = (await register(inventory, 4)).name
    with pytest.raises(DestinationUnfit, match=says):
        await reserve(inventory, lease, "vm-1", destination=destination)
    assert (await inventory.reservations.total(destination)).memory_mib == 0


async def test_an_unknown_destination(inventory: Inventory, lease: LeaseRef) -> None:
    with pytest.raises(NotFound, match="kvm-9"):
        await reserve(inventory, lease, "vm-1", destination="kvm-9")


async def test_a_successor_gives_back_what_its_predecessor_held(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await reserve(inventory, lease, "vm-1")
    successor = ref(await acquire(inventory, OTHER, takeover_from=OWNER))
    await inventory.reservations.release("kvm-2", "uuid-vm-1", successor)
    assert (await inventory.reservations.total("kvm-2")).memory_mib == 96
    await inventory.reservations.release_all(successor)
    assert (await inventory.reservations.total("kvm-2")).memory_mib == 0
    await reserve(inventory, successor, "vm-1")
    await inventory.reservations.release_all(lease)
    assert (await inventory.reservations.total("kvm-2")).memory_mib == 96


async def test_discard_takes_one_and_not_its_successor(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await reserve(inventory, lease, "vm-1")
    (old,) = await inventory.reservations.pointing_at("kvm-2")
    successor = ref(await acquire(inventory, OTHER, takeover_from=OWNER))
    await reserve(inventory, successor, "vm-1")
    await inventory.reservations.discard(old)
    (new,) = await inventory.reservations.pointing_at("kvm-2")
    await inventory.reservations.discard(new)
    assert await inventory.reservations.pointing_at("kvm-2") == []


async def test_what_is_counted_as_there_is_not_reserved_twice(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await reserve(inventory, lease, "vm-1", memory_mib=600)
    there = frozenset({"uuid-vm-1"})
    assert (await inventory.reservations.total("kvm-2", counted=there)).memory_mib == 0
    await inventory.reservations.reserve(
        "kvm-2",
        vm_uuid="uuid-vm-2",
        vm="vm-2",
        memory_mib=400,
        vcpus=1,
        source="kvm-1",
        lease=lease,
        memory_free_mib=424,
        cpus_free=8,
        max_parallel_per_host=2,
        counted=there,
    )


async def test_a_vm_that_comes_from_elsewhere_takes_the_place_of_its_remains(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await reserve(inventory, lease, "vm-1")
    other = ref(await acquire(inventory, OTHER, host="kvm-3"))
    await reserve(inventory, other, "vm-1")
    (one,) = await inventory.reservations.pointing_at("kvm-2")
    assert one.source == "kvm-3"


async def test_nothing_is_reserved_under_a_lease_that_is_not_held(
    inventory: Inventory, lease: LeaseRef
) -> None:
    await inventory.leases.release(lease)
    with pytest.raises(LeaseLost):
        await reserve(inventory, lease, "vm-1")
    assert await inventory.reservations.pointing_at("kvm-2") == []
