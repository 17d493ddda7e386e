"""What checks see of hosts, and what becomes of their status by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import not_, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.host_checks import Look
from contracts.host_status import MISSED, PeerWord, Reach, Seen, Standing, judge, judge_absence
from contracts.hosts import Host, HostFacts
from contracts.power import PowerState
from contracts.states import HOST_STATUS_TRANSITIONS, HostStatus, ResourceState
from inventory.database import Database
from inventory.events import add_change, add_event
from inventory.host_keys import being_reinstalled
from inventory.hosts import host_row, select_hosts
from inventory.models import HostRow, now

# Nobody is to see these: an addition or a removal is at work, or there is nothing to see.
NOT_CHECKED = (ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED)
# The text of these only changes with what they tell.
_DEFINITE = (Seen.LOGIN_REFUSED, Seen.KEY_CHANGED, Seen.UUID_CHANGED)


@dataclass(frozen=True)
class Change:
    """Somebody wrote this status because of a check."""

    host: str
    status: HostStatus


class HostChecks:
    """Reads hosts in batches, writes what was seen of them. One that is being re-installed is left
    to that: whatever answers at its address is not it yet.

    A look says how a host was when it began: what was written since is newer, and stays.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, after: str, most: int) -> list[Host]:
        """Hosts that are to be checked, by name; those after `after`, `most` at the most."""
        return await select_hosts(
            self._database,
            col(HostRow.name) > after,
            col(HostRow.resource_state).not_in(NOT_CHECKED),
            not_(being_reinstalled()),
            limit=most,
        )

    async def missed(self, since: datetime, after: str, most: int) -> list[Host]:
        """The same of those that missed their last check and were not looked at since `since`."""
        return await select_hosts(
            self._database,
            col(HostRow.name) > after,
            col(HostRow.resource_state).not_in(NOT_CHECKED),
            not_(being_reinstalled()),
            col(HostRow.missed_checks) > 0,
            or_(col(HostRow.checked_at).is_(None), col(HostRow.checked_at) < since),
            limit=most,
        )

    async def absent(self, missed_max: int, since: datetime, after: str, most: int) -> list[Host]:
        """The same of those that have missed that many checks in a row, the last one since
        `since`. Hosts in `Maintenance` may be away."""
        return await select_hosts(
            self._database,
            col(HostRow.name) > after,
            col(HostRow.resource_state).not_in((*NOT_CHECKED, ResourceState.MAINTENANCE)),
            col(HostRow.missed_checks) >= missed_max,
            col(HostRow.checked_at) >= since,
            limit=most,
        )

    async def record(
        self,
        looks: Sequence[Look],
        *,
        operation: str,
        misses_apart: timedelta | None = timedelta(0),
    ) -> list[Change]:
        """Write what was seen, in one transaction; hosts that are gone, or not
        checked any more, are left out.

        `misses_apart`: a miss counts if the last one that did is at least so old: rounds may be
        begun by hand, one right after the other. None: for looks out of turn, none counts. One that
        does not count is not written.
        """
        by_host = {look.host: look for look in looks}
        query = (
            select(HostRow)
            .where(
                col(HostRow.name).in_(by_host),
                col(HostRow.resource_state).not_in(NOT_CHECKED),
                not_(being_reinstalled()),
            )
            .order_by(col(HostRow.name))
            .with_for_update()
        )
        changes = []
        async with self._database.writing() as session:
            for row in (await session.exec(query)).all():
                look = by_host[row.name]
                if not _is_outdated(row, look.began_at):
                    changes += _record(session, row, look, operation, misses_apart)
        return changes

    async def conclude(
        self,
        host: Host,
        problem: str,
        words: Sequence[PeerWord],
        *,
        began_at: datetime,
        operation: str,
        power: PowerState | None = None,
    ) -> list[Change]:
        """Write what the peers of an absent host, and its BMC (`power`), say of it; no effect if it
        was checked since."""
        async with self._database.writing() as session:
            row = await host_row(session, host.name)
            if row.checked_at != host.checked_at or _is_outdated(row, began_at):
                return []
            before = _standing(row)
            after = judge_absence(
                before, problem, words, peers_reach=row.peers_reach is True, power=power
            )
            return _write(session, row, before, after, operation, tell_reason=False)


