"""Migrations by TLS in the inventory's eyes: who may, what goes on without us, what runs twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.directory import HostDirectory
from activities.virtualization import VirtualizationActivities, WhereaboutsUnknown
from contracts.errors import Unavailable
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.states import AllocationState, TlsState
from contracts.steps import MigrateVmInput, VmFate
from contracts.vms import GIVEN_BACK, MigrationState, Vm, VmState
from drivers.disks import ShellDisks
from drivers.errors import HostUnreachable, MigrationRefused
from drivers.protocols import HostAccess, MigrationOptions, MigrationProgress
from inventory import Inventory
from inventory.errors import DestinationUnfit
from tests.authorities.conftest import prepared_inventory
from tests.simulation.cluster import Cluster, SimulatedHypervisor, SimulatedShell, Trouble

SOURCE, DESTINATION = "kvm-1", "kvm-2"
OWNER = Owner(workflow_id=f"maintenance/{SOURCE}", first_run_id="run-1")
OPERATION = f"{OWNER.workflow_id}#{OWNER.first_run_id}"


class PeerToPeer(SimulatedHypervisor):
    """libvirt, whose jobs by TLS go on without us.

    Attributes:
        begun: how each migration was asked for.
        loses_us: our connection breaks at the first sight of progress.
        loses_each_other: so does that of the two hosts, at the very end.
        at_the_end: what happens then.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.begun: list[MigrationOptions] = []
        self.followed = 0
        self.loses_us = False
        self.loses_each_other = False
        self.at_the_end: Callable[[], None] = lambda: None
        self._cluster_of = cluster
        self._job: asyncio.Task[None] | None = None

    async def migrate(
        self,
        source: HostAccess,
        destination: HostAccess,
        uuid: str,
        options: MigrationOptions,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        self.begun.append(options)
        job = super().migrate(source, destination, uuid, options, lambda _: None)
        self._job = asyncio.create_task(job)
        if self.loses_us:
            while await self.migration_progress(source, uuid) is None:
                await asyncio.sleep(0.01)
            raise HostUnreachable(f"The connection to {source.name} broke.")
        await self._until_ended()
        if self.loses_each_other:
            here, there = self._cluster_of.host(source), self._cluster_of.host(destination)
            here.vms[uuid] = there.vms[uuid].model_copy(update={"state_reason": GIVEN_BACK})
            self.at_the_end()
            raise MigrationRefused("connection closed due to keepalive timeout")

    async def follow_migration(
        self, source: HostAccess, uuid: str, on_progress: Callable[[MigrationProgress], None]
    ) -> None:
        self.followed += 1
        await self._until_ended()

    async def pause(self, access: HostAccess, uuid: str) -> None:
        vms = self._cluster_of.host(access).vms
        vms[uuid] = vms[uuid].model_copy(update={"state": VmState.PAUSED, "state_reason": "user"})

    async def abort_migration(self, access: HostAccess, uuid: str) -> bool:
        if self._job is None or self._job.done():
            return False
        self._job.cancel()
        await asyncio.wait([self._job])
        return True

    async def _until_ended(self) -> None:
        assert self._job is not None
        try:
            await asyncio.wait([self._job])
        except asyncio.CancelledError:
            self._job.cancel()
            await asyncio.wait([self._job])
            raise
        self._job.result()


class NobodyElse:
    """Holders, none of which runs any more."""

    async def operation_runs(self, operation: str) -> bool:
        return False

    async def release_abandoned(self, *hosts: str) -> None:
        """None has reserved anything."""


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    async with prepared_inventory(tmp_path) as inventory:
        enabled = AllocationState.ENABLED
        await inventory.topology.set_pod_state("pod-1", enabled, actor="test")
        await inventory.topology.set_cluster_state("cluster-1", enabled, actor="test")
        yield inventory


@pytest.fixture
async def cluster(inventory: Inventory) -> Cluster:
    cluster = Cluster(hosts=2, vms=1, seed=1)
    for host, name in zip(cluster.hosts.values(), (SOURCE, DESTINATION), strict=True):
        host.address = (await inventory.hosts.get(name)).address
    return cluster


@pytest.fixture
def hypervisor(cluster: Cluster) -> PeerToPeer:
    return PeerToPeer(cluster)


@pytest.fixture
def activities(
    inventory: Inventory, cluster: Cluster, hypervisor: PeerToPeer
) -> VirtualizationActivities:
    return VirtualizationActivities(
        inventory,
        HostDirectory(inventory),
        hypervisor,
        ShellDisks(SimulatedShell(cluster)),
        NobodyElse(),  # type: ignore[arg-type]
    )


@pytest.fixture
def vm(cluster: Cluster) -> Vm:
    (vm,) = cluster.hosts["sim-1"].vms.values()
    return vm


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    held = await inventory.leases.acquire(SOURCE, LeaseScope.PLACEMENT, OWNER, "test")
    return LeaseRef(host=held.host, scope=held.scope, owner=held.owner, epoch=held.epoch)


async def set_tls(inventory: Inventory, host: str, tls: TlsState) -> None:
    owner = Owner(workflow_id=f"provisioning/{host}", first_run_id="run-2")
    held = await inventory.leases.acquire(host, LeaseScope.TRUST, owner, "test")
    ref = LeaseRef(host=host, scope=held.scope, owner=owner, epoch=held.epoch)
    await inventory.hosts.set_tls(
        host, tls, reason="test", operation="test", actor="test", lease=ref
    )


@pytest.fixture
async def certified(inventory: Inventory) -> None:
    for host in (SOURCE, DESTINATION):
        await set_tls(inventory, host, TlsState.READY)


def request(lease: LeaseRef, vm: Vm) -> MigrateVmInput:
    return MigrateVmInput(
        lease=lease,
        vm=vm.name,
        uuid=vm.uuid,
        destination=DESTINATION,
        memory_mib=vm.memory_mib,
        vcpus=vm.vcpus,
        max_parallel=2,
    )


def slow(cluster: Cluster, seconds: Callable[[], float]) -> None:
    """Migrations take so long."""
    cluster.seconds_for = lambda vm: seconds()  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("source", "destination", "tls"),
    [
        (TlsState.NONE, TlsState.NONE, False),
        (TlsState.READY, TlsState.NONE, False),
        (TlsState.NONE, TlsState.READY, False),
        (TlsState.READY, TlsState.READY, True),
        (TlsState.SECURED, TlsState.READY, True),
        (TlsState.SECURED, TlsState.SECURED, True),
        (TlsState.SECURED, TlsState.NONE, None),
        (TlsState.NONE, TlsState.SECURED, None),
    ],
)
async def test_how_two_hosts_do_it(
    inventory: Inventory,
    activities: VirtualizationActivities,
    hypervisor: PeerToPeer,
    lease: LeaseRef,
    vm: Vm,
    source: TlsState,
    destination: TlsState,
    tls: bool | None,
) -> None:
    """None: not at all, whatever the plan was made from."""
    await set_tls(inventory, SOURCE, source)
    await set_tls(inventory, DESTINATION, destination)
    migration = ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    if tls is None:
        with pytest.raises(DestinationUnfit, match="by TLS only"):
            await migration
        assert hypervisor.begun == []
        assert await inventory.reservations.pointing_at(DESTINATION) == []
        return
    assert (await migration).fate is VmFate.MOVED
    assert [options.tls for options in hypervisor.begun] == [tls]
    (row,) = await inventory.vm_migrations.list(OPERATION)
    assert (row.tls, row.state) == (tls, MigrationState.MOVED)


