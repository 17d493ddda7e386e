"""KVM hosts through libvirt. What is odd about libvirt is here and nowhere else.

**Threads.** libvirt's calls block, and can't be cancelled. Each host has threads of its own (one
for control, a few for migrations), so a host that hangs takes no other with it, and every call has
a deadline. The sockets that the calls wait on are tunnels served by the event loop: a libvirt call
made *on* the loop would wait for itself for ever. When a deadline passes, the tunnel is broken, and
that ends the call, as an error, in its thread.

**Migrations** are managed, unless both hosts have certificates (see the end): this process carries
the commands between two hosts that need not trust each other. Each has connections of its own at
both ends, so that one that is stuck can be broken without hurting others. VIR_MIGRATE_UNSAFE is set
only where the operator has declared the storage
shared: what libvirt calls unsafe corrupts disks.

**A client that dies** (measured with libvirt 9.0.0 and QEMU 7.2 by cutting both of its connections
at each message of the protocol: tests/drivers/test_migration_cut.py) leaves:

- Before or during the copy of the memory: libvirt aborts the job, the VM runs on at the source, the
  destination removes what it had begun.
- After the copy (Perform), before the destination was told to let the VM run (Finish): the source
  is "paused (migrating)", the destination has removed its half. The VM runs nowhere until `resume`
  at the source.
- After Finish, before the source was told (Confirm): the source is "paused (migrating)" and still
  defined, the VM runs at the destination. `discard_migrated` at the source ends it. If it was only
  Confirm that got lost, migrate3 even reports success.
- With Confirm's answer lost: finished at both ends.
- No job (`jobStats`), as soon as the destination's libvirtd has removed its half: that is what ends
  a copy without its client. If that libvirtd hangs, the copy goes on until somebody aborts it.

**A VM that runs twice.** If only the connection to the destination breaks, after Finish was sent,
libvirt's client library can't know whether the VM runs there, and tells the source to go on
(Confirm, cancelled): measured, both run. So the migration's connection to the source is always
broken *before* the library learns that the one to the destination is gone, and the latter has no
keepalive of libvirt's own, on which the library would act by itself. The source then stays "paused
(migrating)", and the caller looks at the destination first.

**Guests that write faster than is copied** (measured with 32 MiB that are rewritten for ever, and
16 MiB/s for the migration: tests/drivers/test_convergence.py). Each pass leaves what was written
meanwhile, at most what the guest works on, so `dirty_rate_mib_s` stays near the bandwidth and
`expected_s` comes and goes: only the number of passes tells that there is no end.

- Auto-converge begins after the third pass with 20 % of the guest's CPU time, and takes 10 % more
  at every second pass: it ended in the 21st, at 90 %, after 43 s.
- `suspend` makes the next pass the last one. The source is "paused (migrating)" until then, and
  the VM runs at the destination by itself.
- If the migration fails while the VM is paused so (aborted, its client gone, libvirtd restarted at
  the source, QEMU killed at the destination), libvirtd at the source lets it run again by itself.

**Disks** are copied (NBD) while the VM runs, to a port that the destination's libvirtd takes from
the same range as for memory, at the address of the migration's URI; managed migrations can do it.
The file at the destination must be there before, and what an earlier copy has left in it does not
matter (measured: tests/drivers/test_disks.py). The source keeps its file.

**By TLS** (MigrationOptions.tls) migrations are peer-to-peer: the source's libvirtd is a client of
the destination's (qemu+tls), and VIR_MIGRATE_TLS has both QEMUs encrypt memory and disks.

- The client that asked for it is not needed any more: when it dies, or its connection breaks, the
  job goes on. `follow_migration` watches it to its end; a cancel aborts it as any other.
- The source's libvirtd gives up on a destination that does not answer its keepalives (qemu.conf:
  5 times 5 s) and on one whose connection breaks.
- It can't know either whether the VM runs there if that happens between Finish and its answer, and
  lets it run on at the source (Confirm, cancelled). Nobody else can prevent that. So a VM that was
  paused and given back (GIVEN_BACK) is only believed to be at its source alone when the destination
  has said so.
"""

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import libvirt

from contracts.errors import HostlerError, Unavailable
from contracts.evacuation import HostEnvironment
from contracts.hosts import HostFacts, HostUsage
from contracts.vms import Vm, VmState
from drivers import domain_xml
from drivers.commands import check
from drivers.errors import (
    CallTimedOut,
    HostUnreachable,
    HypervisorFailed,
    MigrationAborted,
    MigrationRefused,
    TlsRefused,
    VmNotFound,
)
from drivers.pool import Pool, look_at
from drivers.protocols import (
    CLOSED,
    FENCED,
    Capacity,
    DiskImage,
    HostAccess,
    HostCpu,
    MigrationOptions,
    MigrationProgress,
    RemoteShell,
)
from drivers.tls import open_tls_tunnel

T = TypeVar("T")
Work = Callable[["libvirt.virConnect"], T]

