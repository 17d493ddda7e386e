"""Who may send a migration to the port that QEMU listens at: its cluster's QEMUs alone."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from drivers.authorities.x509 import read_certificate
from tests.e2e.proofs import assert_ticks, places
from tests.e2e.qemu_clients import QemuClients
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(600)

SOURCE, DESTINATION, GUEST = "kvm-1", "kvm-2", "vm-1"
# Nobody has it; the source believes somebody does, and tries in vain to connect.
_NOWHERE = "198.18.0.99"
_LOSE = f"""
device=$(ip -o route get {_NOWHERE} | sed 's/.* dev \\([^ ]*\\).*/\\1/')
ip neigh replace {_NOWHERE} lladdr 02:00:00:00:00:99 dev "$device" nud permanent
"""
_FIND = f"""
device=$(ip -o route get {_NOWHERE} | sed 's/.* dev \\([^ ]*\\).*/\\1/')
ip neigh del {_NOWHERE} dev "$device"
"""


def lets_in(address: str, port: int, anchor: Path, certificate: Path | None, key: Path) -> bool:
    """Whether QEMU waits for more: it hangs up on who shows none, or one that it does not trust.
    By TLS 1.3 a client learns that only after its handshake."""
    context = ssl.create_default_context(cafile=anchor)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    with (
        socket.create_connection((address, port), 10) as plain,
        context.wrap_socket(plain, server_hostname=address) as connection,
    ):
        connection.settimeout(3)
        try:
            connection.recv(1)
        except TimeoutError:
            return True
        except (ssl.SSLError, ConnectionResetError):
            return False
    return False


async def listening_port(lab: Lab, host: str) -> int:
    """Of a QEMU that waits for a migration, as soon as one does."""
    while True:
        for line in (await lab.exec(host, "ss", "-Hltnp")).stdout.splitlines():
            port = int(line.split()[3].rpartition(":")[2])
            if "qemu" in line and 49152 <= port < 49216:
                return port
        await asyncio.sleep(0.2)


async def test_it_is_refused_to_all_but_qemus_of_the_cluster(
    populated: System, lab: Lab, tmp_path: Path
) -> None:
    system = populated
    await system.up()
    for host in (SOURCE, DESTINATION):
        await system.done("cert", "provision", host)
    clients = QemuClients(system, tmp_path)
    await clients.prepare()
    revoked = await clients.signed(SOURCE, "qemu", "-revoked")
    await system.done("cert", "revoke", read_certificate(revoked.read_text()).serial)
    unknown = "hasn't got a known issuer"
    strangers: dict[str, tuple[Path | None, str]] = {
        "nobody": (None, "No certificate was found"),
        "QEMU of another cluster": (await clients.signed("kvm-4", "qemu"), unknown),
        "libvirt of another cluster": (await clients.signed("kvm-4", "host"), unknown),
        "libvirt of its own": (await clients.signed(SOURCE, "host"), unknown),
        "QEMU of its own, revoked": (revoked, "has been revoked"),
    }
    own = await clients.signed(SOURCE, "qemu")

    address = {row["name"]: row["address"] for row in (await lab.status())["hosts"]}[DESTINATION]
    await lab.exec(SOURCE, "sh", "-ec", _LOSE)
    migrating = asyncio.create_task(
        lab.virsh(
            *(SOURCE, "migrate", "--live", "--p2p", "--tls", GUEST),
            *(f"qemu+tls://{address}/system", "--migrateuri", f"tcp://{_NOWHERE}"),
            check=False,
        )
    )
    try:
        port = await asyncio.wait_for(listening_port(lab, DESTINATION), 60)
        for name, (certificate, words) in strangers.items():
            found = await asyncio.to_thread(
                lets_in, address, port, clients.anchor, certificate, clients.key
            )
            log = f"/var/log/libvirt/qemu/{GUEST}.log"
            said = (await lab.exec(DESTINATION, "tail", "-n", "1", log)).stdout
            assert (found, words in said) == (False, True), (name, said)
        assert await asyncio.to_thread(lets_in, address, port, clients.anchor, own, clients.key)
    finally:
        await lab.exec(SOURCE, "sh", "-ec", _FIND)
        ended = await migrating
    assert ended.exit_status != 0
    assert (await places(lab))[GUEST] == SOURCE
    await assert_ticks(lab)
