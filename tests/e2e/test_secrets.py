"""No password and no key is anywhere but encrypted in the inventory, and in the master key's file.

Looked for: each secret as it is, in base64 and in hex.
"""

from pathlib import Path

import asyncssh
import pytest

from tests.e2e.conftest import add_hosts
from tests.e2e.secrecy import forms, inventory_of, texts_of, watching, where_found
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(300)


def read(path: str) -> str:
    return Path(path).read_text()


async def own_keys(system: System) -> list[str]:
    """One line of each host's key that Hostler has made."""
    keys = []
    async with inventory_of(system) as inventory:
        for host in await inventory.hosts.list():
            login = (await inventory.own_keys.find(host.name)).login
            credential = await inventory.secrets.reveal(login)
            assert credential.kind == "own_key"
            keys.append(credential.plaintext.splitlines()[3])
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

    embedded.forked = False  # their arguments and environments are looked at
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

    paths = ("/v1/hosts", "/v1/events?limit=1000", "/v1/operations")
    texts = await texts_of(embedded, *paths)
    assert {"history of maintenance/kvm-1", "history of addition/kvm-4"} <= set(texts)
    assert any("inventory.db" in name for name in texts)
    # The traces are there, so their silence means something.
    assert any(b"RunActivity:migrate_vm" in text for text in texts.values())
    secrets += await own_keys(embedded)
    assert where_found(texts, [forms(secret) for secret in secrets]) == set()
    await lab.exec("kvm-1", "rm", "-rf", "/root/.ssh")
