"""Which master keys the inventory needs, and the change to another one while everything runs."""

import asyncio
from collections.abc import Callable, Sequence

from sqlalchemy import ColumnElement, inspect, literal_column, not_, or_, table, text
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, NotFound
from contracts.secrets import MasterKeyUse, Rekeyed
from inventory.database import Database
from inventory.errors import MasterKeyMissing, SecretUnreadable
from inventory.events import add_event
from inventory.models import KeyringRow, SecretVersionRow, now
from inventory.secret_box import FORMAT, KEY_ID_BYTES, KEY_ID_START, MIN_SEALED_BYTES, SecretBox
from inventory.secrets import encrypting_key, identity, new_keyring
from inventory.upsert import insert_if_absent

_SUBJECT = "master-key"
_BATCH = 100
# Between two batches others get the write lock of SQLite.
_PAUSE_S = 0.05

# What a ciphertext says of its key. Written out: PostgreSQL takes two parameters for two
# expressions, and would not group by one of them.
_key_named = func.substr(
    col(SecretVersionRow.ciphertext),
    literal_column(str(KEY_ID_START + 1)),
    literal_column(str(KEY_ID_BYTES)),
)
# Nothing that was cut off, or is of another format, says anything of a key.
_no_ciphertext = or_(
    func.length(col(SecretVersionRow.ciphertext)) < MIN_SEALED_BYTES,
    func.substr(col(SecretVersionRow.ciphertext), 1, KEY_ID_START) != FORMAT,
)


