"""Which hosts are to be closed: to refuse VMs that were not there before.

Wanted follows from the states of the host, its cluster, pod and zone. `HostRow.closed` is what the
host is known to have been told; None while that is not sure: from the moment that it is to be told
something else until it is proven to know it.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.allocation import AllocationLevel
from contracts.errors import Conflict, NotFound
from contracts.hosts import Host
from contracts.states import MAINTENANCE_STATES, AllocationState, HostStatus, ResourceState
from inventory.database import Database
from inventory.events import add_event
from inventory.models import ClusterRow, EventRow, HostRow, PodRow, ZoneRow, now

_DECIDED = "host.allocation"
_DIFFERS = "host.allocation-differs"
_NAMES = {
    AllocationLevel.ZONE: col(ZoneRow.name),
    AllocationLevel.POD: col(PodRow.name),
    AllocationLevel.CLUSTER: col(ClusterRow.name),
    AllocationLevel.HOST: col(HostRow.name),
}
# One that is being added is told at the end of its addition.
_TOLD_STATES = (ResourceState.ENABLED, ResourceState.DISABLED, *MAINTENANCE_STATES)


@dataclass(frozen=True)
class Closing:
    """What a host is to be told.

    Attributes:
        generation: higher than that of every earlier answer for this host that said otherwise, so
            that the host can refuse one that comes late.
        because: why it is to be closed, one line; None: it is to be open.
    """

    generation: int
    because: str | None


class Closings:
    """Answers what a host is to be told, and records what it was told."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def decide(self, host: str, *, operation: str) -> Closing:
        """What the host is to be told now. Raises NotFound, Conflict (nothing: it is not in service
        yet, or not any more).

        The first answer, and one that differs from the last one, is written into the audit trail,
        and the number of that event is its generation. The host's row is locked from before the
        states are read until then: of two answers the later one has seen the later states, and has
        the higher number.
        """
        async with self._database.writing() as session:
            row = await _locked(session, host)
            if row.resource_state not in _TOLD_STATES:
                raise Conflict(f"{host} is {row.resource_state}: it is not told what it takes.")
            because = await _because(session, row)
            text = "is to take new VMs" if because is None else f"is to refuse new VMs: {because}"
            last = await _latest(session, host)
            if last is None or last.message != text:
                row.closed = None
                session.add(row)
                subject = f"host/{host}"
                add_event(session, _DECIDED, subject, text, operation=operation, actor=operation)
                await session.flush()
                last = await _latest(session, host)
        return Closing(generation=_number(last), because=because)

    async def record(self, host: str, closing: Closing, *, operation: str) -> bool:
        """Write down that the host was told so; False, and no effect, if another answer was given
        since. Raises NotFound."""
        async with self._database.writing() as session:
            row = await _locked(session, host)
            if _number(await _latest(session, host)) != closing.generation:
                return False
            closed = closing.because is not None
            if row.closed != closed:
                row.closed, row.updated_at = closed, now()
                session.add(row)
                add_event(
                    session,
                    "host.closed" if closed else "host.reopened",
                    f"host/{host}",
                    closing.because or "takes new VMs",
                    operation=operation,
                    actor=operation,
                )
        return True

    async def doubt(self, host: Host, *, closed_there: bool, operation: str) -> bool:
        """Write down that the host itself was seen to be otherwise than it was told, so that it is
        told again. False, and no effect, if it is so, or was told something since `host` was read.
        """
        if host.closed is None or host.closed is closed_there:
            return False
        async with self._database.writing() as session:
            row = await _locked(session, host.name)
            if row.closed is not host.closed:
                return False
            row.closed, row.updated_at = None, now()
            session.add(row)
            add_event(
                session,
                _DIFFERS,
                f"host/{host.name}",
                "refuses new VMs, although it was reopened: it is told again"
                if closed_there
                else "takes new VMs, although it was closed: it is told again",
                operation=operation,
                actor=operation,
            )
        return True

    async def hosts_below(self, level: AllocationLevel, name: str) -> list[str]:
        """The hosts that a change at `name` is told to, by name."""
        return await _names(self._database, _NAMES[level] == name)

    async def pending(self, hosts: tuple[str, ...]) -> frozenset[str]:
        """Those of `hosts` that are not known to have been told what is wanted now."""
        wanted = col(HostRow.name).in_(hosts)
        return frozenset(await _names(self._database, wanted, _differs()))


