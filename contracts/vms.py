"""VMs (libvirt domains) as a host shows them, and their migrations."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from contracts.base import Contract, Name, VmName

# Why a VM runs at its source (virsh's words), whose migration had paused it there and then failed.
GIVEN_BACK = "migration canceled"


class VmState(StrEnum):
    """libvirt's virDomainState, by its names in virsh."""

    RUNNING = "running"
    IDLE = "idle"
    PAUSED = "paused"
    IN_SHUTDOWN = "in shutdown"
    SHUT_OFF = "shut off"
    CRASHED = "crashed"
    SUSPENDED = "pmsuspended"
    NO_STATE = "no state"


# A VM in one of these has a guest that somebody may miss.
ACTIVE_VM_STATES = frozenset(VmState) - {VmState.SHUT_OFF, VmState.NO_STATE, VmState.CRASHED}


class Vm(Contract):
    """A domain on a host.

    Attributes:
        memory_mib: maximum memory (libvirt's `<memory>`), MiB: what a destination must have.
        state_reason: libvirt's reason of the state ("I/O error"), or "".
        host_devices: devices of the host given to the VM (PCI, USB, mdev), as short labels.
        host_directories: directories of the host given to the VM (9p, virtiofs).
        local_disks: paths of writable disks on storage that other hosts do not share.
        shared_disks: paths of disks on storage that is declared shared (`storage.shared.paths`).
        media: paths of read-only images (CD-ROM, floppy) that its host must have.
        networks: libvirt networks that its interfaces are on.
        interfaces: bridges and network devices of the host that its interfaces are on.
        snapshots: how many libvirt keeps of it; it does not migrate a VM that has any.
        pinned_cpus: numbers of the host's CPUs that it is bound to.
        huge_page_kib: size of the huge pages that its memory is made of, None for ordinary ones.
        paused_by_migration: paused because a migration of it runs, ended half-way or failed;
            libvirt's pause reasons "migration", "starting up" and "post-copy".
        incoming: the half of a migration that comes to this host: not the host's own VM yet.
        cpu_xml: its `<cpu>` element as libvirt expanded it, or None when it has none.
    """

    name: VmName
    uuid: str
    state: VmState
    memory_mib: int = Field(ge=0)
    vcpus: int = Field(ge=0)
    persistent: bool = True
    paused_by_migration: bool = False
    incoming: bool = False
    architecture: str = "x86_64"
    machine: str = ""
    emulator: str = ""
    virt_type: str = "kvm"
    cpu_xml: str | None = None
    state_reason: str = ""
    host_devices: tuple[str, ...] = ()
    host_directories: tuple[str, ...] = ()
    local_disks: tuple[str, ...] = ()
    shared_disks: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    snapshots: int = 0
    pinned_cpus: tuple[int, ...] = ()
    huge_page_kib: int | None = None

    @property
    def runs(self) -> bool:
        """Its guest is here, as far as this host knows: not only a half of a migration."""
        return self.state in ACTIVE_VM_STATES and not self.paused_by_migration


class MigrationState(StrEnum):
    """Where one VM of an evacuation stands."""

    WAITING = "waiting"
    MIGRATING = "migrating"
    MOVED = "moved"
    FAILED = "failed"
    KEPT = "kept"
    SHUT_OFF = "shut off"
    GONE = "gone"
    STAYED = "stayed"
    RESTARTED = "restarted"
    CANCELED = "canceled"


class VmMigration(Contract):
    """Progress of one VM's live migration, as the inventory holds it while it runs and after.

    Attributes:
        tls: peer-to-peer and by TLS; otherwise Hostler carries the commands, by SSH.
        percent: of the memory transferred, 0 to 100.
        rate_mib_s: MiB per second at the last look.
        remaining_mib: memory (and storage that is copied) left to transfer.
        dirty_rate_mib_s: MiB per second that the guest writes anew.
        iteration: which pass over the memory this is; the first copies all of it.
        throttle_percent: CPU time that auto-converge takes from the guest.
        expected_end_at: when it ends if it goes on like this; None: not in sight.
    """

    operation: str
    vm: VmName
    source: Name
    destination: Name
    tls: bool = False
    state: MigrationState
    percent: int = Field(ge=0, le=100)
    rate_mib_s: float
    remaining_mib: float
    dirty_rate_mib_s: float = 0
    iteration: int = 0
    throttle_percent: int = 0
    expected_end_at: datetime | None = None
    attempt: int
    error: str | None
    started_at: datetime
    finished_at: datetime | None
