"""The evacuation plan: where each VM of a host goes, and what stands in the way."""

from enum import StrEnum

from pydantic import Field

from contracts.base import Contract, Name, VmName
from contracts.vms import Vm


class BlockerKind(StrEnum):
    """Why a VM can't be live-migrated."""

    HOST_DEVICE = "host device"
    LOCAL_DISK = "local disk"
    VM_STATE = "vm state"
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
    """All VMs of `host`: each is in `moves` or named by a blocker, never in both."""

    host: Name
    moves: tuple[Move, ...] = ()
    blockers: tuple[Blocker, ...] = ()

    def describe_blockers(self) -> str:
        """One line per blocker and candidate, for an error message."""
        lines = []
        for blocker in self.blockers:
            reasons = "; ".join(f"{host}: {why}" for host, why in blocker.candidates.items())
            lines.append(f"{blocker.vm}: {blocker.message}" + (f" ({reasons})" if reasons else ""))
        return "\n".join(lines)


class Candidate(Contract):
    """A host of the cluster as a possible destination.

    Attributes:
        unsuitable: why no VM at all may go there, or None.
        memory_free_mib: after what runs there, what is reserved, and what the host keeps.
        incompatible: VM name to why the host's CPU can't run it.
    """

    host: Name
    unsuitable: str | None
    memory_free_mib: int
    cpus_free: int
    incompatible: dict[str, str] = Field(default_factory=dict)


class Survey(Contract):
    """What the planner decides on: one look at the host and the others of its cluster.

    `max_parallel`: live migrations at a time from or to one host, by the worker's settings.
    """

    host: Name
    vms: tuple[Vm, ...]
    candidates: tuple[Candidate, ...]
    max_parallel: int
