"""INSERT ... ON CONFLICT, which SQLite and PostgreSQL both know, each under its own name."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession


async def insert_if_absent(session: AsyncSession, row: SQLModel) -> bool:
    """Insert `row` unless one with its primary or a unique key is there; whether it was."""
    keys = inspect(type(row)).primary_key
    insert = _insert(session, row).on_conflict_do_nothing().returning(*keys)
    return (await session.exec(insert)).first() is not None


async def insert_all_if_absent(session: AsyncSession, rows: Sequence[SQLModel]) -> None:
    """The same for rows of one table, in their order."""
    if rows:
        insert = _insert_into(session, type(rows[0])).on_conflict_do_nothing()
        await (await session.connection()).execute(insert, [row.model_dump() for row in rows])


async def insert_or_replace(session: AsyncSession, row: SQLModel) -> None:
    """Insert `row`; one with the same primary key gets its values."""
    values, keys = row.model_dump(), [column.name for column in inspect(type(row)).primary_key]
    await session.exec(
        _insert(session, row).on_conflict_do_update(
            index_elements=keys,
            set_={name: value for name, value in values.items() if name not in keys},
        )
    )


async def insert_or_replace_all(session: AsyncSession, rows: Sequence[SQLModel]) -> None:
    """The same for rows of one table, in their order."""
    if not rows:
        return
    table = type(rows[0])
    keys = [column.name for column in inspect(table).primary_key]
    insert = _insert_into(session, table)
    insert = insert.on_conflict_do_update(
        index_elements=keys,
        set_={name: insert.excluded[name] for name in rows[0].model_dump() if name not in keys},
    )
    await (await session.connection()).execute(insert, [row.model_dump() for row in rows])


def _insert(session: AsyncSession, row: SQLModel) -> Any:
    return _insert_into(session, type(row)).values(**row.model_dump())


def _insert_into(session: AsyncSession, table: type[SQLModel]) -> Any:
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[session.get_bind().dialect.name]
    return dialect.insert(table)
