import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from sqlmodel import SQLModel, col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from contracts.errors import AlreadyExists, Conflict, LeaseHeld, NotFound
from contracts.evacuation import AffinityGroup, AffinityKind, VmPolicy
from contracts.settings import HOOK_TIMEOUT, MIGRATION_BANDWIDTH
from contracts.states import AllocationState
from inventory import Inventory
from inventory.models import (
    AffinityGroupRow,
    AffinityMemberRow,
    ClusterRow,
    MaintenanceTicketRow,
    SettingRow,
    VmPolicyRow,
    ZoneRow,
)
from inventory.upsert import insert_or_replace
from tests.inventory.conftest import OTHER, OWNER, acquire, enabled, ref, register

ANNA = "token:anna"
POLICIES = [
    VmPolicy(vm="vm-1", pinned=True, reason="license"),
    VmPolicy(vm="vm-2", tags=frozenset({"gpu", "ssd"})),
]
GROUPS = [
    AffinityGroup(name="db", kind=AffinityKind.ANTI_AFFINITY, members=frozenset({"vm-1", "vm-2"})),
    AffinityGroup(name="web", kind=AffinityKind.AFFINITY, members=frozenset({"vm-3", "vm-4"})),
]
KEYED_BY_CLUSTER = (
    AffinityGroupRow.cluster,
    AffinityMemberRow.cluster,
    VmPolicyRow.cluster,
    MaintenanceTicketRow.cluster,
    SettingRow.scope_name,
)


async def furnish(inventory: Inventory, cluster: str) -> None:
    """Give the cluster one of everything that goes by its name."""
    for policy in POLICIES:
        await inventory.placement.set_policy(cluster, policy, actor="test")
    for group in GROUPS:
        await inventory.placement.set_group(cluster, group, actor="test")
    await inventory.settings.set(MIGRATION_BANDWIDTH.name, 400, cluster=cluster, actor="test")


async def rows_that_name(inventory: Inventory, name: str) -> int:
    async with inventory.database.reading() as session:
        return sum(
            [
                (await session.exec(select(func.count()).where(col(column) == name))).one()
                for column in (*KEYED_BY_CLUSTER, ClusterRow.name, ZoneRow.name)
            ]
        )


async def told(inventory: Inventory, subject: str) -> list[tuple[str, str]]:
    """Kind and message of the subject's events, the newest first."""
    return [(one.kind, one.message) for one in await inventory.events.list(subject=subject)]


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


# --- lists --------------------------------------------------------------------------------------


async def test_lists_are_filtered_and_paged(inventory: Inventory) -> None:
    topology, disabled = inventory.topology, AllocationState.DISABLED
    for number in (4, 2, 3):
        await topology.create_zone(f"zone-{number}", actor="test")
        await topology.create_pod(f"pod-{number}", "zone-1", actor="test")
        await topology.create_cluster(f"cluster-{number}", "pod-1", actor="test")
    for read, noun in (
        (topology.list_zones, "zone"),
        (topology.list_pods, "pod"),
        (topology.list_clusters, "cluster"),
    ):

        async def names(read: Any = read, **asked: Any) -> list[str]:
            return [one.name.rpartition("-")[2] for one in await read(**asked)]

        assert await names() == ["1", "2", "3", "4"]
        assert await names(limit=2) == ["1", "2"]
        assert await names(limit=2, after=f"{noun}-2") == ["3", "4"]
        # Where a page ends, nothing needs to be any more.
        assert await names(after=f"{noun}-25") == ["3", "4"]
        assert await names(after=f"{noun}-4") == []
        assert await names(allocation_state=disabled, limit=2) == ["2", "3"]
        assert await names(allocation_state=AllocationState.ENABLED) == ["1"]
    assert await topology.list_pods(zone="zone-2", allocation_state=disabled) == []
    assert len(await topology.list_clusters(pod="pod-1", zone="zone-1", limit=3)) == 3


async def test_a_cluster_is_read_with_its_parents(inventory: Inventory) -> None:
    zone, pod, cluster = await inventory.topology.get_with_parents("cluster-1")
    assert (zone.name, pod.name, cluster.name) == ("zone-1", "pod-1", "cluster-1")
    assert cluster == await inventory.topology.get_cluster("cluster-1")
    with pytest.raises(NotFound, match="no cluster 'x'"):
        await inventory.topology.get_with_parents("x")


