"""Hostler's own key of each host: stored, then proven on the host, then what logs in there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import NotFound
from contracts.leases import LeaseRef
from inventory.database import Database
from inventory.events import add_event
from inventory.hosts import host_row
from inventory.leases import verify_lease
from inventory.models import EventRow, HostRow, SecretVersionRow, now
from inventory.secrets import unclaimed

_LEAVING = "host.key_leaves"
_STATE = "host.state"


@dataclass(frozen=True)
class HostSecrets:
    """Ids of a host's secrets: what logs in, an own key that is not proven yet, and the password
    beside the key."""

    login: str
    staged_key: str | None
    password: str | None


class OwnKeys:
    """Changes which secrets a host refers to. Every method may be called many times, and raises
    NotFound; those that change something raise LeaseLost."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, host: str) -> HostSecrets:
        """The ids."""
        async with self._database.reading() as session:
            row = (await session.exec(select(HostRow).where(col(HostRow.name) == host))).first()
            if row is None:
                raise NotFound(f"There is no host {host!r}.")
            return HostSecrets(
                login=row.secret_id,
                staged_key=row.staged_key_id,
                password=row.password_secret_id,
            )

    async def stage(self, host: str, secret_id: str, *, lease: LeaseRef) -> str:
        """Keep a new key for the host, unless it has one that waits to be proven; the id of the one
        that counts."""
        async with self._changing(host, lease) as (session, row):
            if row.staged_key_id is None:
                row.staged_key_id = secret_id
                session.add(row)
            return row.staged_key_id

    async def promote(self, host: str, *, operation: str, lease: LeaseRef) -> None:
        """The staged key logs in from now on. A password that did stays beside it; another key is
        deleted."""
        async with self._changing(host, lease) as (session, row):
            if row.staged_key_id is None:
                return
            former = await session.get_one(SecretVersionRow, row.secret_id)
            if former.kind == "password":
                row.password_secret_id = former.id
            row.secret_id, row.staged_key_id = row.staged_key_id, None
            await _delete_unclaimed(session, row, former.id)
            add_event(
                session,
                "host.key",
                f"host/{host}",
                "Hostler logs in with a key of its own from now on",
                operation=operation,
                actor=operation,
            )

    async def drop(self, host: str, *, lease: LeaseRef) -> None:
        """The staged key is of no use: delete it."""
        async with self._changing(host, lease) as (session, row):
            staged, row.staged_key_id = row.staged_key_id, None
            if staged is not None:
                await _delete_unclaimed(session, row, staged)

    async def record_leaving(self, host: str, *, lease: LeaseRef) -> None:
        """The key is taken off the host now, of which nothing else is left: a login that is refused
        from then on is the work of that. May be called many times."""
        async with self._changing(host, lease) as (session, _):
            if not await is_leaving(session, host):
                operation = lease.owner.workflow_id
                add_event(
                    session,
                    _LEAVING,
                    f"host/{host}",
                    "nothing of Hostler's is left on it but its key, which goes now",
                    operation=operation,
                    actor=operation,
                )

    async def is_leaving(self, host: str) -> bool:
        """Whether that was recorded since the host became `Removed`."""
        async with self._database.reading() as session:
            return await is_leaving(session, host)

    @asynccontextmanager
    async def _changing(
        self, host: str, lease: LeaseRef
    ) -> AsyncIterator[tuple[AsyncSession, HostRow]]:
        async with self._database.writing() as session:
            await verify_lease(session, lease, hold=True)
            yield session, await host_row(session, host)


async def is_leaving(session: AsyncSession, host: str) -> bool:
    """The same in a transaction. Nothing changes the state of a host that is `Removed`, so a state
    that was recorded later belongs to another machine of that name."""
    query = (
        select(EventRow.kind)
        .where(col(EventRow.subject) == f"host/{host}", col(EventRow.kind).in_((_LEAVING, _STATE)))
        .order_by(col(EventRow.id).desc())
    )
    return (await session.exec(query.limit(1))).first() == _LEAVING


async def _delete_unclaimed(session: AsyncSession, row: HostRow, secret_id: str) -> None:
    row.updated_at = now()
    session.add(row)
    await session.flush()
    await session.exec(
        delete(SecretVersionRow).where(col(SecretVersionRow.id) == secret_id, unclaimed())
    )
