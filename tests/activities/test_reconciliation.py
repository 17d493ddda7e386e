"""Fences that are not as wanted, and what ended operations hold; drivers in memory, no lab."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from temporalio.client import Client

from activities.directory import HostDirectory
from activities.holders import Holders
from activities.reconciliation import ReconciliationActivities
from contracts.host_checks import Look, RoundPlan, SweepInput, Swept
from contracts.host_status import Seen
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.states import AllocationState
from drivers.errors import EpochRefused, HostUnreachable
from drivers.protocols import Fence, FenceState, HostAccess, Hypervisor
from inventory import Inventory, SecretBox
from tests.activities.conftest import open_workflow, ref, reserve, run
from tests.databases import sqlite_database
from tests.inventory.conftest import enabled

OPERATION = "maintenance/kvm-1"


@dataclass
class Hosts:
    """The fences of hosts, as the hosts have them. `hook`: libvirt asks it."""

    fences: dict[str, FenceState] = field(default_factory=dict)
    hook: bool = True
    away: set[str] = field(default_factory=set)

    async def read(self, access: HostAccess) -> FenceState:
        if access.name in self.away:
            raise HostUnreachable(f"{access.name} does not answer.")
        return self.fences.get(access.name, FenceState(None, 0))

    async def put_up(self, access: HostAccess, operation: str, epoch: int) -> None:
        seen = (await self.read(access)).epoch
        if epoch < seen:
            raise EpochRefused(f"{access.name} holds epoch {seen}.")
        self.fences[access.name] = FenceState(operation, epoch)

    async def start_probe(self, access: HostAccess) -> str | None:
        operation = (await self.read(access)).operation
        return f"host is fenced by {operation}" if self.hook and operation else None


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """kvm-1 and kvm-2, `Enabled` and `Up`."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    for number in (1, 2):
        await enabled(inventory, number)
    yield inventory
    await database.close()


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
def activities(inventory: Inventory, hosts: Hosts, client: Client) -> ReconciliationActivities:
    return ReconciliationActivities(
        inventory,
        HostDirectory(inventory),
        cast(Hypervisor, hosts),
        cast(Fence, hosts),
        Holders(inventory, client),
    )


async def reconcile(
    activities: ReconciliationActivities, inventory: Inventory, *, full: str = ""
) -> Swept:
    """One round, in which kvm-1 and kvm-2 have answered, and `full` has its turn."""
    plan = RoundPlan(
        started_at=datetime.now(UTC), interval=1, batch=10, concurrency=5, timeout=5, missed_max=3
    )
    looks = [
        Look(host=host, began_at=datetime.now(UTC), seen=Seen.ANSWERED, in_full=host == full)
        for host in ("kvm-1", "kvm-2")
    ]
    await inventory.host_checks.record(looks, operation="test")
    swept: Swept = await run(activities.reconcile_fences, SweepInput(plan=plan))
    return swept


async def told(inventory: Inventory, host: str = "kvm-1") -> list[tuple[str, str]]:
    events = await inventory.events.list(subject=f"host/{host}")
    return [(e.kind, e.message) for e in reversed(events) if e.kind.startswith("fence.")]


async def lease_of(inventory: Inventory, owner: Owner) -> LeaseRef:
    return ref(await inventory.leases.acquire("kvm-1", LeaseScope.PLACEMENT, owner, "test"))


async def want(inventory: Inventory, generation: int = 4) -> None:
    await inventory.hosts.want_fence("kvm-1", OPERATION, generation)


async def test_a_fence_as_wanted_is_no_news(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts
) -> None:
    await want(inventory)
    hosts.fences["kvm-1"] = FenceState(OPERATION, 4)
    assert (await reconcile(activities, inventory)).changed == ()
    assert await told(inventory) == []


async def test_a_missing_fence_goes_up_again(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts
) -> None:
    await want(inventory)
    assert (await reconcile(activities, inventory)).changed == ("kvm-1",)
    assert hosts.fences["kvm-1"] == FenceState(OPERATION, 4)
    assert (await reconcile(activities, inventory)).changed == ()
    del hosts.fences["kvm-1"]
    await reconcile(activities, inventory)
    line = ("fence.restored", f"put up again: wanted: {OPERATION}; the host has none")
    assert await told(inventory) == [line, line]


async def test_a_host_that_knows_a_later_epoch_is_told_of_once(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts
) -> None:
    await want(inventory)
    hosts.fences["kvm-1"] = FenceState(None, 5)
    for _ in range(3):
        await reconcile(activities, inventory)
    ((kind, message),) = await told(inventory)
    assert kind == "fence.differs"
    assert f"wanted: {OPERATION}; the host has none. kvm-1 holds epoch 5." in message
    hosts.fences["kvm-1"] = FenceState(OPERATION, 4)
    for _ in range(2):
        await reconcile(activities, inventory)
    hosts.fences["kvm-1"] = FenceState(None, 5)
    await reconcile(activities, inventory)
    assert [kind for kind, _ in await told(inventory)] == [
        "fence.differs",
        "fence.agrees",
        "fence.differs",
    ]


