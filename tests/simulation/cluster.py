"""Hosts and VMs in memory, and the drivers that reach them.

    Cluster               what there is: hosts, their VMs, their fences
    SimulatedShell        RemoteShell
    SimulatedHypervisor   Hypervisor
    SimulatedFence        Fence
    SimulatedNeighbours   Neighbours
    SimulatedInspector    HostInspector

Nothing fails here but what a Trouble says, and every call takes a moment, as over a network. How
long each migration takes follows from the seed and the VM's name, so that two runs with one seed
are alike.
"""

import asyncio
import base64
import dataclasses
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from contracts.evacuation import HostEnvironment
from contracts.host_status import Reach
from contracts.hosts import HostFacts, HostUsage
from contracts.preflight import HostReport, PackageManager, ServiceState
from contracts.vms import Vm, VmState
from drivers.errors import CallTimedOut, HostUnreachable, MigrationRefused, VmNotFound
from drivers.protocols import (
    CLOSED,
    FENCED,
    Capacity,
    CommandResult,
    DiskImage,
    FenceState,
    HostAccess,
    HostCpu,
    HostKey,
    MigrationOptions,
    MigrationProgress,
)

FIRST_ADDRESS = "198.19.0.1"
_CALL_S = 0.002
# As the real drivers do, a call gives up some time.
_GIVES_UP_S = 5.0
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

_RUNNING = ServiceState(load="loaded", active="active", enabled="enabled")
# What a host reports of itself that has all that an addition asks for.
EVERYTHING: dict[str, Any] = {
    "systemd": "252",
    "daemon": _RUNNING,
    "socket": _RUNNING,
    "modular": False,
    "listening": True,
    "libvirt_version": "9.0.0",
    "qemu_version": "7.2.19",
    "kvm": True,
    "missing_programs": (),
}


class Trouble(StrEnum):
    """What is wrong with a host, if anything is."""

    AWAY = "away"
    """Nobody reaches it."""
    HIDDEN = "hidden"
    """Other hosts reach it, Hostler does not."""
    HANGING = "hanging"
    """SSH answers, libvirt never."""


