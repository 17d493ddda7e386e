"""Hosts get a new installation, and stay the hosts that they were."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.conftest import HOSTS, enable_bmcs
from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.proofs import assert_in_service, assert_ticks, places
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(900)

HOST = "kvm-1"
ID = f"reinstallation/{HOST}"
OPERATION = f"/v1/operations/{ID}"


async def row_of(lab: Lab, name: str) -> dict[str, str]:
    return next(row for row in (await lab.status())["hosts"] if row["name"] == name)


async def until(system: System, phase: str, question: str | None = None) -> dict[str, Any]:
    """What the re-installation says of itself, when it stands there."""
    while True:
        details: dict[str, Any] = (await system.request("GET", OPERATION)).json()["details"] or {}
        if details.get("phase") == phase and details.get("question") == question:
            return details
        await asyncio.sleep(0.3)


async def answer(system: System, *options: str) -> None:
    await system.done("host", "answer-reinstallation", HOST, *options)


async def rebuild(system: System, lab: Lab) -> dict[str, str]:
    """As soon as it is waited for; the lab's row of the host as it is then."""
    await until(system, "Reinstalling")
    await lab.rebuild(HOST)
    return await row_of(lab, HOST)


async def assert_back(system: System, lab: Lab, row: dict[str, str]) -> None:
    """In service under its name, with its history; and a VM goes to it."""
    host = await system.host(HOST)
    await assert_in_service(lab, HOST, host)
    assert (host["status"], host["host_key_sha256"]) == ("Up", row["host_key_sha256"])
    assert not host["being_reinstalled"]
    events = await system.events(f"host/{HOST}")
    keys = await lab.exec(HOST, "cat", "/root/.ssh/authorized_keys", check=False)
    assert keys.stdout.count(f" hostler:{HOST}") == 1, events
    for once in ("is accepted no more", "Maintenance -> Enabled: re-installed"):
        assert len([event for event in events if once in event]) == 1, events
    assert any("Creating -> Enabled" in event for event in events)
    # The host that has vm-1 now is emptied, with all others but this one closed: it comes here.
    origin = (await places(lab))["vm-1"]
    other = next(name for name in HOSTS if name not in (HOST, origin))
    await system.done("host", "disable", other)
    await system.done("maintenance", "enter", origin, "--watch")
    assert (await places(lab))["vm-1"] == HOST
    await system.done("maintenance", "leave", origin)
    await assert_ticks(lab)


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    """Running, with its hosts added."""
    await populated.up()
    return populated


async def test_for_real_after_a_maintenance(system: System, lab: Lab) -> None:
    former = await row_of(lab, HOST)
    refused = await system.hostler("host", "reinstall", HOST)
    assert refused.status == 1
    for vm in ("vm-1", "vm-2", "vm-3"):
        assert vm in refused.stderr
    planned = await system.done("host", "reinstall", HOST, "--after-maintenance", "--dry-run")
    assert "from here on there is no way back" in planned
    assert (await system.host(HOST))["resource_state"] == "Enabled"

    working = asyncio.create_task(
        system.done("host", "reinstall", HOST, "--after-maintenance", "--reason", "disk broken")
    )
    await until(system, "Reinstalling")
    # The old installation: fenced, without Hostler's key, and nobody logs in.
    assert (await lab.exec(HOST, "test", "-s", "/etc/hostler/fence")).exit_status == 0
    keys = await lab.exec(HOST, "cat", "/root/.ssh/authorized_keys", check=False)
    assert "hostler:" not in keys.stdout
    assert (await system.host(HOST))["being_reinstalled"]
    late = await system.hostler("operation", "cancel", "reinstallation", HOST)
    assert "the old installation is trusted no more" in late.stderr
    left = await system.hostler("maintenance", "leave", HOST)
    assert (left.status, (await system.host(HOST))["resource_state"]) == (1, "Maintenance")

    row = await rebuild(system, lab)
    assert row["host_key_sha256"] != former["host_key_sha256"]
    asked = await until(system, "Question", "host key")
    assert asked["host_key_sha256"] == row["host_key_sha256"]
    await answer(system, "--accept-host-key", row["host_key_sha256"])
    # The former password is refused; all findings are told.
    asked = await until(system, "Question", "findings")
    assert [finding["code"] for finding in asked["findings"]] == ["login-refused"]
    await answer(system, "--password-file", row["password_file"])
    assert f"{HOST} is Enabled, with the host key {row['host_key_sha256']}." in await working
    await system.record(ID, "host_reinstallation")
    await assert_back(system, lab, row)


