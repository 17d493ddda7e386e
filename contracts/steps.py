"""What activities take and give: one frozen model each way."""

from enum import StrEnum

from pydantic import Field

from contracts.addition import Port, UserName
from contracts.base import Contract, Name, VmName
from contracts.evacuation import HostEnvironment, Move, Survey
from contracts.hosts import Host
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.maintenance import MigrationMode
from contracts.preflight import Finding
from contracts.states import HostStatus, ResourceState, TlsState
from contracts.vms import MigrationState, Vm


class HostRef(Contract):
    """A host by name."""

    host: Name


class SurveyInput(Contract):
    """Which host to survey; `only`: one VM of it, by UUID, instead of all."""

    host: Name
    only: str | None = None


class MovedVms(Contract):
    """VMs by name."""

    vms: tuple[VmName, ...]


class ReturnSurveyInput(Contract):
    """Which VMs, by name, are to come back to the host."""

    host: Name
    vms: tuple[VmName, ...]


class ReturnSurvey(Contract):
    """One survey per host that has any of the VMs; its one candidate is the host that they are to
    come back to. `unseen`: hosts that did not answer."""

    surveys: tuple[Survey, ...]
    unseen: tuple[Name, ...] = ()


class AcquireLeaseInput(Contract):
    """Who wants which lease, what for. `known`: the host must be in the inventory already."""

    host: Name
    scope: LeaseScope = LeaseScope.PLACEMENT
    owner: Owner
    purpose: str
    known: bool = True


class AwaitLeaseInput(Contract):
    """Take a lease; wait so long for whoever holds it."""

    acquire: AcquireLeaseInput
    within_s: int


class ChangeStateInput(Contract):
    """One compare-and-set of a host's resource state. `step` makes a repetition recognizable."""

    lease: LeaseRef
    expected: frozenset[ResourceState]
    target: ResourceState
    step: str
    reason: str


class Ticket(Contract):
    """A place in the cluster's queue for maintenance.

    Attributes:
        granted: it is this host's turn.
        ahead: who comes first, or is out already: "kvm-1 (maintenance/kvm-1)".
        most: hosts of the cluster that may be out at a time.
    """

    granted: bool
    ahead: tuple[str, ...] = ()
    most: int


class AwaitTicketInput(Contract):
    """Wait until the ticket differs from `seen`, at most `within_s` seconds."""

    lease: LeaseRef
    seen: Ticket
    within_s: float


class BeginEvacuationInput(Contract):
    """Make the host `PrepareForMaintenance` and set the plan's room aside, in one step.

    Attributes:
        seen: for each destination of the plan, the UUIDs of the VMs for which something was
            reserved there when the plan was made.
    """

    lease: LeaseRef
    moves: tuple[Move, ...]
    seen: dict[Name, frozenset[str]]
    step: str
    reason: str


class AwaitChangeInput(Contract):
    """Wait for something to change about the host or its cluster, at most `within_s` seconds."""

    host: Name
    within_s: float


class WatchVmInput(Contract):
    """Wait until something changes that may let the VM move, at most `within_s` seconds."""

    host: Name
    uuid: str
    within_s: float


class VmChange(StrEnum):
    """What `watch_vm` saw."""

    NONE = "none"
    CHANGED = "changed"
    LEFT = "left"
    """It is not active on the host any more."""


class EventInput(Contract):
    """A line for the audit trail of the lease's host."""

    lease: LeaseRef
    kind: str
    message: str


class CheckHostInput(Contract):
    """Whether the host is fit for service: what it offered before must be there again."""

    host: Name
    environment: HostEnvironment | None


class StartVmInput(Contract):
    """Start a VM that was shut down for the lease's operation."""

    lease: LeaseRef
    vm: VmName
    uuid: str


class RemainingVms(Contract):
    """Active domains of a host in one snapshot, and VMs that are still on their way to it."""

    vms: tuple[Vm, ...]
    arriving: tuple[VmName, ...]


class MigrateVmInput(Contract):
    """One live migration to one destination.

    Attributes:
        max_parallel: bounds source and destination, across all operations.
        copy_storage: its local disks go with it.
        source: where it is now; None: on the lease's host.
    """

    lease: LeaseRef
    vm: VmName
    uuid: str
    destination: Name
    memory_mib: int
    vcpus: int
    max_parallel: int
    mode: MigrationMode = MigrationMode.PLAIN
    copy_storage: bool = False
    source: Name | None = None


