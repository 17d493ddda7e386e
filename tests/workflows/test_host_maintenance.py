"""HostMaintenance's decisions, with the activities replaced and time skipped."""

import asyncio
from collections.abc import Callable

import pytest
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import CancelledError

from contracts.leases import Owner
from contracts.maintenance import (
    HostMaintenanceInput,
    MaintenanceOutcome,
    OnBlocker,
    VmAction,
)
from contracts.states import HostStatus, Phase, ResourceState
from contracts.vms import MigrationState, VmState
from tests.workflows.maintenance_run import Begin
from tests.workflows.world import World, running, three_hosts

pytestmark = pytest.mark.asyncio(loop_scope="package")

R = ResourceState


async def test_vms_move_the_host_is_ready_and_comes_back(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2"), running("vm-3"))
    run = await begin(world, reason="new DIMM")
    status = await run.until_phase(Phase.READY)
    assert world.vms["kvm-1"] == []
    assert {vm.state for vm in status.vms} == {MigrationState.MOVED}
    assert status.reason == "new DIMM"
    assert world.state is R.MAINTENANCE
    assert world.fence == run.handle.id
    await run.leave()
    result = await run.result()
    assert result.outcome is MaintenanceOutcome.LEFT
    assert result.resource_state is R.ENABLED
    assert world.states == [R.ENABLED, R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE, R.ENABLED]
    assert world.fence is None
    assert world.lease is None


async def test_a_dry_run_plans_and_changes_nothing(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2", state=VmState.PAUSED))
    result = await (await begin(world, dry_run=True)).result()
    assert result.outcome is MaintenanceOutcome.PLANNED
    assert [move.vm for move in result.plan.moves] == ["vm-1"]
    assert [blocker.vm for blocker in result.plan.blockers] == ["vm-2"]
    assert world.states == [R.ENABLED]
    assert world.lease is None
    assert world.fence is None


async def test_blockers_refuse_before_anything_changes(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2", memory_mib=4096))
    failure = await (await begin(world)).failure()
    assert failure.type == "EvacuationImpossible"
    assert "vm-2: has no destination (kvm-2: needs 4096 MiB of memory" in failure.message
    assert "kvm-3: needs 4096 MiB" in failure.message
    assert world.states == [R.ENABLED]
    assert world.lease is None
    assert world.places("vm-1") == ["kvm-1"]


@pytest.mark.parametrize(
    ("prepare", "host", "kind"),
    [
        (lambda world: None, "kvm-9", "NotFound"),
        (lambda world: world.states.append(R.CREATING), "kvm-1", "Conflict"),
        (lambda world: setattr(world, "status", HostStatus.DISCONNECTED), "kvm-1", "Conflict"),
        (
            lambda world: setattr(world, "lease", Owner(workflow_id="other", first_run_id="1")),
            "kvm-1",
            "LeaseHeld",
        ),
    ],
)
async def test_what_cannot_start_ends_at_once(
    begin: Begin, prepare: Callable[[World], None], host: str, kind: str
) -> None:
    world = three_hosts(running("vm-1"))
    prepare(world)
    before, lease = list(world.states), world.lease
    failure = await (await begin(world, host=host)).failure()
    assert failure.type == kind
    assert world.states == before
    assert world.lease == lease


async def test_a_refusing_destination_is_replaced(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.refusals["vm-1", "kvm-3"] = 9
    run = await begin(world)
    status = await run.until_phase(Phase.READY)
    assert world.places("vm-1") == ["kvm-2"]
    assert status.vms[0].attempt == 2
    assert "no bridge br-1" in (status.vms[0].error or "")
    await run.leave()


async def test_a_vm_nobody_takes_is_asked_about_while_the_rest_move(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2"), running("vm-3"))
    world.refusals["vm-1", "kvm-2"] = world.refusals["vm-1", "kvm-3"] = 1
    run = await begin(world)
    status = await run.until(
        lambda now: now.questions == ("vm-1",) and len(world.vms["kvm-1"]) == 1
    )
    assert status.phase is Phase.QUESTION
    assert world.places("vm-1") == ["kvm-1"]
    for action in ("retry", "shutdown", "keep"):
        assert f"hostler maintenance resolve kvm-1 vm-1 {action}" in status.commands
    while world.state is not R.ERROR_IN_PREPARE_FOR_MAINTENANCE:
        await asyncio.sleep(0.02)
    with pytest.raises(WorkflowUpdateFailedError):
        await run.resolve("vm-2", VmAction.RETRY)
    await run.resolve("vm-1", VmAction.RETRY)
    await run.until_phase(Phase.READY)
    assert world.vms["kvm-1"] == []
    assert world.state is R.MAINTENANCE
    await run.leave()


async def test_shutdown_only_when_asked_and_asked_again_when_it_fails(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.refusals["vm-1", "kvm-2"] = world.refusals["vm-1", "kvm-3"] = 9
    world.shutdown_fails = 1
    run = await begin(world)
    await run.until(lambda now: now.questions == ("vm-1",))
    await run.resolve("vm-1", VmAction.SHUTDOWN)
    await run.until(
        lambda now: bool(now.questions) and "did not power off" in (now.vms[0].error or "")
    )
    await run.resolve("vm-1", VmAction.SHUTDOWN)
    status = await run.until_phase(Phase.READY)
    assert status.vms[0].state is MigrationState.SHUT_OFF
    await run.leave()


async def test_a_kept_vm_never_makes_a_maintenance(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2", host_devices=("pci 0000:01:00.0",)))
    run = await begin(world, on_blocker=OnBlocker.KEEP)
    while world.state is not R.ERROR_IN_MAINTENANCE:
        await asyncio.sleep(0.02)
    status = await run.status()
    assert "kept on purpose: vm-2" in status.message
    assert world.places("vm-2") == ["kvm-1"]
    assert world.fence is not None
    await run.leave()
    assert R.MAINTENANCE not in world.states
    assert world.state is R.ENABLED


async def test_blockers_are_shut_down_when_that_was_chosen(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2", local_disks=("/a.raw",)))
    run = await begin(world, on_blocker=OnBlocker.SHUTDOWN)
    status = await run.until_phase(Phase.READY)
    assert {vm.vm: vm.state for vm in status.vms} == {
        "vm-1": MigrationState.MOVED,
        "vm-2": MigrationState.SHUT_OFF,
    }
    await run.leave()


@pytest.mark.parametrize("cancel", [True, False])
async def test_cancel_or_leave_while_vms_move_rolls_back(begin: Begin, cancel: bool) -> None:
    world = three_hosts(running("vm-1"), running("vm-2"), running("vm-3"))
    world.gate.clear()
    run = await begin(world)
    while world.moving < 2:
        await asyncio.sleep(0.02)
    if cancel:
        await run.handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await run.result()
        assert isinstance(caught.value.cause, CancelledError)
    else:
        await run.leave()
        assert (await run.result()).resource_state is R.ENABLED
    assert world.moving == 0
    assert len(world.vms["kvm-1"]) == 3
    assert world.settled == 1
    assert world.fence is None
    assert world.state is R.ENABLED
    assert world.lease is None


async def test_cancel_in_ready_leaves_and_closes_as_canceled(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    run = await begin(world)
    await run.until_phase(Phase.READY)
    await run.handle.cancel()
    with pytest.raises(WorkflowFailureError):
        await run.result()
    assert (await run.handle.describe()).status is WorkflowExecutionStatus.CANCELED
    assert world.state is R.ENABLED
    assert world.fence is None


async def test_a_host_that_is_not_sound_stays_out_and_says_why(begin: Begin) -> None:
    world = three_hosts()
    world.fence_down_fails = 1
    run = await begin(world)
    await run.until_phase(Phase.READY)
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await run.leave()
    assert "The hook still refuses" in str(caught.value.cause)
    status = await run.status()
    assert status.phase is Phase.READY
    assert "Stays out of service" in status.message
    assert world.state is R.MAINTENANCE
    await run.leave()
    assert world.state is R.ENABLED


async def test_disabled_stays_disabled(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.states = [R.DISABLED]
    run = await begin(world)
    await run.until_phase(Phase.READY)
    await run.leave()
    assert world.state is R.DISABLED


@pytest.mark.parametrize(
    "found",
    [
        R.PREPARE_FOR_MAINTENANCE,
        R.ERROR_IN_PREPARE_FOR_MAINTENANCE,
        R.ERROR_IN_MAINTENANCE,
        R.MAINTENANCE,
    ],
)
async def test_a_terminated_predecessor_is_adopted(begin: Begin, found: ResourceState) -> None:
    world = three_hosts(running("vm-1"))
    world.states, world.before, world.fence = [R.DISABLED, found], R.DISABLED, "maintenance/old"
    world.lease = world.closed_holder = Owner(workflow_id="maintenance/old", first_run_id="1")
    run = await begin(world)
    await run.until_phase(Phase.READY)
    assert world.settled == 1
    assert world.fence == run.handle.id
    await run.leave()
    assert world.state is R.DISABLED


async def test_vms_that_appear_and_vanish_meanwhile(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2"))
    world.gate.clear()
    run = await begin(world, max_parallel=1)
    while world.moving < 1:
        await asyncio.sleep(0.02)
    world.vms["kvm-1"].append(running("vm-new"))
    world.gate.set()
    status = await run.until_phase(Phase.READY)
    assert world.vms["kvm-1"] == []
    assert {vm.vm for vm in status.vms} == {"vm-1", "vm-2", "vm-new"}
    await run.leave()


async def test_it_waits_for_vms_on_their_way_here_unless_their_operation_has_ended(
    begin: Begin,
) -> None:
    world = three_hosts(running("vm-1"))
    world.arriving = ("vm-7",)
    run = await begin(world)
    await run.until_phase(Phase.READY)
    assert world.arriving == ()
    await run.leave()


@pytest.mark.parametrize("width", [1, 3])
async def test_the_window_is_as_wide_as_asked(begin: Begin, width: int) -> None:
    world = three_hosts(*(running(f"vm-{number}", 32) for number in range(6)))
    run = await begin(world, max_parallel=width)
    await run.until_phase(Phase.READY)
    assert 1 <= world.most_moving <= width
    await run.leave()


async def test_hostlers_own_field_is_refused(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    run = await begin(world)
    await run.until_phase(Phase.READY)
    started = await run.client.get_workflow_handle(run.handle.id).fetch_history()
    payload = started.events[0].workflow_execution_started_event_attributes.input
    (carried,) = await run.client.data_converter.decode(payload.payloads, [HostMaintenanceInput])
    await run.leave()
    failure = await (await begin(world, continued=carried.continued)).failure()
    assert failure.type == "InvalidInput"
    assert "continued" in failure.message


async def test_a_dry_run_has_nothing_to_leave_however_early_that_comes(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    run, update = await begin(world, leave_at_once=True, dry_run=True)
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await update
    assert "nothing to leave" in str(caught.value.cause)
    assert (await run.result()).outcome is MaintenanceOutcome.PLANNED


async def test_leave_before_anything_has_begun(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    run, update = await begin(world, leave_at_once=True)
    await update
    assert (await run.result()).resource_state is R.ENABLED
    assert world.lease is None
    assert world.places("vm-1") == ["kvm-1"]


async def test_leave_of_a_start_that_is_refused_fails_with_it(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.lease = Owner(workflow_id="other", first_run_id="1")
    run, update = await begin(world, leave_at_once=True)
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await update
    assert "kvm-1 is held by other" in str(caught.value.cause)
    assert (await run.failure()).type == "LeaseHeld"


async def test_a_kept_vm_moves_after_all_when_that_is_asked(begin: Begin) -> None:
    world = three_hosts(running("vm-1", memory_mib=2000))
    run = await begin(world, on_blocker=OnBlocker.KEEP)
    while world.state is not R.ERROR_IN_MAINTENANCE:
        await asyncio.sleep(0.02)
    assert "hostler maintenance resolve kvm-1 vm-1 retry" in (await run.status()).commands
    world.memory_mib = 4096
    await run.resolve("vm-1", VmAction.RETRY)
    await run.until_phase(Phase.READY)
    assert world.places("vm-1") != ["kvm-1"]
    await run.leave()


async def test_a_vm_that_is_gone_when_it_is_tried_again(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2"))
    world.refusals["vm-1", "kvm-2"] = world.refusals["vm-1", "kvm-3"] = 9
    run = await begin(world)
    await run.until(lambda now: now.questions == ("vm-1",))
    world.vms["kvm-1"].clear()
    await run.resolve("vm-1", VmAction.RETRY)
    status = await run.until_phase(Phase.READY)
    states = {vm.vm: vm.state for vm in status.vms}
    assert states == {"vm-1": MigrationState.GONE, "vm-2": MigrationState.MOVED}
    await run.leave()


async def test_after_a_rollback_that_failed_nobody_waits_for_answers(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.refusals["vm-1", "kvm-2"] = world.refusals["vm-1", "kvm-3"] = 9
    world.fence_down_fails = 1
    run = await begin(world)
    await run.until(lambda now: now.questions == ("vm-1",))
    with pytest.raises(WorkflowUpdateFailedError):
        await run.leave()
    status = await run.status()
    assert status.leave_problem == "The hook still refuses."
    assert status.questions == ()
    with pytest.raises(WorkflowUpdateFailedError):
        await run.resolve("vm-1", VmAction.SHUTDOWN)
    await run.leave()
    assert world.state is R.ENABLED
    assert world.places("vm-1") == ["kvm-1"]


async def test_a_host_that_does_not_answer_stays_out(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    run = await begin(world)
    await run.until_phase(Phase.READY)
    world.silent = True
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await run.leave()
    assert "kvm-1 does not answer" in str(caught.value.cause)
    assert world.state is R.MAINTENANCE
    assert world.fence is not None
    world.silent = False
    await run.leave()
    assert world.state is R.ENABLED
