"""Credentials, encrypted by a SecretBox: workflows and histories carry their ids alone."""

import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, not_
from sqlmodel import col, delete, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import Conflict, NotFound
from contracts.secrets import CA_KEY, TLS_KEY
from inventory.database import Database
from inventory.errors import MasterKeyLost, MasterKeyMissing, SecretDamaged, SecretUnreadable
from inventory.events import add_event
from inventory.models import (
    CertificateAuthorityRow,
    CertificateRow,
    ClusterPasswordRow,
    ClusterRow,
    HostPasswordRow,
    HostRow,
    KeyringRow,
    OobmRow,
    OperationRow,
    PasswordAttemptRow,
    RemovedHostRow,
    SecretVersionRow,
    now,
)
from inventory.secret_box import SecretBox, key_id_of
from inventory.upsert import insert_if_absent

# A secret that nothing refers to by then belongs to an operation that never got to its host.
_UNCLAIMED_AFTER = timedelta(days=1)
_SHOWN_TO_NOBODY = {CA_KEY: "a certificate authority", TLS_KEY: "Hostler's own certificate"}
_AT_A_TIME = 500  # of ids in one statement


@dataclass(frozen=True)
class Credential:
    """`kind` is "password", "private_key" (OpenSSH's PEM), "own_key", the same, made by Hostler
    for that host, "bmc_password", "ca_key", an authority's private key (PKCS #8 in PEM),
    "request_digest", of what a caller has asked for, or "tls_key", that of Hostler's own
    certificate."""

    kind: str
    plaintext: str = field(repr=False)


