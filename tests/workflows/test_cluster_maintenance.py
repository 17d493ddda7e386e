"""ClusterMaintenance's decisions: hosts in memory, HostMaintenance played, time skipped."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.operations import OperationActivities
from contracts.base import Contract
from contracts.cluster_maintenance import (
    ClusterMaintenanceInput,
    ClusterMaintenanceOutcome,
    ClusterMaintenanceResult,
    ClusterMaintenanceStatus,
    ClusterPhase,
    HostProgress,
    HostWork,
    PauseInput,
    ResumeInput,
    Stage,
    Step,
    StopInput,
)
from contracts.maintenance import LeaveInput, OnBlocker
from tests.samples import WHEN
from tests.workflows.cluster_world import ClusterWorld, Order, StandIn, StandInPower
from tests.workflows.world import refusal
from workers.converter import HOSTLER_DATA_CONVERTER
from workers.interceptors import HostlerInterceptor
from workflows.cluster_maintenance import ClusterMaintenance
from workflows.cluster_maintenance_page import current_details
from workflows.search_attributes import SEARCH_ATTRIBUTES

pytestmark = pytest.mark.asyncio(loop_scope="package")

WHOLE = ["pre_flight", "pre_maintenance", "drain", "maintenance", "post_maintenance", "leave"]
REBOOTED = [*WHOLE[:4], "read_boot_id", "reboot", *WHOLE[4:]]

Failures = Callable[[], Awaitable[Any]]


class Run:
    """One maintenance of a world's cluster."""

    def __init__(self, client: Client, world: ClusterWorld, queue: str) -> None:
        self.client = client
        self.world = world
        self.queue = queue
        self.handle: WorkflowHandle[Any, ClusterMaintenanceResult]

    async def start(self, **asked: Any) -> "Run":
        started = await self.client.start_workflow(
            ClusterMaintenance.run,
            ClusterMaintenanceInput(cluster=self.world.cluster, **asked),
            id=f"cluster-maintenance/{self.world.cluster}",
            task_queue=self.queue,
        )
        self.handle = self.client.get_workflow_handle_for(ClusterMaintenance.run, started.id)
        return self

    async def status(self) -> ClusterMaintenanceStatus:
        return await self.handle.query(ClusterMaintenance.status)

    async def until(
        self, wanted: Callable[[ClusterMaintenanceStatus], bool]
    ) -> ClusterMaintenanceStatus:
        while True:
            status = await self.status()
            if wanted(status):
                return status
            await asyncio.sleep(0.05)

    async def until_phase(self, phase: ClusterPhase) -> ClusterMaintenanceStatus:
        return await self.until(lambda status: status.phase is phase)

    async def until_at(self, number: int, step: Step) -> HostProgress:
        """Until a host is at work on that step."""

        def is_there(status: ClusterMaintenanceStatus) -> bool:
            host = self.of(status, number)
            return host is not None and (host.state, host.step) == (HostWork.WORKING, step)

        found = self.of(await self.until(is_there), number)
        assert found is not None
        return found

    def of(self, status: ClusterMaintenanceStatus, number: int) -> HostProgress | None:
        name = self.world.host(number)
        return next((host for host in status.hosts if host.host == name), None)

    async def host(self, number: int) -> HostProgress:
        found = self.of(await self.status(), number)
        assert found is not None
        return found

    async def update(self, name: str, model: type[Contract]) -> None:
        await self.handle.execute_update(name, model())

    async def resume(self) -> None:
        await self.update("resume", ResumeInput)

    async def refused(self, name: str, model: type[Contract]) -> str:
        with pytest.raises(WorkflowUpdateFailedError) as caught:
            await self.update(name, model)
        assert isinstance(caught.value.cause, ApplicationError)
        assert caught.value.cause.type == "Conflict"
        return caught.value.cause.message

    def maintenance(self, number: int) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(f"maintenance/{self.world.host(number)}")

    async def is_out(self, number: int) -> bool:
        described = await self.maintenance(number).describe()
        return described.status is WorkflowExecutionStatus.RUNNING

    async def put_back_by_hand(self, number: int) -> None:
        await self.maintenance(number).execute_update("leave", LeaveInput())
        while await self.is_out(number):
            await asyncio.sleep(0.05)


Begin = Callable[..., Awaitable[Run]]


