"""The schedules of host checks and of power: made once, kept up to date, and paused by people
alone."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
)
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment

from activities.schedules import ScheduleActivities
from contracts.certificate_renewal import CERTIFICATE_RENEWAL_SCHEDULE
from contracts.certificates import AUTHORITY_UPKEEP_SCHEDULE
from contracts.host_checks import (
    HOST_CHECK_SCHEDULE,
    AlignScheduleInput,
    HostCheckInput,
    TriggerScheduleInput,
)
from contracts.passwords import PASSWORD_VERIFICATION_SCHEDULE
from contracts.power_actions import POWER_SYNC_SCHEDULE
from inventory import Inventory, SecretBox
from tests.databases import sqlite_database
from workers.schedules import ensure_schedules

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest_asyncio.fixture(loop_scope="package")
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    database = sqlite_database(tmp_path)
    yield Inventory(database, SecretBox(SecretBox.new_key()))
    await database.close()


@pytest_asyncio.fixture(loop_scope="package")
async def client(temporal: WorkflowEnvironment) -> AsyncIterator[Client]:
    """Without the schedules, before and after."""
    yield temporal.client
    for name in (
        HOST_CHECK_SCHEDULE,
        PASSWORD_VERIFICATION_SCHEDULE,
        POWER_SYNC_SCHEDULE,
        AUTHORITY_UPKEEP_SCHEDULE,
        CERTIFICATE_RENEWAL_SCHEDULE,
    ):
        await temporal.client.get_schedule_handle(name).delete()


async def schedule(client: Client, name: str = HOST_CHECK_SCHEDULE) -> Schedule:
    return (await client.get_schedule_handle(name).describe()).schedule


async def align(client: Client, every_s: int, schedule: str = HOST_CHECK_SCHEDULE) -> bool:
    aligned: bool = await ActivityEnvironment().run(
        ScheduleActivities(client).align_schedule,
        AlignScheduleInput(schedule=schedule, every_s=every_s),
    )
    return aligned


async def test_it_is_made_once_however_many_workers_start(
    client: Client, inventory: Inventory
) -> None:
    await inventory.settings.set("host.check.interval", 120, actor="test")
    await asyncio.gather(*(ensure_schedules(client, inventory, "queue-1") for _ in range(4)))
    made = await schedule(client)
    assert [interval.every for interval in made.spec.intervals] == [timedelta(seconds=120)]
    assert made.policy.overlap is ScheduleOverlapPolicy.SKIP
    assert isinstance(made.action, ScheduleActionStartWorkflow)
    assert (made.action.workflow, made.action.task_queue) == ("HostCheck", "queue-1")
    assert not made.state.paused
    power = await schedule(client, POWER_SYNC_SCHEDULE)
    assert [interval.every for interval in power.spec.intervals] == [timedelta(seconds=30)]
    assert isinstance(power.action, ScheduleActionStartWorkflow)
    assert power.action.workflow == "PowerSync"


async def test_one_that_a_person_paused_stays_paused(client: Client, inventory: Inventory) -> None:
    await ensure_schedules(client, inventory, "queue-1")
    await client.get_schedule_handle(HOST_CHECK_SCHEDULE).pause(note="network is rebuilt")
    await ensure_schedules(client, inventory, "queue-1")
    assert await align(client, 30)
    found = await schedule(client)
    assert (found.state.paused, found.state.note) == (True, "network is rebuilt")
    assert [interval.every for interval in found.spec.intervals] == [timedelta(seconds=30)]


async def test_a_newer_version_starts_what_it_knows_and_keeps_what_people_said(
    client: Client, inventory: Inventory
) -> None:
    action = ScheduleActionStartWorkflow(
        "OldCheck", {"old": 1}, id="old-check", task_queue="old-queue"
    )
    policy = SchedulePolicy(
        overlap=ScheduleOverlapPolicy.BUFFER_ALL, catchup_window=timedelta(days=1)
    )
    every = ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=45))])
    state = ScheduleState(paused=True, note="network is rebuilt")
    await client.create_schedule(HOST_CHECK_SCHEDULE, Schedule(action, every, policy, state))
    await asyncio.gather(*(ensure_schedules(client, inventory, "queue-2") for _ in range(3)))
    found = await schedule(client)
    assert isinstance(found.action, ScheduleActionStartWorkflow)
    assert (found.action.workflow, found.action.id) == ("HostCheck", HOST_CHECK_SCHEDULE)
    assert found.action.task_queue == "queue-2"
    assert len(found.action.args) == 1
    given = await client.data_converter.decode(found.action.args, [HostCheckInput])
    assert given == [HostCheckInput()]
    assert found.policy.overlap is ScheduleOverlapPolicy.SKIP
    assert found.policy.catchup_window == timedelta(seconds=10)
    assert (found.state.paused, found.state.note) == (True, "network is rebuilt")
    assert [interval.every for interval in found.spec.intervals] == [timedelta(seconds=45)]


async def test_a_round_changes_the_interval_only_if_it_is_another_one(
    client: Client, inventory: Inventory
) -> None:
    await ensure_schedules(client, inventory, "queue-1")
    assert not await align(client, 60)
    assert await align(client, 90)
    assert not await align(client, 90)


async def test_one_that_somebody_has_deleted_stays_so(client: Client, inventory: Inventory) -> None:
    await ensure_schedules(client, inventory, "queue-1")
    assert not await align(client, 30, schedule=str(uuid.uuid4()))


async def test_a_step_triggers_it_once_and_not_while_it_is_paused(
    client: Client, inventory: Inventory
) -> None:
    await ensure_schedules(client, inventory, "nobody")
    handle = client.get_schedule_handle(CERTIFICATE_RENEWAL_SCHEDULE)
    trigger = ScheduleActivities(client).trigger_schedule
    request = TriggerScheduleInput(schedule=CERTIFICATE_RENEWAL_SCHEDULE)
    await handle.pause()
    assert not await trigger(request)
    await handle.unpause()
    assert await trigger(request)
    while not (running := (await handle.describe()).info.running_actions):
        await asyncio.sleep(0.05)
    assert await trigger(request)
    while (described := (await handle.describe()).info).num_actions_skipped_overlap != 1:
        await asyncio.sleep(0.05)
    assert described.running_actions == running
    (started,) = running
    assert isinstance(started, ScheduleActionExecutionStartWorkflow)
    await client.get_workflow_handle(started.workflow_id).terminate()
    assert not await trigger(TriggerScheduleInput(schedule=str(uuid.uuid4())))


async def test_it_can_be_triggered(client: Client, inventory: Inventory) -> None:
    await ensure_schedules(client, inventory, "nobody")
    handle = client.get_schedule_handle(HOST_CHECK_SCHEDULE)
    await handle.trigger()
    while not (found := (await handle.describe()).info.running_actions):
        await asyncio.sleep(0.1)
    assert isinstance(found[0], ScheduleActionExecutionStartWorkflow)
    await client.get_workflow_handle(found[0].workflow_id).terminate()
