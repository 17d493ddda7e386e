"""Certificates of a lab host, on its real libvirtd: switched to, renewed, put back, killed."""

import asyncio
import dataclasses
import hashlib
import random
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from activities.certificate_policy import CONTROLLER_NAMES
from contracts.certificates import (
    CertificateNames,
    CertificateRole,
    RevocationReason,
    crl_to_pem,
)
from contracts.tls_check import TlsFacts
from drivers.authorities.profiles import (
    Issuer,
    host_certificate,
    new_request,
    revocation_list,
)
from drivers.authorities.protocols import CertificateOrder, CrlOrder, RevokedSerial
from drivers.authorities.x509 import read_certificate
from drivers.errors import (
    CommandFailed,
    EpochRefused,
    HostUnreachable,
    MigrationRefused,
    TlsRefused,
)
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import (
    CertificateFiles,
    ClientCertificate,
    CommandResult,
    HostAccess,
    MigrationOptions,
)
from drivers.ssh import AsyncSshShell
from drivers.tls import PORT, ScriptCertificates
from tests.authorities.samples import Ca, ca, csr, key_pem, write
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.lab import Lab

UNIT = "cluster-1f"
ALLOWED = (f"O=Hostler,OU={UNIT},CN=*", "O=Hostler,CN=hostler controller")
AUTHORITY = ca("lab")
QEMUS = ca("the QEMUs of the lab")
# Whether what libvirt and QEMU go by is one set: keys and certificates that belong together.
WHOLE = """
cd /etc/pki 2>/dev/null || exit 0
found=
for file in CA/* libvirt/*.pem libvirt/private/* qemu/*.pem libvirt-vnc/*; do
    if [ -e "$file" ]; then found=1; fi
done
[ -n "$found" ] || exit 0
for three in libvirt/servercert.pem:libvirt/private/serverkey.pem:ca.pem \\
    libvirt/clientcert.pem:libvirt/private/clientkey.pem:ca.pem \\
    qemu/server-cert.pem:qemu/server-key.pem:qemu/ca.pem; do
    ca=${three##*:} pair=${three%:*}
    certificate=${pair%:*} key=${pair#*:}
    of_certificate=$(openssl x509 -in $certificate -noout -pubkey) || exit 1
    [ "$of_certificate" = "$(openssl pkey -in $key -pubout)" ] || exit 2
    openssl verify -CAfile /etc/hostler/tls/current/$ca $certificate >/dev/null || exit 3
done
"""


# Runs a command, and kills it as soon as libvirtd does not run any more.
KILLED_AT_THE_STOP = """
"$@" & pid=$!
while systemctl is-active --quiet libvirtd.service && kill -0 $pid; do :; done
kill -KILL $pid
wait $pid
"""


class Killed:
    """RemoteShell whose commands are killed after `seconds`, or without those once libvirtd is
    stopped; what they have started goes on."""

    def __init__(self, shell: AsyncSshShell, seconds: float | None = None) -> None:
        self._shell = shell
        self._killing = ["sh", "-c", KILLED_AT_THE_STOP, "killed"]
        if seconds is not None:
            self._killing = ["timeout", "--foreground", "--signal=KILL", f"{seconds:.3f}"]

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the protocol's
    ) -> CommandResult:
        killing = [*self._killing, *command]
        return await self._shell.run(access, killing, stdin=stdin, timeout=timeout)

    def __getattr__(self, name: str) -> object:
        return getattr(self._shell, name)


@pytest.fixture
async def host(lab: Lab, source: HostAccess) -> AsyncIterator[HostAccess]:
    """SOURCE as it is before it has certificates."""
    await lab.make_bare(SOURCE)
    yield source
    await lab.make_bare(SOURCE)


@pytest.fixture
def certificates(shell: AsyncSshShell) -> ScriptCertificates:
    return ScriptCertificates(shell)


