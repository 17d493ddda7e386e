"""What a host can still take, and how migrations reach it."""

from dataclasses import dataclass
from ipaddress import ip_address

from activities.directory import HostDirectory
from contracts.hosts import Host
from contracts.settings import (
    CPU_OVERPROVISIONING,
    STORAGE_SHARED_PATHS,
    Network,
    ResolvedSettings,
)
from contracts.vms import Vm
from drivers.protocols import Hypervisor


@dataclass(frozen=True)
class Free:
    """Room on a host before reservations; `counted`: UUIDs of the VMs that are taken off."""

    memory_mib: int
    cpus: int
    counted: frozenset[str]


class Capacities:
    """Asks libvirt, and keeps to the operator's bounds."""

    def __init__(self, directory: HostDirectory, hypervisor: Hypervisor) -> None:
        self._directory = directory
        self._hypervisor = hypervisor

    async def free(self, host: Host, settings: ResolvedSettings) -> Free:
        """Raises HostUnreachable and the like."""
        seen = await self._hypervisor.capacity(await self._directory.access(host.name))
        whole = _whole(host, settings, seen.memory_mib, seen.cpus)
        return Free(
            memory_mib=whole.memory_mib - seen.memory_used_mib,
            cpus=whole.cpus - seen.cpus_used,
            counted=seen.vm_uuids,
        )


def free_when_empty(host: Host, settings: ResolvedSettings) -> Free:
    """What a host had for VMs when it was last seen, if none ran there."""
    facts = host.facts
    if facts is None:
        return Free(memory_mib=0, cpus=0, counted=frozenset())
    return _whole(host, settings, facts.memory_mib, facts.cpus)


def _whole(host: Host, settings: ResolvedSettings, memory_mib: int, cpus: int) -> Free:
    if host.capacity_memory_mib is not None:
        memory_mib = min(memory_mib, host.capacity_memory_mib)
    return Free(
        memory_mib=memory_mib - host.reserved_memory_mib,
        cpus=host.capacity_cpus or int(cpus * settings[CPU_OVERPROVISIONING]),
        counted=frozenset(),
    )


def migration_address(addresses: tuple[str, ...], network: Network) -> str | None:
    """The first of a host's addresses that is in the migration network."""
    return next((one for one in addresses if _is_in(one, network)), None)


def with_shared_storage(vm: Vm, settings: ResolvedSettings) -> Vm:
    """The VM with its disks told apart: those on declared shared storage need not be copied."""
    roots = [f"{root.rstrip('/')}/" for root in settings[STORAGE_SHARED_PATHS]]
    shared = tuple(disk for disk in vm.local_disks if disk.startswith(tuple(roots)))
    if not shared:
        return vm
    local = tuple(disk for disk in vm.local_disks if disk not in shared)
    return vm.model_copy(update={"shared_disks": shared, "local_disks": local})


def _is_in(address: str, network: Network) -> bool:
    parsed = ip_address(address)
    return parsed.version == network.version and parsed in network
