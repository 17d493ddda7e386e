"""Databases with all tables: the migrations run once per process, each test gets a copy."""

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import psycopg

from inventory import Database

_FILE = "inventory.db"
_TEMPLATE = "migrated"


def sqlite_database(directory: Path) -> Database:
    """A new one, in a file there."""
    return Database(sqlite_url(directory))


def sqlite_url(directory: Path) -> str:
    """Of a new one, in a file there."""
    path = directory / _FILE
    path.write_bytes(_sqlite_file())
    return f"sqlite:///{path}"


def postgresql_url(server: str, name: str) -> str:
    """Of a new one on that server, whose URL is the superuser's, without a database name."""
    _make_template(server)
    create_postgresql(server, name, template=_TEMPLATE)
    return f"{server}/{name}"


def create_postgresql(server: str, name: str, *, template: str = "template1") -> None:
    """Has the tables of the template."""
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")


@cache
def _sqlite_file() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / _FILE
        _migrate(f"sqlite:///{path}")
        return path.read_bytes()


@cache
def _make_template(server: str) -> None:
    create_postgresql(server, _TEMPLATE)
    _migrate(f"{server}/{_TEMPLATE}")


def _migrate(url: str) -> None:
    with ThreadPoolExecutor(1) as thread:  # in this one a loop may run
        thread.submit(asyncio.run, _upgrade(url)).result()


async def _upgrade(url: str) -> None:
    database = Database(url)
    await database.upgrade()
    await database.close()
