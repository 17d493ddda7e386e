"""A host's TLS, looked at from all sides for somebody who wants to know what is wrong."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from activities.certificate_policy import allowed_names
from activities.controller import ControllerCertificates
from activities.crl_delivery import newest_crls
from activities.directory import HostDirectory
from activities.execution import surprises_of
from contracts.certificates import Certificate, CertificateRole
from contracts.errors import Failed, HostlerError, NotFound
from contracts.settings import CA_PROVIDER
from contracts.states import TlsState
from contracts.tls_check import Handshake, TlsCase, TlsCheckInput, TlsReport
from contracts.tls_rules import explain
from drivers.authorities.x509 import read_certificate
from drivers.errors import TlsRefused
from drivers.protocols import HostAccess, HostCertificates
from inventory import Inventory


class TlsCheckActivities:
    """Only looks."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        certificates: HostCertificates,
        own: ControllerCertificates,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._certificates = certificates
        self._own = own

    @activity.defn(name="check_tls")
    async def check_tls(self, request: TlsCheckInput) -> TlsReport:
        """What is wrong with it, each with what to do about it. Raises NotFound."""
        case = await self._case(request.host)
        facts = case.facts
        return TlsReport(
            host=case.host,
            findings=tuple(explain(case)),
            shown_serial=case.shown_serial,
            not_after=case.not_after if case.shown_serial == case.serial else None,
            old_vnc=facts.old_vnc if facts is not None else (),
        )

    async def _case(self, host: str) -> TlsCase:
        row = await self._inventory.hosts.get(host)
        unit = await self._inventory.certificates.unit(host)
        known: dict[str, Any] = {
            "host": host,
            "address": row.address,
            "secured": row.tls is TlsState.SECURED,
            "allowed": "[" + ", ".join(f'"{name}"' for name in allowed_names(unit)) + "]",
        }
        installed = await self._installed(host)
        if installed is not None:
            known |= {
                "installed_serial": installed.serial,
                "revoked": installed.revoked_at is not None,
            }
        wanted = await self._inventory.trust.wanted(host)
        if wanted.names:
            known |= {
                "trusts": _sha256(wanted.libvirt.pem),
                "qemu_trusts": _sha256(wanted.qemu.pem),
            }
        crls = await newest_crls(self._inventory, unit)
        if crls:
            known["crls"] = _sha256(crls)
        try:
            with surprises_of(host):
                access = await self._directory.access(host)
                facts = await self._certificates.examine(access)
        except (HostlerError, TimeoutError) as error:
            return TlsCase(
                **known,
                now=datetime.now(UTC),
                unasked=str(error) or "it timed out",
                problem="it could not be asked either",
            )
        known["facts"] = facts
        # Right after its clock was read.
        known["now"] = datetime.now(UTC)
        if facts.certificate is not None:
            known |= _read(facts.certificate)
        return TlsCase(
            **known, **await self._shake_hands(access, installed, secured=known["secured"])
        )

    async def _installed(self, host: str) -> Certificate | None:
        """libvirt's certificate, as Hostler has put it there."""
        found = await self._inventory.certificates.list(host=host)
        return next(
            (
                one
                for one in found
                if one.installed_at is not None and one.role is CertificateRole.HOST
            ),
            None,
        )

    async def _shake_hands(
        self, access: HostAccess, installed: Certificate | None, *, secured: bool
    ) -> dict[str, Any]:
        try:
            authorities = await self._anchors(installed)
        except NotFound as error:
            return {"handshake": Handshake.SILENT, "problem": str(error)}
        # It is not made here: that is up to who goes by it.
        own = await self._own.find() if secured else None
        keeps_out = False
        try:
            with surprises_of(access.name):
                answer = await self._certificates.ask(access, authorities)
                if own is not None:
                    proven = await self._certificates.ask(access, authorities, own)
                    keeps_out = not proven.lets_in
        except TlsRefused as error:
            return {"handshake": Handshake.REFUSED, "problem": str(error)}
        except (HostlerError, TimeoutError) as error:
            return {"handshake": Handshake.SILENT, "problem": str(error) or "it timed out"}
        return {
            "handshake": Handshake.SHOWN,
            "shown_serial": answer.serial,
            "lets_in": answer.lets_in,
            "keeps_hostler_out": keeps_out,
        }

    async def _anchors(self, installed: Certificate | None) -> str:
        """Of what the host has, or would get. Raises NotFound: there is no CA."""
        authorities = self._inventory.authorities
        if installed is not None:
            issuer = (installed.provider, installed.generation)
            return (await self._inventory.trust.of_issuer(issuer)).pem
        provider = (await self._inventory.settings.resolve())[CA_PROVIDER]
        return "".join((await authorities.get(provider)).chain)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(pem: str) -> dict[str, Any]:
    """Of the certificate that lies there; nothing if it is none."""
    try:
        found = read_certificate(pem)
    except Failed:
        return {}
    return {
        "serial": found.serial,
        "not_before": found.not_before,
        "not_after": found.not_after,
        "ip_addresses": found.ip_addresses,
    }
