"""Whose turn it is to be out of service, and the step that begins an evacuation."""

import asyncio
import time

from temporalio import activity

from activities.holders import Holders
from contracts.leases import LeaseRef
from contracts.settings import MAINTENANCE_HOSTS_OUT_MAX
from contracts.steps import AwaitTicketInput, BeginEvacuationInput, Ticket
from inventory import Inventory

_LOOK_AGAIN_S = 1.0


class TurnActivities:
    """Queue, wait, begin."""

    def __init__(self, inventory: Inventory, holders: Holders) -> None:
        self._inventory = inventory
        self._holders = holders

    @activity.defn(name="take_ticket")
    async def take_ticket(self, lease: LeaseRef) -> Ticket:
        """Queue the lease's host, or see how its turn stands. Places of operations that have ended
        are given up first; a host that is out counts, whether its operation runs or not."""
        return await self._ticket(lease)

    @activity.defn(name="await_ticket")
    async def await_ticket(self, request: AwaitTicketInput) -> Ticket:
        """Returns when the ticket differs from what was seen, or when the time is up."""
        deadline = time.monotonic() + request.within_s
        while True:
            ticket = await self._ticket(request.lease)
            if ticket != request.seen or time.monotonic() > deadline:
                return ticket
            await asyncio.sleep(_LOOK_AGAIN_S)

    @activity.defn(name="begin_evacuation")
    async def begin_evacuation(self, request: BeginEvacuationInput) -> None:
        """The host becomes `PrepareForMaintenance`, and its plan's room is set aside. Raises
        PlanOutdated, Conflict, LeaseLost."""
        await self._inventory.maintenances.begin(
            request.lease,
            request.moves,
            request.seen,
            step=f"{request.lease.epoch}/{request.step}",
            reason=request.reason,
        )

    async def _ticket(self, lease: LeaseRef) -> Ticket:
        host = await self._inventory.hosts.get(lease.host)
        for queued in await self._inventory.maintenances.tickets(host.cluster):
            if queued.owner != lease.owner and not await self._holders.runs(queued.owner):
                await self._inventory.maintenances.give_up_turn(queued.host, queued.owner)
        settings = await self._inventory.settings.resolve(cluster=host.cluster)
        most = settings[MAINTENANCE_HOSTS_OUT_MAX]
        turn = await self._inventory.maintenances.take_turn(lease, host.cluster, most)
        ahead = [await self._described(name) for name in turn.ahead]
        return Ticket(granted=turn.granted, ahead=tuple(ahead), most=most)

    async def _described(self, host: str) -> str:
        lease = await self._inventory.leases.find(host)
        return f"{host} ({lease.owner.workflow_id if lease else 'no operation is open'})"
