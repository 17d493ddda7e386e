"""Looking at a host and its cluster: what runs there, what has room, what has changed."""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from temporalio import activity

from activities.capacity import (
    Capacities,
    free_when_empty,
    migration_address,
    with_shared_storage,
)
from activities.directory import HostDirectory
from activities.holders import Holders
from contracts.errors import Conflict, Failed, NotFound, Unavailable
from contracts.evacuation import (
    AffinityGroup,
    BlockerKind,
    Candidate,
    HostEnvironment,
    Incompatibility,
    Survey,
)
from contracts.hosts import Host, HostFacts
from contracts.leases import LeaseRef
from contracts.settings import MIGRATION_NETWORK, MIGRATION_PARALLEL_MAX, ResolvedSettings
from contracts.states import MAINTENANCE_STATES, AllocationState, HostStatus, ResourceState
from contracts.steps import (
    AwaitChangeInput,
    CheckHostInput,
    HostRef,
    RemainingVms,
    ReturnSurvey,
    ReturnSurveyInput,
    SurveyInput,
    VmChange,
    WatchVmInput,
)
from contracts.vms import ACTIVE_VM_STATES, Vm
from drivers.protocols import HostAccess, Hypervisor
from inventory import Inventory

_LOOK_AGAIN_S = 5.0
_WATCH_AGAIN_S = 15.0
_ROOM_AGAIN_S = 2.0
# Devices that come and go with VMs and containers.
_PASSING_DEVICE = re.compile(r"^(vnet|tap|macvtap|veth)")


class HostNotSound(Conflict):
    """The host lacks what it had before; its VMs would miss it."""


@dataclass(frozen=True)
class _Cluster:
    """What all candidates of one survey are measured by."""

    vms: list[Vm]
    groups: list[AffinityGroup]
    settings: ResolvedSettings
    disabled: str | None


