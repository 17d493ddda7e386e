"""HostRemoval's decisions, with the activities replaced, and time skipped."""

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

from activities.operations import OperationActivities
from contracts.leases import Lease, LeaseRef, Owner
from contracts.maintenance import HostMaintenanceResult, MaintenanceOutcome
from contracts.power import PowerState
from contracts.power_actions import Action
from contracts.removal import (
    BeginRemovalInput,
    Cleaning,
    EffectKind,
    HostRemovalInput,
    HostRemovalResult,
    HostRemoved,
    RemovalAction,
    RemovalBegun,
    RemovalOutcome,
    RemovalSurvey,
    RemoveHostInput,
    ResolveRemovalInput,
)
from contracts.states import HostStatus, Phase, ResourceState
from contracts.steps import AcquireLeaseInput, AwaitLeaseInput, HostRef
from tests.workflows.world import World, refusal, running
from workers.interceptors import HostlerInterceptor
from workflows.host_maintenance import HostMaintenance
from workflows.host_removal import HostRemoval
from workflows.power_action import PowerAction

pytestmark = pytest.mark.asyncio(loop_scope="package")

R = ResourceState
FOUND = ("file /etc/hostler/fence", "key hostler:kvm-1 in /root/.ssh/authorized_keys")
SILENCE = "kvm-1 does not answer."
MUTENESS = "libvirt on kvm-1: Failed to connect socket."


@dataclass
class Site(World):
    """A world whose kvm-1 is to be removed.

    Attributes:
        defined: VMs that are defined there and shut off.
        mute: its libvirt does not tell which VMs it has.
        given_up: the beginning took effect, and nobody got to know in time; begin_fails: it did
            not take effect.
        last_seen: VMs that were there as far as was known.
        twice: the activity whose first attempt is lost after its effect.
        hold: the activity that waits for `go`, before its effect; `holding`: it does.
        cleaning_fails: errors of the next attempts to clean.
        clean, deleted: what was done.
    """

    defined: tuple[str, ...] = ()
    mute: bool = False
    last_seen: tuple[str, ...] = ()
    twice: str = ""
    hold: str = ""
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    cleaning_fails: list[ApplicationError] = field(default_factory=list)
    given_up: bool = False
    begin_fails: bool = False
    clean: bool = False
    deleted: list[RemoveHostInput] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    async def _begin(self, name: str) -> None:
        self.calls.append(name)
        if self.hold == name:
            self.holding.set()
            while not self.go.is_set():
                activity.heartbeat()
                await asyncio.sleep(0.02)

    def _end(self, name: str) -> None:
        """The effect is there, and nobody gets to know: it is tried again."""
        if self.twice == name:
            self.twice = ""
            raise ApplicationError(f"the worker was killed after {name}", type="Unavailable")

    @activity.defn(name="survey_removal")
    async def survey_removal(self, request: HostRef) -> RemovalSurvey:
        await self._begin("survey_removal")
        if request.host not in self.vms or self.deleted:
            raise refusal("NotFound", f"There is no host {request.host!r}.")
        self._end("survey_removal")
        active = [] if self.silent or self.mute else [vm.name for vm in self.vms[request.host]]
        return RemovalSurvey(
            host=await self.get_host(request),
            answers=not self.silent,
            problem=SILENCE if self.silent else MUTENESS if self.mute else "",
            active=tuple(active),
            defined=() if self.silent else self.defined,
            found=() if self.silent else FOUND,
            last_seen=self.last_seen,
            belongings=("tags: 2",),
            secrets=1,
            holder=self.lease,
        )

    @activity.defn(name="begin_removal")
    async def begin_removal(self, request: BeginRemovalInput) -> RemovalBegun:
        await self._begin("begin_removal")
        if self.begin_fails:
            raise refusal("CallTimedOut", "kvm-1 answered no call within its deadline.")
        if self.state is not R.REMOVED:
            self._become(R.REMOVED, request.reason)
        self._end("begin_removal")
        if self.given_up:
            raise refusal("CallTimedOut", "kvm-1 answered no call within its deadline.")
        return RemovalBegun(found=FOUND)

    @activity.defn(name="clean_host")
    async def clean_host(self, lease: LeaseRef) -> Cleaning:
        await self._begin("clean_host")
        assert self.state is R.REMOVED
        if self.cleaning_fails:
            raise self.cleaning_fails.pop(0)
        self.clean = True
        self._end("clean_host")
        return Cleaning(proof="Hostler's key is refused")

    @activity.defn(name="remove_host")
    async def remove_host(self, request: RemoveHostInput) -> HostRemoved:
        await self._begin("remove_host")
        assert self.lease == request.lease.owner
        if not self.deleted:
            self.deleted.append(request)
        self._end("remove_host")
        return HostRemoved(tombstone=7, deleted=("tags: 2",))

    @activity.defn(name="acquire_lease")
    async def acquire_lease(self, request: AcquireLeaseInput) -> Lease:
        await self._begin("acquire_lease")
        lease = await super().acquire_lease(request)
        self._end("acquire_lease")
        return lease

    @activity.defn(name="await_lease")
    async def await_lease(self, request: AwaitLeaseInput) -> Lease:
        await self._begin("await_lease")
        lease = await super().await_lease(request)
        self._end("await_lease")
        return lease

    @activity.defn(name="release_lease")
    async def release_lease(self, lease: LeaseRef) -> None:
        await self._begin("release_lease")
        await super().release_lease(lease)
        self._end("release_lease")


