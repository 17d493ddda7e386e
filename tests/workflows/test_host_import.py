"""HostImport's decisions: hosts in memory, HostAddition played, time skipped."""

import asyncio
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.host_import import ImportActivities
from contracts.addition import HostAdditionInput
from contracts.host_import import (
    HostImportInput,
    HostImportResult,
    HostImportStatus,
    ImportedHost,
    ImportState,
)
from contracts.preflight_rules import error, warning
from tests.samples import FINGERPRINT
from tests.workflows.import_world import ImportWorld, StandIn
from workers.converter import HOSTLER_DATA_CONVERTER
from workers.interceptors import HostlerInterceptor
from workflows.host_import import HostImport
from workflows.host_import_page import current_details
from workflows.search_attributes import SEARCH_ATTRIBUTES

pytestmark = pytest.mark.asyncio(loop_scope="package")

ADDED, PRESENT, FAILED = ImportState.ADDED, ImportState.PRESENT, ImportState.FAILED
ADDABLE = ImportState.ADDABLE


Handle = WorkflowHandle[HostImport, HostImportResult]


@dataclass
class Run:
    """One import; hosts are named so that no other test has them."""

    client: Client
    world: ImportWorld
    queue: str
    prefix: str = field(default_factory=lambda: f"h{uuid.uuid4().hex[:8]}")

    def name(self, number: int) -> str:
        return f"{self.prefix}-{number}"

    def asked(self, number: int, **more: Any) -> HostAdditionInput:
        return HostAdditionInput.model_validate(
            {
                "name": self.name(number),
                "cluster": "cluster-1",
                "address": f"198.18.1.{number}",
                "secret": f"secret-{number}",
                "host_key_sha256": FINGERPRINT,
                **more,
            }
        )

    async def start(self, *hosts: HostAdditionInput, parallel: int = 4) -> Handle:
        return await self.client.start_workflow(
            HostImport.run,
            HostImportInput(name="rack-7", hosts=hosts, parallel=parallel),
            id=f"import/{self.prefix}",
            task_queue=self.queue,
        )

    async def add(self, asked: HostAdditionInput) -> WorkflowHandle[Any, Any]:
        """An addition that somebody else has started."""
        return await self.client.start_workflow(
            StandIn.run, asked, id=f"addition/{asked.name}", task_queue=self.queue
        )

    async def until_begun(self, number: int) -> None:
        while len(self.world.begun) < number:
            await asyncio.sleep(0.02)

    def states(self, result: HostImportResult) -> dict[int, ImportState]:
        return {int(one.host.rpartition("-")[2]): one.state for one in result.hosts}


Begin = Callable[..., Awaitable[Run]]


