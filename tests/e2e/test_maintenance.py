"""One whole maintenance, started each of the three ways, on real hosts."""

import json
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from drivers.errors import MigrationRefused
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import MigrationOptions
from drivers.ssh import AsyncSshShell
from tests.e2e.conftest import GUESTS
from tests.e2e.proofs import assert_in_service, assert_ticks, places
from tests.e2e.system import START, System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(300)

ID = "maintenance/kvm-1"
# A hook of somebody else's, beside Hostler's.
_OWN_HOOK = "/etc/libvirt/hooks/qemu.d/licences"
_REFUSAL = """#!/bin/sh
[ "$1 $2" = "vm-3 migrate" ] || exit 0
echo "no licence for vm-3 here" >&2
exit 1
"""


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    """Running, with its hosts added."""
    await populated.up()
    return populated


@pytest_asyncio.fixture
async def stranger() -> AsyncIterator[LibvirtHypervisor]:
    """Somebody else with access to the hosts' libvirt, who knows nothing of Hostler."""
    shell = AsyncSshShell()
    hypervisor = LibvirtHypervisor(shell)
    yield hypervisor
    await hypervisor.close()
    await shell.close()


async def assert_out(system: System, lab: Lab) -> None:
    """kvm-1 is empty, every guest runs elsewhere, and the way there was live."""
    where = await places(lab)
    assert "kvm-1" not in where.values()
    await assert_ticks(lab)
    view = await system.maintenance("kvm-1")
    assert view["message"] == "Ready for maintenance"
    for vm in view["vms"]:
        assert (vm["state"], vm["destination"]) == ("moved", where[vm["vm"]])
        assert vm["seconds"] > 0
    assert (await system.host("kvm-1"))["resource_state"] == "Maintenance"


async def test_with_curl_and_the_fence_holds_against_anybody(
    system: System, lab: Lab, stranger: LibvirtHypervisor
) -> None:
    path = "/v1/hosts/kvm-1/maintenance"
    status, started = await system.curl(path, "--json", '{"reason": "new DIMM"}')
    assert (status, started["workflow_id"]) == (202, ID)
    await system.until_phase("kvm-1", "Ready")
    await assert_out(system, lab)
    _, operation = await system.curl("/v1/operations/maintenance/kvm-1")
    assert (operation["status"], operation["details"]["reason"]) == ("RUNNING", "new DIMM")

    # A guest of the host's own, that somebody wants to start, and one that wants to come.
    where = await places(lab)
    definition = (await lab.virsh(where["vm-1"], "dumpxml", "--inactive", "vm-1")).stdout
    own = definition.replace("vm-1", "vm-own").replace("<uuid>", "<!--").replace("</uuid>", "-->")
    await lab.remove_guest("vm-own")
    await lab.exec("kvm-1", "virsh", "define", "/dev/stdin", stdin=own)
    source, fenced = await lab.access(where["vm-1"]), await lab.access("kvm-1")
    uuid = (await lab.virsh(where["vm-1"], "domuuid", "vm-1")).stdout.strip()

    async def assert_refused() -> None:
        refused = await lab.virsh("kvm-1", "start", "vm-own", check=False)
        assert refused.exit_status != 0
        assert f"host is fenced by {ID}" in refused.stderr
        with pytest.raises(MigrationRefused, match=f"host is fenced by {ID}"):
            await stranger.migrate(source, fenced, uuid, MigrationOptions(fenced.address), print)
        assert await places(lab) == where

    await assert_refused()
    await lab.reboot("kvm-1")
    await assert_refused()

    status, _ = await system.curl(path, "-X", "DELETE")
    assert status == 202
    result = await (await system.workflow(ID)).result()
    assert (result["outcome"], result["resource_state"]) == ("left", "Enabled")
    await assert_in_service(lab, "kvm-1", await system.host("kvm-1"))
    assert (await system.curl(path))[0] == 404
    await lab.virsh("kvm-1", "start", "vm-own")
    await stranger.migrate(source, fenced, uuid, MigrationOptions(fenced.address), print)
    assert (await places(lab))["vm-1"] == "kvm-1"
    await lab.remove_guest("vm-own")
    await assert_ticks(lab)
    states = [line for line in await system.events("host/kvm-1") if "->" in line]
    assert [line.partition(":")[0] for line in states[-3:]] == [
        "Enabled -> PrepareForMaintenance",
        "PrepareForMaintenance -> Maintenance",
        "Maintenance -> Enabled",
    ]
    await system.record(ID, "host_maintenance_left")
    await system.record("addition/kvm-1", "host_addition")


async def test_with_the_hostler_command(system: System, lab: Lab) -> None:
    plan = await system.done("maintenance", "enter", "kvm-1", "--dry-run")
    assert "kvm-1: 3 VMs can move, 0 can't. Nothing was changed." in plan
    assert (await system.host("kvm-1"))["resource_state"] == "Enabled"

    watched = await system.done("maintenance", "enter", "kvm-1", "--reason", "disk", "--watch")
    assert "kvm-1 is ready for maintenance" in watched
    for guest in GUESTS:
        assert guest in watched
    await assert_out(system, lab)
    view = await system.shown("maintenance", "status", "kvm-1")
    assert {vm["vm"] for vm in view["vms"]} == set(GUESTS)
    (row,) = await system.shown("maintenance", "list")
    assert (row["host"], row["reason"]) == ("kvm-1", "disk")
    assert "kvm-1 is Enabled." in await system.done("maintenance", "leave", "kvm-1")
    await assert_in_service(lab, "kvm-1", await system.host("kvm-1"))
    await system.record(ID, "host_maintenance_dry_run")


