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
from contracts.allocation import TellHostsInput, TellHostsResult, UntoldHost
from contracts.hosts import Host, HostFacts
from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
from contracts.passwords import BringUpInput, BringUpResult, Held, HostOutcome
from contracts.preflight import Finding, Severity
from contracts.preflight_rules import error, warning
from contracts.states import HostStatus, Phase, ResourceState
from contracts.steps import (
    AcquireLeaseInput,
    ChangeStateInput,
    EventInput,
    FenceInput,
    FormerKeysInput,
    HostKeyResult,
    OwnKeyResult,
    PreflightInput,
    PreflightResult,
    RegisterHostInput,
    ScanHostKeyInput,
    SecretRef,
    SetStatusInput,
    TakeBackResult,
    TombstonesClosed,
)
from tests.samples import FACTS, FINGERPRINT, host
from tests.workflows.world import refusal
from workers.interceptors import HostlerInterceptor
from workflows.host_addition import HostAddition

pytestmark = pytest.mark.asyncio(loop_scope="package")

OTHER_KEY = "SHA256:" + "B" * 43


TAKEN = error("name-taken", "There is a host kvm-1 already.", "Choose another name.")
REFUSED = error("login-refused", "It refuses the login of root.", "Check the credential.")
EMULATES = warning("no-kvm", "It has no /dev/kvm.", "Turn it on.")
MISSING = warning("libvirt-missing", "There is no libvirtd.", "It will be installed.")