class MasterKeys:
    """The keyring says which key encrypts, for all processes; each ciphertext, which key it takes.
    So a key that nothing names any more can go."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box

    async def settle(self) -> None:
        """To be called at the start of a process: all keys that are needed are here. A new
        inventory encrypts with the first one from now on; a key that was given up and is here again
        is needed again.

        Raises MasterKeyMissing, which names those that are not, before anything is written.
        """
        uses = await self.uses()
        missing = [
            use
            for use in uses
            if not use.loaded and (use.encrypts or (use.secrets and not use.given_up))
        ]
        if missing:
            raise self._missing(missing)
        found = {use.key_id for use in uses if use.loaded and use.given_up}
        if any(use.encrypts for use in uses) and not found:
            return
        async with self._database.writing() as session:
            row = await _keyring(session, self._box)
            row.given_up = [key_id for key_id in row.given_up if key_id not in found]
            session.add(row)
            encrypts = row.key_id
        if encrypts not in self._box.key_ids:  # another process was faster, with another key
            raise self._missing([use for use in await self.uses() if use.key_id == encrypts])

    async def uses(self) -> list[MasterKeyUse]:
        """All keys that are here or needed, the one that encrypts first."""
        async with self._database.reading() as session:
            keyring = (await session.exec(select(KeyringRow))).first()
            query = (
                select(_key_named, func.count()).where(not_(_no_ciphertext)).group_by(_key_named)
            )
            counts = {bytes(key).hex(): count for key, count in await session.exec(query)}
        known = self._known(keyring)
        counts = {key_id: counts[key_id] for key_id in counts if known is None or key_id in known}
        encrypts = keyring.key_id if keyring is not None else None
        given_up = keyring.given_up if keyring is not None else []
        ids = {*self._box.key_ids, *counts, *([encrypts] if encrypts else [])}
        return [
            MasterKeyUse(
                key_id=key_id,
                secrets=counts.get(key_id, 0),
                loaded=key_id in self._box.key_ids,
                encrypts=key_id == encrypts,
                given_up=key_id in given_up,
            )
            for key_id in sorted(ids, key=lambda key_id: (key_id != encrypts, key_id))
        ]

    async def damaged(self) -> list[str]:
        """Ids of the secrets that show at a glance that they are: no ciphertext, or of a key that
        has encrypted nothing here."""
        async with self._database.reading() as session:
            known = self._known((await session.exec(select(KeyringRow))).first())
            wrong = _no_ciphertext
            if known is not None:
                wrong = or_(wrong, _key_named.not_in([_bytes(key_id) for key_id in known]))
            query = select(SecretVersionRow.id).where(wrong).order_by(col(SecretVersionRow.id))
            return list(await session.exec(query))

    def _known(self, keyring: KeyringRow | None) -> set[str] | None:
        """Ids of keys that a ciphertext may name; None: nobody knows yet."""
        return {*keyring.known, *self._box.key_ids} if keyring is not None else None

    def _missing(self, uses: Sequence[MasterKeyUse]) -> MasterKeyMissing:
        return MasterKeyMissing(
            f"A master key is missing: {'; '.join(_needed(use) for use in uses)}. "
            f"{self._box.origin} has {', '.join(self._box.key_ids)}.",
            remedy="Put it back from your backup; nothing was changed. If it is lost for good: "
            f"hostler key give-up {uses[0].key_id} --reason ...",
            key_id=uses[0].key_id,
        )

    async def rekey(self, *, actor: str, progress: Callable[[int, int], None]) -> Rekeyed:
        """Encrypt everything anew, with the first key of the box.

        From its first step on, every process encrypts with that key or not at all. What is done
        stays done, whenever it is cut off; a repetition goes on with the rest. Others may read,
        store and delete meanwhile. `progress` is told how many are done, and how many are left.
        Raises Conflict if somebody else changes to yet another key.
        """
        target = self._box.key_ids[0]
        await self._switch(target, actor)
        done, unreadable = 0, set[str]()
        while (left := await self._left(target, unreadable)) > 0:
            progress(done, left)
            after = ""
            while batch := await self._rekey_batch(target, after, unreadable):
                last, count = batch
                after, done, left = last, done + count, left - count
                progress(done, max(left, 0))
                await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(_PAUSE_S)
        return Rekeyed(key_id=target, rekeyed=done, unreadable=tuple(sorted(unreadable)))

    async def give_up(self, key_id: str, *, reason: str, actor: str) -> int:
        """A key is lost: processes start without it from now on. How many credentials are lost with
        it; they stay as they are. Raises Conflict (it is here), NotFound (nothing needs it)."""
        use = next((use for use in await self.uses() if use.key_id == key_id), None)
        if use is None:
            raise NotFound(
                f"Nothing needs a master key {key_id!r}.",
                remedy="See `hostler key list` for those there are.",
            )
        if use.loaded:
            raise Conflict(f"The master key {key_id} is here: {self._box.origin} has it.")
        lost = use.secrets
        async with self._database.writing() as session:
            row = await _keyring(session, self._box)
            if key_id not in row.given_up:
                row.given_up = [*row.given_up, key_id]
                message = f"given up, and {lost} credentials with it: {reason}"
                add_event(session, "master_key.lost", f"{_SUBJECT}/{key_id}", message, actor=actor)
            if row.key_id == key_id:
                _encrypt_with(row, self._box.key_ids[0])
            session.add(row)
        return lost

    async def _switch(self, target: str, actor: str) -> None:
        """Waits for those who are storing something with the former key."""
        async with self._database.writing() as session:
            row = await _keyring(session, self._box)
            if row.key_id != target:
                add_event(
                    session,
                    "master_key.changed",
                    f"{_SUBJECT}/{target}",
                    f"encrypts from now on; before, {row.key_id} did",
                    actor=actor,
                )
                _encrypt_with(row, target)
                session.add(row)

    async def _left(self, target: str, unreadable: set[str]) -> int:
        query = (
            select(func.count())
            .select_from(SecretVersionRow)
            .where(_not_with(target), col(SecretVersionRow.id).not_in(unreadable))
        )
        async with self._database.reading() as session:
            return (await session.exec(query)).one()

    async def _rekey_batch(
        self, target: str, after: str, unreadable: set[str]
    ) -> tuple[str, int] | None:
        """The next ones by id: the last one's id, and how many were encrypted anew. None: there are
        no more.

        Waits for no row that somebody else has locked, so it is in no deadlock: those are for the
        next pass.
        """
        query = (
            select(SecretVersionRow)
            .where(
                col(SecretVersionRow.id) > after,
                _not_with(target),
                col(SecretVersionRow.id).not_in(unreadable),
            )
            .order_by(col(SecretVersionRow.id))
            .limit(_BATCH)
            .with_for_update(skip_locked=True, key_share=True)
        )
        async with self._database.writing() as session:
            if (encrypts := await encrypting_key(session, self._box)) != target:
                raise Conflict(
                    f"Credentials are encrypted with the master key {encrypts} since a moment ago.",
                    remedy="Somebody else changes it, too: give all machines the same keys, in the "
                    "same order, and try again.",
                )
            rows = (await session.exec(query)).all()
            count = 0
            for row in rows:
                bound = identity(row.id, row.kind)
                try:
                    plaintext = self._box.open(row.ciphertext, bound, name=row.id)
                except SecretUnreadable:
                    unreadable.add(row.id)
                    continue
                row.ciphertext = self._box.seal(plaintext, bound, key_id=target)
                session.add(row)
                count += 1
        return (rows[-1].id, count) if rows else None


async def _keyring(session: AsyncSession, box: SecretBox) -> KeyringRow:
    """The row, locked until the transaction ends; in a new inventory, the first key encrypts."""
    await insert_if_absent(session, new_keyring(box))
    return (await session.exec(select(KeyringRow).with_for_update())).one()


def _encrypt_with(row: KeyringRow, key_id: str) -> None:
    row.key_id, row.since = key_id, now()
    row.known = sorted({*row.known, key_id})
    row.given_up = [lost for lost in row.given_up if lost != key_id]


def _not_with(key_id: str) -> ColumnElement[bool]:
    """Of what does not take that key, or is damaged."""
    return or_(_no_ciphertext, _key_named != _bytes(key_id))


def _bytes(key_id: str) -> bytes:
    return bytes.fromhex(key_id)


def _needed(use: MasterKeyUse) -> str:
    needs = f"{use.secrets} stored credentials take {use.key_id}"
    return f"{needs}, which new ones are encrypted with" if use.encrypts else needs


async def is_keyed(database: Database) -> bool:
    """Whether a master key is in use: what it has encrypted, no other one can read. The tables may
    be of any version. Raises Unavailable."""
    if not database.exists():
        return False
    async with database.reading() as session:
        connection = await session.connection()
        there = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names()))
        for name in there & {KeyringRow.__tablename__, SecretVersionRow.__tablename__}:
            query = select(text("1")).select_from(table(name)).limit(1)
            if (await connection.execute(query)).first() is not None:
                return True
    return False
