"""Host tags, VM policies, affinity groups."""

import asyncio

import pytest

from contracts.errors import Conflict, InvalidInput, NotFound
from contracts.evacuation import AffinityGroup, AffinityKind, VmPolicy
from inventory import Inventory
from tests.inventory.conftest import enabled, register

TOGETHER, APART = AffinityKind.AFFINITY, AffinityKind.ANTI_AFFINITY
ANNA = "token:anna"


def group(name: str, kind: AffinityKind, *members: str) -> AffinityGroup:
    return AffinityGroup(name=name, kind=kind, members=frozenset(members))


async def put(inventory: Inventory, *groups: AffinityGroup, cluster: str = "cluster-1") -> None:
    for one in groups:
        await inventory.placement.set_group(cluster, one, actor=ANNA)


async def told(inventory: Inventory, subject: str) -> list[tuple[str, str, str]]:
    """Kind, message and actor of the subject's events, the oldest first."""
    events = await inventory.events.list(subject=subject)
    return [(event.kind, event.message, event.actor) for event in reversed(events)]


async def number_of_events(inventory: Inventory) -> int:
    return len(await inventory.events.list(limit=1000))


async def test_a_host_has_exactly_the_tags_that_were_set_last(inventory: Inventory) -> None:
    before = await enabled(inventory, 1)
    await enabled(inventory, 2)
    assert (before.tags, before.secured) == (frozenset(), False)
    for tags in ({"ssd", "gpu"}, {"ssd", "gpu"}, {"gpu", "rack-1"}, {"gpu", "rack-1"}, ()):
        await inventory.placement.set_host_tags("kvm-1", tags, actor=ANNA)
        host = await inventory.hosts.get("kvm-1")
        assert host.tags == set(tags)
        assert [one.tags for one in await inventory.hosts.list()] == [host.tags, frozenset()]
    assert host.updated_at > before.updated_at
    events = await told(inventory, "host/kvm-1")
    assert [event for event in events if event[0] == "host.tags"] == [
        ("host.tags", "none -> gpu, ssd", ANNA),
        ("host.tags", "gpu, ssd -> gpu, rack-1", ANNA),
        ("host.tags", "gpu, rack-1 -> none", ANNA),
    ]


async def test_the_tags_of_a_host_go_with_it(inventory: Inventory) -> None:
    await register(inventory, 1)
    await inventory.placement.set_host_tags("kvm-1", {"ssd"}, actor=ANNA)
    await inventory.hosts.forget("kvm-1", operation="addition/x", actor="test")
    assert await inventory.hosts.find("kvm-1") is None
    assert (await register(inventory, 1)).tags == frozenset()


async def test_a_policy_is_what_was_set_last(inventory: Inventory) -> None:
    placement = inventory.placement
    wanted = VmPolicy(vm="vm 1", pinned=True, reason="license", tags=frozenset({"ssd", "gpu"}))
    for _ in range(2):
        await placement.set_policy("cluster-1", wanted, actor=ANNA)
        assert await placement.policy("cluster-1", "vm 1") == wanted
    await placement.set_policy("cluster-1", VmPolicy(vm="vm 1"), actor=ANNA)
    assert await placement.policy("cluster-1", "vm 1") == VmPolicy(vm="vm 1")
    await placement.delete_policy("cluster-1", "vm 1", actor=ANNA)
    assert await placement.policies("cluster-1") == []
    assert await told(inventory, "vm/cluster-1/vm 1") == [
        ("vm.policy", "pinned; tags: gpu, ssd; license", ANNA),
        ("vm.policy", "not pinned; tags: none", ANNA),
        ("vm.policy_deleted", "deleted", ANNA),
    ]


async def test_policies_are_of_one_cluster_and_of_those_asked_for(inventory: Inventory) -> None:
    placement = inventory.placement
    await inventory.topology.create_cluster("cluster-2", "pod-1", actor="test")
    for cluster, vm in (("cluster-1", "vm-2"), ("cluster-1", "vm-1"), ("cluster-2", "vm-1")):
        policy = VmPolicy(vm=vm, pinned=True, reason=cluster)
        await placement.set_policy(cluster, policy, actor=ANNA)
    found = await placement.policies("cluster-1")
    assert [(policy.vm, policy.reason) for policy in found] == [
        ("vm-1", "cluster-1"),
        ("vm-2", "cluster-1"),
    ]
    assert await placement.policies("cluster-1", {"vm-2", "vm-9"}) == found[1:]
    assert await placement.policies("cluster-1", ()) == []


async def test_a_group_is_what_was_set_last(inventory: Inventory) -> None:
    for wanted in (
        group("web", APART, "vm-1", "vm-2", "vm-3"),
        group("web", APART, "vm-3", "vm-2", "vm-1"),
        group("web", TOGETHER, "vm-2", "vm-4"),
    ):
        await put(inventory, wanted)
        assert await inventory.placement.group("cluster-1", "web") == wanted
        assert await inventory.placement.groups("cluster-1") == [wanted]
    await inventory.placement.delete_group("cluster-1", "web", actor=ANNA)
    assert await inventory.placement.groups("cluster-1") == []
    assert await told(inventory, "affinity_group/cluster-1/web") == [
        ("affinity_group.changed", "anti-affinity: vm-1, vm-2, vm-3", ANNA),
        ("affinity_group.changed", "affinity: vm-2, vm-4", ANNA),
        ("affinity_group.deleted", "deleted", ANNA),
    ]