def in_maintenance(**more: Any) -> Site:
    """kvm-1 is out of service and empty; no operation is open on it."""
    states = [R.ENABLED, R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE]
    return Site(
        vms={"kvm-1": [], "kvm-2": [], "kvm-3": []}, states=states, before=R.ENABLED, **more
    )


def in_service(**more: Any) -> Site:
    return Site(vms={"kvm-1": [running("vm-1")], "kvm-2": [], "kvm-3": []}, **more)


def lost(status: HostStatus = HostStatus.DOWN, **more: Any) -> Site:
    site = in_service(last_seen=("vm-1",), **more)
    site.silent, site.status = True, status
    return site


Handle = WorkflowHandle[HostRemoval, HostRemovalResult]
Begin = Callable[..., Awaitable[Handle]]


@pytest_asyncio.fixture(loop_scope="package")
async def remove(client: Client) -> AsyncIterator[Begin]:
    """`await remove(site, **input)` starts a removal of kvm-1 with a worker of its own. Ids of
    maintenances are as usual, so none may be left open."""
    workers: list[Worker] = []

    async def start(site: Site, **asked: Any) -> Handle:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[HostMaintenance, HostRemoval, PowerAction],
            activities=[
                *site.activities(),  # type: ignore[list-item] # bound methods, as the SDK takes them
                OperationActivities(client, look_again=0.05).wait_for_maintenance,
                OperationActivities(client).hand_over_maintenance,
            ],
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        return await client.start_workflow(
            HostRemoval.run,
            HostRemovalInput.model_validate({"host": "kvm-1", **asked}),
            id=f"removal/kvm-1-{uuid.uuid4()}",
            task_queue=queue,
        )

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


@pytest_asyncio.fixture(loop_scope="package")
async def maintenance(
    client: Client,
) -> AsyncIterator[WorkflowHandle[HostMaintenance, HostMaintenanceResult]]:
    """The maintenance of the usual id that a removal starts; ended afterwards if it is open."""
    handle = client.get_workflow_handle("maintenance/kvm-1", result_type=HostMaintenanceResult)
    yield handle
    if (await handle.describe()).close_time is None:
        await handle.terminate()


async def failure(handle: Handle) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    return caught.value.cause


async def until_phase(handle: Handle, phase: Phase) -> Any:
    while (status := await handle.query(HostRemoval.status)).phase is not phase:
        await asyncio.sleep(0.05)
    return status


# --- from Maintenance ---------------------------------------------------------------------------