def require_in_service(host: Host) -> None:
    """Raises Conflict unless the host can be enabled or disabled as it is. Its maintenance has
    begun with what it gives back: a change in between would be lost."""
    if host.resource_state in MAINTENANCE_STATES:
        raise Conflict(
            f"{host.name} is {host.resource_state} and takes no VM; its maintenance gives back "
            f"{host.state_before_maintenance}.",
            remedy=f"First put it back into service: hostler maintenance leave {host.name}",
        )
    if host.resource_state not in _TOLD_STATES:
        raise Conflict(f"{host.name} is {host.resource_state}: only a host in service can change.")


async def untold(database: Database) -> list[str]:
    """See Hosts.untold."""
    return await _names(database, col(HostRow.status) == HostStatus.UP, _differs())


async def _names(database: Database, *conditions: ColumnElement[bool]) -> list[str]:
    query = (
        select(HostRow.name)
        .join(ClusterRow, col(ClusterRow.id) == col(HostRow.cluster_id))
        .join(PodRow, col(PodRow.id) == col(ClusterRow.pod_id))
        .join(ZoneRow, col(ZoneRow.id) == col(PodRow.zone_id))
        .where(col(HostRow.resource_state).in_(_TOLD_STATES), *conditions)
        .order_by(col(HostRow.name))
    )
    async with database.reading() as session:
        return list(await session.exec(query))


def _differs() -> ColumnElement[bool]:
    """Not known to have been told what is wanted. A maintenance gives back the state before it: a
    host that was `Disabled` stays closed meanwhile, and is so when its fence goes down."""
    disabled = AllocationState.DISABLED
    wanted = or_(
        col(ZoneRow.allocation_state) == disabled,
        col(PodRow.allocation_state) == disabled,
        col(ClusterRow.allocation_state) == disabled,
        col(HostRow.resource_state) == ResourceState.DISABLED,
        func.coalesce(col(HostRow.state_before_maintenance), "") == ResourceState.DISABLED,
    )
    return or_(col(HostRow.closed).is_(None), col(HostRow.closed) != wanted)


async def _because(session: AsyncSession, host: HostRow) -> str | None:
    """All that is `Disabled` from the host's zone down to itself."""
    query = (
        select(ZoneRow, PodRow, ClusterRow)
        .join(PodRow, col(PodRow.zone_id) == col(ZoneRow.id))
        .join(ClusterRow, col(ClusterRow.pod_id) == col(PodRow.id))
        .where(col(ClusterRow.id) == host.cluster_id)
    )
    zone, pod, cluster = (await session.exec(query)).one()
    disabled = [
        f"{level} {place.name} is Disabled"
        for level, place in (("zone", zone), ("pod", pod), ("cluster", cluster))
        if place.allocation_state == AllocationState.DISABLED
    ]
    if ResourceState.DISABLED in (host.resource_state, host.state_before_maintenance):
        disabled.append(f"host {host.name} is Disabled")
    return ", ".join(disabled) or None


async def _latest(session: AsyncSession, host: str) -> EventRow | None:
    """The last answer that differed from the one before."""
    query = (
        select(EventRow)
        .where(col(EventRow.subject) == f"host/{host}", col(EventRow.kind) == _DECIDED)
        .order_by(col(EventRow.id).desc())
        .limit(1)
    )
    return (await session.exec(query)).first()


def _number(answer: EventRow | None) -> int:
    """Of no answer: one that no answer has."""
    return 0 if answer is None else answer.id or 0


async def _locked(session: AsyncSession, host: str) -> HostRow:
    query = select(HostRow).where(col(HostRow.name) == host).with_for_update()
    row = (await session.exec(query)).first()
    if row is None:
        raise NotFound(f"There is no host {host!r}.")
    return row