# --- delete -------------------------------------------------------------------------------------


async def test_only_what_is_empty_is_deleted(inventory: Inventory) -> None:
    topology = inventory.topology
    await register(inventory, 1)
    for delete, name, inner in (
        (topology.delete_zone, "zone-1", "pod pod-1 is in it. Delete"),
        (topology.delete_pod, "pod-1", "cluster cluster-1 is in it. Delete"),
        (topology.delete_cluster, "cluster-1", "host kvm-1 is in it. Remove"),
    ):
        with pytest.raises(Conflict, match=f"{name} is not empty: {inner} what is in it first."):
            await delete(name, actor=ANNA)
    assert (await inventory.hosts.get("kvm-1")).zone == "zone-1"
    await inventory.hosts.forget("kvm-1", operation="addition/x", actor="test")
    for delete, name, find in (
        (topology.delete_cluster, "cluster-1", topology.get_cluster),
        (topology.delete_pod, "pod-1", topology.get_pod),
        (topology.delete_zone, "zone-1", topology.get_zone),
    ):
        await delete(name, actor=ANNA)
        with pytest.raises(NotFound):
            await find(name)
        with pytest.raises(NotFound):
            await delete(name, actor=ANNA)
        kind = name.partition("-")[0]
        newest, *_ = await inventory.events.list(subject=f"{kind}/{name}")
        assert (newest.kind, newest.message, newest.actor) == (f"{kind}.deleted", "deleted", ANNA)


async def test_ten_of_what_is_in_it_are_named(inventory: Inventory) -> None:
    for number in range(12, 1, -1):
        await inventory.topology.create_cluster(f"cluster-{number:02}", "pod-1", actor="test")
    with pytest.raises(Conflict) as refused:
        await inventory.topology.delete_pod("pod-1", actor=ANNA)
    named = [*(f"cluster-{number:02}" for number in range(2, 10)), "cluster-1", "cluster-10"]
    assert refused.value.message == (
        f"The pod pod-1 is not empty: clusters {', '.join(named)} and 2 more are in it."
    )
    assert refused.value.details == {"clusters": named, "number": 12}


async def test_what_goes_by_its_name_goes_with_it(inventory: Inventory) -> None:
    topology, settings = inventory.topology, inventory.settings
    await furnish(inventory, "cluster-1")
    await topology.create_cluster("cluster-2", "pod-1", actor="test")
    await furnish(inventory, "cluster-2")
    await settings.set(HOOK_TIMEOUT.name, 60, zone="zone-1", actor="test")
    await topology.delete_cluster("cluster-1", actor=ANNA)
    assert await rows_that_name(inventory, "cluster-1") == 0
    assert await inventory.placement.policies("cluster-2") == POLICIES
    assert (await told(inventory, f"setting/{MIGRATION_BANDWIDTH.name}"))[0] == (
        "setting.changed",
        "cluster cluster-1: 400 -> deleted with it",
    )
    # The name may be used again, and nothing of the former one is left.
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    assert await inventory.placement.policies("cluster-1") == []
    assert await inventory.placement.groups("cluster-1") == []
    assert (await settings.resolve(cluster="cluster-1"))[MIGRATION_BANDWIDTH] is None
    assert (await settings.resolve(cluster="cluster-1"))[HOOK_TIMEOUT] == 60
    for delete, name in (
        (topology.delete_cluster, "cluster-1"),
        (topology.delete_cluster, "cluster-2"),
        (topology.delete_pod, "pod-1"),
        (topology.delete_zone, "zone-1"),
    ):
        await delete(name, actor=ANNA)
    await topology.create_zone("zone-1", actor="test")
    assert (await settings.resolve(zone="zone-1"))[HOOK_TIMEOUT] == HOOK_TIMEOUT.default


# --- rename -------------------------------------------------------------------------------------


