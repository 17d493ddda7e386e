"""Power: what BMCs say, what they were told, and the rounds in which they are asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select as columns
from sqlmodel import col, delete, func, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, NotFound
from contracts.leases import LeaseRef
from contracts.oobm import LOGIN_PROBLEMS, PowerCount, PowerProblem, PowerRound
from contracts.power import PowerState
from contracts.power_actions import (
    BOOTS,
    SHOULD_BE,
    Action,
    CommandOutcome,
    PowerCommandRef,
    PowerSent,
    PowerShard,
    PowerSighting,
)
from contracts.power_rules import PowerStanding, judge_power
from inventory.database import Database
from inventory.events import add_event
from inventory.leases import verify_lease
from inventory.models import (
    ClusterRow,
    OobmRow,
    PowerCommandRow,
    PowerRoundRow,
    ZoneRow,
    now,
)
from inventory.oobm import BmcLogin, in_force, login_of, not_changing, with_places

# A state is stale when it was not confirmed for so many rounds.
_FRESH_ROUNDS = 3
_KEPT_ROUNDS = 100
# Until a command is sent and its last look has ended, beside the time that it has itself.
_COMMAND_GRACE = timedelta(seconds=30)
_ITS_SENDER_IS_LOST = "the worker that was to send it has not said what became of it"
_AT_A_TIME = 500  # of names in one statement
_STANDING = (
    col(OobmRow.host),
    col(OobmRow.generation),
    col(OobmRow.observed_at),
    col(OobmRow.power_state),
    col(OobmRow.problem),
    col(OobmRow.reason),
    col(OobmRow.guid),
    col(OobmRow.failures),
    col(OobmRow.retry_at),
)
# What they tell is told once, not at each attempt.
_REFUSALS = LOGIN_PROBLEMS | {PowerProblem.ANOTHER_BMC}


@dataclass(frozen=True)
class PowerChange:
    """A state that was written because of a sighting."""

    host: str
    state: PowerState
    problem: PowerProblem | None


@dataclass(frozen=True)
class PowerFleet:
    """How all BMCs that are enabled stand. `waiting`: left alone for now. `oldest_observed_at`: of
    the last answers of those that answer, the oldest."""

    counts: tuple[PowerCount, ...]
    waiting: int
    oldest_observed_at: datetime | None


@dataclass(frozen=True)
class _News:
    host: str
    before: PowerStanding
    after: PowerStanding
    seen_at: datetime


class Power:
    """Reads BMCs in shards, writes what was seen of them. A sighting says how a host was when it
    began: what was written since is newer, and stays."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- sweeps ---------------------------------------------------------------------------------

    async def shards(self, most: int) -> tuple[PowerShard, ...]:
        """All hosts whose BMCs are to be asked, cut into shards of at most so many."""
        query = with_places(select(OobmRow.host)).where(in_force(), col(OobmRow.failures) == 0)
        async with self._database.reading() as session:
            names = (await session.exec(query.order_by(col(OobmRow.host)))).all()
        lasts = [*names[most - 1 :: most]]
        if names and (not lasts or lasts[-1] != names[-1]):
            lasts.append(names[-1])
        return tuple(
            PowerShard(after=after, last=last)
            for after, last in zip(["", *lasts], lasts, strict=False)
        )

    async def to_ask(self, shard: PowerShard, since: datetime) -> list[BmcLogin]:
        """Of a shard, those that were not asked since then and are not left alone for now. In both
        lanes, one whose password is being changed is left to that."""
        return await self._logins(
            col(OobmRow.host) > shard.after,
            col(OobmRow.host) <= shard.last,
            col(OobmRow.failures) == 0,
            col(OobmRow.observed_at).is_(None) | (col(OobmRow.observed_at) < since),
        )

    async def to_try_again(self, since: datetime, most: int) -> list[BmcLogin]:
        """Those that did not answer before and whose time has come, the longest due first."""
        return await self._logins(
            col(OobmRow.failures) > 0,
            col(OobmRow.retry_at) <= since,
            col(OobmRow.observed_at).is_(None) | (col(OobmRow.observed_at) < since),
            order=col(OobmRow.retry_at),
            limit=most,
        )

    async def _logins(
        self, *conditions: Any, order: Any = None, limit: int | None = None
    ) -> list[BmcLogin]:
        query = with_places(select(OobmRow, ClusterRow, ZoneRow))
        query = query.where(in_force(), not_changing(), *conditions)
        query = query.order_by(col(OobmRow.host) if order is None else order).limit(limit)
        async with self._database.reading() as session:
            return [login_of(*found) for found in await session.exec(query)]

    async def record(
        self, sightings: Sequence[PowerSighting], *, interval: timedelta, operation: str
    ) -> list[PowerChange]:
        """Write what was seen, in one transaction: a state where it is another one, and of all
        others the time alone, in one statement. What was seen by a former configuration, or of a
        BMC that is not enabled any more, is left out.

        An event for each change that no command explains.
        """
        by_host: dict[str, PowerSighting] = {}
        changes: list[PowerChange] = []
        news: list[_News] = []
        unchanged: dict[datetime, list[str]] = {}
        written: dict[str, tuple[PowerStanding, PowerStanding]] = {}
        async with self._database.writing() as session:
            rows = await _locked(session, [one.host for one in sightings])
            for one in await _of_their_own(session, sightings):
                by_host[one.host] = one
            for row in rows:
                seen = by_host[row.host]
                if row.generation != seen.generation or _is_outdated(row, seen):
                    continue
                before = _standing(row)
                after = judge_power(before, seen, interval)
                if after == before:
                    unchanged.setdefault(seen.began_at, []).append(row.host)
                    continue
                written[row.host] = (before, after)
                if (before.state, before.problem) != (after.state, after.problem):
                    changes.append(PowerChange(row.host, after.state, after.problem))
                    news.append(_News(row.host, before, after, seen.began_at))
            for row in await _rows(session, [*written]):
                _write(row, *written[row.host], by_host[row.host], interval)
            commands = await _latest_commands(session, [one.host for one in news])
            for one_news in news:
                _tell(session, one_news, commands.get(one_news.host), operation)
            # One time for all of them: the earliest claims the least. Who was seen later stays so.
            if unchanged:
                await _confirm(session, unchanged, interval)
        return changes

    async def of_its_own(self, seen: PowerSighting) -> PowerSighting:
        """What it says of this host: nothing, if it is the BMC of another one."""
        async with self._database.reading() as session:
            (own,) = await _of_their_own(session, [seen])
            return own

    async def fleet(self) -> PowerFleet:
        """How all that are enabled stand."""
        grouped = (
            with_places(select(OobmRow.power_state, OobmRow.problem, func.count()))
            .where(in_force())
            .group_by(col(OobmRow.power_state), col(OobmRow.problem))
            .order_by(col(OobmRow.power_state), col(OobmRow.problem))
        )
        waiting = with_places(select(func.count()).select_from(OobmRow)).where(
            in_force(), col(OobmRow.failures) > 0
        )
        oldest = with_places(select(func.min(OobmRow.observed_at)).select_from(OobmRow)).where(
            in_force(), col(OobmRow.power_state) != PowerState.UNKNOWN
        )
        async with self._database.reading() as session:
            counts = tuple(
                PowerCount(
                    state=PowerState(state),
                    problem=PowerProblem(problem) if problem is not None else None,
                    hosts=hosts,
                )
                for state, problem, hosts in await session.exec(grouped)
            )
            return PowerFleet(
                counts=counts,
                waiting=(await session.exec(waiting)).one(),
                oldest_observed_at=(await session.exec(oldest)).one(),
            )

    async def record_round(self, done: PowerRound) -> None:
        """Keep it, and the hundred before it. May be called many times."""
        async with self._database.writing() as session:
            await session.merge(
                PowerRoundRow(
                    **done.model_dump(exclude={"seconds", "counts"}),
                    counts=[count.model_dump(mode="json") for count in done.counts],
                )
            )
            await session.flush()
            newest = select(PowerRoundRow.started_at).order_by(col(PowerRoundRow.started_at).desc())
            kept = (await session.exec(newest.offset(_KEPT_ROUNDS - 1).limit(1))).first()
            if kept is not None:
                await session.exec(
                    delete(PowerRoundRow).where(col(PowerRoundRow.started_at) < kept)
                )

    async def rounds(self, most: int) -> tuple[PowerRound, ...]:
        """The latest, the newest first."""
        query = select(PowerRoundRow).order_by(col(PowerRoundRow.started_at).desc()).limit(most)
        async with self._database.reading() as session:
            return tuple(_round(row) for row in await session.exec(query))

    # --- commands -------------------------------------------------------------------------------

    async def take_over_command(self, command: PowerCommandRef) -> PowerSent | None:
        """What is known of one that an attempt before this one has begun, which can't withdraw it
        any more; None: it was not begun."""
        async with self._database.writing() as session:
            row = await session.get(PowerCommandRow, _key(command), with_for_update=True)
            return _taken_over(session, row) if row is not None else None

    async def begin_command(self, command: PowerCommandRef, generation: int) -> PowerSent | None:
        """Commit that the command is sent now, by that generation of the configuration: None. If
        that was committed before: what became of it; it is not sent again then. Raises LeaseLost,
        Conflict (the BMC was configured anew since the host was looked at)."""
        host = command.lease.host
        async with self._database.writing() as session:
            await verify_lease(session, command.lease, hold=True)
            row = await session.get(PowerCommandRow, _key(command), with_for_update=True)
            if row is not None:
                return _taken_over(session, row)
            query = select(OobmRow.generation).where(col(OobmRow.host) == host).with_for_update()
            configured = (await session.exec(query)).first()
            if not configured == generation == command.generation:
                raise Conflict(
                    f"The BMC of {host} was configured anew since it was looked at: "
                    f"{command.action!s} was not sent.",
                    remedy="Ask for it again if it is still wanted.",
                )
            await session.exec(_outlived(command))
            session.add(
                PowerCommandRow(
                    operation=_operation(command.lease),
                    action=command.action,
                    host=host,
                    boot_id=command.boot_id,
                    until=now() + timedelta(seconds=command.timeout) + _COMMAND_GRACE,
                )
            )
            return None

    async def withdraw_command(self, command: PowerCommandRef) -> None:
        """It was certainly not sent: it may be sent yet. But not if another attempt has found it:
        that one looks what became of it."""
        async with self._database.writing() as session:
            row = await session.get(PowerCommandRow, _key(command), with_for_update=True)
            if row is not None and not row.problem and row.outcome is None:
                await session.delete(row)

    async def record_answer(
        self, command: PowerCommandRef, *, accepted: bool, problem: str = ""
    ) -> PowerSent:
        """What the BMC said to it; not `accepted`: it said nothing."""
        async with self._database.writing() as session:
            row = await session.get(PowerCommandRow, _key(command), with_for_update=True)
            if row is None:
                raise NotFound(f"No {command.action} was sent to the BMC of {command.lease.host}.")
            row.accepted_at = now() if accepted else None
            row.problem = problem
            session.add(row)
            return _sent(row)

    async def finish_command(
        self, command: PowerCommandRef, outcome: CommandOutcome, message: str
    ) -> None:
        """What became of it in the end, with an event. May be called many times."""
        operation = command.lease.owner.workflow_id
        async with self._database.writing() as session:
            row = await session.get(PowerCommandRow, _key(command), with_for_update=True)
            if row is None or row.outcome is not None:
                return
            row.outcome, row.finished_at = outcome, now()
            session.add(row)
            reason = f" ({command.reason})" if command.reason else ""
            add_event(
                session,
                "power.command",
                f"host/{row.host}",
                f"{row.action}{reason}: {message}",
                operation=operation,
                actor=operation,
            )


