"""Revocation lists and trusted CAs on hosts: who lacks the newest ones, and how they get there."""

import asyncio
from datetime import timedelta
from itertools import islice

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import surprises_of, uninterrupted
from activities.leases import LeaseActivities
from contracts.certificate_upkeep import CrlDelivery, DeliverCrlsInput, HostsWithoutCrls
from contracts.certificates import concerns, crl_to_pem
from contracts.errors import HostlerError, LeaseHeld, LeaseLost, NotFound
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.settings import CA_CRL_DELIVERY_CONCURRENCY
from contracts.steps import AcquireLeaseInput
from drivers.protocols import HostAccess, HostCertificates
from inventory import Inventory
from inventory.trust import HostAnchors

_BUSY = "another operation changes its passwords or certificates; it gets them after that"
_MOST = 500
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
        """Hosts that do not go by the newest lists, or do not trust just the CAs that they are
        to."""
        due, not_now = await self._inventory.certificate_upkeep.without_crls(
            await self._inventory.authorities.crl_numbers(), again_after=_AGAIN_AFTER
        )
        strange, strange_not_now = await self._inventory.trust.without(again_after=_AGAIN_AFTER)
        hosts = sorted({*due, *strange})
        not_now |= {host: why for host, why in strange_not_now.items() if host not in not_now}
        return HostsWithoutCrls(
            hosts=tuple(hosts),
            not_now=dict(
                islice(((host, why) for host, why in not_now.items() if host not in hosts), _MOST)
            ),
        )

    @activity.defn(name="deliver_crls")
    async def deliver_crls(self, request: DeliverCrlsInput) -> CrlDelivery:
        """Have these hosts trust the CAs that they are to, and bring them the newest lists; note
        who has which. May be called many times. Raises LeaseLost."""
        settings = await self._inventory.settings.resolve()
        lists = _ListsByUnit(self._inventory)
        slots = asyncio.Semaphore(settings[CA_CRL_DELIVERY_CONCURRENCY])
        problems: dict[str, str | None] = {}

        async def one(host: str) -> None:
            async with slots:
                problems[host] = await self._deliver(host, request.owner, lists)

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

    async def _deliver(self, host: str, owner: Owner, lists: "_ListsByUnit") -> str | None:
        """What went wrong; nothing (""), or it is no host any more (None)."""
        try:
            numbers, pem = await lists.of(host)
            lease = await self._acquire(host, owner)
        except LeaseHeld:
            return _BUSY
        except NotFound:
            return None
        try:
            # First the CAs: a list of one that the host does not know yet is of no use to it.
            problems = (await self._trust(lease), await self._tell_revoked(lease, numbers, pem))
            return " ".join(dict.fromkeys(one for one in problems if one))[:_MOST_CHARACTERS]
        finally:
            await self._leases.release_lease(lease)

    async def _trust(self, lease: LeaseRef) -> str:
        """What went wrong, or nothing.

        What it is to trust is read while the lease is held: so what is noted of a host never is
        older than what somebody else has noted before.
        """
        host, trust = lease.host, self._inventory.trust
        wanted = await trust.wanted(host)
        if not wanted.names or await trust.of_host(host) == wanted.names:
            return ""
        try:
            with surprises_of(host):
                access = await self._directory.access(host)
                await uninterrupted(give_trust(self._certificates, access, lease.epoch, wanted))
        except LeaseLost:
            raise
        except (HostlerError, TimeoutError) as error:
            problem = _in_words(error)
            await trust.note_missing(host, wanted.names, problem, operation=lease.owner.workflow_id)
            return problem
        await trust.note(wanted.names, lease=lease)
        return ""

    async def _tell_revoked(self, lease: LeaseRef, numbers: dict[str, int], pem: str) -> str:
        """What went wrong, or nothing."""
        host = lease.host
        try:
            with surprises_of(host):
                access = await self._directory.access(host)
                await uninterrupted(give_crls(self._certificates, access, lease.epoch, pem))
        except LeaseLost:
            raise
        except (HostlerError, TimeoutError) as error:
            problem = _in_words(error)
            await self._inventory.certificate_upkeep.note_crls_missing(
                host, numbers, problem, operation=lease.owner.workflow_id
            )
            return problem
        await self._inventory.certificate_upkeep.note_crls(numbers, lease=lease)
        return ""

    async def _acquire(self, host: str, owner: Owner) -> LeaseRef:
        asked = AcquireLeaseInput(
            host=host,
            scope=LeaseScope.TRUST,
            owner=owner,
            purpose="its CAs and revocation lists",
        )
        lease = await self._leases.acquire_lease(asked)
        if activity.info().attempt > 1:
            # The host refuses what an attempt that was given up may still do, by its epoch.
            await self._leases.release_lease(_ref(lease.host, owner, lease.epoch))
            lease = await self._leases.acquire_lease(asked)
        return _ref(lease.host, owner, lease.epoch)


async def newest_crls(inventory: Inventory, unit: str) -> str:
    """Those of all authorities whose certificates are in use and that concern hosts of that unit,
    in PEM."""
    return "".join(
        [
            crl_to_pem(await inventory.authorities.crl(one.provider, one.generation))
            for one in await inventory.authorities.live()
            if one.crl is not None and concerns(one.provider, unit)
        ]
    )


class _ListsByUnit:
    """The newest lists, and their numbers, for hosts; each unit's are read once."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._found: dict[str, tuple[dict[str, int], str]] = {}
        self._reading = asyncio.Lock()

    async def of(self, host: str) -> tuple[dict[str, int], str]:
        """Raises NotFound."""
        unit = await self._inventory.certificates.unit(host)
        async with self._reading:
            if unit not in self._found:
                # The numbers first: who then gets a newer list gets it once more, never too few.
                numbers = await self._inventory.authorities.crl_numbers(unit)
                self._found[unit] = numbers, await newest_crls(self._inventory, unit)
        return self._found[unit]


async def give_crls(
    certificates: HostCertificates, access: HostAccess, epoch: int, pem: str
) -> None:
    """Have the host go by these lists, if there are any."""
    if pem:
        await certificates.update_crls(access, epoch, pem)


async def give_trust(
    certificates: HostCertificates, access: HostAccess, epoch: int, anchors: HostAnchors
) -> None:
    """Have the host trust these, and no others."""
    await certificates.update_trust(
        access, epoch, libvirt=anchors.libvirt.pem, qemu=anchors.qemu.pem
    )


def _in_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MOST_CHARACTERS] or type(error).__name__


def _ref(host: str, owner: Owner, epoch: int) -> LeaseRef:
    return LeaseRef(host=host, scope=LeaseScope.TRUST, owner=owner, epoch=epoch)