async def test_what_goes_by_a_clusters_name_follows(inventory: Inventory) -> None:
    topology = inventory.topology
    await enabled(inventory, 1)
    await furnish(inventory, "cluster-1")
    lease = await acquire(inventory)
    await inventory.maintenances.take_turn(ref(lease), "cluster-1", 1)
    tickets = await inventory.maintenances.tickets("cluster-1")
    before = await rows_that_name(inventory, "cluster-1")
    renamed = await topology.rename_cluster("cluster-1", "a.new-one", ended=[OWNER], actor=ANNA)
    assert (renamed.name, renamed.pod, renamed.allocation_state) == (
        "a.new-one",
        "pod-1",
        AllocationState.ENABLED,
    )
    assert await rows_that_name(inventory, "cluster-1") == 0
    assert await rows_that_name(inventory, "a.new-one") == before
    assert (await inventory.hosts.get("kvm-1")).cluster == "a.new-one"
    assert await inventory.placement.policies("a.new-one") == POLICIES
    assert await inventory.placement.groups("a.new-one") == GROUPS
    assert await inventory.maintenances.tickets("a.new-one") == tickets
    resolved = await inventory.settings.resolve(cluster="a.new-one")
    assert resolved[MIGRATION_BANDWIDTH] == 400
    with pytest.raises(NotFound):
        await topology.get_cluster("cluster-1")
    # Whoever follows one of the names finds the other.
    assert (await told(inventory, "cluster/cluster-1"))[0] == (
        "cluster.renamed",
        "is now a.new-one",
    )
    assert await told(inventory, "cluster/a.new-one") == [("cluster.renamed", "was cluster-1")]
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    assert await inventory.placement.groups("cluster-1") == []


async def test_what_goes_by_a_zones_name_follows(inventory: Inventory) -> None:
    topology = inventory.topology
    await inventory.settings.set(HOOK_TIMEOUT.name, 60, zone="zone-1", actor="test")
    # Leases of its hosts are no hindrance: what runs there does not go by the zone's name.
    await enabled(inventory, 1)
    await acquire(inventory)
    zone = await topology.rename_zone("zone-1", "berlin", actor=ANNA)
    assert (zone.name, zone.allocation_state) == ("berlin", AllocationState.ENABLED)
    pod = await topology.rename_pod("pod-1", "rack-1", actor=ANNA)
    assert (pod.name, pod.zone) == ("rack-1", "berlin")
    cluster = await topology.get_cluster("cluster-1")
    assert (cluster.pod, cluster.zone) == ("rack-1", "berlin")
    assert (await inventory.settings.explain(HOOK_TIMEOUT.name, cluster="cluster-1")).origin == (
        "zone berlin"
    )
    assert await told(inventory, "pod/rack-1") == [("pod.renamed", "was pod-1")]
    assert await told(inventory, "zone/berlin") == [("zone.renamed", "was zone-1")]


async def test_a_name_that_is_taken_or_the_same(inventory: Inventory) -> None:
    topology = inventory.topology
    await furnish(inventory, "cluster-1")
    await topology.create_zone("zone-2", actor="test")
    await topology.create_pod("pod-2", "zone-2", actor="test")
    await topology.create_cluster("cluster-2", "pod-2", actor="test")
    before = await rows_that_name(inventory, "cluster-1")
    number = len(await inventory.events.list(limit=1000))
    renames: tuple[tuple[str, Any], ...] = (
        ("zone", topology.rename_zone),
        ("pod", topology.rename_pod),
        ("cluster", topology.rename_cluster),
    )
    for kind, rename in renames:
        with pytest.raises(AlreadyExists, match=f"a {kind} '{kind}-2' already"):
            await rename(f"{kind}-1", f"{kind}-2", actor=ANNA)
        with pytest.raises(NotFound, match=f"no {kind} '{kind}-9'"):
            await rename(f"{kind}-9", f"{kind}-1", actor=ANNA)
        assert (await rename(f"{kind}-1", f"{kind}-1", actor=ANNA)).name == f"{kind}-1"
    assert await rows_that_name(inventory, "cluster-1") == before
    assert len(await inventory.events.list(limit=1000)) == number


