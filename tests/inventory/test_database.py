import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData
from sqlalchemy.exc import IntegrityError, InternalError
from sqlmodel import SQLModel, col, select

from contracts.errors import Failed, InvalidInput, Unavailable
from inventory import Database, Inventory, SecretBox
from inventory.errors import MasterKeyMissing
from inventory.master_keys import is_keyed
from inventory.models import ClusterRow, PodRow, ZoneRow
from inventory.secret_box import key_id
from inventory.secrets import identity
from tests.databases import sqlite_url
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


async def test_several_may_upgrade_at_once(empty_url: str) -> None:
    databases = [Database(empty_url) for _ in range(4)]
    await asyncio.gather(*(database.upgrade() for database in databases))
    for database in databases:
        await database.check()
        await database.close()


async def test_a_database_without_tables_is_told_how_to_get_them(empty_url: str) -> None:
    database = Database(empty_url)
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
    url = sqlite_url(tmp_path)
    database, path = Database(url), url.removeprefix("sqlite:///")
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


async def test_the_inventory_of_a_former_version_is_read(empty_url: str) -> None:
    """Key id and nonce of secrets were columns of their own, and clusters had no unit, before
    revision 0005."""
    key = SecretBox.new_key()
    former = Database(empty_url)
    async with former.writing() as session:
        connection = await session.connection()
        await connection.run_sync(_make_former, SecretBox(key))
    await former.close()
    later = Database(empty_url)
    # A new key is made for an inventory that has encrypted nothing yet alone.
    assert await is_keyed(later)
    await later.upgrade()
    await later.check()
    with pytest.raises(MasterKeyMissing, match=f"1 stored credentials take {key_id(key)}"):
        await Inventory(later, SecretBox(SecretBox.new_key())).master_keys.settle()
    inventory = Inventory(later, SecretBox(SecretBox.new_key(), key))
    await inventory.master_keys.settle()
    assert (await inventory.secrets.reveal("secret-1")).plaintext == "pw"
    async with later.reading() as session:
        units = (await session.exec(select(col(ClusterRow.certificate_id)))).all()
    assert len(set(units)) == 2
    assert all(len(unit) == 16 for unit in units)
    await later.close()


def _make_former(connection: Connection, box: SecretBox) -> None:
    """A password and two clusters, in the tables of revision 0004."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "0004")
    sealed = box.seal("pw", identity("secret-1", "password"), key_id=box.key_ids[0])
    tables = MetaData()
    tables.reflect(connection, only=["zone", "pod", "cluster", "secret_version"])
    rows: dict[str, list[dict[str, object]]] = {
        "zone": [{"id": 1, "name": "zone-1"}],
        "pod": [{"id": 1, "name": "pod-1", "zone_id": 1}],
        "cluster": [
            {"id": number, "name": f"cluster-{number}", "pod_id": 1, "oobm_enabled": True}
            for number in (1, 2)
        ],
    }
    for table, some in rows.items():
        values = [{**row, "allocation_state": "Enabled"} for row in some]
        connection.execute(tables.tables[table].insert(), values)
    connection.execute(
        tables.tables["secret_version"].insert(),
        {
            "id": "secret-1",
            "kind": "password",
            "key_id": sealed[1:9].hex(),
            "nonce": sealed[9:21],
            "ciphertext": sealed[21:],
            "created_at": datetime.now(UTC),
        },
    )
