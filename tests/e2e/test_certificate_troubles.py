"""Certificates on a host in trouble, and strangers of the same CA: what openssl and virsh see."""

import asyncio
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from activities.certificate_policy import CONTROLLER_NAMES
from contracts.certificates import CertificateRole
from drivers.authorities.profiles import Issuer, host_certificate
from drivers.authorities.protocols import CertificateOrder
from drivers.tls import PORT
from tests.authorities.samples import KEYS, csr, key_pem, write
from tests.e2e.conftest import add_host, add_topology
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.proofs import assert_ticks, places
from tests.e2e.secrecy import authority_key, inventory_of
from tests.e2e.system import System
from tests.e2e.test_certificates import Client, assert_whole, installed
from tests.lab import Lab

pytestmark = pytest.mark.timeout(600)

HOST, STRANGER = "kvm-1", "kvm-2"


@dataclass(frozen=True)
class Trouble:
    """What a script does to a host, what undoes it, and which words tell of it."""

    name: str
    breaks: str
    repairs: str
    says: str


_NEW_CONNECTIONS = "systemctl restart ssh; pkill -f '^sshd: root' || :"
_REFUSES = """
mkdir -p /etc/systemd/system/libvirtd.service.d
cat >/etc/systemd/system/libvirtd.service.d/trouble.conf <<END
[Service]
ExecStartPre=/bin/sh -c "$condition"
END
systemctl daemon-reload
"""
_REFUSES_NO_MORE = "rm -rf /etc/systemd/system/libvirtd.service.d; systemctl daemon-reload"
FIRST = Trouble(
    "libvirtd does not start with TLS",
    f"condition='! systemctl is-active -q libvirtd-tls.socket' {_REFUSES}",
    _REFUSES_NO_MORE,
    "libvirtd does not start with the new certificates: ",
)
# Of what is run by SSH: hosts of the lab have one clock.
BEHIND = Trouble(
    "a clock that is a day behind",
    f"""
    library=$(find /usr/lib -name libfaketime.so.1 | head -n 1)
    [ -n "$library" ]
    echo "SetEnv LD_PRELOAD=$library FAKETIME=-1d" >/etc/ssh/sshd_config.d/00-a-day-behind.conf
    {_NEW_CONNECTIONS}
    """,
    f"rm -f /etc/ssh/sshd_config.d/00-a-day-behind.conf; {_NEW_CONNECTIONS}",
    r"is the clock right\? It says .* certificate is not yet valid",
)
LATER = (
    Trouble(
        "full disk",
        'fallocate -l "$(df --output=avail -B1 /etc | tail -n 1)" /etc/filler',
        "rm -f /etc/filler",
        "No space left on device .* make room on its disk, and start again",
    ),
    Trouble(
        "read-only /etc",
        "mount --bind /etc /etc; mount -o remount,bind,ro /etc",
        "umount /etc",
        "Read-only file system .* make it writable, and start again",
    ),
    BEHIND,
    # A host whose libvirtd.conf was changed is to restart it.
    Trouble(
        "libvirtd does not start with other certificates",
        f"""
        sed -i '/^# begin hostler$/,/^# end hostler$/d' /etc/libvirt/libvirtd.conf
        shown="openssl x509 -noout -serial -in /etc/pki/libvirt/servercert.pem"
        condition="$shown | grep -q $($shown)"
        {_REFUSES}
        """,
        _REFUSES_NO_MORE,
        FIRST.says,
    ),
)


async def _row(lab: Lab, name: str) -> dict[str, str]:
    rows: list[dict[str, str]] = (await lab.status())["hosts"]
    return next(row for row in rows if row["name"] == name)


