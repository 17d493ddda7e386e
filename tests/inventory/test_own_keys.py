"""Which secrets a host refers to, from its addition with a password to its own key."""

import pytest

from contracts.errors import LeaseLost, NotFound
from contracts.leases import LeaseRef
from inventory import Inventory
from inventory.own_keys import HostSecrets
from tests.inventory.conftest import OTHER, OWNER, acquire, enabled, ref, register
from tests.samples import FACTS


async def store(inventory: Inventory, kind: str = "private_key") -> str:
    return await inventory.secrets.store(kind, f"a {kind}", actor="test")


async def is_stored(inventory: Inventory, secret_id: str) -> bool:
    try:
        await inventory.secrets.reveal(secret_id)
    except NotFound:
        return False
    return True


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    await register(inventory, 1)
    return ref(await acquire(inventory))


async def test_a_password_makes_way_for_the_key_and_stays(
    inventory: Inventory, lease: LeaseRef
) -> None:
    keys, password = inventory.own_keys, (await inventory.own_keys.find("kvm-1")).login
    key = await store(inventory)
    assert await keys.stage("kvm-1", key, lease=lease) == key
    assert await keys.find("kvm-1") == HostSecrets(login=password, staged_key=key, password=None)
    for _ in range(2):
        await keys.promote("kvm-1", operation="addition/kvm-1", lease=lease)
        assert await keys.find("kvm-1") == HostSecrets(
            login=key, staged_key=None, password=password
        )
    assert await is_stored(inventory, password)
    events = await inventory.events.list(subject="host/kvm-1")
    assert [event.kind for event in events].count("host.key") == 1
    assert (await inventory.hosts.login("kvm-1")).secret_id == key


async def test_a_key_that_was_given_is_deleted(inventory: Inventory) -> None:
    given = await store(inventory)
    await register(inventory, 1, secret_id=given)
    lease, own = ref(await acquire(inventory)), await store(inventory)
    await inventory.own_keys.stage("kvm-1", own, lease=lease)
    await inventory.own_keys.promote("kvm-1", operation="addition/kvm-1", lease=lease)
    assert await inventory.own_keys.find("kvm-1") == HostSecrets(
        login=own, staged_key=None, password=None
    )
    assert not await is_stored(inventory, given)


async def test_only_one_key_is_ever_staged(inventory: Inventory, lease: LeaseRef) -> None:
    first, second = await store(inventory), await store(inventory)
    assert await inventory.own_keys.stage("kvm-1", first, lease=lease) == first
    assert await inventory.own_keys.stage("kvm-1", second, lease=lease) == first


async def test_a_dropped_key_is_deleted(inventory: Inventory, lease: LeaseRef) -> None:
    before, key = await inventory.own_keys.find("kvm-1"), await store(inventory)
    await inventory.own_keys.stage("kvm-1", key, lease=lease)
    for _ in range(2):
        await inventory.own_keys.drop("kvm-1", lease=lease)
        assert await inventory.own_keys.find("kvm-1") == before
    assert not await is_stored(inventory, key)
    assert await is_stored(inventory, before.login)


async def test_without_the_lease_nothing_changes(inventory: Inventory, lease: LeaseRef) -> None:
    key = await store(inventory)
    await acquire(inventory, OTHER, takeover_from=OWNER)
    for change in (
        inventory.own_keys.stage("kvm-1", key, lease=lease),
        inventory.own_keys.promote("kvm-1", operation="x", lease=lease),
        inventory.own_keys.drop("kvm-1", lease=lease),
    ):
        with pytest.raises(LeaseLost):
            await change
    assert (await inventory.own_keys.find("kvm-1")).staged_key is None


async def test_an_unknown_host(inventory: Inventory) -> None:
    with pytest.raises(NotFound):
        await inventory.own_keys.find("kvm-9")


async def test_an_addition_that_begins_again_keeps_the_staged_key(
    inventory: Inventory, lease: LeaseRef
) -> None:
    key = await store(inventory)
    await inventory.own_keys.stage("kvm-1", key, lease=lease)
    again = await store(inventory, "password")
    await register(inventory, 1, secret_id=again)
    assert await inventory.own_keys.find("kvm-1") == HostSecrets(
        login=again, staged_key=key, password=None
    )


async def test_registering_late_does_not_undo_the_promotion(
    inventory: Inventory, lease: LeaseRef
) -> None:
    """A worker that was stopped in the middle of registering, and goes on."""
    keys, key = inventory.own_keys, await store(inventory)
    password = (await keys.find("kvm-1")).login
    await keys.stage("kvm-1", key, lease=lease)
    await keys.promote("kvm-1", operation="addition/kvm-1", lease=lease)
    await register(inventory, 1, secret_id=password)
    assert await keys.find("kvm-1") == HostSecrets(login=key, staged_key=None, password=password)
    # Another addition comes with another one.
    again = await store(inventory, "password")
    await register(inventory, 1, secret_id=again)
    assert await keys.find("kvm-1") == HostSecrets(login=again, staged_key=None, password=None)


async def test_forgetting_a_host_deletes_all_its_secrets(
    inventory: Inventory, lease: LeaseRef
) -> None:
    keys, key = inventory.own_keys, await store(inventory)
    password = (await keys.find("kvm-1")).login
    await keys.stage("kvm-1", key, lease=lease)
    await keys.promote("kvm-1", operation="addition/kvm-1", lease=lease)
    staged = await store(inventory)
    await keys.stage("kvm-1", staged, lease=lease)
    await inventory.hosts.forget("kvm-1", operation="addition/kvm-1", actor="test", lease=lease)
    for secret in (password, key, staged):
        assert not await is_stored(inventory, secret)


async def test_hosts_are_found_by_address_and_by_uuid(inventory: Inventory) -> None:
    host = await enabled(inventory, 1)
    await inventory.hosts.set_facts("kvm-1", FACTS)
    assert (await inventory.hosts.find_at(host.address, 22)) is not None
    assert await inventory.hosts.find_at(host.address, 23) is None
    found = await inventory.hosts.find_by_uuid(FACTS.uuid)
    assert found is not None
    assert found.name == "kvm-1"
    assert await inventory.hosts.find_by_uuid("another") is None
