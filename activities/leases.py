"""Leases: acquired in the inventory, taken over from operations that have ended."""

import asyncio
import time
from collections.abc import Sequence

from temporalio import activity

from activities.holders import Holders
from contracts.errors import LeaseHeld
from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
from contracts.steps import AcquireLeaseInput, AwaitLeaseInput
from inventory import Inventory

_AT_A_TIME = 500  # hosts
_POLL_S = 1.0


class LeaseActivities:
    """Acquire, take over, release."""

    def __init__(self, inventory: Inventory, holders: Holders) -> None:
        self._inventory = inventory
        self._holders = holders

    @activity.defn(name="acquire_lease")
    async def acquire_lease(self, request: AcquireLeaseInput) -> Lease:
        """Take the lease; take it over from a holder whose workflow is closed.

        Idempotent by owner. Raises NotFound (unknown host), LeaseHeld (with the holder) while the
        holder's workflow runs, Unavailable when Temporal can't tell.
        """
        leases = self._inventory.leases
        if request.known:
            await self._inventory.hosts.get(request.host)
        try:
            return await leases.acquire(request.host, request.scope, request.owner, request.purpose)
        except LeaseHeld as held:
            holder = Owner.model_validate(held.details["holder"])
            if await self._holders.runs(holder):
                raise
        return await leases.acquire(
            request.host, request.scope, request.owner, request.purpose, takeover_from=holder
        )

    async def acquire_all(
        self, hosts: Sequence[str], scope: LeaseScope, owner: Owner, purpose: str
    ) -> list[Lease]:
        """The same for many hosts: all their leases, by name, or none."""
        there: set[str] = set()
        for start in range(0, len(hosts), _AT_A_TIME):
            there |= {*await self._inventory.hosts.logins(hosts[start : start + _AT_A_TIME])}
        for unknown in sorted({*hosts} - there):
            await self._inventory.hosts.get(unknown)  # raises what there is to say
        ended: set[Owner] = set()
        while True:
            try:
                return await self._inventory.leases.acquire_all(
                    hosts, scope, owner, purpose, takeover_from=ended
                )
            except LeaseHeld as held:
                holder = Owner.model_validate(held.details["holder"])
                if await self._holders.runs(holder):
                    raise
                ended.add(holder)

    @activity.defn(name="await_lease")
    async def await_lease(self, request: AwaitLeaseInput) -> Lease:
        """The same, after whoever holds it now. Raises LeaseHeld when that takes too long."""
        deadline = time.monotonic() + request.within_s
        while True:
            try:
                return await self.acquire_lease(request.acquire)
            except LeaseHeld:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(_POLL_S)

    async def runs(self, owner: Owner) -> bool:
        """Whether that operation is still open. Raises Unavailable when Temporal can't tell."""
        return await self._holders.runs(owner)

    @activity.defn(name="release_lease")
    async def release_lease(self, lease: LeaseRef) -> None:
        """Give the lease back with everything reserved under it, and the place in the queue; no
        effect if it is gone."""
        await self.release_all([lease])

    async def release_all(self, leases: Sequence[LeaseRef]) -> None:
        """The same of many."""
        for lease in leases:
            # Reservations carry an epoch, of the lease that says where VMs may run.
            if lease.scope is LeaseScope.PLACEMENT:
                await self._inventory.reservations.release_all(lease)
                await self._inventory.maintenances.give_up_turn(lease.host, lease.owner)
        await self._inventory.leases.release_all(leases)