async def test_with_the_temporal_command_and_its_page_tells_the_story(
    system: System, lab: Lab
) -> None:
    workflow_id = "by-hand"
    request = json.dumps({"host": "kvm-1", "reason": "fan", "max_parallel": 1})
    started = await system.temporal(*START, "--workflow-id", workflow_id, "--input", request)
    assert started.status == 0, started
    await system.until_phase("kvm-1", "Ready")
    await assert_out(system, lab)

    handle = await system.workflow(workflow_id)
    description = await handle.describe()
    attributes = description.typed_search_attributes
    ours = {pair.key.name: pair.value for pair in attributes if "Hostler" in pair.key.name}
    assert ours == {
        "HostlerHost": "kvm-1",
        "HostlerCluster": "cluster-1",
        "HostlerZone": "zone-1",
        "HostlerPhase": "Ready",
    }
    shown = await system.temporal("workflow", "metadata", "--workflow-id", workflow_id)
    assert "kvm-1: Ready for maintenance" in shown.stdout, shown
    assert "because: fan" in shown.stdout
    assert "hostler maintenance leave kvm-1" in shown.stdout
    for guest in GUESTS:
        assert re.search(rf"\| {guest}\s+\| moved\s+\|", shown.stdout)

    # The other ways in find it, although its id is its starter's choice.
    again = await system.hostler("maintenance", "enter", "kvm-1")
    assert again.status == 1
    assert workflow_id in again.stderr
    left = await system.temporal(
        *("workflow", "update", "execute", "--workflow-id", workflow_id),
        *("--name", "leave", "--input", "{}"),
    )
    assert left.status == 0, left
    assert "Enabled" in left.stdout
    await assert_in_service(lab, "kvm-1", await system.host("kvm-1"))


async def test_a_vm_that_cannot_move_is_asked_about_and_shut_down_only_then(
    system: System, lab: Lab
) -> None:
    # Neither destination takes it, which shows only when it is tried.
    for host in ("kvm-2", "kvm-3"):
        await lab.exec(host, "tee", _OWN_HOOK, stdin=_REFUSAL)
        await lab.exec(host, "chmod", "755", _OWN_HOOK)
    await system.done("maintenance", "enter", "kvm-1")
    view = await system.until_view("kvm-1", lambda view: bool(view.get("questions")))
    assert view["questions"] == ["vm-3"]
    await system.until_view("kvm-1", lambda view: len(_moved(view)) == 2)
    view = await system.maintenance("kvm-1")
    (stuck,) = [vm for vm in view["vms"] if vm["vm"] == "vm-3"]
    assert "no licence for vm-3 here" in stuck["error"]
    assert view["phase"] == "Question"
    assert (await places(lab))["vm-3"] == "kvm-1"
    assert (await system.host("kvm-1"))["resource_state"] == "ErrorInPrepareForMaintenance"
    await assert_ticks(lab)

    wrong = await system.hostler("maintenance", "resolve", "kvm-1", "vm-1", "retry")
    assert wrong.status == 1
    assert "vm-1 waits for no answer; VMs that do: vm-3" in wrong.stderr
    for host in ("kvm-2", "kvm-3"):
        await lab.exec(host, "rm", _OWN_HOOK)
    await system.done("maintenance", "resolve", "kvm-1", "vm-3", "retry")
    await system.until_phase("kvm-1", "Ready")
    await assert_out(system, lab)
    await system.done("maintenance", "leave", "kvm-1")
    await system.record(ID, "host_maintenance_question")


def _moved(view: dict[str, object]) -> list[object]:
    vms = view.get("vms")
    assert isinstance(vms, list)
    return [vm for vm in vms if vm["state"] == "moved"]


async def test_the_last_hosts_that_could_take_the_vms_are_gone(system: System, lab: Lab) -> None:
    await system.done("cluster", "disable", "cluster-1")
    refused = await system.hostler("maintenance", "enter", "kvm-1", "--watch")
    assert refused.status == 1
    await system.done("cluster", "enable", "cluster-1")

    await system.set("maintenance.hosts.out.max", "2")
    await system.done("maintenance", "enter", "kvm-3", "--watch")
    await lab.exec("kvm-2", "systemctl", "stop", "libvirtd.service", "libvirtd.socket")
    try:
        again = await system.hostler("maintenance", "enter", "kvm-1", "--no-queue", "--watch")
    finally:
        await lab.exec("kvm-2", "systemctl", "start", "libvirtd.socket", "libvirtd.service")
    assert again.status == 1
    for guest in GUESTS:
        assert guest in refused.stderr
        assert guest in again.stderr
    assert "kvm-2: cluster cluster-1 is Disabled" in refused.stderr
    assert "kvm-2: does not answer" in again.stderr
    assert "kvm-3: is Maintenance" in again.stderr
    assert "no room without kvm-3" in again.stderr
    host = await system.host("kvm-1")
    await assert_in_service(lab, "kvm-1", host)
    assert not [line for line in await system.events("host/kvm-1") if "Prepare" in line]
    assert set((await places(lab)).values()) == {"kvm-1"}
    await system.done("maintenance", "leave", "kvm-3")