async def _locked(session: AsyncSession, hosts: Sequence[str]) -> list[Any]:
    """How those of enabled BMCs stand, by name: the columns of `_STANDING`. Most stay as they are,
    and a whole row of each would be much of a round's work."""
    found: list[Any] = []
    for begin in range(0, len(hosts), _AT_A_TIME):
        query = (
            with_places(columns(*_STANDING))
            .where(in_force(), col(OobmRow.host).in_(hosts[begin : begin + _AT_A_TIME]))
            .order_by(col(OobmRow.host))
            .with_for_update(of=OobmRow)
        )
        found += (await session.exec(query)).all()
    return found


async def _rows(session: AsyncSession, hosts: Sequence[str]) -> list[OobmRow]:
    found: list[OobmRow] = []
    for begin in range(0, len(hosts), _AT_A_TIME):
        some = hosts[begin : begin + _AT_A_TIME]
        found += await session.exec(select(OobmRow).where(col(OobmRow.host).in_(some)))
    return found


async def _of_their_own(
    session: AsyncSession, sightings: Sequence[PowerSighting]
) -> list[PowerSighting]:
    """What was seen of a BMC that is known as another host's, or that several show, is not about
    this host: the first host by name has it."""
    guids = sorted({one.guid for one in sightings if one.guid is not None})
    owners: dict[str, str] = {}
    for begin in range(0, len(guids), _AT_A_TIME):
        some = guids[begin : begin + _AT_A_TIME]
        query = select(OobmRow.guid, OobmRow.host).where(col(OobmRow.guid).in_(some))
        owners |= {guid: host for guid, host in await session.exec(query) if guid is not None}
    for one in sorted(sightings, key=lambda one: one.host):
        if one.guid is not None:
            owners.setdefault(one.guid, one.host)
    return [
        one
        if one.guid is None or owners[one.guid] == one.host
        else one.model_copy(
            update={
                "state": PowerState.UNKNOWN,
                "problem": PowerProblem.ANOTHER_BMC,
                "reason": f"what answers at its address is the BMC of {owners[one.guid]} (GUID "
                f"{one.guid})",
                "guid": None,
            }
        )
        for one in sightings
    ]