@dataclass
class NewHost:
    """A host to be added.

    Attributes:
        fails: the activity that is refused; `gate`: facts wait for it.
        away: it does not answer when its key is to be read.
        found: what the preflight finds; the next one of those, the last one again and again.
        takes_key: it lets Hostler's own key in.
        credential: how Hostler logs in; `stored`: whether the given one is still kept.
        on_host: what is on the host of Hostler's.
        untold: why it can't be told whether it takes new VMs.
        keeps_password: why it can't be given the password of its cluster.
        former_keys: names under which it had keys of Hostler's before.
        predecessor: whose lease is taken over.
    """

    fails: str | None = None
    away: bool = False
    found: list[tuple[Finding, ...]] = field(default_factory=lambda: [()])
    takes_key: bool = True
    running_jobs: tuple[str, ...] = ()
    stays_on_host: bool = False
    credential: str = "given"
    stored: bool = True
    staged: bool = False
    on_host: set[str] = field(default_factory=set)
    preflights: list[PreflightInput] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    keeps_its_fence: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    reading: bool = False
    registered: RegisterHostInput | None = None
    state: ResourceState = ResourceState.CREATING
    status: HostStatus = HostStatus.DISCONNECTED
    fenced: bool = False
    leased: bool = False
    told: tuple[str, ...] = ()
    untold: str | None = None
    keeps_password: str | None = None
    former_keys: tuple[str, ...] = ()
    predecessor: Owner | None = None
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
            taken_over_from=self.predecessor,
        )

    @activity.defn(name="release_lease")
    async def release_lease(self, lease: LeaseRef) -> None:
        self.leased = False

    @activity.defn(name="scan_host_key")
    async def scan_host_key(self, request: ScanHostKeyInput) -> HostKeyResult:
        self._call("scan_host_key")
        if self.away:
            raise ApplicationError("198.18.0.11 port 22 shows no key.", type="HostUnreachable")
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
        self.on_host.add("hook")
        self._call("install_fence")
        self.fenced = False

    @activity.defn(name="take_down_fence")
    async def take_down_fence(self, lease: LeaseRef) -> None:
        if self.keeps_its_fence:
            raise refusal("EpochRefused", "a later operation holds it")
        self.fenced = False

    @activity.defn(name="preflight_host")
    async def preflight_host(self, request: PreflightInput) -> PreflightResult:
        self._call("preflight_host")
        self.preflights.append(request)
        found = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        return PreflightResult(findings=found, lacks_packages=MISSING in found)

    @activity.defn(name="record_event")
    async def record_event(self, request: EventInput) -> None:
        assert self.registered is not None
        self.events.append((request.kind, request.message))

    @activity.defn(name="install_packages")
    async def install_packages(self, lease: LeaseRef) -> None:
        self.on_host.add("job")
        self._call("install_packages")

    @activity.defn(name="stage_own_key")
    async def stage_own_key(self, lease: LeaseRef) -> None:
        self._call("stage_own_key")
        self.staged = True

    @activity.defn(name="install_own_key")
    async def install_own_key(self, lease: LeaseRef) -> OwnKeyResult:
        assert self.staged
        if self.takes_key:
            self.on_host.add("key")
        self._call("install_own_key")
        return OwnKeyResult(proven=self.takes_key, problem="" if self.takes_key else "no keys.")

    @activity.defn(name="promote_own_key")
    async def promote_own_key(self, lease: LeaseRef) -> None:
        self._call("promote_own_key")
        self.credential, self.staged = "own key", False

    @activity.defn(name="drop_own_key")
    async def drop_own_key(self, lease: LeaseRef) -> None:
        self.staged = False

    @activity.defn(name="take_back")
    async def take_back(self, lease: LeaseRef) -> TakeBackResult:
        if self.stays_on_host:
            raise refusal("LoginRefused", "it lets nobody in")
        self.on_host.clear()
        return TakeBackResult(running_jobs=self.running_jobs)

    @activity.defn(name="close_tombstones")
    async def close_tombstones(self, lease: LeaseRef) -> TombstonesClosed:
        self._call("close_tombstones")
        return TombstonesClosed(keys_of=self.former_keys)

    @activity.defn(name="remove_former_keys")
    async def remove_former_keys(self, request: FormerKeysInput) -> None:
        assert request.names == self.former_keys
        self._call("remove_former_keys")

    @activity.defn(name="discard_secret")
    async def discard_secret(self, request: SecretRef) -> None:
        assert request.secret == "s"
        if self.registered is None:
            self.stored = False

    @activity.defn(name="set_host_status")
    async def set_host_status(self, request: SetStatusInput) -> Host:
        self.status = request.status
        return self._host()

    @activity.defn(name="change_host_state")
    async def change_host_state(self, request: ChangeStateInput) -> Host:
        self._call("change_host_state")
        self.state = request.target
        return self._host()

    @activity.defn(name="tell_hosts")
    async def tell_hosts(self, request: TellHostsInput) -> TellHostsResult:
        assert self.state is not ResourceState.CREATING, "only a host in service is told"
        assert self.leased
        self.told += request.hosts
        if self.untold is None:
            return TellHostsResult(told=request.hosts, untold=())
        (host,) = request.hosts
        return TellHostsResult(told=(), untold=(UntoldHost(host=host, reason=self.untold),))

    @activity.defn(name="bring_passwords_up")
    async def bring_passwords_up(self, request: BringUpInput) -> BringUpResult:
        assert self.state is not ResourceState.CREATING, "only a host in service is given it"
        (host,) = request.hosts
        outcome = HostOutcome(host=host, held=Held.NEW, problem=self.keeps_password)
        if self.keeps_password is not None:
            return BringUpResult(done=(), failed=(outcome,))
        return BringUpResult(done=(outcome,), failed=())

    @activity.defn(name="forget_host")
    async def forget_host(self, lease: LeaseRef) -> None:
        self.registered = None
        self.staged = self.stored = False

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
            self.tell_hosts,
            self.bring_passwords_up,
            self.forget_host,
            self.preflight_host,
            self.record_event,
            self.install_packages,
            self.stage_own_key,
            self.install_own_key,
            self.promote_own_key,
            self.drop_own_key,
            self.take_back,
            self.discard_secret,
            self.close_tombstones,
            self.remove_former_keys,
        ]

    def untouched(self) -> bool:
        """Whether nothing of the addition is left."""
        gone = self.registered is None and not self.stored and not self.staged
        return gone and not self.on_host and not self.fenced and not self.leased


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
    assert new.on_host == {"hook", "key"}
    assert (new.credential, new.stored, new.events) == ("own key", True, [])
    # Its checks go on with that if it could not be told just now.
    assert new.told == ("kvm-1",)


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
    assert cause.type == "PreflightFailed"
    assert "[host-key-differs]" in cause.message
    assert FINGERPRINT in cause.message
    assert OTHER_KEY in cause.message
    (looked,) = new.preflights
    assert not looked.log_in
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
    "step",
    [
        *("scan_host_key", "preflight_host", "register_host", "read_facts", "install_fence"),
        *("stage_own_key", "install_own_key", "promote_own_key", "change_host_state"),
    ],
)
async def test_what_fails_is_taken_back(begin: Begin, step: str) -> None:
    new = NewHost(fails=step)
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.message) == ("LoginRefused", f"{step} is refused")
    assert new.untouched()


