"""Revocation lists on hosts: who lacks the newest ones, and how they get there."""

import asyncio
from datetime import timedelta
from itertools import islice

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import surprises_of, uninterrupted
from activities.leases import LeaseActivities
from contracts.certificate_upkeep import CrlDelivery, DeliverCrlsInput, HostsWithoutCrls
from contracts.certificates import crl_to_pem
from contracts.errors import HostlerError, LeaseHeld, LeaseLost, NotFound
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.settings import CA_CRL_DELIVERY_CONCURRENCY
from contracts.steps import AcquireLeaseInput
from drivers.protocols import HostAccess, HostCertificates
from inventory import Inventory

_BUSY = "another operation changes its passwords or certificates; it gets them after that"
_MOST_LISTED = 500
_MOST_CHARACTERS = 500  # of a problem, which goes into histories for each host
# A host that could not take the very same lists is tried again after that, or when it was away.
_AGAIN_AFTER = timedelta(minutes=10)


class CrlDeliveryActivities:
    """What is wrong with a host is in the result; a step fails for the inventory, and for a lease
    that is lost."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        certificates: HostCertificates,
        leases: LeaseActivities,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._certificates = certificates
        self._leases = leases

    @activity.defn(name="list_hosts_without_crls")
    async def list_hosts_without_crls(self) -> HostsWithoutCrls:
        """Hosts that do not go by the newest lists."""
        due, not_now = await self._inventory.certificate_upkeep.without_crls(
            await self._inventory.authorities.crl_numbers(), again_after=_AGAIN_AFTER
        )
        return HostsWithoutCrls(
            hosts=tuple(due), not_now=dict(islice(not_now.items(), _MOST_LISTED))
        )

    @activity.defn(name="deliver_crls")
    async def deliver_crls(self, request: DeliverCrlsInput) -> CrlDelivery:
        """Bring these hosts the newest lists, and note who has which. May be called many times.
        Raises LeaseLost."""
        settings = await self._inventory.settings.resolve()
        # The numbers first: who then gets a newer list gets it once more, never too few.
        numbers = await self._inventory.authorities.crl_numbers()
        pem = await newest_crls(self._inventory)
        slots = asyncio.Semaphore(settings[CA_CRL_DELIVERY_CONCURRENCY])
        problems: dict[str, str | None] = {}

        async def one(host: str) -> None:
            async with slots:
                problems[host] = await self._deliver(host, request.owner, numbers, pem)

        try:
            async with asyncio.TaskGroup() as group:
                for host in request.hosts:
                    group.create_task(one(host))
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        return CrlDelivery(
            delivered=tuple(host for host in request.hosts if problems[host] == ""),
            missing={host: said for host in request.hosts if (said := problems[host])},
        )

    async def _deliver(
        self, host: str, owner: Owner, numbers: dict[str, int], pem: str
    ) -> str | None:
        """What went wrong; nothing (""), or it is no host any more (None)."""
        try:
            lease = await self._acquire(host, owner)
        except LeaseHeld:
            return _BUSY
        except NotFound:
            return None
        try:
            try:
                with surprises_of(host):
                    access = await self._directory.access(host)
                    await uninterrupted(give_crls(self._certificates, access, lease.epoch, pem))
            except LeaseLost:
                raise
            except (HostlerError, TimeoutError) as error:
                problem = " ".join(str(error).split())[:_MOST_CHARACTERS] or type(error).__name__
                await self._inventory.certificate_upkeep.note_crls_missing(
                    host, numbers, problem, operation=owner.workflow_id
                )
                return problem
            await self._inventory.certificate_upkeep.note_crls(numbers, lease=lease)
            return ""
        finally:
            await self._leases.release_lease(lease)

    async def _acquire(self, host: str, owner: Owner) -> LeaseRef:
        asked = AcquireLeaseInput(
            host=host, scope=LeaseScope.TRUST, owner=owner, purpose="revocation lists"
        )
        lease = await self._leases.acquire_lease(asked)
        if activity.info().attempt > 1:
            # The host refuses what an attempt that was given up may still do, by its epoch.
            await self._leases.release_lease(_ref(lease.host, owner, lease.epoch))
            lease = await self._leases.acquire_lease(asked)
        return _ref(lease.host, owner, lease.epoch)


async def newest_crls(inventory: Inventory) -> str:
    """Those of all authorities whose certificates are in use, in PEM."""
    return "".join(
        [
            crl_to_pem(await inventory.authorities.crl(one.provider, one.generation))
            for one in await inventory.authorities.live()
            if one.crl is not None
        ]
    )


async def give_crls(
    certificates: HostCertificates, access: HostAccess, epoch: int, pem: str
) -> None:
    """Have the host go by these lists, if there are any."""
    if pem:
        await certificates.update_crls(access, epoch, pem)


def _ref(host: str, owner: Owner, epoch: int) -> LeaseRef:
    return LeaseRef(host=host, scope=LeaseScope.TRUST, owner=owner, epoch=epoch)
