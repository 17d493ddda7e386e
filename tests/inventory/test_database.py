import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, LargeBinary, text
from sqlalchemy.exc import IntegrityError, InternalError
from sqlmodel import SQLModel, col, select

from contracts.errors import Failed, InvalidInput, Unavailable
from inventory import Database, Inventory, SecretBox
from inventory.errors import MasterKeyMissing
from inventory.master_keys import is_keyed
from inventory.models import PodRow, SecretVersionRow, ZoneRow
from inventory.secret_box import key_id
from tests.inventory.conftest import register

MIGRATIONS = Path(__file__).parents[2] / "inventory" / "migrations"


async def test_the_migrations_make_the_tables_of_the_models(database: Database) -> None:
    await database.check()
    async with database.writing() as session:
        connection = await session.connection()
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), SQLModel.metadata)
        )
    assert difference == []


async def test_several_may_upgrade_at_once(url: str) -> None:
    databases = [Database(url) for _ in range(4)]
    await asyncio.gather(*(database.upgrade() for database in databases))
    for database in databases:
        await database.check()
        await database.close()


async def test_a_database_without_tables_is_told_how_to_get_them(url: str) -> None:
    database = Database(url)
    with pytest.raises(Failed, match=r"has no tables, .* Run `hostler db upgrade`"):
        await database.check()
    await database.close()


async def test_asking_for_a_file_that_is_not_there_does_not_make_it(tmp_path: Path) -> None:
    path = tmp_path / "inventory.db"
    with pytest.raises(Failed):
        await Database(f"sqlite:///{path}").check()
    assert not await is_keyed(Database(f"sqlite:///{path}"))
    assert not path.exists()


async def test_a_database_that_is_away_is_unavailable() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(Unavailable, match="The inventory's database did not answer"):
        await database.check()
    with pytest.raises(Unavailable):
        await database.ping()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://x/y"])
def test_a_url_that_is_none_is_named(url: str) -> None:
    with pytest.raises(InvalidInput, match="HOSTLER_DATABASE_URL"):
        Database(url)


async def test_a_locked_file_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "inventory.db"
    database = Database(f"sqlite:///{path}")
    await database.upgrade()
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await inventory.topology.create_zone("zone-1", actor="test")
    assert await inventory.topology.list_zones() == []
    holder.execute("ROLLBACK")
    holder.close()
    await inventory.topology.create_zone("zone-1", actor="test")
    await database.close()


async def test_a_new_file_may_be_opened_while_another_process_writes_it(tmp_path: Path) -> None:
    """It is in no WAL mode yet, and SQLite does not wait for that by itself."""
    path = tmp_path / "inventory.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE other (x)")
        other.execute("BEGIN IMMEDIATE")
        database = Database(f"sqlite:///{path}")
        ping = asyncio.create_task(database.ping())
        await asyncio.sleep(0.3)
        assert not ping.done()
        other.execute("ROLLBACK")
        await ping
        await database.close()
    with closing(sqlite3.connect(path)) as later:
        assert later.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_failed_block_leaves_nothing(inventory: Inventory, database: Database) -> None:
    await register(inventory, 1)

    async def break_off() -> None:
        async with database.writing() as session:
            session.add(ZoneRow(name="zone-x"))
            await session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    assert [zone.name for zone in await inventory.topology.list_zones()] == ["zone-1"]


async def test_references_are_enforced(inventory: Inventory, database: Database) -> None:
    async def orphan() -> None:
        async with database.writing() as session:
            session.add(PodRow(name="pod-x", zone_id=4711))

    with pytest.raises(IntegrityError):
        await orphan()


async def test_a_reader_sees_one_moment(inventory: Inventory, database: Database) -> None:
    query = select(col(ZoneRow.name))
    async with database.reading() as session:
        before = list(await session.exec(query))
        await inventory.topology.rename_zone("zone-1", "zone-2", actor="test")
        assert list(await session.exec(query)) == before == ["zone-1"]
    async with database.reading() as session:
        assert list(await session.exec(query)) == ["zone-2"]


async def test_a_reader_does_not_write(inventory: Inventory, database: Database) -> None:
    async def write() -> None:
        async with database.reading() as session:
            session.add(ZoneRow(name="zone-x"))
            await session.flush()

    with pytest.raises((Unavailable, InternalError)):
        await write()
    assert [zone.name for zone in await inventory.topology.list_zones()] == ["zone-1"]


async def test_secrets_of_a_former_version_are_read(url: str, database: Database) -> None:
    """Key id and nonce were columns of their own then."""
    key = SecretBox.new_key()
    secret = await Inventory(database, SecretBox(key)).secrets.store("password", "pw", actor="test")
    async with database.writing() as session:
        connection = await session.connection()
        await connection.run_sync(_before_versions)
    await database.close()
    later = Database(url)
    # A new key is made for an inventory that has encrypted nothing yet alone.
    assert await is_keyed(later)
    await later.upgrade()
    await later.check()
    with pytest.raises(MasterKeyMissing, match=f"1 stored credentials take {key_id(key)}"):
        await Inventory(later, SecretBox(SecretBox.new_key())).master_keys.settle()
    inventory = Inventory(later, SecretBox(SecretBox.new_key(), key))
    await inventory.master_keys.settle()
    assert (await inventory.secrets.reveal(secret)).plaintext == "pw"
    await later.close()


def _before_versions(connection: Connection) -> None:
    """Put the tables back to what they were before revision 0005."""
    rows = connection.execute(select(SecretVersionRow.id, SecretVersionRow.ciphertext)).all()
    for table in ("password_attempt", "host_password", "cluster_password", "keyring"):
        connection.execute(text(f"DROP TABLE {table}"))
    kind = connection.dialect.type_compiler_instance.process(LargeBinary())
    connection.execute(text(f"ALTER TABLE secret_version ADD COLUMN nonce {kind}"))
    connection.execute(text("ALTER TABLE secret_version ADD COLUMN key_id VARCHAR"))
    for secret_id, sealed in rows:
        connection.execute(
            text(
                "UPDATE secret_version SET key_id = :key, nonce = :nonce, ciphertext = :text "
                "WHERE id = :id"
            ),
            {"key": sealed[1:9].hex(), "nonce": sealed[9:21], "text": sealed[21:], "id": secret_id},
        )
    revision = ScriptDirectory(str(MIGRATIONS)).get_revision("0005")
    connection.execute(
        text("UPDATE alembic_version SET version_num = :former"),
        {"former": revision.down_revision},
    )
