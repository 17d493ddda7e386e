"""Hosts get certificates: what openssl and virsh see of it, and what a dead worker leaves."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts.certificates import qemu_authority
from tests.authorities.samples import KEYS, ca, csr, key_pem, write
from tests.capture import Capture
from tests.drivers.test_migration_by_tls import IN_MEMORY
from tests.drivers.test_tls import WHOLE
from tests.e2e.conftest import HOSTS, add_host
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.proofs import assert_nothing_left, assert_ticks, places
from tests.e2e.secrecy import authority_key, inventory_of, key_forms, texts_of, where_found
from tests.e2e.system import System
from tests.e2e.test_reinstallation import answer, rebuild, row_of
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
REVOCATION_STEPS = (
    "find_issuers",
    "revoke_certificates",
    "publish_crl",
    "list_hosts_without_crls",
    "deliver_crls",
)
_OTHER = "kvm-2"
_PORT = 16514
_RENEWALS = 20
_BY_TLS = ("--live", "--p2p", "--tls", "--persistent", "--undefinesource")
_KEYS = ("/etc/pki/libvirt/private/serverkey.pem", "/etc/pki/qemu/server-key.pem")


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    """Running, with its hosts added; they have no certificates."""
    await populated.up(HOSTLER_LOG_LEVEL="debug")
    return populated


class Client:
    """openssl, in the place of a libvirt client of whoever has these files."""

    def __init__(self, anchor: Path, certificate: Path | None = None, key: Path | None = None):
        self._anchor = anchor
        self._own = [] if certificate is None else ["-cert", str(certificate), "-key", str(key)]

    def connect(self, address: str) -> tuple[str, bool]:
        """The serial that the host shows, and whether libvirtd lets the client in: it sends a byte
        then, and hangs up otherwise."""
        process = subprocess.Popen(
            [
                *("timeout", "5", "openssl", "s_client", "-connect", f"{address}:{_PORT}"),
                *("-CAfile", str(self._anchor), "-verify_return_error", "-verify_ip", address),
                # It ends when the host hangs up, or when its time is over.
                *("-ign_eof", "-showcerts", *self._own),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        assert process.stdout is not None
        text, came_in = b"", False
        while not came_in and (more := process.stdout.read(65536)):
            text += more
            came_in = b"\x01" in text.partition(b"-----END CERTIFICATE-----")[2]
        process.terminate()
        process.communicate()
        assert b"Verify return code: 0 (ok)" in text, text
        begin = text.index(b"-----BEGIN CERTIFICATE-----")
        end = text.index(b"-----END CERTIFICATE-----", begin)
        read = subprocess.run(
            ["openssl", "x509", "-noout", "-serial"],
            input=text[begin:end] + b"-----END CERTIFICATE-----\n",
            capture_output=True,
            check=True,
        )
        serial = read.stdout.decode().strip().removeprefix("serial=").lower().lstrip("0")
        return serial, came_in


async def installed(system: System, host: str) -> dict[str, dict[str, Any]]:
    """By role, what the API says that the host goes by."""
    answer = await system.request("GET", f"/v1/hosts/{host}/certificate")
    return {one["role"]: one for one in answer.json()["items"]}


async def assert_whole(lab: Lab, host: str) -> None:
    await lab.exec(host, "sh", "-c", WHOLE)
    await lab.virsh(host, "uri")


async def test_three_hosts_and_who_may_come_in(system: System, lab: Lab, tmp_path: Path) -> None:
    addresses = {row["name"]: row["address"] for row in (await lab.status())["hosts"]}
    with Capture(BRIDGE, keep=True) as capture:
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
        # The list is of names as libvirt itself reads them.
        own_name = (await installed(system, host))["host"]["subject"]
        said = await lab.exec(host, "virt-pki-query-dn", "/etc/pki/libvirt/clientcert.pem")
        assert said.stdout.strip() == own_name
    await assert_ticks(lab)
    await system.record("provisioning/kvm-1", "certificate_provisioning")

    # No key of a host's has left it, and those of the CAs are nowhere but encrypted.
    async with inventory_of(system) as inventory:
        of_qemus = qemu_authority(await inventory.certificates.unit(HOST))
        keys = [await authority_key(inventory, provider) for provider in ("root", of_qemus)]
    for host in HOSTS:
        for file in _KEYS:
            keys.append((await lab.exec(host, "cat", file)).stdout)
    assert len({*keys}) == 2 + len(HOSTS) * len(_KEYS)
    texts = await texts_of(system, "/v1/certificates", "/v1/events?limit=1000", "/v1/operations")
    texts["the wire"] = bytes(capture.kept)
    assert len(texts["the wire"]) > 10_000
    assert {f"history of provisioning/{host}" for host in HOSTS} <= set(texts)
    assert any(b"RunActivity:place_certificates" in text for text in texts.values())
    assert where_found(texts, [key_forms(key) for key in keys]) == set()


async def test_renewed_again_and_again_while_vms_come_and_go(
    system: System, lab: Lab, tmp_path: Path
) -> None:
    """libvirtd and QEMU read the new files."""
    addresses = {row["name"]: row["address"] for row in (await lab.status())["hosts"]}
    anchor = tmp_path / "ca.pem"
    for host in (HOST, _OTHER):
        await system.done("cert", "provision", host)
    await system.done("ca", "chain", "--out", str(anchor))
    ended = asyncio.Event()

    async def where(guest: str) -> str:
        """Its host, once nothing is left of a migration that was broken off."""
        while True:
            found = []
            for host in (HOST, _OTHER):
                said = await lab.virsh(host, "list", "--name", check=False)
                found += [host] if guest in said.stdout.split() else []
            if len(found) == 1:
                return found[0]
            await asyncio.sleep(0.2)

    async def come_and_go(guest: str) -> int:
        """How often it has moved; in the end it is at home."""
        moves = 0
        while (source := await where(guest)) != HOST or not ended.is_set():
            uri = f"qemu+tls://{addresses[_OTHER if source == HOST else HOST]}/system"
            # A libvirtd that dies of a reload breaks it off: the VM stays where it is.
            said = await lab.virsh(source, "migrate", *_BY_TLS, guest, uri, check=False)
            moves += said.exit_status == 0
        return moves

    coming_and_going = asyncio.create_task(come_and_go("vm-2"))
    seen = set()
    try:
        for _ in range(_RENEWALS):
            await system.done("cert", "provision", HOST)
            serial = (await installed(system, HOST))["host"]["serial"]
            shown, _ = await asyncio.to_thread(Client(anchor).connect, addresses[HOST])
            assert shown == serial
            seen.add(serial)
    finally:
        ended.set()
        await asyncio.wait([coming_and_going])
    assert len(seen) == _RENEWALS
    assert coming_and_going.result() > 2
    await assert_whole(lab, HOST)
    assert {*(await places(lab)).values()} == {HOST}
    await assert_ticks(lab)


async def test_a_worker_killed_at_each_step(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    worker = MortalWorker(populated_split, tmp_path / "failpoints")
    await worker.start()
    for _ in range(2):  # the first ones, and others
        armed = worker.arm(STEPS, moments)
        provisioning = asyncio.create_task(populated_split.done("cert", "provision", HOST))
        await worker.die_at(armed, provisioning)
        await provisioning
        await assert_whole(lab, HOST)
        (one, other) = (await installed(populated_split, HOST)).values()
        valid = await populated_split.shown("cert", "list", "--host", HOST, "--state", "valid")
        assert {one["serial"], other["serial"]} <= {found["serial"] for found in valid}
    # What it has is revoked: another host refuses it.
    await populated_split.done("cert", "provision", _OTHER)
    armed = worker.arm(REVOCATION_STEPS, moments)
    revoking = asyncio.create_task(
        populated_split.done("cert", "revoke", "--host", HOST, "--reason", "superseded")
    )
    await worker.die_at(armed, revoking)
    await revoking
    assert await populated_split.shown("cert", "list", "--host", HOST, "--state", "valid") == []
    addresses = {row["name"]: row["address"] for row in (await lab.status())["hosts"]}
    uri = f"qemu+tls://{addresses[_OTHER]}/system"
    refused = await lab.exec(HOST, "virsh", "-q", "-c", uri, "uri", check=False)
    assert refused.exit_status != 0
    await lab.exec(_OTHER, "virsh", "-q", "-c", uri, "uri")
    for host in (HOST, _OTHER):
        await assert_whole(lab, host)
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
        await (await system.workflow(f"return/{HOST}")).result()
        assert {*(await places(lab)).values()} == {HOST}
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
    await system.set("ca.plugin.root.auth.strictness", "true")

    # One that is installed anew is secured again before its VMs come back.
    former = {one["serial"] for one in (await installed(system, HOST)).values()}
    working = asyncio.create_task(
        system.done("host", "reinstall", HOST, "--after-maintenance", "--return-vms")
    )
    row = await rebuild(system, lab)
    await answer(
        system,
        *("--accept-host-key", row["host_key_sha256"], "--password-file", row["password_file"]),
    )
    await working
    await system.record(f"reinstallation/{HOST}", "host_reinstallation_with_certificates")
    await (await system.workflow(f"return/{HOST}")).result()
    assert set((await places(lab)).values()) == {HOST}
    assert (await system.host(HOST))["tls"] == "secured"
    await assert_whole(lab, HOST)
    revoked = await system.shown("cert", "list", "--host", HOST, "--state", "revoked")
    assert {one["serial"] for one in revoked} == former
    # And so is one that joins, before any comes.
    await system.done("host", "remove", "kvm-3", "--after-maintenance", "--reason", "joins again")
    row = await row_of(lab, "kvm-3")
    await add_host(system, row, "--returning")
    await system.record("addition/kvm-3", "host_addition_with_certificates")
    assert (await system.host("kvm-3"))["tls"] == "secured"
    await assert_whole(lab, "kvm-3")
    assert (await drained())[IN_MEMORY] == 0


async def test_a_worker_killed_at_each_step_of_securing_and_in_a_migration(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    worker = MortalWorker(populated_split, tmp_path / "failpoints")
    await worker.start()
    armed = worker.arm(("plan_securing", *STEPS, "secure_host"), moments)
    securing = asyncio.create_task(populated_split.done("cert", "secure", "cluster-1"))
    await worker.die_at(armed, securing)
    await securing
    for host in HOSTS:
        assert (await populated_split.host(host))["tls"] == "secured"
        await assert_whole(lab, host)
    armed = worker.arm(("migrate_vm",), moments)
    draining = asyncio.create_task(populated_split.done("maintenance", "enter", HOST, "--watch"))
    await worker.die_at(armed, draining)
    await draining
    assert HOST not in (await places(lab)).values()
    await assert_ticks(lab)
