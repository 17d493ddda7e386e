"""PasswordRotation's decisions, with the activities replaced by a fleet that has passwords."""

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

from contracts.passwords import (
    AcquireHostsInput,
    EndRotationInput,
    Held,
    HeldHost,
    HeldHosts,
    HostOutcome,
    HostRotation,
    HostWork,
    OnFailure,
    PasswordRotationInput,
    PasswordRotationResult,
    PasswordRotationStatus,
    PlanRotationInput,
    Promoted,
    Proof,
    RetryInput,
    RevertInput,
    RotationPlan,
    SkipHostInput,
    StagedPassword,
    StageRotationInput,
    SweepInput,
    SweepResult,
)
from contracts.states import Phase
from contracts.steps import EventInput
from tests.workflows.world import refusal
from workers.interceptors import HostlerInterceptor
from workflows.password_rotation import PasswordRotation
from workflows.search_attributes import SEARCH_ATTRIBUTES

pytestmark = pytest.mark.asyncio(loop_scope="package")


@dataclass
class Fleet:
    """Hosts by name, and which password each has. `refuses`: hosts that do not take the new one;
    `stuck`: those that can't be put back; `unfit`: those that fail the checks; `late`: one that
    comes to the cluster during the change; `lost`: the lease is another operation's by now."""

    hosts: tuple[str, ...] = ("kvm-1", "kvm-2", "kvm-3")
    left_out: tuple[str, ...] = ()
    on_failure: OnFailure = OnFailure.REVERT
    refuses: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    unfit: set[str] = field(default_factory=set)
    late: str | None = None
    lost: bool = False
    broken: bool = False
    fresh: bool = True
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    changing: asyncio.Event = field(default_factory=asyncio.Event)
    passwords: dict[str, Held] = field(default_factory=dict)
    ended: list[tuple[str, EndRotationInput]] = field(default_factory=list)
    released: bool = False
    calls: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self.passwords = dict.fromkeys(self.hosts, Held.FORMER)

    @activity.defn(name="plan_password_rotation")
    async def plan(self, request: PlanRotationInput) -> RotationPlan:
        return RotationPlan(
            zone="zone-1",
            hosts=self.hosts,
            left_out=tuple(
                HostRotation(host=host, state=HostWork.LEFT_OUT, reason="Down")
                for host in self.left_out
            ),
            on_failure=self.on_failure,
            concurrency=5,
        )

    @activity.defn(name="acquire_hosts")
    async def acquire(self, request: AcquireHostsInput) -> HeldHosts:
        hosts = tuple(HeldHost(host=host, epoch=2) for host in request.hosts)
        return HeldHosts(owner=request.owner, hosts=hosts)

    @activity.defn(name="release_hosts")
    async def release(self, held: HeldHosts) -> None:
        assert {one.host for one in held.hosts} == set(self.hosts)
        self.released = True

    @activity.defn(name="stage_password")
    async def stage(self, request: StageRotationInput) -> StagedPassword:
        self.calls.append("stage")
        return StagedPassword(secret="secret-7", version=7, fresh=self.fresh)

    @activity.defn(name="check_hosts_for_password")
    async def check(self, request: SweepInput) -> SweepResult:
        assert self.calls == ["stage"], "stored before any host is asked"
        self.calls.append("check")
        return SweepResult(
            hosts=tuple(
                HostOutcome(
                    host=one.host,
                    held=Held.FORMER,
                    proof=Proof.SSH,
                    problem="pwscore: too simple" if one.host in self.unfit else None,
                )
                for one in request.held.hosts
            )
        )

    @activity.defn(name="change_passwords")
    async def change(self, request: SweepInput) -> SweepResult:
        self.calls.append("change")
        self.changing.set()
        await self.gate.wait()
        if self.lost:
            raise refusal("LeaseLost", "taken over")
        if self.broken:
            raise refusal("SecretUnreadable", "no such master key")
        assert all(one.proof is Proof.SSH for one in request.held.hosts)
        return SweepResult(hosts=tuple(self._give(one.host) for one in request.held.hosts))

    def _give(self, host: str) -> HostOutcome:
        if host in self.refuses:
            return HostOutcome(host=host, held=self.passwords[host], problem="pam_deny")
        self.passwords[host] = Held.NEW
        return HostOutcome(host=host, held=Held.NEW, proof=Proof.SSH)

    @activity.defn(name="put_passwords_back")
    async def put_back(self, request: SweepInput) -> SweepResult:
        self.calls.append(f"put back {' '.join(one.host for one in request.held.hosts)}")
        outcomes = []
        for one in request.held.hosts:
            if one.host in self.stuck:
                outcomes.append(HostOutcome(host=one.host, held=Held.NEW, problem="it is silent"))
            else:
                self.passwords[one.host] = Held.FORMER
                outcomes.append(HostOutcome(host=one.host, held=Held.FORMER))
        return SweepResult(hosts=tuple(outcomes))

    @activity.defn(name="promote_password")
    async def promote(self, request: EndRotationInput) -> Promoted:
        if self.late is not None and self.late not in request.skipped:
            return Promoted(lacking=(self.late,))
        self.ended.append(("promote", request))
        return Promoted()

    @activity.defn(name="abandon_password")
    async def abandon(self, request: EndRotationInput) -> None:
        self.ended.append(("abandon", request))

    @activity.defn(name="record_event")
    async def record_event(self, request: EventInput) -> None:
        self.events.append(request.message)

    def activities(self) -> list[Callable[..., Any]]:
        return [
            *(self.plan, self.acquire, self.release, self.stage, self.check, self.change),
            *(self.put_back, self.promote, self.abandon, self.record_event),
        ]