async def _client(system: System, folder: Path, name: str, validity: timedelta) -> Client:
    """openssl with a certificate in Hostler's name, which the CA's key has signed: it began five
    minutes ago."""
    async with inventory_of(system) as inventory:
        (pem,) = (await inventory.authorities.get("root")).chain
        key = load_pem_private_key((await authority_key(inventory)).encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = Issuer(x509.load_pem_x509_certificate(pem.encode()), key, hashes.SHA256())
    order = CertificateOrder(
        csr(KEYS["P-256"]), CONTROLLER_NAMES, CertificateRole.CONTROLLER, validity
    )
    certificate = host_certificate(issuer, order, None).public_bytes(Encoding.PEM)
    return Client(
        write(folder / "ca.pem", pem),
        write(folder / f"{name}.pem", certificate),
        write(folder / f"{name}.key", key_pem(KEYS["P-256"])),
    )


async def _fails(system: System, trouble: Trouble) -> None:
    """A provisioning tells what is wrong, where, and that nothing has changed."""
    said = await system.hostler("cert", "provision", HOST)
    assert said.status == 1, trouble.name
    assert len(said.stderr.splitlines()) == 1, said.stderr
    for says in (f" on {HOST} ended with status ", trouble.says):
        assert re.search(says, said.stderr), said.stderr
    assert f". {HOST} has what it had before." in said.stderr, said.stderr


async def test_a_host_in_trouble_keeps_the_certificates_that_it_has(
    embedded: System, lab: Lab, tmp_path: Path
) -> None:
    system = embedded
    await system.up()
    await add_topology(system)
    row = await _row(lab, HOST)
    await add_host(system, row)

    async def valid() -> set[str]:
        listed = await system.shown("cert", "list", "--host", HOST, "--state", "valid")
        return {one["serial"] for one in listed}

    await lab.exec(HOST, "sh", "-ec", FIRST.breaks)
    try:
        await _fails(system, FIRST)
        await lab.virsh(HOST, "uri")
        left = await lab.exec(HOST, "sh", "-c", "find /etc/pki -not -type d; ss -Hltn")
        assert ".pem" not in left.stdout
        assert f":{PORT} " not in left.stdout
        assert await valid() == set()
    finally:
        await lab.exec(HOST, "sh", "-c", FIRST.repairs)

    await system.done("cert", "provision", HOST)
    before = {one["serial"] for one in (await installed(system, HOST)).values()}
    anchor = tmp_path / "ca.pem"
    await system.done("ca", "chain", "--out", str(anchor))

    async def shown() -> str:
        """From outside, as the host itself goes on coming in by it."""
        uri = f"qemu+tls://{row['address']}/system"
        await lab.exec(HOST, "virsh", "-q", "-c", uri, "uri")
        serial, _ = await asyncio.to_thread(Client(anchor).connect, row["address"])
        return serial

    first = await shown()
    assert first == (await installed(system, HOST))["host"]["serial"]
    for trouble in LATER:
        await lab.exec(HOST, "sh", "-ec", trouble.breaks)
        try:
            await _fails(system, trouble)
            assert await shown() == first, trouble.name
            await lab.virsh(HOST, "uri")
            if trouble is BEHIND:
                checked = await system.hostler("doctor", "tls", HOST)
                assert re.search(r"The clock of kvm-1 is 864\d\d s behind", checked.stdout)
        finally:
            await lab.exec(HOST, "sh", "-c", trouble.repairs)
        assert await valid() == before, trouble.name
        await assert_whole(lab, HOST)
    # Nothing of all that is in the way of the next one.
    await system.done("cert", "provision", HOST)
    assert await valid() > before
    assert await shown() == (await installed(system, HOST))["host"]["serial"] != first
    await assert_whole(lab, HOST)
    await assert_ticks(lab)


async def test_a_worker_killed_while_it_puts_back_what_was_there(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    """What the host has then is proven from outside all the same."""
    system = populated_split
    worker = MortalWorker(system, tmp_path / "failpoints")
    await worker.start()
    await system.done("cert", "provision", HOST)
    first = (await installed(system, HOST))["host"]["serial"]
    address = (await _row(lab, HOST))["address"]
    anchor = tmp_path / "ca.pem"
    await system.done("ca", "chain", "--out", str(anchor))
    trouble = LATER[-1]
    await lab.exec(HOST, "sh", "-ec", trouble.breaks)
    try:
        armed = worker.arm(("restore_certificates",), moments)
        failing = asyncio.create_task(_fails(system, trouble))
        await worker.die_at(armed, failing)
        await failing
        assert (await asyncio.to_thread(Client(anchor).connect, address))[0] == first
        await lab.virsh(HOST, "uri")
        assert "unproven" not in (await system.hostler("doctor", "tls", HOST)).stdout
    finally:
        await lab.exec(HOST, "sh", "-c", trouble.repairs)
    left = await lab.exec(HOST, "sh", "-c", "ls /etc/hostler/tls/restored || :")
    assert left.stdout == ""
    await system.done("cert", "provision", HOST)
    await assert_whole(lab, HOST)
    await assert_ticks(lab)


async def test_hosts_of_another_cluster_and_expired_clients_stay_out(
    embedded: System, lab: Lab, tmp_path: Path
) -> None:
    """One CA signs for all clusters."""
    system = embedded
    await system.up()
    await add_topology(system)
    await system.done("cluster", "create", "cluster-2", "--pod", "pod-1")
    await system.done("cluster", "enable", "cluster-2")
    addresses = {}
    for host, cluster in ((HOST, "cluster-1"), (STRANGER, "cluster-2")):
        row = await _row(lab, host)
        addresses[host] = row["address"]
        await add_host(system, row, cluster=cluster)
        await system.done("cert", "provision", host)

    def libvirt_of(host: str) -> str:
        return f"qemu+tls://{addresses[host]}/system"

    for host, other in ((HOST, STRANGER), (STRANGER, HOST)):
        own = await lab.exec(host, "virsh", "-c", libvirt_of(host), "uri", check=False)
        assert own.exit_status == 0, own.stderr
        others = await lab.exec(host, "virsh", "-c", libvirt_of(other), "uri", check=False)
        assert others.exit_status != 0
        assert "Unable to read TLS confirmation" in others.stderr
        journal = await lab.exec(other, "journalctl", "-q", "-n", "20", "-u", "libvirtd")
        assert "not on the list of allowed clients" in journal.stdout
    migrate = ("migrate", "--live", "--p2p", "--tls", "vm-1", libvirt_of(STRANGER))
    refused = await lab.virsh(HOST, *migrate, check=False)
    assert refused.exit_status != 0
    assert "Unable to read TLS confirmation" in refused.stderr, refused.stderr
    assert (await places(lab))["vm-1"] == HOST

    for name, validity, comes_in in (
        ("hostler", timedelta(days=1), True),
        ("expired", timedelta(minutes=4), False),
    ):
        client = await _client(system, tmp_path, name, validity)
        # It is about the API alone.
        for allowed in ("false", "true"):
            await system.set("ca.plugin.root.allow.expired.cert", allowed)
            for host in (HOST, STRANGER):
                shown, let_in = await asyncio.to_thread(client.connect, addresses[host])
                assert shown == (await installed(system, host))["host"]["serial"]
                assert let_in is comes_in, (name, host, allowed)
    await assert_ticks(lab)