_PROBE = "hostler-fence-probe-"
_MIGRATION_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
_GONE = frozenset({VmState.SHUT_OFF, VmState.NO_STATE})
_NOT_ACTIVE = _GONE | {VmState.CRASHED}
# Says which of the names on its standard input do not exist.
_TELL_MISSING = [
    *("xargs", "-0", "sh", "-c"),
    'for path; do [ -e "$path" ] || printf "%s\\0" "$path"; done',
    "missing-files",
]
# A "cell" (NUMA node) for libvirt that stands for all of them.
_WHOLE_HOST = -1
_ABORT_AGAIN_S = 0.3
_PROGRESS_S = 1.0

_log = logging.getLogger(__name__)


class Tunnel(Protocol):
    """One connection to a UNIX socket on a host, offered at a local path."""

    @property
    def path(self) -> Path:
        """Where libvirt connects to."""

    @property
    def dead(self) -> bool:
        """True once either end has closed it."""

    def at_end(self, action: Callable[[], None]) -> None:
        """Do `action` when it breaks or is closed, before the local end gets to know."""

    def abort(self) -> None:
        """Break it at once."""

    async def close(self) -> None:
        """Break it, and free what it holds. May be called more than once."""


class TunnellingShell(RemoteShell, Protocol):
    """A RemoteShell that also reaches UNIX sockets."""

    async def open_unix_tunnel(self, access: HostAccess, remote_path: str) -> Tunnel:
        """Raises HostUnreachable, CallTimedOut, HostKeyChanged, LoginRefused, SudoRefused."""


