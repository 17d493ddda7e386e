"""Restarts of libvirtd, which would break off migrations: none runs meanwhile, and none begins."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

from temporalio import activity

from activities.execution import uninterrupted
from activities.holders import Holders
from activities.leases import LeaseActivities
from contracts.leases import LeaseRef, LeaseScope
from contracts.steps import AcquireLeaseInput
from drivers.errors import HostBusy, RestartNeeded
from inventory import Inventory

T = TypeVar("T")

# Migrations that want to begin wait as long: the next attempt lets them.
_WITHIN_S = 120.0
_LOOK_AGAIN_S = 1.0


class Restarts:
    """Makes room for them.

    Args:
        within: seconds that migrations are waited for.
    """

    def __init__(
        self, inventory: Inventory, holders: Holders, *, within: float = _WITHIN_S
    ) -> None:
        self._inventory = inventory
        self._holders = holders
        self._leases = LeaseActivities(inventory, holders)
        self._within = within

    async def change(
        self, lease: LeaseRef, change: Callable[[bool], Coroutine[None, None, T]]
    ) -> T:
        """Have something changed on the host of `lease` to its end: without a restart if that will
        do (`change(False)`), else when no migration from or to it is under way. Raises what
        `change` raises; HostBusy when migrations take too long, LeaseHeld, LeaseLost."""
        try:
            done = await uninterrupted(change(False))
        except RestartNeeded:
            async with self._alone(lease):
                return await uninterrupted(change(True))
        # Of an attempt that did restart it, and was lost with its worker.
        left = await self._inventory.leases.find(lease.host, LeaseScope.LIBVIRTD)
        if left is not None and left.owner == lease.owner:
            await uninterrupted(self._inventory.leases.release(left.ref))
        return done

    @asynccontextmanager
    async def _alone(self, lease: LeaseRef) -> AsyncIterator[None]:
        """A worker that is killed leaves the lease held: the next attempt, of the same owner, takes
        it over, and who wants to migrate finds out whether that owner still runs."""
        held = await self._acquire(lease)
        try:
            await self._until_calm(held)
            yield
        finally:
            await uninterrupted(self._inventory.leases.release(held))

    async def _acquire(self, lease: LeaseRef) -> LeaseRef:
        asked = AcquireLeaseInput(
            host=lease.host,
            scope=LeaseScope.LIBVIRTD,
            owner=lease.owner,
            purpose="restart of libvirtd",
            known=False,
        )
        held = (await self._leases.acquire_lease(asked)).ref
        if activity.info().attempt > 1:
            # What an attempt that was given up holds is not what this one does: it neither restarts
            # any more nor gives this one's lease back.
            await self._inventory.leases.release(held)
            held = (await self._leases.acquire_lease(asked)).ref
        return held

    async def _until_calm(self, held: LeaseRef) -> None:
        """Raises LeaseLost if another attempt has taken over by then."""
        host, deadline = held.host, time.monotonic() + self._within
        while migrating := await self._inventory.reservations.migrating(host):
            await self._inventory.leases.verify(held)
            await self._holders.release_abandoned(host)
            if time.monotonic() >= deadline:
                raise HostBusy(
                    f"libvirtd on {host} has to be restarted, and VMs migrate from or to it: "
                    f"{', '.join(migrating)}."
                )
            await asyncio.sleep(_LOOK_AGAIN_S)
        await self._inventory.leases.verify(held)
