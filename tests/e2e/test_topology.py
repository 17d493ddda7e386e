"""Zones, pods and clusters by the command, while their hosts are worked on."""

import pytest
import pytest_asyncio

from tests.e2e.conftest import HOSTS
from tests.e2e.system import System
from tests.lab import Lab

pytestmark = pytest.mark.timeout(300)

ID = "maintenance/kvm-1"


@pytest_asyncio.fixture
async def system(populated: System, lab: Lab) -> System:
    await populated.up()
    return populated


async def test_a_cluster_is_renamed_between_operations(system: System) -> None:
    await system.done("setting", "set", "hook.timeout", "60", "--cluster", "cluster-1")
    await system.done("vm", "policy", "set", "cluster-1", "vm-9", "--pinned")
    await system.request("POST", "/v1/hosts/kvm-1/maintenance", json={"reason": "new DIMM"})
    await system.until_phase("kvm-1", "Ready")

    # The maintenance carries the cluster's name, not those of zone and pod.
    said = await system.hostler("cluster", "rename", "cluster-1", "blue")
    assert said.status == 1, said
    assert f"cluster-1 is held by {ID}, which is running" in said.stderr
    await system.done("zone", "rename", "zone-1", "berlin")
    await system.done("pod", "rename", "pod-1", "rack-1")
    await system.done("maintenance", "leave", "kvm-1")
    result = await (await system.workflow(ID)).result()
    assert (result["outcome"], result["resource_state"]) == ("left", "Enabled")

    assert await system.done("cluster", "rename", "cluster-1", "blue") == (
        "cluster cluster-1 is now blue.\n"
    )
    hosts = await system.shown("host", "list", "--zone", "berlin", "--cluster", "blue")
    assert [host["name"] for host in hosts] == list(HOSTS)
    setting = await system.shown("setting", "show", "hook.timeout", "--cluster", "blue")
    assert (setting["value"], setting["origin"]) == (60, "cluster blue")
    (policy,) = await system.shown("vm", "policy", "list", "blue")
    assert (policy["vm"], policy["pinned"]) == ("vm-9", True)

    # Under its new name it is worked on as before.
    await system.request("POST", "/v1/hosts/kvm-1/maintenance", json={"reason": "another"})
    await system.until_phase("kvm-1", "Ready")
    await system.done("maintenance", "leave", "kvm-1")

    said = await system.hostler("cluster", "delete", "blue")
    assert said.status == 1, said
    assert f"hosts {', '.join(HOSTS)} are in it" in said.stderr


async def test_what_is_empty_is_deleted(system: System) -> None:
    await system.done("zone", "create", "zone-2")
    await system.done("pod", "create", "pod-2", "--zone", "zone-2")
    said = await system.hostler("zone", "delete", "zone-2")
    assert (said.status, "pod pod-2 is in it" in said.stderr) == (1, True), said
    await system.done("pod", "delete", "pod-2")
    await system.done("zone", "delete", "zone-2")
    assert [zone["name"] for zone in await system.shown("zone", "list")] == ["zone-1"]
