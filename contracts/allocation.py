"""Whether the hosts of a zone, pod or cluster, or one host, take new VMs: what AllocationState and
its activities take and give."""

from datetime import datetime
from enum import StrEnum

from contracts.base import Contract, Name, Reason
from contracts.states import AllocationState, Phase

MAX_LISTED = 500


class AllocationLevel(StrEnum):
    """What is enabled or disabled."""

    ZONE = "zone"
    POD = "pod"
    CLUSTER = "cluster"
    HOST = "host"


class AllocationStateInput(Contract):
    """Input of AllocationState."""

    level: AllocationLevel
    name: Name
    allocation_state: AllocationState
    reason: Reason = ""


class ChangeAllocationInput(Contract):
    """Argument of the update `change` of an AllocationState that runs: what it is to come to from
    now on."""

    allocation_state: AllocationState
    reason: Reason = ""


class UntoldHost(Contract):
    """A host that could not be told, and why. It is told when it answers again."""

    host: Name
    reason: str


class AllocationStateStatus(Contract):
    """Answer of the query `status`.

    Attributes:
        hosts: how many there are to be told; None as long as that is not known.
        told: how many of them have been.
        not_told: how many of them could not be.
        untold: those, at most 500, with the reasons.
        commands: what can be run now, ready to paste.
    """

    level: AllocationLevel
    name: Name
    allocation_state: AllocationState
    phase: Phase
    reason: str
    message: str
    since: datetime
    hosts: int | None = None
    told: int = 0
    not_told: int = 0
    untold: tuple[UntoldHost, ...] = ()
    commands: tuple[str, ...] = ()


class AllocationStateResult(Contract):
    """What came of it; `not_told` and `untold` as in the status."""

    level: AllocationLevel
    name: Name
    allocation_state: AllocationState
    told: int
    not_told: int
    untold: tuple[UntoldHost, ...]


class SetAllocationInput(Contract):
    """One change in the inventory. `step`: makes a repetition recognizable."""

    level: AllocationLevel
    name: Name
    allocation_state: AllocationState
    reason: Reason
    operation: str
    step: str


class HostsBelow(Contract):
    """The hosts whose fences have to know of the change, by name."""

    hosts: tuple[Name, ...]


class HostsUntold(Contract):
    """The hosts that were last told otherwise than is wanted now, by name."""

    hosts: tuple[Name, ...]


class TellHostsInput(Contract):
    """Which hosts to tell; what, each look into the inventory says."""

    hosts: tuple[Name, ...]


class TellHostsResult(Contract):
    """Which were told and which could not be; one that was removed meanwhile is neither."""

    told: tuple[Name, ...]
    untold: tuple[UntoldHost, ...]
