import asyncio

import pytest

from contracts.allocation import AllocationLevel
from contracts.errors import Conflict, NotFound
from contracts.states import AllocationState, HostStatus, ResourceState
from inventory import Inventory
from inventory.closings import require_in_service
from tests.inventory.conftest import enabled, register
from tests.samples import host

ENABLED, DISABLED = AllocationState.ENABLED, AllocationState.DISABLED
OPERATION = "cluster-allocation/cluster-1"


async def change(inventory: Inventory, number: int, *targets: ResourceState) -> None:
    for target in targets:
        await inventory.hosts.change_state(
            f"kvm-{number}",
            expected=frozenset(ResourceState),
            target=target,
            operation="test",
            step=f"to {target}",
            actor="test",
            reason="test",
        )


async def tell(inventory: Inventory) -> None:
    """kvm-1 is told what is wanted, and has understood."""
    closing = await inventory.closings.decide("kvm-1", operation=OPERATION)
    assert await inventory.closings.record("kvm-1", closing, operation=OPERATION)


async def because(inventory: Inventory) -> str | None:
    return (await inventory.closings.decide("kvm-1", operation=OPERATION)).because


async def test_what_is_disabled_above_or_itself_closes_a_host(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    topology = inventory.topology
    assert await because(inventory) is None
    await tell(inventory)
    for level, set_state in (
        ("zone", topology.set_zone_state),
        ("pod", topology.set_pod_state),
        ("cluster", topology.set_cluster_state),
    ):
        await set_state(f"{level}-1", DISABLED, actor="test")
        assert await because(inventory) == f"{level} {level}-1 is Disabled"
        assert await inventory.hosts.untold() == ["kvm-1"]
        await set_state(f"{level}-1", ENABLED, actor="test")
        await tell(inventory)
        assert await inventory.hosts.untold() == []
    await change(inventory, 1, ResourceState.DISABLED)
    await topology.set_zone_state("zone-1", DISABLED, actor="test")
    assert await because(inventory) == "zone zone-1 is Disabled, host kvm-1 is Disabled"


async def test_a_disabled_host_stays_closed_through_its_maintenance(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    states = ResourceState
    await change(inventory, 1, states.DISABLED, states.PREPARE_FOR_MAINTENANCE, states.MAINTENANCE)
    assert await because(inventory) == "host kvm-1 is Disabled"
    assert await inventory.hosts.untold() == ["kvm-1"]
    await change(inventory, 1, states.ENABLED)
    assert await because(inventory) is None


async def test_an_answer_that_differs_has_a_higher_generation_and_an_event(
    inventory: Inventory,
) -> None:
    await enabled(inventory, 1)
    set_state, decide = inventory.topology.set_cluster_state, inventory.closings.decide
    given = []
    for state in (ENABLED, DISABLED, ENABLED, DISABLED):
        await set_state("cluster-1", state, actor="test")
        given.append(await decide("kvm-1", operation=OPERATION))
        assert await decide("kvm-1", operation="another") == given[-1]
    generations = [closing.generation for closing in given]
    assert generations[0] > 0  # a host may hold one from before it was added
    assert generations == sorted(set(generations))
    events = await inventory.events.list(subject="host/kvm-1")
    assert [(one.message, one.actor) for one in events if one.kind == "host.allocation"] == [
        ("is to refuse new VMs: cluster cluster-1 is Disabled", OPERATION),
        ("is to take new VMs", OPERATION),
        ("is to refuse new VMs: cluster cluster-1 is Disabled", OPERATION),
        ("is to take new VMs", OPERATION),
    ]


async def test_several_at_once_agree(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    await inventory.topology.set_cluster_state("cluster-1", DISABLED, actor="test")
    decide = inventory.closings.decide
    given = await asyncio.gather(*(decide("kvm-1", operation=f"{n}") for n in range(8)))
    assert len(set(given)) == 1
    events = await inventory.events.list(subject="host/kvm-1")
    assert sum(event.kind == "host.allocation" for event in events) == 1


async def test_only_the_latest_answer_is_recorded_as_told(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    set_state, closings = inventory.topology.set_cluster_state, inventory.closings
    await set_state("cluster-1", DISABLED, actor="test")
    closing = await closings.decide("kvm-1", operation=OPERATION)
    for _ in range(2):
        assert await closings.record("kvm-1", closing, operation=OPERATION)
    assert (await inventory.hosts.get("kvm-1")).closed
    assert await inventory.hosts.untold() == []
    assert await closings.pending(("kvm-1", "kvm-2")) == frozenset()
    await set_state("cluster-1", ENABLED, actor="test")
    assert await inventory.hosts.untold() == ["kvm-1"]
    assert await closings.pending(("kvm-1", "kvm-2")) == {"kvm-1"}
    reopening = await closings.decide("kvm-1", operation=OPERATION)
    assert not await closings.record("kvm-1", closing, operation="late")
    assert await closings.record("kvm-1", reopening, operation=OPERATION)
    assert (await inventory.hosts.get("kvm-1")).closed is False
    assert not await closings.record("kvm-1", closing, operation="late")
    assert (await inventory.hosts.get("kvm-1")).closed is False
    events = await inventory.events.list(subject="host/kvm-1")
    told = [(event.kind, event.message) for event in events]
    assert told.count(("host.closed", "cluster cluster-1 is Disabled")) == 1
    assert told.count(("host.reopened", "takes new VMs")) == 1


@pytest.mark.parametrize(("first", "second"), [(DISABLED, ENABLED), (ENABLED, DISABLED)])
async def test_a_host_that_may_have_heard_something_else_is_told_again(
    inventory: Inventory, first: AllocationState, second: AllocationState
) -> None:
    """It was told `first`, its answer was lost, and nobody wants that any more."""
    await enabled(inventory, 1)
    set_state = inventory.topology.set_cluster_state
    await set_state("cluster-1", second, actor="test")
    await tell(inventory)
    assert await inventory.hosts.untold() == []
    await set_state("cluster-1", first, actor="test")
    await inventory.closings.decide("kvm-1", operation=OPERATION)
    await set_state("cluster-1", second, actor="test")
    assert await inventory.hosts.untold() == ["kvm-1"]
    assert (await inventory.hosts.get("kvm-1")).closed is None
    await tell(inventory)
    assert await inventory.hosts.untold() == []


async def test_a_host_that_was_never_told_is_to_be(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    assert await inventory.hosts.untold() == ["kvm-1"]


async def test_a_host_seen_otherwise_than_it_was_told_is_told_again(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    doubt = inventory.closings.doubt
    never_told = await inventory.hosts.get("kvm-1")
    assert not await doubt(never_told, closed_there=True, operation="check")
    await tell(inventory)
    seen = await inventory.hosts.get("kvm-1")
    assert not await doubt(seen, closed_there=False, operation="check")
    assert await inventory.hosts.untold() == []
    for outcome in (True, False):  # it is told of once
        assert await doubt(seen, closed_there=True, operation="check") is outcome
    assert await inventory.hosts.untold() == ["kvm-1"]
    events = await inventory.events.list(subject="host/kvm-1")
    (said,) = [event.message for event in events if event.kind == "host.allocation-differs"]
    assert said == "refuses new VMs, although it was reopened: it is told again"


@pytest.mark.parametrize("state", [ResourceState.CREATING, ResourceState.ERROR])
async def test_a_host_that_is_not_in_service_is_told_nothing(
    inventory: Inventory, state: ResourceState
) -> None:
    await register(inventory, 1)
    if state is not ResourceState.CREATING:
        await change(inventory, 1, state)
    with pytest.raises(Conflict, match=f"kvm-1 is {state}"):
        await inventory.closings.decide("kvm-1", operation=OPERATION)


async def test_who_is_told(inventory: Inventory) -> None:
    topology = inventory.topology
    await topology.create_cluster("cluster-2", "pod-1", actor="test")
    for number in (1, 2, 3, 4):
        await enabled(inventory, number)
    await register(inventory, 5)  # told at the end of its addition
    await register(inventory, 6, cluster="cluster-2")
    await change(inventory, 6, ResourceState.DISABLED)
    await change(inventory, 2, ResourceState.PREPARE_FOR_MAINTENANCE)
    for number in (3, 4):
        await inventory.hosts.set_status(
            f"kvm-{number}", HostStatus.DISCONNECTED, actor="test", reason="test"
        )
    below = inventory.closings.hosts_below
    assert await below(AllocationLevel.CLUSTER, "cluster-1") == ["kvm-1", "kvm-2", "kvm-3", "kvm-4"]
    for level in (AllocationLevel.ZONE, AllocationLevel.POD):
        found = await below(level, f"{level}-1")
        assert found == ["kvm-1", "kvm-2", "kvm-3", "kvm-4", "kvm-6"]
    assert await below(AllocationLevel.HOST, "kvm-2") == ["kvm-2"]
    assert await below(AllocationLevel.HOST, "kvm-5") == []
    await topology.set_zone_state("zone-1", DISABLED, actor="test")
    assert await inventory.hosts.untold() == ["kvm-1", "kvm-2"]


async def test_a_host_that_is_not_there(inventory: Inventory) -> None:
    with pytest.raises(NotFound, match="no host 'kvm-9'"):
        await inventory.closings.decide("kvm-9", operation=OPERATION)


async def test_only_a_host_in_service_can_be_enabled_or_disabled() -> None:
    for state in (ResourceState.ENABLED, ResourceState.DISABLED):
        require_in_service(host("kvm-1", state))
    with pytest.raises(Conflict, match=r"gives back Disabled\..*hostler maintenance leave kvm-1"):
        require_in_service(
            host(
                "kvm-1",
                ResourceState.MAINTENANCE,
                state_before_maintenance=ResourceState.DISABLED,
            )
        )
    with pytest.raises(Conflict, match="is Creating"):
        require_in_service(host("kvm-1", ResourceState.CREATING))


async def test_a_change_of_state_names_its_operation_and_reason(inventory: Inventory) -> None:
    for _ in range(2):
        await inventory.topology.set_cluster_state(
            "cluster-1", DISABLED, actor=OPERATION, operation=OPERATION, reason="new switch"
        )
    (event,) = await inventory.events.list(operation=OPERATION)
    assert event.message == "Enabled -> Disabled: new switch"
    with pytest.raises(NotFound):
        await inventory.topology.set_pod_state("pod-9", DISABLED, actor="test")