async def test_a_host_in_maintenance_is_cleaned_then_deleted(remove: Begin) -> None:
    site = in_maintenance()
    handle = await remove(site, reason="sold")
    result = await handle.result()
    assert result.outcome is RemovalOutcome.REMOVED
    assert (result.removed_from_host, result.left, result.tombstone) == (FOUND, (), 7)
    assert result.proof == "Hostler's key is refused"
    assert site.states[-1] is R.REMOVED
    assert site.reasons == ["sold"]
    (request,) = site.deleted
    assert (request.cleaned, request.forced, request.vms) == (True, False, ())
    assert site.lease is None
    assert site.calls == [
        "survey_removal",
        "acquire_lease",
        "await_lease",
        "survey_removal",
        "begin_removal",
        "clean_host",
        "remove_host",
        "release_lease",
        "release_lease",
    ]
    assert await handle.query(HostRemoval.status)
    attributes = (await handle.describe()).typed_search_attributes
    told = {pair.key.name: pair.value for pair in attributes}
    assert told["HostlerHost"] == "kvm-1"
    assert told["HostlerCluster"] == "cluster-1"
    assert told["HostlerPhase"] == "Done"


STEPS = (
    "survey_removal",
    "acquire_lease",
    "await_lease",
    "begin_removal",
    "clean_host",
    "remove_host",
    "release_lease",
)


async def test_its_certificates_are_revoked(client: Client, remove: Begin) -> None:
    """By an operation of its own, which outlives the removal."""
    handle = await remove(in_maintenance())
    await handle.result()
    revocation = client.get_workflow_handle(f"revocation/kvm-1/{handle.result_run_id}")
    described = await revocation.describe()
    assert described.workflow_type == "CertificateRevocation"
    await revocation.terminate()


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_whose_end_was_lost_changes_nothing_twice(remove: Begin, step: str) -> None:
    site = in_maintenance(twice=step)
    result = await (await remove(site)).result()
    assert site.twice == ""
    once = 2 if step in ("survey_removal", "release_lease") else 1
    assert site.calls.count(step) == once + 1
    assert result.outcome is RemovalOutcome.REMOVED
    assert len(site.deleted) == 1
    assert site.states.count(R.REMOVED) == 1
    assert site.lease is None


@pytest.mark.parametrize("step", STEPS)
async def test_a_cancel_is_heard_until_there_is_no_way_back(remove: Begin, step: str) -> None:
    site = in_maintenance(hold=step)
    handle = await remove(site)
    await site.holding.wait()
    await handle.cancel()
    if step in ("survey_removal", "acquire_lease", "await_lease"):
        site.go.set()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        assert isinstance(caught.value.cause, CancelledError)
        assert site.state is R.MAINTENANCE
        assert not site.clean
        assert site.deleted == []
        # What it may have acquired in that moment, it has as one that has ended: it locks nothing.
        assert site.lease is None or site.lease.workflow_id == handle.id
    else:
        while not (status := await handle.query(HostRemoval.status)).cancel_came_late:
            await asyncio.sleep(0.02)
        assert status.final
        assert "cancel" not in " ".join(status.commands)
        site.go.set()
        assert (await handle.result()).outcome is RemovalOutcome.REMOVED
        assert len(site.deleted) == 1
        assert site.lease is None


async def test_a_maintenance_that_is_ready_is_taken_over(
    remove: Begin, client: Client, serve: Callable[[World, str], Awaitable[None]]
) -> None:
    site = in_service()
    queue = f"test-{uuid.uuid4()}"
    await serve(site, queue)
    started = await client.start_workflow(
        "HostMaintenance",
        {"host": "kvm-1"},
        id=f"by-hand-{uuid.uuid4()}",
        task_queue=queue,
        result_type=HostMaintenanceResult,
    )
    while site.state is not R.MAINTENANCE:
        await asyncio.sleep(0.05)
    site.closed_holder = site.lease  # as Temporal says of it once it has let go
    handle = client.get_workflow_handle(started.id, result_type=HostMaintenanceResult)
    while (await handle.query(HostMaintenance.status)).phase is not Phase.READY:
        await asyncio.sleep(0.05)
    removal = await remove(site)
    assert (await removal.result()).outcome is RemovalOutcome.REMOVED
    ended = await handle.result()
    assert (ended.outcome, ended.handed_over_to) == (MaintenanceOutcome.HANDED_OVER, removal.id)
    # It has let go of everything: nothing has to be outlasted.
    assert "timer" not in await _event_names(removal)