@pytest.mark.parametrize("stays", [True, False])
async def test_a_fence_that_stays_is_told_with_the_first_failure(begin: Begin, stays: bool) -> None:
    """It goes with all the rest, if that goes."""
    new = NewHost(fails="install_fence", keeps_its_fence=True, stays_on_host=stays)
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert isinstance(cause, ApplicationError)
    assert cause.type == "LoginRefused"
    assert cause.message == "install_fence is refused" + (
        " The fence may still be up: a later operation holds it"
        " /etc/hostler, the hook and the key may still be on the host: it lets nobody in" * stays
    )
    assert new.registered is None
    assert not new.leased


async def test_all_findings_come_in_one_refusal(begin: Begin) -> None:
    new = NewHost(found=[(TAKEN, REFUSED, EMULATES)])
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.non_retryable) == ("PreflightFailed", True)
    assert cause.message == (
        "kvm-1 can't be added (2 errors, 1 warning):\n"
        "error [name-taken] There is a host kvm-1 already. Choose another name.\n"
        "error [login-refused] It refuses the login of root. Check the credential.\n"
        "warning [no-kvm] It has no /dev/kvm. Turn it on."
    )
    listed = [Finding.model_validate(one) for one in cause.details[0]["findings"]]
    assert listed == [TAKEN, REFUSED, EMULATES]
    assert new.untouched()
    assert "register_host" not in new.calls


async def test_a_host_that_does_not_answer_is_a_finding_beside_the_others(begin: Begin) -> None:
    new = NewHost(away=True, found=[(TAKEN,)])
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert isinstance(cause, ApplicationError)
    codes = [one["code"] for one in cause.details[0]["findings"]]
    assert codes == ["unreachable", "name-taken"]
    assert "198.18.0.11 port 22 shows no key." in cause.message
    (looked,) = new.preflights
    assert (looked.host_key, looked.log_in) == (None, False)
    assert new.untouched()


async def test_warnings_are_told_and_stand_in_nobodys_way(begin: Begin) -> None:
    new = NewHost(found=[(EMULATES,)])
    handle = await begin(new, host_key_sha256=FINGERPRINT)
    result = await handle.result()
    assert result.findings == (EMULATES,)
    assert result.resource_state is ResourceState.ENABLED
    assert new.events == [("addition.warning", "[no-kvm] It has no /dev/kvm. Turn it on.")]
    assert (await handle.query(HostAddition.status)).findings == (EMULATES,)


@pytest.mark.parametrize("found", [(), (EMULATES,), (TAKEN, REFUSED)])
async def test_a_dry_run_changes_nothing(begin: Begin, found: tuple[Finding, ...]) -> None:
    new = NewHost(found=[found])
    result = await (await begin(new, host_key_sha256=FINGERPRINT, dry_run=True)).result()
    assert result.findings == found
    assert (result.resource_state, result.facts) == (None, None)
    assert result.host_key_sha256 == FINGERPRINT
    assert new.calls == ["scan_host_key", "preflight_host"]
    assert new.preflights[0].epoch is None
    assert new.untouched()


async def test_a_dry_run_waits_for_nobody(begin: Begin) -> None:
    """Without an accepted key it does not log in, and says which key it has seen."""
    new = NewHost()
    result = await (await begin(new, dry_run=True)).result()
    (finding,) = result.findings
    assert finding.code == "host-key-not-accepted"
    assert FINGERPRINT in finding.remedy
    (looked,) = new.preflights
    assert not looked.log_in
    assert new.untouched()


async def test_a_dry_run_that_fails_leaves_no_secret(begin: Begin) -> None:
    new = NewHost(fails="preflight_host")
    await failure(await begin(new, host_key_sha256=FINGERPRINT, dry_run=True))
    assert new.untouched()


async def test_purpose_and_packages_reach_the_preflight(begin: Begin) -> None:
    new = NewHost()
    await (await begin(new, host_key_sha256=FINGERPRINT, returning=True)).result()
    (looked,) = new.preflights
    assert (looked.returning, looked.install_packages, looked.log_in) == (True, False, True)
    assert looked.epoch == 1
    assert new.calls[-1] == "close_tombstones"


async def test_keys_from_before_go_with_the_names_from_before(begin: Begin) -> None:
    new = NewHost(former_keys=("kvm-7",))
    result = await (await begin(new, host_key_sha256=FINGERPRINT, returning=True)).result()
    assert new.calls[-2:] == ["close_tombstones", "remove_former_keys"]
    assert (result.findings, new.events) == ((), [])


async def test_a_key_from_before_that_stays_is_a_warning(begin: Begin) -> None:
    new = NewHost(former_keys=("kvm-7", "kvm-8"), fails="remove_former_keys")
    result = await (await begin(new, host_key_sha256=FINGERPRINT, returning=True)).result()
    assert result.resource_state is ResourceState.ENABLED
    (finding,) = result.findings
    assert (finding.code, finding.severity) == ("old-key-left", Severity.WARNING)
    assert "hostler:kvm-7, hostler:kvm-8" in finding.remedy
    ((kind, message),) = new.events
    assert kind == "addition.warning"
    assert "[old-key-left]" in message
    assert not new.leased