@pytest_asyncio.fixture(loop_scope="package")
async def begin(client: Client) -> AsyncIterator[Begin]:
    """`await begin(world, **input)` starts one, with a worker of its own."""
    workers: list[Worker] = []

    async def start(
        world: ClusterWorld, *, of: Client = client, cached: int = 100, **asked: Any
    ) -> Run:
        run = Run(of, world, f"test-{uuid.uuid4()}")
        worker = Worker(
            of,
            task_queue=run.queue,
            workflows=[ClusterMaintenance, StandIn, StandInPower],
            activities=[*world.activities(), *_activities_of(of)],
            interceptors=[HostlerInterceptor()],
            max_cached_workflows=cached,
            max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        )
        await worker.__aenter__()
        workers.append(worker)
        return await run.start(**asked)

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


def _activities_of(client: Client) -> list[Callable[..., Any]]:
    operations = OperationActivities(client, look_again=0.05)
    return [operations.wait_for_maintenance, operations.leave_maintenance]


# Without a cache every workflow task replays the whole history.
@pytest.mark.parametrize("cached", [0, 100])
async def test_one_host_after_another_and_every_stage_in_its_place(
    begin: Begin, cached: int
) -> None:
    world = ClusterWorld()
    run = await begin(world, cached=cached, reboot=True, reason="kernel")
    result = await run.handle.result()
    assert result.outcome is ClusterMaintenanceOutcome.COMPLETED
    assert {what for what, _ in world.log[:3]} == {"pre_flight"}
    assert [host for _, host in world.log[3:]] == [
        host for host in world.hosts for _ in REBOOTED[1:]
    ]
    for host in result.hosts:
        assert world.of(host.host) == REBOOTED
        assert host.state is HostWork.DONE
        assert host.boot_id_before == f"boot-1-of-{host.host}"
        assert host.boot_id_after == f"boot-2-of-{host.host}"
        assert [(run.stage, run.attempt, run.exit_status) for run in host.hooks] == [
            (stage, 1, 0) for stage in Stage
        ]
    assert world.out == set()
    assert world.most_out == 1
    described = await run.handle.describe()
    attributes = {key.name: described.typed_search_attributes.get(key) for key in SEARCH_ATTRIBUTES}
    assert attributes["HostlerCluster"] == world.cluster
    assert attributes["HostlerZone"] == "zone-1"
    assert attributes["HostlerPhase"] == ClusterPhase.DONE


async def test_a_hook_knows_what_it_runs_for(begin: Begin) -> None:
    world = ClusterWorld(number=1)
    run = await begin(world, hooks={"maintenance": {"command": ["a", "b c"], "timeout_s": 7}})
    await run.handle.result()
    described = await run.handle.describe()
    asked = {request.stage: request for request in world.asked}
    assert set(asked) == set(Stage)
    for stage, request in asked.items():
        assert request.operation == f"{run.handle.id}#{described.raw_info.first_run_id}"
        assert (request.cluster, request.host) == (world.cluster, world.host(1))
        assert (request.timeout, request.unreachable_timeout) == (1800, 120)
        needs_ready = stage in (Stage.MAINTENANCE, Stage.POST_MAINTENANCE)
        assert (request.maintenance is not None) == needs_ready
    hook = asked[Stage.MAINTENANCE].hook
    assert hook is not None
    assert (hook.command, hook.timeout_s) == (("a", "b c"), 7)
    assert asked[Stage.PRE_FLIGHT].hook is None


async def test_without_hooks_and_reboot_hosts_only_go_out_and_back(begin: Begin) -> None:
    world = ClusterWorld(without=frozenset(Stage))
    result = await (await begin(world)).handle.result()
    assert world.log == [(what, host) for host in world.hosts for what in ("drain", "leave")]
    assert all(host.hooks == () and host.boot_id_after is None for host in result.hosts)


async def test_only_the_hosts_that_are_named_in_that_order(begin: Begin) -> None:
    world = ClusterWorld(without=frozenset({Stage.PRE_FLIGHT}))
    await (await begin(world, hosts=(world.host(3), world.host(1)))).handle.result()
    assert [host for what, host in world.log if what == "drain"] == [world.host(3), world.host(1)]


