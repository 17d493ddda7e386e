"""Whatever is killed in the middle: the operation still ends right."""

import asyncio

import pytest

from tests.e2e.conftest import SLOWLY, add_host, add_hosts, add_topology
from tests.e2e.proofs import assert_in_service, assert_ticks, places
from tests.e2e.system import START, System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(400)

ID = "maintenance/kvm-1"


async def assert_completes(system: System, lab: Lab) -> None:
    """The maintenance goes on to its end, with every VM running exactly once."""
    await system.until_phase("kvm-1", "Ready")
    assert "kvm-1" not in (await places(lab)).values()
    await assert_ticks(lab)
    await system.done("maintenance", "leave", "kvm-1")
    await assert_in_service(lab, "kvm-1", await system.host("kvm-1"))


async def test_a_worker_killed_in_the_middle_of_migrations(split: System, lab: Lab) -> None:
    worker = await split.worker(**SLOWLY)
    await add_hosts(split, lab)
    await split.done("maintenance", "enter", "kvm-1")
    await split.until_migrating("kvm-1", 3)
    split.kill(worker)
    await split.worker()
    await assert_completes(split, lab)
    await split.record(ID, "host_maintenance_worker_killed")


async def test_all_of_hostler_up_killed_in_the_middle_of_migrations(
    embedded: System, lab: Lab
) -> None:
    everything = await embedded.up(**SLOWLY)
    await add_hosts(embedded, lab)
    await embedded.done("maintenance", "enter", "kvm-1")
    await embedded.until_migrating("kvm-1", 3)
    embedded.kill(everything)
    await embedded.up()
    await assert_completes(embedded, lab)


async def test_a_worker_killed_while_it_adds_a_host(split: System, lab: Lab) -> None:
    await add_topology(split)
    (row, *_) = (await lab.status())["hosts"]
    worker = await split.worker()
    adding = asyncio.create_task(add_host(split, row))
    # The hook is in place: the fence is being proven, or libvirtd is being restarted.
    while (
        await lab.exec(row["name"], "test", "-e", "/etc/hostler/fence", check=False)
    ).exit_status:
        await asyncio.sleep(0.02)
    split.kill(worker)
    await split.worker()
    await adding
    await assert_in_service(lab, row["name"], await split.host(row["name"]))
    assert (await split.host(row["name"]))["status"] == "Up"
    await split.record("addition/kvm-1", "host_addition_worker_killed")


@pytest.mark.parametrize("way", ["temporal", "leave"])
async def test_cancel_in_the_middle_of_three_migrations(
    embedded: System, lab: Lab, way: str
) -> None:
    await embedded.up(**SLOWLY)
    await add_hosts(embedded, lab)
    await embedded.done("maintenance", "enter", "kvm-1")
    await embedded.until_migrating("kvm-1", 3)
    handle = await embedded.workflow(ID)
    if way == "temporal":
        await embedded.temporal("workflow", "cancel", "--workflow-id", ID)
    else:
        await embedded.done("maintenance", "leave", "kvm-1")
    while (await handle.describe()).close_time is None:
        await asyncio.sleep(0.2)
    status = (await handle.describe()).status
    assert status is not None
    assert status.name == ("CANCELED" if way == "temporal" else "COMPLETED")
    assert set((await places(lab)).values()) == {"kvm-1"}
    await assert_ticks(lab)
    await assert_in_service(lab, "kvm-1", await embedded.host("kvm-1"))
    # The lease is gone: another operation may begin at once.
    await embedded.done("maintenance", "enter", "kvm-1", "--dry-run")
    await embedded.record(ID, f"host_maintenance_{way}_cancel")


async def test_a_second_is_refused_and_a_terminated_one_locks_nothing(
    embedded: System, lab: Lab
) -> None:
    await embedded.up(**SLOWLY)
    await add_hosts(embedded, lab)
    start = (*START, "--input", '{"host": "kvm-1"}', "--workflow-id")
    assert (await embedded.temporal(*start, "first")).status == 0
    await embedded.until_migrating("kvm-1", 3)
    assert (await embedded.temporal(*start, "second")).status == 0
    refused = await embedded.temporal("workflow", "result", "--workflow-id", "second")
    assert refused.status != 0
    assert "kvm-1 is held by first" in refused.stdout + refused.stderr

    await embedded.temporal("workflow", "terminate", "--workflow-id", "first")
    assert (await embedded.host("kvm-1"))["resource_state"] == "PrepareForMaintenance"
    assert (await embedded.temporal(*start, "third")).status == 0
    await embedded.until_migrating("kvm-1", 3)
    assert "placement: from first, which has ended" in await embedded.events("host/kvm-1")
    await embedded.temporal("workflow", "terminate", "--workflow-id", "third")
    # Nothing is open: `leave` adopts what the terminated one left.
    await embedded.done("maintenance", "leave", "kvm-1")
    assert set((await places(lab)).values()) == {"kvm-1"}
    await assert_ticks(lab)
    await assert_in_service(lab, "kvm-1", await embedded.host("kvm-1"))
    await embedded.record("third", "host_maintenance_takeover")
    await embedded.record(ID, "host_maintenance_adopted_to_leave")
