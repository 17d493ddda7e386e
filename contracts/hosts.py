"""Zones, pods, clusters, hosts, events: what the inventory shows of them."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from contracts.base import Contract, Name, SortedInJson
from contracts.oobm import HostPower
from contracts.states import AllocationState, HostStatus, ResourceState, TlsState

# The machine is not a host, or not one any more.
_NO_HOSTS = frozenset({ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED})


class Zone(Contract):
    """A data centre; the top of the hierarchy."""

    name: Name
    allocation_state: AllocationState
    oobm_enabled: bool = True


class Pod(Contract):
    """A part of a zone: a rack or a row."""

    name: Name
    zone: Name
    allocation_state: AllocationState


class Cluster(Contract):
    """Hosts between which VMs can live-migrate."""

    name: Name
    pod: Name
    zone: Name
    allocation_state: AllocationState
    oobm_enabled: bool = True


class HostFacts(Contract):
    """What a host says about itself.

    Versions are "major.minor.release" as libvirt reports them; `uuid` is libvirt's host UUID;
    `addresses` are its own on the network, sorted.
    """

    uuid: str
    architecture: str
    cpu_model: str
    cpus: int = Field(ge=1)
    memory_mib: int = Field(ge=1)
    libvirt_version: str
    qemu_version: str
    operating_system: str
    addresses: tuple[str, ...] = ()


class HostUsage(Contract):
    """What was seen on a host at its last check: active VMs, and the maxima of what they take."""

    vms: int = Field(ge=0)
    memory_used_mib: int = Field(ge=0)
    cpus_used: int = Field(ge=0)
    at: datetime


class Host(Contract):
    """A hypervisor host as the inventory knows it; never holds a secret.

    Attributes:
        host_key_sha256: fingerprint of the pinned SSH host key, in OpenSSH's format.
        fence: id of the operation for which no VM may start on the host, or None.
        fence_generation: lease epoch under which the fence was last wanted; rises only.
        capacity_memory_mib: an operator's upper bound on the memory of all VMs; None: no bound.
        capacity_cpus: the same for virtual CPUs.
        reserved_memory_mib: memory kept for the host itself.
        tags: properties that VMs may ask for: those that do are only sent to hosts that have them.
        tls_again: while it is being re-installed, what of `tls` it gets again; None: it is not.
        secured: its libvirtd takes and gives VMs by TLS only; the same as `tls` being so.
        state_before_maintenance: what leaving the maintenance gives back.
        status_reason: what the last change of `status` was based on.
        checked_at: when the host was last looked at by the schedule.
        missed_checks: checks in a row that it did not answer.
        read_at: when it was last read in full, with its facts.
        peers_reach: whether other hosts of its cluster reached its SSH port while it was Up: only
            then does it tell anything that they do not. None: none was able to tell yet.
        closed: the host itself refuses VMs that were not there before, because it, its cluster, pod
            or zone is `Disabled`; says what the host was last told, not what is wanted. None: it is
            not sure what it was told.
        being_reinstalled: its trust was withdrawn, and it is not back in service yet.
        power: what its BMC last said; None: it has no out-of-band management.
    """

    name: Name
    zone: Name
    pod: Name
    cluster: Name
    address: str
    ssh_port: int = 22
    user: str
    host_key_sha256: str | None
    being_reinstalled: bool = False
    resource_state: ResourceState
    state_before_maintenance: ResourceState | None
    status: HostStatus
    status_reason: str = ""
    status_since: datetime | None = None
    checked_at: datetime | None = None
    missed_checks: int = 0
    read_at: datetime | None = None
    peers_reach: bool | None = None
    closed: bool | None = None
    usage: HostUsage | None = None
    power: HostPower | None = None
    fence: str | None
    fence_generation: int
    facts: HostFacts | None
    capacity_memory_mib: int | None
    capacity_cpus: int | None
    reserved_memory_mib: int
    tags: Annotated[frozenset[str], SortedInJson] = frozenset()
    secured: bool = False
    tls: TlsState = TlsState.NONE
    tls_again: TlsState | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def is_machine(self) -> bool:
        """Whether it is a host by now, and still one."""
        return self.resource_state not in _NO_HOSTS

    @property
    def tls_in_service(self) -> TlsState:
        """What VMs find there: of one that is being re-installed, what it gets before any come."""
        return self.tls if self.tls_again is None else self.tls_again


class RemovedHost(Contract):
    """A machine that was removed from the inventory; it is only added again on purpose.

    Attributes:
        vms: names of those that were last seen there.
        cleaned_at: when nothing of Hostler's was left on it; None: that was never seen.
        settled_at: since when nobody is to clean it any more although it was never seen clean;
            `cleaning_problem` says why.
        tried_at: when it was last tried to clean it, in vain.
    """

    id: int
    name: Name
    cluster: Name
    address: str
    ssh_port: int
    uuid: str | None
    host_key_sha256: str
    forced: bool
    reason: str
    vms: tuple[str, ...]
    operation: str
    removed_at: datetime
    cleaned_at: datetime | None
    settled_at: datetime | None = None
    tried_at: datetime | None = None
    cleaning_problem: str


class Event(Contract):
    """One line of the audit trail: who did what to which subject, when, in which operation.

    `from_state`, `to_state` and `reason` say of a change of state what `message` says in words; a
    subject that is new has no `from_state`. `actor`: `token:NAME`, or the operation that did it.
    """

    id: int
    at: datetime
    kind: str
    subject: str
    message: str
    from_state: str | None = None
    to_state: str | None = None
    reason: str | None = None
    operation: str | None
    actor: str