Handle = WorkflowHandle[PasswordRotation, PasswordRotationResult]
Begin = Callable[..., Awaitable[Handle]]


@pytest_asyncio.fixture(loop_scope="package")
async def begin(client: Client) -> AsyncIterator[Begin]:
    """`await begin(fleet, **input)` starts a change with a worker of its own."""
    workers: list[Worker] = []

    async def start(fleet: Fleet, **asked: Any) -> Handle:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[PasswordRotation],
            activities=fleet.activities(),
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        return await client.start_workflow(
            PasswordRotation.run,
            PasswordRotationInput.model_validate({"cluster": "cluster-1"} | asked),
            id=f"rotation/cluster-1-{uuid.uuid4()}",
            task_queue=queue,
        )

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


async def failure(handle: Handle) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    return caught.value.cause


async def until(handle: Handle, phase: Phase) -> PasswordRotationStatus:
    while (status := await handle.query(PasswordRotation.status)).phase is not phase:
        await asyncio.sleep(0.05)
    return status


async def refused(handle: Handle, update: str, argument: Any) -> str:
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await handle.execute_update(update, argument)
    return str(caught.value.cause)


def only_end(fleet: Fleet, kind: str) -> EndRotationInput:
    ((ended, request),) = fleet.ended
    assert ended == kind
    return request


async def test_all_are_proven_then_promoted_at_once(begin: Begin) -> None:
    fleet = Fleet(left_out=("kvm-9",))
    handle = await begin(fleet)
    result = await handle.result()
    assert (result.promoted, result.version) == (True, 7)
    assert {one.host: one.state for one in result.hosts} == {
        **dict.fromkeys(fleet.hosts, HostWork.PROVEN),
        "kvm-9": HostWork.LEFT_OUT,
    }
    assert set(fleet.passwords.values()) == {Held.NEW}
    end = only_end(fleet, "promote")
    assert {one.host for one in end.held.hosts} == set(fleet.hosts)
    assert end.skipped == {"kvm-9": "Down"}
    assert fleet.released
    attributes = (await handle.describe()).typed_search_attributes
    found = {key.name: attributes.get(key) for key in SEARCH_ATTRIBUTES}
    assert found["HostlerCluster"] == "cluster-1"
    assert found["HostlerPhase"] == Phase.DONE


@pytest.mark.parametrize("fresh", [True, False])
async def test_one_unfit_host_and_nothing_changes(begin: Begin, fresh: bool) -> None:
    """A password that somebody has staged stays staged."""
    fleet = Fleet(unfit={"kvm-2"}, fresh=fresh)
    error = await failure(await begin(fleet))
    assert error.type == "PreconditionsFailed"
    assert "kvm-2: pwscore: too simple" in error.message
    assert fleet.calls == ["stage", "check"]
    assert [kind for kind, _ in fleet.ended] == (["abandon"] if fresh else [])
    assert fleet.released


async def test_one_refusal_has_all_put_back(begin: Begin) -> None:
    fleet = Fleet(refuses={"kvm-2"})
    error = await failure(await begin(fleet))
    assert error.type == "PasswordsPutBack"
    assert "kvm-2: pam_deny" in error.message
    assert set(fleet.passwords.values()) == {Held.FORMER}
    assert fleet.calls[-1] == "put back kvm-1 kvm-3"
    assert only_end(fleet, "abandon").skipped == {}
    assert fleet.released


async def test_a_host_that_cannot_be_put_back_is_asked_about(begin: Begin) -> None:
    fleet = Fleet(refuses={"kvm-2"}, stuck={"kvm-1"})
    handle = await begin(fleet)
    status = await until(handle, Phase.QUESTION)
    assert status.reverting
    assert "kvm-1: it is silent" in status.message
    assert "already" in await refused(handle, "revert", RevertInput())
    await handle.execute_update("retry", RetryInput())
    await until(handle, Phase.QUESTION)
    fleet.stuck.clear()
    await handle.execute_update("retry", RetryInput())
    assert (await failure(handle)).type == "PasswordsPutBack"
    assert set(fleet.passwords.values()) == {Held.FORMER}


