"""The audit trail."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.hosts import Event
from inventory.database import Database
from inventory.models import EventRow

MAX_EVENTS = 1000


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


class Events:
    """Reads the audit trail, and writes lines that stand for themselves."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self,
        *,
        subject: str | None = None,
        operation: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> list[Event]:
        """The newest first, at most `limit` (1,000 at the most); `before`: only older than that
        id."""
        query = select(EventRow).order_by(col(EventRow.id).desc()).limit(min(limit, MAX_EVENTS))
        if subject is not None:
            query = query.where(col(EventRow.subject) == subject)
        if operation is not None:
            query = query.where(col(EventRow.operation) == operation)
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


def _event(row: EventRow) -> Event:
    at: datetime = row.at
    return Event(
        id=row.id or 0,
        at=at,
        kind=row.kind,
        subject=row.subject,
        message=row.message,
        operation=row.operation,
        actor=row.actor,
    )