async def test_a_pre_flight_that_fails_stops_before_anything_was_changed(begin: Begin) -> None:
    world = ClusterWorld()
    world.outcomes[world.host(1), Stage.PRE_FLIGHT] = [3]
    world.outcomes[world.host(3), Stage.PRE_FLIGHT] = [refusal("HostSilent", "is away")]
    run = await begin(world)
    status = await run.until(
        lambda status: sum(host.state is HostWork.FAILED for host in status.hosts) == 2
    )
    assert status.phase is ClusterPhase.QUESTION
    assert {what for what, _ in world.log} == {"pre_flight"}
    # All were looked at, and all that is wrong is said.
    assert f"{world.host(1)} has failed at pre_flight: the hook pre_flight has failed" in (
        status.message
    )
    assert "it ended with status 3" in status.message
    assert f"{world.host(3)} has failed at pre_flight: is away" in status.message
    await run.resume()
    await run.handle.result()
    # The one that was away has begun nothing: that is the same attempt.
    attempts = [
        (request.host, request.attempt)
        for request in world.asked
        if request.stage is Stage.PRE_FLIGHT
    ]
    first, second, third = world.hosts
    assert sorted(attempts) == sorted([(first, 1), (first, 2), (second, 1), (third, 1), (third, 1)])


@pytest.mark.parametrize(
    ("stage", "step", "done"),
    [
        (Stage.PRE_MAINTENANCE, Step.PRE_MAINTENANCE, WHOLE[:2]),
        (Stage.MAINTENANCE, Step.MAINTENANCE, WHOLE[:4]),
        (Stage.POST_MAINTENANCE, Step.POST_MAINTENANCE, WHOLE[:5]),
    ],
)
async def test_a_hook_that_fails_stops_it_there_and_resume_goes_on_from_there(
    begin: Begin, stage: Stage, step: Step, done: list[str]
) -> None:
    world = ClusterWorld()
    world.outcomes[world.host(2), stage] = [9, "it was interrupted by a reboot"]
    run = await begin(world)
    status = await run.until_phase(ClusterPhase.QUESTION)
    failed = await run.host(2)
    assert (failed.state, failed.step) == (HostWork.FAILED, step)
    assert failed.error == f"the hook {stage} has failed: it ended with status 9"
    assert status.message == f"{failed.host} has failed at {step}: {failed.error}"
    assert status.commands == (
        f"hostler cluster maintenance hooks {world.cluster} {failed.host}",
        f"hostler cluster maintenance resume {world.cluster}",
        f"hostler cluster maintenance stop {world.cluster}",
        f"temporal workflow update execute --workflow-id {run.handle.id} --input '{{}}' "
        "--name resume",
        f"temporal workflow update execute --workflow-id {run.handle.id} --input '{{}}' "
        "--name stop",
    )
    assert world.of(failed.host) == done
    assert world.of(world.host(1)) == WHOLE
    assert world.of(world.host(3)) == ["pre_flight"]
    assert (failed.host in world.out) == ("drain" in done)

    await run.resume()
    await run.until(lambda status: "interrupted" in status.message)
    await run.resume()
    await run.handle.result()
    again = [stage] * 2
    assert world.of(failed.host) == [*done, *again, *WHOLE[len(done) :]]
    assert [request.attempt for request in world.asked if request.stage is stage] == [1, 1, 2, 3, 1]
    assert world.of(world.host(3)) == WHOLE


async def test_a_host_that_somebody_has_taken_out_is_a_failure_with_the_way_on(
    begin: Begin,
) -> None:
    world = ClusterWorld(number=2)
    world.plan_error = refusal("NotFound", "no hosts yet")
    other = await begin(world)  # has the worker only
    with pytest.raises(WorkflowFailureError):
        await other.handle.result()
    world.plan_error = None
    await run_stand_in(other, 1)
    run = await other.start()
    status = await run.until_phase(ClusterPhase.QUESTION)
    assert f"maintenance/{world.host(1)} is running already" in status.message
    assert f"hostler maintenance leave {world.host(1)}" in status.message
    await run.put_back_by_hand(1)
    await run.resume()
    assert (await run.handle.result()).outcome is ClusterMaintenanceOutcome.COMPLETED


async def run_stand_in(run: Run, number: int) -> None:
    host = run.world.host(number)
    await run.client.start_workflow(
        "HostMaintenance", {"host": host}, id=f"maintenance/{host}", task_queue=run.queue
    )


