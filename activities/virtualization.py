"""VMs on hosts: survey, live migration, shutdown, and putting right what a dead client left.

Every step looks at the world first. After a crash the next attempt finds a VM in one of these
places, and each has one way on:

- runs elsewhere, gone from the source: done;
- runs elsewhere, paused by the migration at the source: the client died between
  libvirt's Finish and Confirm; the leftover at the source is discarded;
- paused by the migration at the source, nowhere else: the client died before Finish; it resumes;
- runs at the source: nothing happened yet, or libvirt aborted the job; the migration starts.
"""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import beating, uninterrupted
from activities.holders import Holders
from contracts.errors import Conflict, Failed, HostlerError, Unavailable
from contracts.evacuation import Candidate, Survey
from contracts.hosts import Host, HostFacts
from contracts.leases import LeaseRef
from contracts.states import AllocationState, HostStatus, ResourceState
from contracts.steps import (
    HostRef,
    MigrateVmInput,
    MigrateVmResult,
    RemainingVms,
    ShutDownVmInput,
    SurveyInput,
    VmFate,
)
from contracts.vms import MigrationState, Vm, VmState
from drivers.protocols import HostAccess, Hypervisor, MigrationOptions, MigrationProgress
from inventory import Inventory
from inventory.errors import DestinationFull, SlotsBusy

T = TypeVar("T")

_WAIT_AT_MOST_S = 3600.0
_LOOK_AGAIN_S = 5.0
_NEVER_A_DESTINATION = frozenset(
    {ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED}
)
_ACTIVE = frozenset(VmState) - {VmState.SHUT_OFF, VmState.NO_STATE, VmState.CRASHED}


@dataclass(frozen=True)
class MigrationSettings:
    """A worker's bounds. `max_parallel`: live migrations at a time from or to one host;
    `cpu_overcommit`: virtual CPUs per CPU of a host without `capacity_cpus`;
    `bandwidth_mib_s`: of one migration, None for libvirt's default."""

    max_parallel: int = 2
    cpu_overcommit: float = 4.0
    bandwidth_mib_s: int | None = None


_ENDS = {
    VmFate.MOVED: MigrationState.MOVED,
    VmFate.SHUT_OFF: MigrationState.SHUT_OFF,
    VmFate.GONE: MigrationState.GONE,
}


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


class ShutdownTimedOut(Failed):
    """The guest did not power off in time; it runs on."""