@pytest.mark.usefixtures("certified")
async def test_the_next_attempt_watches_what_runs_and_begins_nothing(
    inventory: Inventory,
    activities: VirtualizationActivities,
    hypervisor: PeerToPeer,
    lease: LeaseRef,
    vm: Vm,
) -> None:
    hypervisor.loses_us = True
    with pytest.raises(HostUnreachable):
        await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    moved = await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)
    assert (len(hypervisor.begun), hypervisor.followed) == (1, 1)
    assert await inventory.reservations.pointing_at(DESTINATION) == []


@pytest.mark.usefixtures("certified")
async def test_a_cancel_ends_what_an_earlier_attempt_has_begun(
    inventory: Inventory,
    activities: VirtualizationActivities,
    hypervisor: PeerToPeer,
    cluster: Cluster,
    lease: LeaseRef,
    vm: Vm,
) -> None:
    slow(cluster, lambda: 60.0)
    hypervisor.loses_us = True
    with pytest.raises(HostUnreachable):
        await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    environment = ActivityEnvironment()
    again = asyncio.create_task(environment.run(activities.migrate_vm, request(lease, vm)))
    while hypervisor.followed == 0:
        await asyncio.sleep(0.01)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    assert vm.uuid in cluster.hosts["sim-1"].vms
    (row,) = await inventory.vm_migrations.list(OPERATION)
    assert row.state is MigrationState.CANCELED
    assert await inventory.reservations.pointing_at(DESTINATION) == []


