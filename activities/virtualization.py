"""VMs on hosts: survey, live migration, shutdown, and putting right what a dead client left.

Every step looks at the world first. After a crash the next attempt finds a VM in one of these
places, and each has one way on:

- runs elsewhere, gone from the source: done;
- runs elsewhere, paused by the migration at the source: the client died between
  libvirt's Finish and Confirm; the leftover at the source is discarded;
- paused by the migration at the source, nowhere else: the client died before Finish; it resumes;
- runs at the source: nothing happened yet, or libvirt aborted the job; the migration starts.

One by TLS goes on without its client (drivers/libvirt.py): the next attempt finds it running, and
watches it to its end. Such a one may give the VM back to its source though it runs at the
destination, when only the answer got lost. There is no way on from that but a person's: the VM is
paused at the source, where it has run for the shorter time, and somebody is asked.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from temporalio import activity

from activities.capacity import Capacities, Free, migration_address, with_shared_storage
from activities.directory import HostDirectory
from activities.execution import ended, uninterrupted
from activities.holders import Holders
from contracts.errors import Conflict, Failed, HostlerError, NotFound, Unavailable
from contracts.leases import LeaseRef
from contracts.maintenance import MigrationMode
from contracts.settings import (
    MIGRATION_BANDWIDTH,
    MIGRATION_CONVERGENCE_TIMEOUT,
    MIGRATION_FOREIGN_TIMEOUT,
    MIGRATION_NETWORK,
    ResolvedSettings,
)
from contracts.states import HostStatus, ResourceState, TlsState
from contracts.steps import (
    STATES_OF_FATES,
    MigrateVmInput,
    MigrateVmResult,
    ShutDownVmInput,
    StartVmInput,
    VmFate,
)
from contracts.vms import ACTIVE_VM_STATES, GIVEN_BACK, MigrationState, Vm, VmState
from drivers.errors import HypervisorFailed
from drivers.protocols import (
    DiskImage,
    HostAccess,
    Hypervisor,
    LocalDisks,
    MigrationOptions,
    MigrationProgress,
)
from inventory import Inventory
from inventory.errors import DestinationFull, DestinationUnfit, SlotsBusy
from inventory.vm_migrations import MigrationFigures

T = TypeVar("T")

_LOOK_AGAIN_S = 5.0
_SLOT_AGAIN_S = 1.0
_MIB_PER_GIB = 1024
_NEVER_A_DESTINATION = frozenset(
    {ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED}
)


@dataclass(frozen=True)
class _Found:
    """Where a VM is. `host`: None when it is nowhere in the cluster."""

    fate: VmFate
    host: str | None


@dataclass
class _Elsewhere:
    """What the other hosts say of a VM: on which it runs, on which it is only defined, and which
    can't tell."""

    running: str | None = None
    stopped: str | None = None
    unclear: list[str] = field(default_factory=list)


class DestinationUnreachable(Conflict):
    """The destination did not answer: another one may."""


class NotConverging(Conflict):
    """The guest writes its memory faster than the migration carries it over, beyond the budget.
    It runs on at the source."""


class WhereaboutsUnknown(Failed):
    """Which half of an interrupted migration is the newer one can't be told from outside."""


class HasLocalDisks(Conflict):
    """Disks of the VM would stay behind."""


class MigratedByOthers(Conflict):
    """A migration that Hostler has not started runs for longer than it is waited for."""


class ShutdownTimedOut(Failed):
    """The guest did not power off in time; it runs on."""