async def test_no_room_refuses_with_the_plans_words_and_changes_nothing(begin: Begin) -> None:
    world = ClusterWorld()
    world.orders[world.host(2)] = [Order(refusal="vm-1 has no destination")]
    run = await begin(world)
    await run.until_phase(ClusterPhase.QUESTION)
    failed = await run.host(2)
    assert (failed.step, failed.maintenance) == (Step.DRAIN, None)
    assert failed.error == (
        "its maintenance has ended before the host was ready: vm-1 has no destination"
    )
    assert world.out == set()
    await run.resume()
    await run.handle.result()
    assert world.of(world.host(2)) == WHOLE


async def test_a_question_is_shown_and_no_other_host_begins_meanwhile(begin: Begin) -> None:
    world = ClusterWorld(without=frozenset({Stage.PRE_FLIGHT}))
    world.orders[world.host(1)] = [Order(question="vm-3 can't be moved: no room")]
    gate = world.gate(2, Stage.MAINTENANCE)
    run = await begin(world, parallel=2)
    await run.until_at(2, Step.MAINTENANCE)
    status = await run.until_phase(ClusterPhase.QUESTION)
    assert status.message == (f"{world.host(1)} waits for an answer: vm-3 can't be moved: no room")
    assert status.commands[0] == f"hostler maintenance status {world.host(1)}"
    assert "neither paused" in await run.refused("resume", ResumeInput)
    gate.set()
    await run.until(lambda status: run.of(status, 2).state is HostWork.DONE)  # type: ignore[union-attr] # it is there
    assert world.of(world.host(3)) == []
    await run.maintenance(1).signal("answer")
    await run.handle.result()
    assert world.of(world.host(3)) == WHOLE[1:]


async def test_what_a_host_waits_for_before_it_is_drained_is_shown(begin: Begin) -> None:
    world = ClusterWorld(number=2)
    world.orders[world.host(1)] = [Order(queue="Waits for kvm-9, which is out", question="Why?")]
    run = await begin(world)
    status = await run.until(lambda status: "kvm-9" in status.message)
    assert status.phase is ClusterPhase.WORKING
    assert status.message == (
        f"{world.host(1)}: drain (Waits for kvm-9, which is out); 0 of 2 hosts are done"
    )
    await run.maintenance(1).signal("answer")
    await run.until_phase(ClusterPhase.QUESTION)
    assert (await run.host(1)).queued is None
    await run.maintenance(1).signal("answer")
    await run.handle.result()


async def test_as_many_at_a_time_as_were_asked_for(begin: Begin) -> None:
    world = ClusterWorld(number=5)
    gates = [world.gate(number, Stage.MAINTENANCE) for number in (1, 2)]
    run = await begin(world, parallel=2)
    for number in (1, 2):
        await run.until_at(number, Step.MAINTENANCE)
    assert len(world.out) == 2
    for gate in gates:
        gate.set()
    await run.handle.result()
    assert world.most_out == 2


async def test_paused_the_host_in_work_goes_on_and_no_other_begins(begin: Begin) -> None:
    world = ClusterWorld()
    gate = world.gate(1, Stage.MAINTENANCE)
    run = await begin(world)
    await run.until_at(1, Step.MAINTENANCE)
    assert "neither paused" in await run.refused("resume", ResumeInput)
    await run.update("pause", PauseInput)
    status = await run.until_phase(ClusterPhase.PAUSED)
    assert status.message == f"Paused; {world.host(1)}: maintenance; 0 of 3 hosts are done"
    assert f"hostler cluster maintenance resume {world.cluster}" in status.commands
    assert "paused already" in await run.refused("pause", PauseInput)
    gate.set()
    status = await run.until(lambda status: "no host is in work" in status.message)
    assert status.message == "Paused; no host is in work; 1 of 3 hosts are done"
    assert world.of(world.host(2)) == ["pre_flight"]
    await run.resume()
    assert (await run.handle.result()).outcome is ClusterMaintenanceOutcome.COMPLETED


async def test_stopped_it_ends_after_the_host_in_work(begin: Begin) -> None:
    world = ClusterWorld()
    gate = world.gate(1, Stage.MAINTENANCE)
    run = await begin(world)
    await run.until_at(1, Step.MAINTENANCE)
    await run.update("stop", StopInput)
    status = await run.until_phase(ClusterPhase.STOPPING)
    assert status.commands == ()
    for name, model in (("pause", PauseInput), ("resume", ResumeInput), ("stop", StopInput)):
        assert "being stopped" in await run.refused(name, model)
    gate.set()
    result = await run.handle.result()
    assert result.outcome is ClusterMaintenanceOutcome.STOPPED
    assert [host.state for host in result.hosts] == [
        HostWork.DONE,
        HostWork.WAITING,
        HostWork.WAITING,
    ]
    assert world.of(world.host(1)) == WHOLE


