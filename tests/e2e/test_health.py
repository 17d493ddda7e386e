"""How hosts are seen: cut off, hanging, back again; and what a killed worker costs."""

import asyncio
from collections.abc import Sequence

import pytest
import pytest_asyncio
from temporalio.client import ScheduleActionExecutionStartWorkflow, ScheduleHandle

from contracts.host_checks import HOST_CHECK_SCHEDULE
from tests.e2e.proofs import assert_in_service, assert_ticks
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(400)

VICTIM = "kvm-3"
_INTERVAL_S = 10
_APART_S = _INTERVAL_S / 2
_UNITS = "libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service"
_KILL = "systemctl kill --kill-who=main --signal"


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    """Running, with its hosts added; rounds begin when a test says so."""
    await populated.up()
    await prepare(populated)
    return populated


async def prepare(system: System) -> None:
    await system.set("host.check.timeout", "5")
    await system.set("host.check.interval", str(_INTERVAL_S))
    schedule = await schedule_of(system)
    await schedule.pause(note="a test")
    while (await schedule.describe()).info.running_actions:
        await asyncio.sleep(0.2)
    await run_round(system)  # peers are heard while all is well


async def schedule_of(system: System) -> ScheduleHandle:
    return (await system.client()).get_schedule_handle(HOST_CHECK_SCHEDULE)


async def begin_round(system: System) -> str:
    """The id of its workflow."""
    schedule = await schedule_of(system)
    before = (await schedule.describe()).info.num_actions
    await schedule.trigger()
    while (info := (await schedule.describe()).info).num_actions == before:
        await asyncio.sleep(0.1)
    action = info.recent_actions[-1].action
    assert isinstance(action, ScheduleActionExecutionStartWorkflow)
    return action.workflow_id


async def run_round(system: System) -> None:
    """Misses of rounds that follow each other at once count as one."""
    await asyncio.sleep(_APART_S)
    await (await system.workflow(await begin_round(system))).result()


async def status(system: System, host: str = VICTIM) -> tuple[str, int]:
    """The status, and how many checks were missed."""
    row = await system.host(host)
    return row["status"], row["missed_checks"]


async def statuses_told(system: System, host: str = VICTIM) -> list[str]:
    """Since its addition."""
    answer = await system.request("GET", "/v1/events", params={"subject": f"host/{host}"})
    events = [one for one in reversed(answer.json()["items"]) if one["kind"] == "host.status"]
    return [one["message"] for one in events][1:]


async def test_a_cut_cable_is_disconnected_then_down_by_two_paths(system: System, lab: Lab) -> None:
    await lab.cut(VICTIM)
    seen = []
    try:
        for _ in range(3):
            await run_round(system)
            seen.append(await status(system))
    finally:
        await lab.heal(VICTIM)
    assert seen == [("Up", 1), ("Disconnected", 2), ("Down", 3)]
    await run_round(system)
    assert await status(system) == ("Up", 0)
    disconnected, down, up = await statuses_told(system)
    assert disconnected.startswith("Up -> Disconnected: no answer to Hostler: ")
    assert down.startswith("Disconnected -> Down: no answer to Hostler: ")
    assert "in 3 checks; and no answer to " in down
    assert "kvm-1" in down
    assert "kvm-2" in down
    assert up == "Down -> Up: it answers again"
    await assert_ticks(lab)


async def test_one_missed_check_is_only_counted(system: System, lab: Lab) -> None:
    await lab.cut(VICTIM)
    try:
        await run_round(system)
        assert await status(system) == ("Up", 1)
    finally:
        await lab.heal(VICTIM)
    await run_round(system)
    assert await status(system) == ("Up", 0)
    assert await statuses_told(system) == []


