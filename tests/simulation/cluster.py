"""Hosts and VMs in memory, and the drivers that reach them.

    Cluster               what there is: hosts, their VMs, their fences
    SimulatedShell        RemoteShell
    SimulatedHypervisor   Hypervisor
    SimulatedFence        Fence

Nothing fails here, and every call takes a moment, as over a network. How long each migration takes
follows from the seed and the VM's name, so that two runs with one seed are alike.
"""

import asyncio
import base64
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contracts.evacuation import HostEnvironment
from contracts.hosts import HostFacts
from contracts.vms import Vm, VmState
from drivers.errors import HostUnreachable, MigrationRefused, VmNotFound
from drivers.protocols import (
    Capacity,
    CommandResult,
    DiskImage,
    FenceState,
    HostAccess,
    HostKey,
    MigrationOptions,
    MigrationProgress,
)

FIRST_ADDRESS = "198.19.0.1"
_CALL_S = 0.002
_PROGRESS_S = 0.5
_SHORTEST_S, _LONGEST_S = 1.0, 3.0
_HOST_MEMORY_MIB = 512 * 1024
_HOST_CPUS = 128
_VM_MEMORY_MIB = 512
_BRIDGE = "br-vms"
_NAMES = uuid.UUID("f1f7c6c2-39c0-4a7a-9b0e-6f0d6f6b7f7d")

# As libvirt expands a host-model CPU: a VM's description is mostly this.
_FEATURES = (
    *("vme", "ss", "vmx", "pdcm", "hypervisor", "arat", "tsc_adjust", "avx512vbmi", "umip"),
    *("pku", "ospke", "md-clear", "stibp", "arch-capabilities", "ssbd", "xsaves", "invtsc"),
    *("ibpb", "ibrs", "amd-stibp", "amd-ssbd", "rdctl-no", "ibrs-all", "skip-l1dfl-vmentry"),
)
_CPU_XML = (
    "<cpu mode='custom' match='exact' check='full'><model fallback='forbid'>Cascadelake-Server"
    "</model><vendor>Intel</vendor>"
    + "".join(f"<feature policy='require' name='{name}'/>" for name in _FEATURES)
    + "</cpu>"
)


@dataclass
class SimulatedHost:
    """A host: its VMs by UUID, those on their way to it, its fence."""

    name: str
    address: str
    vms: dict[str, Vm] = field(default_factory=dict)
    arriving: dict[str, Vm] = field(default_factory=dict)
    fence: FenceState = field(default_factory=lambda: FenceState(operation=None, epoch=0))

    @property
    def key(self) -> HostKey:
        """Its SSH host key: of the right shape, and of no use."""
        blob = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + _digest(self.name)
        fingerprint = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        return HostKey(
            line=f"ssh-ed25519 {base64.b64encode(blob).decode()}", sha256=f"SHA256:{fingerprint}"
        )


class Cluster:
    """`hosts` hosts, sim-1 and up; all `vms` VMs, vm-1 and up, run on the first one.

    `journal` gets one line per migration that ended well: VM, source, destination, seconds.
    """

    def __init__(self, *, hosts: int, vms: int, seed: int, journal: Path | None = None) -> None:
        self._seed = seed
        self._journal = journal
        self.hosts = {
            f"sim-{number}": SimulatedHost(f"sim-{number}", address_of(number))
            for number in range(1, hosts + 1)
        }
        for vm in (_vm(number) for number in range(1, vms + 1)):
            self.hosts["sim-1"].vms[vm.uuid] = vm

    def host(self, access: HostAccess) -> SimulatedHost:
        """The one that `access` leads to."""
        return self.at(access.address)

    def at(self, address: str) -> SimulatedHost:
        """The one at that address. Raises HostUnreachable."""
        for host in self.hosts.values():
            if host.address == address:
                return host
        raise HostUnreachable(f"Nothing answers at {address}.")

    def seconds_for(self, vm: Vm) -> float:
        """How long its migration takes."""
        chance = random.Random(f"{self._seed}/{vm.name}")  # noqa: S311 - nothing secret
        return chance.uniform(_SHORTEST_S, _LONGEST_S)

    def record(
        self, vm: Vm, source: SimulatedHost, destination: SimulatedHost, took: float
    ) -> None:
        """Write a finished migration down."""
        if self._journal is None:
            return
        entry = {"vm": vm.name, "source": source.name, "destination": destination.name}
        with self._journal.open("a") as journal:
            journal.write(json.dumps(entry | {"seconds": round(took, 3)}) + "\n")


