"""What a HostImport asks of the inventory, and of additions that others have started."""

import asyncio
import time

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ActivityError, FailureError
from temporalio.service import RPCError, RPCStatusCode

from contracts.addition import HostAdditionInput
from contracts.errors import Unavailable
from contracts.host_import import (
    AwaitAdditionsInput,
    AwaitAdditionsResult,
    DiscardSecretsInput,
    FindHostsInput,
    FindHostsResult,
)
from contracts.hosts import Host
from contracts.leases import Owner
from contracts.operations import OperationKind, workflow_id
from contracts.states import ResourceState
from inventory import Inventory

_LOOK_AGAIN_S = 2.0
# Others may join those that are waited for: the workflow asks anew.
_LONGEST_S = 30.0
_COMPARED = (
    *("cluster", "ssh_port", "user"),
    *("capacity_memory_mib", "capacity_cpus", "reserved_memory_mib"),
)


class ImportActivities:
    """Looks, waits, and drops what is not needed.

    Args:
        look_again: seconds between two looks at additions that are waited for.
    """

    def __init__(
        self, inventory: Inventory, client: Client, *, look_again: float = _LOOK_AGAIN_S
    ) -> None:
        self._inventory = inventory
        self._client = client
        self._look_again = look_again

    @activity.defn(name="find_hosts")
    async def find_hosts(self, request: FindHostsInput) -> FindHostsResult:
        """Which hosts are there already; their credentials as given for the import are dropped.
        One that is `Creating` is not there yet."""
        asked = {host.name: host for host in request.hosts}
        present, different = set(), {}
        for host in await self._inventory.hosts.among(asked):
            if host.resource_state is ResourceState.CREATING:
                continue
            differences = _differences(asked[host.name], host)
            if differences:
                different[host.name] = (
                    f"There is a host {host.name!r} already, and it differs: {differences}."
                )
            else:
                present.add(host.name)
        await self._inventory.secrets.discard_all(
            [asked[name].secret for name in sorted({*present, *different})]
        )
        return FindHostsResult(present=frozenset(present), different=different)

    @activity.defn(name="await_additions")
    async def await_additions(self, request: AwaitAdditionsInput) -> AwaitAdditionsResult:
        """Until one of them has ended, or for half a minute."""
        deadline = time.monotonic() + _LONGEST_S
        while True:
            ended: dict[str, str | None] = {}
            for host, owner in request.additions.items():
                if not await self._runs(host, owner):
                    ended[host] = await self._ending(host, owner)
            if ended or time.monotonic() > deadline:
                return AwaitAdditionsResult(ended=ended)
            await asyncio.sleep(self._look_again)

    @activity.defn(name="discard_secrets")
    async def discard_secrets(self, request: DiscardSecretsInput) -> None:
        """Delete those that no host refers to."""
        await self._inventory.secrets.discard_all(request.secrets)

    async def _runs(self, host: str, owner: Owner | None) -> bool:
        try:
            latest = await self._client.get_workflow_handle(_id(host)).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise _unanswered(host, error) from error
        if owner is not None and latest.raw_info.first_run_id != owner.first_run_id:
            return False
        return latest.status is WorkflowExecutionStatus.RUNNING

    async def _ending(self, host: str, owner: Owner | None) -> str | None:
        """None if it ended well."""
        handle = self._client.get_workflow_handle(
            _id(host), run_id=owner.first_run_id if owner is not None else None
        )
        try:
            await handle.result()
        except WorkflowFailureError as failure:
            cause: BaseException = failure.cause
            if isinstance(cause, ActivityError) and cause.cause is not None:
                cause = cause.cause  # it says only that an activity failed
            return cause.message if isinstance(cause, FailureError) else str(cause)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return "Temporal does not know its addition any more."
            raise _unanswered(host, error) from error
        return None


def _differences(asked: HostAdditionInput, host: Host) -> str:
    """In words; its resource state is its administrators' own since it was added."""
    pairs = [(field, getattr(asked, field), getattr(host, field)) for field in _COMPARED]
    pairs.append(("address", str(asked.address), host.address))
    if asked.host_key_sha256 is not None:
        pairs.append(("host_key_sha256", asked.host_key_sha256, host.host_key_sha256))
    return ", ".join(
        f"{field} is {there}, not {wanted}" for field, wanted, there in pairs if wanted != there
    )


def _id(host: str) -> str:
    return workflow_id(OperationKind.ADDITION, host)


def _unanswered(host: str, error: RPCError) -> Unavailable:
    return Unavailable(f"Temporal did not answer about {_id(host)}: {error.message}.")