def _is_outdated(row: HostRow, began_at: datetime) -> bool:
    since = [moment for moment in (row.status_since, row.checked_at) if moment is not None]
    return any(moment > began_at for moment in since)


def _record(
    session: AsyncSession,
    row: HostRow,
    look: Look,
    operation: str,
    misses_apart: timedelta | None,
) -> list[Change]:
    if look.seen in MISSED and not _counts(row, look, misses_apart):
        return []
    seen, problem = look.seen, look.problem
    if look.facts is not None and row.uuid not in (None, look.facts.uuid):
        seen = Seen.UUID_CHANGED
        problem = f"its libvirt has the UUID {look.facts.uuid}, it was added with {row.uuid}"
    before = _standing(row)
    after = judge(before, seen, problem, emptied=look.emptied)
    row.checked_at = look.began_at
    if look.in_full:
        row.read_at = look.began_at
    said = {word.reach for word in look.words} - {Reach.UNKNOWN}
    if said:
        row.peers_reach = Reach.CONNECTED in said
    if look.usage is not None:
        row.usage = look.usage.model_dump(mode="json")
    if seen is Seen.ANSWERED and look.facts is not None and row.facts is not None:
        _take_facts(session, row, look.facts, operation)
    return _write(session, row, before, after, operation, tell_reason=seen in _DEFINITE)


def _counts(row: HostRow, look: Look, misses_apart: timedelta | None) -> bool:
    if misses_apart is None:
        return False
    if row.missed_checks == 0 or row.checked_at is None:
        return True
    apart: timedelta = look.began_at - row.checked_at
    return apart >= misses_apart


def _write(
    session: AsyncSession,
    row: HostRow,
    before: Standing,
    after: Standing,
    operation: str,
    *,
    tell_reason: bool,
) -> list[Change]:
    """The new standing; an event if the status is another one, or for what it is (`tell_reason`:
    also if it is so for another reason)."""
    row.missed_checks, row.status_reason = after.missed_checks, after.reason
    session.add(row)
    changed = before.status is not after.status
    if changed:
        if after.status not in HOST_STATUS_TRANSITIONS[before.status]:
            raise AssertionError(f"the rules made {after.status} of {before.status}")
        row.status, row.status_since = after.status, now()
        row.updated_at = row.status_since
        add_change(
            session,
            "host.status",
            f"host/{row.name}",
            before=before.status,
            after=after.status,
            reason=after.reason,
            operation=operation,
            actor=operation,
        )
    elif tell_reason and before.reason != after.reason:
        message = f"still {after.status}: {after.reason}"
        _tell(session, row, "host.status", message, operation)
    return [Change(row.name, after.status)] if changed else []


def _take_facts(session: AsyncSession, row: HostRow, facts: HostFacts, operation: str) -> None:
    old: dict[str, Any] = row.facts or {}
    new = facts.model_dump(mode="json")
    changes = [
        f"{name.replace('_', ' ')} {old.get(name)} -> {value}"
        for name, value in new.items()
        if old.get(name) != value
    ]
    if changes:
        row.facts, row.updated_at = new, now()
        _tell(session, row, "host.facts", ", ".join(changes), operation)


def _tell(session: AsyncSession, row: HostRow, kind: str, message: str, operation: str) -> None:
    add_event(session, kind, f"host/{row.name}", message, operation=operation, actor=operation)


def _standing(row: HostRow) -> Standing:
    return Standing(
        ResourceState(row.resource_state),
        HostStatus(row.status),
        row.status_reason,
        row.missed_checks,
    )