@pytest.mark.some_a_day(
    ("strike", "repair"),
    [
        ([f"{_KILL}=STOP libvirtd"], [f"{_KILL}=CONT libvirtd"]),
        (
            [f"systemctl mask --runtime --now {_UNITS}"],
            [f"systemctl unmask --runtime {_UNITS}", "systemctl start libvirtd.socket libvirtd"],
        ),
    ],
)
async def test_a_libvirtd_that_does_not_answer_is_an_alert(
    system: System, lab: Lab, strike: Sequence[str], repair: Sequence[str]
) -> None:
    for command in strike:
        await lab.exec(VICTIM, "sh", "-c", command)
    try:
        for _ in range(4):
            await run_round(system)
        assert await status(system) == ("Alert", 4)
        assert await status(system, "kvm-1") == ("Up", 0)
        looked = await system.hostler("host", "check", VICTIM)
        assert looked.status == 1
        assert "libvirt silent" in looked.stderr
    finally:
        for command in repair:
            await lab.exec(VICTIM, "sh", "-c", command)
    looked = await system.hostler("host", "check", VICTIM)
    assert looked.stdout.startswith(f"{VICTIM} answers and is Up: vms 0")
    alert, _ = await statuses_told(system)
    assert alert.startswith("Up -> Alert: SSH answers, libvirt does not: ")


async def test_what_runs_on_a_host_is_seen(system: System, lab: Lab) -> None:
    await run_round(system)
    usage = (await system.host("kvm-1"))["usage"]
    assert (usage["vms"], usage["cpus_used"], usage["memory_used_mib"]) == (3, 3, 3 * 96)
    assert "kvm-1 answers and is Up: vms 3" in await system.done("host", "check", "kvm-1")
    assert (await system.host("kvm-2"))["usage"]["vms"] == 0


async def test_a_fence_that_went_missing_goes_up_again(system: System, lab: Lab) -> None:
    await system.done("maintenance", "enter", "kvm-1", "--watch")
    await lab.exec("kvm-1", "rm", "/etc/hostler/fence")
    await run_round(system)
    fence = await lab.exec("kvm-1", "cat", "/etc/hostler/fence")
    assert fence.stdout.strip() == "maintenance/kvm-1"
    assert "put up again: wanted: maintenance/kvm-1; the host has none" in await system.events(
        "host/kvm-1"
    )
    await system.done("maintenance", "leave", "kvm-1")
    await assert_in_service(lab, "kvm-1", await system.host("kvm-1"))
    await run_round(system)
    await assert_in_service(lab, "kvm-1", await system.host("kvm-1"))


async def test_a_host_that_comes_back_from_its_maintenance_is_up_at_once(
    system: System, lab: Lab
) -> None:
    await system.done("maintenance", "enter", "kvm-1", "--watch")
    await lab.cut("kvm-1")
    try:
        for _ in range(4):
            await run_round(system)
        row = await system.host("kvm-1")
        assert (row["status"], row["missed_checks"]) == ("Disconnected", 4)
        assert "it may be off on purpose" in row["status_reason"]
    finally:
        await lab.heal("kvm-1")
    await system.done("maintenance", "leave", "kvm-1", "--return-vms")
    assert (await system.host("kvm-1"))["status"] == "Up"


async def test_a_worker_killed_in_a_round(populated_split: System, lab: Lab) -> None:
    worker = await populated_split.worker()
    await prepare(populated_split)
    await lab.cut(VICTIM)
    try:
        began = await begin_round(populated_split)
        await populated_split.until_running(began, "check_hosts")
        populated_split.kill(worker)
        await populated_split.worker()
        await (await populated_split.workflow(began)).result()
        assert await status(populated_split) == ("Up", 1)
        assert [await status(populated_split, host) for host in ("kvm-1", "kvm-2")] == [
            ("Up", 0)
        ] * 2
        assert (await (await schedule_of(populated_split)).describe()).schedule.state.paused
    finally:
        await lab.heal(VICTIM)
    await run_round(populated_split)
    assert await status(populated_split) == ("Up", 0)
