"""AES-256-GCM (NIST SP 800-38D) under one of several master keys.

A sealed credential is one piece: format (1 byte), key id (8), nonce (12), ciphertext with its tag.
The identity of its row is associated data: in another row it does not decrypt.
"""

import asyncio
import base64
import binascii
import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from contracts.errors import Failed
from inventory.errors import MasterKeyMissing, SecretDamaged

T = TypeVar("T")

_KEY_BYTES = 32
FORMAT = b"\x01"
KEY_ID_START = len(FORMAT)
KEY_ID_BYTES = 8
_NONCE_BYTES = 12  # random ones: good for 2^32 messages under one key
_TAG_BYTES = 16
_NONCE_START = KEY_ID_START + KEY_ID_BYTES
_TEXT_START = _NONCE_START + _NONCE_BYTES
MIN_SEALED_BYTES = _TEXT_START + _TAG_BYTES


class KeySource(Protocol):
    """Where master keys come from. `origin` says where, for people."""

    origin: str

    async def load(self) -> Sequence[str]:
        """All of them, 32 bytes in base64 each; the first one is to encrypt. Raises Failed,
        Unavailable."""


class SecretBox:
    """Encrypts and decrypts with the master keys that it has.

    Args:
        keys: 32 bytes in base64 each, at least one. Raises Failed for another.
        source: asked again when a key is missing; None: these are all there will be.
    """

    def __init__(self, *keys: str, source: KeySource | None = None) -> None:
        self._source = source
        self._reloads = asyncio.Lock()
        self._take(keys)

    @classmethod
    async def load(cls, source: KeySource) -> "SecretBox":
        """With the keys that `source` has now. Raises Failed, Unavailable."""
        return cls(*await source.load(), source=source)

    @staticmethod
    def new_key() -> str:
        """A random key."""
        return base64.b64encode(AESGCM.generate_key(8 * _KEY_BYTES)).decode()

    @property
    def origin(self) -> str:
        """Where the keys come from."""
        return self._source.origin if self._source is not None else "memory"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Of all keys, the one to encrypt with first."""
        return tuple(self._ciphers)

    def seal(self, plaintext: str, identity: str, *, key_id: str) -> bytes:
        """Raises MasterKeyMissing."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise MasterKeyMissing(
                f"Credentials are encrypted with the master key {key_id}, which is missing here: "
                f"{self._what_is_here()}.",
                remedy="Nothing was stored. Add that key, and try again.",
                key_id=key_id,
            )
        nonce = os.urandom(_NONCE_BYTES)
        text = cipher.encrypt(nonce, plaintext.encode(), identity.encode())
        return FORMAT + bytes.fromhex(key_id) + nonce + text

    def open(self, sealed: bytes, identity: str, *, name: str) -> str:
        """The plaintext of the secret that errors call `name`. Raises MasterKeyMissing,
        SecretDamaged."""
        key_id = key_id_of(sealed)
        if key_id is None or len(sealed) < MIN_SEALED_BYTES:
            raise SecretDamaged(
                f"The secret {name} is damaged: what is stored is no ciphertext of this version.",
                remedy="Restore the inventory from a backup, or store the credential anew.",
            )
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise MasterKeyMissing(
                f"The secret {name} is encrypted with the master key {key_id}, which is missing "
                f"here: {self._what_is_here()}.",
                remedy="Put that key back.",
                key_id=key_id,
            )
        nonce = sealed[_NONCE_START:_TEXT_START]
        try:
            return cipher.decrypt(nonce, sealed[_TEXT_START:], identity.encode()).decode()
        except InvalidTag:
            raise SecretDamaged(
                f"The secret {name} is damaged, or was moved here from another row: it does not "
                f"decrypt with its master key {key_id}.",
                remedy="Restore the inventory from a backup, or store the credential anew.",
            ) from None

    async def has(self, key_id: str) -> bool:
        """Whether the key is here; the source is asked if it is not. Raises Failed, Unavailable."""
        async with self._reloads:
            if key_id not in self._ciphers and self._source is not None:
                self._take(await self._source.load())
            return key_id in self._ciphers

    async def reloading(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`; as often as a key is missing that the source has, do it again."""
        while True:
            try:
                return await work()
            except MasterKeyMissing as missing:
                if not await self.has(missing.key_id):
                    raise

    def _take(self, keys: Sequence[str]) -> None:
        ciphers = {key_id(key): AESGCM(_raw(key)) for key in keys}
        if not ciphers:
            raise Failed(f"There is no master key: {self.origin} has none.", remedy=_REMEDY)
        self._ciphers = ciphers

    def _what_is_here(self) -> str:
        return f"{self.origin} has {', '.join(self._ciphers)}"


_REMEDY = "Put it back from your backup, or make one with `hostler key create`."


def key_id(key: str) -> str:
    """What names a key, and tells nothing of it: 16 hexadecimal digits. Raises Failed."""
    return hashlib.sha256(b"hostler key id" + _raw(key)).hexdigest()[: 2 * KEY_ID_BYTES]


def key_id_of(sealed: bytes) -> str | None:
    """The key that a sealed credential names; None if it is none."""
    if sealed[:KEY_ID_START] != FORMAT or len(sealed) < _NONCE_START:
        return None
    return sealed[KEY_ID_START:_NONCE_START].hex()


def _raw(key: str) -> bytes:
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _KEY_BYTES:
        raise Failed(f"The master key is not {_KEY_BYTES} bytes in base64.", remedy=_REMEDY)
    return raw
