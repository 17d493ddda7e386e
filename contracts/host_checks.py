"""HostCheck: its input and result, and what its steps take and give."""

from datetime import datetime
from enum import StrEnum
from zlib import crc32

from pydantic import Field

from contracts.base import Contract, Name
from contracts.host_status import Seen
from contracts.hosts import HostFacts, HostUsage
from contracts.states import HostStatus

HOST_CHECK = "HostCheck"
"""The workflow's type."""

HOST_CHECK_SCHEDULE = "host-check"
"""The id of the schedule that starts it."""

# Facts, and fences that are not wanted, are read of each host in every tenth round, of a tenth of
# the hosts in each.
_ROUNDS_BETWEEN_FACTS = 10


class RoundPlan(Contract):
    """What a round goes by, from its first step to its last: one set of settings, one start.

    Attributes:
        started_at: a host that was looked at since is not looked at again in this round.
        interval: seconds between two rounds.
        batch: hosts per step.
        concurrency: hosts at a time within a step.
        timeout: seconds that a host has for one look.
        missed_max: misses in a row after which peers are asked.
    """

    started_at: datetime
    interval: int
    batch: int
    concurrency: int
    timeout: int
    missed_max: int

    def is_full_for(self, host: str) -> bool:
        """Whether it is the host's turn to be read in full."""
        turn = crc32(host.encode()) + int(self.started_at.timestamp()) // self.interval
        return turn % _ROUNDS_BETWEEN_FACTS == 0


class RoundStep(StrEnum):
    """Where a round stands."""

    CHECK = "check"
    INVESTIGATE = "investigate"
    FENCES = "fences"
    TIDY = "tidy"


class SweepInput(Contract):
    """One batch of one step: hosts by name, those after `after`."""

    plan: RoundPlan
    after: str = ""


class Swept(Contract):
    """What came of a batch. `last`: the name to go on after; None: it was the last batch. `seen`:
    how many hosts showed what to this attempt; `changed`: those whose status is another one now, or
    whose fence was news."""

    last: Name | None
    hosts: int = 0
    seen: dict[Seen, int] = Field(default_factory=dict)
    changed: tuple[Name, ...] = ()


class Round(Contract):
    """A round as it goes on in a new run."""

    plan: RoundPlan
    step: RoundStep = RoundStep.CHECK
    after: str = ""
    hosts: int = 0
    seen: dict[Seen, int] = Field(default_factory=dict)


class Look(Contract):
    """What one look at a host has shown.

    Attributes:
        began_at: what has changed since is newer than this.
        problem: the words of whatever kept it from answering.
        emptied: it was seen fenced and without a VM.
    """

    host: Name
    began_at: datetime
    seen: Seen
    problem: str = ""
    usage: HostUsage | None = None
    facts: HostFacts | None = None
    emptied: bool = False


class HostSighting(Contract):
    """What a look at one host has shown, and how the host stands after it."""

    host: Name
    seen: Seen
    problem: str
    status: HostStatus
    status_reason: str
    missed_checks: int
    checked_at: datetime
    usage: HostUsage | None


class AlignScheduleInput(Contract):
    """Let a schedule start its workflow every `every_s` seconds."""

    schedule: str
    every_s: int


class HostCheckInput(Contract):
    """All hosts, or `host` alone, out of turn. `continued`: only set by the workflow itself."""

    host: Name | None = None
    continued: Round | None = None


class HostCheckResult(Contract):
    """How many hosts were looked at and what they showed; `sighting`: of the one asked for."""

    hosts: int
    seen: dict[Seen, int]
    sighting: HostSighting | None = None