async def test_what_a_skipped_host_may_have_is_kept_for_it(begin: Begin) -> None:
    fleet = Fleet(refuses={"kvm-2"}, stuck={"kvm-1"})
    handle = await begin(fleet)
    await until(handle, Phase.QUESTION)
    skip = SkipHostInput(host="kvm-1", reason="its disk is dead")
    await handle.execute_update("skip_host", skip)
    assert "but for kvm-1" in (await failure(handle)).message
    assert only_end(fleet, "abandon").skipped == {"kvm-1": "its disk is dead"}


async def test_hold_then_retry(begin: Begin) -> None:
    fleet = Fleet(refuses={"kvm-2"})
    handle = await begin(fleet, on_failure="hold")
    status = await until(handle, Phase.QUESTION)
    held = {one.host: one.held for one in status.hosts}
    assert held == {"kvm-1": Held.NEW, "kvm-2": Held.FORMER, "kvm-3": Held.NEW}
    assert "hostler passwords retry cluster-1" in status.commands
    fleet.refuses.clear()
    await handle.execute_update("retry", RetryInput())
    assert (await handle.result()).promoted
    assert set(fleet.passwords.values()) == {Held.NEW}
    assert any("kvm-2" in event for event in fleet.events)
    # The one that had failed is all that was tried again.
    assert fleet.calls.count("change") == 2


async def test_hold_then_skip(begin: Begin) -> None:
    fleet = Fleet(refuses={"kvm-2"}, on_failure=OnFailure.HOLD)
    handle = await begin(fleet)
    await until(handle, Phase.QUESTION)
    skip = SkipHostInput(host="kvm-1", reason="no")
    assert "has not failed" in await refused(handle, "skip_host", skip)
    await handle.execute_update("skip_host", SkipHostInput(host="kvm-2", reason="broken"))
    assert (await handle.result()).promoted
    assert only_end(fleet, "promote").skipped == {"kvm-2": "broken"}


async def test_hold_then_revert(begin: Begin) -> None:
    fleet = Fleet(refuses={"kvm-2"}, on_failure=OnFailure.HOLD)
    handle = await begin(fleet)
    await until(handle, Phase.QUESTION)
    await handle.execute_update("revert", RevertInput())
    assert "that was asked for" in (await failure(handle)).message
    assert set(fleet.passwords.values()) == {Held.FORMER}


async def test_the_last_host_is_not_skipped(begin: Begin) -> None:
    fleet = Fleet(hosts=("kvm-1",), refuses={"kvm-1"}, on_failure=OnFailure.HOLD)
    handle = await begin(fleet)
    await until(handle, Phase.QUESTION)
    skip = SkipHostInput(host="kvm-1", reason="no")
    assert "only host that is left" in await refused(handle, "skip_host", skip)
    await handle.execute_update("revert", RevertInput())
    assert (await failure(handle)).type == "PasswordsPutBack"


async def test_nothing_is_asked_when_nothing_has_failed(begin: Begin) -> None:
    fleet = Fleet()
    fleet.gate.clear()
    handle = await begin(fleet)
    await fleet.changing.wait()
    assert "no question" in await refused(handle, "retry", RetryInput())
    fleet.gate.set()
    assert (await handle.result()).promoted


async def test_a_cancel_in_the_middle_puts_all_back(begin: Begin) -> None:
    fleet = Fleet()
    fleet.gate.clear()
    handle = await begin(fleet)
    await fleet.changing.wait()
    await handle.cancel()
    await asyncio.sleep(0.5)
    fleet.gate.set()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert set(fleet.passwords.values()) == {Held.FORMER}
    assert fleet.calls[-1] == "put back kvm-1 kvm-2 kvm-3"
    assert only_end(fleet, "abandon").skipped == {}
    assert fleet.released


async def test_a_host_that_comes_meanwhile_is_left_to_housekeeping(begin: Begin) -> None:
    fleet = Fleet(late="kvm-8")
    result = await (await begin(fleet)).result()
    assert result.promoted
    assert set(only_end(fleet, "promote").skipped) == {"kvm-8"}


async def test_a_sweep_that_fails_has_all_put_back(begin: Begin) -> None:
    """Nobody knows what it has done: every host of it may have either password."""
    fleet = Fleet(broken=True)
    error = await failure(await begin(fleet))
    assert error.type == "PasswordsPutBack"
    assert "no such master key" in error.message
    assert fleet.calls[-1] == "put back kvm-1 kvm-2 kvm-3"


async def test_one_that_was_taken_over_touches_nothing_any_more(begin: Begin) -> None:
    fleet = Fleet(lost=True)
    assert (await failure(await begin(fleet))).type == "LeaseLost"
    assert (fleet.ended, fleet.released) == ([], False)
