"""Leases: acquired in the inventory; whether a holder still lives is Temporal's word."""

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from contracts.errors import LeaseHeld, Unavailable
from contracts.leases import Lease, LeaseRef, Owner
from contracts.steps import AcquireLeaseInput, HostRef
from inventory import Inventory


class LeaseActivities:
    """Acquire, take over, release, and clear up after holders that have ended."""

    def __init__(self, inventory: Inventory, client: Client) -> None:
        self._inventory = inventory
        self._client = client

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
            if await self._runs(holder):
                raise
        return await leases.acquire(
            request.host, request.scope, request.owner, request.purpose, takeover_from=holder
        )

    @activity.defn(name="release_lease")
    async def release_lease(self, lease: LeaseRef) -> None:
        """Give the lease back with everything reserved under it; no effect if it is gone."""
        await self._inventory.reservations.release_all(lease)
        await self._inventory.leases.release(lease)

    @activity.defn(name="release_abandoned")
    async def release_abandoned(self, request: HostRef) -> None:
        """Give back what ended operations on other hosts still reserve at this one."""
        for coming in await self._inventory.reservations.pointing_at(request.host):
            lease = await self._inventory.leases.find(coming.source)
            held = lease is not None and lease.epoch == coming.epoch
            if lease is None or not held or not await self._runs(lease.owner):
                await self._inventory.reservations.discard(coming)

    async def _runs(self, holder: Owner) -> bool:
        """Whether the holder's chain of runs is open. "Not found" is closed, "no answer" is not."""
        try:
            latest = await self._client.get_workflow_handle(holder.workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise Unavailable(
                f"Temporal did not say whether {holder.workflow_id} still runs: {error.message}."
            ) from error
        # One run per workflow id is open at a time: another chain there means that ours is closed.
        if latest.raw_info.first_run_id != holder.first_run_id:
            return False
        return latest.status is WorkflowExecutionStatus.RUNNING
