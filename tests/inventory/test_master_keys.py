import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import col, select, update

from contracts.errors import Conflict, NotFound
from inventory import Database, Inventory, SecretBox
from inventory.errors import MasterKeyLost, MasterKeyMissing, SecretDamaged
from inventory.master_keys import is_keyed
from inventory.models import KeyringRow, SecretVersionRow
from inventory.secret_box import key_id, key_id_of
from inventory.secrets import Secrets

ROOT = Path(__file__).parents[2]
OLD, NEW, THIRD = (SecretBox.new_key() for _ in range(3))


def silent(_done: int, _left: int) -> None:
    """Nobody watches."""


def with_keys(database: Database, *keys: str) -> Inventory:
    return Inventory(database, SecretBox(*keys))


async def keys_in_use(database: Database) -> Counter[str | None]:
    async with database.reading() as session:
        rows = await session.exec(select(SecretVersionRow.ciphertext))
        return Counter(key_id_of(ciphertext) for ciphertext in rows)


async def everything(database: Database) -> list[object]:
    async with database.reading() as session:
        secrets = (await session.exec(select(SecretVersionRow))).all()
        keyring = (await session.exec(select(KeyringRow))).all()
    return [*(row.model_dump() for row in (*secrets, *keyring))]


async def test_a_new_inventory_settles_on_the_first_key(database: Database) -> None:
    assert not await is_keyed(database)
    inventory = with_keys(database, OLD, NEW)
    await inventory.master_keys.settle()
    assert await is_keyed(database)
    # Another order in the file changes nothing by itself.
    await with_keys(database, NEW, OLD).secrets.store("password", "pw", actor="test")
    assert await keys_in_use(database) == {key_id(OLD): 1}


async def test_of_two_first_starts_with_different_keys_one_is_refused(database: Database) -> None:
    ended = await asyncio.gather(
        with_keys(database, OLD).master_keys.settle(),
        with_keys(database, NEW).master_keys.settle(),
        return_exceptions=True,
    )
    (refused,) = [end for end in ended if end is not None]
    assert isinstance(refused, MasterKeyMissing)
    assert "new ones are encrypted with" in str(refused)


@pytest.mark.parametrize(
    "damage",
    [
        lambda sealed: b"",
        lambda sealed: sealed[:5],
        lambda sealed: sealed[:20],
        lambda sealed: bytes([2]) + sealed[1:],
        lambda sealed: sealed[:3] + bytes([sealed[3] ^ 1]) + sealed[4:],
    ],
    ids=["empty", "within the key", "within the nonce", "format", "flipped bit of the key"],
)
async def test_a_damaged_row_is_named_and_keeps_no_process_from_starting(
    database: Database, damage: Callable[[bytes], bytes]
) -> None:
    old = with_keys(database, OLD)
    await old.master_keys.settle()
    good, bad = [await old.secrets.store("password", "pw", actor="test") for _ in range(2)]
    async with database.writing() as session:
        row = await session.get_one(SecretVersionRow, bad)
        row.ciphertext = damage(row.ciphertext)
        session.add(row)
    await old.master_keys.settle()
    assert await old.master_keys.damaged() == [bad]
    (use,) = await old.master_keys.uses()
    assert (use.key_id, use.secrets) == (key_id(OLD), 1)
    with pytest.raises(SecretDamaged, match=bad):
        await old.secrets.reveal(bad)
    for _ in range(2):
        both = with_keys(database, NEW, OLD)
        done = await both.master_keys.rekey(actor="test", progress=silent)
        assert done.unreadable == (bad,)
    assert (await both.secrets.reveal(good)).plaintext == "pw"


async def test_a_wrong_key_is_named_and_nothing_is_changed(database: Database) -> None:
    inventory = with_keys(database, OLD)
    await inventory.master_keys.settle()
    for number in range(3):
        await inventory.secrets.store("password", f"pw-{number}", actor="test")
    before = await everything(database)
    with pytest.raises(MasterKeyMissing) as caught:
        await with_keys(database, NEW).master_keys.settle()
    for named in (key_id(OLD), key_id(NEW), "3 stored credentials", "new ones are encrypted"):
        assert named in str(caught.value)
    assert await everything(database) == before


async def test_a_key_that_only_old_ones_take_is_missed_too(database: Database) -> None:
    await with_keys(database, OLD).secrets.store("password", "pw", actor="test")
    both = with_keys(database, NEW, OLD)
    async with database.writing() as session:
        await session.exec(
            update(KeyringRow).values(key_id=key_id(NEW), known=[key_id(OLD), key_id(NEW)])
        )
    await both.master_keys.settle()
    with pytest.raises(MasterKeyMissing, match=f"1 stored credentials take {key_id(OLD)}\\."):
        await with_keys(database, NEW).master_keys.settle()