def issued(
    requests: tuple[str, str],
    host: HostAccess,
    *,
    by: Ca = AUTHORITY,
    qemu_by: Ca = QEMUS,
    days: int = 30,
) -> tuple[CertificateFiles, CertificateFiles]:
    """Of libvirt and of QEMU."""
    names = CertificateNames(
        common_name=host.name, unit=UNIT, dns_names=(host.name,), ip_addresses=(host.address,)
    )
    orders = (
        CertificateOrder(requests[0], names, CertificateRole.HOST, timedelta(days=days)),
        CertificateOrder(
            requests[1],
            names.model_copy(update={"unit": f"{UNIT}-qemu"}),
            CertificateRole.QEMU,
            timedelta(days=days),
        ),
    )
    libvirt, qemu = (_files(order, one) for order, one in zip(orders, (by, qemu_by), strict=True))
    return libvirt, qemu


def _files(order: CertificateOrder, by: Ca) -> CertificateFiles:
    issuer = Issuer(by.certificate, by.key, hashes.SHA256())
    certificate = host_certificate(issuer, order, None).public_bytes(Encoding.PEM).decode()
    crl = crl_to_pem(revocation_list(issuer, CrlOrder(1, ()), timedelta(days=7)))
    return CertificateFiles(certificate, by.pem, crl)


def client_certificate(name: str = "hostler controller") -> ClientCertificate:
    """Hostler's own, or somebody else's of the same CA."""
    key, request = new_request(256, name)
    order = CertificateOrder(
        request,
        CertificateNames(common_name=name),
        CertificateRole.CONTROLLER,
        timedelta(days=1),
    )
    issuer = Issuer(AUTHORITY.certificate, AUTHORITY.key, hashes.SHA256())
    pem = host_certificate(issuer, order, None).public_bytes(Encoding.PEM).decode()
    return ClientCertificate(pem, key)


async def provision(
    certificates: ScriptCertificates, host: HostAccess, name: str, epoch: int
) -> str:
    """All of it; the serial that libvirtd shows then."""
    requests = await certificates.prepare(host, name, epoch, key_bits=256)
    libvirt, qemu = issued(requests, host)
    await certificates.place(host, name, epoch, libvirt=libvirt, qemu=qemu)
    await certificates.switch(host, name, epoch, allowed=ALLOWED)
    answer = await certificates.ask(host, AUTHORITY.pem)
    assert not answer.lets_in
    assert answer.serial == read_certificate(libvirt.certificate).serial
    await certificates.finish(host, name, epoch)
    return answer.serial


async def left_alone(lab: Lab) -> None:
    """What a killed script has started is over: it holds the lock until then."""
    lock = "/etc/hostler/lock"
    await lab.exec(SOURCE, "sh", "-c", f"[ ! -e {lock} ] || flock -w 60 {lock} true")


async def whole(lab: Lab) -> None:
    """One complete set or none, and a libvirtd that answers."""
    await lab.exec(SOURCE, "sh", "-c", WHOLE)
    await lab.exec(SOURCE, "virsh", "-q", "-c", "qemu:///system", "uri")


async def test_a_host_is_provisioned_and_renewed_while_a_vm_runs(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates, vm: str
) -> None:
    with pytest.raises(HostUnreachable, match="16514"):
        await certificates.ask(host, AUTHORITY.pem)
    serials = [await provision(certificates, host, f"set-{n}", 2 * n) for n in range(1, 6)]
    assert len({*serials}) == len(serials)
    await lab.ticks_on("drv-vm")
    await whole(lab)
    kept = await lab.exec(SOURCE, "sh", "-c", "ls /etc/hostler/tls/sets /etc/pki/qemu/hostler")
    assert kept.stdout.split().count("set-5") == 2
    assert "set-4" not in kept.stdout
    private = await lab.exec(
        SOURCE, "sh", "-c", "stat -Lc %a /etc/pki/libvirt/private/*key.pem /etc/pki/qemu/*-key.pem"
    )
    assert {*private.stdout.split()} == {"600"}  # QEMU is root there
    listening = await lab.exec(SOURCE, "ss", "-Hltn")
    assert ":16514" in listening.stdout
    assert ":16509" not in listening.stdout
    # Whoever comes too late is refused.
    with pytest.raises(EpochRefused):
        await certificates.restore(host, "set-4", 8)