async def test_stopped_after_a_failure_the_host_stays_out_with_its_maintenance_open(
    begin: Begin,
) -> None:
    world = ClusterWorld()
    world.outcomes[world.host(1), Stage.POST_MAINTENANCE] = [1]
    run = await begin(world)
    await run.until_phase(ClusterPhase.QUESTION)
    await run.update("stop", StopInput)
    result = await run.handle.result()
    assert result.outcome is ClusterMaintenanceOutcome.STOPPED
    assert result.hosts[0].state is HostWork.FAILED
    assert await run.is_out(1)
    await run.put_back_by_hand(1)
    assert world.out == set()


@pytest.mark.parametrize("in_work", [True, False])
async def test_temporals_cancel_is_a_stop(begin: Begin, in_work: bool) -> None:
    world = ClusterWorld()
    gate = world.gate(1, Stage.MAINTENANCE)
    run = await begin(world)
    await run.until_at(1, Step.MAINTENANCE)
    if not in_work:
        await run.update("pause", PauseInput)
        gate.set()
        await run.until(lambda status: "no host is in work" in status.message)
    await run.handle.cancel()
    if in_work:
        await run.until_phase(ClusterPhase.STOPPING)
        await run.handle.cancel()
        gate.set()
    with pytest.raises(WorkflowFailureError) as caught:
        await run.handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert world.of(world.host(1)) == WHOLE
    assert world.of(world.host(2)) == ["pre_flight"]


async def test_a_cancel_that_crosses_the_end_of_a_step_is_not_lost(begin: Begin) -> None:
    world = ClusterWorld(number=2)
    gate = world.gate(1, Stage.MAINTENANCE)
    run = await begin(world)
    await run.until_at(1, Step.MAINTENANCE)
    gate.set()
    await run.handle.cancel()
    with pytest.raises(WorkflowFailureError) as caught:
        await run.handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    assert world.out == set()
    assert "drain" not in world.of(world.host(2))


async def test_one_that_was_put_back_by_hand_is_drained_again_before_it_is_worked_on(
    begin: Begin,
) -> None:
    world = ClusterWorld(number=1)
    world.outcomes[world.host(1), Stage.POST_MAINTENANCE] = [1]
    run = await begin(world, reboot=True)
    await run.until_phase(ClusterPhase.QUESTION)
    await run.put_back_by_hand(1)
    await run.resume()
    await run.handle.result()
    assert world.of(world.host(1)) == [*REBOOTED[:7], "leave", *REBOOTED[2:]]
    assert world.boots[world.host(1)] == 3


async def test_a_host_that_may_not_leave_stays_out_until_it_may(begin: Begin) -> None:
    world = ClusterWorld(number=2)
    world.troubles[world.host(1)] = ["The hook still refuses.", "It refuses again."]
    run = await begin(world)
    status = await run.until_phase(ClusterPhase.QUESTION)
    assert status.message == (
        f"{world.host(1)} has failed at leave: {world.host(1)} stays out of service: "
        "The hook still refuses."
    )
    await run.resume()
    await run.until(lambda status: "It refuses again." in status.message)
    await run.resume()
    await run.handle.result()
    assert world.of(world.host(1)) == WHOLE


async def test_one_that_was_put_back_by_hand_after_it_could_not_leave_is_done(
    begin: Begin,
) -> None:
    world = ClusterWorld(number=2)
    world.troubles[world.host(1)] = ["The hook still refuses."]
    run = await begin(world)
    await run.until_phase(ClusterPhase.QUESTION)
    await run.put_back_by_hand(1)
    await run.resume()
    await run.handle.result()
    assert world.of(world.host(1)) == WHOLE


async def test_a_maintenance_that_was_terminated_is_not_a_host_that_has_left(
    begin: Begin,
) -> None:
    world = ClusterWorld(number=1)
    world.troubles[world.host(1)] = ["The hook still refuses."]
    run = await begin(world)
    await run.until_phase(ClusterPhase.QUESTION)
    await run.maintenance(1).terminate()
    await run.resume()
    status = await run.until(lambda status: "has ended without" in status.message)
    assert f"hostler maintenance leave {world.host(1)}" in status.message
    await run.update("stop", StopInput)
    await run.handle.result()


