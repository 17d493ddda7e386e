"""A maintenance that is ready is handed over to another operation: host, fence and lease stay."""

import asyncio

import pytest
from temporalio import activity
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.operations import NotLeft, OperationActivities
from contracts.cluster_maintenance import LeaveMaintenanceInput, WaitForMaintenanceInput
from contracts.leases import LeaseScope, Owner
from contracts.maintenance import (
    HandOverInput,
    HandOverResult,
    LeaveInput,
    MaintenanceOutcome,
    OnBlocker,
)
from contracts.states import Phase, ResourceState
from contracts.steps import AwaitChangeInput, HostRef, RemainingVms
from tests.workflows.maintenance_run import Begin, Run
from tests.workflows.world import World, refusal, running, three_hosts

pytestmark = pytest.mark.asyncio(loop_scope="package")

SUCCESSOR = "removal/kvm-1"


async def hand_over(run: Run) -> HandOverResult:
    result: HandOverResult = await run.handle.execute_update(
        "hand_over", HandOverInput(successor=SUCCESSOR), result_type=HandOverResult
    )
    return result


async def refusal_of(run: Run) -> ApplicationError:
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await hand_over(run)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "Conflict"
    return caught.value.cause


async def test_it_completes_at_once_and_leaves_all_as_it_is(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    run = await begin(world)
    await run.until_phase(Phase.READY)
    done = await hand_over(run)
    result = await run.result()
    assert (result.outcome, result.handed_over_to) == (MaintenanceOutcome.HANDED_OVER, SUCCESSOR)
    assert result.resource_state is ResourceState.MAINTENANCE
    assert [vm.vm for vm in result.vms] == ["vm-1"]
    assert world.state is ResourceState.MAINTENANCE
    assert world.fence == run.handle.id
    assert world.lease is not None
    assert (done.host, done.lease.owner) == ("kvm-1", world.lease)
    assert done.lease.scope is LeaseScope.PLACEMENT


async def test_whoever_waits_for_it_gets_to_know_that_the_host_is_not_back(begin: Begin) -> None:
    run = await begin(three_hosts())
    await run.until_phase(Phase.READY)
    first = (await run.handle.describe()).raw_info.first_run_id
    maintenance = Owner(workflow_id=run.handle.id, first_run_id=first)
    await hand_over(run)
    await run.result()
    activities = OperationActivities(run.client)
    waiting = WaitForMaintenanceInput(host="kvm-1", maintenance=maintenance)
    ended = await ActivityEnvironment().run(activities.wait_for_maintenance, waiting)
    assert ended.ended == "it was handed over to removal/kvm-1"
    leaving = LeaveMaintenanceInput(
        host="kvm-1", maintenance=maintenance, request="1", return_vms=False
    )
    with pytest.raises(NotLeft, match="it was handed over to removal/kvm-1"):
        await ActivityEnvironment().run(activities.leave_maintenance, leaving)


async def test_elsewhere_it_is_refused(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.gate.clear()
    run = await begin(world)
    await run.until_phase(Phase.EVACUATING)
    refused = await refusal_of(run)
    assert "kvm-1 can't be handed over to removal/kvm-1: its maintenance is not ready" in str(
        refused
    )
    assert "hostler maintenance status kvm-1" in str(refused)
    world.gate.set()
    await run.until_phase(Phase.READY)
    await run.leave()
    assert (await run.result()).outcome is MaintenanceOutcome.LEFT


async def test_vms_that_are_kept_are_named(begin: Begin) -> None:
    world = three_hosts(running("vm-1", host_devices=("GPU",)), running("vm-2"))
    run = await begin(world, on_blocker=OnBlocker.KEEP)
    while world.state is not ResourceState.ERROR_IN_MAINTENANCE:
        await asyncio.sleep(0.02)
    assert "VMs are kept on it on purpose: vm-1" in str(await refusal_of(run))
    await run.leave()


async def test_after_a_leave_that_failed_it_is_still_ready(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.fence_down_fails = 1
    run = await begin(world)
    await run.until_phase(Phase.READY)
    with pytest.raises(WorkflowUpdateFailedError):
        await run.leave()
    await run.until_phase(Phase.READY)
    await hand_over(run)
    assert (await run.result()).outcome is MaintenanceOutcome.HANDED_OVER


async def test_a_host_that_is_down_is_handed_over_as_it_is(begin: Begin) -> None:
    world = three_hosts()
    world.silent = True
    run = await begin(world, host_is_down=True)
    await run.until_phase(Phase.READY)
    await hand_over(run)
    assert (await run.result()).outcome is MaintenanceOutcome.HANDED_OVER
    assert world.state is ResourceState.MAINTENANCE


async def test_a_host_that_comes_back_from_down_is_not(begin: Begin) -> None:
    world = three_hosts()
    world.silent = True
    run = await begin(world, host_is_down=True)
    await run.until_phase(Phase.READY)
    world.fence_up_fails = 1
    world.silent = False
    await run.until_phase(Phase.QUESTION)
    await refusal_of(run)
    await run.until(lambda now: now.message == "Ready for maintenance")
    await hand_over(run)
    assert (await run.result()).outcome is MaintenanceOutcome.HANDED_OVER


class Reinstalled(World):
    """kvm-1 comes back from `Down` as another installation."""

    @activity.defn(name="wait_for_host")
    async def wait_for_host(self, request: AwaitChangeInput) -> bool:
        await super().wait_for_host(request)
        raise refusal("HostKeyChanged", "kvm-1 shows another SSH host key.")

    @activity.defn(name="list_remaining_vms")
    async def list_remaining_vms(self, request: HostRef) -> RemainingVms:
        if self.silent:
            return await super().list_remaining_vms(request)
        raise refusal("HostKeyChanged", "kvm-1 shows another SSH host key.")


@pytest.mark.parametrize("silent", [True, False], ids=["later", "from the start"])
async def test_another_installation_in_its_place_is_handed_over_too(
    begin: Begin, silent: bool
) -> None:
    world = Reinstalled(vms={"kvm-1": [], "kvm-2": [], "kvm-3": []})
    world.silent = silent
    run = await begin(world, host_is_down=True)
    await run.until_phase(Phase.READY)
    world.silent = False
    await run.until(lambda now: "another SSH host key" in now.message)
    assert world.state is ResourceState.MAINTENANCE
    await hand_over(run)
    assert (await run.result()).outcome is MaintenanceOutcome.HANDED_OVER
    assert (world.state, world.fence) == (ResourceState.MAINTENANCE, None)


async def test_of_leave_and_hand_over_only_one_has_its_way(begin: Begin) -> None:
    world = three_hosts()
    run = await begin(world)
    await run.until_phase(Phase.READY)
    both: list[object] = await asyncio.gather(
        run.handle.execute_update("leave", LeaveInput()),
        hand_over(run),
        return_exceptions=True,
    )
    left, handed = both
    outcome = (await run.result()).outcome
    assert isinstance(left, WorkflowUpdateFailedError) is (
        outcome is MaintenanceOutcome.HANDED_OVER
    )
    assert isinstance(handed, WorkflowUpdateFailedError) is (outcome is MaintenanceOutcome.LEFT)
    assert (world.fence is None) is (outcome is MaintenanceOutcome.LEFT)