class VirtualizationActivities:
    """What is done to VMs."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        hypervisor: Hypervisor,
        disks: LocalDisks,
        holders: Holders,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._hypervisor = hypervisor
        self._disks = disks
        self._holders = holders
        self._capacities = Capacities(directory, hypervisor)

    @activity.defn(name="migrate_vm")
    async def migrate_vm(self, request: MigrateVmInput) -> MigrateVmResult:
        """Bring a VM to the destination, live.

        Raises MigrationRefused, MigrationAborted, DestinationFull, DestinationUnfit,
        DestinationUnreachable, DiskInTheWay, HasLocalDisks (not retryable: the workflow chooses
        another destination), NotConverging (it escalates), MigratedByOthers, WhereaboutsUnknown
        (it asks), HostUnreachable (retryable), LeaseLost.
        """
        lease = request.lease
        await self._inventory.leases.verify(lease)
        source = await self._directory.access(request.source or lease.host)
        destination = await self._directory.access(request.destination)
        host = await self._inventory.hosts.get(request.destination)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        try:
            await self._outwait_others(lease, source, request, settings)
            goes_on = await self._goes_on(lease, source, request)
            started = None if goes_on else time.monotonic()
            if not goes_on:
                found = await self._settle(lease, source, request.uuid, request.destination)
                if found.fate is not VmFate.AT_SOURCE:
                    return await self._arrived(request, source, found, None)
                await self._expect_absent(destination, request.uuid)
                await self._reserve(request, source, settings)
            try:
                if goes_on:
                    await self._watch_over(
                        request,
                        source,
                        settings,
                        lambda see: self._hypervisor.follow_migration(source, request.uuid, see),
                    )
                else:
                    await self._migrate(request, source, destination, settings)
            except asyncio.CancelledError:
                found = await uninterrupted(
                    self._settle(lease, source, request.uuid, request.destination)
                )
                if found.fate is VmFate.AT_SOURCE:
                    raise
            except (NotConverging, HypervisorFailed):
                # libvirt's word on how it ended is not the last one.
                found = await self._settle(lease, source, request.uuid, request.destination)
                if found.fate is VmFate.AT_SOURCE:
                    raise
            else:
                found = await self._settle(lease, source, request.uuid, request.destination)
            if found.fate is VmFate.AT_SOURCE:
                raise Failed(f"libvirt reported success, yet {request.vm} is at its source.")
            seconds = None if started is None else time.monotonic() - started
            return await self._arrived(request, source, found, seconds)
        except asyncio.CancelledError:
            await uninterrupted(
                self._stayed(request, destination, MigrationState.CANCELED, "cancelled")
            )
            raise
        except (Unavailable, WhereaboutsUnknown):
            # Nobody knows yet how it ended: the next attempt looks, and until then what is
            # recorded says where the VM may be.
            raise
        except HostlerError as error:
            await self._stayed(request, destination, MigrationState.FAILED, str(error))
            raise

    @activity.defn(name="settle_migrations")
    async def settle_migrations(self, lease: LeaseRef) -> None:
        """Leave no migration of the host's VMs half done: abort jobs that run without their
        client, discard leftovers of VMs that run elsewhere, resume those that run nowhere else.

        Room that was reserved for them, also by a predecessor, is given back."""
        source = await self._directory.access(lease.host)
        for vm in await self._hypervisor.list_vms(source):
            if vm.incoming:  # another operation's
                continue
            if await self._moved_by_others(lease, source, vm.uuid, vm.name):
                continue
            await self._inventory.leases.verify(lease)
            found = await self._settle(lease, source, vm.uuid)
            if found.fate is VmFate.AT_SOURCE:
                await self._discard_copies(lease, source, vm)
            elif found.fate is VmFate.MOVED and found.host is not None:
                await self._keep_copies(vm.uuid, vm.name, lease, source, found.host)
        await self._close_migrations(lease)
        await self._inventory.reservations.release_all(lease)

    @activity.defn(name="shut_down_vm")
    async def shut_down_vm(self, request: ShutDownVmInput) -> MigrateVmResult:
        """Power a VM off by ACPI, as somebody asked. Never by force. Raises ShutdownTimedOut."""
        # A guest that has heard the button powers off whatever is cancelled meanwhile, and
        # whoever starts it again must get to know.
        pressing = asyncio.ensure_future(self._press_until_off(request))
        await ended(pressing)
        return pressing.result()

    async def _press_until_off(self, request: ShutDownVmInput) -> MigrateVmResult:
        access = await self._directory.access(request.lease.host)
        deadline = time.monotonic() + request.timeout_s
        while True:
            vm = await self._hypervisor.find_vm(access, request.uuid)
            if vm is None or vm.state not in ACTIVE_VM_STATES:
                fate = VmFate.GONE if vm is None else VmFate.SHUT_OFF
                return MigrateVmResult(vm=request.vm, fate=fate, host=None)
            if time.monotonic() > deadline:
                raise ShutdownTimedOut(
                    f"{request.vm} did not power off within {request.timeout_s:.0f} s.",
                    remedy="Shut it down from inside the guest, or answer with another action.",
                )
            await self._inventory.leases.verify(request.lease)
            # Again and again: a guest that is still booting misses the first press.
            await self._hypervisor.shut_down(access, request.uuid)
            await asyncio.sleep(_LOOK_AGAIN_S)

    @activity.defn(name="start_vm")
    async def start_vm(self, request: StartVmInput) -> MigrateVmResult:
        """Start a VM that was shut down for the operation, unless it runs somewhere already.

        Raises Failed if the host does not have it any more, HypervisorFailed if it does not start.
        """
        access = await self._directory.access(request.lease.host)
        here = await self._hypervisor.find_vm(access, request.uuid)
        if here is None or here.state not in ACTIVE_VM_STATES:
            there = await self._look_elsewhere(request.lease.host, request.uuid, here)
            if there.running is not None:
                return MigrateVmResult(vm=request.vm, fate=VmFate.MOVED, host=there.running)
            if there.unclear:
                raise Failed(
                    f"{request.vm} was not started: it may run on {', '.join(there.unclear)}, "
                    "which can't tell.",
                    remedy="Start it by hand once that is known.",
                )
            if here is None:
                raise Failed(
                    f"{request.vm} was not started: {request.lease.host} does not have it any more."
                )
            await self._inventory.leases.verify(request.lease)
            await self._hypervisor.start(access, request.uuid)
        return MigrateVmResult(vm=request.vm, fate=VmFate.AT_SOURCE, host=request.lease.host)

    # --- room -----------------------------------------------------------------------------------

    async def _reserve(
        self, request: MigrateVmInput, source: HostAccess, settings: ResolvedSettings
    ) -> None:
        """Wait for a slot at both ends, and set room aside; nothing that an ended operation has
        left stands in the way. Raises DestinationFull and the like."""
        swept = False
        while True:
            host = await self._inventory.hosts.get(request.destination)
            free = await _at_destination(request.destination, self._capacities.free(host, settings))
            try:
                await self._try_to_reserve(request, source, free)
            except SlotsBusy:
                await self._holders.release_abandoned(source.name, request.destination)
                await asyncio.sleep(_SLOT_AGAIN_S)
            except DestinationFull:
                if swept:
                    raise
                swept = True
                await self._holders.release_abandoned(source.name, request.destination)
            else:
                return

    async def _try_to_reserve(
        self, request: MigrateVmInput, source: HostAccess, free: Free
    ) -> None:
        await self._inventory.reservations.reserve(
            request.destination,
            vm_uuid=request.uuid,
            vm=request.vm,
            memory_mib=request.memory_mib,
            vcpus=request.vcpus,
            source=source.name,
            lease=request.lease,
            memory_free_mib=free.memory_mib,
            cpus_free=free.cpus,
            max_parallel_per_host=request.max_parallel,
            counted=free.counted,
        )

    # --- the migration itself -------------------------------------------------------------------

    async def _migrate(
        self,
        request: MigrateVmInput,
        source: HostAccess,
        destination: HostAccess,
        settings: ResolvedSettings,
    ) -> None:
        """Raises NotConverging when its budget is used up."""
        tls = await self._by_tls(source.name, destination.name)
        await self._inventory.vm_migrations.start(
            _operation(request.lease),
            request.vm,
            source.name,
            request.destination,
            activity.info().attempt,
            tls=tls,
        )
        await self._inventory.leases.verify(request.lease)
        vm = await self._hypervisor.find_vm(source, request.uuid)
        vm = None if vm is None else with_shared_storage(vm, settings)
        if vm is not None and vm.local_disks and not request.copy_storage:
            raise HasLocalDisks(
                f"{request.vm} has local disks that would stay behind: {', '.join(vm.local_disks)}."
            )
        copies = await self._copies(request.uuid, source, settings) if request.copy_storage else []
        for image in copies:
            await self._disks.prepare(destination, image, _disk_owner(request.uuid))
        options = MigrationOptions(
            uri_address=await self._migration_address(destination, settings),
            bandwidth_mib_s=settings[MIGRATION_BANDWIDTH],
            auto_converge=request.mode is MigrationMode.AUTO_CONVERGE,
            trust_shared_storage=vm is not None and bool(vm.shared_disks),
            copy_disks=tuple(image.target for image in copies),
            tls=tls,
        )
        await self._watch_over(
            request,
            source,
            settings,
            lambda see: self._hypervisor.migrate(source, destination, request.uuid, options, see),
        )

    async def _by_tls(self, source: str, destination: str) -> bool:
        """How the two do it. Raises DestinationUnfit if one takes or gives VMs by TLS only, and the
        other can't."""
        here = (await self._inventory.hosts.get(source)).tls
        there = (await self._inventory.hosts.get(destination)).tls
        if here.can and there.can:
            return True
        if TlsState.SECURED in (here, there):
            secured, other = (
                (source, destination) if here is TlsState.SECURED else (destination, source)
            )
            raise DestinationUnfit(
                f"{secured} takes and gives VMs by TLS only, and {other} has no certificates.",
                remedy=f"hostler cert provision {other}",
            )
        return False

    async def _goes_on(self, lease: LeaseRef, source: HostAccess, request: MigrateVmInput) -> bool:
        """Whether an earlier attempt has begun just this migration, and it runs."""
        begun = await self._inventory.vm_migrations.unfinished_by_tls(source.name, request.vm)
        return (
            begun.get(_operation(lease)) == request.destination
            and await self._hypervisor.migration_progress(source, request.uuid) is not None
        )

    async def _watch_over(
        self,
        request: MigrateVmInput,
        source: HostAccess,
        settings: ResolvedSettings,
        migration: Callable[[Callable[[MigrationProgress], None]], Coroutine[None, None, None]],
    ) -> None:
        """`migration`, which tells of its progress, with what is recorded of it, within its time.
        Raises NotConverging when that is used up."""
        recorder = _ProgressRecorder(self._inventory, _operation(request.lease), request.vm)
        async with recorder:
            job = asyncio.create_task(migration(recorder.see))
            pace = asyncio.create_task(self._pace(request, source, settings, recorder))
            try:
                await asyncio.wait([job, pace], return_when=asyncio.FIRST_COMPLETED)
            finally:
                pace.cancel()
                # The driver aborts the migration, if it still runs, and waits for its end.
                job.cancel()
                await ended(job)
                await ended(pace)
        if not pace.cancelled() and pace.exception() is not None and job.cancelled():
            pace.result()
        await job

    async def _pace(
        self,
        request: MigrateVmInput,
        source: HostAccess,
        settings: ResolvedSettings,
        recorder: "_ProgressRecorder",
    ) -> None:
        """Watch over a migration's time: it has a budget once its first pass is over. Raises
        NotConverging when that is used up; returns never."""
        gib = max(1.0, request.memory_mib / _MIB_PER_GIB)
        budget = settings[MIGRATION_CONVERGENCE_TIMEOUT] * gib
        passed: float | None = None
        paused = False
        while True:
            await recorder.next_sight()
            seen = recorder.seen
            if seen is None or seen.iteration <= 1:
                continue
            if request.mode is MigrationMode.PAUSED and not paused:
                paused = await self._pause(request, source)
            passed = passed or time.monotonic()
            bounded = request.mode in (MigrationMode.PLAIN, MigrationMode.AUTO_CONVERGE)
            if bounded and time.monotonic() - passed > budget:
                raise NotConverging(
                    f"{request.vm} writes {seen.dirty_rate_mib_s:.0f} MiB/s of its memory while "
                    f"{seen.rate_mib_s:.0f} MiB/s are carried over; after {seen.iteration} passes "
                    f"and {budget:.0f} s more than the first one, {seen.remaining_mib:.0f} MiB are "
                    "left.",
                    remedy="See migration.bandwidth and migration.convergence.timeout, or let it "
                    "wait, or pause it to finish.",
                )

    async def _pause(self, request: MigrateVmInput, source: HostAccess) -> bool:
        """Pause the guest, so that its memory comes to rest; False: to be tried again."""
        try:
            await self._inventory.leases.verify(request.lease)
            await self._hypervisor.suspend(source, request.uuid)
        except Unavailable as error:
            activity.logger.warning("%s is not paused yet: %s", request.vm, error)
            return False
        return True

    async def _migration_address(self, destination: HostAccess, settings: ResolvedSettings) -> str:
        network = settings[MIGRATION_NETWORK]
        if network is None:
            return destination.address
        there = await _at_destination(destination.name, self._hypervisor.environment(destination))
        address = migration_address(there.addresses, network)
        if address is None:
            raise DestinationUnfit(
                f"{destination.name} has no address in the migration network {network}."
            )
        return address

    # --- migrations of others -------------------------------------------------------------------

    async def _outwait_others(
        self,
        lease: LeaseRef,
        source: HostAccess,
        request: MigrateVmInput,
        settings: ResolvedSettings,
    ) -> None:
        """Somebody who moves the VM with virsh does what we are here for. Raises
        MigratedByOthers if it takes too long."""
        deadline = time.monotonic() + settings[MIGRATION_FOREIGN_TIMEOUT]
        while await self._moved_by_others(lease, source, request.uuid, request.vm):
            if time.monotonic() > deadline:
                raise MigratedByOthers(
                    f"A migration of {request.vm} that this operation has not started still runs "
                    f"after {settings[MIGRATION_FOREIGN_TIMEOUT]} s.",
                    remedy=f"See `virsh domjobinfo {request.vm}` on {source.name}, and "
                    f"`virsh domjobabort {request.vm}` to end it.",
                )
            await asyncio.sleep(_SLOT_AGAIN_S)

    async def _moved_by_others(
        self, lease: LeaseRef, source: HostAccess, uuid: str, vm: str
    ) -> bool:
        """Whether a migration runs that is not what this operation, or an ended one, has left."""
        if await self._hypervisor.migration_progress(source, uuid) is None:
            return False
        for operation in await self._inventory.vm_migrations.unfinished(source.name, vm):
            if operation == _operation(lease) or not await self._holders.operation_runs(operation):
                return False
        return True

    # --- disks that move along ------------------------------------------------------------------

    async def _copies(
        self, uuid: str, host: HostAccess, settings: ResolvedSettings
    ) -> list[DiskImage]:
        """The disks that the VM takes with it."""
        vm = await self._hypervisor.find_vm(host, uuid)
        if vm is None:
            return []
        local = with_shared_storage(vm, settings).local_disks
        return await self._hypervisor.disks(host, uuid, local) if local else []

    async def _keep_copies(
        self, uuid: str, vm: str, lease: LeaseRef, source: HostAccess, host: str
    ) -> None:
        """The VM runs on `host`: of the disks that were copied there, what is left at the source is
        an old copy. The mark at the copy is the proof that it is one, and goes last."""
        access = await self._directory.access(host)
        settings = await self._inventory.settings.resolve(
            cluster=(await self._inventory.hosts.get(host)).cluster
        )
        for image in await self._copies(uuid, access, settings):
            if not await self._disks.is_copy(access, image.path, _disk_owner(uuid)):
                continue
            try:
                await self._disks.retire(source, image.path)
            except Unavailable:
                raise
            except HostlerError as error:
                # The VM has moved; what is left behind is somebody's to clear up, not a failure.
                await self._inventory.events.record(
                    "vm.disk_left",
                    f"host/{source.name}",
                    f"{vm} runs on {host}; its old disk {image.path} stays: {error}",
                    operation=lease.owner.workflow_id,
                    actor=lease.owner.workflow_id,
                )
            await self._disks.keep(access, image.path)

    async def _discard_copies(self, lease: LeaseRef, source: HostAccess, vm: Vm) -> None:
        """What an attempt that was cut off has begun to copy."""
        if not vm.local_disks:
            return
        begun = await self._inventory.vm_migrations.unfinished(source.name, vm.name)
        destination = begun.get(_operation(lease))
        if destination is not None:
            await self._discard(await self._directory.access(destination), vm)

    async def _close_migrations(self, lease: LeaseRef) -> None:
        """None of this operation's, or of one that has ended, is under way any more."""
        await self._inventory.leases.verify(lease)
        over = [
            operation
            for operation in await self._inventory.vm_migrations.open_operations(lease.host)
            if operation == _operation(lease) or not await self._holders.operation_runs(operation)
        ]
        await self._inventory.vm_migrations.close(lease.host, over)

    async def _discard(self, destination: HostAccess, vm: Vm) -> None:
        """A destination that is away keeps its half; the next attempt there goes on with that."""
        try:
            for path in vm.local_disks:
                await self._disks.discard(destination, path, _disk_owner(vm.uuid))
        except Unavailable as error:
            activity.logger.warning(
                "%s may keep half a copy of the disks of %s: %s", destination.name, vm.name, error
            )

    # --- where it is ----------------------------------------------------------------------------

    async def _settle(
        self, lease: LeaseRef, source: HostAccess, uuid: str, destination: str | None = None
    ) -> "_Found":
        """Where the VM is, after putting right what an earlier attempt left half done.

        `destination`: where it was last on its way to, if that is known.

        Raises Unavailable as long as a host that may run the VM does not answer: a VM that
        seems paused or gone may run there, and must not run twice. Raises Failed when it can't be
        told whether its memory here is still the newest.
        """
        if await self._hypervisor.migration_progress(source, uuid) is not None:
            await self._hypervisor.abort_migration(source, uuid)
        here = await self._hypervisor.find_vm(source, uuid)
        if here is not None and here.incoming:
            raise Unavailable(f"{here.name} is still on its way to {source.name}.")
        if here is not None and here.runs:
            await self._expect_nowhere_else(source, here)
            return _Found(VmFate.AT_SOURCE, source.name)
        there = await self._look_elsewhere(source.name, uuid, here, destination)
        if there.running is not None:
            if here is not None:
                await self._inventory.leases.verify(lease)
                await self._hypervisor.discard_migrated(source, uuid)
            return _Found(VmFate.MOVED, there.running)
        if there.unclear:
            raise Unavailable(
                f"A VM that left {source.name} may be on {', '.join(there.unclear)}, which can't "
                "tell yet.",
                remedy="Bring these hosts back; the operation goes on by itself.",
            )
        if here is None or here.state not in ACTIVE_VM_STATES:
            place = source.name if here is not None else there.stopped
            return _Found(VmFate.GONE if place is None else VmFate.SHUT_OFF, place)
        if there.stopped is not None:
            raise WhereaboutsUnknown(
                f"{here.name} is paused on {source.name} by a migration that was cut off, and "
                f"defined but not running on {there.stopped}: if it ran there since, what it "
                "left in memory here is out of date, and to go on from it would damage its disks.",
                remedy=f"If it ran there, `virsh destroy` and `virsh undefine` it on "
                f"{source.name}; if it did not, `virsh undefine` it on {there.stopped}. "
                "Then try again.",
            )
        await self._inventory.leases.verify(lease)
        await self._hypervisor.resume(source, uuid)
        return _Found(VmFate.AT_SOURCE, source.name)

    async def _expect_nowhere_else(self, source: HostAccess, here: Vm) -> None:
        """It runs at the source; a migration by TLS may have given it back though it runs at its
        destination. Raises Unavailable if that does not tell, WhereaboutsUnknown if it is so."""
        if here.state is not VmState.PAUSED and here.state_reason != GIVEN_BACK:
            return
        begun = await self._inventory.vm_migrations.unfinished_by_tls(source.name, here.name)
        for destination in sorted({*begun.values()}):
            there = await self._look_at(destination, here.uuid)
            if isinstance(there, NotFound) and not await self._lost(source.name, {destination}):
                continue
            if isinstance(there, HostlerError):
                raise Unavailable(
                    f"{here.name} was given back to {source.name} when its migration to "
                    f"{destination} failed; whether it runs there, too, {destination} can't tell "
                    "yet.",
                    remedy=f"Bring {destination} back; the operation goes on by itself.",
                )
            if _runs(there):
                await self._hypervisor.pause(source, here.uuid)
                raise WhereaboutsUnknown(
                    f"{here.name} runs on {destination}, and {source.name} has let it run on, too, "
                    f"since they lost each other at the end of its migration. On {source.name}, "
                    "where it has run for a shorter time, it is paused.",
                    remedy=f"Unless it has done something there that must not be lost: `virsh "
                    f"destroy {here.name}` and `virsh undefine {here.name}` on {source.name}. "
                    "Check its disks: both have written to them. Then try again.",
                )

    async def _look_elsewhere(
        self, source: str, uuid: str, here: Vm | None, destination: str | None = None
    ) -> "_Elsewhere":
        """Ask every other host of the cluster for the VM, unless it runs at `destination`.

        A host that has been emptied for maintenance may be away, unless the VM was last on its way
        to just that one.
        """
        if destination is not None and _runs(await self._look_at(destination, uuid)):
            return _Elsewhere(running=destination)
        host = await self._inventory.hosts.get(source)
        others = [
            other
            for other in await self._inventory.hosts.list(cluster=host.cluster)
            if other.name != source and other.resource_state not in _NEVER_A_DESTINATION
        ]
        suspects: set[str] = set()
        if here is not None:
            begun = await self._inventory.vm_migrations.unfinished(source, here.name)
            suspects = set(begun.values())
        answers = await asyncio.gather(*(self._look_at(other.name, uuid) for other in others))
        found = _Elsewhere()
        for other, vm in zip(others, answers, strict=True):
            if isinstance(vm, HostlerError):
                # One that was down when it was taken out of service was never emptied.
                emptied = (
                    other.resource_state is ResourceState.MAINTENANCE
                    and other.status is not HostStatus.DOWN
                )
                if not emptied or other.name in suspects:
                    found.unclear.append(other.name)
            elif vm is None:
                continue
            elif vm.paused_by_migration:
                found.unclear.append(other.name)
            elif vm.state in ACTIVE_VM_STATES:
                found.running = other.name
            else:
                found.stopped = other.name
        found.unclear += await self._lost(source, suspects - {other.name for other in others})
        return found

    async def _lost(self, source: str, suspects: set[str]) -> list[str]:
        """Those of `suspects` that were removed without an answer: nobody knows what runs there."""
        if not suspects:
            return []
        forced = {
            removed.name for removed in await self._inventory.removed_hosts.list() if removed.forced
        }
        return [
            f"{name} (removed while it did not answer; if it is certain that the VM does not run "
            f"there, `virsh resume` it on {source})"
            for name in sorted(suspects & forced)
        ]

    async def _look_at(self, host: str, uuid: str) -> Vm | HostlerError | None:
        try:
            return await self._hypervisor.find_vm(await self._directory.access(host), uuid)
        except (Unavailable, Failed, NotFound) as error:  # it may have just been removed
            activity.logger.info("%s does not tell of %s: %s", host, uuid, error)
            return error

    async def _expect_absent(self, destination: HostAccess, uuid: str) -> None:
        """An aborted incoming migration must be gone before the destination is used again."""
        left = await _at_destination(destination.name, self._hypervisor.find_vm(destination, uuid))
        if left is not None and left.state in ACTIVE_VM_STATES:
            raise Unavailable(f"{destination.name} still ends an earlier migration of {left.name}.")

    async def _arrived(
        self,
        request: MigrateVmInput,
        source: HostAccess,
        found: "_Found",
        seconds: float | None,
    ) -> MigrateVmResult:
        if request.copy_storage and found.fate is VmFate.MOVED and found.host is not None:
            await self._keep_copies(request.uuid, request.vm, request.lease, source, found.host)
        await self._departed(request, STATES_OF_FATES[found.fate], None)
        return MigrateVmResult(
            vm=request.vm,
            fate=found.fate,
            host=found.host if found.fate is VmFate.MOVED else None,
            seconds=None if seconds is None else round(seconds, 2),
        )

    async def _stayed(
        self,
        request: MigrateVmInput,
        destination: HostAccess,
        state: MigrationState,
        error: str,
    ) -> None:
        """What is recorded of it is closed only if it surely runs at its source: until then it says
        where the VM may be, and a copy of its disks may be the newer one."""
        source = await self._directory.access(request.source or request.lease.host)
        vm = await self._hypervisor.find_vm(source, request.uuid)
        if vm is None or not vm.runs:
            return
        try:
            await self._expect_nowhere_else(source, vm)
        except (Unavailable, WhereaboutsUnknown) as unclear:
            activity.logger.warning("%s", unclear)
            return
        if request.copy_storage:
            await self._discard(destination, vm)
        await self._departed(request, state, error)

    async def _departed(
        self, request: MigrateVmInput, state: MigrationState, error: str | None
    ) -> None:
        operation = _operation(request.lease)
        await self._inventory.vm_migrations.finish(operation, request.vm, state, error)
        await self._inventory.reservations.release(request.destination, request.uuid, request.lease)


