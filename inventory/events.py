"""The audit trail."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.hosts import Event
from inventory.database import Database
from inventory.models import EventRow

_A_DAY = timedelta(days=1)


def add_event(
    session: AsyncSession,
    kind: str,
    subject: str,
    message: str,
    *,
    operation: str | None = None,
    actor: str,
) -> None:
    """Write a line in the transaction that makes it true."""
    session.add(
        EventRow(kind=kind, subject=subject, message=message, operation=operation, actor=actor)
    )


def add_change(
    session: AsyncSession,
    kind: str,
    subject: str,
    *,
    before: str | None,
    after: str,
    reason: str,
    operation: str | None = None,
    actor: str,
) -> None:
    """Write that a state has changed, in the transaction that changes it. `before`: None for what
    is new."""
    change = after if before is None else f"{before} -> {after}"
    session.add(
        EventRow(
            kind=kind,
            subject=subject,
            message=f"{change}: {reason}" if reason else change,
            from_state=before,
            to_state=after,
            reason=reason or None,
            operation=operation,
            actor=actor,
        )
    )


class Events:
    """Reads the audit trail, and writes lines that stand for themselves."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self,
        *,
        subject: str | None = None,
        kind: str | None = None,
        operation: str | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> list[Event]:
        """The newest first, at most `limit`; `since` and `until`: when they were written, both
        included; `before`: only older than that id."""
        query = select(EventRow).order_by(col(EventRow.id).desc()).limit(limit)
        for column, wanted in (
            (EventRow.subject, subject),
            (EventRow.kind, kind),
            (EventRow.operation, operation),
            (EventRow.actor, actor),
        ):
            if wanted is not None:
                query = query.where(col(column) == wanted)
        if since is not None:
            query = query.where(col(EventRow.at) >= since.astimezone(UTC))
        if until is not None:
            query = query.where(col(EventRow.at) <= until.astimezone(UTC))
        if before is not None:
            query = query.where(col(EventRow.id) < before)
        async with self._database.reading() as session:
            return [_event(row) for row in await session.exec(query)]

    async def record(
        self,
        kind: str,
        subject: str,
        message: str,
        *,
        operation: str | None = None,
        actor: str,
    ) -> None:
        """Write one line."""
        async with self._database.writing() as session:
            add_event(session, kind, subject, message, operation=operation, actor=actor)

    async def newest(self) -> int:
        """The highest id so far; 0 if there is none. Ids that are given later are higher."""
        async with self._database.reading() as session:
            return (await session.exec(select(func.max(EventRow.id)))).one() or 0

    async def latest(self, subjects: Collection[str], kinds: Collection[str]) -> dict[str, Event]:
        """Subject to its newest event of one of these kinds; those without one are left out."""
        newest = (
            select(func.max(EventRow.id))
            .where(col(EventRow.subject).in_(subjects), col(EventRow.kind).in_(kinds))
            .group_by(col(EventRow.subject))
        )
        query = select(EventRow).where(col(EventRow.id).in_(newest))
        async with self._database.reading() as session:
            return {row.subject: _event(row) for row in await session.exec(query)}

    async def record_once_a_day(
        self, kind: str, messages: Mapping[str, str], *, operation: str
    ) -> None:
        """A line of this kind for each subject that has had none within a day."""
        since = datetime.now(UTC) - _A_DAY
        told = await self.latest(messages, [kind])
        for subject, message in messages.items():
            last = told.get(subject)
            if last is None or last.at <= since:
                await self.record(kind, subject, message, operation=operation, actor=operation)


def _event(row: EventRow) -> Event:
    at: datetime = row.at
    return Event(
        id=row.id or 0,
        at=at,
        kind=row.kind,
        subject=row.subject,
        message=row.message,
        from_state=row.from_state,
        to_state=row.to_state,
        reason=row.reason,
        operation=row.operation,
        actor=row.actor,
    )
