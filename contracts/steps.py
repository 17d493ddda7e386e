"""What activities take and give: one frozen model each way."""

from enum import StrEnum

from pydantic import Field

from contracts.addition import Port, UserName
from contracts.base import Contract, Name, VmName
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.states import HostStatus, ResourceState
from contracts.vms import Vm


class HostRef(Contract):
    """A host by name."""

    host: Name


class SurveyInput(Contract):
    """Which host to survey; `only`: one VM of it, by UUID, instead of all."""

    host: Name
    only: str | None = None


class AcquireLeaseInput(Contract):
    """Who wants which lease, what for. `known`: the host must be in the inventory already."""

    host: Name
    scope: LeaseScope = LeaseScope.PLACEMENT
    owner: Owner
    purpose: str
    known: bool = True


class ChangeStateInput(Contract):
    """One compare-and-set of a host's resource state. `step` makes a repetition recognizable."""

    lease: LeaseRef
    expected: frozenset[ResourceState]
    target: ResourceState
    step: str
    reason: str


class RemainingVms(Contract):
    """Active domains of a host in one snapshot, and VMs that are still on their way to it."""

    vms: tuple[Vm, ...]
    arriving: tuple[VmName, ...]


class MigrateVmInput(Contract):
    """One live migration to one destination. `max_parallel` bounds source and destination."""

    lease: LeaseRef
    vm: VmName
    uuid: str
    destination: Name
    memory_mib: int
    vcpus: int
    max_parallel: int


class VmFate(StrEnum):
    """Where a VM was found after the step."""

    MOVED = "moved"
    AT_SOURCE = "at source"
    SHUT_OFF = "shut off"
    GONE = "gone"


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
    """The fence of the lease's host; `operation` is what the refusal names."""

    lease: LeaseRef
    operation: str


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


class SetStatusInput(Contract):
    """What was seen of the host."""

    lease: LeaseRef
    status: HostStatus
    reason: str
