"""Certificates of a host's own: keys made there, certified, installed, proven, or put back."""

from temporalio import activity

from activities.certificate_policy import allowed_names
from activities.crl_delivery import give_crls, give_trust, newest_crls
from activities.directory import HostDirectory
from activities.execution import uninterrupted
from activities.restarts import Restarts
from contracts.certificates import (
    AuthorityState,
    Certificate,
    CertificateProvisioningResult,
    CertificateRequests,
    CertificateSet,
    SwitchCertificatesInput,
    crl_to_pem,
)
from contracts.errors import Conflict, Failed, NotFound
from contracts.settings import CA_KEY_SIZE
from contracts.states import ResourceState, TlsState
from drivers.authorities.x509 import read_certificate
from drivers.protocols import CertificateFiles, HostAccess, HostCertificates
from inventory import Inventory


class ProvisioningActivities:
    """Each step finds its work done if it was done. All raise LeaseLost, EpochRefused,
    Unavailable."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        certificates: HostCertificates,
        restarts: Restarts,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._certificates = certificates
        self._restarts = restarts

    @activity.defn(name="prepare_certificates")
    async def prepare_certificates(self, request: CertificateSet) -> CertificateRequests:
        """Have the host make the keys; they never leave it. Raises NotFound, Conflict (its state),
        CommandFailed."""
        host = await self._inventory.hosts.get(request.lease.host)
        added = request.added and host.resource_state is ResourceState.CREATING
        if not (host.is_machine or added):
            raise Conflict(f"{host.name} is {host.resource_state}: it gets no certificates.")
        key_bits = (await self._inventory.settings.resolve())[CA_KEY_SIZE]
        access = await self._access(request)

        async def prepare(restart: bool) -> tuple[str, str]:
            return await self._certificates.prepare(
                access, request.name, request.lease.epoch, key_bits=key_bits, restart=restart
            )

        libvirt, qemu = await self._restarts.change(request.lease, prepare)
        return CertificateRequests(libvirt=libvirt, qemu=qemu)

    @activity.defn(name="place_certificates")
    async def place_certificates(self, request: SwitchCertificatesInput) -> None:
        """Put them beside their keys. Raises CommandFailed: they do not fit, the host's clock is
        off, its disk is full or read-only."""
        libvirt, qemu = await self._found(request.libvirt), await self._found(request.qemu)
        access = await self._access(request)
        await uninterrupted(
            self._certificates.place(
                access,
                request.name,
                request.lease.epoch,
                libvirt=await self._files(libvirt),
                qemu=await self._files(qemu),
            )
        )

    @activity.defn(name="switch_certificates")
    async def switch_certificates(self, request: SwitchCertificatesInput) -> None:
        """Have libvirt and QEMU go by them, and prove it: there, by the host's own certificate;
        from here, by the serial that is shown, and by the refusal of a client that has none. Raises
        CommandFailed, HostBusy, TlsRefused, Failed."""
        libvirt = await self._found(request.libvirt)
        unit = await self._inventory.certificates.unit(request.lease.host)
        for one in (libvirt, await self._found(request.qemu)):
            await self._require_trusted(one)
        access = await self._access(request)

        async def switch(restart: bool) -> None:
            await self._certificates.switch(
                access,
                request.name,
                request.lease.epoch,
                allowed=allowed_names(unit),
                restart=restart,
            )

        await self._restarts.change(request.lease, switch)
        await uninterrupted(self._prove(access, libvirt))

    @activity.defn(name="restore_certificates")
    async def restore_certificates(self, request: CertificateSet) -> None:
        """What the host went by before counts again, which it proves as after a switch; no effect
        if nothing has changed. Raises CommandFailed, HostBusy, TlsRefused, Failed."""
        access = await self._access(request)
        by_tls = False

        async def restore(restart: bool) -> None:
            nonlocal by_tls
            by_tls = await self._certificates.restore(
                access, request.name, request.lease.epoch, restart=restart
            )

        await self._restarts.change(request.lease, restore)
        if by_tls:
            await uninterrupted(self._prove(access, await self._in_force(access)))
            await uninterrupted(self._certificates.confirm(access, request.lease.epoch))

    @activity.defn(name="finish_certificates")
    async def finish_certificates(
        self, request: SwitchCertificatesInput
    ) -> CertificateProvisioningResult:
        """The switch stays, and is written down; the host gets the newest revocation lists, and
        trusts the CAs that it is to. Raises Conflict: others do not trust its CA any more."""
        libvirt, qemu = await self._found(request.libvirt), await self._found(request.qemu)
        # It may have been away since the switch, and left out of a rollover.
        for one in (libvirt, qemu):
            await self._require_trusted(one)
        access = await self._access(request)
        await uninterrupted(self._certificates.finish(access, request.name, request.lease.epoch))
        operation = request.lease.owner.workflow_id
        # First, so that the inventory is right about the host whatever becomes of the rest, which
        # whoever delivers lists brings it in that case.
        await self._inventory.hosts.set_tls(
            request.lease.host,
            TlsState.READY,
            reason=f"certificates {libvirt.serial} and {qemu.serial}",
            operation=operation,
            actor=operation,
            lease=request.lease,
        )
        await self._inventory.certificates.install(
            request.lease.host,
            (request.libvirt, request.qemu),
            operation=operation,
            actor=operation,
        )
        # The set has CAs, and its own authority's list, of the moment when it was placed.
        anchors = await self._inventory.trust.of_issuers(_issuer(libvirt), _issuer(qemu))
        await uninterrupted(give_trust(self._certificates, access, request.lease.epoch, anchors))
        await self._inventory.trust.note(anchors.names, lease=request.lease)
        unit = await self._inventory.certificates.unit(request.lease.host)
        numbers = await self._inventory.authorities.crl_numbers(unit)
        crls = await newest_crls(self._inventory, unit)
        await uninterrupted(give_crls(self._certificates, access, request.lease.epoch, crls))
        await self._inventory.certificate_upkeep.note_crls(numbers, lease=request.lease)
        return CertificateProvisioningResult(
            host=request.lease.host,
            libvirt=libvirt.serial,
            qemu=qemu.serial,
            not_after=min(libvirt.not_after, qemu.not_after),
        )

    async def _access(self, request: CertificateSet) -> HostAccess:
        await self._inventory.leases.verify(request.lease)
        return await self._directory.access(request.lease.host)

    async def _found(self, request: str) -> Certificate:
        found = await self._inventory.certificates.find_request(request)
        if found is None:
            raise NotFound(f"No certificate was issued for {request}.")
        return found

    async def _in_force(self, access: HostAccess) -> Certificate:
        """libvirt's own, of the set that counts there."""
        facts = await self._certificates.examine(access)
        return await self._inventory.certificates.get(
            read_certificate(facts.certificate or "").serial
        )

    async def _require_trusted(self, one: Certificate) -> None:
        """Raises Conflict if other hosts trust its CA no more."""
        authority = await self._inventory.authorities.get(one.provider, one.generation)
        if authority.state in (AuthorityState.LEAVING, AuthorityState.WITHDRAWN):
            raise Conflict(
                f"The CA {authority.subject} was replaced, and no other host trusts it any more.",
                remedy="Start it again: it gets certificates of the new one.",
            )

    async def _files(self, one: Certificate) -> CertificateFiles:
        anchors = await self._inventory.trust.of_issuer(_issuer(one))
        crl = await self._inventory.authorities.crl(one.provider, one.generation)
        return CertificateFiles(
            certificate=one.pem,
            # libvirt looks at the first certificate of a file alone: it gets the others from here.
            authorities=anchors.pem,
            crls=crl_to_pem(crl),
        )

    async def _prove(self, access: HostAccess, libvirt: Certificate) -> None:
        authorities = (await self._files(libvirt)).authorities
        answer = await self._certificates.ask(access, authorities)
        if answer.serial != libvirt.serial:
            raise Failed(
                f"libvirtd on {access.name} shows the certificate {answer.serial}, not the one "
                f"that it has ({libvirt.serial})."
            )
        if answer.lets_in:
            raise Failed(
                f"libvirtd on {access.name} lets in who has no certificate.",
                remedy="See tls_no_verify_certificate in /etc/libvirt/libvirtd.conf there, and "
                "what listens on its port 16514.",
            )


def _issuer(one: Certificate) -> tuple[str, int]:
    return one.provider, one.generation
