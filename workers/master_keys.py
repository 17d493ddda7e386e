"""Master keys, from a file or from the environment; wrapped by a key service, or in clear.

One a line; the first one is to encrypt, the others are for what was encrypted before. Blank lines,
and those that begin with #, say nothing.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from contracts.errors import Conflict, Failed
from drivers.private_files import read_private
from drivers.protocols import KeyService
from drivers.transit import WRAPPED_PREFIX, TransitKeyService
from inventory import SecretBox
from inventory.secret_box import KeySource, key_id
from workers.home import changing, make_private_directory, write_private
from workers.settings import Settings


class _Keys(KeySource):
    """What file and environment share: a key stands there in clear, or wrapped."""

    def __init__(self, origin: str, service: KeyService | None) -> None:
        self.origin = origin
        self._service = service
        self._unwrapped: dict[str, str] = {}

    async def _read(self, words: Mapping[int, str]) -> list[str]:
        """The keys that these are, by their places."""
        keys = []
        for place, word in words.items():
            try:
                keys.append(await self._key(word))
                key_id(keys[-1])
            except Failed as error:
                raise Failed(
                    f"Line {place} of {self.origin}: {error.message}", remedy=error.remedy
                ) from error
        return keys

    async def _key(self, word: str) -> str:
        if not word.startswith(WRAPPED_PREFIX):
            return word
        if self._service is None:
            raise Failed(
                f"A master key in {self.origin} is wrapped by a key service.",
                remedy="Set HOSTLER_KEY_SERVICE_URL and its neighbours.",
            )
        if word not in self._unwrapped:
            self._unwrapped[word] = await self._service.unwrap(word)
        return self._unwrapped[word]


class EnvironmentKeys(_Keys):
    """The keys of a variable."""

    def __init__(self, text: str, service: KeyService | None) -> None:
        super().__init__("HOSTLER_MASTER_KEYS", service)
        self._words = dict(enumerate(text.split(), start=1))

    async def load(self) -> Sequence[str]:
        """See KeySource."""
        return await self._read(self._words)


class FileKeys(_Keys):
    """The keys of a file, which nobody else may read."""

    def __init__(self, path: Path, service: KeyService | None) -> None:
        super().__init__(str(path), service)
        self.path = path

    async def load(self) -> Sequence[str]:
        """See KeySource. Raises Failed if it may be read by others, too."""
        return await self._read(_words(self._text()))

    async def add(self) -> str:
        """A new key, before those that are there, wrapped if there is a key service; its id. Raises
        Failed, Unavailable."""
        make_private_directory(self.path.parent)
        with self.changing():
            former = self._former()
            key = SecretBox.new_key()
            line = await self._wrapped(key)
            write_private(self.path, f"{line}\n{former}")
        return key_id(key)

    async def remove(self, unneeded: str) -> None:
        """Take the key of that id out, within `changing`. Raises Failed, Unavailable, Conflict (the
        only one)."""
        lines = self._text().splitlines(keepends=True)
        words = _words("".join(lines))
        keys = dict(zip(words, await self._read(words), strict=True))
        gone = {place for place, key in keys.items() if key_id(key) == unneeded}
        if gone == keys.keys():
            raise Conflict(f"{self.path} has no other master key than {unneeded}.")
        kept = [line for place, line in enumerate(lines, start=1) if place not in gone]
        write_private(self.path, "".join(kept))

    def changing(self) -> AbstractContextManager[None]:
        """No other command changes the file, or what takes its keys, meanwhile. Raises Conflict,
        Failed."""
        return changing(self.path)

    async def _wrapped(self, key: str) -> str:
        """Proven to come back: from the next start on nothing goes without."""
        if self._service is None:
            return key
        line = await self._service.wrap(key)
        if not line.startswith(WRAPPED_PREFIX) or await self._service.unwrap(line) != key:
            raise Failed(
                f"The key service at {self._service.origin} does not give back what it wraps.",
                remedy="Nothing was written. Check the type of its key.",
            )
        return line

    def _former(self) -> str:
        # A link that leads nowhere counts as there: what can't be read is not written over.
        return self._text() if os.path.lexists(self.path) else ""

    def _text(self) -> str:
        try:
            return read_private(self.path, "The master key")
        except OSError as error:
            raise Failed(
                f"The master key {self.path} can't be read: {error.strerror}.",
                remedy="Put it there from your backup, set HOSTLER_MASTER_KEY_FILE, or, for a new "
                "installation, run `hostler key create`.",
            ) from error


def master_keys_of(settings: Settings) -> FileKeys | EnvironmentKeys:
    """Where the settings say that the keys are."""
    service = _key_service(settings)
    if settings.master_keys is not None:
        return EnvironmentKeys(settings.master_keys.get_secret_value(), service)
    return FileKeys(settings.master_key_path, service)


def master_key_place(settings: Settings) -> str:
    """The same, for people."""
    place = (
        "in HOSTLER_MASTER_KEYS" if settings.master_keys is not None else settings.master_key_path
    )
    wrapped = f", wrapped by {settings.key_service_url}" if settings.key_service_url else ""
    return f"{place}{wrapped}"


def _key_service(settings: Settings) -> KeyService | None:
    if settings.key_service_url is None or settings.key_service_token_file is None:
        return None
    return TransitKeyService(
        settings.key_service_url,
        mount=settings.key_service_mount,
        key=settings.key_service_key,
        token_file=settings.key_service_token_file,
        ca_file=settings.key_service_ca_file,
    )


def _words(text: str) -> dict[int, str]:
    """By the numbers of their lines."""
    lines = ((place, line.strip()) for place, line in enumerate(text.splitlines(), start=1))
    return {place: line for place, line in lines if line and not line.startswith("#")}
