"""Leases and the lives of their holders, by Temporal's own word."""

import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import WorkflowEnvironment

from activities.leases import LeaseActivities
from contracts.errors import LeaseHeld, NotFound, Unavailable
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.steps import AcquireLeaseInput, HostRef
from inventory import Inventory
from tests.activities.conftest import OWNER, SOURCE, ref, reserve, run


async def start_server() -> WorkflowEnvironment:
    return await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(Path(sys.executable).with_name("temporal")),
        dev_server_log_level="error",
    )


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with await start_server() as environment:
        yield environment.client


@pytest.fixture
def activities(inventory: Inventory, client: Client) -> LeaseActivities:
    return LeaseActivities(inventory, client)


async def running(client: Client) -> tuple[WorkflowHandle[object, object], Owner]:
    """A workflow that is open: no worker ever takes it."""
    handle = await client.start_workflow("Any", id=str(uuid.uuid4()), task_queue="nobody")
    return handle, Owner(workflow_id=handle.id, first_run_id=handle.first_execution_run_id or "")


def wanted(owner: Owner = OWNER, **more: object) -> AcquireLeaseInput:
    values = {"host": SOURCE, "owner": owner, "purpose": "test", **more}
    return AcquireLeaseInput.model_validate(values)


async def test_an_unknown_host_has_no_lease_unless_it_is_being_added(
    activities: LeaseActivities,
) -> None:
    with pytest.raises(NotFound, match="no host 'kvm-9'"):
        await run(activities.acquire_lease, wanted(host="kvm-9"))
    assert (await run(activities.acquire_lease, wanted(host="kvm-9", known=False))).epoch == 1


async def test_an_open_holder_keeps_it_and_a_closed_one_does_not(
    activities: LeaseActivities, client: Client
) -> None:
    handle, holder = await running(client)
    held = await run(activities.acquire_lease, wanted(holder))
    with pytest.raises(LeaseHeld, match=f"held by {handle.id}"):
        await run(activities.acquire_lease, wanted())
    await handle.terminate()
    taken = await run(activities.acquire_lease, wanted())
    assert (taken.epoch, taken.taken_over_from) == (held.epoch + 1, holder)
    # Never started, by Temporal's word: closed as well.
    again = await run(activities.acquire_lease, wanted(holder))
    assert again.taken_over_from == OWNER


async def test_another_chain_under_the_same_id_is_another_operation(
    activities: LeaseActivities, client: Client
) -> None:
    handle, holder = await running(client)
    await run(activities.acquire_lease, wanted(holder))
    await handle.terminate()
    await client.start_workflow("Any", id=handle.id, task_queue="nobody")
    assert (await run(activities.acquire_lease, wanted())).taken_over_from == holder


async def test_no_answer_from_temporal_is_not_closed(inventory: Inventory, lease: LeaseRef) -> None:
    environment = await start_server()
    away = environment.client
    await environment.shutdown()
    other = wanted(Owner(workflow_id="maintenance/other", first_run_id="run-2"))
    with pytest.raises(Unavailable, match="did not say whether maintenance/kvm-1 still runs"):
        await run(LeaseActivities(inventory, away).acquire_lease, other)
    assert (await inventory.leases.find(SOURCE) or other).owner == OWNER


async def test_release_gives_everything_back(
    activities: LeaseActivities, inventory: Inventory, lease: LeaseRef
) -> None:
    await reserve(inventory, lease, "kvm-2", "uuid-1")
    for _ in range(2):
        await run(activities.release_lease, lease)
    assert await inventory.leases.find(SOURCE) is None
    assert await inventory.reservations.pointing_at("kvm-2") == []


async def test_only_what_is_abandoned_is_given_back(
    activities: LeaseActivities, inventory: Inventory, client: Client
) -> None:
    handle, holder = await running(client)
    lease = ref(await inventory.leases.acquire(SOURCE, LeaseScope.PLACEMENT, holder, "test"))
    await reserve(inventory, lease, "kvm-2", "uuid-1")
    await run(activities.release_abandoned, HostRef(host="kvm-2"))
    assert len(await inventory.reservations.pointing_at("kvm-2")) == 1
    await handle.terminate()
    await run(activities.release_abandoned, HostRef(host="kvm-2"))
    assert await inventory.reservations.pointing_at("kvm-2") == []
