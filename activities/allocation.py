"""Whether hosts take new VMs: set in the inventory, told to the hosts, proven through libvirt."""

import asyncio

from temporalio import activity

from activities.directory import HostDirectory
from activities.execution import surprises_of, uninterrupted
from contracts.allocation import (
    AllocationLevel,
    HostsBelow,
    HostsUntold,
    SetAllocationInput,
    TellHostsInput,
    TellHostsResult,
    UntoldHost,
)
from contracts.errors import Conflict, Failed, HostlerError, NotFound
from contracts.states import ResourceState
from drivers.errors import FenceFailed
from drivers.protocols import Fence, HostAccess, Hypervisor, refused_as_closed
from inventory import Inventory
from inventory.closings import Closing, require_in_service

_AT_A_TIME = 20
_MAX_REASON = 300


class AllocationActivities:
    """What AllocationState does, and whoever tells hosts that were away.

    Args:
        at_a_time: hosts that are being told at any moment, per activity.
    """

    def __init__(
        self,
        inventory: Inventory,
        directory: HostDirectory,
        fence: Fence,
        hypervisor: Hypervisor,
        *,
        at_a_time: int = _AT_A_TIME,
    ) -> None:
        self._inventory = inventory
        self._directory = directory
        self._fence = fence
        self._hypervisor = hypervisor
        self._at_a_time = at_a_time

    @activity.defn(name="set_allocation")
    async def set_allocation(self, request: SetAllocationInput) -> HostsBelow:
        """Change the state, with its event: from then on the planner refuses, or takes, hosts
        below. No effect if it is so already.

        Returns the hosts to be told. Raises NotFound; Conflict for a host that is not in service:
        its maintenance knows already what it gives back.
        """
        if request.level is AllocationLevel.HOST:
            await self._set_host_state(request)
        else:
            set_state = {
                AllocationLevel.ZONE: self._inventory.topology.set_zone_state,
                AllocationLevel.POD: self._inventory.topology.set_pod_state,
                AllocationLevel.CLUSTER: self._inventory.topology.set_cluster_state,
            }[request.level]
            await set_state(
                request.name,
                request.allocation_state,
                actor=request.operation,
                operation=request.operation,
                reason=request.reason,
            )
        below = await self._inventory.closings.hosts_below(request.level, request.name)
        return HostsBelow(hosts=tuple(below))

    @activity.defn(name="list_untold_hosts")
    async def list_untold_hosts(self) -> HostsUntold:
        """Hosts that were away when they were to be told, and are Up now."""
        return HostsUntold(hosts=tuple(await self._inventory.hosts.untold()))

    @activity.defn(name="tell_hosts")
    async def tell_hosts(self, request: TellHostsInput) -> TellHostsResult:
        """Close each host or reopen it, as the inventory wants it at that moment, and prove it.

        May be called many times, by several at once. An attempt goes on where the last one
        stopped, and tries again those that could not be told. One that is not in service (any
        more) is in neither list. Raises Unavailable only for the inventory: what is wrong with a
        host is in the result.
        """
        begin = _cursor()
        pending = await self._inventory.closings.pending(request.hosts[:begin])
        outcomes: dict[str, str | None] = {
            host: None for host in request.hosts[:begin] if host not in pending
        }
        slots = asyncio.Semaphore(self._at_a_time)
        finished = [host in outcomes for host in request.hosts]

        async def tell(number: int, host: str) -> None:
            async with slots:
                try:
                    outcomes[host] = await uninterrupted(self._tell(host))
                except (NotFound, Conflict) as error:
                    activity.logger.info("%s is not told: %s", host, error)
            finished[number] = True
            # All before it are done.
            activity.heartbeat(finished.index(False) if False in finished else len(finished))

        try:
            async with asyncio.TaskGroup() as group:
                for number, host in enumerate(request.hosts):
                    if not finished[number]:
                        group.create_task(tell(number, host))
        except ExceptionGroup as several:
            raise several.exceptions[0] from several
        return TellHostsResult(
            told=tuple(host for host in request.hosts if outcomes.get(host, "") is None),
            untold=tuple(
                UntoldHost(host=host, reason=reason)
                for host in request.hosts
                if (reason := outcomes.get(host)) is not None
            ),
        )

    async def _set_host_state(self, request: SetAllocationInput) -> None:
        host = await self._inventory.hosts.get(request.name)
        target = ResourceState(request.allocation_state.value)
        if host.resource_state is target:
            return
        require_in_service(host)
        await self._inventory.hosts.change_state(
            host.name,
            expected=frozenset({ResourceState.ENABLED, ResourceState.DISABLED}),
            target=target,
            operation=request.operation,
            step=request.step,
            actor=request.operation,
            reason=request.reason or "no reason given",
        )

    # --- one host -------------------------------------------------------------------------------

    async def _tell(self, host: str) -> str | None:
        """None when the host was told what is wanted, else why it could not be."""
        closings, info = self._inventory.closings, activity.info()
        operation = info.workflow_id or info.activity_id
        while True:
            closing = await closings.decide(host, operation=operation)
            problem = await self._problem(host, closing)
            if problem is None:
                if await closings.record(host, closing, operation=operation):
                    return None
            elif await closings.decide(host, operation=operation) == closing:
                return problem
            # The inventory wants something else by now: that is told.

    async def _problem(self, host: str, closing: Closing) -> str | None:
        """Tell it once."""
        try:
            access = await self._directory.access(host)
        except Failed as error:  # its credential can't be read
            return str(error)[:_MAX_REASON]
        try:
            with surprises_of(host):
                # An older hook knows nothing of closed hosts.
                await self._fence.refresh(access)
                if closing.because is None:
                    await self._fence.reopen(access, closing.generation)
                else:
                    await self._fence.close(access, closing.because, closing.generation)
                await self._prove(access, closing.because)
        except HostlerError as error:
            return str(error)[:_MAX_REASON]
        return None

    async def _prove(self, access: HostAccess, because: str | None) -> None:
        """By a VM that was not there before. Raises FenceFailed."""
        refusal = await self._hypervisor.start_probe(access)
        if refusal is not None and not refused_as_closed(refusal):
            # The fence of an operation refuses it whatever else holds: only the host's files tell.
            if (await self._fence.read(access)).closed != because:
                raise FenceFailed(f"{access.name} does not keep what it was told.")
        elif because is None and refusal is not None:
            raise FenceFailed(f"{access.name} was reopened, yet libvirt refuses a VM: {refusal}")
        elif because is not None and (refusal is None or because not in refusal):
            raise FenceFailed(
                f"{access.name} was closed, yet libvirt "
                + ("started a new VM." if refusal is None else f"answered {refusal!r}."),
                remedy="Its libvirtd does not call /etc/libvirt/hooks/qemu.d/hostler: restart it.",
            )


def _cursor() -> int:
    """How many of the hosts, from the first on, an earlier attempt has dealt with."""
    details = activity.info().heartbeat_details
    return int(details[0]) if details else 0
