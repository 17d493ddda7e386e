"""Hosts are removed: nothing of Hostler is left on them, and none comes back by itself."""

import asyncio
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio

from tests.e2e.killing import Moments, MortalWorker
from tests.e2e.proofs import assert_nothing_left, assert_ticks, places
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(600)

HOST = "kvm-1"
ID = f"removal/{HOST}"


async def put_key(lab: Lab, host: str, path: Path) -> asyncssh.SSHKey:
    """A key beside Hostler's own line, as if it were that: what it opens is seen from outside."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=f"hostler:{host}")
    line = key.export_public_key("openssh").decode().strip()
    append = 'mkdir -p -m 700 ~root/.ssh; printf "%s\\n" "$0" >>~root/.ssh/authorized_keys'
    await lab.exec(host, "sh", "-c", append, line)
    key.write_private_key(path)
    return key


async def lets_in(lab: Lab, host: str, key: asyncssh.SSHKey) -> bool:
    """Whether a login with that key succeeds."""
    access = await lab.access(host)
    pinned = asyncssh.import_public_key(access.host_key)
    try:
        async with asyncssh.connect(
            access.address,
            username="root",
            client_keys=[key],
            known_hosts=([pinned], [], []),
            preferred_auth=["publickey"],
            agent_path=None,
            config=None,
        ):
            return True
    except asyncssh.PermissionDenied:
        return False


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    """Running, with its hosts added."""
    await populated.up()
    return populated


async def test_removed_after_maintenance_nothing_is_left(
    system: System, lab: Lab, tmp_path: Path
) -> None:
    key = await put_key(lab, HOST, tmp_path / "key")
    assert await lets_in(lab, HOST, key)
    refused = await system.hostler("host", "remove", HOST)
    assert refused.status == 1
    for vm in ("vm-1", "vm-2", "vm-3"):
        assert vm in refused.stderr

    planned = await system.done("host", "remove", HOST, "--after-maintenance", "--dry-run")
    assert "/etc/libvirt/hooks/qemu.d/hostler" in planned
    assert (await system.host(HOST))["resource_state"] == "Enabled"
    assert await lets_in(lab, HOST, key)

    told = await system.done("host", "remove", HOST, "--after-maintenance", "--reason", "sold")
    assert f"{HOST} is removed." in told
    await assert_nothing_left(lab, HOST)
    assert not await lets_in(lab, HOST, key)
    assert HOST not in (await places(lab)).values()
    await assert_ticks(lab)

    assert (await system.request("GET", f"/v1/hosts/{HOST}")).status_code == 404
    (tombstone,) = await system.shown("host", "removed")
    assert (tombstone["name"], tombstone["reason"]) == (HOST, "sold")
    assert tombstone["cleaned_at"] is not None
    assert any("removed (sold)" in line for line in await system.events(f"host/{HOST}"))
    late = await system.hostler("maintenance", "enter", HOST)
    assert f"There is no host '{HOST}'" in late.stderr
    await system.record(ID, "host_removal")
    await system.record(f"maintenance/{HOST}", "host_maintenance_handed_over")


async def test_a_maintenance_that_is_open_is_taken_over_and_a_shut_off_vm_is_named(
    system: System, lab: Lab
) -> None:
    await system.done("vm", "policy", "set", "cluster-1", "vm-3", "--pinned", "--reason", "licence")
    await system.done("maintenance", "enter", HOST, "--on-blocker", "shutdown", "--watch")
    refused = await system.hostler("host", "remove", HOST)
    assert "vm-3" in refused.stderr
    assert (await system.maintenance(HOST))["phase"] == "Ready"
    told = await system.done("host", "remove", HOST, "--leave-vms")
    assert "left: VM vm-3" in told
    await assert_nothing_left(lab, HOST)
    assert (await lab.virsh(HOST, "domstate", "vm-3")).stdout.strip() == "shut off"
    ended = await (await system.workflow(f"maintenance/{HOST}")).result()
    assert ended["handed_over_to"] == ID


STEPS = (
    "survey_removal",
    "hand_over_maintenance",
    "acquire_lease",
    "begin_removal",
    "clean_host",
    "remove_host",
    "release_lease",
)


async def test_a_worker_killed_at_each_step(
    populated_split: System, lab: Lab, tmp_path: Path, moments: Moments
) -> None:
    worker = MortalWorker(populated_split, tmp_path / "failpoints")
    await worker.start()
    await populated_split.done("maintenance", "enter", HOST, "--watch")
    armed = worker.arm(STEPS, moments)
    removing = asyncio.create_task(populated_split.done("host", "remove", HOST))
    await worker.die_at(armed, removing)
    assert f"{HOST} is removed." in await removing
    await assert_nothing_left(lab, HOST)
    assert len(await populated_split.shown("host", "removed")) == 1
    removed = [
        line
        for line in await populated_split.events(f"host/{HOST}")
        if line.startswith("removed (")
    ]
    assert len(removed) == 1


async def test_a_lost_host_that_boots_again_is_cleaned_and_not_taken_back(
    system: System, lab: Lab
) -> None:
    alive = await system.hostler("host", "remove", HOST, "--forced", "--reason", "burnt")
    assert alive.status == 1
    assert "answers and is Enabled" in alive.stderr
    await lab.kill(HOST)
    await system.done("maintenance", "enter", HOST, "--host-is-down", "--watch")
    told = await system.done("host", "remove", HOST, "--forced", "--reason", "burnt")
    assert "until it answers again" in told
    (tombstone,) = await system.shown("host", "removed")
    assert tombstone["cleaned_at"] is None

    await lab.up()
    # By the schedule that watches hosts.
    while (await system.shown("host", "removed"))[0]["cleaned_at"] is None:
        await asyncio.sleep(1)
    await assert_nothing_left(lab, HOST)
    assert (await system.request("GET", f"/v1/hosts/{HOST}")).status_code == 404
    assert any("was cleaned" in line for line in await system.events(f"host/{HOST}"))
