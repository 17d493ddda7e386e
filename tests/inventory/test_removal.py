"""Hosts leave the inventory with all that is theirs, and their tombstones stay."""

from collections.abc import Sequence

import pytest

from contracts.errors import Conflict, LeaseLost, NotFound
from contracts.hosts import Host, RemovedHost
from contracts.leases import LeaseRef, LeaseScope
from contracts.power_actions import Action, PowerCommandRef
from contracts.removal import HostRemoved
from contracts.states import HostStatus, ResourceState
from contracts.vms import MigrationState
from inventory import Inventory
from tests.inventory.conftest import OTHER, OWNER, acquire, enabled, ref, register
from tests.samples import FACTS

R = ResourceState
OUT = (R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE)


async def become(inventory: Inventory, name: str, *states: R) -> None:
    for state in states:
        await inventory.hosts.change_state(
            name,
            expected=frozenset(R),
            target=state,
            operation="test",
            step=state,
            actor="test",
            reason="test",
        )


async def held(inventory: Inventory, *states: R) -> LeaseRef:
    """The lease of kvm-1, which is in the last of the states."""
    await enabled(inventory, 1)
    await become(inventory, "kvm-1", *states)
    return ref(await acquire(inventory))


async def remove(
    inventory: Inventory, lease: LeaseRef, *, cleaned: bool = True, vms: Sequence[str] = ()
) -> HostRemoved:
    return await inventory.removed_hosts.remove(
        lease,
        reason="broken",
        forced=not cleaned,
        vms=vms,
        cleaned=cleaned,
        problem="" if cleaned else "kvm-1 does not answer.",
    )


async def only(inventory: Inventory) -> RemovedHost:
    (removed,) = await inventory.removed_hosts.list()
    return removed


async def messages(inventory: Inventory, kind: str) -> list[str]:
    events = await inventory.events.list(subject="host/kvm-1")
    return [event.message for event in events if event.kind == kind]


async def exists(inventory: Inventory, secret_id: str) -> bool:
    try:
        await inventory.secrets.reveal(secret_id)
    except NotFound:
        return False
    return True


async def test_a_clean_host_goes_with_all_that_is_its_own(inventory: Inventory) -> None:
    lease = await held(inventory, *OUT)
    await enabled(inventory, 2)
    await inventory.hosts.set_facts("kvm-1", FACTS)
    await inventory.placement.set_host_tags("kvm-1", {"ssd", "gpu"}, actor="test")
    await inventory.maintenances.take_turn(lease, "cluster-1", 1)
    await inventory.hosts.want_fence("kvm-1", "maintenance/kvm-1", lease.epoch)
    await inventory.reservations.reserve(
        "kvm-2",
        vm_uuid="uuid-1",
        vm="vm-1",
        memory_mib=1,
        vcpus=1,
        source="kvm-1",
        lease=lease,
        memory_free_mib=512,
        cpus_free=8,
        max_parallel_per_host=2,
    )
    secret = (await inventory.hosts.login("kvm-1")).secret_id
    await become(inventory, "kvm-1", R.REMOVED)
    seen = await inventory.removed_hosts.preview("kvm-1")
    told = (
        "reservations: 1",
        "tags: 2",
        "places in the queue for maintenance: 1",
        "the wish for a fence, of maintenance/kvm-1",
    )
    assert (seen.belongings, seen.secrets) == (told, 1)
    assert await inventory.hosts.find("kvm-1") is not None

    removed = await remove(inventory, lease, vms=["vm-9"])
    assert removed.deleted == told
    assert await inventory.hosts.find("kvm-1") is None
    assert not await exists(inventory, secret)
    assert await inventory.reservations.touching("kvm-2") == []
    assert await inventory.maintenances.tickets("cluster-1") == []
    tombstone = await only(inventory)
    assert (tombstone.id, tombstone.name, tombstone.cluster) == (
        removed.tombstone,
        "kvm-1",
        "cluster-1",
    )
    assert (tombstone.address, tombstone.uuid, tombstone.reason) == (
        "198.18.0.11",
        FACTS.uuid,
        "broken",
    )
    assert tombstone.vms == ("vm-9",)
    assert tombstone.cleaned_at is not None
    assert tombstone.operation == "maintenance/kvm-1#run-1"
    assert await messages(inventory, "host.removed") == [
        "removed (broken); VMs left or last seen there: vm-9"
    ]
    # What tells the past stays, and so does the lease: its epoch never falls.
    assert "added" in str(await messages(inventory, "host.state"))
    assert await inventory.leases.find("kvm-1") is not None
    assert await inventory.removed_hosts.uncleaned() == []