async def test_rekey_leaves_nothing_to_the_old_key(database: Database) -> None:
    old = with_keys(database, OLD)
    plain = {
        await old.secrets.store("password", f"pw-{number}", actor="test"): f"pw-{number}"
        for number in range(250)
    }
    both = with_keys(database, NEW, OLD)
    seen: list[tuple[int, int]] = []
    done = await both.master_keys.rekey(
        actor="local", progress=lambda count, left: seen.append((count, left))
    )
    assert (done.key_id, done.rekeyed, done.unreadable) == (key_id(NEW), 250, ())
    assert (seen[0], seen[-1]) == ((0, 250), (250, 0))
    assert await keys_in_use(database) == {key_id(NEW): 250}
    new = with_keys(database, NEW)
    await new.master_keys.settle()
    for secret, plaintext in plain.items():
        assert (await new.secrets.reveal(secret)).plaintext == plaintext
    uses = {use.key_id: use for use in await both.master_keys.uses()}
    assert (uses[key_id(NEW)].encrypts, uses[key_id(NEW)].may_go) == (True, False)
    assert (uses[key_id(OLD)].secrets, uses[key_id(OLD)].may_go) == (0, True)
    (event,) = await both.events.list(subject=f"master-key/{key_id(NEW)}")
    assert (event.kind, event.actor) == ("master_key.changed", "local")
    again = await both.master_keys.rekey(actor="local", progress=silent)
    assert again.rekeyed == 0
    assert len(await both.events.list(subject=f"master-key/{key_id(NEW)}")) == 1


async def test_who_lacks_the_new_key_stores_nothing_with_the_old_one(database: Database) -> None:
    behind = with_keys(database, OLD)
    await behind.secrets.store("password", "pw", actor="test")
    await with_keys(database, NEW, OLD).master_keys.rekey(actor="test", progress=silent)
    with pytest.raises(MasterKeyMissing, match=key_id(NEW)):
        await behind.secrets.store("password", "other", actor="test")
    assert await keys_in_use(database) == {key_id(NEW): 1}


async def test_what_does_not_decrypt_is_named_and_stays_as_it_is(database: Database) -> None:
    old = with_keys(database, OLD)
    good, bad = [await old.secrets.store("password", "pw", actor="test") for _ in range(2)]
    async with database.writing() as session:
        row = await session.get_one(SecretVersionRow, bad)
        row.ciphertext = damaged = row.ciphertext[:-1] + bytes([row.ciphertext[-1] ^ 1])
        session.add(row)
    both = with_keys(database, NEW, OLD)
    done = await both.master_keys.rekey(actor="test", progress=silent)
    assert (done.rekeyed, done.unreadable) == (1, (bad,))
    assert (await both.secrets.reveal(good)).plaintext == "pw"
    async with database.reading() as session:
        assert (await session.get_one(SecretVersionRow, bad)).ciphertext == damaged
    with pytest.raises(SecretDamaged, match=bad):
        await both.secrets.reveal(bad)
    uses = {use.key_id: use for use in await both.master_keys.uses()}
    assert not uses[key_id(OLD)].may_go


async def test_two_changes_to_different_keys_do_not_go_on_for_ever(database: Database) -> None:
    old = Secrets(database, SecretBox(OLD))
    await old.store_all([("password", f"pw-{n}") for n in range(1000)], actor="test")
    mine, theirs = with_keys(database, NEW, OLD, THIRD), with_keys(database, THIRD, OLD, NEW)
    ended = await asyncio.gather(
        mine.master_keys.rekey(actor="test", progress=silent),
        theirs.master_keys.rekey(actor="test", progress=silent),
        return_exceptions=True,
    )
    (refused,) = [end for end in ended if isinstance(end, Conflict)]
    assert "since a moment ago" in str(refused)
    (use,) = [use for use in await mine.master_keys.uses() if use.secrets]
    assert use.encrypts


async def test_a_lost_key_can_be_given_up(database: Database) -> None:
    old = with_keys(database, OLD)
    secret = await old.secrets.store("password", "pw", actor="test")
    new = with_keys(database, NEW)
    with pytest.raises(Conflict, match="is here"):
        await new.master_keys.give_up(key_id(NEW), reason="typo", actor="local")
    with pytest.raises(NotFound):
        await new.master_keys.give_up(key_id(THIRD), reason="typo", actor="local")
    before = (await everything(database))[0]
    assert await new.master_keys.give_up(key_id(OLD), reason="disk died", actor="local") == 1
    await new.master_keys.settle()
    assert (await everything(database))[0] == before
    with pytest.raises(MasterKeyLost, match=secret):
        await new.secrets.reveal(secret)
    await new.secrets.store("password", "other", actor="test")
    assert await keys_in_use(database) == {key_id(OLD): 1, key_id(NEW): 1}
    (event,) = await new.events.list(subject=f"master-key/{key_id(OLD)}")
    assert (event.kind, event.actor) == ("master_key.lost", "local")
    assert "1 credentials" in event.message
    assert "disk died" in event.message
    # It is found again, and missed again from then on.
    found = with_keys(database, NEW, OLD)
    assert (await found.secrets.reveal(secret)).plaintext == "pw"
    await found.master_keys.settle()
    with pytest.raises(MasterKeyMissing, match=f"1 stored credentials take {key_id(OLD)}"):
        await new.master_keys.settle()