async def _event_names(handle: Handle) -> str:
    history = await handle.fetch_history()
    return " ".join(event.WhichOneof("attributes") or "" for event in history.events)


async def test_one_that_is_not_ready_is_not_and_the_way_out_is_named(
    remove: Begin, client: Client, serve: Callable[[World, str], Awaitable[None]]
) -> None:
    site = in_service()
    site.gate.clear()
    queue = f"test-{uuid.uuid4()}"
    await serve(site, queue)
    started = await client.start_workflow(
        "HostMaintenance", {"host": "kvm-1"}, id=f"by-hand-{uuid.uuid4()}", task_queue=queue
    )
    while site.moving == 0:
        await asyncio.sleep(0.02)
    site.silent, site.status = True, HostStatus.DOWN
    refused = await failure(await remove(site, forced=True, reason="lost"))
    assert refused.type == "Conflict"
    assert "its maintenance is not ready" in refused.message
    assert f"temporal workflow terminate --workflow-id {started.id}" in refused.message
    assert site.deleted == []
    site.silent = False
    site.gate.set()
    while site.state is not R.MAINTENANCE:
        await asyncio.sleep(0.02)
    await started.terminate()


async def test_whoever_was_terminated_is_outlasted(remove: Begin) -> None:
    site = in_maintenance()
    site.lease = site.closed_holder = Owner(workflow_id="gone/kvm-1", first_run_id="run-0")
    handle = await remove(site)
    assert (await handle.result()).outcome is RemovalOutcome.REMOVED
    assert "timer_fired" in await _event_names(handle)


async def test_a_removal_that_was_cut_off_is_brought_to_its_end(remove: Begin) -> None:
    site = in_maintenance()
    site.states.append(R.REMOVED)
    site.silent = True  # its key may be gone already
    result = await (await remove(site)).result()
    assert result.outcome is RemovalOutcome.REMOVED
    assert site.clean
    assert site.deleted[0].cleaned


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "asked", "words"),
    [
        (in_service, {}, ("is Enabled", "vm-1", "after_maintenance", "maintenance enter kvm-1")),
        (in_service, {"forced": True, "reason": "x"}, ("answers and is Enabled", "vm-1")),
        (lost, {}, (SILENCE, "forced and a reason")),
        (lost, {"after_maintenance": True}, (SILENCE,)),
        (
            lambda: lost(HostStatus.UP),
            {"forced": True, "reason": "x"},
            ("no evidence that it is lost", "--host-is-down"),
        ),
        (
            lambda: in_maintenance(defined=("vm-8", "vm-9")),
            {},
            ("shut off: vm-8, vm-9", "leave_vms"),
        ),
    ],
)
async def test_what_is_refused_changes_nothing(
    remove: Begin, site: Callable[[], Site], asked: dict[str, Any], words: tuple[str, ...]
) -> None:
    for dry_run in (True, False):
        there = site()
        refused = await failure(await remove(there, dry_run=dry_run, **asked))
        assert refused.type == "Conflict"
        for word in (*words, "Nothing was changed."):
            assert word in refused.message
        assert there.calls == ["survey_removal"]


async def test_vms_that_run_are_named(remove: Begin) -> None:
    site = in_maintenance()
    site.vms["kvm-1"] = [running("vm-5")]
    assert "VMs run on kvm-1: vm-5." in (await failure(await remove(site))).message


async def test_a_host_on_its_way_into_maintenance(remove: Begin) -> None:
    site = in_maintenance()
    site.states.append(R.ERROR_IN_MAINTENANCE)
    refused = await failure(await remove(site))
    assert "is ErrorInMaintenance" in refused.message
    assert "hostler maintenance status kvm-1" in refused.message