class VirtualizationActivities:
    """What is done to VMs."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        hypervisor: Hypervisor,
        holders: Holders,
        settings: MigrationSettings,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._hypervisor = hypervisor
        self._holders = holders
        self._settings = settings

    @activity.defn(name="read_facts")
    async def read_facts(self, lease: LeaseRef) -> HostFacts:
        """Log in, read what the host says of itself, record it."""
        facts = await self._hypervisor.facts(await self._directory.access(lease.host))
        await self._inventory.hosts.set_facts(lease.host, facts, lease=lease)
        return facts

    @activity.defn(name="survey_host")
    async def survey_host(self, request: SurveyInput) -> Survey:
        """The host's own VMs, and each other host of its cluster as a possible destination."""
        host = await self._inventory.hosts.get(request.host)
        vms = [
            vm
            for vm in await self._hypervisor.list_vms(await self._directory.access(host.name))
            if not vm.incoming and request.only in (None, vm.uuid)
        ]
        zone = await self._inventory.topology.get_zone(host.zone)
        pod = await self._inventory.topology.get_pod(host.pod)
        cluster = await self._inventory.topology.get_cluster(host.cluster)
        disabled = [
            f"{kind} {place.name} is Disabled"
            for kind, place in (("zone", zone), ("pod", pod), ("cluster", cluster))
            if place.allocation_state is AllocationState.DISABLED
        ]
        others = [
            other
            for other in await self._inventory.hosts.list(cluster=host.cluster)
            if other.name != host.name
        ]
        candidates = await asyncio.gather(
            *(self._candidate(other, vms, disabled) for other in others)
        )
        return Survey(
            host=host.name,
            vms=tuple(vms),
            candidates=tuple(candidates),
            max_parallel=self._settings.max_parallel,
        )

    @activity.defn(name="list_remaining_vms")
    async def list_remaining_vms(self, request: HostRef) -> RemainingVms:
        """One snapshot of the host's active domains, whoever started them."""
        return await self._remaining(request.host)

    @activity.defn(name="wait_for_arrivals")
    async def wait_for_arrivals(self, request: HostRef) -> None:
        """Returns when no VM is on its way to the host any more, or after an hour."""
        deadline = time.monotonic() + _WAIT_AT_MOST_S
        async with beating():
            while time.monotonic() < deadline and (await self._remaining(request.host)).arriving:
                await self._holders.release_abandoned(request.host)
                await asyncio.sleep(_LOOK_AGAIN_S)

    @activity.defn(name="migrate_vm")
    async def migrate_vm(self, request: MigrateVmInput) -> MigrateVmResult:
        """Bring a VM to the destination, live.

        Raises MigrationRefused, MigrationAborted, DestinationFull, DestinationUnfit,
        DestinationUnreachable (not retryable: the workflow chooses another destination), SlotsBusy
        and HostUnreachable (retryable), LeaseLost.
        """
        lease, operation = request.lease, _operation(request.lease)
        await self._inventory.leases.verify(lease)
        source = await self._directory.access(lease.host)
        destination = await self._directory.access(request.destination)
        async with beating():
            try:
                found = await self._settle(lease, source, request.uuid)
                if found.fate is not VmFate.AT_SOURCE:
                    return await self._arrived(request, found, None)
                await self._expect_absent(destination, request.uuid)
                free = await _at_destination(
                    request.destination,
                    self._free(await self._inventory.hosts.get(request.destination)),
                )
                await self._reserve(request, free)
                await self._inventory.vm_migrations.start(
                    operation, request.vm, lease.host, request.destination, activity.info().attempt
                )
                await self._inventory.leases.verify(lease)
                started = time.monotonic()
                try:
                    await self._migrate(request, source, destination)
                except asyncio.CancelledError:
                    found = await uninterrupted(self._settle(lease, source, request.uuid))
                    if found.fate is VmFate.AT_SOURCE:
                        raise
                else:
                    found = await self._settle(lease, source, request.uuid)
                if found.fate is VmFate.AT_SOURCE:
                    raise Failed(f"libvirt reported success, yet {request.vm} is at its source.")
                return await self._arrived(request, found, time.monotonic() - started)
            except asyncio.CancelledError:
                await uninterrupted(self._departed(request, MigrationState.CANCELED, "cancelled"))
                raise
            except Unavailable:
                # Nobody knows yet how it ended: the next attempt looks, and until then what is
                # recorded says where the VM may be.
                raise
            except HostlerError as error:
                await self._departed(request, MigrationState.FAILED, str(error))
                raise

    @activity.defn(name="settle_migrations")
    async def settle_migrations(self, lease: LeaseRef) -> None:
        """Leave no migration of the host's VMs half done: abort jobs that run without their
        client, discard leftovers of VMs that run elsewhere, resume those that run nowhere else.

        Room that was reserved for them, also by a predecessor, is given back."""
        source = await self._directory.access(lease.host)
        async with beating():
            for vm in await self._hypervisor.list_vms(source):
                if vm.incoming:  # another operation's
                    continue
                await self._inventory.leases.verify(lease)
                await self._settle(lease, source, vm.uuid)
        await self._inventory.vm_migrations.close(lease.host)
        await self._inventory.reservations.release_all(lease)

    @activity.defn(name="shut_down_vm")
    async def shut_down_vm(self, request: ShutDownVmInput) -> MigrateVmResult:
        """Power a VM off by ACPI, as somebody asked. Never by force. Raises ShutdownTimedOut."""
        access = await self._directory.access(request.lease.host)
        deadline = time.monotonic() + request.timeout_s
        async with beating():
            while True:
                vm = await self._hypervisor.find_vm(access, request.uuid)
                if vm is None or vm.state not in _ACTIVE:
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

    async def _remaining(self, name: str) -> RemainingVms:
        reserved = await self._inventory.reservations.pointing_at(name)
        vms = await self._hypervisor.list_vms(await self._directory.access(name))
        present = {vm.uuid for vm in vms}
        announced = [entry.vm for entry in reserved if entry.vm_uuid not in present]
        return RemainingVms(
            vms=tuple(vm for vm in vms if not vm.incoming),
            arriving=(*(vm.name for vm in vms if vm.incoming), *announced),
        )

    async def _reserve(self, request: MigrateVmInput, free: "_Free") -> None:
        """Raises as Reservations.reserve does, but never for what an ended operation left."""
        try:
            await self._try_to_reserve(request, free)
        except (SlotsBusy, DestinationFull):
            await self._holders.release_abandoned(request.lease.host, request.destination)
            await self._try_to_reserve(request, free)

    async def _try_to_reserve(self, request: MigrateVmInput, free: "_Free") -> None:
        await self._inventory.reservations.reserve(
            request.destination,
            vm_uuid=request.uuid,
            vm=request.vm,
            memory_mib=request.memory_mib,
            vcpus=request.vcpus,
            source=request.lease.host,
            lease=request.lease,
            memory_free_mib=free.memory_mib,
            cpus_free=free.cpus,
            max_parallel_per_host=request.max_parallel,
            counted=free.counted,
        )

    async def _migrate(
        self, request: MigrateVmInput, source: HostAccess, destination: HostAccess
    ) -> None:
        recorder = _ProgressRecorder(self._inventory, _operation(request.lease), request.vm)
        async with recorder:
            await self._hypervisor.migrate(
                source,
                destination,
                request.uuid,
                MigrationOptions(
                    uri_address=destination.address,
                    bandwidth_mib_s=self._settings.bandwidth_mib_s,
                ),
                recorder.see,
            )

    async def _settle(self, lease: LeaseRef, source: HostAccess, uuid: str) -> "_Found":
        """Where the VM is, after putting right what an earlier attempt left half done.

        Raises Unavailable as long as a host that may run the VM does not answer: a VM that
        seems paused or gone may run there, and must not run twice. Raises Failed when it can't be
        told whether its memory here is still the newest.
        """
        await self._hypervisor.abort_migration(source, uuid)
        here = await self._hypervisor.find_vm(source, uuid)
        if here is not None and here.incoming:
            raise Unavailable(f"{here.name} is still on its way to {lease.host}.")
        if here is not None and here.state in _ACTIVE and not here.paused_by_migration:
            return _Found(VmFate.AT_SOURCE, lease.host)
        there = await self._look_elsewhere(lease.host, uuid, here)
        if there.running is not None:
            if here is not None:
                await self._inventory.leases.verify(lease)
                await self._hypervisor.discard_migrated(source, uuid)
            return _Found(VmFate.MOVED, there.running)
        if there.unclear:
            raise Unavailable(
                f"A VM that left {lease.host} may be on {', '.join(there.unclear)}, which can't "
                "tell yet.",
                remedy="Bring these hosts back; the operation goes on by itself.",
            )
        if here is None or here.state not in _ACTIVE:
            place = lease.host if here is not None else there.stopped
            return _Found(VmFate.GONE if place is None else VmFate.SHUT_OFF, place)
        if there.stopped is not None:
            raise Failed(
                f"{here.name} is paused on {lease.host} by a migration that was cut off, and "
                f"defined but not running on {there.stopped}: if it ran there since, what it "
                "left in memory here is out of date, and to go on from it would damage its disks.",
                remedy=f"If it ran there, `virsh destroy` and `virsh undefine` it on {lease.host}; "
                f"if it did not, `virsh undefine` it on {there.stopped}. Then try again.",
            )
        await self._inventory.leases.verify(lease)
        await self._hypervisor.resume(source, uuid)
        return _Found(VmFate.AT_SOURCE, lease.host)

    async def _look_elsewhere(self, source: str, uuid: str, here: Vm | None) -> "_Elsewhere":
        """Ask every other host of the cluster for the VM.

        A host that has been emptied for maintenance may be away, unless the VM was last on its way
        to just that one.
        """
        host = await self._inventory.hosts.get(source)
        others = [
            other
            for other in await self._inventory.hosts.list(cluster=host.cluster)
            if other.name != source and other.resource_state not in _NEVER_A_DESTINATION
        ]
        suspects = set()
        if here is not None:
            suspects = await self._inventory.vm_migrations.unfinished(source, here.name)
        answers = await asyncio.gather(*(self._look_at(other.name, uuid) for other in others))
        found = _Elsewhere()
        for other, vm in zip(others, answers, strict=True):
            if isinstance(vm, HostlerError):
                emptied = other.resource_state is ResourceState.MAINTENANCE
                if not emptied or other.name in suspects:
                    found.unclear.append(other.name)
            elif vm is None:
                continue
            elif vm.paused_by_migration:
                found.unclear.append(other.name)
            elif vm.state in _ACTIVE:
                found.running = other.name
            else:
                found.stopped = other.name
        return found

    async def _look_at(self, host: str, uuid: str) -> Vm | HostlerError | None:
        try:
            return await self._hypervisor.find_vm(await self._directory.access(host), uuid)
        except (Unavailable, Failed) as error:
            activity.logger.info("%s does not tell of %s: %s", host, uuid, error)
            return error

    async def _expect_absent(self, destination: HostAccess, uuid: str) -> None:
        """An aborted incoming migration must be gone before the destination is used again."""
        left = await _at_destination(destination.name, self._hypervisor.find_vm(destination, uuid))
        if left is not None and left.state in _ACTIVE:
            raise Unavailable(f"{destination.name} still ends an earlier migration of {left.name}.")

    async def _arrived(
        self, request: MigrateVmInput, found: "_Found", seconds: float | None
    ) -> MigrateVmResult:
        await self._departed(request, _ENDS[found.fate], None)
        return MigrateVmResult(
            vm=request.vm,
            fate=found.fate,
            host=found.host if found.fate is VmFate.MOVED else None,
            seconds=None if seconds is None else round(seconds, 2),
        )

    async def _departed(
        self, request: MigrateVmInput, state: MigrationState, error: str | None
    ) -> None:
        operation = _operation(request.lease)
        await self._inventory.vm_migrations.finish(operation, request.vm, state, error)
        await self._inventory.reservations.release(request.destination, request.uuid, request.lease)

    async def _free(self, host: Host) -> "_Free":
        """What the host can still take, by libvirt's count and the operator's bounds, before
        reservations."""
        seen = await self._hypervisor.capacity(await self._directory.access(host.name))
        memory = seen.memory_mib
        if host.capacity_memory_mib is not None:
            memory = min(memory, host.capacity_memory_mib)
        cpus = host.capacity_cpus or int(seen.cpus * self._settings.cpu_overcommit)
        return _Free(
            memory_mib=memory - host.reserved_memory_mib - seen.memory_used_mib,
            cpus=cpus - seen.cpus_used,
            counted=seen.vm_uuids,
        )

    async def _candidate(self, host: Host, vms: list[Vm], disabled: list[str]) -> Candidate:
        unsuitable = _unsuitable(host, disabled)
        if unsuitable is None:
            try:
                access = await self._directory.access(host.name)
                free = await self._free(host)
                reserved = await self._inventory.reservations.total(host.name, counted=free.counted)
                verdicts = {vm.name: await self._cpu_verdict(access, vm) for vm in vms}
                return Candidate(
                    host=host.name,
                    unsuitable=None,
                    memory_free_mib=free.memory_mib - reserved.memory_mib,
                    cpus_free=free.cpus - reserved.vcpus,
                    incompatible={vm: why for vm, why in verdicts.items() if why is not None},
                )
            except (Unavailable, Failed) as error:
                unsuitable = f"does not answer: {error.message}"
        return Candidate(host=host.name, unsuitable=unsuitable, memory_free_mib=0, cpus_free=0)

    async def _cpu_verdict(self, access: HostAccess, vm: Vm) -> str | None:
        return (
            None if vm.cpu_xml is None else await self._hypervisor.cpu_incompatibility(access, vm)
        )