class SurveyActivities:
    """Reads, and writes down what is seen of a host."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        hypervisor: Hypervisor,
        holders: Holders,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._hypervisor = hypervisor
        self._holders = holders
        self._capacities = Capacities(directory, hypervisor)

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
        access = await self._directory.access(host.name)
        vms = [
            vm
            for vm in await self._hypervisor.list_vms(access)
            if not vm.incoming and request.only in (None, vm.uuid)
        ]
        environment = HostEnvironment()
        if request.only is None:
            environment = await self._hypervisor.environment(access)
        others = [
            other
            for other in await self._inventory.hosts.list(cluster=host.cluster)
            if other.name != host.name
        ]
        return await self._survey(host, host, vms, others, environment)

    @activity.defn(name="survey_return")
    async def survey_return(self, request: ReturnSurveyInput) -> ReturnSurvey:
        """Where the VMs run now, and for each host that has any, the room at the host that they
        are to come back to."""
        home = await self._inventory.hosts.get(request.host)
        wanted = frozenset(request.vms)
        surveys, unseen = [], []
        for other in await self._inventory.hosts.list(cluster=home.cluster):
            if other.name == home.name:
                continue
            try:
                active = await self._hypervisor.list_vms(await self._directory.access(other.name))
            except (Unavailable, Failed, NotFound) as error:  # it may have just been removed
                activity.logger.info("%s does not tell of its VMs: %s", other.name, error)
                unseen.append(other.name)
                continue
            vms = [vm for vm in active if vm.name in wanted and not vm.incoming]
            if vms:
                surveys.append(await self._survey(other, home, vms, [home], HostEnvironment()))
        return ReturnSurvey(surveys=tuple(surveys), unseen=tuple(unseen))

    @activity.defn(name="list_remaining_vms")
    async def list_remaining_vms(self, request: HostRef) -> RemainingVms:
        """One snapshot of the host's active domains, whoever started them."""
        return await self._remaining(request.host)

    @activity.defn(name="wait_for_arrivals")
    async def wait_for_arrivals(self, request: AwaitChangeInput) -> None:
        """Returns when no VM is on its way to the host any more, or when the time is up."""
        deadline = time.monotonic() + request.within_s
        while time.monotonic() < deadline and (await self._remaining(request.host)).arriving:
            await self._holders.release_abandoned(request.host)
            await asyncio.sleep(_LOOK_AGAIN_S)

    @activity.defn(name="wait_for_host")
    async def wait_for_host(self, request: AwaitChangeInput) -> bool:
        """Whether the host answers by the time that is up; returns as soon as it does."""
        deadline = time.monotonic() + request.within_s
        while True:
            try:
                await self._remaining(request.host)
            except Unavailable as error:
                activity.logger.debug("%s is not back: %s", request.host, error)
            else:
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_LOOK_AGAIN_S)

    @activity.defn(name="await_room")
    async def await_room(self, request: AwaitChangeInput) -> None:
        """Returns when anything has changed in who is out and what is reserved in the cluster, or
        when the time is up."""
        deadline = time.monotonic() + request.within_s
        before = await self._cluster_state(request.host)
        while time.monotonic() < deadline:
            await asyncio.sleep(_ROOM_AGAIN_S)
            if await self._cluster_state(request.host) != before:
                return

    @activity.defn(name="watch_vm")
    async def watch_vm(self, request: WatchVmInput) -> VmChange:
        """Returns when the VM has left the host, or when it, or what any destination says of it,
        has changed; `none` when the time is up."""
        deadline = time.monotonic() + request.within_s
        before: object = None
        while True:
            try:
                seen = await self._prospects(request)
            except Unavailable as error:
                activity.logger.info("%s can't be watched now: %s", request.uuid, error)
            else:
                if seen is None:
                    return VmChange.LEFT
                if before not in (None, seen):
                    return VmChange.CHANGED
                before = seen
            if time.monotonic() > deadline:
                return VmChange.NONE
            await asyncio.sleep(_WATCH_AGAIN_S)

    @activity.defn(name="check_host")
    async def check_host(self, request: CheckHostInput) -> None:
        """Whether the host answers, and has again what it offered to VMs before. Raises
        HostNotSound, which names what is missing."""
        now = await self._hypervisor.environment(await self._directory.access(request.host))
        await self._note_answer(request.host)
        before = request.environment
        if before is None:
            return
        missing = [
            *(f"network {name}" for name in sorted(before.networks - now.networks)),
            *(f"storage pool {name}" for name in sorted(before.pools - now.pools)),
            *(
                f"network device {name}"
                for name in sorted(before.interfaces - now.interfaces)
                if not _PASSING_DEVICE.match(name)
            ),
        ]
        if missing:
            raise HostNotSound(
                f"{request.host} had these before its maintenance and lacks them now: "
                f"{', '.join(missing)}.",
                remedy="Bring them back and try again, or go on with force.",
            )

    async def _note_answer(self, name: str) -> None:
        """A host that goes back into service takes VMs at once: the next round of checks would be
        too late to say that it is back. One that was taken out as Down, or is being re-installed,
        is for its operation."""
        host = await self._inventory.hosts.get(name)
        seen_away = host.status in (HostStatus.DISCONNECTED, HostStatus.ALERT)
        if seen_away and not host.being_reinstalled:
            operation = activity.info().workflow_id
            await self._inventory.hosts.set_status(
                name,
                HostStatus.UP,
                reason="it answers again",
                operation=operation,
                actor=str(operation),
            )

    # --- one look -------------------------------------------------------------------------------

    async def _remaining(self, name: str) -> RemainingVms:
        host = await self._inventory.hosts.get(name)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        reserved = await self._inventory.reservations.pointing_at(name)
        found = await self._hypervisor.list_vms(await self._directory.access(name))
        vms = [with_shared_storage(vm, settings) for vm in found]
        present = {vm.uuid for vm in vms}
        announced = [entry.vm for entry in reserved if entry.vm_uuid not in present]
        return RemainingVms(
            vms=tuple(
                _without_cpu(vm) for vm in vms if not vm.incoming and vm.state in ACTIVE_VM_STATES
            ),
            arriving=(*(vm.name for vm in vms if vm.incoming), *announced),
        )

    async def _survey(
        self,
        source: Host,
        host: Host,
        vms: list[Vm],
        destinations: list[Host],
        environment: HostEnvironment,
    ) -> Survey:
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        vms = [with_shared_storage(vm, settings) for vm in vms]
        names = [vm.name for vm in vms]
        cluster = _Cluster(
            vms=vms,
            groups=await self._inventory.placement.groups(host.cluster, names),
            settings=settings,
            disabled=await self._disabled(host),
        )
        await self._holders.release_abandoned(*(other.name for other in destinations))
        candidates = await asyncio.gather(
            *(self._candidate(other, cluster) for other in destinations)
        )
        return Survey(
            host=source.name,
            vms=tuple(_without_cpu(vm) for vm in vms),
            candidates=tuple(candidates),
            max_parallel=settings[MIGRATION_PARALLEL_MAX],
            secured=source.secured,
            certified=source.tls.can,
            policies=tuple(await self._inventory.placement.policies(host.cluster, names)),
            groups=tuple(cluster.groups),
            environment=environment,
        )

    async def _disabled(self, host: Host) -> str | None:
        """Which place above the host takes no VM, or None."""
        zone, pod, cluster = await self._inventory.topology.get_with_parents(host.cluster)
        for kind, place in (("zone", zone), ("pod", pod), ("cluster", cluster)):
            if place.allocation_state is AllocationState.DISABLED:
                return f"{kind} {place.name} is Disabled"
        return None

    async def _candidate(self, host: Host, cluster: _Cluster) -> Candidate:
        unsuitable = _unsuitable(host, cluster.disabled)
        absent = False
        if unsuitable is None and host.status is not HostStatus.UP:
            unsuitable, absent = f"is {host.status}", True
        try:
            if unsuitable is None:
                return await self._suitable(host, cluster)
            names = await self._names_at(host) if cluster.groups else frozenset()
        except (Unavailable, Failed, NotFound) as error:  # it may have just been removed
            absent = absent or unsuitable is None
            unsuitable = unsuitable or f"does not answer: {error.message}"
            names = frozenset()
        out_for = await self._out_for(host, cluster.disabled)
        empty = free_when_empty(host, cluster.settings)
        return Candidate(
            host=host.name,
            unsuitable=unsuitable,
            absent=absent,
            out_for=out_for,
            memory_free_mib=empty.memory_mib if out_for else 0,
            cpus_free=empty.cpus if out_for else 0,
            tags=host.tags,
            secured=host.secured,
            certified=host.tls.can,
            vms=names,
        )

    async def _suitable(self, host: Host, cluster: _Cluster) -> Candidate:
        access = await self._directory.access(host.name)
        free = await self._capacities.free(host, cluster.settings)
        own = frozenset(vm.uuid for vm in cluster.vms)
        # In this order: what comes in between makes the plan out of date, not wrong.
        reserved_for = await self._reserved_for(host.name)
        reserved = await self._inventory.reservations.total(host.name, counted=free.counted | own)
        environment = await self._hypervisor.environment(access)
        network = cluster.settings[MIGRATION_NETWORK]
        unsuitable = None
        if network is not None and migration_address(environment.addresses, network) is None:
            unsuitable = f"has no address in the migration network {network}"
        return Candidate(
            host=host.name,
            unsuitable=unsuitable,
            memory_free_mib=free.memory_mib - reserved.memory_mib,
            cpus_free=free.cpus - reserved.vcpus,
            reserved_for=reserved_for,
            tags=host.tags,
            secured=host.secured,
            certified=host.tls.can,
            vms=await self._names_at(host) if cluster.groups else frozenset(),
            incompatible=await self._incompatible(access, cluster.vms, environment),
        )

    async def _reserved_for(self, host: str) -> frozenset[str]:
        touching = await self._inventory.reservations.touching(host)
        return frozenset(entry.vm_uuid for entry in touching if entry.destination == host)

    async def _names_at(self, host: Host) -> frozenset[str]:
        """VMs there and on their way there."""
        active = await self._hypervisor.list_vms(await self._directory.access(host.name))
        touching = await self._inventory.reservations.touching(host.name)
        coming = (entry.vm for entry in touching if entry.destination == host.name)
        return frozenset((*(vm.name for vm in active), *coming))

    async def _out_for(self, host: Host, disabled: str | None) -> str | None:
        """The operation for which the host is out of service, if nothing else speaks against it."""
        if host.resource_state not in MAINTENANCE_STATES or disabled is not None:
            return None
        if host.state_before_maintenance is ResourceState.DISABLED:
            return None
        lease = await self._inventory.leases.find(host.name)
        return lease.owner.workflow_id if lease is not None else None

    async def _incompatible(
        self, access: HostAccess, vms: list[Vm], environment: HostEnvironment
    ) -> dict[str, Incompatibility]:
        media = sorted({path for vm in vms for path in vm.media})
        missing = await self._hypervisor.missing_files(access, media) if media else frozenset()
        verdicts: dict[tuple[object, ...], str | None] = {}
        found: dict[str, Incompatibility] = {}
        for vm in vms:
            cpu = (vm.architecture, vm.machine, vm.emulator, vm.virt_type, vm.cpu_xml)
            if cpu not in verdicts:
                verdicts[cpu] = await self._cpu_verdict(access, vm)
            reason = next(_reasons(vm, verdicts[cpu], environment, missing), None)
            if reason is not None:
                found[vm.name] = Incompatibility(kind=reason[0], message=reason[1])
        return found

    async def _cpu_verdict(self, access: HostAccess, vm: Vm) -> str | None:
        return (
            None if vm.cpu_xml is None else await self._hypervisor.cpu_incompatibility(access, vm)
        )

    async def _cluster_state(self, name: str) -> object:
        """What decides whether there may be room: who is in service, what is reserved."""
        host = await self._inventory.hosts.get(name)
        hosts = await self._inventory.hosts.list(cluster=host.cluster)
        reserved = await self._inventory.reservations.in_cluster(host.cluster)
        return (
            [(one.name, one.resource_state, one.status, one.fence) for one in hosts],
            [(one.destination, one.vm_uuid) for one in reserved],
        )

    async def _prospects(self, request: WatchVmInput) -> object | None:
        """The VM and where it could go, as far as it matters; None if it is not here any more."""
        survey = await self.survey_host(SurveyInput(host=request.host, only=request.uuid))
        if not survey.vms or survey.vms[0].state not in ACTIVE_VM_STATES:
            return None
        vm = survey.vms[0]
        return (
            vm,
            survey.policies,
            survey.groups,
            [
                (
                    candidate.host,
                    # What it says of an absence or of pages that are free changes all the time.
                    candidate.absent or candidate.unsuitable,
                    candidate.tags,
                    candidate.secured,
                    candidate.certified,
                    vm.name in candidate.incompatible and candidate.incompatible[vm.name].kind,
                    candidate.memory_free_mib >= vm.memory_mib,
                    candidate.cpus_free >= vm.vcpus,
                )
                for candidate in survey.candidates
            ],
        )


