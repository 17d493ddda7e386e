"""Certificates: issued by the inventory's names, revoked, and told of in revocation lists."""

from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.authorities import Directory, Provider
from activities.certificate_policy import CONTROLLER_NAMES, beyond, names_of
from activities.execution import uninterrupted
from contracts.certificates import (
    Authority,
    AuthorityOrigin,
    Certificate,
    CertificateNames,
    CertificateSigningResult,
    CertificateState,
    CrlFacts,
    ExtraNames,
    IssueCertificateInput,
    PublishCrlInput,
    RevocationReason,
    RevokeCertificatesInput,
    RevokedCertificates,
    SetUpAuthorityInput,
    UpkeepPlan,
)
from contracts.errors import Conflict, Failed, InvalidInput
from contracts.settings import (
    CA_EXTRA_NAMES,
    CA_TASK_DELAY,
    CA_VALIDITY,
    MIGRATION_NETWORK,
)
from drivers.authorities.protocols import CertificateOrder, ImportsAuthority
from drivers.authorities.x509 import (
    CsrFacts,
    differences,
    is_signed_by,
    read_certificate,
    read_crl,
    read_csr,
)
from inventory import Inventory
from inventory.authorities import NewCrl
from inventory.certificates import NewCertificate, event_subject


class CertificateActivities:
    """Each step may be done again: it finds what an earlier attempt has recorded."""

    def __init__(self, inventory: Inventory, directory: Directory) -> None:
        self._inventory = inventory
        self._directory = directory

    @activity.defn(name="issue_certificate")
    async def issue_certificate(self, request: IssueCertificateInput) -> CertificateSigningResult:
        """Have a signing request's key certified for the names that the inventory has.

        Raises NotFound (no such host), InvalidInput (the request, or what it asks for beyond),
        Conflict (settings), Unavailable and Failed (the CA).
        """
        certificate = await self._inventory.certificates.find_request(request.request)
        if certificate is None:
            provider = await self._directory.chosen(request.operation)
            authority = await self._directory.authority(provider, request.operation)
            certificate = await uninterrupted(self._issue(request, provider, authority))
        return CertificateSigningResult(
            certificate=certificate,
            chain=await self._inventory.authorities.chain(
                certificate.provider, certificate.generation
            ),
        )

    @activity.defn(name="revoke_certificates")
    async def revoke_certificates(self, request: RevokeCertificatesInput) -> RevokedCertificates:
        """Revoke one, or all valid ones of a host: at their CAs, then in the inventory. What
        expired is left alone, unless it is named; a host without any is fine. Raises NotFound."""
        found = await self._to_revoke(request)
        actor = request.requester or request.operation
        for certificate in found:
            if certificate.revoked_at is None:
                provider = await self._directory.named(certificate.provider, request.operation)
                await provider.ca.revoke(certificate.serial, request.reason)
            await self._inventory.certificates.revoke(
                certificate, request.reason, operation=request.operation, actor=actor
            )
        return RevokedCertificates(
            serials=tuple(one.serial for one in found),
            providers=tuple(sorted({one.provider for one in found})),
        )

    @activity.defn(name="publish_crl")
    async def publish_crl(self, request: PublishCrlInput) -> CrlFacts:
        """Make or fetch the newest list and keep it, unless a newer one is kept by then."""
        provider = await self._directory.named(request.provider, request.operation)
        authority = await self._directory.authority(provider, request.operation)
        der = await provider.ca.crl()
        reading = read_crl(der, authority.chain[0])
        return await self._inventory.authorities.store_crl(
            request.provider,
            NewCrl(
                der=der,
                number=str(reading.number),
                this_update=reading.this_update,
                next_update=reading.next_update,
                entries=len(reading.serials),
            ),
            operation=request.operation,
        )

    @activity.defn(name="set_up_authority")
    async def set_up_authority(self, request: SetUpAuthorityInput) -> Authority:
        """Have the provider make its CA, or take the operator's; no effect if it is so. Raises
        InvalidInput, Conflict."""
        provider = await self._directory.chosen(request.operation)
        if request.key_secret is not None and request.chain is not None:
            if not isinstance(provider.ca, ImportsAuthority):
                raise Conflict(f"The CA provider {provider.name!r} takes no key of an operator's.")
            key = await self._inventory.secrets.reveal(request.key_secret)
            await provider.ca.import_authority(key.plaintext, request.chain)
        return await self._directory.authority(provider, request.operation)

    @activity.defn(name="discard_imported_key")
    async def discard_imported_key(self, request: SetUpAuthorityInput) -> None:
        """The copy of the key that came in with the request: the CA has its own."""
        if request.key_secret is not None:
            await self._inventory.secrets.discard(request.key_secret)

    @activity.defn(name="plan_upkeep")
    async def plan_upkeep(self) -> UpkeepPlan:
        """Whose list is over half of its time; an external CA's is looked at each time."""
        settings = await self._inventory.settings.resolve()
        due = []
        for name in await self._inventory.authorities.providers():
            authority = await self._inventory.authorities.get(name)
            if _is_due(authority, datetime.now(UTC)):
                due.append(name)
        return UpkeepPlan(every_s=settings[CA_TASK_DELAY], due=tuple(due))

    # --- issuing --------------------------------------------------------------------------------

    async def _issue(
        self, request: IssueCertificateInput, provider: Provider, authority: Authority
    ) -> Certificate:
        actor = request.requester or request.operation
        csr, names = read_csr(request.csr), await self._names(request.host)
        await self._check_key(csr, authority)
        extra = beyond(csr, names, request.role)
        if extra and provider.settings[CA_EXTRA_NAMES] is ExtraNames.REFUSE:
            await self._refuse(request, extra, actor)
        order = CertificateOrder(
            csr=request.csr,
            names=names,
            role=request.role,
            validity=timedelta(days=provider.settings[CA_VALIDITY]),
        )
        pem = await provider.ca.issue(order)
        found = read_certificate(pem)
        wrong = differences(found, names, request.role, csr.key_sha256)
        if not is_signed_by(pem, authority.chain[0]):
            wrong += ("it is signed by another CA than the first of its chain",)
        if wrong:
            await provider.ca.revoke(found.serial, RevocationReason.SUPERSEDED)
            raise Failed(
                f"The CA of {provider.name} has signed something else than was ordered: "
                f"{'; '.join(wrong)}. It is revoked again.",
                remedy="Correct the CA's role or profile: names and usages come from Hostler.",
            )
        return await self._inventory.certificates.record(
            NewCertificate(
                request=request.request,
                provider=provider.name,
                generation=authority.generation,
                serial=found.serial,
                host=request.host,
                role=request.role,
                subject=found.subject,
                dns_names=found.dns_names,
                ip_addresses=found.ip_addresses,
                key_sha256=found.key_sha256,
                not_before=found.not_before,
                not_after=found.not_after,
                issued_by=request.operation,
                pem=pem,
                dropped=extra,
            ),
            actor=actor,
        )

    async def _names(self, name: str | None) -> CertificateNames:
        if name is None:
            return CONTROLLER_NAMES
        host = await self._inventory.hosts.get(name)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        reported = host.facts.addresses if host.facts is not None else ()
        return names_of(
            host,
            await self._inventory.certificates.cluster_id(name),
            settings[MIGRATION_NETWORK],
            await self._inventory.certificates.owners(reported),
        )

    async def _check_key(self, csr: CsrFacts, authority: Authority) -> None:
        """Raises InvalidInput for a key that must not be certified."""
        if csr.key_sha256 in {read_certificate(pem).key_sha256 for pem in authority.chain}:
            raise InvalidInput("The signing request has the key of the CA itself.")
        if await self._inventory.certificates.is_compromised(csr.key_sha256):
            raise InvalidInput(
                "A certificate of this key was revoked because others may have the key.",
                remedy="Make a new key, and a signing request with that.",
            )

    async def _refuse(
        self, request: IssueCertificateInput, extra: tuple[str, ...], actor: str
    ) -> None:
        said = (
            "The signing request asks for what the inventory does not know of "
            f"{request.host or 'Hostler itself'}: {', '.join(extra)}."
        )
        await self._inventory.events.record(
            "certificate.refused",
            event_subject(request.host),
            said,
            operation=request.operation,
            actor=actor,
        )
        raise InvalidInput(
            said,
            remedy="Make one without, or set ca.framework.csr.extra to drop, which leaves it out.",
        )

    async def _to_revoke(self, request: RevokeCertificatesInput) -> list[Certificate]:
        if request.serial is not None:
            return [await self._inventory.certificates.get(request.serial)]
        found = await self._inventory.certificates.list(host=request.host)
        now = datetime.now(UTC)
        return [one for one in found if one.state(now) is not CertificateState.EXPIRED]


def _is_due(authority: Authority, now: datetime) -> bool:
    crl = authority.crl
    if crl is None or authority.origin is AuthorityOrigin.EXTERNAL:
        return True
    return now > crl.this_update + (crl.next_update - crl.this_update) / 2
