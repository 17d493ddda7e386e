import pytest

from contracts.errors import AlreadyExists, NotFound
from contracts.states import AllocationState
from inventory import Inventory


async def test_what_is_new_is_disabled(inventory: Inventory) -> None:
    topology = inventory.topology
    zone = await topology.create_zone("zone-2", actor="test")
    pod = await topology.create_pod("pod-2", "zone-2", actor="test")
    cluster = await topology.create_cluster("cluster-2", "pod-2", actor="test")
    for place in (zone, pod, cluster):
        assert place.allocation_state is AllocationState.DISABLED
    assert (pod.zone, cluster.zone, cluster.pod) == ("zone-2", "zone-2", "pod-2")
    assert await topology.get_cluster("cluster-2") == cluster
    assert [one.name for one in await topology.list_zones()] == ["zone-1", "zone-2"]
    assert [one.name for one in await topology.list_pods(zone="zone-2")] == ["pod-2"]
    assert [one.name for one in await topology.list_clusters(pod="pod-2")] == ["cluster-2"]
    assert [one.name for one in await topology.list_clusters(zone="zone-1")] == ["cluster-1"]


async def test_a_taken_name_and_a_missing_parent(inventory: Inventory) -> None:
    topology = inventory.topology
    with pytest.raises(AlreadyExists, match="a zone 'zone-1' already"):
        await topology.create_zone("zone-1", actor="test")
    with pytest.raises(AlreadyExists, match="a pod 'pod-1' already"):
        await topology.create_pod("pod-1", "zone-1", actor="test")
    with pytest.raises(NotFound, match="no zone 'zone-9'"):
        await topology.create_pod("pod-9", "zone-9", actor="test")
    with pytest.raises(NotFound, match="no pod 'pod-9'"):
        await topology.create_cluster("cluster-9", "pod-9", actor="test")
    for find, kind in (
        (topology.get_zone, "zone"),
        (topology.get_pod, "pod"),
        (topology.get_cluster, "cluster"),
    ):
        with pytest.raises(NotFound, match=f"no {kind} 'x'"):
            await find("x")


async def test_a_change_is_told_once(inventory: Inventory) -> None:
    for _ in range(2):
        zone = await inventory.topology.set_zone_state(
            "zone-1", AllocationState.DISABLED, actor="token:anna"
        )
        assert zone.allocation_state is AllocationState.DISABLED
    events = await inventory.events.list(subject="zone/zone-1")
    assert [event.message for event in events] == [
        "Enabled -> Disabled",
        "Disabled -> Enabled",
        "created",
    ]
    assert events[0].actor == "token:anna"