class LibvirtHypervisor:
    """Hypervisor with libvirt's UNIX socket on the host, through SSH, or by TLS.

    Args:
        shell: makes the tunnels. It stays the caller's to close.
        migration_threads: migrations that may run from one host at the same time; more wait.
        call_timeout: seconds for a call, its wait for the host's control thread included.
        abort_timeout: seconds for an aborted migration to end before its connections are cut.
        keepalive_interval: seconds between libvirt's own keepalives, which notice a hung daemon.
        keepalive_count: how many of them may go unanswered.
        socket: libvirtd's socket on the hosts.
        on_broken_tls: told when a host that is to be reached by TLS was reached by its socket.
    """

    def __init__(
        self,
        shell: TunnellingShell,
        *,
        migration_threads: int = 8,
        call_timeout: float = 30.0,
        abort_timeout: float = 30.0,
        keepalive_interval: int = 5,
        keepalive_count: int = 3,
        socket: str = "/run/libvirt/libvirt-sock",
        on_broken_tls: Callable[[str, HostlerError], Awaitable[None]] | None = None,
    ) -> None:
        self._shell = shell
        self._migration_threads = migration_threads
        self._call_timeout = call_timeout
        self._abort_timeout = abort_timeout
        self._keepalive = (keepalive_interval, keepalive_count)
        self._socket = socket
        self._on_broken_tls = on_broken_tls or _say_broken_tls
        self._threads: dict[str, _Threads] = {}
        self._links = Pool(self._open)
        self._migration_links: set[_Link] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        _start_event_loop()

    async def facts(self, access: HostAccess) -> HostFacts:
        """Read what the host says about itself."""

        def read(connection: libvirt.virConnect) -> HostFacts:
            host = domain_xml.read_capabilities(connection.getCapabilities())
            memory_mib, cpus = _size(connection)
            return HostFacts(
                uuid=host.uuid,
                architecture=host.architecture,
                cpu_model=host.cpu_model or connection.getInfo()[0],
                cpus=cpus,
                memory_mib=memory_mib,
                libvirt_version=domain_xml.version(connection.getLibVersion()),
                qemu_version=domain_xml.version(connection.getVersion()),
                operating_system="unknown",
            )

        facts = await self._ask(access, "its facts", read)
        release = await self._shell.run(
            access, ["cat", "/etc/os-release"], timeout=self._call_timeout
        )
        return facts.model_copy(
            update={
                "operating_system": domain_xml.pretty_name(release.stdout),
                "addresses": tuple(sorted((await self._network_links(access)).addresses)),
            }
        )

    async def capacity(self, access: HostAccess) -> Capacity:
        """Memory and CPUs, and what active domains take of them (their maxima)."""

        def read(connection: libvirt.virConnect) -> Capacity:
            memory_mib, cpus = _size(connection)
            vms = _active_vms(connection)
            return Capacity(
                memory_mib=memory_mib,
                cpus=cpus,
                memory_used_mib=sum(vm.memory_mib for vm in vms),
                cpus_used=sum(vm.vcpus for vm in vms),
                vm_uuids=frozenset(vm.uuid for vm in vms),
            )

        return await self._ask(access, "its capacity", read)

    async def usage(self, access: HostAccess) -> HostUsage:
        """Active VMs, and the maxima of what they take, in a single call that waits for no QEMU."""
        return await self._ask(access, "how much it is used", _usage)

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        """All active domains (running, paused, ...), in one snapshot, by name."""
        return await self._ask(access, "its VMs", _active_vms)

    async def find_vm(self, access: HostAccess, uuid: str) -> Vm | None:
        """The domain with that UUID, active or only defined, or None."""

        def find(connection: libvirt.virConnect) -> Vm:
            return _read_vm(connection, connection.lookupByUUIDString(uuid))

        try:
            return await self._ask(access, f"VM {uuid}", find)
        except VmNotFound:
            return None

    async def defined_vms(self, access: HostAccess) -> list[str]:
        """Names of the domains that are defined persistently, active or not."""

        def read(connection: libvirt.virConnect) -> list[str]:
            domains = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)
            return sorted(domain.name() for domain in domains)

        return await self._ask(access, "which VMs are defined", read)

    async def environment(self, access: HostAccess) -> HostEnvironment:
        """What the host offers to VMs beside memory and CPUs."""

        def read(connection: libvirt.virConnect) -> HostEnvironment:
            networks = connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE)
            pools = connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
            online = connection.getCPUMap()[1]
            return HostEnvironment(
                networks=frozenset(network.name() for network in networks),
                pools=frozenset(pool.name() for pool in pools),
                cpus=frozenset(cpu for cpu, is_online in enumerate(online) if is_online),
                free_pages=_free_huge_pages(connection),
            )

        environment = await self._ask(access, "its environment", read)
        links = await self._network_links(access)
        return environment.model_copy(
            update={"interfaces": links.devices, "addresses": links.addresses}
        )

    async def _network_links(self, access: HostAccess) -> domain_xml.Links:
        return domain_xml.read_links(
            await self._output(access, ["ip", "-json", "-details", "address"])
        )

    async def missing_files(self, access: HostAccess, paths: Collection[str]) -> frozenset[str]:
        """Which of the paths (POOL/VOLUME for a volume) do not exist on the host."""
        files = [path for path in paths if path.startswith("/")]
        volumes = [path for path in paths if not path.startswith("/")]
        missing: frozenset[str] = frozenset()
        if files:
            # Names come by standard input: there may be many, and with anything in them.
            told = await self._output(access, _TELL_MISSING, stdin="\0".join(files))
            missing |= frozenset(filter(None, told.split("\0")))
        if volumes:
            missing |= await self._ask(
                access, "its volumes", lambda connection: _missing_volumes(connection, volumes)
            )
        return missing

    async def disks(self, access: HostAccess, uuid: str, paths: Collection[str]) -> list[DiskImage]:
        """The VM's disks that have any of `paths` (Vm.local_disks) in them, to be copied.

        Raises VmNotFound; HypervisorFailed, naming the disk, if one of them can't be copied: only
        files can, without a backing file, in format raw or qcow2.
        """

        def read(connection: libvirt.virConnect) -> list[DiskImage]:
            domain = connection.lookupByUUIDString(uuid)
            return [
                DiskImage(disk.target, disk.path, disk.format, domain.blockInfo(disk.target)[0])
                for disk in domain_xml.read_copyable_disks(domain.XMLDesc(), paths)
            ]

        return await self._ask(access, f"for the disks of {uuid}", read)

    async def cpu_incompatibility(self, access: HostAccess, vm: Vm) -> str | None:
        """Why the host's CPU can't run `vm`, by libvirt's compareHypervisorCPU; None: it can.

        A VM whose CPU is the host's own (host-passthrough) is judged by its present host's CPU as
        libvirt describes it: see `list_vms`.
        """
        cpu_xml = vm.cpu_xml
        if cpu_xml is None:
            return None
        return await self._ask(
            access,
            f"whether it can run {vm.name}",
            lambda connection: _cpu_verdict(
                connection, vm.emulator, vm.architecture, vm.machine, vm.virt_type, cpu_xml
            ),
        )

    async def host_cpu(self, access: HostAccess) -> HostCpu | None:
        """The host's own CPU; None: libvirt does not know it well enough to compare it."""

        def read(connection: libvirt.virConnect) -> HostCpu | None:
            host = domain_xml.read_capabilities(connection.getCapabilities())
            xml = domain_xml.host_cpu(
                connection.getDomainCapabilities(None, host.architecture, None, host.virt_type)
            )
            if xml is None:
                return None
            if _cpu_verdict(connection, "", host.architecture, "", host.virt_type, xml) is not None:
                return (
                    None  # what the host itself is not by libvirt's word, no other is compared by
                )
            return HostCpu(architecture=host.architecture, virt_type=host.virt_type, xml=xml)

        return await self._ask(access, "its CPU", read)

    async def cpu_shortfall(self, access: HostAccess, cpu: HostCpu) -> str | None:
        """Why this host's CPU can't do all that `cpu` can; None: it can."""
        return await self._ask(
            access,
            "to compare CPUs",
            lambda connection: _cpu_verdict(
                connection, "", cpu.architecture, "", cpu.virt_type, cpu.xml
            ),
        )

    async def migrate(
        self,
        source: HostAccess,
        destination: HostAccess,
        uuid: str,
        options: MigrationOptions,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Live-migrate a domain. A cancel aborts the job and waits for its end.

        A cancel that comes too late ends like one in time, with CancelledError: look where the VM
        is. Raises VmNotFound; MigrationAborted and MigrationRefused with the VM running at the
        source; HostUnreachable, CallTimedOut or HypervisorFailed if that is not certain.
        """
        vm = await self.find_vm(source, uuid)
        if vm is None:
            raise VmNotFound(f"{source.name} has no VM {uuid}.")
        if options.tls:
            await self._migrate_by_tls(source, destination, vm, options, on_progress)
            return
        parameters, flags = _migration(options)
        async with contextlib.AsyncExitStack() as stack:
            here = await self._open_for_migration(stack, source, self._keepalive)
            try:
                there = await self._open_for_migration(stack, destination, None)
            except Unavailable as error:
                raise _no_destination(vm, destination, error) from error
            there.tunnel.at_end(here.tunnel.abort)

            def run() -> None:
                domain = here.connection.lookupByUUIDString(uuid)
                domain.migrate3(there.connection, parameters, flags)

            job = self._begin_migration(source, destination, vm, run, here, there)
            watches = [
                asyncio.create_task(self._watch(source, uuid, on_progress)),
                asyncio.create_task(self._guard(destination, there)),
            ]
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError:
                await _to_the_end(self._end_migration(source, uuid, job, there))
                raise
            finally:
                for watch in watches:
                    watch.cancel()
            failure = job.exception()
            if failure is not None:
                raise await self._failure(source, vm, failure) from failure

    async def follow_migration(
        self, source: HostAccess, uuid: str, on_progress: Callable[[MigrationProgress], None]
    ) -> None:
        """Watch a migration by TLS that runs already until it has ended, however."""
        try:
            while (progress := await self.migration_progress(source, uuid)) is not None:
                on_progress(progress)
                await asyncio.sleep(_PROGRESS_S)
        except asyncio.CancelledError:
            with contextlib.suppress(HostlerError):  # whoever looks next finds that it runs
                await _to_the_end(self.abort_migration(source, uuid))
            raise

    async def migration_progress(self, access: HostAccess, uuid: str) -> MigrationProgress | None:
        """Of the migration job that runs for the domain at this host, or None if none runs."""

        def read(connection: libvirt.virConnect) -> MigrationProgress | None:
            stats = _migration_job(connection, uuid)
            return None if stats is None else domain_xml.read_progress(stats)

        return await self._ask(access, f"the migration of {uuid}", read)

    async def abort_migration(self, access: HostAccess, uuid: str) -> bool:
        """Abort a running outgoing migration and wait for its end; False if there was none.

        Raises CallTimedOut if it does not end in time.
        """

        def abort(connection: libvirt.virConnect) -> bool:
            if _migration_job(connection, uuid) is None:
                return False
            with _tolerated(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                connection.lookupByUUIDString(uuid).abortJob()
            return True

        deadline = time.monotonic() + self._abort_timeout
        found = False
        while await self._ask(access, f"to abort the migration of {uuid}", abort):
            found = True
            if time.monotonic() > deadline:
                raise CallTimedOut(
                    f"{access.name} did not end the migration of {uuid} within "
                    f"{self._abort_timeout:g} s."
                )
            await asyncio.sleep(_ABORT_AGAIN_S)
        return found

    async def shut_down(self, access: HostAccess, uuid: str) -> None:
        """Ask the guest to power off (ACPI). Returns at once; look with `find_vm`."""

        def press(connection: libvirt.virConnect) -> None:
            domain = connection.lookupByUUIDString(uuid)
            if domain.isActive():
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

        await self._ask(access, f"to shut down {uuid}", press)

    async def start(self, access: HostAccess, uuid: str) -> None:
        """Start a defined domain that is shut off; an active one stays as it is."""

        def start(connection: libvirt.virConnect) -> None:
            domain = connection.lookupByUUIDString(uuid)
            if not domain.isActive():
                domain.create()

        await self._ask(access, f"to start {uuid}", start)

    async def suspend(self, access: HostAccess, uuid: str) -> None:
        """Pause a domain whose migration runs, so that it can finish: see the top.

        Refuses (HypervisorFailed) any other, and raises VmNotFound when it has just left: look
        where it is. May be called many times while the migration runs.
        """

        def suspend(connection: libvirt.virConnect) -> None:
            domain = connection.lookupByUUIDString(uuid)
            if _migration_job(connection, uuid) is None:
                raise HypervisorFailed(
                    f"{domain.name()} on {access.name} is in no migration that a pause could end."
                )
            domain.suspend()
            if tuple(domain.state()) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER):
                # The migration has failed in between: nothing would let the VM run again.
                domain.resume()
                raise HypervisorFailed(f"The migration of {domain.name()} has just failed.")

        await self._ask(access, f"to pause {uuid}", suspend)

    async def pause(self, access: HostAccess, uuid: str) -> None:
        """Pause a domain that runs, whatever it does; any other stays as it is."""

        def pause(connection: libvirt.virConnect) -> None:
            domain = connection.lookupByUUIDString(uuid)
            if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                domain.suspend()

        await self._ask(access, f"to pause {uuid}", pause)

    async def resume(self, access: HostAccess, uuid: str) -> None:
        """Let a paused domain run. Refuses (HypervisorFailed) one whose post-copy migration failed:
        a part of its memory is at the destination."""

        def resume(connection: libvirt.virConnect) -> None:
            domain = connection.lookupByUUIDString(uuid)
            state, reason = domain.state()
            if state != libvirt.VIR_DOMAIN_PAUSED:
                return
            if reason in (
                libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
                libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
            ):
                raise HypervisorFailed(
                    f"{domain.name()} is in a post-copy migration: its memory is not all here.",
                    remedy="Look at the destination; never resume it at the source.",
                )
            domain.resume()

        await self._ask(access, f"to resume {uuid}", resume)

    async def discard_migrated(self, access: HostAccess, uuid: str) -> None:
        """Remove a paused leftover whose VM runs at the destination: end its QEMU, undefine it.

        Refuses (HypervisorFailed) any domain that is not paused by a migration or shut off. May be
        called many times. The NVRAM file is kept, and a managed save image makes libvirt refuse:
        these may be all that is left of a VM's state.
        """

        def discard(connection: libvirt.virConnect) -> None:
            with _tolerated(libvirt.VIR_ERR_NO_DOMAIN):
                domain = connection.lookupByUUIDString(uuid)
                vm = _read_vm(connection, domain)
                if vm.incoming or (not vm.paused_by_migration and vm.state is not VmState.SHUT_OFF):
                    raise HypervisorFailed(
                        f"{vm.name} on {access.name} is {vm.state}, no leftover of a migration."
                    )
                if vm.paused_by_migration:
                    domain.destroy()
                if vm.persistent:
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)

        await self._ask(access, f"to discard {uuid}", discard)

    async def start_probe(self, access: HostAccess) -> str | None:
        """Try to start a tiny paused domain through libvirt.

        Returns the fence's refusal, or None if it started (it is removed again at once). Whatever
        else keeps it from starting is raised: a broken QEMU is no fence.
        """

        def probe(connection: libvirt.virConnect) -> str | None:
            host = domain_xml.read_capabilities(connection.getCapabilities())
            name = f"{_PROBE}{secrets.token_hex(4)}"
            # Auto-destroy: should this process die right here, libvirtd removes it.
            flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
            try:
                domain = connection.createXML(domain_xml.probe_xml(name, host), flags)
            except libvirt.libvirtError as error:
                text = str(error.get_error_message())
                hook = error.get_error_code() == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED
                if hook and (FENCED in text or CLOSED in text):
                    return text
                raise
            with _tolerated(libvirt.VIR_ERR_NO_DOMAIN):
                domain.destroy()
            return None

        return await self._ask(access, "to start a probe", probe)

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything; what runs through it fails."""
        await self._links.forget(host)
        for link in [link for link in self._migration_links if link.host == host]:
            await link.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._links.close()
        for link in list(self._migration_links):
            await link.close()
        for threads in self._threads.values():
            threads.control.shutdown(wait=False)
            threads.migrations.shutdown(wait=False)
        self._threads.clear()

    async def _output(
        self, access: HostAccess, command: list[str], *, stdin: str | None = None
    ) -> str:
        result = await self._shell.run(access, command, stdin=stdin, timeout=self._call_timeout)
        check(access, command[0], result)
        return result.stdout

    async def _ask(self, access: HostAccess, what: str, work: Work[T]) -> T:
        """Do `work` in the host's control thread."""
        async with self._links.use(access) as link:
            return await self._call(access.name, what, lambda: work(link.connection), link.close)

    async def _call(
        self,
        host: str,
        what: str,
        work: Callable[[], T],
        break_off: Callable[[], Any],
    ) -> T:
        """Run `work` in the control thread of `host`, within the deadline.

        The deadline holds also when the caller is cancelled meanwhile: the thread must come free.
        """
        future = self._threads_of(host).control.submit(_translated, f"{host}, asked {what}", work)
        task = asyncio.create_task(self._bounded(host, what, future, break_off))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        task.add_done_callback(look_at)
        return await asyncio.shield(task)

    async def _bounded(
        self, host: str, what: str, future: "Future[T]", break_off: Callable[[], Any]
    ) -> T:
        done = asyncio.wrap_future(future)
        done.add_done_callback(look_at)  # it may end after its deadline
        await asyncio.wait([done], timeout=self._call_timeout)
        if done.done():
            return done.result()
        # One that has not begun waits for another call, which has a deadline of its own.
        if not future.cancel():
            await break_off()
        raise CallTimedOut(
            f"{host}, asked {what}, did not answer within {self._call_timeout:g} s.",
            remedy="See whether libvirtd hangs there: systemctl status libvirtd.",
        )

    async def _open(self, access: HostAccess) -> "_Link":
        return await self._open_with(access, self._keepalive)

    async def _open_with(self, access: HostAccess, keepalive: tuple[int, int] | None) -> "_Link":
        tunnel = await self._tunnel(access)
        uri = f"qemu+unix:///system?socket={tunnel.path}"

        def connect() -> libvirt.virConnect:
            connection = libvirt.open(uri)
            if keepalive is not None:
                connection.setKeepAlive(*keepalive)
            return connection

        try:
            connection = await self._call(access.name, "to connect", connect, tunnel.close)
        except BaseException:
            await tunnel.close()
            raise
        return _Link(access.name, tunnel, connection, self._threads_of(access.name).control)

    async def _tunnel(self, access: HostAccess) -> Tunnel:
        """By TLS where that is wanted and works, else to the socket."""
        if access.tls is not None:
            try:
                return await open_tls_tunnel(access, access.tls)
            except (HostUnreachable, TlsRefused) as error:
                # By SSH a broken certificate gets repaired.
                broken = error
        tunnel = await self._shell.open_unix_tunnel(access, self._socket)
        if access.tls is not None:
            try:
                await self._on_broken_tls(access.name, broken)
            except BaseException:
                await tunnel.close()
                raise
        return tunnel

    async def _open_for_migration(
        self,
        stack: contextlib.AsyncExitStack,
        access: HostAccess,
        keepalive: tuple[int, int] | None,
    ) -> "_Link":
        link = await self._open_with(access, keepalive)
        self._migration_links.add(link)
        stack.callback(self._migration_links.discard, link)
        stack.push_async_callback(link.close)
        return link

    def _threads_of(self, host: str) -> "_Threads":
        if host not in self._threads:
            self._threads[host] = _Threads(
                control=ThreadPoolExecutor(1, f"libvirt-{host}"),
                migrations=ThreadPoolExecutor(self._migration_threads, f"migrations-{host}"),
            )
        return self._threads[host]

    def _begin_migration(
        self,
        source: HostAccess,
        destination: HostAccess,
        vm: Vm,
        run: Callable[[], None],
        *links: "_Link",
    ) -> "asyncio.Future[None]":
        """`run`, which uses these links, in one of the source's threads."""
        what = f"Migrating {vm.name} from {source.name} to {destination.name}"
        call = self._threads_of(source.name).migrations.submit(_translated, what, run)
        for link in links:
            link.call = call
        job = asyncio.wrap_future(call)
        job.add_done_callback(look_at)
        return job

    async def _migrate_by_tls(
        self,
        source: HostAccess,
        destination: HostAccess,
        vm: Vm,
        options: MigrationOptions,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        try:
            # libvirt waits without end for one that takes the connection and then says nothing.
            await self._ask(destination, "whether it is there", lambda c: c.getLibVersion())
        except Unavailable as error:
            raise _no_destination(vm, destination, error) from error
        parameters, flags = _migration(options)
        uri = f"qemu+tls://{_bracketed(destination.address)}/system"
        async with contextlib.AsyncExitStack() as stack:
            here = await self._open_for_migration(stack, source, self._keepalive)

            def run() -> None:
                here.connection.lookupByUUIDString(vm.uuid).migrateToURI3(uri, parameters, flags)

            job = self._begin_migration(source, destination, vm, run, here)
            watch = asyncio.create_task(self._watch(source, vm.uuid, on_progress))
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError:
                await _to_the_end(self._end_migration(source, vm.uuid, job, here))
                raise
            finally:
                watch.cancel()
        failure = job.exception()
        if failure is None:
            return
        if isinstance(failure, Unavailable):
            # Our connection, or that of the two hosts: with the former the job goes on.
            await self.follow_migration(source, vm.uuid, on_progress)
        raise await self._failure(source, vm, failure) from failure

    async def _watch(
        self, source: HostAccess, uuid: str, on_progress: Callable[[MigrationProgress], None]
    ) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            try:
                progress = await self.migration_progress(source, uuid)
            except HostlerError as error:
                # The migration itself finds out whether that matters.
                _log.info("no progress of %s from %s: %s", uuid, source.name, error)
                continue
            if progress is not None:
                on_progress(progress)

    async def _guard(self, destination: HostAccess, there: "_Link") -> None:
        """Cut a migration off whose destination hangs: its connection has no keepalive (see above),
        but the one for control has."""
        silent = 0
        while silent < 2:
            await asyncio.sleep(self._keepalive[0])
            try:
                await self._ask(destination, "whether it is there", lambda c: c.getLibVersion())
                silent = 0
            except Unavailable as error:
                silent += 1
                _log.warning("a migration to %s runs, but: %s", destination.name, error)
            except HostlerError as error:
                _log.warning("a migration to %s runs, but: %s", destination.name, error)
        there.tunnel.abort()

    async def _end_migration(
        self,
        source: HostAccess,
        uuid: str,
        job: "asyncio.Future[None]",
        link: "_Link",
    ) -> None:
        """Abort until the call returns; cut its connections, by that link, if it does not in
        time."""
        deadline = time.monotonic() + self._abort_timeout

        def abort(connection: libvirt.virConnect) -> None:
            # Before the memory goes and after it went there is nothing to abort.
            connection.lookupByUUIDString(uuid).abortJob()

        while not job.done() and time.monotonic() < deadline:
            with contextlib.suppress(HostlerError):
                await self._ask(source, f"to abort the migration of {uuid}", abort)
            await asyncio.wait([job], timeout=_ABORT_AGAIN_S)
        if not job.done():
            link.tunnel.abort()
            await asyncio.wait([job], timeout=self._abort_timeout)

    async def _failure(self, source: HostAccess, vm: Vm, error: BaseException) -> BaseException:
        """What a failed migration means, by what is found at the source."""
        if not isinstance(error, HostlerError) or isinstance(error, VmNotFound):
            return error
        if isinstance(error, HostUnreachable):
            # The job has lost its client. A destination that hangs does not end it (see above).
            await self.abort_migration(source, vm.uuid)
        deadline = time.monotonic() + self._abort_timeout
        while await self.migration_progress(source, vm.uuid) is not None:
            if time.monotonic() > deadline:
                return error
            await asyncio.sleep(_ABORT_AGAIN_S)
        here = await self.find_vm(source, vm.uuid)
        if here is None or here.state in _NOT_ACTIVE or here.paused_by_migration:
            return error
        aborted = error.details.get("code") == libvirt.VIR_ERR_OPERATION_ABORTED
        kind = MigrationAborted if aborted else MigrationRefused
        return kind(error.message, remedy=error.remedy, details=error.details)


@dataclass(frozen=True)
class _Threads:
    control: ThreadPoolExecutor
    migrations: ThreadPoolExecutor


@dataclass(eq=False)
class _Link:
    """An open connection to a host's libvirtd.

    `call` is the last one that another thread than `thread` makes with it.
    """

    host: str
    tunnel: Tunnel
    connection: libvirt.virConnect
    thread: ThreadPoolExecutor = field(repr=False)
    call: "Future[None] | None" = None
    _closed: bool = False

    @property
    def dead(self) -> bool:
        """libvirt closes its end when the daemon does not answer keepalives any more."""
        return self._closed or self.tunnel.dead

    async def close(self) -> None:
        """Break it; libvirt's own close would wait for an answer, so it comes second."""
        if self._closed:
            return
        self._closed = True
        await self.tunnel.close()
        if self.call is None:
            self._free()
        else:
            # libvirt frees what is closed, and a call that still uses it takes the process down.
            self.call.add_done_callback(lambda _: self._free())

    def _free(self) -> None:
        with contextlib.suppress(RuntimeError):  # the threads have ended
            self.thread.submit(_close_quietly, self.connection)


_OUTGOING = (
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
    libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN,
)


def translate(error: libvirt.libvirtError, what: str) -> HostlerError:
    """Hostler's error for libvirt's, by its code and the part of libvirt it came from."""
    code = error.get_error_code()
    text = " ".join(str(error.get_error_message() or "no reason given").split())
    details = {"code": code}
    message = f"{what}: {text}."
    if code in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN) or (
        error.get_error_domain() == libvirt.VIR_FROM_RPC
    ):
        return HostUnreachable(message, details=details)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return VmNotFound(message, details=details)
    return HypervisorFailed(message, details=details)


def _translated(what: str, work: Callable[[], T]) -> T:
    """In the thread: libvirt's exceptions hold objects that must not be freed on the event loop."""
    try:
        return work()
    except libvirt.libvirtError as error:
        translated = translate(error, what)
    raise translated


class _tolerated(contextlib.suppress):  # noqa: N801 - reads like contextlib's own
    """Ignore libvirt's errors with these codes."""

    def __init__(self, *codes: int) -> None:
        super().__init__(libvirt.libvirtError)
        self._codes = codes

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        return isinstance(error, libvirt.libvirtError) and error.get_error_code() in self._codes


def _active_vms(connection: libvirt.virConnect) -> list[Vm]:
    vms = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with _tolerated(libvirt.VIR_ERR_NO_DOMAIN):  # it ended since
            vm = _read_vm(connection, domain)
            # One that has crashed may still have its QEMU, and with it its memory.
            if vm.state not in _GONE and not vm.name.startswith(_PROBE):
                vms.append(vm)
    return sorted(vms, key=lambda vm: vm.name)


def _usage(connection: libvirt.virConnect) -> HostUsage:
    stats = connection.getAllDomainStats(
        libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_VCPU,
        libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
        | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT,
    )
    vms = [each for domain, each in stats if not domain.name().startswith(_PROBE)]
    return HostUsage(
        vms=len(vms),
        memory_used_mib=sum(int(vm["balloon.maximum"]) for vm in vms) // 1024,
        cpus_used=sum(int(vm["vcpu.maximum"]) for vm in vms),
        at=datetime.now(UTC),
    )


def _read_vm(connection: libvirt.virConnect, domain: libvirt.virDomain) -> Vm:
    state, reason = domain.state()
    vm = domain_xml.read_vm(domain.XMLDesc(), state, reason, persistent=bool(domain.isPersistent()))
    # Checkpoints are none of them: libvirt 9.0.0 migrates a VM that has some (and forgets them).
    vm = vm.model_copy(update={"snapshots": domain.snapshotNum()})
    if vm.paused_by_migration and _is_incoming(domain):
        vm = vm.model_copy(update={"incoming": True})
    if not domain_xml.is_host_passthrough(vm.cpu_xml):
        return vm
    capabilities = connection.getDomainCapabilities(
        vm.emulator or None, vm.architecture, vm.machine or None, vm.virt_type
    )
    return vm.model_copy(update={"cpu_xml": domain_xml.host_cpu(capabilities)})


def _is_incoming(domain: libvirt.virDomain) -> bool:
    """libvirt has no statistics of a migration at its destination, and says so (measured with
    9.0.0: "migration statistics are available only on the source host")."""
    try:
        operation = domain.jobStats().get("operation")
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return True
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            return False
        raise
    return bool(operation == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN)


def _migration_job(connection: libvirt.virConnect, uuid: str) -> dict[str, Any] | None:
    """Statistics of a running migration from the host, or None."""
    with _tolerated(
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,  # it is at its destination
    ):
        stats: dict[str, Any] = connection.lookupByUUIDString(uuid).jobStats()
        running = stats.get("type") in (
            libvirt.VIR_DOMAIN_JOB_BOUNDED,
            libvirt.VIR_DOMAIN_JOB_UNBOUNDED,
        )
        if running and stats.get("operation", 0) in _OUTGOING:
            return stats
    return None


def _migration(options: MigrationOptions) -> tuple[dict[str, object], int]:
    """Parameters and flags for migrate3."""
    parameters: dict[str, object] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"tcp://{_bracketed(options.uri_address)}"
    }
    flags = _MIGRATION_FLAGS
    if options.bandwidth_mib_s is not None:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = options.bandwidth_mib_s
    if options.auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if options.trust_shared_storage:
        flags |= libvirt.VIR_MIGRATE_UNSAFE
    if options.tls:
        flags |= libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_TLS
    if options.copy_disks:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = list(options.copy_disks)
    return parameters, flags


