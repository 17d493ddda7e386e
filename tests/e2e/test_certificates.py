"""Hosts get certificates: what openssl and virsh see of it, and what a dead worker leaves."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.authorities.samples import KEYS, ca, csr, key_pem, write
from tests.capture import Capture
from tests.drivers.test_migration_by_tls import IN_MEMORY
from tests.drivers.test_tls import CLEAN, WHOLE
from tests.e2e.conftest import HOSTS, add_hosts
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.proofs import assert_nothing_left, assert_ticks, places
from tests.e2e.system import System
from tests.lab import BRIDGE, Lab

pytestmark = pytest.mark.timeout(900)

HOST = "kvm-1"
STEPS = (
    "acquire_lease",
    "prepare_certificates",
    "issue_certificate",
    "place_certificates",
    "switch_certificates",
    "finish_certificates",
    "release_lease",
)
_PORT = 16514


async def _bare(lab: Lab) -> None:
    for host in HOSTS:
        await lab.exec(host, "sh", "-c", CLEAN)


@pytest_asyncio.fixture
async def system(embedded: System, lab: Lab) -> System:
    """Running, with its hosts added; they have no certificates."""
    await _bare(lab)
    await embedded.up()
    await add_hosts(embedded, lab)
    return embedded


class Client:
    """openssl, in the place of a libvirt client of whoever has these files."""

    def __init__(self, anchor: Path, certificate: Path | None = None, key: Path | None = None):
        self._anchor = anchor
        self._own = [] if certificate is None else ["-cert", str(certificate), "-key", str(key)]

    def connect(self, address: str) -> tuple[str, bool]:
        """The serial that the host shows, and whether libvirtd lets the client in: it sends a byte
        then, and hangs up otherwise."""
        done = subprocess.run(
            [
                *("timeout", "5", "openssl", "s_client", "-connect", f"{address}:{_PORT}"),
                *("-CAfile", str(self._anchor), "-verify_return_error", "-verify_ip", address),
                # It ends when the host hangs up, or when its time is over.
                *("-ign_eof", "-showcerts", *self._own),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        text = done.stdout
        assert b"Verify return code: 0 (ok)" in text, (text, done.stderr)
        begin = text.index(b"-----BEGIN CERTIFICATE-----")
        end = text.index(b"-----END CERTIFICATE-----", begin)
        read = subprocess.run(
            ["openssl", "x509", "-noout", "-serial"],
            input=text[begin:end] + b"-----END CERTIFICATE-----\n",
            capture_output=True,
            check=True,
        )
        serial = read.stdout.decode().strip().removeprefix("serial=").lower().lstrip("0")
        return serial, b"\x01" in text[end:]


async def installed(system: System, host: str) -> dict[str, dict[str, Any]]:
    """By role, what the API says that the host goes by."""
    answer = await system.request("GET", f"/v1/hosts/{host}/certificate")
    return {one["role"]: one for one in answer.json()["items"]}


async def assert_whole(lab: Lab, host: str) -> None:
    await lab.exec(host, "sh", "-c", WHOLE)
    await lab.virsh(host, "uri")


async def test_three_hosts_and_who_may_come_in(system: System, lab: Lab, tmp_path: Path) -> None:
    addresses = {row["name"]: row["address"] for row in (await lab.status())["hosts"]}
    for host in HOSTS:
        await system.done("cert", "provision", host)
    anchor = tmp_path / "ca.pem"
    await system.done("ca", "chain", "--out", str(anchor))

    key = write(tmp_path / "key.pem", key_pem(KEYS["P-256"]))

    async def client(name: str, pem: str | None) -> Client:
        if pem is None:
            return Client(anchor)
        return Client(anchor, write(tmp_path / f"{name}.pem", pem), key)

    own = await system.done(
        *("cert", "sign", "--role", "controller"),
        *("--csr-file", str(write(tmp_path / "request.pem", csr(KEYS["P-256"])))),
    )
    # As QEMU of another host has it, and as another CA signs it.
    qemu = await system.done(
        *("cert", "sign", "kvm-2", "--role", "qemu"),
        *("--csr-file", str(tmp_path / "request.pem")),
    )
    stranger = ca("stranger", key=KEYS["P-256"], is_ca=False).pem
    for name, pem, let_in in (
        ("nobody", None, False),
        ("hostler", own, True),
        ("qemu", qemu, False),
        ("stranger", stranger, False),
    ):
        one = await client(name, pem)
        for host in HOSTS:
            serial, came_in = await asyncio.to_thread(one.connect, addresses[host])
            assert serial == (await installed(system, host))["host"]["serial"], (name, host)
            assert came_in == let_in, (name, host)
    # Hosts of one cluster control each other, and plain TCP is closed.
    for host in HOSTS:
        for other in HOSTS:
            await lab.exec(
                host, "virsh", "-q", "-c", f"qemu+tls://{addresses[other]}/system", "uri"
            )
        assert ":16509" not in (await lab.exec(host, "ss", "-Hltn")).stdout
        await assert_whole(lab, host)
    await assert_ticks(lab)
    await system.record("provisioning/kvm-1", "certificate_provisioning")

    # The host's keys have left it nowhere.
    for file in ("/etc/pki/libvirt/private/serverkey.pem", "/etc/pki/qemu/server-key.pem"):
        body = (await lab.exec(HOST, "sed", "-n", "2p", file)).stdout.strip()
        assert len(body) > 40
        for directory in (system.home, system.logs):
            for path in (one for one in directory.rglob("*") if one.is_file()):
                assert body.encode() not in path.read_bytes(), path


async def test_renewed_again_and_again_while_vms_run(system: System, lab: Lab) -> None:
    seen = set()
    for _ in range(5):
        await system.done("cert", "provision", HOST)
        seen.add((await installed(system, HOST))["host"]["serial"])
        await assert_whole(lab, HOST)
    assert len(seen) == 5
    await assert_ticks(lab)


async def test_a_worker_killed_at_each_step(
    split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    await _bare(lab)
    worker = MortalWorker(split, tmp_path / "failpoints")
    await worker.start()
    await add_hosts(split, lab)
    for _ in range(2):  # the first ones, and others
        armed = worker.arm(STEPS, moments)
        provisioning = asyncio.create_task(split.done("cert", "provision", HOST))
        await worker.die_at(armed, provisioning)
        await provisioning
        await assert_whole(lab, HOST)
        (one, other) = (await installed(split, HOST)).values()
        valid = await split.shown("cert", "list", "--host", HOST, "--state", "valid")
        assert {one["serial"], other["serial"]} <= {found["serial"] for found in valid}
    await assert_ticks(lab)


async def test_a_removed_host_has_none_and_they_are_revoked(system: System, lab: Lab) -> None:
    await system.done("cert", "provision", HOST)
    planned = await system.done("host", "remove", HOST, "--after-maintenance", "--dry-run")
    assert "certificates in /etc/hostler/tls" in planned
    await system.done("host", "remove", HOST, "--after-maintenance", "--reason", "sold")
    await assert_nothing_left(lab, HOST)
    left = await lab.exec(HOST, "sh", "-c", "find /etc/pki /etc/hostler* -not -type d || :")
    assert left.stdout == ""
    assert f":{_PORT}" not in (await lab.exec(HOST, "ss", "-Hltn")).stdout
    while await system.shown("cert", "list", "--host", HOST, "--state", "valid"):
        await asyncio.sleep(0.5)
    revoked = await system.shown("cert", "list", "--host", HOST, "--state", "revoked")
    assert {one["revocation_reason"] for one in revoked} == {"cessationOfOperation"}


async def test_a_cluster_is_secured_and_nobody_reads_its_migrations(
    system: System, lab: Lab
) -> None:
    """In the control run, before it, everybody could."""

    async def drained() -> dict[bytes, int]:
        with Capture(BRIDGE, IN_MEMORY) as capture:
            await system.done("maintenance", "enter", HOST, "--reason", "test")
            await system.until_phase(HOST, "Ready")
        where = await places(lab)
        assert HOST not in where.values()
        await system.done("maintenance", "leave", HOST, "--return-vms")
        while {*(await places(lab)).values()} != {HOST}:
            await asyncio.sleep(0.5)
        await assert_ticks(lab)
        return capture.found

    assert (await drained())[IN_MEMORY] > 0
    said = await system.done("cert", "secure", "cluster-1")
    assert "3 hosts of cluster-1 take and give VMs by TLS only" in said
    await system.record("cluster-certificates/cluster-1", "cluster_certificates")
    for host in HOSTS:
        assert (await system.host(host))["tls"] == "secured"
        await assert_whole(lab, host)
    assert (await drained())[IN_MEMORY] == 0
    # libvirt itself refuses it in clear, whoever asks.
    address = {row["name"]: row["address"] for row in (await lab.status())["hosts"]}["kvm-2"]
    uri = f"qemu+tls://{address}/system"
    refused = await lab.virsh(HOST, "migrate", "--live", "--p2p", "vm-1", uri, check=False)
    assert refused.exit_status != 0
    await assert_ticks(lab)
    # And nobody else gets into service any more.
    await system.done("setting", "set", "ca.plugin.root.auth.strictness", "true")


async def test_a_worker_killed_while_a_cluster_is_secured_and_while_it_migrates(
    split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    await _bare(lab)
    worker = MortalWorker(split, tmp_path / "failpoints")
    await worker.start()
    await add_hosts(split, lab)
    armed = worker.arm(("plan_securing", *STEPS, "secure_host"), moments)
    securing = asyncio.create_task(split.done("cert", "secure", "cluster-1"))
    await worker.die_at(armed, securing)
    await securing
    for host in HOSTS:
        assert (await split.host(host))["tls"] == "secured"
        await assert_whole(lab, host)
    armed = worker.arm(("migrate_vm",), moments)
    draining = asyncio.create_task(split.done("maintenance", "enter", HOST, "--watch"))
    await worker.die_at(armed, draining)
    await draining
    assert HOST not in (await places(lab)).values()
    await assert_ticks(lab)