class SimulatedShell:
    """RemoteShell."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        """The key of the host there."""
        await asyncio.sleep(_CALL_S)
        return self._cluster.at(address).key

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the protocol's
    ) -> CommandResult:
        """Every command ends well and says nothing."""
        await asyncio.sleep(_CALL_S)
        self._cluster.host(access)
        return CommandResult(exit_status=0, stdout="", stderr="")

    async def forget(self, host: str) -> None:
        """Nothing is open."""

    async def close(self) -> None:
        """Nothing is open."""


class SimulatedHypervisor:
    """Hypervisor."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._jobs: dict[str, MigrationProgress] = {}

    async def facts(self, access: HostAccess) -> HostFacts:
        """The same of every host, but for the UUID."""
        host = await self._reach(access)
        return HostFacts(
            uuid=str(uuid.uuid5(_NAMES, host.name)),
            architecture="x86_64",
            cpu_model="Cascadelake-Server",
            cpus=_HOST_CPUS,
            memory_mib=_HOST_MEMORY_MIB,
            libvirt_version="9.0.0",
            qemu_version="7.2.19",
            operating_system="Debian GNU/Linux 12",
        )

    async def capacity(self, access: HostAccess) -> Capacity:
        """What it has, and what its VMs and those on their way take."""
        host = await self._reach(access)
        vms = [*host.vms.values(), *host.arriving.values()]
        return Capacity(
            memory_mib=_HOST_MEMORY_MIB,
            cpus=_HOST_CPUS,
            memory_used_mib=sum(vm.memory_mib for vm in vms),
            cpus_used=sum(vm.vcpus for vm in vms),
            vm_uuids=frozenset(vm.uuid for vm in vms),
        )

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        """Its VMs and those on their way."""
        host = await self._reach(access)
        vms = [*host.vms.values(), *host.arriving.values()]
        return sorted(vms, key=lambda vm: vm.name)

    async def find_vm(self, access: HostAccess, uuid: str) -> Vm | None:
        """One of them."""
        host = await self._reach(access)
        return host.vms.get(uuid) or host.arriving.get(uuid)

    async def environment(self, access: HostAccess) -> HostEnvironment:
        """The same everywhere."""
        host = await self._reach(access)
        return HostEnvironment(
            networks=frozenset({"default"}),
            interfaces=frozenset({"lo", "eth0", _BRIDGE}),
            pools=frozenset({"default"}),
            addresses=(host.address,),
            cpus=frozenset(range(_HOST_CPUS)),
        )

    async def missing_files(self, access: HostAccess, paths: Collection[str]) -> frozenset[str]:
        """Every file is everywhere."""
        await self._reach(access)
        return frozenset()

    async def disks(self, access: HostAccess, uuid: str, paths: Collection[str]) -> list[DiskImage]:
        """All disks are on storage that is shared."""
        await self._reach(access)
        return []

    async def cpu_incompatibility(self, access: HostAccess, vm: Vm) -> str | None:
        """All hosts are alike."""
        await self._reach(access)
        return None

    async def migrate(
        self,
        source: HostAccess,
        destination: HostAccess,
        uuid: str,
        options: MigrationOptions,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Takes its time; a cancel leaves the VM where it was."""
        here, there = await self._reach(source), await self._reach(destination)
        vm = here.vms.get(uuid)
        if vm is None:
            raise VmNotFound(f"{here.name} has no VM {uuid}.")
        if there.fence.operation is not None:
            raise MigrationRefused(f"host is fenced by {there.fence.operation}")
        there.arriving[uuid] = vm.model_copy(
            update={"state": VmState.PAUSED, "paused_by_migration": True, "incoming": True}
        )
        began, seconds = time.monotonic(), self._cluster.seconds_for(vm)
        try:
            while (passed := time.monotonic() - began) < seconds:
                self._jobs[uuid] = _progress(vm, passed / seconds, seconds)
                on_progress(self._jobs[uuid])
                await asyncio.sleep(min(_PROGRESS_S, seconds - passed))
            there.vms[uuid] = here.vms.pop(uuid)
        finally:
            del there.arriving[uuid]
            self._jobs.pop(uuid, None)
        self._cluster.record(vm, here, there, time.monotonic() - began)

    async def migration_progress(self, access: HostAccess, uuid: str) -> MigrationProgress | None:
        """Of a migration that runs from that host."""
        host = await self._reach(access)
        return self._jobs.get(uuid) if uuid in host.vms else None

    async def abort_migration(self, access: HostAccess, uuid: str) -> bool:
        """A migration ends with its caller: there is never one to abort."""
        await self._reach(access)
        return False

    async def shut_down(self, access: HostAccess, uuid: str) -> None:
        """At once."""
        (await self._reach(access)).vms.pop(uuid, None)

    async def start(self, access: HostAccess, uuid: str) -> None:
        """None is ever shut off."""
        await self._reach(access)

    async def suspend(self, access: HostAccess, uuid: str) -> None:
        """Every migration converges."""
        await self._reach(access)

    async def resume(self, access: HostAccess, uuid: str) -> None:
        """None is ever paused."""
        await self._reach(access)

    async def discard_migrated(self, access: HostAccess, uuid: str) -> None:
        """None is ever left behind."""
        await self._reach(access)

    async def start_probe(self, access: HostAccess) -> str | None:
        """Refused by the fence, or not."""
        fence = (await self._reach(access)).fence
        return None if fence.operation is None else f"host is fenced by {fence.operation}"

    async def forget(self, host: str) -> None:
        """Nothing is open."""

    async def close(self) -> None:
        """Nothing is open."""

    async def _reach(self, access: HostAccess) -> SimulatedHost:
        await asyncio.sleep(_CALL_S)
        return self._cluster.host(access)


class SimulatedFence:
    """Fence."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def install(self, access: HostAccess, epoch: int) -> bool:
        """The hook is always there."""
        await self.read(access)
        return False

    async def put_up(self, access: HostAccess, operation: str, epoch: int) -> None:
        """From now on migrations to the host and probes are refused."""
        await self.read(access)
        self._cluster.host(access).fence = FenceState(operation=operation, epoch=epoch)

    async def take_down(self, access: HostAccess, epoch: int) -> None:
        """They are not any more."""
        await self.read(access)
        self._cluster.host(access).fence = FenceState(operation=None, epoch=epoch)

    async def read(self, access: HostAccess) -> FenceState:
        """As it is."""
        await asyncio.sleep(_CALL_S)
        return self._cluster.host(access).fence

    async def restart_libvirtd(self, access: HostAccess) -> None:
        """There is none."""
        await self.read(access)


def address_of(number: int) -> str:
    """The address of sim-`number`."""
    prefix, _, last = FIRST_ADDRESS.rpartition(".")
    return f"{prefix}.{int(last) + number - 1}"


def _vm(number: int) -> Vm:
    name = f"vm-{number}"
    return Vm(
        name=name,
        uuid=str(uuid.uuid5(_NAMES, name)),
        state=VmState.RUNNING,
        memory_mib=_VM_MEMORY_MIB,
        vcpus=1,
        machine="pc-q35-7.2",
        emulator="/usr/bin/qemu-system-x86_64",
        cpu_xml=_CPU_XML,
        interfaces=(_BRIDGE,),
    )


def _progress(vm: Vm, share: float, seconds: float) -> MigrationProgress:
    return MigrationProgress(
        percent=int(100 * share),
        rate_mib_s=vm.memory_mib / seconds,
        remaining_mib=vm.memory_mib * (1 - share),
    )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