async def _latest_commands(
    session: AsyncSession, hosts: Sequence[str]
) -> dict[str, PowerCommandRow]:
    """The latest of each host that has had one of late."""
    latest: dict[str, PowerCommandRow] = {}
    for begin in range(0, len(hosts), _AT_A_TIME):
        query = (
            select(PowerCommandRow)
            .where(col(PowerCommandRow.host).in_(hosts[begin : begin + _AT_A_TIME]))
            .order_by(col(PowerCommandRow.sent_at))
        )
        latest |= {row.host: row for row in await session.exec(query)}
    return latest


def _is_outdated(row: Any, seen: PowerSighting) -> bool:
    return row.observed_at is not None and row.observed_at > seen.began_at


def _standing(row: Any) -> PowerStanding:
    return PowerStanding(
        PowerState(row.power_state),
        PowerProblem(row.problem) if row.problem is not None else None,
        row.reason,
        guid=row.guid,
        failures=row.failures,
        retry_at=row.retry_at,
    )


def _write(
    row: OobmRow,
    before: PowerStanding,
    after: PowerStanding,
    seen: PowerSighting,
    interval: timedelta,
) -> None:
    if before.state is not after.state or row.power_since is None:
        row.power_since = seen.began_at
    row.power_state, row.problem, row.reason = after.state, after.problem, after.reason
    row.guid, row.failures, row.retry_at = after.guid, after.failures, after.retry_at
    row.observed_at, row.fresh_until = seen.began_at, seen.began_at + _FRESH_ROUNDS * interval


