"""Master keys, from a file or from the environment; wrapped by a key service, or in clear.

One a line; the first one is to encrypt, the others are for what was encrypted before. Blank lines,
and those that begin with #, say nothing.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from contracts.errors import Conflict, Failed
from drivers.protocols import KeyService
from drivers.transit import WRAPPED_PREFIX, TransitKeyService
from inventory import SecretBox
from inventory.secret_box import KeySource, key_id
from workers.home import make_private_directory, write_private
from workers.settings import Settings

_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class _Keys(KeySource):
    """What file and environment share: a key stands there in clear, or wrapped."""

    def __init__(self, origin: str, service: KeyService | None) -> None:
        self.origin = origin
        self._service = service
        self._unwrapped: dict[str, str] = {}

    async def _read(self, words: Sequence[str]) -> list[str]:
        return [await self._key(word) for word in words]

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
        self._words = text.split()

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
        key = SecretBox.new_key()
        line = await self._service.wrap(key) if self._service is not None else key
        make_private_directory(self.path.parent)
        write_private(self.path, f"{line}\n{self._former()}")
        return key_id(key)

    async def remove(self, unneeded: str) -> None:
        """Take the key of that id out. Raises Failed, Unavailable, Conflict (the only one)."""
        kept = [
            line
            for line in self._text().splitlines()
            if not (words := _words(line)) or key_id(await self._key(words[0])) != unneeded
        ]
        if not any(_words(line) for line in kept):
            raise Conflict(f"{self.path} has no other master key than {unneeded}.")
        write_private(self.path, "".join(f"{line}\n" for line in kept))

    def _former(self) -> str:
        # A link that leads nowhere counts as there: what can't be read is not written over.
        return self._text() if os.path.lexists(self.path) else ""

    def _text(self) -> str:
        try:
            with self.path.open(encoding="ascii", errors="replace") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & _FOR_OTHERS:
                    raise Failed(
                        f"The master key {self.path} is not private: its mode is {mode:04o}.",
                        remedy=f"Find out who may have read it, then: chmod 600 {self.path}",
                    )
                return file.read()
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


def _words(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
