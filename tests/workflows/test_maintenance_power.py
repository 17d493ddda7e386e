"""A maintenance that switches its host off, and on again before it goes back."""

import asyncio
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from contracts.maintenance import HandOverInput, HostMaintenanceInput, VmAction
from contracts.power import PowerState
from contracts.power_actions import Action
from contracts.states import HostStatus, Phase, ResourceState
from tests.workflows.maintenance_run import Begin
from tests.workflows.world import World, running, three_hosts

pytestmark = pytest.mark.asyncio(loop_scope="package")

R = ResourceState


def with_bmc(**more: Any) -> World:
    world = three_hosts(running("vm-1"))
    world.power = PowerState.ON
    for name, value in more.items():
        setattr(world, name, value)
    return world


async def test_it_is_off_while_it_is_ready_and_on_before_it_goes_back(begin: Begin) -> None:
    world = with_bmc()
    run = await begin(world, power_off_when_ready=True, reason="new fan")
    status = await run.until_phase(Phase.READY)
    assert status.message == "Ready for maintenance: it is switched off"
    assert world.states[-1] is R.MAINTENANCE
    assert world.places("vm-1") != ["kvm-1"]
    assert (world.told, world.power) == ([Action.SOFT], PowerState.OFF)
    # As the sweep and the checks see it.
    world.status = HostStatus.DOWN
    await run.leave()
    assert (world.told, world.power) == ([Action.SOFT, Action.ON], PowerState.ON)
    assert [one.command.reason for one in world.outcomes] == [
        "new fan",
        "leaves its maintenance: new fan",
    ]
    assert (world.state, world.status, world.fence) == (R.ENABLED, HostStatus.UP, None)
    await run.result()


async def test_without_being_asked_nothing_is_switched(begin: Begin) -> None:
    world = with_bmc()
    run = await begin(world)
    status = await run.until_phase(Phase.READY)
    assert status.message == "Ready for maintenance"
    await run.leave()
    assert world.told == []


