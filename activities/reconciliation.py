"""What hosts and ended operations have left that is not as the inventory wants it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import surprises_of
from activities.holders import Holders
from contracts.errors import Failed, LeaseLost, NotFound, Unavailable
from contracts.host_checks import RoundPlan, SweepInput, Swept
from contracts.hosts import Event, Host
from contracts.states import HostStatus
from drivers.protocols import Fence, FenceState, HostAccess, Hypervisor
from inventory import Inventory

_DIFFERS, _AGREES, _RESTORED = "fence.differs", "fence.agrees", "fence.restored"
_KINDS = (_DIFFERS, _AGREES, _RESTORED)


@dataclass(frozen=True)
class _Finding:
    """About a host's fence; `kind`: of the event that tells it."""

    host: str
    kind: str
    message: str


class ReconciliationActivities:
    """Compare, put right what is safe, tell the rest."""

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        hypervisor: Hypervisor,
        fence: Fence,
        holders: Holders,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._hypervisor = hypervisor
        self._fence = fence
        self._holders = holders

    @activity.defn(name="reconcile_fences")
    async def reconcile_fences(self, request: SweepInput) -> Swept:
        """Each host of the batch that is Up and is to be fenced, or whose turn it is: has it the
        fence that it is to have? A fence that is missing goes up again; any other difference is
        told, once. One that takes new VMs, or refuses them, otherwise than it was told, is told
        again at the end of the round. Hosts at which an operation is working are left to it."""
        plan = request.plan
        hosts = await self._inventory.host_checks.page(request.after, plan.batch)
        due = [host for host in hosts if _is_due(host, plan)]
        said = await self._inventory.events.latest([_subject(host.name) for host in due], _KINDS)
        slots = asyncio.Semaphore(plan.concurrency)

        async def reconcile(host: Host) -> _Finding | None:
            before = said.get(_subject(host.name))
            doubted = before is not None and before.kind == _DIFFERS
            async with slots:
                return await self._reconcile(host, plan.timeout, doubted=doubted)

        found = await asyncio.gather(*(reconcile(host) for host in due))
        told = await self._tell([finding for finding in found if finding is not None], said)
        return Swept(
            last=hosts[-1].name if len(hosts) == plan.batch else None,
            hosts=len(hosts),
            changed=tuple(told),
        )

    @activity.defn(name="free_abandoned")
    async def free_abandoned(self) -> None:
        """Give back what operations that have ended still hold: room on hosts, places in queues."""
        await self._holders.release_abandoned(*await self._inventory.reservations.destinations())
        for cluster in await self._inventory.topology.list_clusters():
            for queued in await self._inventory.maintenances.tickets(cluster.name):
                if not await self._holders.runs(queued.owner):
                    await self._inventory.maintenances.give_up_turn(queued.host, queued.owner)

    async def _reconcile(self, host: Host, seconds: int, *, doubted: bool) -> _Finding | None:
        """None: nothing is to be said now. `doubted`: that it was wrong was said last."""
        try:
            access = await self._directory.access(host.name)
            with surprises_of(host.name):
                async with asyncio.timeout(seconds):
                    found = await self._fence.read(access)
            await self._inventory.closings.doubt(
                host,
                closed_there=found.closed is not None,
                operation=str(activity.info().workflow_id),
            )
            if found.operation == host.fence:
                return await self._agree(host, access) if doubted else None
            if await self._is_in_work(host):
                return None
            if host.fence is None:
                return _Finding(
                    host.name,
                    _DIFFERS,
                    f"no VM can start: the host is fenced by {found.operation}, and no fence is "
                    "wanted; if that operation is not at work, rm /etc/hostler/fence on the host",
                )
            return await self._restore(host, host.fence, access, found)
        except (Unavailable, Failed, NotFound, TimeoutError) as error:
            activity.logger.info("the fence of %s can't be compared: %s", host.name, error)
            return None

    async def _agree(self, host: Host, access: HostAccess) -> _Finding:
        """What was wrong may have been the hook."""
        problem = await self._doubt(access, host.fence) if host.fence is not None else None
        if problem is not None:
            return _Finding(host.name, _DIFFERS, problem)
        return _Finding(host.name, _AGREES, f"as wanted again: {_name(host.fence)}")

    async def _is_in_work(self, host: Host) -> bool:
        """Whether an operation may be changing the fence, or has done so since it was looked up."""
        lease = await self._inventory.leases.find(host.name)
        if lease is not None and await self._holders.works(lease.owner):
            return True
        latest = await self._inventory.hosts.get(host.name)
        return (latest.fence, latest.fence_generation) != (host.fence, host.fence_generation)

    async def _restore(
        self, host: Host, wanted: str, access: HostAccess, found: FenceState
    ) -> _Finding:
        """Under the epoch of the operation that wanted it: the host refuses that if it knows a
        later one, and one that comes now has a higher epoch and the last word."""
        difference = f"wanted: {wanted}; the host has {_name(found.operation)}"
        try:
            with surprises_of(host.name):
                await self._fence.put_up(access, wanted, host.fence_generation)
        except LeaseLost as error:
            return _Finding(host.name, _DIFFERS, f"{difference}. {error}")
        problem = await self._doubt(access, wanted)
        if problem is not None:
            return _Finding(host.name, _DIFFERS, problem)
        return _Finding(host.name, _RESTORED, f"put up again: {difference}")

    async def _doubt(self, access: HostAccess, wanted: str) -> str | None:
        """Why a fence that is up may not hold, by libvirt's own word."""
        try:
            with surprises_of(access.name):
                refusal = await self._hypervisor.start_probe(access)
        except (Unavailable, Failed) as error:
            return f"the fence for {wanted} is up, libvirt does not say whether it holds: {error}"
        if refusal is not None and wanted in refusal:
            return None
        return (
            f"VMs can start: the fence for {wanted} is up and does not hold. See whether "
            "/etc/libvirt/hooks/qemu.d/hostler is there and executable, then restart libvirtd"
        )

    async def _tell(self, findings: list[_Finding], said: Mapping[str, Event]) -> list[str]:
        """Names of the hosts for which there is news; a difference is told once."""
        told = []
        operation = activity.info().workflow_id
        for finding in findings:
            subject = _subject(finding.host)
            before = said.get(subject)
            if before is not None and (before.kind, before.message) == (_DIFFERS, finding.message):
                continue
            await self._inventory.events.record(
                finding.kind, subject, finding.message, operation=operation, actor=str(operation)
            )
            told.append(finding.host)
        return told


def _is_due(host: Host, plan: RoundPlan) -> bool:
    def in_this_round(at: datetime | None) -> bool:
        return at is not None and at >= plan.started_at

    up = host.status is HostStatus.UP and in_this_round(host.checked_at)
    return up and (host.fence is not None or in_this_round(host.read_at))


def _subject(host: str) -> str:
    return f"host/{host}"


def _name(fence: str | None) -> str:
    return fence or "none"
