"""Looking at all hosts: cheaply, so many at a time, written down as it is seen."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from zlib import crc32

from temporalio import activity

from activities.bmcs import BmcDirectory, ask
from activities.directory import HostDirectory
from activities.execution import surprises_of
from contracts.errors import Conflict, Failed, InvalidInput, NotFound, Unavailable
from contracts.host_checks import HostSighting, Lane, Look, RoundPlan, SweepInput, Swept
from contracts.host_status import PeerWord, Reach, Seen
from contracts.hosts import Host, HostFacts
from contracts.power import PowerState
from contracts.settings import (
    HOST_CHECK_BATCH,
    HOST_CHECK_CONCURRENCY,
    HOST_CHECK_INTERVAL,
    HOST_CHECK_MISSED_MAX,
    HOST_CHECK_TIMEOUT,
    OOBM_SYNC_INTERVAL,
)
from contracts.states import HostStatus, ResourceState
from contracts.steps import HostRef
from drivers.errors import ConnectionRefused, HostKeyChanged, LoginRefused
from drivers.protocols import Fence, HostAccess, Hypervisor, Neighbours, RemoteShell
from inventory import Inventory
from inventory.errors import MasterKeyMissing
from inventory.host_checks import NOT_CHECKED

T = TypeVar("T")

# So many hosts of its cluster are asked for one that is absent.
_PEERS_ASKED = 2


class HostCheckActivities:
    """Look, judge, ask the neighbours.

    libvirt is asked first, on the connection that is kept: that one call shows all that a healthy
    host has to show. Only where it brings no answer does SSH tell why.
    """

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        hypervisor: Hypervisor,
        shell: RemoteShell,
        fence: Fence,
        neighbours: Neighbours,
        bmcs: BmcDirectory,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._hypervisor = hypervisor
        self._shell = shell
        self._fence = fence
        self._neighbours = neighbours
        self._bmcs = bmcs

    @activity.defn(name="plan_host_check")
    async def plan_host_check(self) -> RoundPlan:
        """The settings of now, for the whole round."""
        return await self._plan()

    @activity.defn(name="check_hosts")
    async def check_hosts(self, request: SweepInput) -> Swept:
        """Look at each host of the batch that is in the lane and was not looked at since the round
        began.

        A host that hangs costs its own time-out. What was seen is written as it comes, so another
        attempt goes on where this one ended; the heartbeat says how many are done.
        """
        plan = request.plan
        hosts, waiting = await self._batch(request)
        to_hear = {
            host.name: host.cluster
            for host in waiting
            if plan.is_full_for(host) or host.peers_reach is None
        }
        peers = {cluster: await self._peers(cluster, None) for cluster in set(to_hear.values())}
        # Two rounds that were begun by hand are one.
        apart = timedelta(seconds=plan.interval / 2)
        seen: Counter[Seen] = Counter()
        changed: list[str] = []

        async def look(host: Host) -> Look | None:
            try:
                look = await self._look(host, plan.timeout, in_full=plan.is_full_for(host))
            except MasterKeyMissing as error:
                activity.logger.warning("%s can't be looked at from here: %s", host.name, error)
                return None
            if look is None or host.name not in to_hear or look.seen is not Seen.ANSWERED:
                return look
            words = await self._hear(host, peers[host.cluster], plan)
            return look.model_copy(update={"words": words})

        async with aclosing(_in_parallel(look, waiting, plan.concurrency)) as ready:
            async for several in ready:
                looks = [one for one in several if one is not None]
                changes = await self._inventory.host_checks.record(
                    looks, operation=_operation(), misses_apart=apart
                )
                changed += [change.host for change in changes]
                seen.update(one.seen for one in looks)
                activity.heartbeat(seen.total())
        return Swept(
            last=_last(hosts, plan),
            hosts=len(hosts) if request.lane is Lane.ANSWERED else 0,
            seen=dict(seen),
            changed=tuple(changed),
        )

    @activity.defn(name="investigate_hosts")
    async def investigate_hosts(self, request: SweepInput) -> Swept:
        """Ask peers about hosts that have missed enough checks, if they are absent at this very
        moment too. Peers are hosts of the same cluster that are Up and answered in this round:
        while Hostler itself is cut off there are none, and nobody goes down."""
        plan = request.plan
        hosts = await self._inventory.host_checks.absent(
            plan.missed_max, plan.started_at, request.after, plan.batch
        )
        peers = {
            cluster: await self._peers(cluster, plan.started_at)
            for cluster in {host.cluster for host in hosts}
        }
        changed: list[str] = []

        async def investigate(host: Host) -> list[str]:
            return await self._investigate(host, peers[host.cluster], plan)

        async with aclosing(_in_parallel(investigate, hosts, plan.concurrency)) as ready:
            async for several in ready:
                changed += [name for names in several for name in names]
                activity.heartbeat(len(changed))
        return Swept(last=_last(hosts, plan), hosts=len(hosts), changed=tuple(changed))

    @activity.defn(name="look_at_host")
    async def look_at_host(self, request: HostRef) -> HostSighting:
        """Look at one host, out of turn and in full. A miss is told and not counted. Raises
        NotFound, Conflict (an addition is at work on it, or has failed), MasterKeyMissing."""
        host = await self._inventory.hosts.get(request.host)
        if host.resource_state in NOT_CHECKED:
            raise Conflict(f"{host.name} is {host.resource_state}: it is not checked.")
        if host.being_reinstalled:
            raise Conflict(f"{host.name} is being re-installed: it is not checked.")
        look = await self._look(host, (await self._plan()).timeout, in_full=True)
        if look is None:
            raise NotFound(f"There is no host {request.host!r}.")
        await self._inventory.host_checks.record([look], operation=_operation(), misses_apart=None)
        host = await self._inventory.hosts.get(request.host)
        return HostSighting(
            host=host.name,
            seen=look.seen,
            problem=look.problem,
            status=host.status,
            status_reason=host.status_reason,
            missed_checks=host.missed_checks,
            checked_at=look.began_at,
            usage=look.usage,
        )

    async def _batch(self, request: SweepInput) -> tuple[list[Host], list[Host]]:
        """All hosts that it is about, and those that are to be looked at."""
        plan, checks = request.plan, self._inventory.host_checks
        if request.lane is Lane.MISSED:
            missed = await checks.missed(plan.started_at, request.after, plan.batch)
            return missed, missed
        hosts = await checks.page(request.after, plan.batch)
        return hosts, [
            host
            for host in hosts
            if host.missed_checks == 0
            and (host.checked_at is None or host.checked_at < plan.started_at)
        ]

    async def _plan(self) -> RoundPlan:
        settings = await self._inventory.settings.resolve()
        return RoundPlan(
            started_at=datetime.now(UTC),
            interval=settings[HOST_CHECK_INTERVAL],
            batch=settings[HOST_CHECK_BATCH],
            concurrency=settings[HOST_CHECK_CONCURRENCY],
            timeout=settings[HOST_CHECK_TIMEOUT],
            missed_max=settings[HOST_CHECK_MISSED_MAX],
        )

    # --- one look -------------------------------------------------------------------------------

    async def _look(self, host: Host, seconds: int, *, in_full: bool) -> Look | None:
        """What the host shows; None: it is not in the inventory any more. `in_full`: with its
        facts; so is one that comes back. Raises MasterKeyMissing."""
        began_at = datetime.now(UTC)
        try:
            access = await self._directory.access(host.name)
        except NotFound:
            return None
        except MasterKeyMissing:  # that says nothing of the host
            raise
        except Failed as error:
            return _seen(host, began_at, Seen.LOGIN_REFUSED, error)
        try:
            with surprises_of(host.name):
                async with asyncio.timeout(seconds):
                    # In this order: with the fence up, no VM comes after they were counted.
                    fenced = await self._is_fenced(host, access)
                    usage = await self._hypervisor.usage(access)
        except LoginRefused as error:
            return _seen(host, began_at, Seen.LOGIN_REFUSED, error)
        except HostKeyChanged as error:
            return _seen(host, began_at, Seen.KEY_CHANGED, error)
        except (Unavailable, Failed) as error:
            return await self._look_by_ssh(host, access, began_at, seconds, error.message)
        except TimeoutError:
            problem = f"no answer within {seconds} s"
            return await self._look_by_ssh(host, access, began_at, seconds, problem)
        return Look(
            host=host.name,
            began_at=began_at,
            seen=Seen.ANSWERED,
            usage=usage,
            facts=await self._facts(access, seconds)
            if in_full or host.status is not HostStatus.UP
            else None,
            emptied=fenced and usage.vms == 0,
            in_full=in_full,
        )

    async def _is_fenced(self, host: Host, access: HostAccess) -> bool:
        """Only asked where the rules want to know: of a host that was taken out as it was."""
        if (host.resource_state, host.status) != (ResourceState.MAINTENANCE, HostStatus.DOWN):
            return False
        return (await self._fence.read(access)).operation is not None

    async def _facts(self, access: HostAccess, seconds: int) -> HostFacts | None:
        try:
            with surprises_of(access.name):
                async with asyncio.timeout(seconds):
                    return await self._hypervisor.facts(access)
        except (Unavailable, Failed, TimeoutError) as error:
            activity.logger.warning("%s answers and tells no facts: %s", access.name, error)
            return None

    async def _look_by_ssh(
        self, host: Host, access: HostAccess, began_at: datetime, seconds: int, problem: str
    ) -> Look:
        """libvirt brought no answer (`problem`): does the host?"""
        try:
            with surprises_of(host.name):
                await self._shell.run(access, ["true"], timeout=seconds)
        except HostKeyChanged as error:
            return _seen(host, began_at, Seen.KEY_CHANGED, error)
        except ConnectionRefused as error:
            return _seen(host, began_at, Seen.REFUSED, error)
        except Unavailable as error:
            return _seen(host, began_at, Seen.UNREACHABLE, error)
        except Failed as error:  # LoginRefused among them; or its pinned key can't be read
            return _seen(host, began_at, Seen.LOGIN_REFUSED, error)
        return Look(
            host=host.name, began_at=began_at, seen=Seen.LIBVIRT_SILENT, problem=_words(problem)
        )

    # --- what the neighbours say ----------------------------------------------------------------

    async def _investigate(self, host: Host, peers: Sequence[Host], plan: RoundPlan) -> list[str]:
        """Names of hosts whose status is another one now."""
        began_at = datetime.now(UTC)
        try:
            access = await self._directory.access(host.name)
        except (NotFound, Failed):
            return []
        problem = await self._absence(access, plan.timeout)
        if problem is None:
            return []
        words, power = await asyncio.gather(
            self._hear(host, peers, plan), self._ask_bmc(host, plan.timeout)
        )
        changes = await self._inventory.host_checks.conclude(
            host, problem, words, began_at=began_at, operation=_operation(), power=power
        )
        return [change.host for change in changes]

    async def _ask_bmc(self, host: Host, seconds: int) -> PowerState | None:
        """What its BMC says at this moment; None: it has none, or that is left alone, or says
        nothing."""
        known = host.power
        if known is None or known.state is PowerState.DISABLED:
            return None
        if known.next_try_at is not None and known.next_try_at > datetime.now(UTC):
            return None
        try:
            bmc = await self._bmcs.find(host.name)
        except (NotFound, Failed, Conflict, InvalidInput) as error:
            activity.logger.info("the BMC of %s can't be asked: %s", host.name, error)
            return None
        seen = await self._inventory.power.of_its_own(await ask(bmc, seconds))
        settings = await self._inventory.settings.resolve()
        await self._inventory.power.record(
            [seen],
            interval=timedelta(seconds=settings[OOBM_SYNC_INTERVAL]),
            operation=_operation(),
        )
        return seen.state if seen.problem is None else None

    async def _absence(self, access: HostAccess, seconds: int) -> str | None:
        """Why the host can't be reached; None: it answers, whatever it says."""
        try:
            with surprises_of(access.name):
                await self._shell.run(access, ["true"], timeout=seconds)
        except Unavailable as error:
            if not isinstance(error, ConnectionRefused):
                return _words(error.message)
            activity.logger.info("%s is not absent: %s", access.name, error)
        except Failed as error:
            activity.logger.info("%s is not absent: %s", access.name, error)
        return None

    async def _hear(
        self, host: Host, peers: Sequence[Host], plan: RoundPlan
    ) -> tuple[PeerWord, ...]:
        return tuple(
            await asyncio.gather(
                *(self._ask(peer, host, plan) for peer in _asked_about(host, peers))
            )
        )

    async def _peers(self, cluster: str, since: datetime | None) -> list[Host]:
        """Who may be asked: hosts of the cluster that are Up and answered, since then."""
        return [
            peer
            for peer in await self._inventory.hosts.list(cluster=cluster, status=HostStatus.UP)
            if peer.missed_checks == 0
            and peer.resource_state not in NOT_CHECKED
            and (since is None or (peer.checked_at is not None and peer.checked_at >= since))
        ]

    async def _ask(self, peer: Host, host: Host, plan: RoundPlan) -> PeerWord:
        try:
            access = await self._directory.access(peer.name)
            with surprises_of(peer.name):
                reach = await self._neighbours.reach(
                    access, host.address, host.ssh_port, plan.timeout
                )
        except (Unavailable, Failed, NotFound) as error:
            activity.logger.info("%s can't tell of %s: %s", peer.name, host.name, error)
            reach = Reach.UNKNOWN
        return PeerWord(peer=peer.name, reach=reach)


