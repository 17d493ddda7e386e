"""Hosts' side of a provisioning in memory: HostCertificates."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from contracts.certificates import certificates_in
from contracts.tls_check import TlsFacts
from drivers.authorities.x509 import is_signed_by, key_sha256, read_certificate, read_csr
from drivers.errors import CommandFailed, HostUnreachable, RestartNeeded
from drivers.protocols import CertificateFiles, ClientCertificate, HostAccess, TlsAnswer
from tests.authorities.samples import csr


def signed_by_one_of(certificate: str, authorities: str) -> bool:
    return any(is_signed_by(certificate, one) for one in certificates_in(authorities))


class CertifiedHost:
    """`in_force`: the set that counts; `unconfirmed`: it was restored; `fails_at`: the step that
    ends badly, after its effect (`ask`: while a switch may be put back); `away_at`: at which it
    does not answer, once;
    `lets_in`: also who has no certificate; `knows_hostler`: and who has Hostler's; `by_tls_only`:
    how it migrates. `wants_restart`: libvirtd has to be restarted for what is to change;
    `restarted`: it was. `crls`, `trusts` (libvirt's, QEMU's): what each host has got; `silent`:
    hosts that do not answer when they are to get some."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, str]] = {}
        self.in_force: str | None = None
        self.before: str | None = None
        self.unconfirmed = False
        self.fails_at: str | None = None
        self.stops_at: str | None = None
        self.away_at: str | None = None
        self.stopped = asyncio.Event()
        self.steps: list[str] = []
        self.lets_in = False
        self.knows_hostler = True
        self.by_tls_only = False
        self.wants_restart = True
        self.restarted = False
        self.crls: dict[str, str] = {}
        self.crl_epochs: list[int] = []
        self.trusts: dict[str, tuple[str, str]] = {}
        self.silent: set[str] = set()
        self.allowed: str | None = None
        self.old_vnc: tuple[str, ...] = ()

    async def _did(self, step: str) -> None:
        self.steps.append(step)
        if self.away_at == step:
            self.away_at = None
            raise HostUnreachable("kvm-1 does not answer.")
        if self.fails_at == step:
            raise CommandFailed(f"'tls {step}' on kvm-1 ended with status 74: No space left.")
        if self.stops_at == step:
            self.stopped.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 3)

    def _may(self, *, restart: bool) -> None:
        if self.wants_restart and not restart:
            raise RestartNeeded("libvirtd has to be restarted.")
        self.restarted |= restart

    async def prepare(
        self, access: HostAccess, name: str, epoch: int, *, key_bits: int, restart: bool = True
    ) -> tuple[str, str]:
        keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
        libvirt, qemu = (csr(key) for key in keys)
        made = self.sets.setdefault(name, {"libvirt-csr": libvirt, "qemu-csr": qemu})
        await self._did("prepare")
        return made["libvirt-csr"], made["qemu-csr"]

    async def place(
        self,
        access: HostAccess,
        name: str,
        epoch: int,
        *,
        libvirt: CertificateFiles,
        qemu: CertificateFiles,
    ) -> None:
        for part, files in (("libvirt", libvirt), ("qemu", qemu)):
            facts = read_certificate(files.certificate)
            assert facts.key_sha256 == read_csr(self.sets[name][f"{part}-csr"]).key_sha256
            assert signed_by_one_of(files.certificate, files.authorities)
            assert files.crls.startswith("-----BEGIN X509 CRL-----")
            self.sets[name][part] = files.certificate
        self.sets[name] |= {"ca": libvirt.authorities, "qemu-ca": qemu.authorities}
        await self._did("place")

    async def switch(
        self,
        access: HostAccess,
        name: str,
        epoch: int,
        *,
        allowed: Sequence[str],
        restart: bool = True,
    ) -> None:
        self._may(restart=restart)
        cluster, hostler = allowed
        self.allowed = f'["{cluster}", "{hostler}"]'
        assert hostler == "O=Hostler,CN=hostler controller"
        prefix = cluster.removesuffix("*")
        assert read_certificate(self.sets[name]["libvirt"]).subject.startswith(prefix)
        assert not read_certificate(self.sets[name]["qemu"]).subject.startswith(prefix)
        if self.in_force != name:
            self.before, self.in_force = self.in_force, name
        await self._did("switch")

    async def restore(
        self, access: HostAccess, name: str, epoch: int, *, restart: bool = True
    ) -> bool:
        if self.in_force == name:
            self._may(restart=restart)
            self.in_force, self.before = self.before, None
            self.unconfirmed = self.in_force is not None
        self.sets.pop(name, None)
        await self._did("restore")
        return self.unconfirmed

    async def confirm(self, access: HostAccess, epoch: int) -> None:
        self.unconfirmed = False
        await self._did("confirm")

    async def finish(self, access: HostAccess, name: str, epoch: int) -> None:
        assert self.in_force == name
        self.sets = {name: self.sets[name]}
        self.before = None
        await self._did("finish")

    async def update_crls(self, access: HostAccess, epoch: int, crls: str) -> None:
        self.crl_epochs.append(epoch)
        if access.name in self.silent:
            raise HostUnreachable(f"{access.name} does not answer.")
        self.crls[access.name] = crls
        await self._did("crl")

    async def update_trust(
        self, access: HostAccess, epoch: int, *, libvirt: str, qemu: str
    ) -> None:
        if access.name in self.silent:
            raise HostUnreachable(f"{access.name} does not answer.")
        if self.in_force is not None:
            one = self.sets[self.in_force]
            assert signed_by_one_of(one["libvirt"], libvirt)
            assert signed_by_one_of(one["qemu"], qemu)
            one |= {"ca": libvirt, "qemu-ca": qemu}
        self.trusts[access.name] = libvirt, qemu
        await self._did("trust")

    async def examine(self, access: HostAccess) -> TlsFacts:
        facts = TlsFacts(
            clock_s=round(time.time()),
            daemon="active",
            tcp_socket="inactive",
            forced=self.by_tls_only,
        )
        if self.in_force is None:
            return facts
        crls = hashlib.sha256(self.crls[access.name].encode()).hexdigest()
        trusts, qemu_trusts = (
            hashlib.sha256(self.sets[self.in_force][part].encode()).hexdigest()
            for part in ("ca", "qemu-ca")
        )
        return facts.model_copy(
            update={
                "set": self.in_force,
                "certificate": self.sets[self.in_force]["libvirt"],
                "key_fits": True,
                "crls": crls,
                "qemu_crls": crls,
                "trusts": trusts,
                "qemu_trusts": qemu_trusts,
                "allowed": self.allowed,
                "tls_socket": "active",
                "listens": True,
                "old_vnc": self.old_vnc,
            }
        )

    async def look(self, access: HostAccess) -> list[str]:
        return [f"certificates {name}" for name in self.sets]

    async def remove(self, access: HostAccess) -> list[str]:
        there = await self.look(access)
        self.sets, self.in_force, self.by_tls_only = {}, None, False
        return there

    async def secure(self, access: HostAccess, epoch: int, *, restart: bool = True) -> None:
        self._may(restart=restart)
        assert self.in_force is not None
        self.by_tls_only = True
        await self._did("secure")

    async def ask(
        self, access: HostAccess, authorities: str, client: ClientCertificate | None = None
    ) -> TlsAnswer:
        assert self.in_force is not None
        if client is not None:
            leaf = certificates_in(client.certificate)[0]
            assert signed_by_one_of(leaf, authorities)
            facts = read_certificate(leaf)
            assert facts.subject == "O=Hostler,CN=hostler controller"
            key = load_pem_private_key(client.key.encode(), None)
            assert key_sha256(key.public_key()) == facts.key_sha256
            return TlsAnswer(serial=facts.serial, lets_in=self.knows_hostler)
        if self.fails_at != "ask" or self.before is not None:
            await self._did("ask")
        facts = read_certificate(self.sets[self.in_force]["libvirt"])
        assert signed_by_one_of(self.sets[self.in_force]["libvirt"], authorities)
        return TlsAnswer(serial=facts.serial, lets_in=self.lets_in)


class CertifiedFleet:
    """HostCertificates of many hosts; `steps`: host and method of all calls, in their order."""

    def __init__(self, *names: str) -> None:
        self.hosts = {name: CertifiedHost() for name in names}
        self.steps: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if not hasattr(CertifiedHost, name):
            raise AttributeError(name)

        async def do(access: HostAccess, *words: Any, **more: Any) -> Any:
            step = access.name, name
            self.steps.append(step)
            try:
                return await getattr(self.hosts[access.name], name)(access, *words, **more)
            except RestartNeeded:
                self.steps.remove(step)
                raise

        return do

    def having(self, step: str) -> list[str]:
        """The hosts that it was called for."""
        return [host for host, name in self.steps if name == step]