async def test_a_cluster_that_is_worked_on_keeps_its_name(inventory: Inventory) -> None:
    topology = inventory.topology
    await enabled(inventory, 1)
    await enabled(inventory, 2)
    lease = await acquire(inventory, OTHER, "kvm-2")
    await inventory.maintenances.take_turn(ref(lease), "cluster-1", 1)
    with pytest.raises(LeaseHeld, match="maintenance/other, which holds kvm-2") as refused:
        await topology.rename_cluster("cluster-1", "new", ended=[OWNER], actor=ANNA)
    assert refused.value.details == {"workflow_id": "maintenance/other", "run_id": "run-2"}
    assert [(one.host, one.owner) for one in await topology.cluster_holders("cluster-1")] == [
        ("kvm-2", OTHER)
    ]
    # Its place in the queue alone is enough.
    await inventory.leases.release(ref(lease))
    with pytest.raises(LeaseHeld):
        await topology.rename_cluster("cluster-1", "new", actor=ANNA)
    await inventory.maintenances.give_up_turn("kvm-2", OTHER)
    assert await topology.cluster_holders("cluster-1") == []
    assert (await topology.rename_cluster("cluster-1", "new", actor=ANNA)).name == "new"


async def test_no_turn_in_a_cluster_that_is_not_there(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    lease = await acquire(inventory)
    with pytest.raises(NotFound, match="no cluster 'former'"):
        await inventory.maintenances.take_turn(ref(lease), "former", 1)
    assert await inventory.maintenances.tickets("former") == []


# --- at once ------------------------------------------------------------------------------------


async def at_once(*acts: Awaitable[object]) -> list[object]:
    """What each gave or raised, which is nothing but NotFound and Conflict."""
    outcomes = await asyncio.gather(*acts, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, NotFound | Conflict):
            raise outcome
    return list(outcomes)


async def test_nothing_is_left_under_a_former_name(inventory: Inventory) -> None:
    old, new = "cluster-1", "cluster-2"
    for number in range(1, 9):
        await at_once(
            inventory.settings.set(MIGRATION_BANDWIDTH.name, number, cluster=old, actor="test"),
            inventory.placement.set_policy(
                old, VmPolicy(vm="vm-1", reason=f"number {number}"), actor="test"
            ),
            inventory.topology.rename_cluster(old, new, actor=ANNA),
            inventory.placement.set_group(old, GROUPS[number % 2], actor="test"),
            register(inventory, number, cluster=old),
        )
        assert await rows_that_name(inventory, old) == 0
        assert {one.cluster for one in await inventory.hosts.list()} <= {new}
        old, new = new, old


async def test_what_refers_to_a_name_keeps_it_meanwhile(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def insert_slowly(session: AsyncSession, row: SQLModel) -> None:
        begun.set()
        await go.wait()
        await insert_or_replace(session, row)

    monkeypatch.setattr("inventory.settings.insert_or_replace", insert_slowly)
    setting = asyncio.create_task(
        inventory.settings.set(MIGRATION_BANDWIDTH.name, 400, cluster="cluster-1", actor="test")
    )
    await begun.wait()
    renaming = asyncio.create_task(
        inventory.topology.rename_cluster("cluster-1", "cluster-2", actor=ANNA)
    )
    await asyncio.sleep(0.3)
    assert not renaming.done()
    go.set()
    await at_once(setting, renaming)
    assert await rows_that_name(inventory, "cluster-1") == 0
    resolved = await inventory.settings.resolve(cluster="cluster-2")
    assert resolved[MIGRATION_BANDWIDTH] == 400


async def test_nothing_comes_into_what_is_being_deleted(inventory: Inventory) -> None:
    topology = inventory.topology
    for number in range(8):
        zone, pod, cluster = (f"{kind}-x{number}" for kind in ("zone", "pod", "cluster"))
        await topology.create_zone(zone, actor="test")
        await topology.create_pod(pod, zone, actor="test")
        created, _, deleted, _ = await at_once(
            topology.create_cluster(cluster, pod, actor="test"),
            inventory.settings.set(HOOK_TIMEOUT.name, 60, zone=zone, actor="test"),
            topology.delete_pod(pod, actor=ANNA),
            topology.delete_zone(zone, actor=ANNA),
        )
        # One of the two has come first; the other one says so.
        assert isinstance(created, NotFound) is not isinstance(deleted, Conflict)
        for name in await topology.list_clusters(pod=pod):
            await topology.delete_cluster(name.name, actor=ANNA)
        await at_once(topology.delete_pod(pod, actor=ANNA))
        await at_once(topology.delete_zone(zone, actor=ANNA))
        assert await rows_that_name(inventory, zone) == 0
