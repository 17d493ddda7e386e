import asyncio
import base64
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlmodel import SQLModel, col, select, update

from contracts.errors import Conflict, Failed, NotFound
from inventory import Database, Inventory, SecretBox
from inventory.errors import MasterKeyMissing, SecretDamaged
from inventory.models import EventRow, SecretVersionRow, now
from inventory.secret_box import KeySource, key_id, key_id_of
from inventory.secrets import Secrets
from tests.inventory.conftest import register

CANARY = "canary-7f3a-pässwörd"


class Keys(KeySource):
    """Keys that change under those who have read them."""

    origin = "here"

    def __init__(self, *keys: str) -> None:
        self.keys = [*keys]

    async def load(self) -> list[str]:
        return [*self.keys]


async def rows(database: Database) -> list[SecretVersionRow]:
    async with database.reading() as session:
        return list(await session.exec(select(SecretVersionRow)))


async def dumped(database: Database) -> str:
    """All rows of all tables, as text; binary values in hexadecimal digits."""
    texts: list[str] = []
    async with database.reading() as session:
        connection = await session.connection()
        for table in SQLModel.metadata.sorted_tables:
            for row in await connection.execute(table.select()):
                texts += [one.hex() if isinstance(one, bytes) else repr(one) for one in row]
    return "\n".join(texts)


async def overwrite(database: Database, secret_id: str, ciphertext: bytes) -> None:
    async with database.writing() as session:
        await session.exec(
            update(SecretVersionRow)
            .where(col(SecretVersionRow.id) == secret_id)
            .values(ciphertext=ciphertext)
        )


async def test_a_secret_comes_back_and_is_not_stored_in_clear(
    inventory: Inventory, database: Database
) -> None:
    first = await inventory.secrets.store("password", CANARY, actor="test")
    second = await inventory.secrets.store("private_key", CANARY, actor="test")
    assert (await inventory.secrets.reveal(first)).kind == "password"
    assert (await inventory.secrets.reveal(second)).plaintext == CANARY
    stored = await rows(database)
    dump = await dumped(database)
    for form in (CANARY.encode(), base64.b64encode(CANARY.encode())[:-4]):
        assert all(form not in row.ciphertext for row in stored)
        assert form.decode() not in dump
        assert form.hex() not in dump
    assert stored[0].ciphertext.hex() in dump, "so its silence means something"
    # Nonces are never used twice.
    assert len({row.ciphertext[9:21] for row in stored}) == 2
    assert CANARY not in repr(await inventory.secrets.reveal(first))


@pytest.mark.parametrize(
    "plaintext", ["", " ", "'\"\\$`:", "пароль", "x" * 128, "a\nb", "\N{GRINNING FACE}"]
)
async def test_any_text_comes_back_as_it_was(inventory: Inventory, plaintext: str) -> None:
    secret = await inventory.secrets.store("password", plaintext, actor="test")
    assert (await inventory.secrets.reveal(secret)).plaintext == plaintext


async def test_every_ciphertext_names_its_key(database: Database) -> None:
    key = SecretBox.new_key()
    await Secrets(database, SecretBox(key)).store("password", CANARY, actor="test")
    (row,) = await rows(database)
    assert row.ciphertext[0] == 1
    assert row.ciphertext[1:9].hex() == key_id_of(row.ciphertext) == key_id(key)
    assert base64.b64decode(key) not in row.ciphertext


async def test_another_key_reads_nothing_and_both_are_named(
    inventory: Inventory, database: Database
) -> None:
    secret = await inventory.secrets.store("password", CANARY, actor="test")
    (row,) = await rows(database)
    box = SecretBox(SecretBox.new_key())
    with pytest.raises(MasterKeyMissing) as caught:
        await Secrets(database, box).reveal(secret)
    for named in (secret, box.key_ids[0], str(key_id_of(row.ciphertext))):
        assert named in str(caught.value)


async def test_another_key_stores_nothing(inventory: Inventory, database: Database) -> None:
    await inventory.secrets.store("password", CANARY, actor="test")
    before = await rows(database)
    with pytest.raises(MasterKeyMissing, match="Nothing was stored"):
        await Secrets(database, SecretBox(SecretBox.new_key())).store(
            "password", "other", actor="test"
        )
    assert await rows(database) == before


