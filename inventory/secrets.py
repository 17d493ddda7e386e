"""Credentials, encrypted with AES-256-GCM (NIST SP 800-38D) under a master key.

The row's identity is associated data: a ciphertext that was moved to another row does not decrypt.
"""

import base64
import binascii
import hashlib
import os
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import ColumnElement, and_, not_
from sqlmodel import col, delete, select

from contracts.errors import Failed, NotFound
from inventory.database import Database
from inventory.errors import SecretUnreadable
from inventory.events import add_event
from inventory.models import HostRow, OobmRow, RemovedHostRow, SecretVersionRow, now

_KEY_BYTES = 32
_NONCE_BYTES = 12  # random ones: good for 2^32 messages under one key
# A secret that no host refers to by then belongs to an operation that never got to its host.
_UNCLAIMED_AFTER = timedelta(days=1)
_AT_A_TIME = 500  # of ids in one statement


@dataclass(frozen=True)
class Credential:
    """`kind` is "password", "private_key" (OpenSSH's PEM), "own_key", the same, made by Hostler
    for that host, or "bmc_password"."""

    kind: str
    plaintext: str = field(repr=False)


class SecretBox:
    """Encrypts and decrypts with one master key: 32 bytes in base64. Raises Failed for another."""

    def __init__(self, key: str) -> None:
        try:
            raw = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != _KEY_BYTES:
            raise Failed(
                f"The master key is not {_KEY_BYTES} bytes in base64.",
                remedy="Put it back from your backup, or make one with `hostler key create`.",
            )
        self._cipher = AESGCM(raw)
        self.key_id = hashlib.sha256(b"hostler key id" + raw).hexdigest()[:16]

    @staticmethod
    def new_key() -> str:
        """A random key."""
        return base64.b64encode(AESGCM.generate_key(8 * _KEY_BYTES)).decode()

    def encrypt(self, plaintext: str, identity: str) -> tuple[bytes, bytes]:
        """Nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce, self._cipher.encrypt(nonce, plaintext.encode(), identity.encode())

    def decrypt(self, nonce: bytes, ciphertext: bytes, identity: str) -> str:
        """Raises InvalidTag."""
        return self._cipher.decrypt(nonce, ciphertext, identity.encode()).decode()


class Secrets:
    """Secret versions: workflows and histories carry their ids alone."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box

    async def store(self, kind: str, plaintext: str, *, actor: str) -> str:
        """A new version; its id."""
        (secret_id,) = await self.store_all([(kind, plaintext)], actor=actor)
        return secret_id

    async def store_all(self, credentials: Sequence[tuple[str, str]], *, actor: str) -> list[str]:
        """New versions, of kind and plaintext each: all or none. Their ids."""
        rows = [self._row(kind, plaintext) for kind, plaintext in credentials]
        secret_ids = [row.id for row in rows]
        async with self._database.writing() as session:
            await session.exec(
                delete(SecretVersionRow).where(
                    col(SecretVersionRow.created_at) < now() - _UNCLAIMED_AFTER, unclaimed()
                )
            )
            for row in rows:
                session.add(row)
                add_event(session, "secret.stored", f"secret/{row.id}", row.kind, actor=actor)
        return secret_ids

    async def reveal(self, secret_id: str) -> Credential:
        """Raises NotFound, SecretUnreadable."""
        async with self._database.reading() as session:
            row = await session.get(SecretVersionRow, secret_id)
        if row is None:
            raise NotFound(
                f"There is no secret {secret_id!r}.",
                remedy="One that no host took over is deleted after a day: add the host again.",
            )
        try:
            plaintext = self._box.decrypt(row.nonce, row.ciphertext, _identity(row.id, row.kind))
        except InvalidTag:
            raise SecretUnreadable(
                f"The secret {secret_id} does not decrypt with the master key {self._box.key_id}; "
                f"it was encrypted with {row.key_id}.",
                remedy="Put that key back (HOSTLER_MASTER_KEY_FILE).",
            ) from None
        return Credential(kind=row.kind, plaintext=plaintext)

    async def reveal_all(self, secret_ids: Collection[str]) -> dict[str, Credential]:
        """Those that are there and decrypt, by id."""
        rows: list[Any] = []  # columns alone: a round over BMCs wants thousands
        wanted = list(secret_ids)
        async with self._database.reading() as session:
            for start in range(0, len(wanted), _AT_A_TIME):
                some = wanted[start : start + _AT_A_TIME]
                query = select(
                    SecretVersionRow.id,
                    SecretVersionRow.kind,
                    SecretVersionRow.nonce,
                    SecretVersionRow.ciphertext,
                )
                rows += await session.exec(query.where(col(SecretVersionRow.id).in_(some)))
        revealed = {}
        for row in rows:
            with suppress(InvalidTag):
                plaintext = self._box.decrypt(
                    row.nonce, row.ciphertext, _identity(row.id, row.kind)
                )
                revealed[row.id] = Credential(kind=row.kind, plaintext=plaintext)
        return revealed

    async def is_claimed(self, secret_id: str) -> bool:
        """Whether a host, present or removed, refers to it."""
        query = select(SecretVersionRow.id).where(
            col(SecretVersionRow.id) == secret_id, not_(unclaimed())
        )
        async with self._database.reading() as session:
            return (await session.exec(query)).first() is not None

    async def discard(self, secret_id: str) -> None:
        """Delete a version that no host refers to; no effect if there is none."""
        await self.discard_all([secret_id])

    async def discard_all(self, secret_ids: Sequence[str]) -> None:
        """The same of many."""
        async with self._database.writing() as session:
            for start in range(0, len(secret_ids), _AT_A_TIME):
                some = secret_ids[start : start + _AT_A_TIME]
                await session.exec(
                    delete(SecretVersionRow).where(col(SecretVersionRow.id).in_(some), unclaimed())
                )

    def _row(self, kind: str, plaintext: str) -> SecretVersionRow:
        secret_id = str(uuid.uuid4())
        nonce, ciphertext = self._box.encrypt(plaintext, _identity(secret_id, kind))
        return SecretVersionRow(
            id=secret_id,
            kind=kind,
            key_id=self._box.key_id,
            nonce=nonce,
            ciphertext=ciphertext,
        )


def unclaimed() -> ColumnElement[bool]:
    """Of a secret version: no host, present or removed, refers to it."""
    claims = (
        HostRow.secret_id,
        HostRow.staged_key_id,
        HostRow.password_secret_id,
        RemovedHostRow.secret_id,
        OobmRow.secret_id,
        OobmRow.staged_secret_id,
    )
    return and_(
        *(
            col(SecretVersionRow.id).not_in(select(claim).where(col(claim).is_not(None)))
            for claim in claims
        )
    )


async def any_secret(database: Database) -> bool:
    """Whether anything is stored that only its master key can read."""
    async with database.reading() as session:
        return (await session.exec(select(SecretVersionRow.id).limit(1))).first() is not None


def _identity(secret_id: str, kind: str) -> str:
    return f"secret_version/{secret_id}/{kind}"
