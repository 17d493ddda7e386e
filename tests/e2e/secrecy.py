"""Where a secret could turn up, and what it looks like there."""

import base64
import json
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from inventory import Database, Inventory, SecretBox
from tests.e2e.system import System

_SAMPLE_EVERY_S = 0.05
# Where secrets are meant to be.
_KEPT_SECRET = ("admin-token", "master-key")


def forms(secret: str | bytes) -> Iterator[bytes]:
    """What the secret may look like; of base64, the part that does not depend on its place."""
    raw = secret.strip().encode() if isinstance(secret, str) else secret
    yield raw
    if isinstance(secret, str):
        yield json.dumps(secret.strip())[1:-1].encode()
    yield raw.hex().encode()
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + raw)
        yield encoded[4 if shift else 0 : -4]


def key_forms(pem: str) -> Iterator[bytes]:
    """The same of a private key of an elliptic curve (PKCS #8): a line of its file that no other
    key has, and its number."""
    key = load_pem_private_key(pem.encode(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    yield pem.splitlines()[2].encode()
    size = (key.key_size + 7) // 8
    yield from forms(key.private_numbers().private_value.to_bytes(size, "big"))


@asynccontextmanager
async def inventory_of(system: System, url: str | None = None) -> AsyncIterator[Inventory]:
    """A System's inventory, with its master key; `url`: unless it is the embedded one."""
    database = Database(url or f"sqlite:///{system.home / 'inventory.db'}")
    try:
        key = (system.home / "master-key").read_text().strip()
        yield Inventory(database, SecretBox(key))
    finally:
        await database.close()


async def authority_key(inventory: Inventory, provider: str = "root") -> str:
    """The private key that a CA of Hostler's own signs with now."""
    found = await inventory.authorities.find(provider)
    assert found is not None
    assert found.key_secret_id is not None
    return (await inventory.secrets.reveal(found.key_secret_id)).plaintext


async def texts_of(system: System, *paths: str) -> dict[str, bytes]:
    """All that a System says and keeps, by where it is: histories, answers of the API at `paths`,
    files, logs with traces among them. It is stopped for that."""
    texts: dict[str, bytes] = {}
    client = await system.client()
    async for run in client.list_workflows():
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        events = [event async for event in handle.fetch_history_events()]
        texts[f"history of {run.id}"] = b"".join(event.SerializeToString() for event in events)
    for path in paths:
        texts[path] = (await system.request("GET", path)).content
    system.stop()
    for directory in (system.home, system.logs):
        for file in directory.rglob("*"):
            if file.is_file() and file.name not in _KEPT_SECRET:
                texts[str(file)] = file.read_bytes()
    assert any("temporal.db" in name for name in texts)
    return texts


def where_found(
    texts: dict[str, bytes], secrets: Sequence[Iterable[bytes]]
) -> set[tuple[str, int]]:
    """The texts that have a secret in any of its forms, and which."""
    known = [[*secret] for secret in secrets]
    assert all(known)
    return {
        (name, number)
        for name, text in texts.items()
        for number, needles in enumerate(known)
        if any(needle in text for needle in needles)
    }


class Watch(threading.Thread):
    """Reads the arguments and the environment of all processes, again and again."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.samples = 0
        self._needles = tuple(needles)
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(_SAMPLE_EVERY_S):
            self.samples += 1
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        text = (process / name).read_bytes()
                    except OSError:
                        continue  # it has ended
                    if any(needle in text for needle in self._needles):
                        self.found.add(f"{name}: {text[:200]!r}")

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


@contextmanager
def watching(needles: Iterable[bytes]) -> Iterator[Watch]:
    watch = Watch(needles)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