async def test_a_ciphertext_in_another_row_does_not_decrypt(
    inventory: Inventory, database: Database
) -> None:
    first = await inventory.secrets.store("password", CANARY, actor="test")
    second = await inventory.secrets.store("password", "other", actor="test")
    of_row = {row.id: row.ciphertext for row in await rows(database)}
    await overwrite(database, first, of_row[second])
    await overwrite(database, second, of_row[first])
    for secret in (first, second):
        with pytest.raises(SecretDamaged, match=secret):
            await inventory.secrets.reveal(secret)


async def test_a_ciphertext_of_another_kind_does_not_decrypt(
    inventory: Inventory, database: Database
) -> None:
    secret = await inventory.secrets.store("password", CANARY, actor="test")
    async with database.writing() as session:
        await session.exec(update(SecretVersionRow).values(kind="own_key"))
    with pytest.raises(SecretDamaged):
        await inventory.secrets.reveal(secret)


async def test_every_flipped_bit_is_noticed_and_the_secret_is_named(
    inventory: Inventory, database: Database
) -> None:
    secret = await inventory.secrets.store("password", CANARY, actor="test")
    (row,) = await rows(database)
    for place in range(len(row.ciphertext)):
        flipped = bytearray(row.ciphertext)
        flipped[place] ^= 1 << (place % 8)
        await overwrite(database, secret, bytes(flipped))
        with pytest.raises(SecretDamaged, match=secret):
            await inventory.secrets.reveal(secret)


async def test_every_truncation_is_noticed_and_the_secret_is_named(
    inventory: Inventory, database: Database
) -> None:
    secret = await inventory.secrets.store("password", CANARY, actor="test")
    (row,) = await rows(database)
    for length in range(len(row.ciphertext)):
        await overwrite(database, secret, row.ciphertext[:length])
        with pytest.raises(SecretDamaged, match=secret):
            await inventory.secrets.reveal(secret)


async def test_a_key_that_was_added_since_is_found_without_a_restart(database: Database) -> None:
    keys = Keys(SecretBox.new_key())
    running = Inventory(database, await SecretBox.load(keys))
    first = await running.secrets.store("password", "first", actor="test")
    keys.keys.insert(0, SecretBox.new_key())
    other = Inventory(database, await SecretBox.load(keys))
    await other.master_keys.rekey(actor="test", progress=lambda _done, _left: None)
    assert (await running.secrets.reveal(first)).plaintext == "first"
    await running.secrets.store("password", "second", actor="test")
    used = {str(key_id_of(row.ciphertext)) for row in await rows(database)}
    assert used == {key_id(keys.keys[0])}
    # The way to store is the same when that comes first.
    keys.keys.insert(0, SecretBox.new_key())
    newest = Inventory(database, await SecretBox.load(keys))
    await newest.master_keys.rekey(actor="test", progress=lambda _done, _left: None)
    await running.secrets.store("password", "third", actor="test")
    used = {str(key_id_of(row.ciphertext)) for row in await rows(database)}
    assert used == {key_id(keys.keys[0])}


async def test_logins_that_go_on_while_the_key_is_changed_all_succeed(database: Database) -> None:
    keys = Keys(SecretBox.new_key())
    running = Inventory(database, await SecretBox.load(keys))
    ids = await running.secrets.store_all(
        [("password", f"pw-{number}") for number in range(30)], actor="test"
    )

    async def log_in() -> list[str]:
        revealed = await asyncio.gather(*(running.secrets.reveal(secret) for secret in ids))
        return [one.plaintext for one in revealed]

    expected = await log_in()
    for _ in range(5):
        keys.keys.insert(0, SecretBox.new_key())
        other = Inventory(database, await SecretBox.load(keys))
        await other.master_keys.rekey(actor="test", progress=lambda _done, _left: None)
        assert await log_in() == expected
        assert len(await running.secrets.reveal_all(ids)) == len(ids)


async def test_many_are_read_with_a_key_that_was_added_since(database: Database) -> None:
    keys = Keys(SecretBox.new_key())
    running = Inventory(database, await SecretBox.load(keys))
    first = await running.secrets.store("bmc_password", "first", actor="test")
    keys.keys.insert(0, SecretBox.new_key())
    other = Inventory(database, await SecretBox.load(keys))
    await other.master_keys.rekey(actor="test", progress=lambda _done, _left: None)
    damaged = await other.secrets.store("bmc_password", "second", actor="test")
    await overwrite(database, damaged, b"")
    revealed = await running.secrets.reveal_all([first, damaged, "none"])
    assert {secret: one.plaintext for secret, one in revealed.items()} == {first: "first"}