async def test_removing_twice_leaves_one_tombstone(inventory: Inventory) -> None:
    lease = await held(inventory, *OUT, R.REMOVED)
    first = await remove(inventory, lease)
    second = await remove(inventory, lease)
    assert first.tombstone == second.tombstone
    assert len(await inventory.removed_hosts.list()) == 1
    assert len(await messages(inventory, "host.removed")) == 1


@pytest.mark.parametrize("states", [(), OUT])
async def test_only_what_has_begun_is_removed_as_clean(
    inventory: Inventory, states: tuple[R, ...]
) -> None:
    lease = await held(inventory, *states)
    with pytest.raises(Conflict, match="its removal has not begun"):
        await remove(inventory, lease)
    assert await inventory.hosts.find("kvm-1") is not None
    assert await inventory.removed_hosts.list() == []


async def test_a_host_that_is_up_is_not_lost(inventory: Inventory) -> None:
    lease = await held(inventory)
    with pytest.raises(Conflict, match="kvm-1 is Up and Enabled: it is not lost"):
        await remove(inventory, lease, cleaned=False)
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="is off")
    await remove(inventory, lease, cleaned=False)
    assert await inventory.hosts.find("kvm-1") is None
    assert "Enabled -> Removed: broken" in await messages(inventory, "host.state")


async def test_whoever_lost_the_lease_removes_nothing(inventory: Inventory) -> None:
    lease = await held(inventory, *OUT, R.REMOVED)
    await acquire(inventory, OTHER, takeover_from=OWNER)
    with pytest.raises(LeaseLost):
        await remove(inventory, lease)
    assert await inventory.hosts.find("kvm-1") is not None


async def test_a_host_that_never_was(inventory: Inventory) -> None:
    lease = ref(await acquire(inventory, host="kvm-9"))
    with pytest.raises(NotFound, match="no host 'kvm-9'"):
        await remove(inventory, lease)
    with pytest.raises(NotFound, match="no host 'kvm-9'"):
        await inventory.removed_hosts.preview("kvm-9")


async def test_a_secret_that_another_host_has_stays(inventory: Inventory) -> None:
    lease = await held(inventory, *OUT, R.REMOVED)
    secret = (await inventory.hosts.login("kvm-1")).secret_id
    await register(inventory, 2, secret_id=secret)
    await remove(inventory, lease)
    assert await exists(inventory, secret)


async def test_name_and_address_are_free_at_once(inventory: Inventory) -> None:
    lease = await held(inventory, *OUT, R.REMOVED)
    await remove(inventory, lease)
    again: Host = await register(inventory, 1)
    assert again.resource_state is R.CREATING


# --- hosts that were not clean ------------------------------------------------------------------


async def lost(inventory: Inventory) -> RemovedHost:
    """kvm-1, removed while it did not answer."""
    lease = await held(inventory)
    await inventory.hosts.set_facts("kvm-1", FACTS)
    await inventory.hosts.set_status("kvm-1", HostStatus.DOWN, actor="test", reason="is off")
    await remove(inventory, lease, cleaned=False, vms=["vm-1"])
    return await only(inventory)


async def test_a_lost_host_keeps_its_credential_until_it_is_clean(inventory: Inventory) -> None:
    removed = await lost(inventory)
    assert (removed.cleaned_at, removed.cleaning_problem) == (None, "kvm-1 does not answer.")
    assert removed.forced
    login = await inventory.removed_hosts.login(removed.id)
    assert (login.address, login.host_key_line) == ("198.18.0.11", "ssh-ed25519 AAAA")
    assert (await inventory.secrets.reveal(login.secret_id)).plaintext == "pw"
    assert await inventory.removed_hosts.uncleaned() == [removed]

    for _ in range(2):
        await inventory.removed_hosts.record_cleaned(removed, "answers again and was cleaned")
    assert (await only(inventory)).cleaned_at is not None
    assert not await exists(inventory, login.secret_id)
    assert await inventory.removed_hosts.uncleaned() == []
    assert await messages(inventory, "removed.cleaned") == ["answers again and was cleaned"]
    with pytest.raises(NotFound, match="has to be cleaned"):
        await inventory.removed_hosts.login(removed.id)


async def test_a_problem_is_told_once(inventory: Inventory) -> None:
    removed = await lost(inventory)
    for problem in ("a", "a", "b", "b"):
        await inventory.removed_hosts.record_problem(removed, problem)
    assert (await only(inventory)).cleaning_problem == "b"
    assert await messages(inventory, "removed.not_cleaned") == ["b", "a"]
    await inventory.removed_hosts.record_cleaned(removed, "clean")
    await inventory.removed_hosts.record_problem(removed, "c")
    assert (await only(inventory)).cleaning_problem == ""