class VmFate(StrEnum):
    """Where a VM was found after the step."""

    MOVED = "moved"
    AT_SOURCE = "at source"
    SHUT_OFF = "shut off"
    GONE = "gone"


STATES_OF_FATES = {
    VmFate.MOVED: MigrationState.MOVED,
    VmFate.SHUT_OFF: MigrationState.SHUT_OFF,
    VmFate.GONE: MigrationState.GONE,
}


class MigrateVmResult(Contract):
    """`host` is where it runs now; None when it is gone or shut off. `seconds`: of the migration
    alone, None when the VM was found to be there already."""

    vm: VmName
    fate: VmFate
    host: Name | None
    seconds: float | None = None


class ShutDownVmInput(Contract):
    """Power a VM off by ACPI and wait, at most `timeout_s` seconds."""

    lease: LeaseRef
    vm: VmName
    uuid: str
    timeout_s: float = Field(default=120, gt=0)


class FenceInput(Contract):
    """The fence of the lease's host; `operation` is what the refusal names. `stays_up`: when it has
    been installed, it is wanted from then on."""

    lease: LeaseRef
    operation: str
    stays_up: bool = False


class ScanHostKeyInput(Contract):
    """Which SSH server's key to read."""

    address: str
    ssh_port: Port


class HostKeyResult(Contract):
    """A public SSH host key (one line, OpenSSH's format) and its fingerprint."""

    line: str
    sha256: str


class RegisterHostInput(Contract):
    """The row of a new host, written before anything is changed on the machine."""

    lease: LeaseRef
    cluster: Name
    address: str
    ssh_port: Port
    user: UserName
    secret: str
    host_key_line: str
    host_key_sha256: str
    capacity_memory_mib: int | None
    capacity_cpus: int | None
    reserved_memory_mib: int


class RegisteredHost(Host):
    """`adopted`: the row was there, left by an addition that has ended; what that has begun on the
    machine is not known."""

    adopted: bool = False


class SetStatusInput(Contract):
    """What was seen of the host."""

    lease: LeaseRef
    status: HostStatus
    reason: str


class HandOverMaintenanceInput(Contract):
    """Take the host over from its maintenance. `request`: the same for every attempt."""

    host: Name
    holder: Owner
    successor: str
    request: str


class HandedOver(Contract):
    """Whether it was a maintenance that has ended for its successor just now."""

    handed_over: bool


class PreflightInput(Contract):
    """Look at a host that is to be added, or is back re-installed.

    Attributes:
        host_key: what it shows; None: nothing is known of it.
        log_in: that key was accepted; otherwise only the inventory is asked.
        epoch: of the addition's lease; None: a dry run has none.
        install_packages: what is missing of libvirt and QEMU will be installed.
        returning: it may have been removed before.
        known: it is the host of that name itself, re-installed.
        enabled: it is to be put into service.
    """

    host: Name
    cluster: Name
    address: str
    ssh_port: Port
    user: UserName
    secret: str
    host_key: HostKeyResult | None
    log_in: bool
    epoch: int | None = None
    install_packages: bool = False
    returning: bool = False
    known: bool = False
    enabled: bool = False


class PreflightResult(Contract):
    """All that was found. `lacks_packages`: libvirt's daemon or QEMU is missing, or is not
    running; `tls`: what a new host gets, as others of its cluster have it."""

    findings: tuple[Finding, ...]
    lacks_packages: bool = False
    tls: TlsState = TlsState.NONE


class OwnKeyResult(Contract):
    """Whether the host lets Hostler in with its own key, and why not."""

    proven: bool
    problem: str = ""


class TakeBackResult(Contract):
    """What could not be taken away: jobs that still run."""

    running_jobs: tuple[str, ...] = ()


class TombstonesClosed(Contract):
    """Names under which the host may still let in a key of Hostler's that nobody needs any more."""

    keys_of: tuple[Name, ...]


class FormerKeysInput(Contract):
    """The keys that the lease's host knew Hostler by under other names."""

    lease: LeaseRef
    names: tuple[Name, ...]


class SecretRef(Contract):
    """A stored credential."""

    secret: str