@dataclass(frozen=True)
class _Free:
    memory_mib: int
    cpus: int
    counted: frozenset[str]


class _ProgressRecorder:
    """Writes a migration's progress to the inventory: after 5 s and 5 %, whichever is later."""

    def __init__(self, inventory: Inventory, operation: str, vm: str) -> None:
        self._inventory = inventory
        self._operation = operation
        self._vm = vm
        self._seen: MigrationProgress | None = None
        self._task: asyncio.Task[None] | None = None

    def see(self, progress: MigrationProgress) -> None:
        """Take note; called by the driver about once a second."""
        self._seen = progress
        activity.heartbeat(progress.percent)

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._write())

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _write(self) -> None:
        written = -5
        while True:
            await asyncio.sleep(5)
            seen = self._seen
            if seen is None or seen.percent - written < 5:
                continue
            try:
                await self._inventory.vm_migrations.progress(
                    self._operation, self._vm, seen.percent, seen.rate_mib_s, seen.remaining_mib
                )
            except Unavailable as error:
                # The database may be away; the migration is not to suffer from that.
                activity.logger.warning("progress of %s not recorded: %s", self._vm, error)
            else:
                written = seen.percent


def _operation(lease: LeaseRef) -> str:
    """The key of an operation's rows: one chain of runs."""
    return f"{lease.owner.workflow_id}#{lease.owner.first_run_id}"


def _unsuitable(host: Host, disabled: list[str]) -> str | None:
    """Why no VM may go to `host`, from what the inventory knows."""
    if host.resource_state is not ResourceState.ENABLED:
        return f"is {host.resource_state}"
    if host.status is not HostStatus.UP:
        return f"is {host.status}"
    if host.fence is not None:
        return f"is fenced by {host.fence}"
    return disabled[0] if disabled else None


async def _at_destination(host: str, call: Awaitable[T]) -> T:
    """Await `call`; a destination that does not answer is a reason to take another one."""
    try:
        return await call
    except Unavailable as error:
        raise DestinationUnreachable(f"{host} does not answer: {error.message}") from error