@dataclass
class SimulatedHost:
    """A host: its VMs by UUID, those on their way to it, its fence."""

    name: str
    address: str
    vms: dict[str, Vm] = field(default_factory=dict)
    arriving: dict[str, Vm] = field(default_factory=dict)
    fence: FenceState = field(default_factory=lambda: FenceState(operation=None, epoch=0))
    trouble: Trouble | None = None

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

    `troubles`: how many hosts have which; see `troubled`.
    `journal` gets one line per migration that ended well: VM, source, destination, seconds.
    """

    def __init__(
        self,
        *,
        hosts: int,
        vms: int,
        seed: int,
        journal: Path | None = None,
        troubles: Mapping[Trouble, int] | None = None,
    ) -> None:
        self._seed = seed
        self._journal = journal
        self.hosts = {
            f"sim-{number}": SimulatedHost(f"sim-{number}", address_of(number))
            for number in range(1, hosts + 1)
        }
        for name, trouble in troubled(hosts, troubles or {}).items():
            self.hosts[name].trouble = trouble
        for vm in (_vm(number) for number in range(1, vms + 1)):
            self.hosts["sim-1"].vms[vm.uuid] = vm

    def host(self, access: HostAccess) -> SimulatedHost:
        """The one that `access` leads to."""
        return self.at(access.address)

    def at(self, address: str) -> SimulatedHost:
        """The one at that address. Raises HostUnreachable."""
        host = self.find(address)
        if host is None or host.trouble in (Trouble.AWAY, Trouble.HIDDEN):
            raise HostUnreachable(f"Nothing answers at {address}.")
        return host

    def find(self, address: str) -> SimulatedHost | None:
        """The one at that address, whoever reaches it."""
        return next((host for host in self.hosts.values() if host.address == address), None)

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

    async def usage(self, access: HostAccess) -> HostUsage:
        """What its VMs and those on their way take."""
        capacity = await self.capacity(access)
        return HostUsage(
            vms=len(capacity.vm_uuids),
            memory_used_mib=capacity.memory_used_mib,
            cpus_used=capacity.cpus_used,
            at=datetime.now(UTC),
        )

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        """Its VMs and those on their way."""
        host = await self._reach(access)
        vms = [*host.vms.values(), *host.arriving.values()]
        return sorted(vms, key=lambda vm: vm.name)

    async def defined_vms(self, access: HostAccess) -> list[str]:
        """All are defined where they are active."""
        return [vm.name for vm in await self.list_vms(access)]

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

    async def host_cpu(self, access: HostAccess) -> HostCpu | None:
        """All hosts are alike."""
        await self._reach(access)
        return HostCpu(architecture="x86_64", virt_type="kvm", xml=_CPU_XML)

    async def cpu_shortfall(self, access: HostAccess, cpu: HostCpu) -> str | None:
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

    async def follow_migration(
        self, source: HostAccess, uuid: str, on_progress: Callable[[MigrationProgress], None]
    ) -> None:
        """A migration ends with its caller: there is never one to follow."""
        await self._reach(source)

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

    async def pause(self, access: HostAccess, uuid: str) -> None:
        """None ever runs twice."""
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
        if fence.operation is not None:
            return f"{FENCED}{fence.operation}"
        return None if fence.closed is None else f"{CLOSED}{fence.closed}"

    async def forget(self, host: str) -> None:
        """Nothing is open."""

    async def close(self) -> None:
        """Nothing is open."""

    async def _reach(self, access: HostAccess) -> SimulatedHost:
        await asyncio.sleep(_CALL_S)
        host = self._cluster.host(access)
        if host.trouble is Trouble.HANGING:
            await asyncio.sleep(_GIVES_UP_S)
            raise CallTimedOut(f"{host.name} did not answer within {_GIVES_UP_S:g} s.")
        return host


class SimulatedFence:
    """Fence."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def install(self, access: HostAccess, epoch: int) -> bool:
        """The hook is always there."""
        await self.read(access)
        return False

    async def refresh(self, access: HostAccess) -> bool:
        """The hook is always there."""
        await self.read(access)
        return False

    async def put_up(self, access: HostAccess, operation: str, epoch: int) -> None:
        """From now on migrations to the host and probes are refused."""
        await self.read(access)
        self._set(access, operation=operation, epoch=epoch)

    async def take_down(self, access: HostAccess, epoch: int) -> None:
        """They are not any more."""
        await self.read(access)
        self._set(access, operation=None, epoch=epoch)

    async def close(self, access: HostAccess, because: str, generation: int) -> None:
        """From now on probes are refused."""
        await self.read(access)
        self._set(access, closed=because)

    async def reopen(self, access: HostAccess, generation: int) -> None:
        """They are not any more."""
        await self.read(access)
        self._set(access, closed=None)

    async def read(self, access: HostAccess) -> FenceState:
        """As it is."""
        await asyncio.sleep(_CALL_S)
        return self._cluster.host(access).fence

    async def restart_libvirtd(self, access: HostAccess) -> None:
        """There is none."""
        await self.read(access)

    def _set(self, access: HostAccess, **changes: Any) -> None:
        host = self._cluster.host(access)
        host.fence = dataclasses.replace(host.fence, **changes)


class SimulatedNeighbours:
    """Neighbours."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def reach(self, peer: HostAccess, address: str, port: int, seconds: int) -> Reach:
        """Hosts reach each other, unless one is away."""
        await asyncio.sleep(_CALL_S)
        self._cluster.host(peer)
        host = self._cluster.find(address)
        away = host is None or host.trouble is Trouble.AWAY
        return Reach.NO_ANSWER if away else Reach.CONNECTED


def troubled(hosts: int, troubles: Mapping[Trouble, int]) -> dict[str, Trouble]:
    """Which of the hosts sim-1 to sim-`hosts` have which trouble: the last ones."""
    names = [f"sim-{number}" for number in range(hosts, 0, -1)]
    kinds = [trouble for trouble in Trouble for _ in range(troubles.get(trouble, 0))]
    return dict(zip(names, kinds, strict=False))


class SimulatedInspector:
    """HostInspector: every host is as it should be."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def log_in(self, access: HostAccess) -> None:
        """Every credential is right."""
        await asyncio.sleep(_CALL_S)
        self._cluster.host(access)

    async def inspect(self, access: HostAccess) -> HostReport:
        """All is there."""
        await self.log_in(access)
        return HostReport(
            skew_s=0,
            uid=0,
            operating_system="Debian GNU/Linux 12",
            package_manager=PackageManager.APT,
            **EVERYTHING,
        )

    async def forget(self, host: str) -> None:
        """Nothing is open."""


def address_of(number: int) -> str:
    """The address of sim-`number`."""
    return str(ip_address(FIRST_ADDRESS) + number - 1)


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
