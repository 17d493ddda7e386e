"""The connection to SQLite or PostgreSQL, its transactions, and its migrations."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Failed, InvalidInput, Unavailable

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_BUSY_S = 5
_AGAIN_S = 0.02
_MIGRATIONS = Path(__file__).parent / "migrations"
# Any number, as long as nothing else in the database takes an advisory lock of that number.
_UPGRADE_LOCK = 4807_2633


class Database:
    """One database.

    SQLite: a transaction that writes takes the write lock at its beginning (one that reads first
    could not get it later), on one connection per process; readers have their own.

    Args:
        url: an SQLAlchemy URL, `sqlite:///PATH` or `postgresql://...`. Raises InvalidInput.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        if self._url.get_backend_name() == "sqlite":
            self._readers = create_async_engine(self._url, connect_args={"timeout": _BUSY_S})
            self._writer = create_async_engine(
                self._url, connect_args={"timeout": _BUSY_S}, pool_size=1, max_overflow=0
            )
            _prepare_sqlite(self._readers, writes=False)
            _prepare_sqlite(self._writer, writes=True)
        else:
            self._writer = create_async_engine(
                self._url, pool_pre_ping=True, connect_args={"connect_timeout": 10}
            )
            # One snapshot per transaction, as SQLite gives it.
            self._readers = self._writer.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session whose transaction only reads, all of it as it was at one moment. Raises
        Unavailable."""
        async with _translated(), AsyncSession(self._readers, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed at the end of the block, rolled back if it raises.

        Raises Unavailable. Nothing slow belongs in the block: others wait for it.
        """
        async with (
            _translated(),
            AsyncSession(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    async def upgrade(self) -> None:
        """Bring the tables to the newest revision; several processes may do so at once."""
        async with _translated(), self._writer.begin() as connection:
            if self._url.get_backend_name() == "postgresql":
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK}
                )
            await connection.run_sync(_upgrade)

    async def check(self) -> None:
        """Raises Failed unless the tables are those of this version, Unavailable if it is away."""
        found = await self._revision() if self.exists() else None
        wanted = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
        if found != wanted:
            raise Failed(
                f"The inventory's database has {f'revision {found}' if found else 'no tables'}, "
                f"this version of Hostler needs revision {wanted}.",
                remedy="Run `hostler db upgrade`.",
            )

    async def ping(self) -> None:
        """Raises Unavailable if it does not answer."""
        async with _translated(), self._readers.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close all connections."""
        await self._readers.dispose()
        await self._writer.dispose()

    def exists(self) -> bool:
        """Of an SQLite file: opening one that is not there would make an empty one."""
        path = self._url.database
        return self._url.get_backend_name() != "sqlite" or not path or Path(path).exists()

    async def _revision(self) -> str | None:
        async with _translated(), self._readers.connect() as connection:
            return await connection.run_sync(
                lambda sync: MigrationContext.configure(sync).get_current_revision()
            )


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        return parsed.set(drivername=_DRIVERS[parsed.get_backend_name()])
    except (ArgumentError, KeyError):
        raise InvalidInput(
            "The inventory's URL is none that Hostler can use.",
            remedy="Set HOSTLER_DATABASE_URL to sqlite:///PATH or postgresql://USER@HOST/NAME.",
        ) from None


def _prepare_sqlite(engine: AsyncEngine, *, writes: bool) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # The driver's own BEGIN comes too late, at the first write: `begin` below does it.
        connection.isolation_level = None
        cursor = connection.cursor()
        _use_wal(cursor)
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            f"query_only = {'OFF' if writes else 'ON'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _use_wal(cursor: Any) -> None:
    """Of a file that is not in that mode yet: SQLite gives up at once, whatever the time-out, when
    two connections want that at the same moment."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode")
            if cursor.fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
                cursor.fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        await_only(asyncio.sleep(_AGAIN_S))


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """What keeps the database from answering becomes Unavailable; our own mistakes do not."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise _unavailable(error.orig or error) from error.orig
    except PoolTimeout as error:
        raise _unavailable(error) from error


def _unavailable(error: BaseException) -> Unavailable:
    return Unavailable(f"The inventory's database did not answer: {_words(error)}.")


def _words(error: BaseException) -> str:
    """The driver's own text: SQLAlchemy's holds the statement and its values."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
