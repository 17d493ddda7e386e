import base64
from datetime import timedelta

import pytest
from sqlmodel import col, select, update

from contracts.errors import Failed, NotFound
from inventory import Database, Inventory, SecretBox
from inventory.errors import SecretUnreadable
from inventory.models import SecretVersionRow, now
from inventory.secrets import Secrets
from tests.inventory.conftest import register

CANARY = "canary-7f3a-pässwörd"


async def rows(database: Database) -> list[SecretVersionRow]:
    async with database.reading() as session:
        return list(await session.exec(select(SecretVersionRow)))


async def test_a_secret_comes_back_and_is_not_stored_in_clear(
    inventory: Inventory, database: Database
) -> None:
    first = await inventory.secrets.store("password", CANARY, actor="test")
    second = await inventory.secrets.store("private_key", CANARY, actor="test")
    assert (await inventory.secrets.reveal(first)).kind == "password"
    assert (await inventory.secrets.reveal(second)).plaintext == CANARY
    stored = await rows(database)
    assert all(CANARY.encode() not in row.ciphertext for row in stored)
    assert len({row.ciphertext for row in stored}) == len({row.nonce for row in stored}) == 2
    assert CANARY not in repr(await inventory.secrets.reveal(first))


async def test_another_key_reads_nothing_and_both_are_named(
    inventory: Inventory, database: Database
) -> None:
    secret = await inventory.secrets.store("password", CANARY, actor="test")
    box = SecretBox(SecretBox.new_key())
    with pytest.raises(SecretUnreadable) as caught:
        await Secrets(database, box).reveal(secret)
    (row,) = await rows(database)
    assert box.key_id in str(caught.value)
    assert row.key_id in str(caught.value)
    assert box.key_id != row.key_id


async def test_a_ciphertext_in_another_row_does_not_decrypt(
    inventory: Inventory, database: Database
) -> None:
    first = await inventory.secrets.store("password", CANARY, actor="test")
    second = await inventory.secrets.store("password", "other", actor="test")
    one = next(row for row in await rows(database) if row.id == first)
    async with database.writing() as session:
        await session.exec(
            update(SecretVersionRow)
            .where(col(SecretVersionRow.id) == second)
            .values(nonce=one.nonce, ciphertext=one.ciphertext)
        )
    with pytest.raises(SecretUnreadable):
        await inventory.secrets.reveal(second)


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
def test_a_key_that_is_none_is_named(key: str) -> None:
    with pytest.raises(Failed, match="32 bytes in base64"):
        SecretBox(key)