async def test_that_its_key_goes_is_remembered(inventory: Inventory) -> None:
    removed = await lost(inventory)
    assert not await inventory.removed_hosts.key_leaves(removed)
    for _ in range(2):
        await inventory.removed_hosts.record_key_leaving(removed)
    assert await inventory.removed_hosts.key_leaves(removed)
    assert len(await messages(inventory, "removed.key_leaves")) == 1


async def test_a_machine_or_an_address_that_is_a_host_again(inventory: Inventory) -> None:
    removed = await lost(inventory)
    present_as = inventory.removed_hosts.present_as
    assert await present_as(removed) is None
    other_key = {"host_key_sha256": "SHA256:other"}
    await register(inventory, 2, **other_key)
    assert await present_as(removed) is None
    await inventory.hosts.set_facts("kvm-2", FACTS)
    assert await present_as(removed) == "kvm-2"
    await inventory.hosts.forget("kvm-2", operation="test", actor="test")
    await register(inventory, 3)
    assert await present_as(removed) == "kvm-3"
    await inventory.hosts.forget("kvm-3", operation="test", actor="test")
    await register(inventory, 4, address=removed.address, **other_key)
    assert await present_as(removed) == "kvm-4"
    await inventory.hosts.forget("kvm-4", operation="test", actor="test")
    await register(inventory, 5, address=removed.address, ssh_port=2222, **other_key)
    assert await present_as(removed) is None


async def test_removing_it_clean_later_settles_what_was_left_before(inventory: Inventory) -> None:
    before = await lost(inventory)
    kept = (await inventory.removed_hosts.login(before.id)).secret_id
    await register(inventory, 2)
    await become(inventory, "kvm-2", R.ENABLED, *OUT, R.REMOVED)
    await remove(inventory, ref(await acquire(inventory, host="kvm-2")))
    assert await inventory.removed_hosts.uncleaned() == []
    assert not await exists(inventory, kept)


# --- VMs that were last seen there --------------------------------------------------------------


async def test_vms_are_where_their_latest_migration_left_them(inventory: Inventory) -> None:
    moves = inventory.vm_migrations

    async def moved(
        operation: str, vm: str, source: str, destination: str, state: MigrationState | None
    ) -> None:
        await moves.start(operation, vm, source, destination, 1)
        if state is not None:
            await moves.finish(operation, vm, state, None)

    done = MigrationState.MOVED
    await moved("m-1", "came", "kvm-2", "kvm-1", done)
    await moved("m-1", "came-and-left", "kvm-2", "kvm-1", done)
    await moved("m-2", "came-and-left", "kvm-1", "kvm-3", done)
    await moved("m-2", "stayed", "kvm-1", "kvm-3", MigrationState.FAILED)
    await moved("m-2", "gone", "kvm-1", "kvm-3", MigrationState.GONE)
    await moved("m-3", "on-its-way", "kvm-2", "kvm-1", None)
    await moved("m-3", "never-came", "kvm-2", "kvm-1", MigrationState.FAILED)
    await moved("m-3", "elsewhere", "kvm-2", "kvm-3", done)
    assert await moves.last_seen("kvm-1") == ["came", "on-its-way", "stayed"]
    assert await moves.last_seen("kvm-9") == []


@pytest.mark.parametrize("forced", [False, True])
async def test_its_out_of_band_management_goes_with_its_passwords(
    inventory: Inventory, forced: bool
) -> None:
    lease = await held(inventory, *OUT, R.REMOVED)
    bmc, staged = await inventory.secrets.store_all(
        [("bmc_password", "bmc"), ("bmc_password", "new")], actor="test"
    )
    await inventory.oobm.configure(
        "kvm-1",
        {"enabled": True, "address": "127.0.1.1", "user": "admin"},
        secret_id=bmc,
        replace=True,
        actor="test",
    )
    power = await inventory.leases.acquire("kvm-1", LeaseScope.POWER, OTHER, "power")
    await inventory.oobm.stage_password("kvm-1", staged, lease=ref(power))
    generation = (await inventory.oobm.login("kvm-1")).generation
    await inventory.power.begin_command(
        PowerCommandRef(lease=ref(power), action=Action.OFF, generation=generation, timeout=60),
        generation,
    )
    told = ("out-of-band management: 1", "commands to its BMC: 1")
    seen = await inventory.removed_hosts.preview("kvm-1")
    assert (seen.belongings, seen.secrets) == (told, 3)
    removed = await remove(inventory, lease, cleaned=not forced)
    assert removed.deleted == told
    assert await inventory.oobm.find("kvm-1") is None
    assert not await exists(inventory, bmc)
    assert not await exists(inventory, staged)
