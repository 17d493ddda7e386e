"""What a host's status becomes by what was seen of it: pure rules, without a clock.

    seen                     Up                Disconnected   Alert          Down
    answered                 Up                Up             Up             Up (1)
    login refused            Alert             Alert          Alert          Alert (1)
    host key changed         Alert             Alert          Alert          Alert (1)
    libvirt UUID changed     Alert             Alert          Alert          Alert (1)
    libvirt silent           Alert (2)         Alert          Alert          Alert (1)
    connection refused       Alert (2)         Alert          Alert          Alert (1)
    unreachable              Disconnected (2)  Disconnected   Alert (3)      Down
    + a peer reaches it                        Alert          Alert          Alert (1)
    + no peer reaches it                       Down           Disconnected   Down
    + no peer can tell                         Disconnected   Alert          Down
    + its BMC says Off (4)                     Down           Down           Down

1. A host in `Maintenance` that is Down was taken out as it was, with its VMs: it stays Down until
   it was seen fenced and without a VM. Others go by that before they take a VM for lost.
2. From the second miss in a row; the first one is only counted.
3. Disconnected at the second miss of a host that had answered SSH until then.
4. Asked at that moment, and no peer reaches it: that is another path than the host's own address.
   A BMC that says On, or nothing, changes nothing.

Peers are asked when a host has missed `missed_max` checks in a row and does not answer at that
moment. That they do not reach it tells something only if they did while it was Up: where a firewall
lets nobody but Hostler in, none of them can tell. A host in `Maintenance` may be away on purpose:
it becomes Disconnected and no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from contracts.base import Contract, Name
from contracts.power import PowerState
from contracts.states import HostStatus, ResourceState


class Seen(StrEnum):
    """What one look at a host has shown."""

    ANSWERED = "answered"
    UNREACHABLE = "unreachable"
    """No SSH; nothing is known of libvirt then."""
    LOGIN_REFUSED = "login refused"
    KEY_CHANGED = "host key changed"
    UUID_CHANGED = "libvirt UUID changed"
    LIBVIRT_SILENT = "libvirt silent"
    """SSH answers."""
    REFUSED = "connection refused"
    """The machine answers, and lets no SSH connection come about."""


MISSED = frozenset({Seen.UNREACHABLE, Seen.LIBVIRT_SILENT, Seen.REFUSED})
"""Checks that were not answered."""


class Reach(StrEnum):
    """What came of a TCP connection from a peer to a host's SSH port."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """The machine is there, and nothing listens."""
    NO_ANSWER = "no answer"
    UNKNOWN = "unknown"
    """The peer could not try."""


class PeerWord(Contract):
    """What a host of the same cluster says of another one."""

    peer: Name
    reach: Reach


@dataclass(frozen=True)
class Standing:
    """How a host stands: what the rules start from, and what they come to.

    Attributes:
        missed_checks: checks in a row that were not answered.
    """

    resource_state: ResourceState
    status: HostStatus
    reason: str
    missed_checks: int


# In a row, until the status says so: the first one may be a restart, or a lost packet.
_MISSES_THAT_COUNT = 2

_SAID_OF = {
    Seen.LOGIN_REFUSED: "it does not let Hostler in",
    Seen.KEY_CHANGED: "it may be another machine",
    Seen.UUID_CHANGED: "it may be another machine",
    Seen.LIBVIRT_SILENT: "SSH answers, libvirt does not",
    Seen.REFUSED: "the machine is there, its sshd is not",
}


def judge(now: Standing, seen: Seen, problem: str, *, emptied: bool = False) -> Standing:
    """How a host stands after a look at it.

    `problem`: the words of whatever kept it from answering. `emptied`: it was seen fenced and
    without a VM.
    """
    missed = seen in MISSED
    misses = now.missed_checks + 1 if missed else 0
    if seen is Seen.UNREACHABLE:
        return _unreachable(now, problem, misses)
    if now.status is HostStatus.DOWN and not _may_be_up(now, emptied):
        said = "it answers again" if seen is Seen.ANSWERED else problem
        return _stays(now, misses, f"{said}; its VMs, if any, were not moved when it was taken out")
    if seen is Seen.ANSWERED:
        reason = now.reason if now.status is HostStatus.UP else "it answers again"
        return Standing(now.resource_state, HostStatus.UP, reason, misses)
    if missed and now.status is HostStatus.UP and misses < _MISSES_THAT_COUNT:
        return _stays(now, misses)
    reason = f"{_SAID_OF[seen]}: {problem}"
    return Standing(now.resource_state, HostStatus.ALERT, reason, misses)


def judge_absence(
    now: Standing,
    problem: str,
    words: Sequence[PeerWord],
    *,
    peers_reach: bool,
    power: PowerState | None = None,
) -> Standing:
    """How a host stands that has missed enough checks and does not answer now, after what its
    peers say. `problem`: the words of our own path. `peers_reach`: they reached it while it was
    Up. `power`: what its BMC says at this moment; None: it has none, or that says nothing."""
    there = [word for word in words if word.reach in (Reach.CONNECTED, Reach.REFUSED)]
    if there:
        if now.status is HostStatus.DOWN and not _may_be_up(now, emptied=False):
            return now
        return Standing(now.resource_state, HostStatus.ALERT, _by_peer(there), now.missed_checks)
    if now.status is HostStatus.DOWN or now.resource_state is ResourceState.MAINTENANCE:
        return now
    away = [word.peer for word in words if word.reach is Reach.NO_ANSWER]
    own = f"no answer to Hostler: {problem}"
    if power is PowerState.OFF:
        return Standing(
            now.resource_state,
            HostStatus.DOWN,
            f"{own} in {now.missed_checks} checks; and its BMC says that it is off",
            now.missed_checks,
        )
    if not away or not peers_reach:
        if now.status is HostStatus.ALERT:
            return now
        why = ", which never reached it while it was Up" if away else ""
        return _stays(now, now.missed_checks, f"{own}; no other host of its cluster can tell{why}")
    if now.status is not HostStatus.DISCONNECTED:
        return Standing(now.resource_state, HostStatus.DISCONNECTED, own, now.missed_checks)
    names = " and ".join(away)
    return Standing(
        now.resource_state,
        HostStatus.DOWN,
        f"{own} in {now.missed_checks} checks; and no answer to {names}, in the same cluster",
        now.missed_checks,
    )


def _unreachable(now: Standing, problem: str, misses: int) -> Standing:
    connected = now.status is HostStatus.UP or (
        now.status is HostStatus.ALERT and misses == _MISSES_THAT_COUNT
    )
    if not connected or misses < _MISSES_THAT_COUNT:
        return _stays(now, misses)
    reason = f"no answer to Hostler: {problem}"
    if now.resource_state is ResourceState.MAINTENANCE:
        reason = f"in maintenance, so it may be off on purpose; {reason}"
    return Standing(now.resource_state, HostStatus.DISCONNECTED, reason, misses)


def _may_be_up(now: Standing, emptied: bool) -> bool:
    return emptied or now.resource_state is not ResourceState.MAINTENANCE


def _by_peer(there: Sequence[PeerWord]) -> str:
    names = " and ".join(word.peer for word in there)
    if any(word.reach is Reach.CONNECTED for word in there):
        return f"reachable from {names}, not from here"
    return f"its SSH port refuses connections to {names}: the machine runs, sshd does not"


def _stays(now: Standing, misses: int, reason: str | None = None) -> Standing:
    return Standing(
        now.resource_state, now.status, now.reason if reason is None else reason, misses
    )