async def test_a_key_that_was_given_up_and_encrypts_again_is_missed(database: Database) -> None:
    await with_keys(database, OLD).secrets.store("password", "pw", actor="test")
    new = with_keys(database, NEW)
    await new.master_keys.give_up(key_id(OLD), reason="lost", actor="test")
    await with_keys(database, OLD, NEW).master_keys.rekey(actor="test", progress=silent)
    with pytest.raises(MasterKeyMissing, match=key_id(OLD)):
        await new.master_keys.settle()


async def test_a_rekey_is_killed_under_load_and_goes_on(url: str, database: Database) -> None:
    """Others read, store and delete meanwhile, in another process than the one that is killed."""
    inventory = with_keys(database, NEW, OLD)
    old = Secrets(database, SecretBox(OLD))
    ids = await old.store_all([("password", f"pw-{n}") for n in range(1500)], actor="test")
    plain = {secret: f"pw-{number}" for number, secret in enumerate(ids)}
    stop = asyncio.Event()
    worked: Counter[str] = Counter()

    async def read() -> None:
        while not stop.is_set():
            for secret in list(plain)[:: max(1, len(plain) // 20)]:
                assert (await inventory.secrets.reveal(secret)).plaintext == plain[secret]
                worked["read"] += 1

    async def write() -> None:
        while not stop.is_set():
            number = worked["written"]
            kept = await inventory.secrets.store("password", f"new-{number}", actor="test")
            plain[kept] = f"new-{number}"
            gone = await inventory.secrets.store("password", "gone", actor="test")
            await inventory.secrets.discard(gone)
            worked["written"] += 1
            await asyncio.sleep(0)

    load = [asyncio.create_task(work()) for work in (read, read, write, write)]
    try:
        first = start_rekeying(url)
        assert await asyncio.to_thread(kill_in_the_middle, first) > 0
        cut_off = await keys_in_use(database)
        assert cut_off[key_id(OLD)] > 0
        assert cut_off[key_id(NEW)] >= 300
        second = start_rekeying(url)
        assert second.stdout is not None
        lines = (await asyncio.to_thread(second.stdout.read)).splitlines()
        assert second.wait() == 0
        second.stdout.close()
    finally:
        stop.set()
        await asyncio.gather(*load)
    assert 0 < int(lines[-1].split()[0]) <= cut_off[key_id(OLD)], "it did the rest alone"
    assert worked["read"] > 0
    assert worked["written"] > 0
    new = with_keys(database, NEW)
    await new.master_keys.settle()
    assert set(await keys_in_use(database)) == {key_id(NEW)}
    for secret, plaintext in plain.items():
        assert (await new.secrets.reveal(secret)).plaintext == plaintext
    uses = {use.key_id: use for use in await inventory.master_keys.uses()}
    assert uses[key_id(OLD)].may_go


def start_rekeying(url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.inventory.rekeyer", url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(f"{NEW} {OLD}\n")
    process.stdin.close()
    return process


def kill_in_the_middle(rekeyer: subprocess.Popen[str]) -> int:
    """How many are left. In a thread, without the event loop: that is full of load, and the rekeyer
    would be done meanwhile."""
    assert rekeyer.stdout is not None
    with rekeyer.stdout as lines:
        for line in lines:
            done, left = map(int, line.split())
            if done >= 300:
                rekeyer.kill()
                rekeyer.wait()
                return left
    raise AssertionError("It has ended before.")


async def test_a_rekey_waits_for_those_who_store_with_the_old_key(
    url: str, database: Database
) -> None:
    """What is being stored while the key changes is found by the change, or takes the new key."""
    inventory = with_keys(database, NEW, OLD)
    await Secrets(database, SecretBox(OLD)).store("password", "pw", actor="test")
    other = Database(url)
    behind = Secrets(other, SecretBox(OLD))
    refused = 0

    async def store() -> None:
        nonlocal refused
        for _ in range(50):
            try:
                await behind.store("password", "pw", actor="test")
            except MasterKeyMissing:
                refused += 1

    await asyncio.gather(
        store(), store(), inventory.master_keys.rekey(actor="test", progress=silent)
    )
    await other.close()
    assert refused > 0
    assert set(await keys_in_use(database)) == {key_id(NEW)}
    assert await new_ids(database) == 1 + 100 - refused


async def new_ids(database: Database) -> int:
    async with database.reading() as session:
        return len((await session.exec(select(col(SecretVersionRow.id)))).all())