class Secrets:
    """Stores and reveals secret versions. What takes a master key raises MasterKeyMissing if that
    is not here."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box

    async def store(self, kind: str, plaintext: str, *, actor: str) -> str:
        """A new version; its id."""
        (secret_id,) = await self.store_all([(kind, plaintext)], actor=actor)
        return secret_id

    async def store_as(self, secret_id: str, kind: str, plaintext: str, *, actor: str) -> None:
        """A new version under an id of the caller's. What is stored under it already stays as it
        is, and `plaintext` is forgotten: whoever repeats a step has what it had before."""

        async def work() -> None:
            async with self._database.writing() as session:
                if await session.get(SecretVersionRow, secret_id) is None:
                    await add_secret(session, self._box, secret_id, kind, plaintext, actor=actor)

        await self._box.reloading(work)

    async def store_all(self, credentials: Sequence[tuple[str, str]], *, actor: str) -> list[str]:
        """New versions, of kind and plaintext each: all or none. Their ids."""

        async def work() -> list[str]:
            async with self._database.writing() as session:
                await session.exec(
                    delete(SecretVersionRow).where(
                        col(SecretVersionRow.created_at) < now() - _UNCLAIMED_AFTER, unclaimed()
                    )
                )
                return await add_secrets(session, self._box, credentials, actor=actor)

        return await self._box.reloading(work)

    async def reveal(self, secret_id: str) -> Credential:
        """Raises NotFound, SecretUnreadable."""

        async def work() -> Credential:
            async with self._database.reading() as session:
                return self._open(await _secret_row(session, secret_id))

        return await self._reveal(secret_id, work)

    async def disclose(self, secret_id: str, *, reason: str, actor: str) -> Credential:
        """The same for a person: only with an event for the secret, and one for what has it, that
        say who wanted it and why. Raises NotFound, Conflict (an authority's key is shown to
        nobody), SecretUnreadable."""

        async def work() -> Credential:
            async with self._database.writing() as session:
                row = await _secret_row(session, secret_id)
                if row.kind in _SHOWN_TO_NOBODY:
                    raise Conflict(
                        f"The secret {secret_id} is the private key of {_SHOWN_TO_NOBODY[row.kind]}"
                        ", which is shown to nobody.",
                        remedy="Have the authority sign what is needed: hostler cert sign.",
                    )
                credential = self._open(row)
                for subject in (f"secret/{secret_id}", *await _owners(session, secret_id)):
                    message = f"{credential.kind} {secret_id} was shown: {reason}"
                    add_event(session, "secret.disclosed", subject, message, actor=actor)
                return credential

        return await self._reveal(secret_id, work)

    async def reveal_all(self, secret_ids: Collection[str]) -> dict[str, Credential]:
        """Those that are there and decrypt, by id."""
        rows: list[Any] = []  # columns alone: a round over BMCs wants thousands
        wanted = list(secret_ids)
        async with self._database.reading() as session:
            for start in range(0, len(wanted), _AT_A_TIME):
                some = wanted[start : start + _AT_A_TIME]
                query = select(
                    SecretVersionRow.id, SecretVersionRow.kind, SecretVersionRow.ciphertext
                )
                rows += await session.exec(query.where(col(SecretVersionRow.id).in_(some)))
        for key_id in {key_id_of(row.ciphertext) for row in rows} - {None, *self._box.key_ids}:
            await self._box.has(str(key_id))
        revealed = {}
        for row in rows:
            with suppress(SecretUnreadable):
                revealed[row.id] = self._open(row)
        return revealed

    async def is_claimed(self, secret_id: str) -> bool:
        """Whether a host, present or removed, refers to it."""
        query = select(SecretVersionRow.id).where(
            col(SecretVersionRow.id) == secret_id, not_(unclaimed())
        )
        async with self._database.reading() as session:
            return (await session.exec(query)).first() is not None

    async def discard(self, secret_id: str) -> None:
        """Delete a version that nothing refers to; no effect if there is none."""
        await self.discard_all([secret_id])

    async def discard_all(self, secret_ids: Sequence[str]) -> None:
        """The same of many."""
        async with self._database.writing() as session:
            for start in range(0, len(secret_ids), _AT_A_TIME):
                some = secret_ids[start : start + _AT_A_TIME]
                await session.exec(
                    delete(SecretVersionRow).where(col(SecretVersionRow.id).in_(some), unclaimed())
                )

    async def _reveal(
        self, secret_id: str, work: Callable[[], Awaitable[Credential]]
    ) -> Credential:
        """`work`, which opens that secret; a key that nobody will bring is told as such."""
        try:
            return await self._box.reloading(work)
        except MasterKeyMissing as missing:
            async with self._database.reading() as session:
                keyring = (await session.exec(select(KeyringRow))).first()
            if keyring is not None and missing.key_id in keyring.given_up:
                raise MasterKeyLost(
                    f"The secret {secret_id} is encrypted with the master key {missing.key_id}, "
                    "which was given up.",
                    remedy="Store the credential anew, or put that key back if it is found.",
                ) from None
            if keyring is not None and missing.key_id not in keyring.known:
                raise SecretDamaged(
                    f"The secret {secret_id} is damaged: it names the master key {missing.key_id}, "
                    "which has encrypted nothing here.",
                    remedy="Restore the inventory from a backup, or store the credential anew.",
                ) from None
            raise

    def _open(self, row: Any) -> Credential:
        """`row`: its columns id, kind and ciphertext."""
        return Credential(kind=row.kind, plaintext=_plaintext(self._box, row))


async def open_secret(session: AsyncSession, box: SecretBox, secret_id: str) -> str:
    """The plaintext, in a transaction. Raises NotFound, MasterKeyMissing, SecretDamaged."""
    return _plaintext(box, await _secret_row(session, secret_id))


def _plaintext(box: SecretBox, row: Any) -> str:
    return box.open(row.ciphertext, identity(row.id, row.kind), name=row.id)


async def add_secrets(
    session: AsyncSession, box: SecretBox, credentials: Sequence[tuple[str, str]], *, actor: str
) -> list[str]:
    """New versions, of kind and plaintext each, in a transaction; their ids. Raises
    MasterKeyMissing."""
    key_id = await encrypting_key(session, box)
    secret_ids = []
    for kind, plaintext in credentials:
        secret_id = str(uuid.uuid4())
        _add(session, box, secret_id, kind, plaintext, key_id=key_id, actor=actor)
        secret_ids.append(secret_id)
    await session.flush()
    return secret_ids


async def add_secret(
    session: AsyncSession, box: SecretBox, secret_id: str, kind: str, plaintext: str, *, actor: str
) -> None:
    """The same of one, under an id that is not in use."""
    key_id = await encrypting_key(session, box)
    _add(session, box, secret_id, kind, plaintext, key_id=key_id, actor=actor)
    await session.flush()


def _add(
    session: AsyncSession,
    box: SecretBox,
    secret_id: str,
    kind: str,
    plaintext: str,
    *,
    key_id: str,
    actor: str,
) -> None:
    ciphertext = box.seal(plaintext, identity(secret_id, kind), key_id=key_id)
    session.add(SecretVersionRow(id=secret_id, kind=kind, ciphertext=ciphertext))
    add_event(session, "secret.stored", f"secret/{secret_id}", kind, actor=actor)


async def encrypting_key(session: AsyncSession, box: SecretBox) -> str:
    """Id of the master key that the inventory encrypts with; it stays so until the transaction
    ends. In a new inventory, the first one of the box."""
    query = select(KeyringRow).with_for_update(read=True)
    row = (await session.exec(query)).first()
    if row is None:
        await insert_if_absent(session, new_keyring(box))
        row = (await session.exec(query)).one()
    return row.key_id


def new_keyring(box: SecretBox) -> KeyringRow:
    """Of an inventory that has encrypted nothing yet."""
    return KeyringRow(key_id=box.key_ids[0], known=[box.key_ids[0]])


def unclaimed() -> ColumnElement[bool]:
    """Of a secret version: no host, present or removed, no cluster, no authority, no request refers
    to it."""
    claims = (
        HostRow.secret_id,
        HostRow.staged_key_id,
        HostRow.password_secret_id,
        RemovedHostRow.secret_id,
        OobmRow.secret_id,
        OobmRow.staged_secret_id,
        ClusterPasswordRow.secret_id,
        HostPasswordRow.secret_id,
        HostPasswordRow.former_secret_id,
        PasswordAttemptRow.secret_id,
        CertificateAuthorityRow.key_secret_id,
        OperationRow.digest_secret_id,
        CertificateRow.key_secret_id,
    )
    return and_(
        *(
            col(SecretVersionRow.id).not_in(select(claim).where(col(claim).is_not(None)))
            for claim in claims
        )
    )


def identity(secret_id: str, kind: str) -> str:
    """Of a row, which its ciphertext is bound to."""
    return f"secret_version/{secret_id}/{kind}"


async def _secret_row(session: AsyncSession, secret_id: str) -> SecretVersionRow:
    row = await session.get(SecretVersionRow, secret_id)
    if row is None:
        raise NotFound(
            f"There is no secret {secret_id!r}.",
            remedy="One that no host took over is deleted after a day: add the host again.",
        )
    return row


async def _owners(session: AsyncSession, secret_id: str) -> list[str]:
    """Subjects of events: the cluster whose password it is, and the hosts that have it, or may."""
    cluster = (
        select(ClusterRow.name)
        .join(ClusterPasswordRow)
        .where(col(ClusterPasswordRow.secret_id) == secret_id)
    )
    present = select(HostRow.name).where(
        or_(
            col(HostRow.secret_id) == secret_id,
            col(HostRow.staged_key_id) == secret_id,
            col(HostRow.password_secret_id) == secret_id,
        )
    )
    passwords = select(HostPasswordRow.host).where(
        or_(
            col(HostPasswordRow.secret_id) == secret_id,
            col(HostPasswordRow.former_secret_id) == secret_id,
        )
    )
    attempts = select(PasswordAttemptRow.host).where(col(PasswordAttemptRow.secret_id) == secret_id)
    bmcs = select(OobmRow.host).where(
        or_(col(OobmRow.secret_id) == secret_id, col(OobmRow.staged_secret_id) == secret_id)
    )
    removed = select(RemovedHostRow.name).where(col(RemovedHostRow.secret_id) == secret_id)
    hosts = (present, passwords, attempts, bmcs, removed)
    names = {name for query in hosts for name in await session.exec(query)}
    clusters = [f"cluster/{name}" for name in await session.exec(cluster)]
    return [*clusters, *(f"host/{name}" for name in sorted(names))]