async def test_a_reboot_that_took_too_long_is_not_repeated_when_it_came_after_all(
    begin: Begin,
) -> None:
    world = ClusterWorld(number=1, slow_boots=1)
    run = await begin(world, reboot=True)
    status = await run.until_phase(ClusterPhase.QUESTION)
    assert "failed at reboot" in status.message
    await run.resume()
    (host,) = (await run.handle.result()).hosts
    assert world.of(world.host(1)) == REBOOTED
    assert host.boot_id_before != host.boot_id_after


LOST = [*REBOOTED[:6], "power cycle", *REBOOTED[6:]]


@pytest.mark.parametrize("off", [False, True])
async def test_a_host_that_is_lost_in_its_reboot_is_power_cycled_once(
    begin: Begin, off: bool
) -> None:
    world = ClusterWorld(number=2, lost_off=off)
    world.lost.add(world.host(1))
    run = await begin(world, reboot=True, power_cycle_when_lost=True)
    first, second = (await run.handle.result()).hosts
    # What is off has no power to take away.
    action = "power on" if off else "power cycle"
    assert world.of(first.host) == [*LOST[:6], action, *LOST[7:]]
    assert world.of(second.host) == REBOOTED
    assert (first.power_cycled, second.power_cycled) == (True, False)
    assert first.boot_id_after == f"boot-3-of-{first.host}"
    (told,) = world.powered
    assert told.reason == (
        f"it did not come back from its reboot within 900 s, in the maintenance of {world.cluster}"
    )
    assert not told.force
    assert world.planned[0].power_cycle_when_lost


async def test_a_host_that_is_lost_is_left_alone_unless_that_was_asked_for(begin: Begin) -> None:
    world = ClusterWorld(number=1)
    world.lost.add(world.host(1))
    run = await begin(world, reboot=True)
    status = await run.until_phase(ClusterPhase.QUESTION)
    assert "not back from its reboot" in status.message
    assert world.powered == []
    await run.handle.terminate()
    await run.maintenance(1).terminate()


async def test_a_host_that_answers_is_not_power_cycled(begin: Begin) -> None:
    world = ClusterWorld(number=1, answering=True)
    world.lost.add(world.host(1))
    run = await begin(world, reboot=True, power_cycle_when_lost=True)
    await run.until_phase(ClusterPhase.QUESTION)
    assert world.powered == []
    await run.handle.terminate()
    await run.maintenance(1).terminate()


async def test_a_bmc_that_could_not_help_is_not_asked_again(begin: Begin) -> None:
    world = ClusterWorld(number=1, bmc_refuses=refusal("OutcomeUnknown", "nobody knows"))
    world.lost.add(world.host(1))
    run = await begin(world, reboot=True, power_cycle_when_lost=True)
    status = await run.until_phase(ClusterPhase.QUESTION)
    assert "its BMC could not help: nobody knows" in status.message
    assert "its BMC had it boot" not in current_details(status)
    await run.resume()
    await run.until(lambda status: "is not back from its reboot after" in status.message)
    assert len(world.powered) == 1
    world.lost.clear()
    await run.resume()
    (host,) = (await run.handle.result()).hosts
    assert host.state is HostWork.DONE


async def test_a_host_is_only_lost_by_a_reboot() -> None:
    with pytest.raises(ValueError, match="power_cycle_when_lost goes with reboot only"):
        ClusterMaintenanceInput(cluster="cluster-1", power_cycle_when_lost=True)


async def test_what_can_not_begin_fails_at_once(begin: Begin) -> None:
    world = ClusterWorld(plan_error=refusal("InvalidInput", "parallel: 3 hosts at a time"))
    run = await begin(world, parallel=3)
    with pytest.raises(WorkflowFailureError) as caught:
        await run.handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "InvalidInput"
    assert caught.value.cause.message == "parallel: 3 hosts at a time"


async def test_steered_before_it_has_begun(client: Client, begin: Begin) -> None:
    """The update is there before the first worker is."""
    world = ClusterWorld(number=1)
    run = await Run(client, world, f"test-{uuid.uuid4()}").start()
    pausing = asyncio.create_task(run.update("pause", PauseInput))
    await asyncio.sleep(0.5)  # it is on its way to the server
    async with Worker(
        client,
        task_queue=run.queue,
        workflows=[ClusterMaintenance, StandIn],
        activities=[*world.activities(), *_activities_of(client)],
        interceptors=[HostlerInterceptor()],
    ):
        await pausing
        await run.until_phase(ClusterPhase.PAUSED)
        await run.update("stop", StopInput)
        await run.handle.result()
    assert world.log == []


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


