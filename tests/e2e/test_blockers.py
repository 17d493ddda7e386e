"""VMs that can't be live-migrated as they are, and a host that is down."""

import pytest
import pytest_asyncio

from tests.e2e.proofs import assert_in_service, assert_ticks, places
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(400)

ID = "maintenance/kvm-1"


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    """Running, with its hosts added."""
    await populated.up()
    return populated


async def test_local_disks_go_along_and_come_back(system: System, lab: Lab) -> None:
    await lab.remove_guest("vm-2")
    await lab.start_guest("vm-2", on="kvm-1", disk_local=True)
    disk = "/var/lib/libvirt/images/vm-2.raw"
    refused = await system.hostler("maintenance", "enter", "kvm-1", "--watch")
    assert refused.status == 1
    assert disk in refused.stderr
    assert set((await places(lab)).values()) == {"kvm-1"}

    with_storage = ("--on-blocker", "copy_storage", "--watch")
    await system.done("vm", "policy", "set", "cluster-1", "vm-3", "--pinned", "--reason", "licence")
    pinned = await system.hostler("maintenance", "enter", "kvm-1", *with_storage)
    assert pinned.status == 1
    assert "licence" in pinned.stderr
    assert disk not in pinned.stderr
    await system.done("vm", "policy", "clear", "cluster-1", "vm-3")

    await system.done("maintenance", "enter", "kvm-1", *with_storage)
    there = (await places(lab))["vm-2"]
    assert there != "kvm-1"
    await lab.exec(there, "test", "-e", disk)
    await lab.exec("kvm-1", "test", "-e", f"{disk}.moved")
    await assert_ticks(lab)
    await system.done("maintenance", "leave", "kvm-1")
    returned = await system.done("maintenance", "return", "kvm-1")
    assert "3 of 3" in returned
    assert set((await places(lab)).values()) == {"kvm-1"}
    await lab.exec("kvm-1", "test", "-e", disk)
    await lab.exec(there, "test", "-e", f"{disk}.moved")
    await assert_ticks(lab)
    for host in ("kvm-1", there):
        await lab.exec(host, "rm", "-f", f"{disk}.moved")
    await system.record(ID, "host_maintenance_with_storage")


async def test_what_is_shut_down_goes_last_and_starts_when_the_host_is_back(
    system: System, lab: Lab
) -> None:
    await system.done("vm", "policy", "set", "cluster-1", "vm-3", "--pinned", "--reason", "licence")
    await system.done("maintenance", "enter", "kvm-1", "--on-blocker", "shutdown", "--watch")
    assert (await lab.virsh("kvm-1", "domstate", "vm-3")).stdout.strip() == "shut off"
    view = await system.maintenance("kvm-1")
    assert {vm["vm"]: vm["state"] for vm in view["vms"]} == {
        "vm-1": "moved",
        "vm-2": "moved",
        "vm-3": "shut off",
    }
    said = await lab.virsh("kvm-1", "start", "vm-3", check=False)
    assert f"host is fenced by {ID}" in said.stderr
    await system.done("maintenance", "leave", "kvm-1")
    where = await places(lab)
    assert where["vm-3"] == "kvm-1"
    assert "kvm-1" not in (where["vm-1"], where["vm-2"])
    await system.record(ID, "host_maintenance_shutdown")


async def test_a_host_that_is_down_is_fenced_when_it_is_back(system: System, lab: Lab) -> None:
    alive = await system.hostler("maintenance", "enter", "kvm-1", "--host-is-down", "--watch")
    assert alive.status == 1
    assert "kvm-1 answers: it is not down" in alive.stderr
    definition = (await lab.virsh("kvm-1", "dumpxml", "--inactive", "vm-2")).stdout
    await lab.kill("kvm-1")
    await system.done("maintenance", "enter", "kvm-1", "--host-is-down", "--watch")
    host = await system.host("kvm-1")
    assert (host["resource_state"], host["status"]) == ("Maintenance", "Down")
    assert host["fence"] == ID

    await lab.power_on()
    await system.until_view("kvm-1", lambda view: view.get("message") == "Ready for maintenance")
    host = await system.host("kvm-1")
    assert (host["resource_state"], host["status"]) == ("Maintenance", "Up")
    refused = await lab.virsh("kvm-1", "create", "/dev/stdin", stdin=definition, check=False)
    assert f"host is fenced by {ID}" in refused.stderr
    assert (await lab.virsh("kvm-1", "list", "--name")).stdout.split() == []
    await system.done("maintenance", "leave", "kvm-1")
    await assert_in_service(lab, "kvm-1", await system.host("kvm-1"))
    await system.record(ID, "host_maintenance_down")