@pytest.mark.parametrize("more", [{}, {"dry_run": True}])
async def test_without_a_bmc_it_is_refused_before_anything(
    begin: Begin, more: dict[str, Any]
) -> None:
    world = with_bmc(power=None)
    error = await (await begin(world, power_off_when_ready=True, **more)).failure()
    assert error.type == "Conflict"
    assert error.message == "power_off_when_ready: there is none of kvm-1. Nothing was changed."
    assert (world.states, world.lease, world.requests) == ([R.ENABLED], None, [])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"fall_back_to_off": True}, "fall_back_to_off goes with power_off_when_ready only"),
        ({"power_off_when_ready": True, "on_blocker": "keep"}, "not with on_blocker keep"),
        ({"power_off_when_ready": True, "host_is_down": True}, "not with host_is_down"),
    ],
)
async def test_choices_that_exclude_each_other(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HostMaintenanceInput.model_validate({"host": "kvm-1", **asked})


async def test_what_does_not_shut_down_is_ready_all_the_same_and_says_so(begin: Begin) -> None:
    world = with_bmc(deaf=frozenset({Action.SOFT}))
    run = await begin(world, power_off_when_ready=True)
    status = await run.until_phase(Phase.READY)
    assert status.message.startswith("Ready for maintenance, and not switched off: soft of kvm-1")
    assert world.told == [Action.SOFT]
    assert [event.kind for event in world.events] == [
        "maintenance.evacuating",
        "maintenance.not_switched_off",
    ]
    await run.leave()
    # It is on: nothing is sent.
    assert world.told == [Action.SOFT]
    assert world.state is R.ENABLED


async def test_its_power_is_taken_away_if_that_was_asked_for(begin: Begin) -> None:
    world = with_bmc(deaf=frozenset({Action.SOFT}))
    run = await begin(world, power_off_when_ready=True, fall_back_to_off=True)
    status = await run.until_phase(Phase.READY)
    assert status.message == "Ready for maintenance: it is switched off"
    assert world.told == [Action.SOFT, Action.OFF]
    await run.leave()


async def test_with_a_vm_kept_on_purpose_it_stays_on(begin: Begin) -> None:
    world = with_bmc()
    for destination in ("kvm-2", "kvm-3"):
        world.refusals["vm-1", destination] = 9
    run = await begin(world, power_off_when_ready=True)
    await run.until(lambda status: bool(status.questions))
    await run.resolve("vm-1", VmAction.KEEP)
    status = await run.until(lambda status: "kept on purpose" in status.message)
    assert status.message.endswith("vm-1; it stays on as long")
    await run.until(lambda _: world.state is R.ERROR_IN_MAINTENANCE)
    assert world.told == []
    world.refusals.clear()
    await run.resolve("vm-1", VmAction.RETRY)
    await run.until_phase(Phase.READY)
    assert world.told == [Action.SOFT]
    await run.leave()


async def test_whoever_wants_it_back_meanwhile_gets_it_switched_on(begin: Begin) -> None:
    world = with_bmc()
    world.watched.clear()
    run = await begin(world, power_off_when_ready=True)
    await world.watching.wait()
    assert (await run.status()).phase is Phase.SWITCHING
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await run.handle.execute_update("hand_over", HandOverInput(successor="removal/kvm-1"))
    assert isinstance(refused.value.cause, ApplicationError)
    assert "its maintenance is not ready (Switching" in refused.value.cause.message
    leaving = asyncio.create_task(run.leave())
    world.watched.set()
    await leaving
    assert world.told == [Action.SOFT, Action.ON]
    assert (world.state, world.fence) == (R.ENABLED, None)


async def test_one_that_does_not_come_back_stays_out_and_can_be_tried_again(begin: Begin) -> None:
    world = with_bmc()
    run = await begin(world, power_off_when_ready=True)
    await run.until_phase(Phase.READY)
    world.hangs = True
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await run.leave()
    assert isinstance(refused.value.cause, ApplicationError)
    assert "does not answer after 900 s" in refused.value.cause.message
    status = await run.until_phase(Phase.READY)
    assert status.message.startswith("Stays out of service: kvm-1 was switched on")
    assert (world.state, world.fence is None) == (R.MAINTENANCE, False)
    world.hangs = world.silent = False
    await run.leave()
    assert world.told == [Action.SOFT, Action.ON]
    assert world.state is R.ENABLED


async def test_a_bmc_that_does_not_switch_on_is_why_it_stays_out(begin: Begin) -> None:
    world = with_bmc(deaf=frozenset({Action.ON}))
    run = await begin(world, power_off_when_ready=True)
    await run.until_phase(Phase.READY)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await run.leave()
    assert isinstance(refused.value.cause, ApplicationError)
    assert "its BMC has accepted on, and says Off" in refused.value.cause.message
    assert world.state is R.MAINTENANCE
    # Somebody has pressed its button; and its BMC says nothing any more.
    world.power, world.silent = PowerState.UNKNOWN, False
    await run.leave()
    assert world.state is R.ENABLED


async def test_a_host_that_its_bmc_says_is_off_is_switched_on_to_leave(begin: Begin) -> None:
    world = with_bmc(power=PowerState.OFF, silent=True, status=HostStatus.DOWN)
    run = await begin(world, power_off_when_ready=True)
    await run.until_phase(Phase.READY)
    assert world.told == []
    await run.leave()
    assert world.told == [Action.ON]
    assert (world.state, world.status) == (R.ENABLED, HostStatus.UP)


async def test_a_cancel_switches_it_on_too(begin: Begin) -> None:
    world = with_bmc()
    run = await begin(world, power_off_when_ready=True)
    await run.until_phase(Phase.READY)
    await run.handle.cancel()
    while world.lease is not None:
        await asyncio.sleep(0.05)
    assert world.told == [Action.SOFT, Action.ON]
    assert world.state is R.ENABLED