async def _confirm(
    session: AsyncSession, hosts: dict[datetime, list[str]], interval: timedelta
) -> None:
    at = min(hosts)
    names = [name for some in hosts.values() for name in some]
    for begin in range(0, len(names), _AT_A_TIME):
        await session.exec(
            update(OobmRow)
            .where(col(OobmRow.host).in_(names[begin : begin + _AT_A_TIME]))
            .where(col(OobmRow.observed_at).is_(None) | (col(OobmRow.observed_at) < at))
            .values(observed_at=at, fresh_until=at + _FRESH_ROUNDS * interval),
            # The rows of this session are not looked at again.
            execution_options={"synchronize_session": False},
        )


def _tell(
    session: AsyncSession, news: _News, command: PowerCommandRow | None, operation: str
) -> None:
    """The first word of a BMC is news only if it is none."""
    before, after = news.before, news.after
    if before.problem is PowerProblem.NOT_ASKED and after.problem is None:
        return
    if _is_explained(command, after, news.seen_at):
        return
    why = f": {after.reason}" if after.reason else ""
    kind = "power.refused" if after.problem in _REFUSALS else "power.changed"
    add_event(
        session,
        kind,
        f"host/{news.host}",
        f"{before.state} -> {after.state}{why}",
        operation=operation,
        actor=operation,
    )


def _is_explained(command: PowerCommandRow | None, after: PowerStanding, seen_at: datetime) -> bool:
    """Whether a command of Hostler's, which was under way then, is the reason."""
    if command is None or after.problem is not None:
        return False
    ended: datetime = min(command.finished_at or command.until, command.until)
    action = Action(command.action)
    # Boots may take the power away for a moment, a reset too.
    expected = after.state is SHOULD_BE[action] or action in BOOTS
    return expected and command.sent_at <= seen_at <= ended


def _outlived(command: PowerCommandRef) -> Any:
    """The deletion of the host's commands that explain nothing any more. Those of this operation
    stay; no other one can send again, since this one holds the lease."""
    return delete(PowerCommandRow).where(
        col(PowerCommandRow.host) == command.lease.host,
        col(PowerCommandRow.operation) != _operation(command.lease),
        col(PowerCommandRow.until) < now(),
    )


def _operation(lease: LeaseRef) -> str:
    return f"{lease.owner.workflow_id}#{lease.owner.first_run_id}"


def _key(command: PowerCommandRef) -> tuple[str, str]:
    return _operation(command.lease), command.action


def _taken_over(session: AsyncSession, row: PowerCommandRow) -> PowerSent:
    if row.accepted_at is None and not row.problem:
        row.problem = _ITS_SENDER_IS_LOST
        session.add(row)
    return _sent(row)


def _sent(row: PowerCommandRow) -> PowerSent:
    sent_at: datetime = row.sent_at
    return PowerSent(
        accepted=row.accepted_at is not None,
        sent_at=sent_at,
        boot_id=row.boot_id,
        problem=row.problem,
    )


def _round(row: PowerRoundRow) -> PowerRound:
    return PowerRound(
        started_at=row.started_at,
        ended_at=row.ended_at,
        seconds=(row.ended_at - row.started_at).total_seconds(),
        asked=row.asked,
        answered=row.answered,
        waiting=row.waiting,
        changed=row.changed,
        oldest_observed_at=row.oldest_observed_at,
        counts=tuple(PowerCount.model_validate(count) for count in row.counts),
    )
