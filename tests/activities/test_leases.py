"""Leases and the lives of their holders, by Temporal's own word."""

import pytest
from temporalio.client import Client

from activities.holders import Holders
from activities.leases import LeaseActivities
from contracts.errors import LeaseHeld, NotFound, Unavailable
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.steps import AcquireLeaseInput
from inventory import Inventory
from tests.activities.conftest import OWNER, SOURCE, open_workflow, ref, reserve, run, start_server


@pytest.fixture
def activities(inventory: Inventory, holders: Holders) -> LeaseActivities:
    return LeaseActivities(inventory, holders)


def wanted(owner: Owner = OWNER, **more: object) -> AcquireLeaseInput:
    values = {"host": SOURCE, "owner": owner, "purpose": "test", **more}
    return AcquireLeaseInput.model_validate(values)


async def test_an_unknown_host_has_no_lease_unless_it_is_being_added(
    activities: LeaseActivities,
) -> None:
    with pytest.raises(NotFound, match="no host 'kvm-9'"):
        await run(activities.acquire_lease, wanted(host="kvm-9"))
    assert (await run(activities.acquire_lease, wanted(host="kvm-9", known=False))).epoch == 2


async def test_an_open_holder_keeps_it_and_a_closed_one_does_not(
    activities: LeaseActivities, client: Client
) -> None:
    handle, holder = await open_workflow(client)
    held = await run(activities.acquire_lease, wanted(holder))
    with pytest.raises(LeaseHeld, match=f"held by {handle.id}"):
        await run(activities.acquire_lease, wanted())
    await handle.terminate()
    taken = await run(activities.acquire_lease, wanted())
    assert (taken.epoch, taken.taken_over_from) == (held.epoch + 2, holder)
    # Never started, by Temporal's word: closed as well.
    again = await run(activities.acquire_lease, wanted(holder))
    assert again.taken_over_from == OWNER


async def test_another_chain_under_the_same_id_is_another_operation(
    activities: LeaseActivities, client: Client
) -> None:
    handle, holder = await open_workflow(client)
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
        await run(LeaseActivities(inventory, Holders(inventory, away)).acquire_lease, other)
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
    holders: Holders, inventory: Inventory, client: Client
) -> None:
    handle, holder = await open_workflow(client)
    lease = ref(await inventory.leases.acquire(SOURCE, LeaseScope.PLACEMENT, holder, "test"))
    await reserve(inventory, lease, "kvm-2", "uuid-1")
    for host in ("kvm-2", SOURCE):
        await holders.release_abandoned(host)
        assert len(await inventory.reservations.pointing_at("kvm-2")) == 1
    await handle.terminate()
    await holders.release_abandoned("kvm-3")
    assert len(await inventory.reservations.pointing_at("kvm-2")) == 1
    await holders.release_abandoned(SOURCE)
    assert await inventory.reservations.pointing_at("kvm-2") == []