async def test_groups_are_of_one_cluster_and_of_those_asked_for(inventory: Inventory) -> None:
    await inventory.topology.create_cluster("cluster-2", "pod-1", actor="test")
    db, web = group("db", TOGETHER, "vm-1", "vm-2"), group("web", APART, "vm-2", "vm-3")
    await put(inventory, web, db)
    # The same name and VMs in another cluster are others.
    elsewhere = group("db", APART, "vm-1", "vm-2")
    await put(inventory, elsewhere, cluster="cluster-2")
    groups = inventory.placement.groups
    assert await groups("cluster-1") == [db, web]
    assert await groups("cluster-1", {"vm-2"}) == [db, web]
    assert await groups("cluster-1", ["vm-3", "vm-9"]) == [web]
    assert await groups("cluster-1", ()) == []
    assert await groups("cluster-2") == [elsewhere]
    await inventory.placement.delete_group("cluster-1", "db", actor=ANNA)
    assert await groups("cluster-2") == [elsewhere]


@pytest.mark.parametrize("members", [(), ("vm-1",)])
async def test_a_group_of_fewer_than_two_is_refused(
    inventory: Inventory, members: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidInput, match="members: must name at least 2 VMs") as caught:
        await put(inventory, group("web", APART, *members))
    assert caught.value.details == {
        "fields": [{"field": "members", "message": "must name at least 2 VMs"}]
    }
    assert await inventory.placement.groups("cluster-1") == []


@pytest.mark.parametrize("first", [TOGETHER, APART])
async def test_two_vms_are_not_wanted_together_and_apart(
    inventory: Inventory, first: AffinityKind
) -> None:
    second = APART if first is TOGETHER else TOGETHER
    there = group("first", first, "vm-1", "vm-2", "vm-3")
    await put(inventory, there)
    before = await number_of_events(inventory)
    with pytest.raises(Conflict, match=r"^vm-2, vm-3 would belong on one host") as caught:
        await put(inventory, group("second", second, "vm-2", "vm-3", "vm-4"))
    assert caught.value.details == {"groups": ["first", "second"], "vms": ["vm-2", "vm-3"]}
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)
    assert await inventory.placement.groups("cluster-1") == [there]
    assert await number_of_events(inventory) == before
    # One VM may be in both, and a group may change its own kind.
    await put(inventory, group("second", second, "vm-3", "vm-4"))
    await put(inventory, group("first", second, "vm-1", "vm-2", "vm-3"))


async def test_groups_that_share_a_vm_keep_all_of_theirs_together(inventory: Inventory) -> None:
    await put(
        inventory,
        group("ab", TOGETHER, "a", "b"),
        group("cd", TOGETHER, "c", "d"),
        group("xy", TOGETHER, "x", "y"),
        group("apart", APART, "a", "d", "x"),
    )
    with pytest.raises(Conflict, match=r"^a, d would belong on one host") as caught:
        await put(inventory, group("bc", TOGETHER, "b", "c"))
    assert caught.value.details == {"groups": ["ab", "apart", "bc", "cd"], "vms": ["a", "d"]}
    await put(inventory, group("cd", TOGETHER, "c", "e"))
    await put(inventory, group("bc", TOGETHER, "b", "c"))


async def test_of_two_contradictions_at_once_one_is_refused(inventory: Inventory) -> None:
    outcomes = await asyncio.gather(
        put(inventory, group("first", TOGETHER, "vm-1", "vm-2")),
        put(inventory, group("second", APART, "vm-1", "vm-2")),
        return_exceptions=True,
    )
    assert {type(outcome) for outcome in outcomes} == {type(None), Conflict}
    assert len(await inventory.placement.groups("cluster-1")) == 1


async def test_what_is_not_there(inventory: Inventory) -> None:
    placement = inventory.placement
    pair = group("web", APART, "vm-1", "vm-2")
    before = await number_of_events(inventory)
    for attempt, says in (
        (placement.set_host_tags("kvm-9", {"ssd"}, actor=ANNA), "no host 'kvm-9'"),
        (placement.policy("none", "vm-1"), "no cluster 'none'"),
        (placement.policies("none"), "no cluster 'none'"),
        (placement.set_policy("none", VmPolicy(vm="vm-1"), actor=ANNA), "no cluster 'none'"),
        (placement.delete_policy("none", "vm-1", actor=ANNA), "no cluster 'none'"),
        (placement.group("none", "web"), "no cluster 'none'"),
        (placement.groups("none"), "no cluster 'none'"),
        (placement.set_group("none", pair, actor=ANNA), "no cluster 'none'"),
        (placement.delete_group("none", "web", actor=ANNA), "no cluster 'none'"),
        (placement.policy("cluster-1", "vm-1"), "'vm-1' of cluster-1 has no policy"),
        (placement.delete_policy("cluster-1", "vm-1", actor=ANNA), "has no policy"),
        (placement.group("cluster-1", "web"), "no affinity group 'web' in cluster-1"),
        (placement.delete_group("cluster-1", "web", actor=ANNA), "no affinity group 'web'"),
    ):
        with pytest.raises(NotFound, match=says):
            await attempt
    assert await number_of_events(inventory) == before