@pytest.mark.parametrize("parallel", [1, 2])
async def test_it_continues_as_new_between_hosts_and_forgets_nothing(
    forgetful: Client, begin: Begin, parallel: int
) -> None:
    world = ClusterWorld(number=6)
    world.outcomes[world.host(4), Stage.MAINTENANCE] = [1]
    run = await begin(world, of=forgetful, reboot=True, reason="kernel", parallel=parallel)
    first = (await run.handle.describe()).run_id
    status = await run.until_phase(ClusterPhase.QUESTION)
    since, later = status.since, (await run.handle.describe()).run_id
    assert later != first
    assert await run.is_out(4)
    await run.resume()
    result = await run.handle.result()
    assert result.outcome is ClusterMaintenanceOutcome.COMPLETED
    for host in world.hosts:
        again = ["maintenance"] if host == world.host(4) else []
        assert world.of(host) == [*REBOOTED[:4], *again, *REBOOTED[4:]]
    assert {request.operation for request in world.asked} == {f"{run.handle.id}#{first}"}
    assert status.reason == "kernel"
    assert since <= status.since
    runs = await all_runs(run, first)
    assert len(runs) > 2
    assert max(runs) < 150


async def all_runs(run: Run, first: str) -> list[int]:
    """The number of events of each run."""
    lengths, run_id = [], first
    while run_id:
        handle = run.client.get_workflow_handle(run.handle.id, run_id=run_id)
        events = [event async for event in handle.fetch_history_events()]
        lengths.append(len(events))
        run_id = events[
            -1
        ].workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    return lengths


async def test_what_it_carries_along_is_not_for_others_to_give(begin: Begin) -> None:
    world = ClusterWorld(number=1)
    run = await begin(world)
    await run.handle.result()
    carried = {
        "plan": {
            "cluster": world.cluster,
            "zone": "zone-1",
            "hosts": [],
            "hook_timeout": 1,
            "reboot_timeout": 1,
            "unreachable_timeout": 1,
        },
        "hosts": [],
        "since": "2026-11-24T09:30:00Z",
        "paused": False,
        "halted": False,
    }
    with pytest.raises(WorkflowFailureError) as caught:
        await (await run.start(continued=carried)).handle.result()
    assert isinstance(caught.value.cause, ApplicationError)
    assert "continued: is Hostler's own field" in caught.value.cause.message


def page(*hosts: HostProgress) -> str:
    return current_details(
        ClusterMaintenanceStatus(
            cluster="cluster-1",
            phase=ClusterPhase.WORKING,
            reason="",
            message="kvm-1: drain",
            since=WHEN,
            parallel=1,
            reboot=True,
            hosts=hosts,
        )
    )


async def test_the_page_of_hundreds_shows_those_that_matter() -> None:
    names = [f"kvm-{number}" for number in range(500)]
    hosts = [HostProgress(host=name, state=HostWork.DONE) for name in names]
    hosts[400] = hosts[400].model_copy(update={"state": HostWork.FAILED, "error": "a | b\nc"})
    text = page(*hosts)
    assert "kvm-400" in text
    assert "a \\| b c" in text
    assert "500 hosts: 1 failed, 499 done." in text
    assert len(text) < 10_000


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"on_blocker": OnBlocker.KEEP}, "on_blocker"),
        ({"hosts": ["kvm-1", "kvm-1"]}, "hosts"),
        ({"hosts": []}, "hosts"),
        ({"parallel": 0}, "parallel"),
        ({"hooks": {"lunch": {"command": ["true"]}}}, "hooks"),
        ({"hooks": {"maintenance": {}}}, "hooks"),
        ({"hooks": {"maintenance": {"command": []}}}, "hooks"),
        ({"hooks": {"maintenance": {"command": ["true"], "builtin": "apply-updates"}}}, "hooks"),
        ({"hooks": {"maintenance": {"command": ["x" * 9000, "x" * 9000]}}}, "hooks"),
        ({"hooks": {"maintenance": {"command": ["a\0b"]}}}, "hooks"),
        ({"hooks": {"maintenance": {"builtin": "reinstall"}}}, "hooks"),
    ],
)
async def test_inputs_that_are_refused(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ClusterMaintenanceInput.model_validate({"cluster": "cluster-1", **wrong})
