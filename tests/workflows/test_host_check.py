"""HostCheck's order and history, and what it leaves to Housekeeping, with the activities replaced
and time skipped."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import Worker

from contracts.allocation import HostsUntold, TellHostsInput, TellHostsResult
from contracts.certificate_renewal import CERTIFICATE_RENEWAL_SCHEDULE, ReturnedHosts
from contracts.certificate_upkeep import CrlDelivery, DeliverCrlsInput, HostsWithoutCrls
from contracts.host_checks import (
    HOUSEKEEPING_ID,
    AlignScheduleInput,
    HostCheckInput,
    HostCheckResult,
    HostSighting,
    HousekeepingResult,
    Lane,
    RoundPlan,
    SweepInput,
    Swept,
    TriggerScheduleInput,
)
from contracts.host_status import Seen
from contracts.passwords import BringUpInput, BringUpResult, Held, HostOutcome, StaleHosts
from contracts.removal import RemovedHostsCleaned
from contracts.states import HostStatus
from contracts.steps import HostRef
from tests.samples import WHEN
from tests.workflows.world import refusal
from workers.interceptors import HostlerInterceptor
from workflows.host_check import HostCheck
from workflows.housekeeping import Housekeeping

pytestmark = pytest.mark.asyncio(loop_scope="package")

PLAN = RoundPlan(started_at=WHEN, interval=60, batch=200, concurrency=50, timeout=15, missed_max=3)


@dataclass
class Fleet:
    """`hosts` hosts, host-00001 and up. `fails`: so many attempts at each batch are lost; `missed`:
    so many batches of hosts missed their last check; `absent` and `telling`: looking at those, and
    telling, wait for it."""

    hosts: int = 3
    fails: int = 0
    untold: tuple[str, ...] = ()
    missed: int = 0
    absent: asyncio.Event = field(default_factory=asyncio.Event)
    telling: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    stale: tuple[str, ...] = ()
    without_crls: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    batches: list[str] = field(default_factory=list)
    missed_batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.absent.set()
        self.telling.set()

    @activity.defn(name="plan_host_check")
    async def plan_host_check(self) -> RoundPlan:
        self.calls.append("plan_host_check")
        return PLAN

    @activity.defn(name="align_schedule")
    async def align_schedule(self, request: AlignScheduleInput) -> bool:
        self.calls.append(f"align {request.schedule} {request.every_s}")
        return False

    @activity.defn(name="check_hosts")
    async def check_hosts(self, request: SweepInput) -> Swept:
        assert request.plan == PLAN
        if activity.info().attempt <= self.fails:
            raise ApplicationError("the database is away")
        if request.lane is Lane.MISSED:
            await self.absent.wait()
            number = int(request.after or 0) + 1
            self.missed_batches.append(number)
            seen = {Seen.UNREACHABLE: 10} if self.missed else {}
            return Swept(last=str(number) if number < self.missed else None, seen=seen)
        self.batches.append(request.after)
        return self._swept("check_hosts", request)

    @activity.defn(name="investigate_hosts")
    async def investigate_hosts(self, request: SweepInput) -> Swept:
        self.calls.append("investigate_hosts")
        return Swept(last=None, hosts=1)

    @activity.defn(name="reconcile_fences")
    async def reconcile_fences(self, request: SweepInput) -> Swept:
        return self._swept("reconcile_fences", request)

    @activity.defn(name="free_abandoned")
    async def free_abandoned(self) -> None:
        self.calls.append("free_abandoned")

    @activity.defn(name="start_accepted")
    async def start_accepted(self) -> None:
        self.calls.append("start_accepted")

    @activity.defn(name="list_untold_hosts")
    async def list_untold_hosts(self) -> HostsUntold:
        return HostsUntold(hosts=self.untold)

    @activity.defn(name="tell_hosts")
    async def tell_hosts(self, request: TellHostsInput) -> TellHostsResult:
        await self.telling.wait()
        self.calls.append(f"tell {' '.join(request.hosts)}")
        return TellHostsResult(told=request.hosts, untold=())

    @activity.defn(name="clean_removed")
    async def clean_removed(self) -> RemovedHostsCleaned:
        self.calls.append("clean_removed")
        return RemovedHostsCleaned(cleaned=("old-1",), waiting=("old-2", "old-3"))

    @activity.defn(name="list_stale_passwords")
    async def list_stale_passwords(self) -> StaleHosts:
        return StaleHosts(hosts=self.stale)

    @activity.defn(name="bring_passwords_up")
    async def bring_passwords_up(self, request: BringUpInput) -> BringUpResult:
        assert request.owner.workflow_id == HOUSEKEEPING_ID
        self.calls.append(f"bring up {' '.join(request.hosts)}")
        done = tuple(HostOutcome(host=host, held=Held.NEW) for host in request.hosts)
        return BringUpResult(done=done, failed=())

    @activity.defn(name="list_hosts_without_crls")
    async def list_hosts_without_crls(self) -> HostsWithoutCrls:
        return HostsWithoutCrls(hosts=self.without_crls, not_now={"kvm-9": "it is Down"})

    @activity.defn(name="deliver_crls")
    async def deliver_crls(self, request: DeliverCrlsInput) -> CrlDelivery:
        assert request.owner.workflow_id == HOUSEKEEPING_ID
        self.calls.append(f"deliver {' '.join(request.hosts)}")
        return CrlDelivery(delivered=request.hosts[1:], missing={request.hosts[0]: "it is silent"})

    @activity.defn(name="list_returned_for_renewal")
    async def list_returned_for_renewal(self) -> ReturnedHosts:
        return ReturnedHosts(hosts=self.returned)

    @activity.defn(name="trigger_schedule")
    async def trigger_schedule(self, request: TriggerScheduleInput) -> bool:
        self.calls.append(f"trigger {request.schedule}")
        return True

    @activity.defn(name="look_at_host")
    async def look_at_host(self, request: HostRef) -> HostSighting:
        if request.host == "nobody":
            raise refusal("NotFound", "There is no host 'nobody'.")
        return HostSighting(
            host=request.host,
            seen=Seen.LIBVIRT_SILENT,
            problem="timed out",
            status=HostStatus.ALERT,
            status_reason="silent",
            missed_checks=2,
            checked_at=WHEN,
            usage=None,
        )

    def _swept(self, call: str, request: SweepInput) -> Swept:
        if call not in self.calls:
            self.calls.append(call)
        first = int(request.after.rpartition("-")[2] or 0)
        last = min(first + request.plan.batch, self.hosts)
        full = last - first == request.plan.batch
        return Swept(
            last=f"host-{last:05}" if full else None,
            hosts=last - first,
            seen={Seen.ANSWERED: last - first} if call == "check_hosts" else {},
        )

    def activities(self) -> list[Callable[..., Any]]:
        """Everything that a Worker registers."""
        return [
            self.plan_host_check,
            self.align_schedule,
            self.check_hosts,
            self.investigate_hosts,
            self.reconcile_fences,
            self.free_abandoned,
            self.start_accepted,
            self.list_untold_hosts,
            self.tell_hosts,
            self.clean_removed,
            self.list_stale_passwords,
            self.bring_passwords_up,
            self.list_hosts_without_crls,
            self.deliver_crls,
            self.list_returned_for_renewal,
            self.trigger_schedule,
            self.look_at_host,
        ]


Handle = WorkflowHandle[HostCheck, HostCheckResult]
Begin = Callable[..., Awaitable[Handle]]


@pytest_asyncio.fixture(loop_scope="package")
async def begin(client: Client) -> AsyncIterator[Begin]:
    """`await begin(fleet, **input)` starts a check with a worker of its own."""
    workers: list[Worker] = []

    async def start(fleet: Fleet, **asked: Any) -> Handle:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[HostCheck, Housekeeping],
            activities=fleet.activities(),
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        return await client.start_workflow(
            HostCheck.run,
            HostCheckInput.model_validate(asked),
            id=f"host-check-{uuid.uuid4()}",
            task_queue=queue,
        )

    yield start
    with suppress(RPCError):  # none was started
        await client.get_workflow_handle(HOUSEKEEPING_ID).result()
    for worker in workers:
        await worker.__aexit__(None, None, None)


async def housekeeping(client: Client) -> HousekeepingResult:
    """What came of the last one."""
    handle = client.get_workflow_handle(HOUSEKEEPING_ID, result_type=HousekeepingResult)
    result: HousekeepingResult = await handle.result()
    return result


async def test_a_round_has_its_steps_in_order(begin: Begin) -> None:
    fleet = Fleet()
    result = await (await begin(fleet)).result()
    assert (result.hosts, result.seen, result.sighting) == (3, {Seen.ANSWERED: 3}, None)
    assert [call for call in fleet.calls if call != "clean_removed"] == [
        "plan_host_check",
        "align host-check 60",
        "check_hosts",
        "investigate_hosts",
        "reconcile_fences",
        "free_abandoned",
        "start_accepted",
    ]


async def test_hosts_that_missed_the_last_check_hold_no_batch_up(begin: Begin) -> None:
    fleet = Fleet(hosts=10_000, missed=3)
    fleet.absent.clear()
    handle = await begin(fleet)
    while len(fleet.batches) < 51:
        await asyncio.sleep(0.01)
    assert fleet.missed_batches == []
    fleet.absent.set()
    result = await handle.result()
    assert fleet.missed_batches == [1, 2, 3]
    assert (result.hosts, result.seen) == (
        10_000,
        {Seen.ANSWERED: 10_000, Seen.UNREACHABLE: 30},
    )


async def test_a_round_ends_while_hosts_are_still_being_told(begin: Begin, client: Client) -> None:
    fleet = Fleet(untold=("kvm-1",))
    fleet.telling.clear()
    await (await begin(fleet)).result()
    first = await client.get_workflow_handle(HOUSEKEEPING_ID).describe()
    # Nor does the next one wait, or begin another one.
    await (await begin(fleet)).result()
    fleet.telling.set()
    result = await housekeeping(client)
    assert (result.told, result.not_told) == (1, 0)
    last = await client.get_workflow_handle(HOUSEKEEPING_ID).describe()
    assert first.run_id == last.run_id
    assert fleet.calls.count("tell kvm-1") == 1


async def test_removed_hosts_are_cleaned_while_others_are_still_being_told(
    begin: Begin, client: Client
) -> None:
    fleet = Fleet(untold=("kvm-1",))
    fleet.telling.clear()
    await (await begin(fleet)).result()
    while "clean_removed" not in fleet.calls:
        await asyncio.sleep(0.01)
    fleet.telling.set()
    result = await housekeeping(client)
    assert (result.told, result.cleaned, result.waiting) == (1, ("old-1",), 2)


@pytest.mark.parametrize(("hosts", "batches"), [(0, 1), (200, 2), (201, 2), (10_000, 51)])
async def test_the_history_grows_with_batches(begin: Begin, hosts: int, batches: int) -> None:
    fleet = Fleet(hosts=hosts)
    handle = await begin(fleet)
    result = await handle.result()
    assert (result.hosts, len(fleet.batches)) == (hosts, batches)
    events = [event async for event in handle.fetch_history_events()]
    # A step is six: three of the activity, three of the workflow's task after it.
    assert len(events) <= 6 * (2 * batches + 8)


async def test_hosts_that_are_back_are_told_whether_they_take_vms(
    begin: Begin, client: Client
) -> None:
    fleet = Fleet(untold=tuple(f"host-{number:05}" for number in range(1, 202)))
    await (await begin(fleet)).result()
    assert (await housekeeping(client)).told == 201
    first, second = (call.split()[1:] for call in fleet.calls if call.startswith("tell "))
    assert (tuple(first + second), len(first)) == (fleet.untold, PLAN.batch)


async def test_hosts_that_are_back_get_the_newest_revocation_lists(
    begin: Begin, client: Client
) -> None:
    fleet = Fleet(without_crls=tuple(f"host-{number:05}" for number in range(1, 202)))
    await (await begin(fleet)).result()
    assert (await housekeeping(client)).crls == 199
    first, second = (call.split()[1:] for call in fleet.calls if call.startswith("deliver "))
    assert (tuple(first + second), len(first)) == (fleet.without_crls, PLAN.batch)


@pytest.mark.parametrize("returned", [(), ("kvm-1",)])
async def test_certificates_that_were_due_while_a_host_was_away_are_renewed(
    begin: Begin, client: Client, returned: tuple[str, ...]
) -> None:
    fleet = Fleet(returned=returned)
    await (await begin(fleet)).result()
    await housekeeping(client)
    triggered = f"trigger {CERTIFICATE_RENEWAL_SCHEDULE}" in fleet.calls
    assert triggered is bool(returned)


async def test_a_lost_attempt_is_made_again_for_the_same_batch(begin: Begin) -> None:
    fleet = Fleet(hosts=450, fails=2)
    assert (await (await begin(fleet)).result()).hosts == 450
    assert fleet.batches == ["", "host-00200", "host-00400"]


async def test_a_round_that_goes_on_in_a_new_run_starts_where_it_stood(begin: Begin) -> None:
    fleet = Fleet(hosts=450)
    continued = {
        "plan": PLAN,
        "step": "check",
        "lanes": {"answered last time": "host-00400"},
        "hosts": 400,
        "seen": {"answered": 390, "unreachable": 10},
    }
    result = await (await begin(fleet, continued=continued)).result()
    assert (result.hosts, result.seen) == (450, {Seen.ANSWERED: 440, Seen.UNREACHABLE: 10})
    assert fleet.batches == ["host-00400"]
    assert fleet.missed_batches == []
    assert "plan_host_check" not in fleet.calls
    fleet.calls.clear()
    await (await begin(fleet, continued=continued | {"step": "fences"})).result()
    assert [call for call in fleet.calls if call != "clean_removed"] == [
        "reconcile_fences",
        "free_abandoned",
        "start_accepted",
    ]


async def test_one_host_out_of_turn(begin: Begin) -> None:
    fleet = Fleet()
    result = await (await begin(fleet, host="kvm-1")).result()
    assert result.sighting is not None
    assert (result.sighting.host, result.sighting.seen) == ("kvm-1", Seen.LIBVIRT_SILENT)
    assert fleet.calls == []


async def test_an_unknown_host_is_said_to_be_so(begin: Begin) -> None:
    with pytest.raises(WorkflowFailureError) as caught:
        await (await begin(Fleet(), host="nobody")).result()
    cause = caught.value.cause
    assert isinstance(cause, ApplicationError)
    assert (cause.type, cause.message) == ("NotFound", "There is no host 'nobody'.")


async def test_hosts_that_are_stale_get_the_password_of_their_cluster(
    client: Client, begin: Begin
) -> None:
    fleet = Fleet(stale=("host-1", "host-2"))
    await (await begin(fleet)).result()
    assert (await housekeeping(client)).passwords == 2
    assert "bring up host-1 host-2" in fleet.calls
