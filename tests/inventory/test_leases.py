import asyncio

import pytest

from contracts.errors import LeaseHeld, LeaseLost
from contracts.leases import LeaseScope, Owner
from inventory import Inventory
from tests.inventory.conftest import OTHER, OWNER, acquire, ref


async def test_acquire_is_idempotent_by_owner(inventory: Inventory) -> None:
    first = await acquire(inventory)
    assert (first.epoch, first.taken_over_from) == (2, None)
    assert await acquire(inventory) == first
    assert await inventory.leases.find("kvm-1") == first
    await inventory.leases.verify(ref(first))


async def test_a_refusal_names_the_holder(inventory: Inventory) -> None:
    await acquire(inventory)
    with pytest.raises(LeaseHeld, match=r"kvm-1 is held by maintenance/kvm-1") as caught:
        await acquire(inventory, OTHER)
    assert caught.value.details["holder"] == OWNER.model_dump()
    # Another run under the same workflow id is another operation.
    with pytest.raises(LeaseHeld):
        await acquire(inventory, OWNER.model_copy(update={"first_run_id": "run-9"}))


async def test_release_is_idempotent_and_the_epoch_never_falls(inventory: Inventory) -> None:
    first = await acquire(inventory)
    for _ in range(2):
        await inventory.leases.release(ref(first))
    assert await inventory.leases.find("kvm-1") is None
    with pytest.raises(LeaseLost):
        await inventory.leases.verify(ref(first))
    second = await acquire(inventory, OTHER)
    assert second.epoch == 4
    await inventory.leases.release(ref(first))
    assert await inventory.leases.find("kvm-1") == second


async def test_a_takeover_shuts_the_predecessor_out(inventory: Inventory) -> None:
    first = await acquire(inventory)
    second = await acquire(inventory, OTHER, takeover_from=OWNER)
    assert (second.epoch, second.taken_over_from) == (4, OWNER)
    # A repetition of the step must learn of the predecessor too.
    assert await acquire(inventory, OTHER) == second
    with pytest.raises(LeaseLost, match="maintenance/other has taken it over"):
        await inventory.leases.verify(ref(first))
    (event,) = await inventory.events.list(operation=OTHER.workflow_id)
    assert event.kind == "lease.taken_over"


async def test_a_takeover_is_from_the_one_that_was_asked_about(inventory: Inventory) -> None:
    await acquire(inventory)
    with pytest.raises(LeaseHeld):
        await acquire(inventory, OTHER, takeover_from=Owner(workflow_id="x", first_run_id="y"))


async def test_a_lease_of_an_unknown_host_is_not_held(inventory: Inventory) -> None:
    assert await inventory.leases.find("kvm-9") is None


async def test_of_many_at_once_one_gets_it(inventory: Inventory) -> None:
    owners = [Owner(workflow_id=f"w-{number}", first_run_id="r") for number in range(8)]
    results = await asyncio.gather(
        *(acquire(inventory, owner) for owner in owners), return_exceptions=True
    )
    assert sum(isinstance(result, LeaseHeld) for result in results) == 7
    (won,) = [result for result in results if not isinstance(result, BaseException)]
    assert won.epoch == 2


async def test_leases_of_many_hosts_are_got_and_given_back_together(inventory: Inventory) -> None:
    hosts = [f"kvm-{number}" for number in (2, 1, 3)]
    leases = inventory.leases
    (middle,) = await leases.acquire_all(hosts[:1], LeaseScope.TRUST, OTHER, "test")
    with pytest.raises(LeaseHeld, match="kvm-2"):
        await leases.acquire_all(hosts, LeaseScope.TRUST, OWNER, "test")
    assert await leases.find("kvm-1", LeaseScope.TRUST) is None, "all or none"
    got = await leases.acquire_all(hosts, LeaseScope.TRUST, OWNER, "test", takeover_from={OTHER})
    assert [(one.host, one.epoch) for one in got] == [("kvm-1", 2), ("kvm-2", 4), ("kvm-3", 2)]
    assert [one.taken_over_from for one in got] == [None, OTHER, None]
    assert await leases.acquire_all(hosts, LeaseScope.TRUST, OWNER, "test") == got
    await leases.release_all([ref(middle)])
    assert await leases.find("kvm-2", LeaseScope.TRUST) == got[1], "it was another one's by then"
    await leases.release_all([ref(one) for one in got])
    assert not [host for host in hosts if await leases.find(host, LeaseScope.TRUST)]
