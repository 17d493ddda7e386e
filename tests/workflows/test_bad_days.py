"""What a maintenance does when things go wrong around it, and when it has to wait."""

import asyncio

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from contracts.maintenance import MigrationMode, OnBlocker, VmAction
from contracts.power import PowerState
from contracts.states import MAINTENANCE_STATES, HostStatus, Phase, ResourceState
from contracts.vm_return import VmReturnResult
from contracts.vms import MigrationState, VmState
from tests.workflows.maintenance_run import Begin
from tests.workflows.world import World, refusal, running, three_hosts

pytestmark = pytest.mark.asyncio(loop_scope="package")

R = ResourceState


def _not_converging() -> ApplicationError:
    return refusal("NotConverging", "vm-1 writes 200 MiB/s, 30 MiB/s are carried over.")


def _modes(world: World) -> list[MigrationMode]:
    return [request.mode for request in world.requests]


# --- turns and room -----------------------------------------------------------------------------


async def test_the_next_host_queues_and_says_for_whom(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.ahead = ("kvm-2 (maintenance/kvm-2)",)
    run = await begin(world)
    status = await run.until_phase(Phase.QUEUED)
    assert "1 of cluster-1 may be out at a time" in status.message
    assert "kvm-2 (maintenance/kvm-2)" in status.message
    assert world.states == [R.ENABLED]
    assert world.fence is None
    world.ahead = ()
    await run.until_phase(Phase.READY)
    await run.leave()


async def test_a_queued_host_is_left_at_once(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.ahead = ("kvm-2 (maintenance/kvm-2)",)
    run = await begin(world)
    await run.until_phase(Phase.QUEUED)
    await run.leave()
    assert world.states == [R.ENABLED]
    assert world.lease is None


async def test_whoever_does_not_want_to_queue_is_refused(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.ahead = ("kvm-2 (maintenance/kvm-2)",)
    failure = await (await begin(world, queue=False)).failure()
    assert failure.type == "Conflict"
    assert "not the turn of kvm-1" in failure.message
    assert "kvm-2 (maintenance/kvm-2)" in failure.message
    assert world.states == [R.ENABLED]


async def test_without_room_it_waits_for_the_host_that_is_out(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.vms["kvm-3"] = [running("vm-big", 1024)]
    world.out["kvm-2"] = "maintenance/kvm-2"
    run = await begin(world)
    status = await run.until_phase(Phase.QUEUED)
    assert "Waits for kvm-2 to come back" in status.message
    assert "vm-1" in status.message
    assert world.states == [R.ENABLED]
    del world.out["kvm-2"]
    await run.until_phase(Phase.READY)
    assert world.places("vm-1") == ["kvm-2"]
    await run.leave()


async def test_without_room_for_ever_it_is_refused_though_a_host_is_out(begin: Begin) -> None:
    world = three_hosts(running("vm-1", 4096))
    world.out["kvm-2"] = "maintenance/kvm-2"
    failure = await (await begin(world)).failure()
    assert failure.type == "EvacuationImpossible"
    assert world.states == [R.ENABLED]


async def test_a_plan_that_others_have_overtaken_is_made_again(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.outdated = 2
    run = await begin(world)
    await run.until_phase(Phase.READY)
    assert world.outdated == 0
    assert world.states == [R.ENABLED, R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE]
    await run.leave()


# --- convergence --------------------------------------------------------------------------------


async def test_what_does_not_converge_is_slowed_down_next(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.failures["vm-1"] = [_not_converging()]
    run = await begin(world)
    status = await run.until_phase(Phase.READY)
    assert _modes(world) == [MigrationMode.PLAIN, MigrationMode.AUTO_CONVERGE]
    assert len({request.destination for request in world.requests}) == 1
    assert status.vms[0].mode is MigrationMode.AUTO_CONVERGE
    await run.leave()


@pytest.mark.parametrize(
    ("action", "mode"),
    [
        (VmAction.WAIT, MigrationMode.UNBOUNDED),
        (VmAction.PAUSE, MigrationMode.PAUSED),
        (VmAction.RETRY, MigrationMode.PLAIN),
    ],
)
async def test_then_the_operator_decides(
    begin: Begin, action: VmAction, mode: MigrationMode
) -> None:
    world = three_hosts(running("vm-1"))
    world.failures["vm-1"] = [_not_converging(), _not_converging()]
    run = await begin(world)
    status = await run.until(lambda now: now.questions == ("vm-1",))
    assert "writes 200 MiB/s" in status.message
    for offered in ("retry", "wait", "pause", "shutdown", "keep"):
        assert f"hostler maintenance resolve kvm-1 vm-1 {offered}" in status.commands
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await run.resolve("vm-1", VmAction.COPY_STORAGE)
    assert "copy_storage does not apply to vm-1" in str(caught.value.cause)
    await run.resolve("vm-1", action)
    await run.until_phase(Phase.READY)
    assert _modes(world)[2] is mode
    await run.leave()


async def test_auto_converge_may_be_forbidden(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.settings = world.settings.model_copy(update={"auto_converge": False})
    world.failures["vm-1"] = [_not_converging()]
    run = await begin(world)
    await run.until(lambda now: now.questions == ("vm-1",))
    assert _modes(world) == [MigrationMode.PLAIN]
    await run.leave()


# --- absences -----------------------------------------------------------------------------------


async def test_an_absence_is_an_error_state_that_ends_by_itself(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.gate.clear()
    run = await begin(world)
    while world.moving < 1:
        await asyncio.sleep(0.02)
    world.silent = True
    world.gate.set()
    status = await run.until(lambda now: bool(now.troubles))
    assert "kvm-1 does not answer" in status.troubles[0]
    while world.state is not R.ERROR_IN_PREPARE_FOR_MAINTENANCE:
        await asyncio.sleep(0.02)
    world.silent = False
    await run.until_phase(Phase.READY)
    assert world.states == [
        R.ENABLED,
        R.PREPARE_FOR_MAINTENANCE,
        R.ERROR_IN_PREPARE_FOR_MAINTENANCE,
        R.PREPARE_FOR_MAINTENANCE,
        R.MAINTENANCE,
    ]
    assert any("kvm-1 does not answer" in reason for reason in world.reasons)
    await run.leave()


async def test_a_migration_that_nobody_can_tell_of_goes_on_when_they_can(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    away = ApplicationError("vm-1 may be on kvm-2, which can't tell yet.", type="Unavailable")
    world.failures["vm-1"] = [away] * 10
    run = await begin(world)
    status = await run.until_phase(Phase.READY)
    assert R.ERROR_IN_PREPARE_FOR_MAINTENANCE in world.states
    assert status.troubles == ()
    assert len({request.destination for request in world.requests}) == 1
    await run.leave()


# --- questions that end by themselves -----------------------------------------------------------


async def test_a_question_ends_when_its_reason_has_gone(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.refusals["vm-1", "kvm-2"] = world.refusals["vm-1", "kvm-3"] = 1
    run = await begin(world)
    await run.until(lambda now: now.questions == ("vm-1",))
    world.changed.set()
    status = await run.until_phase(Phase.READY)
    assert status.questions == ()
    assert world.states[-2:] == [R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE]
    await run.leave()


async def test_a_vm_that_its_owner_stops_needs_no_answer(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.refusals["vm-1", "kvm-2"] = world.refusals["vm-1", "kvm-3"] = 9
    run = await begin(world)
    await run.until(lambda now: now.questions == ("vm-1",))
    world.vms["kvm-1"].clear()
    status = await run.until_phase(Phase.READY)
    assert status.vms[0].state is MigrationState.GONE
    await run.leave()


async def test_after_a_while_it_is_tried_again_unasked(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.refusals["vm-1", "kvm-2"] = world.refusals["vm-1", "kvm-3"] = 2
    world.watch_ends = 2
    run = await begin(world)
    await run.until_phase(Phase.READY)
    assert [watch.within_s for watch in world.watches] == [600, 1200]
    await run.leave()


async def test_what_is_in_the_vm_itself_is_only_watched(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.states, world.before = [R.ENABLED, R.PREPARE_FOR_MAINTENANCE], R.ENABLED
    world.vms["kvm-1"] = [running("vm-1", host_devices=("pci 0000:01:00.0",))]
    world.settings = world.settings.model_copy(update={"question_reminder": 1})
    world.watch_ends = 2
    run = await begin(world)
    await run.until(lambda now: now.questions == ("vm-1",))
    while world.watch_ends:
        await asyncio.sleep(0.02)
    assert (await run.status()).questions == ("vm-1",)
    world.vms["kvm-1"] = [running("vm-1")]
    world.changed.set()
    await run.until_phase(Phase.READY)
    await run.leave()


async def test_a_kept_vm_that_leaves_by_itself_is_noticed(begin: Begin) -> None:
    world = three_hosts(running("vm-1", host_devices=("pci 0000:01:00.0",)))
    run = await begin(world, on_blocker=OnBlocker.KEEP)
    while world.state is not R.ERROR_IN_MAINTENANCE:
        await asyncio.sleep(0.02)
    world.vms["kvm-1"].clear()
    await run.until_phase(Phase.READY)
    assert world.state is R.MAINTENANCE
    await run.leave()


# --- blockers -----------------------------------------------------------------------------------


async def test_local_disks_go_along_when_that_was_chosen(begin: Begin) -> None:
    world = three_hosts(running("vm-1", local_disks=("/a.raw",)), running("vm-2"))
    run = await begin(world, on_blocker=OnBlocker.COPY_STORAGE)
    await run.until_phase(Phase.READY)
    assert {request.vm: request.copy_storage for request in world.requests} == {
        "vm-1": True,
        "vm-2": False,
    }
    await run.leave()


async def test_copying_storage_helps_no_other_blocker(begin: Begin) -> None:
    world = three_hosts(running("vm-1", host_devices=("pci 0000:01:00.0",)))
    failure = await (await begin(world, on_blocker=OnBlocker.COPY_STORAGE)).failure()
    assert failure.type == "EvacuationImpossible"
    assert "pci 0000:01:00.0" in failure.message
    assert world.states == [R.ENABLED]


async def test_what_is_shut_down_goes_last_and_starts_again(begin: Begin) -> None:
    world = three_hosts(
        running("a-pinned", host_devices=("pci 0000:01:00.0",)), running("vm-1"), running("vm-2")
    )
    run = await begin(world, on_blocker=OnBlocker.SHUTDOWN)
    status = await run.until_phase(Phase.READY)
    assert world.shut_down_after == [0]
    assert {vm.vm: vm.start_again for vm in status.vms} == {
        "a-pinned": True,
        "vm-1": False,
        "vm-2": False,
    }
    await run.leave()
    result = await run.result()
    assert world.places("a-pinned") == ["kvm-1"]
    assert {vm.vm: vm.state for vm in result.vms}["a-pinned"] is MigrationState.RESTARTED


async def test_what_does_not_start_again_is_reported_and_fails_nothing(begin: Begin) -> None:
    world = three_hosts(running("vm-1", host_devices=("pci 0000:01:00.0",)))
    world.unstartable = frozenset({"vm-1"})
    run = await begin(world, on_blocker=OnBlocker.SHUTDOWN)
    await run.until_phase(Phase.READY)
    await run.leave()
    result = await run.result()
    assert result.resource_state is R.ENABLED
    assert result.vms[0].state is MigrationState.SHUT_OFF
    assert "does not start" in (result.vms[0].error or "")


async def test_a_vm_that_had_crashed_before_is_no_failure(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    broken = running("vm-2", state=VmState.CRASHED)
    world.vms["kvm-1"].append(broken)
    world.dead = frozenset({broken.uuid})
    run = await begin(world)
    status = await run.until_phase(Phase.READY)
    assert status.plan is not None
    assert [vm.vm for vm in status.plan.broken] == ["vm-2"]
    assert world.state is R.MAINTENANCE
    await run.leave()


# --- coming back --------------------------------------------------------------------------------


async def test_a_host_that_lacks_what_it_had_stays_out_unless_forced(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    run = await begin(world)
    await run.until_phase(Phase.READY)
    world.missing = "network storage-net"
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await run.leave()
    assert "lacks network storage-net" in str(caught.value.cause)
    assert world.state is R.MAINTENANCE
    assert world.fence is not None
    await run.leave(force=True)
    assert world.state is R.ENABLED


async def _returned(world: World, begin: Begin, **asked: object) -> VmReturnResult:
    run = await begin(world, return_vms=True, **asked)
    await run.until_phase(Phase.READY)
    await run.leave()
    await run.result()
    handle = run.client.get_workflow_handle("return/kvm-1", result_type=VmReturnResult)
    result: VmReturnResult = await handle.result()
    return result


async def test_moved_vms_come_back_when_that_is_asked(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2"))
    result = await _returned(world, begin)
    assert {vm.vm: vm.destination for vm in result.vms} == {"vm-1": "kvm-1", "vm-2": "kvm-1"}
    assert len(world.vms["kvm-1"]) == 2
    assert world.lease is None


async def test_what_can_not_come_back_is_reported(begin: Begin) -> None:
    world = three_hosts(running("vm-1"), running("vm-2"))
    world.refusals["vm-1", "kvm-1"] = 1
    result = await _returned(world, begin)
    states = {vm.vm: vm.state for vm in result.vms}
    assert states == {"vm-1": MigrationState.STAYED, "vm-2": MigrationState.MOVED}
    assert "no bridge br-1" in next(vm.error or "" for vm in result.vms if vm.vm == "vm-1")
    assert world.state is R.ENABLED


# --- a host that is down ------------------------------------------------------------------------


async def test_a_silent_host_is_refused_with_the_way_on(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.mute = True
    failure = await (await begin(world)).failure()
    assert failure.type == "Conflict"
    assert "host_is_down" in failure.message
    assert world.states == [R.ENABLED]


async def test_a_host_that_is_down_is_taken_out_as_it_is_and_fenced_when_it_is_back(
    begin: Begin,
) -> None:
    world = three_hosts(running("vm-1"))
    world.silent = True
    run = await begin(world, host_is_down=True)
    status = await run.until_phase(Phase.READY)
    assert "the host is down" in status.message
    assert world.states == [R.ENABLED, R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE]
    assert world.status is HostStatus.DOWN
    assert world.fence is None
    assert world.wanted_fence == run.handle.id
    assert world.places("vm-1") == ["kvm-1"]
    world.silent = False
    await run.until(lambda now: now.message == "Ready for maintenance")
    assert world.status is HostStatus.UP
    assert world.fence == run.handle.id
    assert world.vms["kvm-1"] == []
    assert world.state is R.MAINTENANCE
    await run.leave()
    assert world.state is R.ENABLED


async def test_a_host_whose_bmc_says_off_is_taken_out_as_it_is(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.status, world.silent, world.power = HostStatus.DOWN, True, PowerState.OFF
    run = await begin(world)
    status = await run.until_phase(Phase.READY)
    assert "the host is down" in status.message
    assert world.states == [R.ENABLED, R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE]
    assert any("its BMC says that it is off" in reason for reason in world.reasons)
    world.silent = False
    await run.until(lambda now: now.message == "Ready for maintenance")
    assert world.fence == run.handle.id
    await run.leave()


@pytest.mark.parametrize("power", [None, PowerState.ON, PowerState.UNKNOWN])
async def test_a_host_that_is_down_needs_the_word_of_its_bmc_or_of_an_operator(
    begin: Begin, power: PowerState | None
) -> None:
    world = three_hosts(running("vm-1"))
    world.status, world.silent, world.power = HostStatus.DOWN, True, power
    failure = await (await begin(world)).failure()
    assert "host_is_down" in failure.message
    assert world.states == [R.ENABLED]


async def test_a_host_that_answers_while_its_bmc_says_off_is_not_taken_out(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.status, world.power = HostStatus.ALERT, PowerState.OFF
    failure = await (await begin(world)).failure()
    assert "is that its own BMC?" in failure.message
    assert world.states == [R.ENABLED]


async def test_a_host_that_answers_is_not_down(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    failure = await (await begin(world, host_is_down=True)).failure()
    assert "answers: it is not down" in failure.message
    assert world.states == [R.ENABLED]
    assert world.lease is None


async def test_a_host_that_can_not_be_fenced_when_it_is_back_stays_out(begin: Begin) -> None:
    world = three_hosts()
    world.silent = True
    world.fence_up_fails = 99
    run = await begin(world, host_is_down=True)
    await run.until_phase(Phase.READY)
    world.silent = False
    status = await run.until(lambda now: "The hook is missing" in now.message)
    assert status.phase in (Phase.QUESTION, Phase.READY, Phase.EVACUATING)
    assert R.ERROR_IN_MAINTENANCE in world.states
    assert R.ENABLED not in world.states[1:]
    world.fence_up_fails = 0
    await run.until(lambda now: now.message == "Ready for maintenance")
    assert world.fence == run.handle.id
    await run.leave()
    assert world.state is R.ENABLED


async def test_an_adopted_host_does_not_go_back_when_something_fails(begin: Begin) -> None:
    world = three_hosts()
    world.states, world.before = [R.ENABLED, R.MAINTENANCE], R.ENABLED
    world.fence_up_fails = 1
    run = await begin(world)
    status = await run.until_phase(Phase.QUESTION)
    assert "stays out of service: The hook is missing" in status.message
    assert world.state is R.ERROR_IN_MAINTENANCE
    world.silent = True
    with pytest.raises(WorkflowUpdateFailedError):
        await run.leave()
    assert world.state is R.ERROR_IN_MAINTENANCE
    world.silent = False
    await run.leave()
    assert world.state is R.ENABLED


@pytest.mark.parametrize("found", sorted(MAINTENANCE_STATES))
async def test_an_adopted_host_that_is_off_is_waited_for(
    begin: Begin, found: ResourceState
) -> None:
    world = three_hosts()
    world.states, world.before = [R.ENABLED, found], R.ENABLED
    world.silent = True
    run = await begin(world)
    # The trouble is told first, and entered into the inventory by a step.
    status = await run.until(
        lambda now: bool(now.troubles) and world.state is R.ERROR_IN_PREPARE_FOR_MAINTENANCE
    )
    assert "kvm-1 does not answer" in status.troubles[0]
    world.silent = False
    await run.until_phase(Phase.READY)
    assert world.settled == 1
    await run.leave()
    assert world.state is R.ENABLED


@pytest.mark.parametrize("found", sorted(MAINTENANCE_STATES))
async def test_an_adopted_host_can_be_said_to_be_down(begin: Begin, found: ResourceState) -> None:
    world = three_hosts()
    world.states, world.before = [R.DISABLED, found], R.DISABLED
    world.silent = True
    run = await begin(world, host_is_down=True)
    status = await run.until_phase(Phase.READY)
    assert "the host is down" in status.message
    assert world.state is R.MAINTENANCE
    with pytest.raises(WorkflowUpdateFailedError):
        await run.leave()
    world.silent = False
    await run.until(lambda now: now.message == "Ready for maintenance")
    await run.leave()
    assert world.state is R.DISABLED


async def test_an_adopted_host_that_answers_is_not_down_whatever_is_said(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.states, world.before = [R.ENABLED, R.PREPARE_FOR_MAINTENANCE], R.ENABLED
    run = await begin(world, host_is_down=True)
    await run.until_phase(Phase.READY)
    assert world.places("vm-1") != ["kvm-1"]
    await run.leave()


async def test_a_destination_that_is_away_is_no_reason_to_shut_a_vm_down(begin: Begin) -> None:
    world = three_hosts(running("vm-1"))
    world.absent = frozenset({"kvm-2", "kvm-3"})
    run = await begin(world, on_blocker=OnBlocker.SHUTDOWN)
    status = await run.until(lambda now: now.questions == ("vm-1",))
    assert "does not answer" in status.message
    assert world.places("vm-1") == ["kvm-1"]
    world.absent = frozenset()
    world.changed.set()
    await run.until_phase(Phase.READY)
    assert len(world.vms["kvm-1"]) == 0
    assert world.shut_down_after == []
    await run.leave()


async def test_a_guest_that_powers_off_late_starts_again(begin: Begin) -> None:
    world = three_hosts(running("vm-1", host_devices=("pci 0000:01:00.0",)))
    world.shutdown_fails = 1
    run = await begin(world, on_blocker=OnBlocker.SHUTDOWN)
    await run.until(lambda now: now.questions == ("vm-1",))
    world.shut_off["vm-1"] = world.vms["kvm-1"].pop()
    status = await run.until_phase(Phase.READY)
    assert status.vms[0].state is MigrationState.SHUT_OFF
    await run.leave()
    assert world.places("vm-1") == ["kvm-1"]


async def test_only_the_kept_vm_that_is_named_moves_after_all(begin: Begin) -> None:
    world = three_hosts(running("vm-1", memory_mib=2000), running("vm-2", memory_mib=2000))
    run = await begin(world, on_blocker=OnBlocker.KEEP)
    while world.state is not R.ERROR_IN_MAINTENANCE:
        await asyncio.sleep(0.02)
    world.memory_mib = 4096
    await run.resolve("vm-1", VmAction.RETRY)
    await run.until(lambda now: world.places("vm-1") != ["kvm-1"])
    await run.until(lambda now: "kept on purpose: vm-2" in now.message)
    assert world.places("vm-2") == ["kvm-1"]
    await run.leave()