async def test_a_maintenance_that_is_open_is_taken_over_and_its_vms_come_back(
    system: System, lab: Lab
) -> None:
    await system.done("maintenance", "enter", HOST, "--watch")
    working = asyncio.create_task(system.done("host", "reinstall", HOST, "--return-vms"))
    row = await rebuild(system, lab)
    await answer(
        system,
        *("--accept-host-key", row["host_key_sha256"], "--password-file", row["password_file"]),
    )
    await working
    await (await system.workflow(f"return/{HOST}")).result()
    assert set((await places(lab)).values()) == {HOST}
    await assert_ticks(lab)


async def test_a_host_that_lost_its_power(system: System, lab: Lab) -> None:
    """The confirmed-down path leads here: its VMs are lost with its disk, or run from shared
    storage again when somebody starts them."""
    await lab.kill(HOST)
    refused = await system.hostler("host", "reinstall", HOST, "--after-maintenance")
    assert "host_is_down" in refused.stderr
    working = asyncio.create_task(
        system.done("host", "reinstall", HOST, "--host-is-down", "--reason", "burnt")
    )
    row = await rebuild(system, lab)
    await answer(
        system,
        *("--accept-host-key", row["host_key_sha256"], "--password-file", row["password_file"]),
    )
    await working
    host = await system.host(HOST)
    await assert_in_service(lab, HOST, host)
    assert (host["status"], host["host_key_sha256"]) == ("Up", row["host_key_sha256"])


async def test_its_bmc_boots_it_from_the_network(system: System, lab: Lab) -> None:
    await enable_bmcs(system, lab)
    former = await row_of(lab, HOST)
    working = asyncio.create_task(
        system.done("host", "reinstall", HOST, "--after-maintenance", "--network-boot")
    )
    asked = await until(system, "Question", "host key")
    row = await row_of(lab, HOST)
    assert asked["host_key_sha256"] == row["host_key_sha256"] != former["host_key_sha256"]
    await answer(
        system,
        *("--accept-host-key", row["host_key_sha256"], "--password-file", row["password_file"]),
    )
    await working
    assert [event for event in await system.events(f"host/{HOST}") if "from the network" in event]
    await assert_in_service(lab, HOST, await system.host(HOST))
    await lab.reboot(HOST)  # that was once: it has its disk again
    assert (await row_of(lab, HOST))["host_key_sha256"] == row["host_key_sha256"]


STEPS = (
    *("survey_removal", "hand_over_maintenance", "acquire_lease", "read_environment"),
    *("withdraw_trust", "take_away_key", "settle_credential", "await_host_key"),
    *("preflight_host", "pin_host_key"),
    *("record_event", "install_fence", "stage_own_key", "install_own_key", "promote_own_key"),
    *("tell_hosts", "check_host", "take_down_fence", "return_host", "release_lease"),
)


async def test_a_worker_killed_at_each_step(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    async def operator() -> dict[str, str]:
        row = await rebuild(populated_split, lab)
        while (await populated_split.request("GET", OPERATION)).json()["status"] == "RUNNING":
            # While no worker answers, or the question is another one by now, it is asked again.
            await populated_split.hostler(
                *("host", "answer-reinstallation", HOST),
                *("--accept-host-key", row["host_key_sha256"]),
                *("--password-file", row["password_file"]),
            )
            await asyncio.sleep(2)
        return row

    worker = MortalWorker(populated_split, tmp_path / "failpoints")
    await worker.start()
    await populated_split.done("maintenance", "enter", HOST, "--watch")
    armed = worker.arm(STEPS, moments)
    working = asyncio.create_task(populated_split.done("host", "reinstall", HOST))
    answering = asyncio.create_task(operator())
    await worker.die_at(armed, working)
    await working
    await assert_back(populated_split, lab, await answering)