async def test_a_disclosure_is_told_of_the_secret_and_of_what_has_it(
    inventory: Inventory, database: Database
) -> None:
    await register(inventory, 1)
    secret = (await inventory.hosts.login("kvm-1")).secret_id
    credential = await inventory.secrets.disclose(
        secret, reason="console at night", actor="token:anna"
    )
    assert (credential.kind, credential.plaintext) == ("password", "pw")
    for subject in (f"secret/{secret}", "host/kvm-1"):
        event = (await inventory.events.list(subject=subject))[0]
        assert (event.kind, event.actor) == ("secret.disclosed", "token:anna")
        assert event.message == f"password {secret} was shown: console at night"


async def test_the_key_of_an_authority_is_not_disclosed(inventory: Inventory) -> None:
    secret = await inventory.secrets.store("ca_key", CANARY, actor="test")
    with pytest.raises(Conflict, match="shown to nobody"):
        await inventory.secrets.disclose(secret, reason="test", actor="test")
    events = await inventory.events.list(subject=f"secret/{secret}")
    assert [event.kind for event in events] == ["secret.stored"]


async def test_what_can_not_be_told_of_is_not_disclosed(
    inventory: Inventory, database: Database
) -> None:
    secret = await inventory.secrets.store("password", CANARY, actor="test")
    async with database.writing() as session:
        connection = await session.connection()
        await connection.exec_driver_sql(f"DROP TABLE {EventRow.__tablename__}")
    with pytest.raises(Exception, match="event"):
        await inventory.secrets.disclose(secret, reason="test", actor="test")


async def test_the_secrets_of_a_host_are_listed_without_themselves(inventory: Inventory) -> None:
    await register(inventory, 1)
    secret = (await inventory.hosts.login("kvm-1")).secret_id
    (stored,) = await inventory.stored_secrets.of_host("kvm-1")
    assert (stored.id, stored.kind, stored.state) == (secret, "password", "current")
    with pytest.raises(NotFound):
        await inventory.stored_secrets.of_host("kvm-9")


async def test_discard_spares_what_a_host_uses(inventory: Inventory) -> None:
    await register(inventory, 1)
    used = (await inventory.hosts.login("kvm-1")).secret_id
    unused = await inventory.secrets.store("password", CANARY, actor="test")
    for secret in (used, unused, unused):
        await inventory.secrets.discard(secret)
    assert (await inventory.secrets.reveal(used)).plaintext == "pw"
    with pytest.raises(NotFound):
        await inventory.secrets.reveal(unused)


async def test_what_nobody_claimed_for_a_day_is_deleted(
    inventory: Inventory, database: Database
) -> None:
    await register(inventory, 1)
    used = (await inventory.hosts.login("kvm-1")).secret_id
    old = await inventory.secrets.store("password", CANARY, actor="test")
    async with database.writing() as session:
        await session.exec(update(SecretVersionRow).values(created_at=now() - timedelta(days=2)))
    fresh = await inventory.secrets.store("password", CANARY, actor="test")
    assert {row.id for row in await rows(database)} == {used, fresh}
    with pytest.raises(NotFound):
        await inventory.secrets.reveal(old)


@pytest.mark.parametrize("key", ["", "short", base64.b64encode(b"x" * 31).decode(), "ü"])
@pytest.mark.parametrize("keys", [lambda key: [key], lambda key: [SecretBox.new_key(), key]])
def test_a_key_that_is_none_is_named(key: str, keys: Callable[[str], list[str]]) -> None:
    with pytest.raises(Failed, match="32 bytes in base64"):
        SecretBox(*keys(key))


def test_no_key_at_all_is_named() -> None:
    with pytest.raises(Failed, match="There is no master key"):
        SecretBox()


def test_ids_of_keys_differ() -> None:
    ids = sorted(key_id(SecretBox.new_key()) for _ in range(1000))
    assert all(one != other for one, other in pairwise(ids))
