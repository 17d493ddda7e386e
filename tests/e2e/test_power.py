"""Power of the lab's hosts through all three ways in, seen from outside: by ipmitool, and by the
boot that each host is in."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts.operations import DEFAULT_TASK_QUEUE
from tests.e2e.conftest import enable_bmcs
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(900)

HOST = "kvm-3"  # which has no guests
ACTIONS = ("off", "status", "on", "status", "reset", "cycle", "soft", "on")
_PAUSE_S = 0.5


async def row_of(lab: Lab, host: str = HOST) -> dict[str, Any]:
    """What `lab status` says of a host."""
    return next(row for row in (await lab.status())["hosts"] if row["name"] == host)


async def is_on(system: System, lab: Lab, host: str = HOST) -> bool:
    """By ipmitool, past Hostler."""
    said = await _ipmitool(system, lab, host, "power", "status")
    assert said.stdout in ("Chassis Power is on\n", "Chassis Power is off\n"), said
    return "on" in said.stdout.split()


async def _ipmitool(system: System, lab: Lab, host: str, *command: str) -> Any:
    bmc = (await row_of(lab, host))["bmc"]
    return await system.command(
        *("ipmitool", "-I", "lanplus", "-C", "3", "-H", bmc["address"], "-p", str(bmc["port"])),
        *("-U", bmc["user"], "-f", bmc["password_file"], *command),
    )


async def by_command(system: System, action: str) -> str:
    """What it has ended with: the power."""
    if action == "status":
        return str((await system.shown("power", "status", HOST))["state"])
    return str((await system.shown("power", action, HOST, "--timeout", "120"))["state"])


async def by_api(system: System, action: str) -> str:
    answer = await system.request(
        "POST", f"/v1/hosts/{HOST}/power", json={"action": action, "timeout": 120}
    )
    return str((await system.ended(answer))["state"])


async def by_temporal(system: System, action: str) -> str:
    request = {"host": HOST, "action": action, "timeout": 120}
    workflow_id = f"by-hand/power/{action}"
    said = await system.temporal(
        *("workflow", "start", "--type", "PowerAction", "--task-queue", DEFAULT_TASK_QUEUE),
        *("--workflow-id", workflow_id, "--input", json.dumps(request)),
    )
    assert said.status == 0, said
    result: dict[str, Any] = await (await system.workflow(workflow_id)).result()
    return str(result["state"])


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> Any:
    """Running, with its hosts added and their BMCs enabled; all hosts are on afterwards."""
    await populated.up()
    await enable_bmcs(populated, lab)
    yield populated
    await lab.power_on()


async def test_every_action_on_every_way(system: System, lab: Lab) -> None:
    for way, action in itertools.product((by_command, by_api, by_temporal), ACTIONS):
        before, was_on = (await row_of(lab))["boot_id"], await is_on(system, lab)
        state = await way(system, action)
        on = was_on if action == "status" else action not in ("off", "soft")
        assert await is_on(system, lab) == on
        kept = (await system.host(HOST))["power"]
        assert (action, state, kept["state"]) == (action, *(2 * ["On" if on else "Off"])), kept
        if action == "status":
            assert (await row_of(lab))["boot_id"] == before
        elif on:
            while (after := (await row_of(lab))["boot_id"]) is None:
                await asyncio.sleep(_PAUSE_S)
            assert after != before, action
            await _until_it_answers(system)


STEPS = (
    "await_power_lease",
    "survey_power",
    "send_power_command",
    "watch_power",
    "finish_power_command",
)


async def test_a_worker_killed_at_each_step_of_a_cycle(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    worker = MortalWorker(populated_split, tmp_path / "failpoints")
    await worker.start()
    await enable_bmcs(populated_split, lab)
    boots = [(await row_of(lab))["boot_id"]]

    async def note_boots() -> None:
        while True:
            seen = (await row_of(lab))["boot_id"]
            if seen is not None and seen != boots[-1]:
                boots.append(seen)
            await asyncio.sleep(_PAUSE_S)

    noting = asyncio.create_task(note_boots())
    armed = worker.arm(STEPS, moments)
    cycling = asyncio.create_task(by_command(populated_split, "cycle"))
    await worker.die_at(armed, cycling)
    assert await cycling == "On"
    assert await is_on(populated_split, lab)
    await _until_it_answers(populated_split)
    noting.cancel()
    assert len(boots) == 2, boots
    events = await populated_split.events(f"host/{HOST}")
    assert events.count("cycle: On -> On: it is in another boot than before") == 1, events


async def pull_the_plug(_system: System, lab: Lab) -> None:
    await lab.kill(HOST)


async def kill_through_the_bmc(system: System, lab: Lab) -> None:
    """Past Hostler."""
    said = await _ipmitool(system, lab, HOST, "power", "off")
    assert said.status == 0, said
    while await is_on(system, lab):
        await asyncio.sleep(_PAUSE_S)


@pytest.mark.some_a_day("lose_power", [pull_the_plug, kill_through_the_bmc])
async def test_a_host_that_loses_its_power_is_off_then_down(
    system: System, lab: Lab, lose_power: Any
) -> None:
    await system.set("host.check.interval", "10")
    await system.set("host.check.timeout", "5")
    await system.set("outofbandmanagement.sync.timeout", "4")
    await system.set("outofbandmanagement.sync.interval", "5")
    assert "On" in await system.done("power", "status", HOST)
    await lose_power(system, lab)
    while (host := await system.host(HOST))["power"]["state"] != "Off":
        await asyncio.sleep(_PAUSE_S)
    events = await system.events(f"host/{HOST}")
    assert any("On -> Off" in event for event in events), events
    while (host := await system.host(HOST))["status"] != "Down":
        await asyncio.sleep(_PAUSE_S)
    assert "its BMC says that it is off" in host["status_reason"]
    # That is the word which a maintenance needs.
    await system.done("maintenance", "enter", HOST, "--reason", "no power")
    view = await system.until_phase(HOST, "Ready")
    assert "the host is down" in view["message"]


async def test_a_host_with_vms_is_refused(
    system: System, lab: Lab, guests: tuple[str, ...]
) -> None:
    said = await system.hostler("power", "off", "kvm-1")
    assert said.status == 1
    for guest in guests:
        assert guest in said.stderr
        await lab.ticks_on(guest)


async def test_the_password_of_a_bmc_is_changed(system: System, lab: Lab) -> None:
    bmc = (await row_of(lab))["bmc"]
    former = bmc["password_file"]
    await system.done("oobm", "change-password", HOST)
    said = await system.hostler("oobm", "test", HOST, "--password-file", former)
    assert said.status == 1
    assert "On" in await system.done("oobm", "test", HOST)
    # As it was, for whoever comes next.
    await system.done("oobm", "change-password", HOST, "--password-file", former)
    assert await is_on(system, lab)


async def _until_it_answers(system: System) -> None:
    while (await system.hostler("host", "check", HOST)).status != 0:
        await asyncio.sleep(_PAUSE_S)


async def test_a_maintenance_switches_off_and_on(system: System, lab: Lab) -> None:
    before = (await row_of(lab))["boot_id"]
    await system.done("maintenance", "enter", HOST, "--power-off-when-ready", "--watch")
    assert not await is_on(system, lab)
    shown = await system.shown("maintenance", "status", HOST)
    assert shown["message"] == "Ready for maintenance: it is switched off"
    await system.done("maintenance", "leave", HOST)
    assert await is_on(system, lab)
    row = await row_of(lab)
    assert row["boot_id"] != before
    host = await system.shown("host", "show", HOST)
    assert (host["resource_state"], host["status"]) == ("Enabled", "Up")