async def test_a_host_that_can_not_be_told_is_a_warning(begin: Begin) -> None:
    new = NewHost(untold="libvirt started a new VM.")
    result = await (await begin(new, host_key_sha256=FINGERPRINT, enabled=False)).result()
    assert result.resource_state is ResourceState.DISABLED
    (finding,) = result.findings
    assert (finding.code, finding.severity) == ("allocation-untold", Severity.WARNING)
    ((kind, message),) = new.events
    assert (kind, "libvirt started a new VM." in message) == ("addition.warning", True)
    assert not new.leased


async def test_a_host_that_keeps_its_own_password_is_a_warning(begin: Begin) -> None:
    new = NewHost(keeps_password="pam_deny")
    result = await (await begin(new, host_key_sha256=FINGERPRINT)).result()
    assert result.resource_state is ResourceState.ENABLED
    (finding,) = result.findings
    assert (finding.code, finding.severity) == ("password-stale", Severity.WARNING)
    assert "pam_deny" in finding.found
    assert not new.leased


async def test_packages_are_installed_where_they_are_missing(begin: Begin) -> None:
    new = NewHost(found=[(MISSING,), (EMULATES,)])
    result = await (await begin(new, host_key_sha256=FINGERPRINT, install_packages=True)).result()
    assert result.resource_state is ResourceState.ENABLED
    assert [looked.install_packages for looked in new.preflights] == [True, False]
    assert new.calls.index("install_packages") < new.calls.index("read_facts")
    assert [message.split()[0] for _, message in new.events] == ["[libvirt-missing]", "[no-kvm]"]


async def test_packages_that_are_there_are_not_installed(begin: Begin) -> None:
    new = NewHost()
    await (await begin(new, host_key_sha256=FINGERPRINT, install_packages=True)).result()
    assert "install_packages" not in new.calls
    assert len(new.preflights) == 1


async def test_what_is_wrong_after_the_installation_is_told_with_what_stays(begin: Begin) -> None:
    new = NewHost(found=[(MISSING,), (TAKEN,)], running_jobs=("packages-1",))
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT, install_packages=True))
    assert isinstance(cause, ApplicationError)
    assert cause.type == "PreflightFailed"
    assert "Packages that were installed stay." in cause.message
    assert cause.details[0]["remains"] == [
        "Packages that were installed stay.",
        "The job packages-1 still runs there, see /var/lib/hostler/jobs.",
    ]
    assert new.untouched()


async def test_whoever_was_terminated_is_outlasted(begin: Begin) -> None:
    new = NewHost(predecessor=Owner(workflow_id="addition/kvm-1", first_run_id="run-0"))
    handle = await begin(new, host_key_sha256=FINGERPRINT)
    await handle.result()
    events = [event.WhichOneof("attributes") for event in (await handle.fetch_history()).events]
    first_look = events.index("activity_task_scheduled_event_attributes", 8)
    assert "timer_fired_event_attributes" in events[:first_look]


async def test_a_host_that_takes_no_key_keeps_its_password(begin: Begin) -> None:
    new = NewHost(takes_key=False)
    result = await (await begin(new, host_key_sha256=FINGERPRINT)).result()
    assert [finding.code for finding in result.findings] == ["own-key-refused"]
    assert "no keys." in result.findings[0].found
    assert (new.credential, new.stored, new.staged) == ("given", True, False)
    assert new.on_host == {"hook"}
    ((kind, message),) = new.events
    assert (kind, message.split()[0]) == ("addition.warning", "[own-key-refused]")
    assert result.resource_state is ResourceState.ENABLED


async def test_what_can_not_be_taken_back_is_told(begin: Begin) -> None:
    new = NewHost(fails="install_own_key", stays_on_host=True)
    cause = await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert isinstance(cause, ApplicationError)
    assert cause.type == "LoginRefused"
    assert "may still be on the host: it lets nobody in" in cause.message
    assert new.registered is None
    assert not new.leased


async def test_a_held_host_is_left_alone(begin: Begin) -> None:
    new = NewHost(fails="acquire_lease")
    await failure(await begin(new, host_key_sha256=FINGERPRINT))
    assert new.calls == ["acquire_lease"]
    # Whoever holds the host may be another addition with that very credential.
    assert new.stored


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
