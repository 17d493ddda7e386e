"""The ports that activities are written against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from contracts.hosts import HostFacts
from contracts.vms import Vm


@dataclass(frozen=True)
class HostAccess:
    """How to reach a host: address, pinned key, credential. Stays in the process that made it.

    Attributes:
        host_key: the pinned public key as one line of OpenSSH's format ("ssh-ed25519 AAAA...").
        password: the login password, or None.
        private_key: an OpenSSH private key in PEM, or None.
    """

    name: str
    address: str
    port: int
    user: str
    host_key: str
    password: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class HostKey:
    """A host's public SSH key (`line`, OpenSSH's format) and its SHA256 fingerprint."""

    line: str
    sha256: str


@dataclass(frozen=True)
class CommandResult:
    """What a command on a host answered."""

    exit_status: int
    stdout: str
    stderr: str


class RemoteShell(Protocol):
    """Commands and files on a host. Connections are kept and reopened when they break."""

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        """The key the host shows now, without logging in. Raises HostUnreachable."""

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the remote command's own deadline
    ) -> CommandResult:
        """Run `command` (quoted word by word). Raises HostUnreachable, CallTimedOut,
        HostKeyChanged, LoginRefused; a status other than 0 is an answer, not an error."""

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything."""

    async def close(self) -> None:
        """Close every connection."""


@dataclass(frozen=True)
class Capacity:
    """What a host could give to VMs, and what they take: MiB and virtual CPUs. `vm_uuids`: the VMs
    that are counted as taking it, those on their way in among them."""

    memory_mib: int
    cpus: int
    memory_used_mib: int
    cpus_used: int
    vm_uuids: frozenset[str]


@dataclass(frozen=True)
class MigrationProgress:
    """libvirt's job statistics of a running migration, reduced to what people look at."""

    percent: int
    rate_mib_s: float
    remaining_mib: float


@dataclass(frozen=True)
class MigrationOptions:
    """How to migrate. `uri_address`: the destination's address for the memory stream;
    `bandwidth_mib_s`: upper bound, None for libvirt's default; `unsafe` stays out: see LAB.md."""

    uri_address: str
    bandwidth_mib_s: int | None = None


class Hypervisor(Protocol):
    """A host's hypervisor. Every method may raise HostUnreachable, CallTimedOut,
    HypervisorFailed, HostKeyChanged and LoginRefused."""

    async def facts(self, access: HostAccess) -> HostFacts:
        """Read what the host says about itself."""

    async def capacity(self, access: HostAccess) -> Capacity:
        """Memory and CPUs, and what active domains take of them (their maxima)."""

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        """All active domains (running, paused, ...), in one snapshot, by name."""

    async def find_vm(self, access: HostAccess, uuid: str) -> Vm | None:
        """The domain with that UUID, active or only defined, or None."""

    async def cpu_incompatibility(self, access: HostAccess, vm: Vm) -> str | None:
        """Why the host's CPU can't run `vm`, by libvirt's compareHypervisorCPU; None: it can."""

    async def migrate(
        self,
        source: HostAccess,
        destination: HostAccess,
        uuid: str,
        options: MigrationOptions,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Live-migrate a domain (managed), persistently defined at the destination afterwards and
        no longer at the source. Cancelling the awaiting task aborts the job and waits until
        libvirt has ended it. Raises VmNotFound, MigrationRefused, MigrationAborted."""

    async def migration_progress(self, access: HostAccess, uuid: str) -> MigrationProgress | None:
        """Of the migration job that runs for the domain at this host, or None if none runs."""

    async def abort_migration(self, access: HostAccess, uuid: str) -> bool:
        """Abort a running migration job and wait for its end; False if there was none."""

    async def shut_down(self, access: HostAccess, uuid: str) -> None:
        """Ask the guest to power off (ACPI). Returns at once; look with `find_vm`."""

    async def resume(self, access: HostAccess, uuid: str) -> None:
        """Let a paused domain run."""

    async def discard_migrated(self, access: HostAccess, uuid: str) -> None:
        """Remove a paused leftover whose VM runs at the destination: end its QEMU, undefine it.
        Refuses (HypervisorFailed) any domain that is not paused by a migration or shut off."""

    async def start_probe(self, access: HostAccess) -> str | None:
        """Try to start a tiny paused domain through libvirt. Returns the refusal's text, or None
        if it started (it is removed again at once)."""

    async def forget(self, host: str) -> None:
        """Close what is open to `host`, if anything."""

    async def close(self) -> None:
        """Close every connection."""


@dataclass(frozen=True)
class FenceState:
    """The fence as the host itself has it: the operation it stands for, or None; its epoch."""

    operation: str | None
    epoch: int


class Fence(Protocol):
    """What keeps VMs from starting on a host, whoever asks. `epoch` is the lease's: the host
    refuses one lower than it has seen (EpochRefused)."""

    async def install(self, access: HostAccess, epoch: int) -> bool:
        """Put the hook in place; True if it was missing or different (libvirtd must then be
        restarted once before it calls it)."""

    async def put_up(self, access: HostAccess, operation: str, epoch: int) -> None:
        """Refuse starts and incoming migrations from now on, across reboots."""

    async def take_down(self, access: HostAccess, epoch: int) -> None:
        """Allow them again."""

    async def read(self, access: HostAccess) -> FenceState:
        """The fence as it is now."""

    async def restart_libvirtd(self, access: HostAccess) -> None:
        """Restart the daemon (VMs run on) and wait until it answers."""
