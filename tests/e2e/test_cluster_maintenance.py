"""ClusterMaintenance over the lab's hosts: reboots, hooks, and what fails or is killed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.conftest import HOSTS
from tests.e2e.proofs import assert_in_service, assert_ticks, places
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(600)

CLUSTER = "cluster-1"
ID = f"cluster-maintenance/{CLUSTER}"
MAINTAIN = ("cluster", "maintain", CLUSTER, "--reboot")
LEFT = ("/var/lib/hostler", "/etc/hostler/hooks")
RAN, BROKEN = "/root/ran", "/root/broken"


@pytest_asyncio.fixture(autouse=True)
async def clean(lab: Lab) -> AsyncIterator[None]:
    """No trace of hooks on the hosts."""

    async def remove() -> None:
        for host in HOSTS:
            await lab.exec(host, "rm", "-rf", *LEFT, RAN, BROKEN)

    await remove()
    yield
    await remove()


async def view(system: System) -> dict[str, Any]:
    """Of the open maintenance; empty while there is none, or nobody to tell."""
    answer = await system.request("GET", f"/v1/clusters/{CLUSTER}/maintenance")
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


async def until(system: System, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The view as soon as it is as wanted. pytest's time-out bounds it."""
    while True:
        seen = await view(system)
        if seen and wanted(seen):
            return seen
        await asyncio.sleep(0.2)


async def boot_ids(lab: Lab) -> dict[str, str]:
    return {row["name"]: row["boot_id"] for row in (await lab.status())["hosts"]}


async def runs_of(lab: Lab, host: str) -> str:
    """One letter for each time that the hook has run."""
    return (await lab.exec(host, "cat", RAN, check=False)).stdout


async def test_three_hosts_are_rebooted_and_a_failed_check_keeps_its_host_out_until_repaired(
    populated: System, lab: Lab
) -> None:
    await populated.up()
    before = await boot_ids(lab)
    await lab.exec("kvm-2", "touch", BROKEN)
    own = "#!/bin/sh\nprintf x >>/root/ran\necho done on $HOSTLER_HOST\n"
    for host in HOSTS:
        put = "mkdir -p /etc/hostler/hooks; cat >$1; chmod 755 $1"
        hook = "/etc/hostler/hooks/maintenance"
        await lab.exec(host, "sh", "-c", put, "sh", hook, stdin=own)
    check = f"post_maintenance=test ! -e {BROKEN}"
    started = await populated.hostler(*MAINTAIN, "--hook", check, "--reason", "kernel", "--watch")

    # It has stopped at kvm-2, and says so.
    assert started.status == 1
    assert "kvm-2 has failed at post_maintenance" in started.stderr
    assert f"Run: hostler cluster maintenance resume {CLUSTER}" in started.stdout
    seen = await view(populated)
    assert [host["state"] for host in seen["hosts"]] == ["done", "failed", "waiting"]
    states = [(await populated.host(host))["resource_state"] for host in HOSTS]
    assert states == ["Enabled", "Maintenance", "Enabled"]
    assert [await runs_of(lab, host) for host in HOSTS] == ["x", "x", ""]
    now = await boot_ids(lab)
    assert [now[host] != before[host] for host in HOSTS] == [True, True, False]
    assert "kvm-2" not in (await places(lab)).values()
    await assert_ticks(lab)
    page = await populated.done("cluster", "maintenance", "status", CLUSTER)
    assert f"hostler cluster maintenance hooks {CLUSTER} kvm-2" in page

    await lab.exec("kvm-2", "rm", BROKEN)
    await populated.done("cluster", "maintenance", "resume", CLUSTER)
    done = await populated.hostler("cluster", "maintenance", "status", CLUSTER, "--watch")
    assert done.status == 0, done
    after = await boot_ids(lab)
    assert all(after[host] != before[host] for host in HOSTS)
    assert after["kvm-2"] == now["kvm-2"], "what was done before is not done again"
    operation = await populated.shown("operation", "show", "cluster-maintenance", CLUSTER)
    assert operation["details"]["outcome"] == "completed"
    assert [
        (host["boot_id_before"], host["boot_id_after"]) for host in operation["details"]["hosts"]
    ] == [(before[host], after[host]) for host in HOSTS]
    assert [await runs_of(lab, host) for host in HOSTS] == ["x", "x", "x"]
    await places(lab)
    await assert_ticks(lab)
    for host in HOSTS:
        await assert_in_service(lab, host, await populated.host(host))
    printed = await populated.done("cluster", "maintenance", "hooks", CLUSTER, "kvm-2")
    assert "    done on kvm-2" in printed
    assert "post_maintenance, attempt 2" in printed
    assert "hook post_maintenance, attempt 1: status 1" in await populated.events("host/kvm-2")
    handle = await populated.workflow(ID)
    history = "".join([str(event) async for event in handle.fetch_history_events()])
    assert "done on" not in history, "what hooks print belongs into the inventory"
    await populated.record(ID, "cluster_maintenance")


async def test_workers_killed_in_a_hook_and_in_a_reboot(populated_split: System, lab: Lab) -> None:
    worker = await populated_split.worker()
    before = await boot_ids(lab)
    work = f"maintenance=sh -c 'printf x >>{RAN}; sleep 10; echo through'"
    await populated_split.done(*MAINTAIN, "--host", "kvm-1", "--hook", work)
    while not await runs_of(lab, "kvm-1"):
        await asyncio.sleep(0.2)
    populated_split.kill(worker)
    worker = await populated_split.worker()

    await populated_split.until_running(ID, "reboot_host")
    while (await boot_ids(lab))["kvm-1"] == before["kvm-1"]:
        await asyncio.sleep(0.1)
    populated_split.kill(worker)
    await populated_split.worker()

    await populated_split.done("cluster", "maintenance", "status", CLUSTER, "--watch")
    operation = await populated_split.shown("operation", "show", "cluster-maintenance", CLUSTER)
    assert operation["details"]["outcome"] == "completed"
    (host,) = operation["details"]["hosts"]
    after = await boot_ids(lab)
    assert (host["boot_id_before"], host["boot_id_after"]) == (before["kvm-1"], after["kvm-1"])
    assert host["hooks"] == [
        {"stage": "maintenance", "attempt": 1, "exit_status": 0, "problem": None}
    ]
    assert await runs_of(lab, "kvm-1") == "x"
    (run,) = await populated_split.shown("cluster", "maintenance", "hooks", CLUSTER, "kvm-1")
    assert run["output"] == "through\n"
    await places(lab)
    await assert_ticks(lab)
    await assert_in_service(lab, "kvm-1", await populated_split.host("kvm-1"))
    await populated_split.record(ID, "cluster_maintenance_worker_killed")
