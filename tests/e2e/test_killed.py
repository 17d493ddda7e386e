"""Whatever is killed in the middle: the operation still ends right."""

import asyncio
import signal

import pytest

from tests.e2e.conftest import add_host, add_topology, slow_down, speed_up
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


async def test_a_worker_killed_in_the_middle_of_migrations(
    populated_split: System, lab: Lab
) -> None:
    worker = await populated_split.worker()
    await slow_down(populated_split)
    await populated_split.done("maintenance", "enter", "kvm-1")
    await populated_split.until_migrating("kvm-1", 3)
    populated_split.kill(worker)
    await speed_up(populated_split)
    await populated_split.worker()
    await assert_completes(populated_split, lab)
    await populated_split.record(ID, "host_maintenance_worker_killed")


async def test_all_of_hostler_up_killed_in_the_middle_of_migrations(
    populated: System, lab: Lab
) -> None:
    everything = await populated.up()
    await slow_down(populated)
    await populated.done("maintenance", "enter", "kvm-1")
    await populated.until_migrating("kvm-1", 3)
    populated.kill(everything)
    await populated.up()
    await speed_up(populated)
    await assert_completes(populated, lab)


async def test_a_worker_killed_while_it_adds_a_host(split: System, lab: Lab) -> None:
    worker = await split.worker()
    await add_topology(split)
    (row, *_) = (await lab.status())["hosts"]
    # Another change on the host keeps the installation of the fence waiting for its lock.
    hold = "mkdir -p /etc/hostler; flock /etc/hostler/lock sleep 10"
    held = asyncio.create_task(lab.exec(row["name"], "sh", "-c", hold))
    adding = asyncio.create_task(add_host(split, row))
    await split.until_running("addition/kvm-1", "install_fence")
    split.kill(worker)
    await held
    await split.worker()
    await adding
    await assert_in_service(lab, row["name"], await split.host(row["name"]))
    assert (await split.host(row["name"]))["status"] == "Up"
    await split.record("addition/kvm-1", "host_addition_worker_killed")


async def test_a_stopped_worker_that_goes_on_after_a_takeover(
    populated_split: System, lab: Lab
) -> None:
    stopped = await populated_split.worker()
    await slow_down(populated_split)
    start = (*START, "--input", '{"host": "kvm-1"}', "--workflow-id")
    assert (await populated_split.temporal(*start, "first")).status == 0
    await populated_split.until_migrating("kvm-1", 3)
    stopped.send_signal(signal.SIGSTOP)
    await populated_split.temporal("workflow", "terminate", "--workflow-id", "first")
    await speed_up(populated_split)
    await populated_split.worker()
    assert (await populated_split.temporal(*start, "second")).status == 0
    await populated_split.until_phase("kvm-1", "Ready")
    where = await places(lab)
    assert "kvm-1" not in where.values()

    stopped.send_signal(signal.SIGCONT)
    # Its end is also the end of whatever it still had to do.
    stopped.send_signal(signal.SIGTERM)
    await asyncio.to_thread(stopped.wait)
    assert await places(lab) == where
    await assert_ticks(lab)
    host = await populated_split.host("kvm-1")
    assert (host["resource_state"], host["fence"]) == ("Maintenance", "second")
    fence = await lab.exec("kvm-1", "cat", "/etc/hostler/fence")
    assert fence.stdout.strip() == "second"
    await populated_split.done("maintenance", "leave", "kvm-1")
    await assert_in_service(lab, "kvm-1", await populated_split.host("kvm-1"))


async def test_a_worker_killed_while_vms_come_back(populated_split: System, lab: Lab) -> None:
    worker = await populated_split.worker()
    await populated_split.done("maintenance", "enter", "kvm-1")
    await populated_split.until_phase("kvm-1", "Ready")
    await populated_split.done("maintenance", "leave", "kvm-1")
    await slow_down(populated_split)
    returning = asyncio.create_task(populated_split.done("maintenance", "return", "kvm-1"))
    # Its half of a migration that runs.
    while not (await lab.virsh("kvm-1", "list", "--name", "--state-paused")).stdout.split():
        await asyncio.sleep(0.1)
    populated_split.kill(worker)
    await speed_up(populated_split)
    await populated_split.worker()
    assert "3 of 3" in await returning
    assert set((await places(lab)).values()) == {"kvm-1"}
    await assert_ticks(lab)
    await assert_in_service(lab, "kvm-1", await populated_split.host("kvm-1"))


@pytest.mark.some_a_day("way", ["temporal", "leave"])
async def test_cancel_in_the_middle_of_three_migrations(
    populated: System, lab: Lab, way: str
) -> None:
    await populated.up()
    await slow_down(populated)
    await populated.done("maintenance", "enter", "kvm-1")
    await populated.until_migrating("kvm-1", 3)
    handle = await populated.workflow(ID)
    if way == "temporal":
        await populated.temporal("workflow", "cancel", "--workflow-id", ID)
    else:
        await populated.done("maintenance", "leave", "kvm-1")
    while (await handle.describe()).close_time is None:
        await asyncio.sleep(0.2)
    status = (await handle.describe()).status
    assert status is not None
    assert status.name == ("CANCELED" if way == "temporal" else "COMPLETED")
    assert set((await places(lab)).values()) == {"kvm-1"}
    await assert_ticks(lab)
    await assert_in_service(lab, "kvm-1", await populated.host("kvm-1"))
    # The lease is gone: another operation may begin at once.
    await populated.done("maintenance", "enter", "kvm-1", "--dry-run")
    await populated.record(ID, f"host_maintenance_{way}_cancel")


async def test_a_second_is_refused_and_a_terminated_one_locks_nothing(
    populated: System, lab: Lab
) -> None:
    await populated.up()
    await slow_down(populated)
    start = (*START, "--input", '{"host": "kvm-1"}', "--workflow-id")
    assert (await populated.temporal(*start, "first")).status == 0
    await populated.until_migrating("kvm-1", 3)
    assert (await populated.temporal(*start, "second")).status == 0
    refused = await populated.temporal("workflow", "result", "--workflow-id", "second")
    assert refused.status != 0
    assert "kvm-1 is held by first" in refused.stdout + refused.stderr

    await populated.temporal("workflow", "terminate", "--workflow-id", "first")
    assert (await populated.host("kvm-1"))["resource_state"] == "PrepareForMaintenance"
    assert (await populated.temporal(*start, "third")).status == 0
    await populated.until_migrating("kvm-1", 3)
    assert "placement: from first, which has ended" in await populated.events("host/kvm-1")
    await populated.temporal("workflow", "terminate", "--workflow-id", "third")
    # Nothing is open: `leave` adopts what the terminated one left.
    await populated.done("maintenance", "leave", "kvm-1")
    assert set((await places(lab)).values()) == {"kvm-1"}
    await assert_ticks(lab)
    await assert_in_service(lab, "kvm-1", await populated.host("kvm-1"))
    await populated.record("third", "host_maintenance_takeover")
    await populated.record(ID, "host_maintenance_adopted_to_leave")
