"""Whether the operation that holds something still runs: Temporal's word, by describe alone.

Visibility lags behind and must not decide who owns what.
"""

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from contracts.errors import Unavailable
from contracts.leases import LeaseScope, Owner
from contracts.operations import WORKFLOW_TYPES, OperationKind
from inventory import Inventory


class Holders:
    """Asks Temporal, and clears up after operations that have ended."""

    def __init__(self, inventory: Inventory, client: Client) -> None:
        self._inventory = inventory
        self._client = client

    async def runs(self, holder: Owner) -> bool:
        """Whether the holder's chain of runs is open. "Not found" is closed; no answer raises
        Unavailable."""
        return await self._open_run(holder) is not None

    async def works(self, holder: Owner) -> bool:
        """Whether the holder is open and may be changing its host at this moment. A maintenance
        that waits for its operator does not. Raises Unavailable."""
        run = await self._open_run(holder)
        if run is None:
            return False
        waits = run.workflow_type == WORKFLOW_TYPES[OperationKind.MAINTENANCE] and not (
            run.raw_description.pending_activities
        )
        return not waits

    async def _open_run(self, holder: Owner) -> WorkflowExecutionDescription | None:
        try:
            latest = await self._client.get_workflow_handle(holder.workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise Unavailable(
                f"Temporal did not say whether {holder.workflow_id} still runs: {error.message}."
            ) from error
        # One run per workflow id is open at a time: another chain there means that ours is closed.
        if latest.raw_info.first_run_id != holder.first_run_id:
            return None
        return latest if latest.status is WorkflowExecutionStatus.RUNNING else None

    async def operation_runs(self, operation: str) -> bool:
        """The same for the key of an operation's rows, "workflow id#first run id"."""
        workflow_id, _, first_run_id = operation.rpartition("#")
        return await self.runs(Owner(workflow_id=workflow_id, first_run_id=first_run_id))

    async def release_abandoned(self, *hosts: str) -> None:
        """Give back what ended operations still reserve from or to these hosts, and what keeps
        migrations from beginning there."""
        verdicts: dict[tuple[str, int], bool] = {}
        for host in hosts:
            restart = await self._inventory.leases.find(host, LeaseScope.LIBVIRTD)
            if restart is not None and not await self.runs(restart.owner):
                await self._inventory.leases.release(restart.ref)
            for reservation in await self._inventory.reservations.touching(host):
                key = reservation.lease_host, reservation.epoch
                if key not in verdicts:
                    verdicts[key] = await self._is_held(*key)
                if not verdicts[key]:
                    await self._inventory.reservations.discard(reservation)

    async def _is_held(self, host: str, epoch: int) -> bool:
        lease = await self._inventory.leases.find(host)
        return lease is not None and lease.epoch == epoch and await self.runs(lease.owner)