async def test_what_fails_is_put_back(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates, vm: str
) -> None:
    before = await provision(certificates, host, "set-1", 2)
    # Of another CA than the one that it comes with.
    libvirt, qemu = issued(await certificates.prepare(host, "set-2", 4, key_bits=256), host)
    strange = dataclasses.replace(libvirt, authorities=ca("lab").pem)
    with pytest.raises(CommandFailed, match="verification failed"):
        await certificates.place(host, "set-2", 4, libvirt=strange, qemu=qemu)
    await certificates.place(host, "set-2", 4, libvirt=libvirt, qemu=qemu)
    # Nobody is on the list: the host is not let in by itself either.
    with pytest.raises(CommandFailed, match="does not take the host's own certificate"):
        await certificates.switch(host, "set-2", 4, allowed=("O=Nobody",))
    for _ in range(2):
        await certificates.restore(host, "set-2", 4)
        assert (await certificates.ask(host, AUTHORITY.pem)).serial == before
    await whole(lab)
    conf = await lab.exec(SOURCE, "tail", "-n", "3", "/etc/libvirt/libvirtd.conf")
    assert f"OU={UNIT}" in conf.stdout
    await lab.ticks_on("drv-vm")
    with pytest.raises(TlsRefused):
        await certificates.ask(host, ca("another").pem)


async def test_what_fails_is_put_back_on_a_full_disk_too(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates
) -> None:
    before = await provision(certificates, host, "set-1", 2)
    libvirt, qemu = issued(await certificates.prepare(host, "set-2", 4, key_bits=256), host)
    await certificates.place(host, "set-2", 4, libvirt=libvirt, qemu=qemu)
    await certificates.switch(host, "set-2", 4, allowed=ALLOWED)
    fill = 'fallocate -l "$(df --output=avail -B1 /etc | tail -n 1)" /etc/filler'
    await lab.exec(SOURCE, "sh", "-c", fill)
    try:
        assert await certificates.restore(host, "set-2", 4)
        assert (await certificates.ask(host, AUTHORITY.pem)).serial == before
        await certificates.confirm(host, 4)
        assert not await certificates.restore(host, "set-2", 4)
    finally:
        await lab.exec(SOURCE, "rm", "/etc/filler")
    await whole(lab)


async def test_what_an_operator_has_put_there_comes_back(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates
) -> None:
    """With lines of libvirtd.conf that lead elsewhere, one of them over several."""
    theirs = (
        'tls_allowed_dn_list = [\n  "CN=admin",\n  "CN=other"\n]\nca_file = "/etc/theirs.pem"\n'
    )
    await lab.exec(
        *(SOURCE, "sh", "-c"),
        "set -e; mkdir -p /etc/pki/CA; echo theirs >/etc/pki/CA/cacert.pem; cd /etc/libvirt; "
        f"cp libvirtd.conf /root/conf; cat >>libvirtd.conf <<'END'\n{theirs}END\n"
        "cp libvirtd.conf /root/theirs",
    )
    try:
        requests = await certificates.prepare(host, "set-1", 2, key_bits=256)
        libvirt, qemu = issued(requests, host)
        await certificates.place(host, "set-1", 2, libvirt=libvirt, qemu=qemu)
        await certificates.switch(host, "set-1", 2, allowed=ALLOWED)
        conf = await lab.exec(SOURCE, "tail", "-n", "8", "/etc/libvirt/libvirtd.conf")
        assert '#hostler#   "CN=other"\n#hostler# ]\n#hostler# ca_file' in conf.stdout
        await certificates.restore(host, "set-1", 2)
        await lab.exec(SOURCE, "cmp", "/etc/libvirt/libvirtd.conf", "/root/theirs")
        kept = await lab.exec(SOURCE, "cat", "/etc/pki/CA/cacert.pem")
        assert kept.stdout == "theirs\n"
        with pytest.raises(HostUnreachable):
            await certificates.ask(host, AUTHORITY.pem)
    finally:
        await lab.exec(SOURCE, "cp", "/root/conf", "/etc/libvirt/libvirtd.conf")


