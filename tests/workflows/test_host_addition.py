"""HostAddition's decisions, with the activities replaced and time skipped."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
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

from contracts.addition import HostAdditionInput, HostAdditionResult
from contracts.hosts import Host, HostFacts
from contracts.leases import Lease, LeaseRef, LeaseScope
from contracts.states import HostStatus, Phase, ResourceState
from contracts.steps import (
    AcquireLeaseInput,
    ChangeStateInput,
    FenceInput,
    HostKeyResult,
    RegisterHostInput,
    ScanHostKeyInput,
    SetStatusInput,
)
from tests.samples import FACTS, FINGERPRINT, host
from tests.workflows.world import refusal
from workers.interceptors import HostlerInterceptor
from workflows.host_addition import HostAddition

pytestmark = pytest.mark.asyncio(loop_scope="package")

OTHER_KEY = "SHA256:" + "B" * 43


@dataclass
class NewHost:
    """A host to be added. `fails`: the activity that is refused; `gate`: facts wait for it."""

    fails: str | None = None
    keeps_its_fence: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reading: bool = False
    registered: RegisterHostInput | None = None
    state: ResourceState = ResourceState.CREATING
    status: HostStatus = HostStatus.DISCONNECTED
    fenced: bool = False
    leased: bool = False
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise refusal("LoginRefused", f"{name} is refused")

    @activity.defn(name="acquire_lease")
    async def acquire_lease(self, request: AcquireLeaseInput) -> Lease:
        self._call("acquire_lease")
        assert not request.known
        self.leased = True
        return Lease(
            host=request.host,
            scope=LeaseScope.PLACEMENT,
            owner=request.owner,
            epoch=1,
            purpose=request.purpose,
        )

    @activity.defn(name="release_lease")
    async def release_lease(self, lease: LeaseRef) -> None:
        self.leased = False

    @activity.defn(name="scan_host_key")
    async def scan_host_key(self, request: ScanHostKeyInput) -> HostKeyResult:
        self._call("scan_host_key")
        return HostKeyResult(line="ssh-ed25519 AAAA", sha256=FINGERPRINT)

    @activity.defn(name="register_host")
    async def register_host(self, request: RegisterHostInput) -> Host:
        self._call("register_host")
        self.registered = request
        return self._host()

    @activity.defn(name="read_facts")
    async def read_facts(self, lease: LeaseRef) -> HostFacts:
        self.reading = True
        await self.gate.wait()
        self._call("read_facts")
        return FACTS

    @activity.defn(name="install_fence")
    async def install_fence(self, request: FenceInput) -> None:
        self.fenced = True
        self._call("install_fence")
        self.fenced = False

    @activity.defn(name="take_down_fence")
    async def take_down_fence(self, lease: LeaseRef) -> None:
        if self.keeps_its_fence:
            raise refusal("EpochRefused", "a later operation holds it")
        self.fenced = False

    @activity.defn(name="set_host_status")
    async def set_host_status(self, request: SetStatusInput) -> Host:
        self.status = request.status
        return self._host()

    @activity.defn(name="change_host_state")
    async def change_host_state(self, request: ChangeStateInput) -> Host:
        self._call("change_host_state")
        self.state = request.target
        return self._host()

    @activity.defn(name="forget_host")
    async def forget_host(self, lease: LeaseRef) -> None:
        self.registered = None

    def _host(self) -> Host:
        return host("kvm-1", self.state, status=self.status)

    def activities(self) -> list[Callable[..., Any]]:
        """Everything that a Worker registers."""
        return [
            self.acquire_lease,
            self.release_lease,
            self.scan_host_key,
            self.register_host,
            self.read_facts,
            self.install_fence,
            self.take_down_fence,
            self.set_host_status,
            self.change_host_state,
            self.forget_host,
        ]

    def untouched(self) -> bool:
        """Whether nothing of the addition is left."""
        return self.registered is None and not self.fenced and not self.leased


Handle = WorkflowHandle[HostAddition, HostAdditionResult]
Begin = Callable[..., Awaitable[Handle]]


@pytest_asyncio.fixture(loop_scope="package")
async def begin(client: Client) -> AsyncIterator[Begin]:
    """`await begin(new_host, **input)` starts an addition with a worker of its own."""
    workers: list[Worker] = []

    async def start(new: NewHost, **asked: Any) -> Handle:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[HostAddition],
            activities=new.activities(),
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        request = {"name": "kvm-1", "cluster": "cluster-1", "address": "198.18.0.11", "secret": "s"}
        return await client.start_workflow(
            HostAddition.run,
            HostAdditionInput.model_validate(request | asked),
            id=f"addition/kvm-1-{uuid.uuid4()}",
            task_queue=queue,
        )

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


async def failure(handle: Handle) -> BaseException:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    return caught.value.cause


async def until_question(handle: Handle) -> None:
    while (await handle.query(HostAddition.status)).phase is not Phase.QUESTION:
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_host_comes_into_service(begin: Begin, enabled: bool) -> None:
    new = NewHost()
    handle = await begin(new, host_key_sha256=FINGERPRINT, enabled=enabled)
    result = await handle.result()
    wanted = ResourceState.ENABLED if enabled else ResourceState.DISABLED
    assert (result.resource_state, new.state) == (wanted, wanted)
    assert result.host_key_sha256 == FINGERPRINT
    assert new.status is HostStatus.UP
    assert new.registered is not None
    assert new.registered.host_key_line == "ssh-ed25519 AAAA"
    assert not new.fenced
    assert not new.leased


async def test_the_key_is_shown_and_pinned_only_when_it_is_accepted(begin: Begin) -> None:
    new = NewHost()
    handle = await begin(new)
    await until_question(handle)
    status = await handle.query(HostAddition.status)
    assert status.host_key_sha256 == FINGERPRINT
    assert FINGERPRINT in status.commands[0]
    assert new.registered is None
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await handle.execute_update("accept_host_key", {"fingerprint": OTHER_KEY})
    assert FINGERPRINT in str(caught.value.cause)
    await handle.execute_update("accept_host_key", {"fingerprint": FINGERPRINT})
    assert (await handle.result()).resource_state is ResourceState.ENABLED


async def test_another_key_than_the_accepted_one_ends_it(begin: Begin) -> None:
    new = NewHost()
    cause = await failure(await begin(new, host_key_sha256=OTHER_KEY))
    assert isinstance(cause, ApplicationError)
    assert cause.type == "HostKeyNotAccepted"
    assert FINGERPRINT in cause.message
    assert OTHER_KEY in cause.message
    assert new.untouched()


async def test_nobody_answers_within_an_hour(begin: Begin) -> None:
    new = NewHost()
    handle = await begin(new)
    cause = await failure(handle)
    assert isinstance(cause, ApplicationError)
    assert "Nobody accepted the host key" in cause.message
    assert new.untouched()
    description = await handle.describe()
    assert description.close_time is not None
    assert description.close_time - description.start_time >= timedelta(hours=1)


@pytest.mark.parametrize(
    "step", ["scan_host_key", "register_host", "read_facts", "install_fence", "change_host_state"]
)
async def test_what_fails_is_taken_back(begin: Begin, step: str) -> None:
    new = NewHost(fails=step)
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.message) == ("LoginRefused", f"{step} is refused")
    assert new.untouched()


async def test_a_fence_that_stays_is_told_with_the_first_failure(begin: Begin) -> None:
    new = NewHost(fails="install_fence", keeps_its_fence=True)
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert isinstance(cause, ApplicationError)
    assert cause.type == "LoginRefused"
    assert cause.message == (
        "install_fence is refused The fence may still be up: a later operation holds it"
    )
    assert new.registered is None
    assert not new.leased


async def test_a_held_host_is_left_alone(begin: Begin) -> None:
    new = NewHost(fails="acquire_lease")
    await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert new.calls == ["acquire_lease"]


async def test_cancel_takes_everything_back(begin: Begin) -> None:
    new = NewHost()
    new.gate.clear()
    handle = await begin(new, host_key_sha256=FINGERPRINT)
    while not new.reading:
        await asyncio.sleep(0.02)
    await handle.cancel()
    new.gate.set()
    assert isinstance(await failure(handle), CancelledError)
    assert new.untouched()