def _unsuitable(host: Host, disabled: str | None) -> str | None:
    """Why no VM is to go to `host`, answer or not, from what the inventory knows."""
    if host.resource_state is not ResourceState.ENABLED:
        return f"is {host.resource_state}"
    if host.fence is not None:
        return f"is fenced by {host.fence}"
    return disabled


def _reasons(
    vm: Vm, cpu: str | None, there: HostEnvironment, missing: frozenset[str]
) -> Iterator[tuple[BlockerKind, str]]:
    """Why a host can't run the VM, however empty it is."""
    if cpu is not None:
        yield BlockerKind.CPU, cpu
    networks = _lacking(vm.networks, there.networks)
    if networks:
        yield BlockerKind.NETWORK, f"has no active network {networks}"
    interfaces = _lacking(vm.interfaces, there.interfaces)
    if interfaces:
        yield BlockerKind.NETWORK, f"has no network device {interfaces}"
    media = ", ".join(path for path in vm.media if path in missing)
    if media:
        yield BlockerKind.MEDIA, f"lacks {media}"
    cpus = ", ".join(str(number) for number in vm.pinned_cpus if number not in there.cpus)
    if cpus:
        yield BlockerKind.PINNED_CPU, f"has no CPU {cpus}, to which the VM is bound"
    if vm.huge_page_kib is not None and _pages(vm) > _free_pages(vm, there.free_pages):
        yield (
            BlockerKind.HUGE_PAGES,
            f"needs {_pages(vm)} huge pages of {vm.huge_page_kib} KiB, "
            f"{_free_pages(vm, there.free_pages)} are free",
        )


def _lacking(wanted: Iterable[str], there: frozenset[str]) -> str:
    return ", ".join(name for name in wanted if name not in there)


def _pages(vm: Vm) -> int:
    return -(-vm.memory_mib * 1024 // (vm.huge_page_kib or 1))


def _free_pages(vm: Vm, free: Mapping[int, int]) -> int:
    return free.get(vm.huge_page_kib or 0, 0)


def _without_cpu(vm: Vm) -> Vm:
    """For the history: its CPU is the largest part of a VM's description, has been compared here,
    and with a thousand VMs the description must stay below Temporal's 2 MiB."""
    return vm.model_copy(update={"cpu_xml": None})