class Visitor:
    """A client of libvirtd's with a certificate of its own, of a name that may come in."""

    def __init__(
        self, folder: Path, *, validity: timedelta = timedelta(days=30), by: Ca = AUTHORITY
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        order = CertificateOrder(csr(key), CONTROLLER_NAMES, CertificateRole.CONTROLLER, validity)
        issuer = Issuer(by.certificate, by.key, hashes.SHA256())
        certificate = host_certificate(issuer, order, None)
        pem = certificate.public_bytes(Encoding.PEM).decode()
        self.serial = read_certificate(pem).serial
        self._file = write(folder / f"{self.serial}.pem", pem + key_pem(key))

    async def is_let_in(self, host: HostAccess) -> bool:
        """By the byte that libvirtd sends after the handshake, or does not."""
        context = ssl.create_default_context(cadata=AUTHORITY.pem)
        context.load_cert_chain(self._file)
        reader, writer = await asyncio.open_connection(
            host.address, PORT, ssl=context, server_hostname=host.address
        )
        try:
            return await reader.read(1) == b"\x01"
        except (OSError, ssl.SSLError):
            return False
        finally:
            writer.transport.abort()


def lists(number: int, *serials: str) -> str:
    """A revocation list of the CA, and one of another."""
    revoked = tuple(
        RevokedSerial(serial, datetime.now(UTC), RevocationReason.KEY_COMPROMISE)
        for serial in serials
    )
    return "".join(
        crl_to_pem(
            revocation_list(
                Issuer(by.certificate, by.key, hashes.SHA256()),
                CrlOrder(number, revoked),
                timedelta(days=7),
            )
        )
        for by in (ca("another"), AUTHORITY)
    )


async def test_who_was_revoked_is_refused_without_a_restart(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates, vm: str, tmp_path: Path
) -> None:
    await provision(certificates, host, "set-1", 2)
    revoked, other = Visitor(tmp_path), Visitor(tmp_path)
    expired = Visitor(tmp_path, validity=timedelta(minutes=4))  # it began five minutes ago
    show = ("systemctl", "show", "--value", "--property=MainPID", "libvirtd")
    pid = (await lab.exec(SOURCE, *show)).stdout
    assert await revoked.is_let_in(host)
    assert not await expired.is_let_in(host)

    await certificates.update_crls(host, 4, lists(2, revoked.serial))
    assert not await revoked.is_let_in(host)
    assert await other.is_let_in(host)
    for _ in range(2):
        await certificates.update_crls(host, 4, lists(3, revoked.serial, other.serial))
    assert not await other.is_let_in(host)
    same = "cmp /etc/pki/CA/cacrl.pem /etc/pki/qemu/ca-crl.pem; ls /etc/hostler/tls/sets/*"
    left = (await lab.exec(SOURCE, "sh", "-ec", same)).stdout
    assert "before" not in left

    # Of what libvirtd does not take, and of what comes too late, nothing is left.
    with pytest.raises(CommandFailed, match="does not take the revocation lists"):
        await certificates.update_crls(
            host, 6, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
        )
    with pytest.raises(CommandFailed, match="full, or read-only"):
        await certificates.update_crls(host, 6, lists(4)[:-30])
    with pytest.raises(EpochRefused):
        await certificates.update_crls(host, 4, lists(4))
    assert not await other.is_let_in(host)
    await whole(lab)
    assert (await lab.exec(SOURCE, *show)).stdout == pid
    # After a restart they are still in force.
    await lab.exec(SOURCE, "systemctl", "restart", "libvirtd")
    assert not await other.is_let_in(host)
    # So they are in a set that is put back.
    libvirt, qemu = issued(await certificates.prepare(host, "set-2", 8, key_bits=256), host)
    await certificates.place(host, "set-2", 8, libvirt=libvirt, qemu=qemu)
    await certificates.switch(host, "set-2", 8, allowed=ALLOWED)
    assert await other.is_let_in(host)
    await certificates.update_crls(host, 8, lists(5, other.serial))
    await certificates.restore(host, "set-2", 8)
    assert not await other.is_let_in(host)
    assert await revoked.is_let_in(host)
    await lab.ticks_on("drv-vm")


async def test_killed_anywhere_it_has_whole_lists(
    lab: Lab, host: HostAccess, shell: AsyncSshShell, tmp_path: Path
) -> None:
    certificates = ScriptCertificates(shell)
    await provision(certificates, host, "set-1", 2)
    visitor = Visitor(tmp_path)
    chance = random.Random(7)  # noqa: S311 - nothing secret
    for number in range(2, 12):
        killed = ScriptCertificates(Killed(shell, chance.uniform(0.02, 0.5)))  # type: ignore[arg-type]
        serials = (visitor.serial,) if number % 2 else ()
        with suppress(CommandFailed):
            await killed.update_crls(host, 2 * number, lists(number, *serials))
        await left_alone(lab)
        await whole(lab)
        for file in ("/etc/pki/CA/cacrl.pem", "/etc/pki/qemu/ca-crl.pem"):
            await lab.exec(SOURCE, "openssl", "crl", "-in", file, "-noout")
        await certificates.update_crls(host, 2 * number, lists(number, *serials))
        assert await visitor.is_let_in(host) is not bool(serials)


async def test_other_cas_are_trusted_without_a_restart(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates, vm: str, tmp_path: Path
) -> None:
    """And those that are none, or not the host's own, are not."""
    await provision(certificates, host, "set-1", 2)
    show = ("systemctl", "show", "--value", "--property=MainPID", "libvirtd")
    pid = (await lab.exec(SOURCE, *show)).stdout
    other = ca("another")
    ours, theirs = Visitor(tmp_path), Visitor(tmp_path, by=other)
    assert await ours.is_let_in(host)
    assert not await theirs.is_let_in(host)
    files = "/etc/pki/CA/cacert.pem /etc/pki/qemu/ca-cert.pem /etc/pki/libvirt-vnc/ca-cert.pem"
    of_qemu = QEMUS.pem + ca("next").pem

    async def there() -> list[str]:
        return [(await lab.exec(SOURCE, "cat", file)).stdout for file in files.split()]

    for both in (AUTHORITY.pem + other.pem, other.pem + AUTHORITY.pem):
        for _ in range(2):
            await certificates.update_trust(host, 4, libvirt=both, qemu=of_qemu)
            assert await there() == [both, of_qemu, of_qemu]
        assert await ours.is_let_in(host)
        assert await theirs.is_let_in(host)
    for libvirt, qemu in ((other.pem, QEMUS.pem), (both, AUTHORITY.pem)):
        with pytest.raises(CommandFailed, match="of none of these CAs"):
            await certificates.update_trust(host, 6, libvirt=libvirt, qemu=qemu)
    for libvirt, qemu in ((both[:-30], QEMUS.pem), (both, QEMUS.pem[:-30]), (both, "")):
        with pytest.raises(CommandFailed, match="full, or read-only"):
            await certificates.update_trust(host, 6, libvirt=libvirt, qemu=qemu)
    garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    with pytest.raises(CommandFailed, match=r"does not take the CAs|of none of these CAs"):
        await certificates.update_trust(host, 6, libvirt=AUTHORITY.pem + garbage, qemu=QEMUS.pem)
    with pytest.raises(EpochRefused):
        await certificates.update_trust(host, 4, libvirt=AUTHORITY.pem, qemu=QEMUS.pem)
    assert await there() == [both, of_qemu, of_qemu]
    assert await theirs.is_let_in(host)
    # Whoever places the set once more comes too late, and changes nothing.
    requests = await certificates.prepare(host, "set-1", 6, key_bits=256)
    placed = issued(requests, host)
    await certificates.place(host, "set-1", 6, libvirt=placed[0], qemu=placed[1])
    assert await there() == [both, of_qemu, of_qemu]

    await certificates.update_trust(host, 6, libvirt=AUTHORITY.pem, qemu=QEMUS.pem)
    assert await ours.is_let_in(host)
    assert not await theirs.is_let_in(host)
    await whole(lab)
    left = (
        await lab.exec(SOURCE, "sh", "-c", "ls /etc/hostler/tls /etc/hostler/tls/sets/*")
    ).stdout
    assert "before" not in left
    assert "new" not in left
    assert (await lab.exec(SOURCE, *show)).stdout == pid
    await lab.ticks_on("drv-vm")


async def test_killed_anywhere_it_trusts_whole_cas(
    lab: Lab, host: HostAccess, shell: AsyncSshShell, tmp_path: Path
) -> None:
    certificates = ScriptCertificates(shell)
    await provision(certificates, host, "set-1", 2)
    other = ca("another")
    ours, theirs = Visitor(tmp_path), Visitor(tmp_path, by=other)
    chance = random.Random(7)  # noqa: S311 - nothing secret
    for number in range(2, 12):
        killed = ScriptCertificates(Killed(shell, chance.uniform(0.02, 0.8)))  # type: ignore[arg-type]
        pem = AUTHORITY.pem + other.pem if number % 2 else AUTHORITY.pem
        with suppress(CommandFailed):
            await killed.update_trust(host, 2 * number, libvirt=pem, qemu=QEMUS.pem)
        await left_alone(lab)
        await whole(lab)
        assert await ours.is_let_in(host)
        await certificates.update_trust(host, 2 * number, libvirt=pem, qemu=QEMUS.pem)
        assert await ours.is_let_in(host)
        assert await theirs.is_let_in(host) is bool(number % 2)


async def test_a_host_without_certificates_takes_no_lists(
    host: HostAccess, certificates: ScriptCertificates
) -> None:
    with pytest.raises(CommandFailed, match="no certificates of Hostler's any more"):
        await certificates.update_crls(host, 2, lists(1))
    with pytest.raises(CommandFailed, match="no certificates of Hostler's any more"):
        await certificates.update_trust(host, 2, libvirt=AUTHORITY.pem, qemu=QEMUS.pem)


async def test_a_host_says_what_is_so_of_its_tls(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates, vm: str, tmp_path: Path
) -> None:
    bare = await certificates.examine(host)
    assert (bare.set, bare.certificate, bare.daemon) == (None, None, "active")
    assert (bare.listens, bare.old_vnc) == (False, ())
    serial = await provision(certificates, host, "set-1", 2)
    text = lists(2)
    await certificates.update_crls(host, 2, text)
    facts = await certificates.examine(host)
    assert facts.certificate is not None
    assert read_certificate(facts.certificate).serial == serial
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert facts == TlsFacts(
        clock_s=facts.clock_s,
        set="set-1",
        certificate=facts.certificate,
        key_fits=True,
        crls=digest,
        qemu_crls=digest,
        trusts=hashlib.sha256(AUTHORITY.pem.encode()).hexdigest(),
        qemu_trusts=hashlib.sha256(QEMUS.pem.encode()).hexdigest(),
        allowed=f'["{ALLOWED[0]}", "{ALLOWED[1]}"]',
        daemon="active",
        tls_socket="active",
        tcp_socket="inactive",
        listens=True,
        said=facts.said,
    )
    assert abs(facts.clock_s - datetime.now(UTC).timestamp()) < 30
    # Who came without a certificate, to prove that it is turned away.
    assert any("No certificate was found" in line for line in facts.said)

    key = "/etc/hostler/tls/current/key.pem"
    broken = f"""
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {key}
    rm /etc/pki/qemu/ca-crl.pem; echo >/etc/pki/qemu/ca-crl.pem
    sed -i 's/^tls_allowed_dn_list/#&/' /etc/libvirt/libvirtd.conf
    """
    await lab.exec(SOURCE, "sh", "-ec", broken)
    facts = await certificates.examine(host)
    assert (facts.key_fits, facts.allowed) == (False, "")
    assert facts.elsewhere == ("/etc/pki/qemu/ca-crl.pem",)


async def test_all_of_it_is_taken_off(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates, vm: str
) -> None:
    assert await certificates.remove(host) == await certificates.look(host) == []
    conf = await lab.exec(SOURCE, "cat", "/etc/libvirt/libvirtd.conf")
    await provision(certificates, host, "set-1", 2)
    assert await certificates.look(host) == ["certificates in /etc/hostler/tls"]
    assert await certificates.remove(host) == ["certificates in /etc/hostler/tls"]
    assert await certificates.remove(host) == await certificates.look(host) == []
    left = await lab.exec(SOURCE, "sh", "-c", "find /etc/pki /etc/hostler* -not -type d || :")
    assert left.stdout == ""
    assert (await lab.exec(SOURCE, "cat", "/etc/libvirt/libvirtd.conf")).stdout == conf.stdout
    with pytest.raises(HostUnreachable):
        await certificates.ask(host, AUTHORITY.pem)
    await lab.ticks_on("drv-vm")


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_a_disk_that_takes_nothing_leaves_the_old_set(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates, trouble: str
) -> None:
    before = await provision(certificates, host, "set-1", 2)
    requests = await certificates.prepare(host, "set-2", 4, key_bits=256)
    libvirt, qemu = issued(requests, host)
    folder = "/etc/hostler/tls/sets/set-2"
    size = "4k,nr_inodes=4" if trouble == "full" else "64k"
    readonly = f"mount -o remount,ro {folder}" if trouble == "read-only" else ":"
    try:
        await lab.exec(
            *(SOURCE, "sh", "-ec"),
            f"cp -a {folder}/key.pem /root/key.pem; "
            f"mount -t tmpfs -o size={size},mode=711 tmpfs {folder}; "
            f"mv /root/key.pem {folder}; {readonly}",
        )
        with pytest.raises(CommandFailed, match=r"full|[Rr]ead-only"):
            await certificates.place(host, "set-2", 4, libvirt=libvirt, qemu=qemu)
    finally:
        await lab.exec(SOURCE, "umount", folder)
    await certificates.restore(host, "set-2", 4)
    assert (await certificates.ask(host, AUTHORITY.pem)).serial == before
    await whole(lab)


@pytest.mark.timeout(600)
@pytest.mark.some_a_day("first", [True, False])
async def test_killed_anywhere_there_is_one_whole_set(
    lab: Lab, host: HostAccess, shell: AsyncSshShell, vm: str, first: bool
) -> None:
    """The script itself; what a dead worker leaves is the same, and done again by the next one."""
    certificates = ScriptCertificates(shell)
    chance = random.Random(7)  # noqa: S311 - nothing secret
    if not first:
        await provision(certificates, host, "set-0", 2)
    for number in range(1, 5):
        if first:
            await lab.make_bare(SOURCE)
        name, epoch = f"set-{number}", 2 * number + 2
        for step in ("prepare", "place", "switch", "finish" if number % 2 else "restore"):
            killed = ScriptCertificates(Killed(shell, chance.uniform(0.05, 1.2)))  # type: ignore[arg-type]
            for attempt in (killed, certificates):
                try:
                    if step == "prepare":
                        requests = await attempt.prepare(host, name, epoch, key_bits=256)
                    elif step == "place":
                        libvirt, qemu = issued(requests, host)
                        await attempt.place(host, name, epoch, libvirt=libvirt, qemu=qemu)
                    elif step == "switch":
                        await attempt.switch(host, name, epoch, allowed=ALLOWED)
                    elif step == "finish":
                        await attempt.finish(host, name, epoch)
                    else:
                        await attempt.restore(host, name, epoch)
                except CommandFailed:
                    if attempt is certificates:
                        raise
                await left_alone(lab)
                await whole(lab)
        if step == "finish":
            serial = read_certificate(libvirt.certificate).serial
            assert (await certificates.ask(host, AUTHORITY.pem)).serial == serial
    await lab.ticks_on("drv-vm")


async def test_killed_while_libvirtd_is_stopped_it_is_started_again(
    lab: Lab, host: HostAccess, shell: AsyncSshShell, certificates: ScriptCertificates, vm: str
) -> None:
    """By nobody but what the script has started."""
    killed = ScriptCertificates(Killed(shell))  # type: ignore[arg-type]
    requests = await certificates.prepare(host, "set-1", 2, key_bits=256)
    libvirt, qemu = issued(requests, host)
    await certificates.place(host, "set-1", 2, libvirt=libvirt, qemu=qemu)
    with pytest.raises(CommandFailed):
        await killed.switch(host, "set-1", 2, allowed=ALLOWED)
    await left_alone(lab)
    await whole(lab)
    await certificates.switch(host, "set-1", 2, allowed=ALLOWED)
    serial = read_certificate(libvirt.certificate).serial
    assert (await certificates.ask(host, AUTHORITY.pem)).serial == serial
    with pytest.raises(CommandFailed):
        await killed.restore(host, "set-1", 2)
    await left_alone(lab)
    await whole(lab)
    await certificates.restore(host, "set-1", 2)
    with pytest.raises(HostUnreachable, match="16514"):
        await certificates.ask(host, AUTHORITY.pem)
    await lab.ticks_on("drv-vm")


async def test_what_a_terminated_operation_has_switched_is_put_back_by_the_next_one(
    lab: Lab, host: HostAccess, certificates: ScriptCertificates
) -> None:
    """Nobody has proven it. libvirtd is not restarted for that: VMs may migrate meanwhile."""
    before = await provision(certificates, host, "set-1", 2)
    show = ("systemctl", "show", "--value", "--property=MainPID", "libvirtd")
    pid = (await lab.exec(SOURCE, *show)).stdout
    libvirt, qemu = issued(await certificates.prepare(host, "set-2", 4, key_bits=256), host)
    await certificates.place(host, "set-2", 4, libvirt=libvirt, qemu=qemu)
    await certificates.switch(host, "set-2", 4, allowed=ALLOWED)
    assert (await certificates.ask(host, AUTHORITY.pem)).serial != before
    await certificates.prepare(host, "set-3", 6, key_bits=256)
    assert (await certificates.ask(host, AUTHORITY.pem)).serial == before
    with pytest.raises(EpochRefused):
        await certificates.finish(host, "set-2", 4)
    await whole(lab)
    await certificates.restore(host, "set-3", 6)
    assert (await certificates.ask(host, AUTHORITY.pem)).serial == before
    assert (await lab.exec(SOURCE, *show)).stdout == pid


async def test_a_secured_host_refuses_what_is_not_by_tls(
    lab: Lab,
    shell: AsyncSshShell,
    hypervisor: LibvirtHypervisor,
    host: HostAccess,
    certificates: ScriptCertificates,
    vm: str,
) -> None:
    """Also after it was killed in between; a removal takes it off."""
    conf = await lab.exec(SOURCE, "cat", "/etc/libvirt/qemu.conf")
    with pytest.raises(CommandFailed, match="no certificates"):
        await certificates.secure(host, 2)
    await provision(certificates, host, "set-1", 2)
    # What libvirtd does not take would be its end, once it is restarted.
    listed = "/etc/hostler/tls/current/crl.pem"
    spoil = f"cp {listed} /root/crl.pem; sed -i '/^---/!s/.*/AAAA/' {listed}"
    await lab.exec(SOURCE, "sh", "-ec", spoil)
    with pytest.raises(CommandFailed, match="does not take what lies there"):
        await certificates.secure(host, 4)
    await lab.virsh(SOURCE, "uri")
    assert not (await certificates.examine(host)).forced
    await lab.exec(SOURCE, "sh", "-ec", f"cat /root/crl.pem >{listed}; rm /root/crl.pem")
    for seconds in (0.3, 0.6, 1.0):
        killed = ScriptCertificates(Killed(shell, seconds))  # type: ignore[arg-type]
        with suppress(CommandFailed):
            await killed.secure(host, 4)
        await left_alone(lab)
        await lab.virsh(SOURCE, "uri")
    for _ in range(2):
        await certificates.secure(host, 4)
    assert (await certificates.examine(host)).forced
    other = await lab.access(DESTINATION)
    with pytest.raises(MigrationRefused, match="TLS"):
        await hypervisor.migrate(host, other, vm, MigrationOptions(other.address), print)
    with pytest.raises(EpochRefused):
        await certificates.secure(host, 2)
    # A renewal leaves it so.
    await provision(certificates, host, "set-2", 6)
    there = await lab.exec(SOURCE, "cat", "/etc/libvirt/qemu.conf")
    assert "migrate_tls_force = 1" in there.stdout
    await certificates.remove(host)
    assert (await lab.exec(SOURCE, "cat", "/etc/libvirt/qemu.conf")).stdout == conf.stdout
    await lab.ticks_on("drv-vm")


async def test_who_has_hostlers_certificate_is_let_in(
    host: HostAccess, certificates: ScriptCertificates
) -> None:
    await provision(certificates, host, "set-1", 2)
    for name, let_in in (("hostler controller", True), ("somebody", False)):
        answer = await certificates.ask(host, AUTHORITY.pem, client_certificate(name))
        assert answer.lets_in is let_in
    assert not (await certificates.ask(host, AUTHORITY.pem)).lets_in
