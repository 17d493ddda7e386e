"""AllocationState's decisions, with the activities replaced."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from temporalio import activity
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from contracts.allocation import (
    AllocationLevel,
    AllocationStateInput,
    AllocationStateResult,
    ChangeAllocationInput,
    HostsBelow,
    SetAllocationInput,
    TellHostsInput,
    TellHostsResult,
    UntoldHost,
)
from contracts.states import AllocationState as State
from contracts.states import Phase
from tests.workflows.world import refusal
from workers.interceptors import HostlerInterceptor
from workflows.allocation_state import AllocationState
from workflows.search_attributes import SEARCH_ATTRIBUTES

pytestmark = pytest.mark.asyncio(loop_scope="package")


@dataclass
class Below:
    """A place and its hosts. `deaf`: hosts that can't be told; `fails`: attempts at telling that
    end as when the worker dies; `gate`: telling waits for it, from batch `held_from` on; `setting`:
    setting does."""

    hosts: tuple[str, ...] = ("kvm-1", "kvm-2")
    deaf: frozenset[str] = frozenset()
    refused: ApplicationError | None = None
    fails: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    held_from: int | None = None
    setting: asyncio.Event = field(default_factory=asyncio.Event)
    telling: asyncio.Event = field(default_factory=asyncio.Event)
    set: list[SetAllocationInput] = field(default_factory=list)
    told: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.setting.set()
        if self.held_from is None:
            self.held_from = 0
            self.gate.set()

    @activity.defn(name="set_allocation")
    async def set_allocation(self, request: SetAllocationInput) -> HostsBelow:
        self.set.append(request)
        await self.setting.wait()
        if self.refused is not None:
            raise self.refused
        return HostsBelow(hosts=self.hosts)

    @activity.defn(name="tell_hosts")
    async def tell_hosts(self, request: TellHostsInput) -> TellHostsResult:
        assert self.set, "hosts are told only what the inventory wants already"
        self.telling.set()
        assert self.held_from is not None
        if len(self.told) >= self.held_from:
            await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise ApplicationError("the worker is gone", type="Unavailable")
        self.told.append(request.hosts)
        return TellHostsResult(
            told=tuple(host for host in request.hosts if host not in self.deaf),
            untold=tuple(
                UntoldHost(host=host, reason=f"{host} does not answer. It is | off\nor away.")
                for host in request.hosts
                if host in self.deaf
            ),
        )


Handle = WorkflowHandle[AllocationState, AllocationStateResult]
Begin = Callable[..., Awaitable[Handle]]


@pytest_asyncio.fixture(loop_scope="package")
async def begin(client: Client) -> AsyncIterator[Begin]:
    """`await begin(below, **input)` starts a change with a worker of its own."""
    workers: list[Worker] = []

    async def start(below: Below, **asked: Any) -> Handle:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[AllocationState],
            activities=[below.set_allocation, below.tell_hosts],
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        request = {"level": "cluster", "name": "cluster-1", "allocation_state": "Disabled"}
        return await client.start_workflow(
            AllocationState.run,
            AllocationStateInput.model_validate(request | asked),
            id=f"cluster-allocation/cluster-1-{uuid.uuid4()}",
            task_queue=queue,
        )

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


def many(number: int) -> tuple[str, ...]:
    return tuple(f"kvm-{index:03}" for index in range(number))


async def test_it_is_set_first_and_all_are_told(begin: Begin) -> None:
    below = Below()
    handle = await begin(below, reason="new switch")
    result = await handle.result()
    assert (result.told, result.not_told, result.untold) == (2, 0, ())
    (asked,) = below.set
    assert (asked.level, asked.name, asked.reason) == ("cluster", "cluster-1", "new switch")
    assert asked.operation == handle.id
    assert handle.first_execution_run_id is not None
    assert asked.step.startswith(handle.first_execution_run_id)
    assert below.told == [below.hosts]
    status = await handle.query(AllocationState.status)
    assert status.phase is Phase.DONE
    assert status.message == "cluster cluster-1 is Disabled; 2 of 2 hosts were told"


@pytest.mark.parametrize(
    ("level", "attribute"),
    [
        ("zone", "HostlerZone"),
        ("pod", "HostlerPod"),
        ("cluster", "HostlerCluster"),
        ("host", "HostlerHost"),
    ],
)
async def test_it_is_found_by_its_subject_alone(begin: Begin, level: str, attribute: str) -> None:
    handle = await begin(Below(), level=level, name="it")
    await handle.result()
    found = (await handle.describe()).typed_search_attributes
    attributes = {key.name: found.get(key) for key in SEARCH_ATTRIBUTES if found.get(key)}
    assert attributes == {attribute: "it", "HostlerPhase": "Done"}
    command = (await handle.query(AllocationState.status)).commands[0]
    assert command == f"hostler operation show {level}-allocation it"


async def test_500_hosts_are_a_handful_of_activities(begin: Begin) -> None:
    hosts = many(500)
    below = Below(hosts=hosts, deaf=frozenset(hosts[::25]))
    handle = await begin(below, level="zone", name="zone-1")
    result = await handle.result()
    assert (result.told, result.not_told) == (480, 20)
    assert {one.host for one in result.untold} == below.deaf
    assert all("does not answer" in one.reason for one in result.untold)
    assert [len(batch) for batch in below.told] == [100] * 5
    assert sum(below.told, ()) == hosts
    events = [event async for event in handle.fetch_history_events()]
    assert len(events) < 60
    assert sum(event.ByteSize() for event in events) < 100_000
    status = await handle.query(AllocationState.status)
    assert "480 of 500 hosts were told, 20 could not be" in status.message
    assert "hostler zone disable zone-1" in status.commands


async def test_of_thousands_that_are_away_the_result_names_some(begin: Begin) -> None:
    hosts = many(999)
    result = await (await begin(Below(hosts=hosts, deaf=frozenset(hosts)))).result()
    assert (result.told, result.not_told, len(result.untold)) == (0, 999, 500)


async def test_nothing_below_is_done_at_once(begin: Begin) -> None:
    below = Below(hosts=())
    result = await (await begin(below, allocation_state="Enabled")).result()
    assert (result.allocation_state, result.told, below.told) == ("Enabled", 0, [])


async def test_a_refusal_is_its_own(begin: Begin) -> None:
    below = Below(refused=refusal("Conflict", "kvm-1 is Maintenance"))
    handle = await begin(below, level="host", name="kvm-1")
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.message) == ("Conflict", "kvm-1 is Maintenance")
    assert below.told == []


async def test_an_attempt_that_dies_is_made_again(begin: Begin) -> None:
    below = Below(fails=2)
    assert (await (await begin(below)).result()).told == 2
    assert len(below.set) == 1


async def test_it_says_where_it_stands(begin: Begin) -> None:
    hosts = many(150)
    below = Below(hosts=hosts, deaf=frozenset(hosts[:70]))
    below.gate.clear()
    handle = await begin(below, reason="new switch", level=AllocationLevel.ZONE, name="zone-1")
    await below.telling.wait()
    status = await handle.query(AllocationState.status)
    assert (status.phase, status.hosts, status.told) == (Phase.TELLING, 150, 0)
    assert status.message == "zone zone-1 is Disabled; 0 of 150 hosts were told"
    below.gate.set()
    await handle.result()
    details: str = await handle.query("__temporal_workflow_metadata", result_type=None)
    text = str(details)
    assert "Reason: new switch" in text
    assert "| kvm-000 | kvm-000 does not answer. It is / off or away. |" in text
    assert "and 10 more" in text


async def test_one_that_runs_is_turned_round(begin: Begin) -> None:
    """All are told what holds then, those too that were told before."""
    hosts = many(250)
    below = Below(hosts=hosts, held_from=1)
    handle = await begin(below, reason="new switch")
    while len(below.told) < 1:
        await asyncio.sleep(0.02)
    change = ChangeAllocationInput(allocation_state=State.ENABLED, reason="mistaken")
    await handle.execute_update("change", change)
    while len(below.set) < 2:  # at once, whatever hosts take
        await asyncio.sleep(0.02)
    below.gate.set()
    result = await handle.result()
    assert (result.allocation_state, result.told, result.not_told) == (State.ENABLED, 250, 0)
    assert [(one.allocation_state, one.reason) for one in below.set] == [
        (State.DISABLED, "new switch"),
        (State.ENABLED, "mistaken"),
    ]
    assert len({one.step for one in below.set}) == 2
    assert sum(below.told[-3:], ()) == hosts


async def test_turned_round_twice_while_it_is_being_set(begin: Begin) -> None:
    below = Below()
    below.setting.clear()
    handle = await begin(below)
    while not below.set:
        await asyncio.sleep(0.02)
    for state in (State.ENABLED, State.DISABLED):
        change = ChangeAllocationInput(allocation_state=state)
        await handle.execute_update("change", change)
    below.setting.set()
    result = await handle.result()
    assert (result.allocation_state, result.told) == (State.DISABLED, 2)
    assert [one.allocation_state for one in below.set][-1] is State.DISABLED
    assert below.told == [below.hosts]


async def test_what_it_does_already_is_refused(begin: Begin) -> None:
    below = Below()
    below.gate.clear()
    handle = await begin(below)
    await below.telling.wait()
    assert "hostler cluster enable cluster-1" in (await handle.query("status"))["commands"]
    change = ChangeAllocationInput(allocation_state=State.DISABLED)
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await handle.execute_update("change", change)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.message == "cluster cluster-1 becomes Disabled already."
    below.gate.set()
    assert len((await handle.result()).untold) == 0
    assert len(below.set) == 1


async def test_cancel_stops_the_telling_and_leaves_the_state(begin: Begin) -> None:
    below = Below(hosts=many(300))
    below.gate.clear()
    handle = await begin(below)
    await below.telling.wait()
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    below.gate.set()
    assert len(below.set) == 1
    assert len(below.told) <= 1
