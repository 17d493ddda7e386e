"""A cluster's hosts, which take and give VMs by TLS only from some moment on."""

from temporalio import activity

from activities.controller import ControllerCertificates, trusted
from activities.directory import HostDirectory
from activities.restarts import Restarts
from contracts.certificates import PlanSecuringInput, SecuringPlan
from contracts.errors import Conflict, Failed
from contracts.hosts import Host
from contracts.leases import LeaseRef
from contracts.settings import CA_CLUSTER_PARALLEL, CA_CLUSTER_WAIT
from contracts.states import TlsState
from drivers.protocols import ClientCertificate, HostAccess, HostCertificates
from inventory import Inventory


class SecuringActivities:
    """Each step may be done again.

    Args:
        page: how many hosts a workflow works on before it continues as new.
    """

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        certificates: HostCertificates,
        own: ControllerCertificates,
        restarts: Restarts,
        *,
        page: int = 100,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._certificates = certificates
        self._own = own
        self._restarts = restarts
        self._page = page

    @activity.defn(name="plan_securing")
    async def plan_securing(self, request: PlanSecuringInput) -> SecuringPlan:
        """Which hosts there are, and how they go by TLS now. Raises NotFound; Conflict if there is
        none."""
        zone, _, _ = await self._inventory.topology.get_with_parents(request.cluster)
        hosts = await self._hosts(request.cluster)
        if not hosts:
            raise Conflict(f"{request.cluster} has no hosts.")
        settings = await self._inventory.settings.resolve(cluster=request.cluster)
        return SecuringPlan(
            zone=zone.name,
            hosts={host.name: host.tls for host in hosts},
            parallel=settings[CA_CLUSTER_PARALLEL],
            wait_s=settings[CA_CLUSTER_WAIT],
            page=self._page,
        )

    @activity.defn(name="secure_host")
    async def secure_host(self, lease: LeaseRef) -> None:
        """Have the host's libvirt refuse what is not by TLS, and prove that it lets Hostler in by
        its own certificate, and nobody without. VMs run on.

        Raises Conflict while another host of its cluster could not give it a VM any more; HostBusy
        while VMs migrate; CommandFailed, TlsRefused, Failed, LeaseLost, EpochRefused.
        """
        await self._inventory.leases.verify(lease)
        host = await self._inventory.hosts.get(lease.host)
        others = [one for one in await self._hosts(host.cluster) if one.name != host.name]
        bare = [one.name for one in others if not one.tls_in_service.can]
        if not host.tls.can:
            bare.append(host.name)
        if bare:
            raise Conflict(
                f"{host.name} is not secured: {', '.join(bare)} of {host.cluster} "
                f"{'has' if len(bare) == 1 else 'have'} no certificates, and could not give or "
                "take its VMs any more.",
                remedy=f"hostler cert secure {host.cluster}",
            )
        operation = lease.owner.workflow_id
        access = await self._directory.access(host.name)
        await self._secure(access, lease)
        await self._inventory.hosts.set_tls(
            host.name,
            TlsState.SECURED,
            reason="it takes and gives VMs by TLS only",
            operation=operation,
            actor=operation,
            lease=lease,
        )

    async def _hosts(self, cluster: str) -> list[Host]:
        return [
            host for host in await self._inventory.hosts.list(cluster=cluster) if host.is_machine
        ]

    async def _secure(self, access: HostAccess, lease: LeaseRef) -> None:
        own = await self._own.current(lease.owner.workflow_id)
        authorities = trusted(await self._inventory.authorities.trusted())
        # Before anything changes: what is broken by now is not made worse.
        await self._prove(access, authorities, own)

        async def secure(restart: bool) -> None:
            await self._certificates.secure(access, lease.epoch, restart=restart)

        await self._restarts.change(lease, secure)
        await self._prove(access, authorities, own)

    async def _prove(self, access: HostAccess, authorities: str, own: ClientCertificate) -> None:
        if not (await self._certificates.ask(access, authorities, own)).lets_in:
            raise Failed(
                f"libvirtd on {access.name} does not let Hostler in by its own certificate.",
                remedy=f"hostler cert provision {access.name}",
            )
        if (await self._certificates.ask(access, authorities)).lets_in:
            raise Failed(f"libvirtd on {access.name} lets in who has no certificate.")