@pytest_asyncio.fixture(loop_scope="package")
async def begin(client: Client) -> AsyncIterator[Begin]:
    """`await begin(world)` starts a worker, of another server `of` another client."""
    workers: list[Worker] = []

    async def start(world: ImportWorld, *, of: Client = client) -> Run:
        run = Run(of, world, f"test-{uuid.uuid4()}")
        waits = ImportActivities(None, of, look_again=0.05)  # type: ignore[arg-type] # not asked
        worker = Worker(
            of,
            task_queue=run.queue,
            workflows=[HostImport, StandIn],
            activities=[
                *(world.work_on_host, world.preflight, world.find_hosts, world.discard_secrets),
                waits.await_additions,
            ],
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        return run

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


async def test_each_host_is_added_once_and_no_more_than_asked_at_a_time(begin: Begin) -> None:
    world = ImportWorld(seconds=0.05)
    run = await begin(world)
    handle = await run.start(*(run.asked(number) for number in range(20)), parallel=4)
    result = await handle.result()
    assert result.name == "rack-7"
    assert [one.host for one in result.hosts] == [run.name(number) for number in range(20)]
    assert run.states(result) == dict.fromkeys(range(20), ADDED)
    assert Counter(world.begun) == Counter(one.host for one in result.hosts)
    assert 1 < world.most_at_once <= 4
    assert world.discarded == []


async def test_one_that_fails_is_reported_and_fails_nothing_else(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.broken[run.name(1)] = "root can't log in:\n" + "x" * 1000
    result = await (await run.start(*(run.asked(number) for number in range(3)))).result()
    assert run.states(result) == {0: ADDED, 1: FAILED, 2: ADDED}
    assert result.hosts[1].error is not None
    assert result.hosts[1].error.startswith("root can't log in: xxx")
    assert len(result.hosts[1].error) == 250


async def test_a_second_import_finishes_what_is_left(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.broken[run.name(1)] = "no route"
    hosts = [run.asked(number) for number in range(3)]
    await (await run.start(*hosts)).result()
    del world.broken[run.name(1)]
    result = await (await run.start(*hosts)).result()
    assert run.states(result) == {0: PRESENT, 1: ADDED, 2: PRESENT}
    assert Counter(world.begun) == {run.name(0): 1, run.name(1): 2, run.name(2): 1}


async def test_hundreds_that_are_there_do_not_hide_the_rest(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    hosts = [run.asked(1, name=run.name(number)) for number in range(450)]
    world.hosts.update({host.name: host for host in hosts[:-1]})
    result = await (await run.start(*hosts)).result()
    assert Counter(one.state for one in result.hosts) == {PRESENT: 449, ADDED: 1}
    assert world.begun == [run.name(449)]


async def test_a_host_that_is_there_otherwise_is_named(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.hosts[run.name(0)] = run.asked(0, address="198.18.2.2")
    result = await (await run.start(run.asked(0), run.asked(1))).result()
    assert result.hosts[0] == ImportedHost(host=run.name(0), state=FAILED, error="it is elsewhere")
    assert result.hosts[1].state is ADDED
    assert world.begun == [run.name(1)]


@pytest.mark.parametrize(
    ("started", "broken", "state", "error"),
    [
        ({}, None, ADDED, None),
        ({"address": "198.18.2.2"}, None, FAILED, "it is elsewhere"),
        ({}, "no route", FAILED, "no route"),
    ],
)
async def test_an_addition_that_runs_already_is_joined(
    begin: Begin,
    started: dict[str, str],
    broken: str | None,
    state: ImportState,
    error: str | None,
) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.held.add(run.name(0))
    if broken is not None:
        world.broken[run.name(0)] = broken
    await run.add(run.asked(0, **started))
    await run.until_begun(1)
    handle = await run.start(run.asked(0), run.asked(1))
    await run.until_begun(2)
    world.go.set()
    result = await handle.result()
    assert result.hosts[0] == ImportedHost(host=run.name(0), state=state, error=error)
    assert result.hosts[1].state is ADDED
    assert Counter(world.begun) == {run.name(0): 1, run.name(1): 1}


@pytest.mark.parametrize(
    ("end", "error"),
    [("cancel", "Its addition was cancelled."), ("terminate", "Its addition was terminated.")],
)
async def test_an_addition_that_somebody_ends(begin: Begin, end: str, error: str) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.held.add(run.name(0))
    handle = await run.start(run.asked(0))
    await run.until_begun(1)
    await getattr(run.client.get_workflow_handle(f"addition/{run.name(0)}"), end)()
    result = await handle.result()
    assert result.hosts[0] == ImportedHost(host=run.name(0), state=FAILED, error=error)


async def test_hosts_whose_key_somebody_has_to_accept_come_last(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.held.add(run.name(0))
    hosts = [run.asked(0, host_key_sha256=None), run.asked(1), run.asked(2)]
    handle = await run.start(*hosts, parallel=1)
    await run.until_begun(3)
    assert world.begun == [run.name(1), run.name(2), run.name(0)]
    assert "1 of those being added came without a fingerprint" in (await status(handle)).message
    world.go.set()
    assert [one.host for one in (await handle.result()).hosts] == [run.name(n) for n in range(3)]


async def test_a_cancel_begins_no_other_and_leaves_those_that_run(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.held.update({run.name(0), run.name(1)})
    handle = await run.start(*(run.asked(number) for number in range(5)), parallel=2)
    await run.until_begun(2)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert sorted(world.discarded) == ["secret-2", "secret-3", "secret-4"]
    world.go.set()
    for number in (0, 1):
        addition = run.client.get_workflow_handle(f"addition/{run.name(number)}")
        assert await addition.result() == run.name(number)
    assert sorted(world.begun) == [run.name(0), run.name(1)]


async def test_the_status_tells_how_it_goes(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.broken[run.name(0)] = "no route"
    world.held.add(run.name(2))
    handle = await run.start(*(run.asked(number) for number in range(4)), parallel=1)
    await run.until_begun(3)
    found = await status(handle)
    assert found.message == "2 of 4 hosts are done: 1 waiting, 1 adding, 1 added, 1 failed"
    assert (found.total, found.parallel, found.adding) == (4, 1, (run.name(2),))
    assert [(one.host, one.error) for one in found.failed] == [(run.name(0), "no route")]
    assert found.counts[ImportState.WAITING] == 1
    assert "hostler operation cancel import rack-7" in found.commands
    page = current_details(found)
    assert f"At work on: `{run.name(2)}`" in page
    assert f"- `{run.name(0)}`: no route" in page
    world.go.set()
    await handle.result()


async def test_the_clusters_of_hosts_that_are_not_done_are_known(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.held.add(run.name(2))
    clusters = ("cluster-2", "cluster-1", "cluster-1", "cluster-3")
    hosts = [run.asked(number, cluster=cluster) for number, cluster in enumerate(clusters)]
    handle = await run.start(*hosts, parallel=1)
    await run.until_begun(3)
    assert (await status(handle)).clusters == ("cluster-1", "cluster-3")
    world.go.set()
    await handle.result()
    assert (await status(handle)).clusters == ()


# --- dry runs ---------------------------------------------------------------------------------


async def test_a_dry_run_tells_all_findings_of_all_hosts_and_adds_none(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    wrong = error("clock", "Its clock is off by an hour.", "Set it.")
    other = error("libvirtd", "libvirtd is masked.", "Unmask it.")
    odd = warning("kvm", "It has no KVM.", "Turn it on.")
    world.findings = {run.name(0): (wrong, odd, other), run.name(1): (odd,)}
    world.hosts[run.name(3)] = run.asked(3)
    hosts = [run.asked(number, dry_run=True) for number in range(4)]
    result = await (await run.start(*hosts, run.asked(4))).result()
    assert [(one.state, one.error, one.findings) for one in result.hosts] == [
        (FAILED, "Its clock is off by an hour.; libvirtd is masked.", (wrong, odd, other)),
        (ADDABLE, None, (odd,)),
        (ADDABLE, None, ()),
        (PRESENT, None, ()),
        (ADDED, None, ()),
    ]
    assert world.begun == [run.name(4)]


async def test_a_dry_run_does_not_join_an_addition(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    world.held.add(run.name(0))
    await run.add(run.asked(0))
    await run.until_begun(1)
    result = await (await run.start(run.asked(0, dry_run=True))).result()
    assert result.hosts[0].state is FAILED
    assert result.hosts[0].error == f"addition/{run.name(0)} runs already."
    assert world.discarded == ["secret-0"]
    world.go.set()


async def test_of_many_findings_their_additions_tell_the_rest(begin: Begin) -> None:
    world = ImportWorld()
    run = await begin(world)
    found = (warning("long", "x" * 90_000, "y"),)
    world.findings = {run.name(number): found for number in range(3)}
    hosts = [run.asked(number, dry_run=True) for number in range(3)]
    result = await (await run.start(*hosts, parallel=1)).result()
    assert [one.findings for one in result.hosts] == [found, found, ()]
    assert result.hosts[2].state is ADDABLE
    assert result.hosts[2].error == f"see: hostler operation show addition {run.name(2)}"


@pytest_asyncio.fixture(loop_scope="package")
async def forgetful() -> AsyncIterator[Client]:
    """Of a server that suggests to continue as new soon."""
    async with await WorkflowEnvironment.start_local(
        data_converter=HOSTLER_DATA_CONVERTER,
        dev_server_existing_path=str(Path(sys.executable).with_name("temporal")),
        dev_server_log_level="error",
        dev_server_extra_args=[
            *("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=40"),
        ],
        search_attributes=SEARCH_ATTRIBUTES,
    ) as environment:
        yield environment.client


async def test_it_continues_as_new_with_additions_under_way(
    forgetful: Client, begin: Begin
) -> None:
    world = ImportWorld(seconds=0.05)
    run = await begin(world, of=forgetful)
    world.broken[run.name(3)] = "no route"
    world.hosts[run.name(5)] = run.asked(5)
    world.held.add(run.name(7))
    handle = await run.start(*(run.asked(number) for number in range(30)), parallel=3)
    first = (await handle.describe()).run_id
    await run.until_begun(29)
    assert (await handle.describe()).run_id != first
    assert run.name(7) in (await status(handle)).adding
    world.go.set()
    result = await handle.result()
    expected = dict.fromkeys(range(30), ADDED) | {3: FAILED, 5: PRESENT}
    assert run.states(result) == expected
    assert [one.host for one in result.hosts] == [run.name(number) for number in range(30)]
    assert Counter(world.begun) == Counter(run.name(n) for n in range(30) if n != 5)
    assert world.most_at_once <= 3
    closed = await handle.describe()
    assert closed.status is WorkflowExecutionStatus.CONTINUED_AS_NEW or closed.run_id != first


async def test_what_dry_runs_have_found_is_not_lost_when_it_continues_as_new(
    forgetful: Client, begin: Begin
) -> None:
    world = ImportWorld(seconds=0.05)
    run = await begin(world, of=forgetful)
    world.findings = {
        run.name(number): (warning("number", f"It is number {number}.", "-"),)
        for number in range(30)
    }
    hosts = [run.asked(number, dry_run=True) for number in range(30)]
    handle = await run.start(*hosts, parallel=3)
    first = (await handle.describe()).run_id
    result = await handle.result()
    assert (await handle.describe()).run_id != first
    assert [one.findings for one in result.hosts] == [world.findings[one.name] for one in hosts]
    assert {one.state for one in result.hosts} == {ADDABLE}
    assert world.begun == []


async def test_what_it_carries_along_is_not_for_others_to_give(begin: Begin) -> None:
    run = await begin(ImportWorld())
    carried = {"since": "2026-11-24T09:30:00Z", "ended": {}, "adding": {}}
    asked = run.asked(0).model_dump(mode="json")
    handle: WorkflowHandle[Any, Any] = await run.client.start_workflow(
        "HostImport",
        {"name": "rack-7", "hosts": [asked], "continued": carried},
        id=f"import/{run.prefix}",
        task_queue=run.queue,
    )
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "InvalidInput"


async def status(handle: Handle) -> HostImportStatus:
    return await handle.query(HostImport.status)