async def test_an_unknown_host(remove: Begin) -> None:
    refused = await failure(await remove(in_maintenance(), host="kvm-9"))
    assert (refused.type, refused.message) == ("NotFound", "There is no host 'kvm-9'.")


async def test_a_host_that_is_held_stays_as_it_is(remove: Begin) -> None:
    site = in_maintenance()
    site.lease = Owner(workflow_id="return/kvm-1", first_run_id="run-0")
    refused = await failure(await remove(site))
    assert refused.type == "LeaseHeld"
    assert site.state is R.MAINTENANCE
    assert "begin_removal" not in site.calls


async def test_one_whose_passwords_are_being_changed_is_not_begun_with(remove: Begin) -> None:
    site = in_maintenance()
    site.trust = rotation = Owner(workflow_id="rotation/cluster-1", first_run_id="run-0")
    refused = await failure(await remove(site))
    assert refused.type == "LeaseHeld"
    assert "kvm-1 is held by rotation/cluster-1" in refused.message
    assert "kvm-1 stays as it is. Put it back: hostler maintenance leave kvm-1" in refused.message
    assert (site.lease, site.trust, site.state) == (None, rotation, R.MAINTENANCE)
    assert "begin_removal" not in site.calls
    # One that was terminated holds nothing.
    site.closed_holder = rotation
    handle = await remove(site)
    assert (await handle.result()).outcome is RemovalOutcome.REMOVED
    assert "timer_fired" in await _event_names(handle)
    assert site.trust is None


