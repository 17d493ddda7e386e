"""The evacuation plan: where each VM of a host goes, and what stands in the way."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from contracts.base import Contract, Name, SortedInJson, VmName
from contracts.vms import Vm

# Blockers whose reasons per candidate are told.
_MOST_DESCRIBED = 30


class BlockerKind(StrEnum):
    """Why a VM can't be live-migrated."""

    HOST_DEVICE = "host device"
    HOST_DIRECTORY = "host directory"
    LOCAL_DISK = "local disk"
    MEDIA = "media"
    SNAPSHOT = "snapshot"
    PINNED_CPU = "pinned cpu"
    HUGE_PAGES = "huge pages"
    NETWORK = "network"
    CPU = "cpu"
    VM_STATE = "vm state"
    POLICY = "policy"
    NO_DESTINATION = "no destination"


class Blocker(Contract):
    """Why one VM can't leave; `candidates` has the reason per host that was looked at."""

    vm: VmName
    kind: BlockerKind
    message: str
    candidates: dict[str, str] = Field(default_factory=dict)


class Move(Contract):
    """One VM and where it goes."""

    vm: VmName
    uuid: str
    destination: Name
    memory_mib: int
    vcpus: int


class EvacuationPlan(Contract):
    """All VMs of `host`: each is in `moves`, or named by a blocker, or was broken before.

    Attributes:
        broken: VMs that had crashed before: there is nothing to move, and no failure of the plan.
        waits_for: hosts that are out of service for other operations, with whose return the plan
            would have no blocker; empty when that would not help.
    """

    host: Name
    moves: tuple[Move, ...] = ()
    blockers: tuple[Blocker, ...] = ()
    broken: tuple[Blocker, ...] = ()
    waits_for: tuple[Name, ...] = ()

    def describe_blockers(self) -> str:
        """One line per blocker with the reason per candidate, for an error message; of many, only
        the first ones."""
        lines = []
        for blocker in self.blockers[:_MOST_DESCRIBED]:
            reasons = "; ".join(f"{host}: {why}" for host, why in blocker.candidates.items())
            lines.append(f"{blocker.vm}: {blocker.message}" + (f" ({reasons})" if reasons else ""))
        if len(self.blockers) > _MOST_DESCRIBED:
            lines.append(f"and {len(self.blockers) - _MOST_DESCRIBED} more VMs")
        return "\n".join(lines)

    def brief(self) -> "EvacuationPlan":
        """The same with the reasons per candidate of the first blockers only: what crosses
        Temporal's boundary may have 2 MiB, and a thousand VMs times a hundred hosts have more."""
        kept = self.blockers[:_MOST_DESCRIBED]
        bare = [
            blocker.model_copy(update={"candidates": {}})
            for blocker in self.blockers[_MOST_DESCRIBED:]
        ]
        return self.model_copy(update={"blockers": (*kept, *bare)})


class Incompatibility(Contract):
    """Why one host can't run one VM, however empty it is."""

    kind: BlockerKind
    message: str


class Candidate(Contract):
    """A host of the cluster as a possible destination.

    Attributes:
        unsuitable: why no VM at all may go there, or None.
        absent: it is unsuitable only because it did not answer, now or when it was checked last.
        out_for: the operation for which it is out of service, if it would be suitable otherwise;
            room and incompatibilities are then those it would have if it came back empty.
        memory_free_mib: after what runs there, what is reserved, and what the host keeps.
        reserved_for: UUIDs of the VMs for which something is reserved there.
        tags: properties that VMs may ask for.
        secured: takes and gives VMs by TLS only.
        certified: can take and give them by TLS.
        vms: names of the VMs that run there or are on their way there, for affinity groups.
        incompatible: VM name to why the host can't run it.
    """

    host: Name
    unsuitable: str | None
    absent: bool = False
    out_for: str | None = None
    memory_free_mib: int
    cpus_free: int
    reserved_for: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    secured: bool = False
    certified: bool = False
    vms: frozenset[str] = frozenset()
    incompatible: dict[str, Incompatibility] = Field(default_factory=dict)


class AffinityKind(StrEnum):
    """Whether the VMs of a group belong on one host, or each on another one."""

    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti-affinity"


class AffinityGroup(Contract):
    """VMs of a cluster that must share a host, or must not. Members are names."""

    name: Name
    kind: AffinityKind
    members: Annotated[frozenset[VmName], SortedInJson]


class VmPolicy(Contract):
    """What an operator has decided about a VM.

    Attributes:
        pinned: it stays where it is, whatever happens to the host.
        reason: why, for whoever finds it in the way.
        tags: it goes only to hosts that have all of these.
    """

    vm: VmName
    pinned: bool = False
    reason: str = ""
    tags: Annotated[frozenset[str], SortedInJson] = frozenset()


class HostEnvironment(Contract):
    """What a host offers to VMs beside memory and CPUs: the names of what is there and active.

    Attributes:
        networks: active libvirt networks.
        interfaces: network devices that are up, bridges among them.
        pools: active libvirt storage pools.
        addresses: IP addresses, without prefix length.
        cpus: numbers of the CPUs that are online.
        free_pages: size of huge pages in KiB to how many are free.
    """

    networks: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    cpus: frozenset[int] = frozenset()
    free_pages: dict[int, int] = Field(default_factory=dict)


class Survey(Contract):
    """What the planner decides on: one look at the host and the others of its cluster.

    Attributes:
        secured: the host takes and gives VMs by TLS only, and so with those alone that can, too.
        certified: it can take and give them by TLS.
        max_parallel: live migrations at a time from or to one host, by the cluster's settings.
        policies: of VMs in the survey that have one.
        groups: affinity groups of the cluster with a member in the survey.
        environment: of the surveyed host itself.
    """

    host: Name
    vms: tuple[Vm, ...]
    candidates: tuple[Candidate, ...]
    max_parallel: int
    secured: bool = False
    certified: bool = False
    policies: tuple[VmPolicy, ...] = ()
    groups: tuple[AffinityGroup, ...] = ()
    environment: HostEnvironment = HostEnvironment()
