"""HostCheck: its input and result, and what its steps take and give."""

from datetime import datetime, timedelta
from enum import StrEnum
from zlib import crc32

from pydantic import Field

from contracts.base import Contract, Name
from contracts.host_status import PeerWord, Seen
from contracts.hosts import Host, HostFacts, HostUsage
from contracts.states import HostStatus

HOST_CHECK = "HostCheck"
"""The workflow's type."""

HOST_CHECK_SCHEDULE = "host-check"
"""The id of the schedule that starts it."""

HOUSEKEEPING = "Housekeeping"
"""The type of the workflow that a round leaves behind."""

HOUSEKEEPING_ID = "housekeeping"
"""Its id: there is one at a time."""

# Facts, fences that are not wanted, and whether peers reach it, are read of each host once in so
# many intervals; by chance in up to so many fewer: hosts that were added together part.
_MOST_INTERVALS = 10
_FEWER = 4


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

    def is_full_for(self, host: Host) -> bool:
        """Whether it is the host's turn to be read in full, by the clock: rounds may be left out,
        and may take longer than the interval."""
        if host.read_at is None:
            return True
        chance = crc32(f"{host.name} {host.read_at.isoformat()}".encode())
        # Half an interval less: a host is not read at the very beginning of a round.
        intervals = _MOST_INTERVALS - chance % _FEWER - 0.5
        return self.started_at - host.read_at >= timedelta(seconds=intervals * self.interval)


class RoundStep(StrEnum):
    """Where a round stands."""

    CHECK = "check"
    INVESTIGATE = "investigate"
    FENCES = "fences"
    TIDY = "tidy"


class Lane(StrEnum):
    """Hosts that answered when they were looked at last, or were never looked at, and the others:
    those cost their time-outs, and hold nobody up."""

    ANSWERED = "answered last time"
    MISSED = "missed last time"


class SweepInput(Contract):
    """One batch of one step: hosts by name, those after `after`. `lane`: of the check alone."""

    plan: RoundPlan
    after: str = ""
    lane: Lane = Lane.ANSWERED


class Swept(Contract):
    """What came of a batch. `last`: the name to go on after; None: it was the last batch. `hosts`:
    how many it was about, those left to the other lane included, which counts none. `seen`: how
    many showed what to this attempt; `changed`: those whose status is another one now, or whose
    fence was news."""

    last: Name | None
    hosts: int = 0
    seen: dict[Seen, int] = Field(default_factory=dict)
    changed: tuple[Name, ...] = ()


class Round(Contract):
    """A round as it goes on in a new run. `lanes`: those of the check that are not at their end,
    and the name after which each goes on; `after`: the same of another step."""

    plan: RoundPlan
    step: RoundStep = RoundStep.CHECK
    lanes: dict[Lane, str] = Field(default_factory=lambda: dict.fromkeys(Lane, ""))
    after: str = ""
    hosts: int = 0
    seen: dict[Seen, int] = Field(default_factory=dict)


class Look(Contract):
    """What one look at a host has shown.

    Attributes:
        began_at: what has changed since is newer than this.
        problem: the words of whatever kept it from answering.
        emptied: it was seen fenced and without a VM.
        in_full: it was its turn to be read in full.
        words: what its peers said of it, while it answers.
    """

    host: Name
    began_at: datetime
    seen: Seen
    problem: str = ""
    usage: HostUsage | None = None
    facts: HostFacts | None = None
    emptied: bool = False
    in_full: bool = False
    words: tuple[PeerWord, ...] = ()


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


class TriggerScheduleInput(Contract):
    """Let a schedule start its workflow now, unless that runs, or somebody has paused it."""

    schedule: str


class HostCheckInput(Contract):
    """All hosts, or `host` alone, out of turn. `continued`: only set by the workflow itself."""

    host: Name | None = None
    continued: Round | None = None


class HostCheckResult(Contract):
    """How many hosts were looked at and what they showed; `sighting`: of the one asked for."""

    hosts: int
    seen: dict[Seen, int]
    sighting: HostSighting | None = None


class HousekeepingInput(Contract):
    """`batch`: hosts that are told per step."""

    batch: int


class HousekeepingResult(Contract):
    """How many hosts were told whether they take new VMs, or could not be; which removed ones are
    clean now, and how many are not yet; how many have got the password of their cluster, or
    the newest revocation lists."""

    told: int
    not_told: int
    cleaned: tuple[Name, ...]
    waiting: int
    passwords: int = 0
    crls: int = 0
