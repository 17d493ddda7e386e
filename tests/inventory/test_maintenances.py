"""Whose turn it is, and the step that begins an evacuation."""

import asyncio

import pytest

from contracts.errors import Conflict, LeaseLost
from contracts.evacuation import Move
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.states import ResourceState
from inventory import Inventory
from inventory.errors import PlanOutdated
from inventory.maintenances import Turn
from tests.inventory.conftest import enabled, ref

CLUSTER = "cluster-1"
REASON = "prepares for maintenance"


@pytest.fixture
async def leases(inventory: Inventory) -> dict[str, LeaseRef]:
    """Of kvm-1 to kvm-3, each held by a maintenance of its own."""
    held = {}
    for number in (1, 2, 3):
        name = (await enabled(inventory, number)).name
        owner = Owner(workflow_id=f"maintenance/{name}", first_run_id=f"run-{number}")
        held[name] = ref(await inventory.leases.acquire(name, LeaseScope.PLACEMENT, owner, "test"))
    return held


def move(vm: str, destination: str) -> Move:
    return Move(vm=vm, uuid=f"uuid-{vm}", destination=destination, memory_mib=96, vcpus=1)


async def begin(
    inventory: Inventory,
    lease: LeaseRef,
    *moves: Move,
    seen: frozenset[str] = frozenset(),
    step: str = "1",
) -> None:
    await inventory.maintenances.begin(
        lease,
        moves,
        {one.destination: seen for one in moves},
        step=step,
        reason=REASON,
    )


async def state(inventory: Inventory, host: str) -> ResourceState:
    return (await inventory.hosts.get(host)).resource_state


async def test_first_come_first_served(inventory: Inventory, leases: dict[str, LeaseRef]) -> None:
    turns = inventory.maintenances
    assert await turns.take_turn(leases["kvm-2"], CLUSTER, 1) == Turn(granted=True, ahead=())
    waits = Turn(granted=False, ahead=("kvm-2",))
    assert await turns.take_turn(leases["kvm-3"], CLUSTER, 1) == waits
    both = Turn(granted=False, ahead=("kvm-2", "kvm-3"))
    assert await turns.take_turn(leases["kvm-1"], CLUSTER, 1) == both
    assert await turns.take_turn(leases["kvm-3"], CLUSTER, 1) == waits
    await turns.give_up_turn("kvm-2", leases["kvm-2"].owner)
    assert (await turns.take_turn(leases["kvm-1"], CLUSTER, 1)).ahead == ("kvm-3",)
    assert (await turns.take_turn(leases["kvm-3"], CLUSTER, 1)).granted
    assert not (await turns.take_turn(leases["kvm-1"], CLUSTER, 1)).granted
    assert (await turns.take_turn(leases["kvm-1"], CLUSTER, 2)).granted
    assert [one.host for one in await turns.tickets(CLUSTER)] == ["kvm-3", "kvm-1"]


async def test_a_host_that_is_out_counts_whoever_took_it_out(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    await begin(inventory, leases["kvm-2"])
    waits = await inventory.maintenances.take_turn(leases["kvm-1"], CLUSTER, 1)
    assert waits == Turn(granted=False, ahead=("kvm-2",))
    out = await inventory.maintenances.take_turn(leases["kvm-2"], CLUSTER, 1)
    assert out.granted


async def test_a_lower_bound_takes_no_turn_away(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    turns = inventory.maintenances
    for name in ("kvm-1", "kvm-2"):
        assert (await turns.take_turn(leases[name], CLUSTER, 2)).granted
    assert (await turns.take_turn(leases["kvm-2"], CLUSTER, 1)).granted
    assert not (await turns.take_turn(leases["kvm-3"], CLUSTER, 1)).granted


async def test_many_at_once_never_exceed_the_bound(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    turns = await asyncio.gather(
        *(inventory.maintenances.take_turn(lease, CLUSTER, 1) for lease in leases.values())
    )
    assert sum(turn.granted for turn in turns) == 1


async def test_a_beginning_sets_its_whole_room_aside(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    lease = leases["kvm-1"]
    moves = move("vm-1", "kvm-2"), move("vm-2", "kvm-3")
    for _ in range(2):  # a repetition finds its work done
        await begin(inventory, lease, *moves)
    assert await state(inventory, "kvm-1") is ResourceState.PREPARE_FOR_MAINTENANCE
    reserved = await inventory.reservations.in_cluster(CLUSTER)
    assert [(one.vm, one.destination, one.migrating) for one in reserved] == [
        ("vm-1", "kvm-2", False),
        ("vm-2", "kvm-3", False),
    ]
    # What is only planned is not on its way, and takes no slot.
    assert await inventory.reservations.pointing_at("kvm-2") == []
    assert (await inventory.reservations.total("kvm-2")).memory_mib == 96
    await inventory.reservations.reserve(
        "kvm-3",
        vm_uuid="uuid-vm-1",
        vm="vm-1",
        memory_mib=96,
        vcpus=1,
        source="kvm-1",
        lease=lease,
        memory_free_mib=512,
        cpus_free=8,
        max_parallel_per_host=1,
    )
    assert (await inventory.reservations.total("kvm-2")).memory_mib == 0
    assert (await inventory.reservations.total("kvm-3")).memory_mib == 192
    await inventory.reservations.release_all(lease)
    assert await inventory.reservations.in_cluster(CLUSTER) == []


async def test_a_plan_does_not_count_on_a_host_that_goes_out_itself(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    await begin(inventory, leases["kvm-1"], move("vm-1", "kvm-3"))
    with pytest.raises(PlanOutdated, match="kvm-1 is PrepareForMaintenance"):
        await begin(inventory, leases["kvm-2"], move("vm-2", "kvm-1"))
    assert await state(inventory, "kvm-2") is ResourceState.ENABLED
    reserved = await inventory.reservations.in_cluster(CLUSTER)
    assert [one.vm for one in reserved] == ["vm-1"]


async def test_two_plans_do_not_count_on_the_same_room(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    await begin(inventory, leases["kvm-1"], move("vm-1", "kvm-3"))
    with pytest.raises(PlanOutdated, match="Other VMs are to go to kvm-3"):
        await begin(inventory, leases["kvm-2"], move("vm-2", "kvm-3"))
    await begin(inventory, leases["kvm-2"], move("vm-2", "kvm-3"), seen=frozenset({"uuid-vm-1"}))
    assert await state(inventory, "kvm-2") is ResourceState.PREPARE_FOR_MAINTENANCE


async def test_two_that_begin_at_once_both_ways_leave_one(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    ends = await asyncio.gather(
        begin(inventory, leases["kvm-1"], move("vm-1", "kvm-2")),
        begin(inventory, leases["kvm-2"], move("vm-2", "kvm-1")),
        return_exceptions=True,
    )
    failures = [end for end in ends if end is not None]
    assert len(failures) == 1
    assert isinstance(failures[0], PlanOutdated)


async def test_only_the_holder_begins_and_only_from_service(
    inventory: Inventory, leases: dict[str, LeaseRef]
) -> None:
    lease = leases["kvm-1"]
    stale = lease.model_copy(update={"epoch": lease.epoch - 2})
    with pytest.raises(LeaseLost):
        await begin(inventory, stale)
    with pytest.raises(LeaseLost):
        await inventory.maintenances.take_turn(stale, CLUSTER, 1)
    await begin(inventory, lease)
    with pytest.raises(Conflict, match="kvm-1 is PrepareForMaintenance"):
        await begin(inventory, lease, step="2")