@pytest.mark.usefixtures("certified")
async def test_to_another_destination_it_is_begun_anew(
    inventory: Inventory,
    activities: VirtualizationActivities,
    hypervisor: PeerToPeer,
    cluster: Cluster,
    lease: LeaseRef,
    vm: Vm,
) -> None:
    """What runs was begun for another one: it is aborted."""
    slow(cluster, lambda: 60.0 if len(hypervisor.begun) == 1 else 0.1)
    hypervisor.loses_us = True
    with pytest.raises(HostUnreachable):
        await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    await inventory.vm_migrations.start(OPERATION, vm.name, SOURCE, "kvm-3", 1, tls=True)
    hypervisor.loses_us = False
    moved = await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    assert moved.fate is VmFate.MOVED
    assert (len(hypervisor.begun), hypervisor.followed) == (2, 0)


@pytest.mark.usefixtures("certified")
async def test_a_vm_that_runs_twice_is_paused_at_its_source_and_told(
    inventory: Inventory,
    activities: VirtualizationActivities,
    hypervisor: PeerToPeer,
    cluster: Cluster,
    lease: LeaseRef,
    vm: Vm,
) -> None:
    here, there = cluster.hosts["sim-1"], cluster.hosts["sim-2"]
    hypervisor.loses_each_other = True
    for _ in range(2):  # neither does a retry take it for one that is at its source
        with pytest.raises(WhereaboutsUnknown, match=f"runs on {DESTINATION}, and {SOURCE}"):
            await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
        assert here.vms[vm.uuid].state is VmState.PAUSED
        assert there.vms[vm.uuid].state is VmState.RUNNING
    assert len(hypervisor.begun) == 1
    # As the remedy says.
    del here.vms[vm.uuid]
    moved = await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)


@pytest.mark.usefixtures("certified")
async def test_whether_it_runs_twice_is_asked_until_the_destination_tells(
    activities: VirtualizationActivities,
    hypervisor: PeerToPeer,
    cluster: Cluster,
    lease: LeaseRef,
    vm: Vm,
) -> None:
    here, there = cluster.hosts["sim-1"], cluster.hosts["sim-2"]
    hypervisor.loses_each_other = True
    there_before = dict(there.vms)
    hypervisor.at_the_end = lambda: setattr(there, "trouble", Trouble.AWAY)
    with pytest.raises(Unavailable, match="given back"):
        await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    assert here.vms[vm.uuid].state is VmState.RUNNING
    # It never got there, as it turns out: the source's is the only one, and is tried again.
    there.trouble, there.vms = None, there_before
    hypervisor.loses_each_other = False
    moved = await ActivityEnvironment().run(activities.migrate_vm, request(lease, vm))
    assert moved.fate is VmFate.MOVED
