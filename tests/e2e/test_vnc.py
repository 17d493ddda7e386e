"""VNC by TLS of a VM on a host with certificates: who sees its screen, and by which certificate."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from drivers.authorities.x509 import read_certificate
from tests.e2e.qemu_clients import QemuClients
from tests.e2e.system import System
from tests.e2e.test_certificates import installed
from tests.lab import Lab

pytestmark = pytest.mark.timeout(600)

HOST, GUEST = "kvm-2", "e2e-vnc"
_DOMAIN = (
    f"<domain type='qemu'><name>{GUEST}</name><memory unit='MiB'>16</memory>"
    "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
    "<devices><graphics type='vnc' autoport='yes' listen='0.0.0.0'/></devices></domain>"
)
_BY_TLS = """
cp -p /etc/libvirt/qemu.conf /root/qemu.conf
printf 'vnc_tls = 1\\nvnc_tls_x509_verify = 1\\n' >>/etc/libvirt/qemu.conf
systemctl restart libvirtd
"""
_AS_BEFORE = f"""
virsh -q -c qemu:///system destroy {GUEST} || :
mv /root/qemu.conf /etc/libvirt/qemu.conf
systemctl restart libvirtd
"""
_VENCRYPT, _X509_NONE = 19, 260


def look(
    address: str, port: int, anchor: Path, certificate: Path | None, key: Path
) -> tuple[str, bool]:
    """The serial of the certificate that QEMU shows, and whether it lets the client see the screen
    (RFC 6143; its security type VeNCrypt is in the RFB protocol's community version)."""
    context = ssl.create_default_context(cafile=anchor)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    with socket.create_connection((address, port), 10) as plain:
        greeting = plain.recv(12)
        assert greeting.startswith(b"RFB 003.008"), greeting
        plain.sendall(greeting)
        (number,) = plain.recv(1)
        assert [*plain.recv(number)] == [_VENCRYPT]
        plain.sendall(bytes([_VENCRYPT]))
        assert plain.recv(2) == b"\x00\x02"
        plain.sendall(b"\x00\x02")
        assert plain.recv(1) == b"\x00"
        (number,) = plain.recv(1)
        kinds = struct.unpack(f">{number}I", plain.recv(4 * number))
        assert kinds == (_X509_NONE,)
        plain.sendall(struct.pack(">I", _X509_NONE))
        assert plain.recv(1) == b"\x01"
        with context.wrap_socket(plain, server_hostname=address) as connection:
            shown = connection.getpeercert()
            assert shown is not None
            try:
                let_in = connection.recv(4) == b"\x00" * 4  # SecurityResult: OK
            except (ssl.SSLError, ConnectionResetError):
                let_in = False
    return str(shown["serialNumber"]).lower().lstrip("0"), let_in


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> AsyncIterator[System]:
    """Running, with a VM on HOST whose VNC is by TLS."""
    await populated.up()
    await populated.done("cert", "provision", HOST)
    await lab.exec(HOST, "sh", "-ec", _BY_TLS)
    try:
        await lab.virsh(HOST, "create", "/dev/stdin", stdin=_DOMAIN)
        yield populated
    finally:
        await lab.exec(HOST, "sh", "-c", _AS_BEFORE)
        # Not every test begins with bare hosts.
        await lab.make_bare(HOST)


async def test_it_is_seen_by_its_cluster_alone_and_told_of_when_it_is_old(
    system: System, lab: Lab, tmp_path: Path
) -> None:
    clients = QemuClients(system, tmp_path)
    await clients.prepare()
    address = {row["name"]: row["address"] for row in (await lab.status())["hosts"]}[HOST]
    port = 5900 + int((await lab.virsh(HOST, "vncdisplay", GUEST)).stdout.strip().partition(":")[2])

    first = (await installed(system, HOST))["qemu"]["serial"]
    visitors = {
        "nobody": (None, False),
        "QEMU of another cluster": (await clients.signed("kvm-4", "qemu"), False),
        "libvirt of its own": (await clients.signed("kvm-1", "host"), False),
        "QEMU of its own": (await clients.signed("kvm-1", "qemu"), True),
    }
    for name, (certificate, let_in) in visitors.items():
        found = await asyncio.to_thread(
            look, address, port, clients.anchor, certificate, clients.key
        )
        assert found == (first, let_in), name

    async def old() -> list[str]:
        names: list[str] = (await system.shown("doctor", "tls", HOST))["old_vnc"]
        return names

    assert await old() == []
    await system.done("cert", "provision", HOST)
    second = (await installed(system, HOST))["qemu"]
    assert read_certificate(second["pem"]).serial != first
    own = visitors["QEMU of its own"][0]
    assert await asyncio.to_thread(look, address, port, clients.anchor, own, clients.key) == (
        first,
        True,
    )
    assert await old() == [GUEST]
    # What is started from then on has the new one.
    await lab.virsh(HOST, "destroy", GUEST)
    await lab.virsh(HOST, "create", "/dev/stdin", stdin=_DOMAIN)
    found = await asyncio.to_thread(look, address, port, clients.anchor, own, clients.key)
    assert found == (second["serial"], True)
    assert await old() == []