async def test_a_fence_that_does_not_hold(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts
) -> None:
    await want(inventory)
    hosts.hook = False
    for _ in range(3):  # the file is there from the second round on
        await reconcile(activities, inventory)
    ((kind, message),) = await told(inventory)
    assert kind == "fence.differs"
    assert "VMs can start" in message
    assert "does not hold" in message
    hosts.hook = True
    for _ in range(2):
        await reconcile(activities, inventory)
    assert (await told(inventory))[1:] == [("fence.agrees", f"as wanted again: {OPERATION}")]


async def test_a_fence_that_nobody_wants_is_told_and_left(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts
) -> None:
    hosts.fences["kvm-1"] = FenceState("maintenance/lost", 2)
    for _ in range(2):
        await reconcile(activities, inventory, full="kvm-1")
    ((kind, message),) = await told(inventory)
    assert kind == "fence.differs"
    assert "fenced by maintenance/lost, and no fence is wanted" in message
    assert "rm /etc/hostler/fence" in message
    assert hosts.fences["kvm-1"].operation == "maintenance/lost"


async def test_a_host_that_was_opened_by_hand_is_told_again(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts
) -> None:
    await inventory.topology.set_zone_state("zone-1", AllocationState.DISABLED, actor="test")
    closing = await inventory.closings.decide("kvm-1", operation="test")
    await inventory.closings.record("kvm-1", closing, operation="test")
    hosts.fences["kvm-1"] = FenceState(None, 1, closed=closing.because)
    await reconcile(activities, inventory, full="kvm-1")
    assert "kvm-1" not in await inventory.hosts.untold()
    hosts.fences["kvm-1"] = FenceState(None, 1)
    await reconcile(activities, inventory)  # not its turn
    assert "kvm-1" not in await inventory.hosts.untold()
    await reconcile(activities, inventory, full="kvm-1")
    assert "kvm-1" in await inventory.hosts.untold()
    events = await inventory.events.list(subject="host/kvm-1")
    (said,) = [event.message for event in events if event.kind == "host.allocation-differs"]
    assert said == "takes new VMs, although it was closed: it is told again"


async def test_a_host_that_is_beyond_hostler_costs_itself_alone(
    activities: ReconciliationActivities,
    inventory: Inventory,
    hosts: Hosts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for host in ("kvm-1", "kvm-2"):
        await inventory.hosts.want_fence(host, OPERATION, 4)
    read = hosts.read

    async def odd(access: HostAccess) -> FenceState:
        if access.name == "kvm-1":
            raise ValueError("not enough values to unpack")
        return await read(access)

    monkeypatch.setattr(hosts, "read", odd)
    assert (await reconcile(activities, inventory)).changed == ("kvm-2",)


async def test_a_host_that_does_not_answer_is_no_difference(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts
) -> None:
    await want(inventory)
    hosts.away = {"kvm-1"}
    assert (await reconcile(activities, inventory)).changed == ()
    assert await told(inventory) == []


async def test_an_operation_that_works_on_its_host_is_left_alone(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts, client: Client
) -> None:
    handle, owner = await open_workflow(client)  # of another kind than a maintenance
    lease = await lease_of(inventory, owner)
    await inventory.hosts.want_fence("kvm-1", OPERATION, lease.epoch)
    await reconcile(activities, inventory)
    assert hosts.fences == {}
    await handle.terminate()
    await reconcile(activities, inventory)
    assert hosts.fences["kvm-1"] == FenceState(OPERATION, lease.epoch)


async def test_a_maintenance_that_waits_does_not_work(
    activities: ReconciliationActivities, inventory: Inventory, hosts: Hosts, client: Client
) -> None:
    """It is open for months, and the fence has to be up all that time."""
    handle = await client.start_workflow(
        "HostMaintenance", id=str(uuid.uuid4()), task_queue="nobody"
    )
    owner = Owner(workflow_id=handle.id, first_run_id=handle.first_execution_run_id or "")
    lease = await lease_of(inventory, owner)
    await inventory.hosts.want_fence("kvm-1", OPERATION, lease.epoch)
    await reconcile(activities, inventory)
    assert hosts.fences["kvm-1"] == FenceState(OPERATION, lease.epoch)
    await handle.terminate()


async def test_what_ended_operations_hold_is_given_back(
    activities: ReconciliationActivities, inventory: Inventory, client: Client
) -> None:
    await inventory.topology.create_cluster("cluster-2", "pod-1", actor="test")
    handle, owner = await open_workflow(client)
    lease = await lease_of(inventory, owner)
    for place in ("set_zone_state", "set_pod_state", "set_cluster_state"):
        name = f"{place.split('_')[1]}-1"
        await getattr(inventory.topology, place)(name, AllocationState.ENABLED, actor="test")
    await reserve(inventory, lease, "kvm-2", "uuid-of-vm-1")
    await inventory.maintenances.take_turn(lease, "cluster-1", 1)
    await run(activities.free_abandoned)
    assert len(await inventory.reservations.touching("kvm-2")) == 1
    assert len(await inventory.maintenances.tickets("cluster-1")) == 1
    await handle.terminate()
    await run(activities.free_abandoned)
    assert await inventory.reservations.touching("kvm-2") == []
    assert await inventory.maintenances.tickets("cluster-1") == []
