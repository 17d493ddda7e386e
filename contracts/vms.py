"""VMs (libvirt domains) as a host shows them, and their migrations."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from contracts.base import Contract, Name, VmName


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


class Vm(Contract):
    """A domain on a host.

    Attributes:
        memory_mib: maximum memory (libvirt's `<memory>`), MiB: what a destination must have.
        host_devices: devices of the host given to the VM (PCI, USB, mdev), as short labels.
        local_disks: paths of disks on storage that other hosts do not share.
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
    host_devices: tuple[str, ...] = ()
    local_disks: tuple[str, ...] = ()


class MigrationState(StrEnum):
    """Where one VM of an evacuation stands."""

    WAITING = "waiting"
    MIGRATING = "migrating"
    MOVED = "moved"
    FAILED = "failed"
    KEPT = "kept"
    SHUT_OFF = "shut off"
    GONE = "gone"
    CANCELED = "canceled"


class VmMigration(Contract):
    """Progress of one VM's live migration, as the inventory holds it while it runs and after.

    Attributes:
        percent: of the memory transferred, 0 to 100.
        rate_mib_s: MiB per second at the last look.
        remaining_mib: memory left to transfer.
    """

    operation: str
    vm: VmName
    source: Name
    destination: Name
    state: MigrationState
    percent: int = Field(ge=0, le=100)
    rate_mib_s: float
    remaining_mib: float
    attempt: int
    error: str | None
    started_at: datetime
    finished_at: datetime | None
