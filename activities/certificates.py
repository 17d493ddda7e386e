"""Certificates: issued by the inventory's names, revoked, and told of in revocation lists."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from temporalio import activity

from activities.authorities import Directory, Provider
from activities.certificate_policy import (
    CONTROLLER_NAMES,
    beyond,
    migration_addresses,
    names_in_role,
    names_of,
)
from activities.execution import uninterrupted
from contracts.certificates import (
    Authority,
    AuthorityOrigin,
    Certificate,
    CertificateIssuers,
    CertificateNames,
    CertificateRole,
    CertificateSigningResult,
    CertificateState,
    CrlFacts,
    ExtraNames,
    IssueCertificateInput,
    PlanUpkeepInput,
    PublishCrlInput,
    RevocationReason,
    RevokeCertificatesInput,
    RevokedCertificates,
    SetUpAuthorityInput,
    UpkeepPlan,
    qemu_authority,
)
from contracts.errors import Conflict, Failed, HostlerError, InvalidInput, Unavailable
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

# Of this worker and the CA.
_CLOCKS_DIFFER_BY = timedelta(hours=1)
# A CA's own rounding is no news.
_SHORTER = timedelta(days=1)


class CertificateActivities:
    """Each step may be done again: it finds what an earlier attempt has recorded."""

    def __init__(self, inventory: Inventory, directory: Directory) -> None:
        self._inventory = inventory
        self._directory = directory

    @activity.defn(name="issue_certificate")
    async def issue_certificate(self, request: IssueCertificateInput) -> CertificateSigningResult:
        """Have a signing request's key certified for the names that the inventory has.

        Raises NotFound (no such host), InvalidInput (the request, or what it asks for beyond),
        Conflict (settings, addresses), Unavailable and Failed (the CA).
        """
        return await self.issue(request)

    async def issue(
        self, request: IssueCertificateInput, *, key_secret: str | None = None
    ) -> CertificateSigningResult:
        """The same; `key_secret`: id of the private key, which Hostler has."""
        certificate = await self._inventory.certificates.find_request(request.request)
        if certificate is None:
            provider = await self._issuer(request)
            authority = await self._directory.authority(provider, request.operation)
            if authority.crl is None or authority.crl.next_update < datetime.now(UTC):
                # Who checks a certificate for which there is no list refuses it.
                await self._publish(provider, authority, request.operation)
            certificate = await uninterrupted(self._issue(request, provider, authority, key_secret))
        return CertificateSigningResult(
            certificate=certificate,
            chain=(
                await self._inventory.authorities.get(certificate.provider, certificate.generation)
            ).chain,
        )

    @activity.defn(name="find_issuers")
    async def find_issuers(self, request: RevokeCertificatesInput) -> CertificateIssuers:
        """Whose certificates are to be revoked; a host without any is fine. Raises NotFound."""
        found = await self._to_revoke(request)
        return CertificateIssuers(providers=tuple(sorted({one.provider for one in found})))

    @activity.defn(name="revoke_certificates")
    async def revoke_certificates(self, request: RevokeCertificatesInput) -> RevokedCertificates:
        """Revoke what is meant: at its CA, then in the inventory.

        One certificate, or all of a host that are not expired. With a key that others may have, all
        of its certificates, whosever they are: the expired ones for the record, by which the key
        is certified no more. Raises NotFound; Conflict for another reason than the first one.
        """
        found = await self._to_revoke(request)
        actor, now = request.requester or request.operation, datetime.now(UTC)
        for one in found:
            provider = await self._directory.named(one.provider, request.operation)
            if one.state(now) is CertificateState.VALID:
                with provider.surprises():
                    await provider.ca.revoke(one.serial, request.reason)
            # Of all of a host, those that were revoked before keep their reason.
            reason = request.reason
            if request.host is not None and reason is not RevocationReason.KEY_COMPROMISE:
                reason = one.revocation_reason or reason
            await self._inventory.certificates.revoke(
                one, reason, operation=request.operation, actor=actor
            )
        return RevokedCertificates(
            serials=tuple(one.serial for one in found),
            generations=tuple(sorted({one.generation for one in found})),
        )

    @activity.defn(name="publish_crl")
    async def publish_crl(self, request: PublishCrlInput) -> CrlFacts:
        """Make or fetch the newest list and keep it, unless a newer one is kept by then. Raises
        Unavailable while it does not tell of all that is revoked."""
        provider = await self._directory.named(request.provider, request.operation)
        authority = await self._inventory.authorities.get(request.provider, request.generation)
        return await self._publish(provider, authority, request.operation)

    @activity.defn(name="set_up_authority")
    async def set_up_authority(self, request: SetUpAuthorityInput) -> Authority:
        """Have the provider make its CA, or take the operator's; no effect if it is so. Raises
        InvalidInput, Conflict."""
        provider = await self._directory.chosen(request.operation)
        if request.key_secret is not None and request.chain is not None:
            if not isinstance(provider.ca, ImportsAuthority):
                raise Conflict(f"The CA provider {provider.name!r} takes no key of an operator's.")
            key = await self._inventory.secrets.reveal(request.key_secret)
            with provider.surprises():
                await provider.ca.import_authority(key.plaintext, request.chain)
        return await self._directory.authority(provider, request.operation)

    @activity.defn(name="discard_imported_key")
    async def discard_imported_key(self, request: SetUpAuthorityInput) -> None:
        """The copy of the key that came in with the request: the CA has its own."""
        if request.key_secret is not None:
            await self._inventory.secrets.discard(request.key_secret)

    @activity.defn(name="plan_upkeep")
    async def plan_upkeep(self, request: PlanUpkeepInput) -> UpkeepPlan:
        """Whose list has to be made or fetched anew; an external CA's is looked at each time."""
        every_s = (await self._inventory.settings.resolve())[CA_TASK_DELAY]
        due = []
        for one in await self._inventory.authorities.live():
            await self._tell_of_end(one, request.operation)
            if await self._is_due(one, timedelta(seconds=every_s)):
                due.append(
                    PublishCrlInput(
                        provider=one.provider,
                        generation=one.generation,
                        operation=request.operation,
                    )
                )
        return UpkeepPlan(every_s=every_s, due=tuple(due))

    # --- revocation lists -----------------------------------------------------------------------

    async def _publish(self, provider: Provider, authority: Authority, operation: str) -> CrlFacts:
        wanted = await self._inventory.certificates.to_list(provider.name, authority.generation)
        with provider.surprises():
            der = await provider.ca.crl(authority.chain[0])
        reading = read_crl(der, authority.chain[0])
        kept = await self._inventory.authorities.store_crl(
            provider.name,
            authority.generation,
            NewCrl(
                der=der,
                number=str(reading.number),
                this_update=reading.this_update,
                next_update=reading.next_update,
                entries=len(reading.serials),
            ),
            operation=operation,
        )
        missing = sorted(wanted - await self._listed(authority))
        if missing:
            raise Unavailable(
                f"The revocation list of {provider.name} (number {kept.number}) does not name "
                f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} revoked.",
                remedy="An external CA may make its lists at certain times only (OpenBao: "
                "auto_rebuild of config/crl).",
            )
        return kept

    async def _listed(self, authority: Authority) -> set[str]:
        """Serials of the list that is kept."""
        der = await self._inventory.authorities.crl(authority.provider, authority.generation)
        return {*read_crl(der, authority.chain[0]).serials}

    async def _is_due(self, authority: Authority, every: timedelta) -> bool:
        crl, now = authority.crl, datetime.now(UTC)
        if crl is None or authority.origin is AuthorityOrigin.EXTERNAL:
            return True
        half = crl.this_update + (crl.next_update - crl.this_update) / 2
        # The next round may be late.
        if now > half or crl.next_update < now + 2 * every:
            return True
        revoked = await self._inventory.certificates.to_list(
            authority.provider, authority.generation
        )
        return bool(revoked - await self._listed(authority))

    async def _tell_of_end(self, authority: Authority, operation: str) -> None:
        """Once per list."""
        crl, subject = authority.crl, f"ca/{authority.provider}"
        if crl is None or crl.next_update > datetime.now(UTC):
            return
        said = (
            f"generation {authority.generation}: number {crl.number} ended at "
            f"{crl.next_update:%Y-%m-%d %H:%M} UTC, and there is no newer one"
        )
        told = await self._inventory.events.list(subject=subject, kind="ca.crl_ended", limit=20)
        if said not in {event.message for event in told}:
            await self._inventory.events.record(
                "ca.crl_ended", subject, said, operation=operation, actor=operation
            )

    # --- issuing --------------------------------------------------------------------------------

    async def _issuer(self, request: IssueCertificateInput) -> Provider:
        if request.role is CertificateRole.QEMU and request.host is not None:
            unit = await self._inventory.certificates.unit(request.host)
            return await self._directory.named(qemu_authority(unit), request.operation)
        return await self._directory.chosen(request.operation)

    async def _issue(
        self,
        request: IssueCertificateInput,
        provider: Provider,
        authority: Authority,
        key_secret: str | None,
    ) -> Certificate:
        actor = request.requester or request.operation
        csr = read_csr(request.csr)
        names, claims = await self._names(request.host)
        names = names_in_role(names, request.role)
        await self._check_key(csr, authority)
        extra = beyond(csr, names, request.role)
        if extra and provider.settings[CA_EXTRA_NAMES] is ExtraNames.REFUSE:
            await self._refuse(request, extra, actor)
        validity = timedelta(days=provider.settings[CA_VALIDITY])
        order = CertificateOrder(csr.pem, names, request.role, validity)
        until = datetime.now(UTC) + validity
        with provider.surprises():
            pem = await provider.ca.issue(order)
        found = read_certificate(pem)
        wrong = differences(
            found, names, request.role, csr.key_sha256, until=until + _CLOCKS_DIFFER_BY
        )
        if not is_signed_by(pem, authority.chain[0]):
            newest = await self._directory.authority(provider, request.operation)
            if newest.generation != authority.generation:
                with provider.surprises():
                    await provider.ca.revoke(found.serial, RevocationReason.SUPERSEDED)
                raise Unavailable(f"The CA of {provider.name} has just been replaced.")
            wrong += ("it is signed by another CA than the first of its chain",)
        if wrong:
            await self._take_back(provider, found.serial, wrong)
        notices = []
        if extra:
            asked = f"asked for beyond the inventory and left out: {', '.join(extra)}"
            notices.append(("certificate.names_dropped", asked))
        if claims:
            shared = (f"{address} ({other})" for address, other in sorted(claims.items()))
            notices.append(
                ("certificate.address_shared", f"left out, others have it: {', '.join(shared)}")
            )
        if found.not_after < until - _SHORTER:
            notices.append(
                (
                    "certificate.short",
                    f"until {found.not_after:%Y-%m-%d %H:%M} UTC only, not for {validity.days} "
                    "days: the CA, or its role, allows no more",
                )
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
                notices=tuple(notices),
                key_secret=key_secret,
            ),
            actor=actor,
        )

    async def _names(self, name: str | None) -> tuple[CertificateNames, Mapping[str, str]]:
        """And which addresses are left out, with who else has them."""
        if name is None:
            return CONTROLLER_NAMES, {}
        host = await self._inventory.hosts.get(name)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        network = settings[MIGRATION_NETWORK]
        claims = await self._inventory.certificates.claims(name, migration_addresses(host, network))
        unit = await self._inventory.certificates.unit(name)
        return names_of(host, unit, network, claims), claims

    async def _take_back(self, provider: Provider, serial: str, wrong: tuple[str, ...]) -> NoReturn:
        """It is not tried again, whatever becomes of it: that would make one more."""
        try:
            with provider.surprises():
                await provider.ca.revoke(serial, RevocationReason.SUPERSEDED)
            outcome = "It is revoked again."
        except HostlerError as error:
            outcome = f"Its serial is {serial}; it could not be revoked: {error}"
        raise Failed(
            f"The CA of {provider.name} has signed something else than was ordered: "
            f"{'; '.join(wrong)}. {outcome}",
            remedy="Correct the CA's role or profile: names and usages come from Hostler.",
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
        certificates, compromised = (
            self._inventory.certificates,
            request.reason is RevocationReason.KEY_COMPROMISE,
        )
        if request.serial is not None:
            found = [await certificates.get(request.serial)]
        else:
            now = datetime.now(UTC)
            found = [
                one
                for one in await certificates.list(host=request.host)
                # One that is revoked keeps its reason, and is looked for in the list again.
                if (compromised or one.state(now) is not CertificateState.EXPIRED)
                and (request.issued_before is None or one.issued_at < request.issued_before)
            ]
        if compromised:
            found = await certificates.of_keys({one.key_sha256 for one in found})
        return [one for one in found if request.provider in (None, one.provider)]
