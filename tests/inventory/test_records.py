"""Tokens, events, and the progress of migrations."""

from datetime import UTC, datetime

from contracts.access import Principal, Role
from contracts.vms import MigrationState
from inventory import Inventory
from inventory.vm_migrations import MigrationFigures

OPERATION = "maintenance/kvm-1#run-1"


async def test_a_token_is_whose_it_is_and_the_newest_counts(inventory: Inventory) -> None:
    first = await inventory.tokens.create("anna", Role.OPERATOR)
    assert await inventory.tokens.authenticate(first) == Principal(name="anna", role=Role.OPERATOR)
    second = await inventory.tokens.create("anna", Role.VIEWER)
    assert await inventory.tokens.authenticate(first) is None
    assert await inventory.tokens.authenticate(second) == Principal(name="anna", role=Role.VIEWER)
    assert await inventory.tokens.authenticate("") is None
    for event in await inventory.events.list():
        assert first not in event.model_dump_json()


async def test_events_come_newest_first_and_by_pages(inventory: Inventory) -> None:
    for number in range(5):
        await inventory.events.record("note", "host/x", str(number), actor="test")
    newest = await inventory.events.list(subject="host/x", limit=2)
    assert [event.message for event in newest] == ["4", "3"]
    older = await inventory.events.list(subject="host/x", before=newest[-1].id)
    assert [event.message for event in older] == ["2", "1", "0"]
    assert await inventory.events.list(operation="nothing") == []


def figures(percent: int, rate: float, remaining: float) -> MigrationFigures:
    return MigrationFigures(
        percent=percent,
        rate_mib_s=rate,
        remaining_mib=remaining,
        dirty_rate_mib_s=3,
        iteration=2,
        throttle_percent=20,
        expected_end_at=datetime(2026, 11, 24, 12, tzinfo=UTC),
    )


async def test_progress_of_a_migration(inventory: Inventory) -> None:
    migrations = inventory.vm_migrations
    await migrations.finish(OPERATION, "vm-1", MigrationState.FAILED, "never began")
    assert await migrations.list(OPERATION) == []
    await migrations.start(OPERATION, "vm-1", "kvm-1", "kvm-2", 1)
    await migrations.progress(OPERATION, "vm-1", figures(40, 12.5, 60))
    (seen,) = await migrations.list(OPERATION)
    assert (seen.state, seen.percent, seen.rate_mib_s) == (MigrationState.MIGRATING, 40, 12.5)
    assert seen.finished_at is None
    assert (seen.dirty_rate_mib_s, seen.iteration, seen.throttle_percent) == (3, 2, 20)
    assert seen.expected_end_at == datetime(2026, 11, 24, 12, tzinfo=UTC)
    await migrations.finish(OPERATION, "vm-1", MigrationState.FAILED, "refused")
    await migrations.progress(OPERATION, "vm-1", figures(99, 1, 1))
    (seen,) = await migrations.list(OPERATION)
    assert (seen.state, seen.percent, seen.error) == (MigrationState.FAILED, 40, "refused")
    await migrations.start(OPERATION, "vm-1", "kvm-1", "kvm-3", 2)
    (seen,) = await migrations.list(OPERATION)
    assert (seen.percent, seen.error, seen.finished_at, seen.attempt) == (0, None, None, 2)
    await migrations.finish(OPERATION, "vm-1", MigrationState.MOVED, None)
    (seen,) = await migrations.list(OPERATION)
    assert (seen.state, seen.percent, seen.destination) == (MigrationState.MOVED, 100, "kvm-3")


async def test_migrations_without_an_end_are_known_until_they_are_closed(
    inventory: Inventory,
) -> None:
    migrations = inventory.vm_migrations
    await migrations.start(OPERATION, "vm-1", "kvm-1", "kvm-2", 1)
    await migrations.start("other#1", "vm-1", "kvm-1", "kvm-3", 1)
    await migrations.start("other#1", "vm-2", "kvm-1", "kvm-3", 1)
    await migrations.finish("other#1", "vm-1", MigrationState.FAILED, "refused")
    assert await migrations.unfinished("kvm-1", "vm-1") == {OPERATION: "kvm-2"}
    assert await migrations.unfinished("kvm-2", "vm-1") == {}
    assert await migrations.open_operations("kvm-1") == {OPERATION, "other#1"}
    await migrations.close("kvm-1", ["other#1"])
    assert await migrations.unfinished("kvm-1", "vm-1") == {OPERATION: "kvm-2"}
    await migrations.close("kvm-1", [OPERATION])
    assert await migrations.open_operations("kvm-1") == set()
    assert await migrations.unfinished("kvm-1", "vm-1") == {}
    (seen,) = await migrations.list(OPERATION)
    assert seen.state is MigrationState.CANCELED


async def test_what_the_latest_operation_has_moved(inventory: Inventory) -> None:
    migrations = inventory.vm_migrations
    assert await migrations.latest_moves("kvm-1") == []
    for operation, vms in (("old#1", ("vm-1", "vm-2")), (OPERATION, ("vm-2", "vm-3"))):
        for vm in vms:
            await migrations.start(operation, vm, "kvm-1", "kvm-2", 1)
            await migrations.finish(operation, vm, MigrationState.MOVED, None)
    await migrations.start(OPERATION, "vm-4", "kvm-1", "kvm-2", 1)
    await migrations.start(OPERATION, "vm-5", "kvm-9", "kvm-2", 1)
    await migrations.finish(OPERATION, "vm-5", MigrationState.MOVED, None)
    assert [one.vm for one in await migrations.latest_moves("kvm-1")] == ["vm-2", "vm-3"]
