"""Tombstones of machines that come back."""

import pytest

from contracts.errors import Conflict, LeaseLost, NotFound
from inventory import Inventory
from inventory.models import RemovedHostRow
from inventory.removed_hosts import FormerKey
from tests.inventory.conftest import OTHER, OWNER, acquire, ref, register
from tests.samples import FACTS


async def bury(
    inventory: Inventory, name: str, *, uuid: str | None, host_key: str, user: str = "root"
) -> str:
    """A host that was removed by force, and is still to be cleaned; its secret."""
    secret = await inventory.secrets.store("password", "pw", actor="test")
    async with inventory.database.writing() as session:
        session.add(
            RemovedHostRow(
                name=name,
                cluster="cluster-1",
                address="198.18.0.17",
                ssh_port=22,
                user=user,
                secret_id=secret,
                host_key_line="ssh-ed25519 AAAA",
                host_key_sha256=host_key,
                uuid=uuid,
                operation=f"removal/{name}",
            )
        )
    return secret


async def test_a_machine_that_is_back_is_not_cleaned_any_more(inventory: Inventory) -> None:
    host = await register(inventory, 1)
    await inventory.hosts.set_facts("kvm-1", FACTS)
    lease = ref(await acquire(inventory))
    by_key = await bury(inventory, "kvm-7", uuid=None, host_key=host.host_key_sha256 or "")
    by_uuid = await bury(inventory, "kvm-8", uuid=FACTS.uuid, host_key="SHA256:new", user="ops")
    other = await bury(inventory, "kvm-9", uuid="another", host_key="SHA256:other")
    for _ in range(2):
        await inventory.removed_hosts.take_back("kvm-1", lease=lease)
    assert await inventory.removed_hosts.former_keys("kvm-1") == [
        FormerKey("kvm-7", "root"),
        FormerKey("kvm-8", "ops"),
    ]
    found = {one.name: one for one in await inventory.removed_hosts.list()}
    assert found["kvm-7"].settled_at is not None
    assert found["kvm-8"].settled_at is not None
    assert found["kvm-9"].settled_at is None
    assert {one.cleaned_at for one in found.values()} == {None}
    assert [one.name for one in await inventory.removed_hosts.uncleaned()] == ["kvm-9"]
    assert found["kvm-7"].cleaning_problem == "it was added again as kvm-1"
    for secret in (by_key, by_uuid):
        with pytest.raises(NotFound):
            await inventory.secrets.reveal(secret)
    assert (await inventory.secrets.reveal(other)).plaintext == "pw"


async def test_without_the_lease_it_stays_as_it_is(inventory: Inventory) -> None:
    host = await register(inventory, 1)
    lease = ref(await acquire(inventory))
    await acquire(inventory, OTHER, takeover_from=OWNER)
    await bury(inventory, "kvm-7", uuid=None, host_key=host.host_key_sha256 or "")
    with pytest.raises(LeaseLost):
        await inventory.removed_hosts.take_back("kvm-1", lease=lease)
    (tombstone,) = await inventory.removed_hosts.list()
    assert tombstone.settled_at is None


async def test_a_machine_that_never_comes_back_is_settled(inventory: Inventory) -> None:
    secret = await bury(inventory, "kvm-7", uuid="u", host_key="SHA256:k")
    tombs = inventory.removed_hosts
    (before,) = await tombs.uncleaned()
    await tombs.record_tried(before)
    assert (await tombs.list())[0].tried_at is not None
    for reason in ("scrapped", "again"):
        settled = await tombs.settle(before.id, reason=reason, actor="token:anna")
        assert (settled.cleaned_at, settled.cleaning_problem) == (None, "scrapped")
        assert settled.settled_at is not None
    assert await tombs.uncleaned() == []
    with pytest.raises(NotFound):
        await inventory.secrets.reveal(secret)
    events = await inventory.events.list(subject="host/kvm-7")
    assert [(event.kind, event.actor) for event in events] == [("removed.settled", "token:anna")]
    assert "scrapped" in events[0].message
    # What comes too late changes nothing.
    await tombs.record_cleaned(before, "clean")
    await tombs.record_problem(before, "refused")
    await tombs.record_tried(before)
    assert await tombs.list() == [settled]
    # It is still only added again on purpose.
    assert await tombs.known(uuid="u", host_key_sha256=None) == settled


async def test_only_what_waits_is_settled(inventory: Inventory) -> None:
    await bury(inventory, "kvm-7", uuid="u", host_key="SHA256:k")
    tombs = inventory.removed_hosts
    (waiting,) = await tombs.uncleaned()
    await tombs.record_cleaned(waiting, "clean")
    with pytest.raises(Conflict, match="is clean"):
        await tombs.settle(waiting.id, reason="scrapped", actor="test")
    with pytest.raises(NotFound, match="no removed host 99"):
        await tombs.settle(99, reason="scrapped", actor="test")