def _asked_about(host: Host, peers: Sequence[Host]) -> list[Host]:
    """For each host others, so that not all ask the same two."""
    others = [peer for peer in peers if peer.name != host.name]
    others.sort(key=lambda peer: crc32(f"{host.name}/{peer.name}".encode()))
    return others[:_PEERS_ASKED]


async def _in_parallel(
    work: Callable[[Host], Awaitable[T]], hosts: Sequence[Host], concurrency: int
) -> AsyncGenerator[list[T], None]:
    """Results as they come, several at a time: what has ended while the last ones were used."""
    slots = asyncio.Semaphore(concurrency)

    async def one(host: Host) -> T:
        async with slots:
            return await work(host)

    tasks = {asyncio.create_task(one(host)) for host in hosts}
    try:
        while tasks:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            yield [task.result() for task in done]
    finally:
        for task in tasks:
            task.cancel()


def _seen(host: Host, began_at: datetime, seen: Seen, error: Unavailable | Failed) -> Look:
    return Look(host=host.name, began_at=began_at, seen=seen, problem=_words(error.message))


def _words(message: str) -> str:
    """Without the full stop: more of the sentence comes after it."""
    return message.rstrip(".")


def _last(hosts: Sequence[Host], plan: RoundPlan) -> str | None:
    return hosts[-1].name if len(hosts) == plan.batch else None


def _operation() -> str:
    return activity.info().workflow_id or "host-check"
