"""Certificates of a host's own: keys made there, certified, installed, proven, or put back."""

from temporalio import activity

from activities.certificate_policy import allowed_names
from activities.crl_delivery import give_crls, newest_crls
from activities.directory import HostDirectory
from activities.execution import uninterrupted
from contracts.certificates import (
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
from drivers.protocols import CertificateFiles, HostAccess, HostCertificates
from inventory import Inventory

# The machine is not a host, or not one any more.
NO_HOSTS = (ResourceState.CREATING, ResourceState.ERROR, ResourceState.REMOVED)


class ProvisioningActivities:
    """Each step finds its work done if it was done. All raise LeaseLost, EpochRefused,
    Unavailable."""

    def __init__(
        self, inventory: Inventory, directory: HostDirectory, certificates: HostCertificates
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._certificates = certificates

    @activity.defn(name="prepare_certificates")
    async def prepare_certificates(self, request: CertificateSet) -> CertificateRequests:
        """Have the host make the keys; they never leave it. Raises NotFound, Conflict (its state),
        CommandFailed."""
        host = await self._inventory.hosts.get(request.lease.host)
        if host.resource_state in NO_HOSTS:
            raise Conflict(f"{host.name} is {host.resource_state}: it gets no certificates.")
        key_bits = (await self._inventory.settings.resolve())[CA_KEY_SIZE]
        access = await self._access(request)
        libvirt, qemu = await uninterrupted(
            self._certificates.prepare(access, request.name, request.lease.epoch, key_bits=key_bits)
        )
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
        if not libvirt.subject.startswith(f"O=Hostler,OU={unit},"):
            raise Failed(
                f"The certificate is for {libvirt.subject}, without the unit {unit}: by that "
                "libvirtd tells hosts of its own cluster from others.",
                remedy="Have the role of the external CA add it (`ou`), or use the provider root.",
            )
        access = await self._access(request)
        await uninterrupted(self._switch(access, request, libvirt, allowed_names(unit)))

    @activity.defn(name="restore_certificates")
    async def restore_certificates(self, request: CertificateSet) -> None:
        """What the host went by before counts again; no effect if nothing has changed. Raises
        CommandFailed."""
        access = await self._access(request)
        await uninterrupted(self._certificates.restore(access, request.name, request.lease.epoch))

    @activity.defn(name="finish_certificates")
    async def finish_certificates(
        self, request: SwitchCertificatesInput
    ) -> CertificateProvisioningResult:
        """The switch stays, and is written down; the host gets the newest revocation lists."""
        libvirt, qemu = await self._found(request.libvirt), await self._found(request.qemu)
        access = await self._access(request)
        await uninterrupted(self._certificates.finish(access, request.name, request.lease.epoch))
        # The set has its own authority's list, of the moment when it was placed.
        numbers = await self._inventory.authorities.crl_numbers()
        crls = await newest_crls(self._inventory)
        await uninterrupted(give_crls(self._certificates, access, request.lease.epoch, crls))
        await self._inventory.certificate_upkeep.note_crls(numbers, lease=request.lease)
        operation = request.lease.owner.workflow_id
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

    async def _files(self, one: Certificate) -> CertificateFiles:
        authority = await self._inventory.authorities.get(one.provider, one.generation)
        crl = await self._inventory.authorities.crl(one.provider, one.generation)
        return CertificateFiles(
            certificate=one.pem,
            # libvirt looks at the first certificate of a file alone: it gets the others from here.
            authorities="".join(authority.chain),
            crls=crl_to_pem(crl),
        )

    async def _switch(
        self,
        access: HostAccess,
        request: SwitchCertificatesInput,
        libvirt: Certificate,
        allowed: tuple[str, ...],
    ) -> None:
        await self._certificates.switch(access, request.name, request.lease.epoch, allowed=allowed)
        authorities = (await self._files(libvirt)).authorities
        answer = await self._certificates.ask(access, authorities)
        if answer.serial != libvirt.serial:
            raise Failed(
                f"libvirtd on {access.name} shows the certificate {answer.serial}, not the new one "
                f"({libvirt.serial})."
            )
        if answer.lets_in:
            raise Failed(
                f"libvirtd on {access.name} lets in who has no certificate.",
                remedy="See tls_no_verify_certificate in /etc/libvirt/libvirtd.conf there, and "
                "what listens on its port 16514.",
            )