async def test_what_fails_after_the_take_over_says_how_to_go_back(remove: Begin) -> None:
    site = in_maintenance(hold="acquire_lease")
    handle = await remove(site)
    await site.holding.wait()
    site.defined = ("vm-9",)
    site.go.set()
    refused = await failure(handle)
    assert "shut off: vm-9" in refused.message
    assert "kvm-1 stays as it is. Put it back: hostler maintenance leave kvm-1" in refused.message
    assert site.lease is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"forced": True}, "forced needs a reason"),
        ({"forced": True, "reason": " "}, "forced needs a reason"),
        ({"forced": True, "reason": "x", "after_maintenance": True}, "not with after_maintenance"),
        ({"on_blocker": "keep"}, "on_blocker can't be keep"),
        ({"forced": True, "reason": "x", "power_off": True}, "power_off: .* not with forced"),
        ({"fall_back_to_off": True}, "fall_back_to_off goes with power_off only"),
        ({"on_blocker": "shutdown", "after_maintenance": True}, "shutdown needs leave_vms"),
    ],
)
async def test_choices_that_exclude_each_other(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HostRemovalInput.model_validate({"host": "kvm-1", **asked})


@pytest.mark.parametrize("dry_run", [True, False])
async def test_vms_that_no_maintenance_moves_refuse_it_before_there_is_one(
    remove: Begin, *, dry_run: bool
) -> None:
    site = in_service(defined=("vm-9",))
    refused = await failure(await remove(site, after_maintenance=True, dry_run=dry_run))
    assert "shut off: vm-9" in refused.message
    assert refused.message.endswith("Nothing was changed.")
    assert site.states == [R.ENABLED]
    assert site.lease is None


async def test_nothing_was_changed_is_said_only_where_it_is_so(remove: Begin) -> None:
    site = in_maintenance(hold="acquire_lease")
    handle = await remove(site)
    await site.holding.wait()
    site.defined = ("vm-9",)
    site.go.set()
    refused = await failure(handle)
    assert "shut off: vm-9" in refused.message
    assert "Nothing was changed" not in refused.message
    assert "hostler maintenance leave kvm-1" in refused.message


async def test_a_beginning_whose_end_was_lost_is_gone_on_from(remove: Begin) -> None:
    site = in_maintenance(given_up=True)
    result = await (await remove(site)).result()
    assert result.outcome is RemovalOutcome.REMOVED
    assert result.removed_from_host == FOUND
    assert site.clean


async def test_a_beginning_that_was_none_refuses(remove: Begin) -> None:
    site = in_maintenance(begin_fails=True)
    refused = await failure(await remove(site))
    assert (refused.type, site.state) == ("CallTimedOut", R.MAINTENANCE)
    assert "maintenance leave kvm-1" in refused.message
    assert site.deleted == []


# --- dry run ------------------------------------------------------------------------------------


async def test_a_dry_run_lists_every_effect_and_changes_nothing(remove: Begin) -> None:
    site = in_maintenance(defined=("vm-9",))
    result = await (await remove(site, dry_run=True, leave_vms=True)).result()
    assert result.outcome is RemovalOutcome.PLANNED
    told = [(effect.kind, effect.message) for effect in result.effects]
    assert told == [
        (EffectKind.HOST, "running jobs of Hostler on kvm-1 are ended"),
        (EffectKind.HOST, f"removed from kvm-1: {FOUND[0]}"),
        (EffectKind.HOST, f"removed from kvm-1: {FOUND[1]}"),
        (EffectKind.VMS, "VMs stay defined there, shut off: vm-9"),
        (EffectKind.INVENTORY, "deleted: the host kvm-1"),
        (EffectKind.INVENTORY, "deleted: tags: 2"),
        (EffectKind.SECRET, "deleted: 1 stored credentials, as far as no other host has them"),
        (
            EffectKind.TOMBSTONE,
            "a tombstone stays: the machine is only added again on purpose; its name and address "
            "are free",
        ),
        (EffectKind.CONNECTIONS, "connections that are kept to kvm-1 are closed"),
    ]
    assert site.calls == ["survey_removal"]
    assert site.lease is None


async def test_a_dry_run_tells_of_the_maintenance_that_comes_first(remove: Begin) -> None:
    site = in_service()
    result = await (await remove(site, dry_run=True, after_maintenance=True)).result()
    assert result.effects[0].kind is EffectKind.MAINTENANCE
    assert "VMs that leave it: vm-1" in result.effects[0].message
    assert site.calls == ["survey_removal"]
    assert site.states == [R.ENABLED]


# --- after_maintenance --------------------------------------------------------------------------


async def test_it_is_taken_out_of_service_first(
    remove: Begin, maintenance: WorkflowHandle[HostMaintenance, HostMaintenanceResult]
) -> None:
    site = in_service()
    handle = await remove(site, after_maintenance=True, reason="sold")
    # Temporal, not this world, knows whether the holder's workflow is closed.
    while site.state is not R.MAINTENANCE:
        await asyncio.sleep(0.02)
    site.closed_holder = site.lease
    result = await handle.result()
    assert result.outcome is RemovalOutcome.REMOVED
    assert site.places("vm-1") != ["kvm-1"]
    ended = await maintenance.result()
    assert (ended.outcome, ended.handed_over_to) == (MaintenanceOutcome.HANDED_OVER, handle.id)
    assert len(site.deleted) == 1


async def test_a_question_of_that_maintenance_is_shown(
    remove: Begin, maintenance: WorkflowHandle[HostMaintenance, HostMaintenanceResult]
) -> None:
    site = in_service()
    site.refusals["vm-1", "kvm-2"] = site.refusals["vm-1", "kvm-3"] = 1
    handle = await remove(site, after_maintenance=True)
    status = await until_phase(handle, Phase.QUESTION)
    assert "Its maintenance asks: vm-1" in status.message
    assert "hostler maintenance status kvm-1" in status.commands
    await maintenance.execute_update("leave", {})
    refused = await failure(handle)
    assert "has ended before it was ready" in refused.message
    assert site.deleted == []


async def test_a_maintenance_that_is_refused_refuses_the_removal(
    remove: Begin, maintenance: WorkflowHandle[HostMaintenance, HostMaintenanceResult]
) -> None:
    site = in_service()
    site.vms["kvm-1"] = [running("vm-1", memory_mib=9999)]
    refused = await failure(await remove(site, after_maintenance=True))
    assert "can't be evacuated" in refused.message
    assert site.states == [R.ENABLED]


async def test_a_cancel_meanwhile_leaves_the_maintenance_open(
    remove: Begin, maintenance: WorkflowHandle[HostMaintenance, HostMaintenanceResult]
) -> None:
    site = in_service()
    site.gate.clear()
    handle = await remove(site, after_maintenance=True)
    while site.moving == 0:
        await asyncio.sleep(0.02)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert (await maintenance.describe()).close_time is None
    site.gate.set()
    while site.state is not R.MAINTENANCE:
        await asyncio.sleep(0.02)


# --- cleaning that fails ------------------------------------------------------------------------


async def test_a_host_that_goes_away_is_tried_again_by_itself(remove: Begin) -> None:
    site = in_maintenance()
    site.cleaning_fails = [refusal("FenceFailed", "libvirt refuses a VM")]
    handle = await remove(site)
    result = await handle.result()
    assert result.proof == "Hostler's key is refused"
    assert site.calls.count("clean_host") == 2
    described = await handle.describe()
    assert described.close_time is not None
    waited = (described.close_time - described.start_time).total_seconds()
    assert waited >= site.settings.retry_interval


@pytest.mark.parametrize("action", RemovalAction)
async def test_an_operator_may_decide(remove: Begin, action: RemovalAction) -> None:
    site = in_maintenance(hold="remove_host")
    site.cleaning_fails = [refusal("CommandFailed", "still there: file /etc/hostler/fence")] * 50
    handle = await remove(site)
    status = await until_phase(handle, Phase.QUESTION)
    assert "can't be cleaned: still there" in status.message
    assert f"hostler host resolve-removal kvm-1 {action}" in status.commands
    site.cleaning_fails = (
        site.cleaning_fails[:1]
        if action is RemovalAction.RETRY
        else [refusal("CommandFailed", "still there")] * 50
    )
    while True:
        try:
            await handle.execute_update("resolve", ResolveRemovalInput(action=action))
            break
        except WorkflowUpdateFailedError:  # it was just being tried again
            await asyncio.sleep(0.02)
    site.go.set()
    result = await handle.result()
    (request,) = site.deleted
    assert request.cleaned is (action is RemovalAction.RETRY)
    if action is RemovalAction.LEAVE_UNCLEANED:
        assert "still there" in request.problem
        assert result.proof == ""
        assert "until it answers again" in result.left[0]


async def test_there_is_nothing_to_answer_before(remove: Begin) -> None:
    site = in_maintenance(hold="begin_removal")
    handle = await remove(site)
    await site.holding.wait()
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await handle.execute_update("resolve", ResolveRemovalInput(action=RemovalAction.RETRY))
    assert "Nothing waits for an answer" in str(caught.value.cause)
    site.go.set()
    await handle.result()


async def test_whoever_is_taken_over_while_cleaning_ends(remove: Begin) -> None:
    site = in_maintenance()
    site.cleaning_fails = [refusal("LeaseLost", "removal/other has taken it over.")]
    refused = await failure(await remove(site))
    assert refused.type == "LeaseLost"
    assert "hostler host remove kvm-1" in refused.message
    assert site.deleted == []


# --- forced -------------------------------------------------------------------------------------


async def test_a_lost_host_is_removed_and_its_vms_are_named(remove: Begin) -> None:
    site = lost()
    result = await (await remove(site, forced=True, reason="burnt")).result()
    assert result.vms == ("vm-1",)
    assert (result.proof, result.removed_from_host) == ("", ())
    assert "until it answers again" in result.left[0]
    (request,) = site.deleted
    assert (request.cleaned, request.forced, request.vms) == (False, True, ("vm-1",))
    assert request.problem == SILENCE
    assert "clean_host" not in site.calls
    assert "begin_removal" not in site.calls
    assert site.lease is None


async def test_a_dry_run_of_it_names_them_too(remove: Begin) -> None:
    site = lost()
    result = await (await remove(site, forced=True, reason="burnt", dry_run=True)).result()
    told = {effect.kind: effect.message for effect in result.effects}
    assert "VMs last seen there: vm-1" in told[EffectKind.VMS]
    assert "it is cleaned, and not taken back" in told[EffectKind.HOST]
    assert "kept for the cleaning" in told[EffectKind.SECRET]
    assert site.calls == ["survey_removal"]


async def test_forced_on_a_host_in_maintenance_that_answers_cleans_it(remove: Begin) -> None:
    site = in_maintenance()
    result = await (await remove(site, forced=True, reason="sold")).result()
    assert site.clean
    assert result.proof


@pytest.mark.parametrize("status", [HostStatus.ALERT, HostStatus.UP])
async def test_a_host_whose_libvirt_is_dead_is_removed_if_forced(
    remove: Begin, status: HostStatus
) -> None:
    site = in_service(mute=True, last_seen=("vm-1",))
    site.status = status
    refused = await failure(await remove(site))
    assert MUTENESS in refused.message
    assert "does not tell which VMs it has" in refused.message
    handle = await remove(site, forced=True, reason="libvirt was uninstalled")
    if status is HostStatus.UP:
        assert "no evidence" in (await failure(handle)).message
        return
    result = await handle.result()
    assert result.vms == ("vm-1",)
    assert "the next round of checks cleans it" in result.effects[0].message
    (request,) = site.deleted
    assert (request.cleaned, request.problem) == (False, MUTENESS)


async def test_one_that_answers_after_all_is_not_lost(remove: Begin) -> None:
    site = lost(hold="acquire_lease")
    handle = await remove(site, forced=True, reason="burnt")
    await site.holding.wait()
    site.silent = False
    site.go.set()
    refused = await failure(handle)
    assert "answers and is Enabled" in refused.message
    assert site.deleted == []
    assert site.lease is None


# --- its power ----------------------------------------------------------------------------------


async def test_it_is_switched_off_once_it_is_clean(remove: Begin) -> None:
    site = in_maintenance(power=PowerState.ON)
    result = await (await remove(site, power_off=True, reason="sold")).result()
    assert site.told == [Action.SOFT]
    assert site.outcomes[0].command.reason == "sold"
    assert site.power is PowerState.OFF
    assert site.calls.index("clean_host") < site.calls.index("remove_host")
    assert result.left == ()
    assert any(
        effect.kind is EffectKind.POWER and "once it is clean" in effect.message
        for effect in result.effects
    )


@pytest.mark.parametrize("or_off", [False, True])
async def test_what_does_not_go_off_is_removed_all_the_same(remove: Begin, or_off: bool) -> None:
    site = in_maintenance(power=PowerState.ON, deaf=frozenset({Action.SOFT}))
    result = await (await remove(site, power_off=True, fall_back_to_off=or_off)).result()
    assert site.deleted
    if or_off:
        assert site.told == [Action.SOFT, Action.OFF]
        assert result.left == ()
        return
    assert site.told == [Action.SOFT]
    (left,) = result.left
    assert left.startswith("its power is on: soft of kvm-1")
    assert [event.kind for event in site.events] == ["removal.not_switched_off"]


async def test_what_could_not_be_cleaned_stays_on(remove: Begin) -> None:
    gone = ApplicationError(SILENCE, type="HostUnreachable", non_retryable=True)
    site = in_maintenance(power=PowerState.ON, cleaning_fails=[gone] * 9)
    handle = await remove(site, power_off=True)
    await until_phase(handle, Phase.QUESTION)
    answer = ResolveRemovalInput(action=RemovalAction.LEAVE_UNCLEANED)
    await handle.execute_update("resolve", answer)
    result = await handle.result()
    assert site.told == []
    assert "its power is on: it has to be cleaned yet" in result.left


async def test_without_a_bmc_it_is_refused_before_anything(remove: Begin) -> None:
    site = in_maintenance()
    error = await failure(await remove(site, power_off=True))
    assert error.type == "Conflict"
    assert error.message == "power_off: there is none of kvm-1. Nothing was changed."
    assert (site.calls, site.state) == ([], R.MAINTENANCE)
