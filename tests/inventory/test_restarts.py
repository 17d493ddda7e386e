"""A restart of libvirtd, and migrations: neither begins while the other is under way."""

import asyncio
import dataclasses

import pytest
from sqlmodel import update
from temporalio.testing import ActivityEnvironment

from activities.holders import Holders
from activities.restarts import Restarts
from contracts.errors import LeaseHeld, LeaseLost
from contracts.leases import LeaseRef, LeaseScope, Owner
from drivers.errors import HostBusy, RestartNeeded
from inventory import Inventory
from inventory.errors import SlotsBusy
from inventory.models import ReservationRow
from tests.inventory.conftest import acquire, enabled, ref

PROVISIONING = Owner(workflow_id="provisioning/kvm-2", first_run_id="run-2")


class Operations(Holders):
    """All of them run, but for `ended`."""

    def __init__(self, inventory: Inventory) -> None:
        super().__init__(inventory, None)  # type: ignore[arg-type] # nobody asks Temporal
        self.ended: set[Owner] = set()

    async def runs(self, holder: Owner) -> bool:
        return holder not in self.ended


def environment(attempt: int = 1) -> ActivityEnvironment:
    there = ActivityEnvironment()
    there.info = dataclasses.replace(there.info, attempt=attempt)
    return there


class Site:
    """kvm-1 to kvm-3, and a restart of libvirtd on kvm-2: `restart` begins one, which ends when
    that is `allowed`."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.operations = Operations(inventory)
        self.restarts = Restarts(inventory, self.operations, within=0.5)
        self.needed = True
        self.tried: list[bool] = []
        self.begun, self.allowed = asyncio.Event(), asyncio.Event()

    async def change(self, restart: bool) -> str:
        self.tried.append(restart)
        if self.needed and not restart:
            raise RestartNeeded("libvirtd on kvm-2 has to be restarted.")
        if restart:
            self.begun.set()
            await self.allowed.wait()
        return "done"

    def restart(self, *, attempt: int = 1) -> asyncio.Task[str]:
        lease = LeaseRef(host="kvm-2", scope=LeaseScope.TRUST, owner=PROVISIONING, epoch=2)
        return asyncio.create_task(
            environment(attempt).run(self.restarts.change, lease, self.change)
        )

    async def migrate(self, vm: str, source: str, destination: str) -> LeaseRef:
        """A VM is on its way."""
        owner = Owner(workflow_id=f"maintenance/{source}", first_run_id="run-1")
        lease = ref(await acquire(self.inventory, owner, source))
        await self.inventory.reservations.reserve(
            destination,
            vm_uuid=f"uuid-{vm}",
            vm=vm,
            memory_mib=96,
            vcpus=1,
            source=source,
            lease=lease,
            memory_free_mib=1024,
            cpus_free=8,
            max_parallel_per_host=10,
        )
        return lease

    async def held(self) -> bool:
        return await self.inventory.leases.find("kvm-2", LeaseScope.LIBVIRTD) is not None


@pytest.fixture
async def there(inventory: Inventory) -> Site:
    for number in (1, 2, 3):
        await enabled(inventory, number)
    return Site(inventory)


async def test_what_needs_none_holds_nothing_up(there: Site) -> None:
    there.needed = False
    await there.migrate("vm-1", "kvm-1", "kvm-2")
    assert await there.restart() == "done"
    assert there.tried == [False]


@pytest.mark.parametrize(("source", "destination"), [("kvm-1", "kvm-2"), ("kvm-2", "kvm-3")])
async def test_no_migration_begins_meanwhile(there: Site, source: str, destination: str) -> None:
    restart = there.restart()
    await there.begun.wait()
    with pytest.raises(SlotsBusy, match="libvirtd of kvm-2 is restarted by provisioning/kvm-2"):
        await there.migrate("vm-1", source, destination)
    await there.migrate("vm-2", "kvm-1", "kvm-3")
    there.allowed.set()
    assert await restart == "done"
    assert not await there.held()
    await there.migrate("vm-1", source, destination)


@pytest.mark.parametrize(("source", "destination"), [("kvm-1", "kvm-2"), ("kvm-2", "kvm-3")])
async def test_it_waits_for_those_that_run(there: Site, source: str, destination: str) -> None:
    there.allowed.set()
    lease = await there.migrate("vm-1", source, destination)
    restart = there.restart()
    while not await there.held():
        await asyncio.sleep(0.01)
    # No other one begins; what is under way goes on, also by another attempt.
    with pytest.raises(SlotsBusy):
        await there.migrate("vm-2", "kvm-3", "kvm-2")
    await there.migrate("vm-1", source, destination)
    assert not there.begun.is_set()
    await there.inventory.reservations.release(destination, "uuid-vm-1", lease)
    assert await restart == "done"
    assert there.tried == [False, True]


async def test_not_for_ever(there: Site) -> None:
    await there.migrate("vm-1", "kvm-1", "kvm-2")
    with pytest.raises(HostBusy, match="VMs migrate from or to it: vm-1"):
        await there.restart()
    assert there.tried == [False]
    assert not await there.held()
    await there.migrate("vm-2", "kvm-3", "kvm-2")


async def test_nor_for_one_that_was_left_by_an_operation_that_has_ended(there: Site) -> None:
    there.allowed.set()
    lease = await there.migrate("vm-1", "kvm-1", "kvm-2")
    there.operations.ended.add(lease.owner)
    assert await there.restart() == "done"


async def test_what_is_only_planned_to_come_is_no_migration(there: Site) -> None:
    there.allowed.set()
    lease = await there.migrate("vm-1", "kvm-1", "kvm-2")
    async with there.inventory.database.writing() as session:
        await session.exec(update(ReservationRow).values(migrating=False))
    assert await there.restart() == "done"
    assert lease is not None


async def test_a_restart_that_a_dead_worker_has_left_is_gone_on_with_or_given_up(
    there: Site,
) -> None:
    restart = there.restart()
    await there.begun.wait()
    # Another attempt, by another worker.
    there.allowed.set()
    assert await there.restart(attempt=2) == "done"
    await restart
    await there.inventory.leases.acquire("kvm-2", LeaseScope.LIBVIRTD, PROVISIONING, "restart")
    with pytest.raises(SlotsBusy):
        await there.migrate("vm-1", "kvm-1", "kvm-2")
    await there.operations.release_abandoned("kvm-1", "kvm-2")
    assert await there.held()
    there.operations.ended.add(PROVISIONING)
    await there.operations.release_abandoned("kvm-1", "kvm-2")
    await there.migrate("vm-1", "kvm-1", "kvm-2")


async def test_an_attempt_that_was_lost_after_its_restart_leaves_nothing_held(there: Site) -> None:
    await there.inventory.leases.acquire("kvm-2", LeaseScope.LIBVIRTD, PROVISIONING, "restart")
    there.needed = False
    assert await there.restart(attempt=2) == "done"
    assert there.tried == [False]
    await there.migrate("vm-1", "kvm-1", "kvm-2")


async def test_what_another_operation_holds_stays_its_own(there: Site) -> None:
    other = Owner(workflow_id="cluster-certificates/cluster-1", first_run_id="run-3")
    await there.inventory.leases.acquire("kvm-2", LeaseScope.LIBVIRTD, other, "restart")
    there.needed = False
    assert await there.restart() == "done"
    assert await there.held()


async def test_an_attempt_that_was_given_up_does_nothing_to_the_next_one(there: Site) -> None:
    lease = await there.migrate("vm-1", "kvm-1", "kvm-2")
    former = there.restart()
    while not await there.held():
        await asyncio.sleep(0.01)
    patient = Restarts(there.inventory, there.operations, within=30)
    there.restarts = patient
    following = there.restart(attempt=2)
    with pytest.raises(LeaseLost):
        await former
    assert await there.held()
    await there.inventory.reservations.release("kvm-2", "uuid-vm-1", lease)
    await there.begun.wait()
    with pytest.raises(SlotsBusy):
        await there.migrate("vm-2", "kvm-3", "kvm-2")
    there.allowed.set()
    assert await following == "done"
    assert there.tried == [False, False, True]
    assert not await there.held()


async def test_two_operations_never_restart_at_once(there: Site) -> None:
    restart = there.restart()
    await there.begun.wait()
    other = Owner(workflow_id="cluster-certificates/cluster-1", first_run_id="run-3")
    lease = LeaseRef(host="kvm-2", scope=LeaseScope.TRUST, owner=other, epoch=4)
    with pytest.raises(LeaseHeld, match="provisioning/kvm-2"):
        await environment().run(there.restarts.change, lease, there.change)
    there.allowed.set()
    await restart


async def test_many_migrations_and_restarts_never_meet(there: Site) -> None:
    there.allowed.set()
    under_way: set[str] = set()
    problems: list[str] = []

    async def change(restart: bool) -> None:
        if not restart:
            raise RestartNeeded("libvirtd on kvm-2 has to be restarted.")
        for _ in range(5):
            problems.extend(under_way)
            await asyncio.sleep(0.005)

    async def migrate(number: int) -> None:
        vm = f"vm-{number}"
        while True:
            try:
                lease = await there.migrate(vm, "kvm-1", "kvm-2")
                break
            except SlotsBusy:
                await asyncio.sleep(0.01)
        under_way.add(vm)
        await asyncio.sleep(0.02)
        under_way.discard(vm)
        await there.inventory.reservations.release("kvm-2", f"uuid-{vm}", lease)

    patient = Restarts(there.inventory, there.operations, within=30)
    lease = LeaseRef(host="kvm-2", scope=LeaseScope.TRUST, owner=PROVISIONING, epoch=2)

    async def restart() -> None:
        for _ in range(3):
            await environment().run(patient.change, lease, change)

    await asyncio.gather(restart(), *(migrate(number) for number in range(8)))
    assert problems == []