async def _say_broken_tls(host: str, error: HostlerError) -> None:
    _log.warning("%s is reached by its socket: %s", host, error)


def _no_destination(vm: Vm, destination: HostAccess, error: Unavailable) -> MigrationRefused:
    return MigrationRefused(
        f"{vm.name} could not go to {destination.name}: {error.message}", remedy=error.remedy
    )


def _cpu_verdict(
    connection: libvirt.virConnect,
    emulator: str,
    architecture: str,
    machine: str,
    virt_type: str,
    cpu_xml: str,
) -> str | None:
    """Why the host's CPU can't be that one, or None; "" stands for libvirt's default."""
    try:
        connection.compareHypervisorCPU(
            emulator or None,
            architecture,
            machine or None,
            virt_type,
            cpu_xml,
            libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            raise
        return str(error.get_error_message())
    return None


def _size(connection: libvirt.virConnect) -> tuple[int, int]:
    """MiB of memory and CPUs. libvirt has two ways to count memory, and they can disagree."""
    info = connection.getInfo()
    stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    return min(int(info[1]), int(stats["total"]) // 1024), int(info[2])


def _free_huge_pages(connection: libvirt.virConnect) -> dict[int, int]:
    """Size in KiB to how many are free, over all NUMA nodes."""
    sizes = domain_xml.huge_page_sizes(connection.getCapabilities())
    if not sizes:
        return {}
    counts = connection.getFreePages(sizes, _WHOLE_HOST, 1)
    return {size: sum(cell[size] for cell in counts.values()) for size in sizes}


def _missing_volumes(connection: libvirt.virConnect, volumes: Collection[str]) -> frozenset[str]:
    """Each is POOL/VOLUME."""
    missing = set(volumes)
    for volume in volumes:
        pool, _, name = volume.partition("/")
        with _tolerated(libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_STORAGE_VOL):
            connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
            missing.discard(volume)
    return frozenset(missing)


def _close_quietly(connection: libvirt.virConnect) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def _to_the_end(work: Any) -> None:
    """Await `work`, which is bounded by itself, whatever cancels come meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)


_event_loop_lock = threading.Lock()
_event_loop: threading.Thread | None = None


def _start_event_loop() -> None:
    """libvirt's own event loop, once per process: keepalives need it."""
    global _event_loop
    with _event_loop_lock:
        if _event_loop is not None:
            return
        # Otherwise each error is also printed to standard error.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        _event_loop = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
        _event_loop.start()


def _run_events() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            _log.exception("libvirt's event loop")
            time.sleep(1)
