"""No password and no key is anywhere but encrypted in the inventory, and in the master key's file.

Looked for: each secret as it is, in base64 and in hex.
"""

import base64
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import pytest

from inventory import Database, Inventory, SecretBox
from tests.e2e.conftest import add_hosts
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(300)

_SAMPLE_EVERY_S = 0.05


def forms(secret: str) -> Iterator[bytes]:
    """What the secret may look like; of base64, the part that does not depend on its place."""
    raw = secret.strip().encode()
    yield raw
    yield raw.hex().encode()
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + raw)
        yield encoded[4 if shift else 0 : -4]


def read(path: str) -> str:
    return Path(path).read_text()


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


async def own_keys(system: System) -> list[str]:
    """One line of each host's key that Hostler has made."""
    database = Database(f"sqlite:///{system.home / 'inventory.db'}")
    inventory = Inventory(database, SecretBox((system.home / "master-key").read_text().strip()))
    keys = []
    for host in await inventory.hosts.list():
        login = (await inventory.own_keys.find(host.name)).login
        credential = await inventory.secrets.reveal(login)
        assert credential.kind == "own_key"
        keys.append(credential.plaintext.splitlines()[3])
    await database.close()
    return keys


async def test_no_secret_is_anywhere_after_a_full_run(
    embedded: System, lab: Lab, tmp_path: Path
) -> None:
    rows = (await lab.status())["hosts"]
    secrets = [read(row["password_file"]) for row in rows]
    key = asyncssh.generate_private_key("ssh-ed25519")
    private = key.export_private_key("openssh").decode()
    await lab.exec(
        "kvm-1",
        *("sh", "-c", "mkdir -pm 700 /root/.ssh; cat >/root/.ssh/authorized_keys"),
        stdin=key.export_public_key("openssh").decode(),
    )
    # A part of the key's body that is one line of its file.
    secrets.append(private.splitlines()[2])
    key_file = tmp_path / "id"
    key_file.write_text(private)

    with watching(form for secret in secrets for form in forms(secret)) as watch:
        await embedded.up(HOSTLER_LOG_LEVEL="debug")
        secrets.append((embedded.home / "admin-token").read_text())
        secrets.append((embedded.home / "master-key").read_text())
        await add_hosts(embedded, lab)
        # A credential that is refused, and one that is a key.
        wrong = await embedded.hostler(
            *("host", "add", "kvm-4", "--cluster", "cluster-1", "--address", rows[0]["address"]),
            *("--private-key-file", str(key_file)),
            *("--accept-host-key", rows[1]["host_key_sha256"]),
        )
        assert wrong.status == 1
        await embedded.done("maintenance", "enter", "kvm-1", "--watch")
        await embedded.done("maintenance", "leave", "kvm-1")
    assert watch.samples > 20
    assert watch.found == set()

    texts: dict[str, bytes] = {}
    client = await embedded.client()
    async for run in client.list_workflows():
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        events = [event async for event in handle.fetch_history_events()]
        texts[f"history of {run.id}"] = b"".join(event.SerializeToString() for event in events)
    assert {"history of maintenance/kvm-1", "history of addition/kvm-4"} <= set(texts)
    for path in ("/v1/hosts", "/v1/events?limit=1000", "/v1/operations"):
        texts[path] = (await embedded.request("GET", path)).content
    embedded.stop()
    for directory in (embedded.home, embedded.logs):
        for file in directory.rglob("*"):
            if file.is_file() and file.name not in ("admin-token", "master-key"):
                texts[str(file)] = file.read_bytes()
    assert any("temporal.db" in name for name in texts)
    assert any("inventory.db" in name for name in texts)
    # The traces are there, so their silence means something.
    assert any(b"RunActivity:migrate_vm" in text for text in texts.values())
    secrets += await own_keys(embedded)
    found = {
        (name, number)
        for name, text in texts.items()
        for number, secret in enumerate(secrets)
        if any(form in text for form in forms(secret))
    }
    assert found == set()
    await lab.exec("kvm-1", "rm", "-rf", "/root/.ssh")