class _ProgressRecorder:
    """Writes a migration's progress to the inventory: after 5 s and 5 %, whichever is later."""

    def __init__(self, inventory: Inventory, operation: str, vm: str) -> None:
        self._inventory = inventory
        self._operation = operation
        self._vm = vm
        self.seen: MigrationProgress | None = None
        self._sight = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def see(self, progress: MigrationProgress) -> None:
        """Take note; called by the driver about once a second."""
        self.seen = progress
        self._sight.set()
        activity.heartbeat(progress.percent)

    async def next_sight(self) -> None:
        """Returns when there is news."""
        self._sight.clear()
        await self._sight.wait()

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._write())

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _write(self) -> None:
        written: tuple[int, int] | None = None
        while True:
            await asyncio.sleep(5)
            seen = self.seen
            if seen is None:
                continue
            # A guest that writes as fast as is copied makes passes, not per cent.
            if written is not None and seen.iteration == written[0] and seen.percent < written[1]:
                continue
            try:
                await self._inventory.vm_migrations.progress(
                    self._operation, self._vm, _figures(seen)
                )
            except Unavailable as error:
                # The database may be away; the migration is not to suffer from that.
                activity.logger.warning("progress of %s not recorded: %s", self._vm, error)
            else:
                written = seen.iteration, seen.percent + 5


def _figures(seen: MigrationProgress) -> MigrationFigures:
    end = None
    if seen.expected_s is not None:
        end = datetime.now(UTC) + timedelta(seconds=seen.expected_s)
    return MigrationFigures(
        percent=seen.percent,
        rate_mib_s=seen.rate_mib_s,
        remaining_mib=seen.remaining_mib,
        dirty_rate_mib_s=seen.dirty_rate_mib_s,
        iteration=seen.iteration,
        throttle_percent=seen.throttle_percent,
        expected_end_at=end,
    )


def _disk_owner(uuid: str) -> str:
    """Who a half-copied disk belongs to: whichever operation moves that VM."""
    return f"vm {uuid}"


def _operation(lease: LeaseRef) -> str:
    """The key of an operation's rows: one chain of runs."""
    return f"{lease.owner.workflow_id}#{lease.owner.first_run_id}"


def _runs(vm: Vm | HostlerError | None) -> bool:
    return isinstance(vm, Vm) and vm.runs


async def _at_destination(host: str, call: Awaitable[T]) -> T:
    """Await `call`; a destination that does not answer is a reason to take another one."""
    try:
        return await call
    except Unavailable as error:
        raise DestinationUnreachable(f"{host} does not answer: {error.message}") from error
