"""PowerAction and BmcPasswordChange: the real steps on a real inventory, with BMCs in memory."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

from activities.bmc_accounts import BmcAccountActivities
from activities.bmcs import BmcDirectory
from activities.directory import HostDirectory
from activities.holders import Holders
from activities.leases import LeaseActivities
from activities.power import PowerActivities
from contracts.errors import Failed, HostlerError, NotFound, Unavailable
from contracts.leases import LeaseScope, Owner
from contracts.oobm import PowerProblem
from contracts.power import PowerCommand, PowerState
from contracts.power_actions import (
    Action,
    BmcPasswordChangeInput,
    BmcPasswordChangeResult,
    BmcTestInput,
    BmcTestResult,
    BootSeen,
    PowerActionInput,
    PowerActionResult,
    PowerCommandRef,
    PowerOutcome,
    RequirePowerInput,
    WatchPowerInput,
)
from contracts.states import MAINTENANCE_STATES, ResourceState
from contracts.vms import Vm
from drivers.errors import BmcCommandRejected, HostUnreachable, PowerOutcomeUnknown
from drivers.protocols import Boot, HostAccess, Hypervisor, ServiceManager
from inventory import Inventory, SecretBox
from inventory.models import ReservationRow
from tests.databases import sqlite_database
from tests.fake_bmcs import FakeBmc, FakeBmcs, mute, rejected
from tests.inventory.conftest import enabled, ref
from tests.workflows.world import running
from workers.interceptors import HostlerInterceptor
from workers.worker import activities_of
from workflows.bmc_password_change import BmcPasswordChange
from workflows.bmc_test import BmcTest
from workflows.power_action import PowerAction

pytestmark = pytest.mark.asyncio(loop_scope="package")

_BOOTS = (Action.RESET, Action.CYCLE)


@dataclass
class Machine:
    """kvm-1, but for its BMC: its libvirt and its systemd. `silent`: it does not answer;
    `outpaces_bmc`: it does while the BMC still says off."""

    bmc: FakeBmc
    vms: list[Vm] = field(default_factory=list)
    silent: bool = False
    boot_hidden: bool = False
    outpaces_bmc: bool = False

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        self._answer(access)
        return self.vms

    async def boot(self, access: HostAccess) -> Boot:
        self._answer(access)
        if self.boot_hidden:
            raise HostUnreachable(f"{access.name} does not answer.")
        return Boot(boot_id=f"boot-{self.bmc.boots}", complete=True)

    def _answer(self, access: HostAccess) -> None:
        off = self.bmc.state is PowerState.OFF and not self.outpaces_bmc
        if self.silent or off:
            raise HostUnreachable(f"{access.name} does not answer.")


@dataclass
class Site:
    """kvm-1 with its BMC, and a worker."""

    client: Client
    queue: str
    inventory: Inventory
    bmcs: FakeBmcs
    machine: Machine

    @property
    def bmc(self) -> FakeBmc:
        return self.bmcs.of["kvm-1"]

    async def begin(self, action: Action, **more: Any) -> WorkflowHandle[Any, PowerActionResult]:
        return await self.client.start_workflow(
            PowerAction.run,
            PowerActionInput(**{"host": "kvm-1", "action": action, "timeout": 2, **more}),
            id=f"power-{uuid.uuid4()}",
            task_queue=self.queue,
        )

    async def act(self, action: Action, **more: Any) -> PowerActionResult:
        return await (await self.begin(action, **more)).result()

    async def failure(self, action: Action, **more: Any) -> ApplicationError:
        return await failure_of(await self.begin(action, **more))

    async def change_password(self, secret: str | None = None) -> WorkflowHandle[Any, Any]:
        return await self.client.start_workflow(
            BmcPasswordChange.run,
            BmcPasswordChangeInput(host="kvm-1", secret=secret),
            id=f"bmc-password-{uuid.uuid4()}",
            task_queue=self.queue,
        )

    async def look(self, **asked: Any) -> BmcTestResult:
        return await self.client.execute_workflow(
            BmcTest.run,
            BmcTestInput(host="kvm-1", **asked),
            id=f"bmc-test-{uuid.uuid4()}",
            task_queue=self.queue,
        )

    async def put_into(self, state: ResourceState) -> None:
        await self.inventory.hosts.change_state(
            "kvm-1",
            expected=frozenset(ResourceState),
            target=ResourceState.PREPARE_FOR_MAINTENANCE,
            operation="maintenance/kvm-1",
            step="prepare",
            actor="test",
            reason="test",
        )
        if state is not ResourceState.PREPARE_FOR_MAINTENANCE:
            await self.inventory.hosts.change_state(
                "kvm-1",
                expected=MAINTENANCE_STATES,
                target=state,
                operation="maintenance/kvm-1",
                step="go on",
                actor="test",
                reason="test",
            )

    async def messages(self, kind: str = "power.command") -> list[str]:
        events = await self.inventory.events.list(subject="host/kvm-1")
        return [event.message for event in reversed(events) if event.kind == kind]


async def failure_of(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as raised:
        await handle.result()
    assert isinstance(raised.value.cause, ApplicationError), raised.value.cause
    return raised.value.cause


@pytest_asyncio.fixture(loop_scope="package")
async def power(client: Client, tmp_path: Path) -> AsyncIterator[Site]:
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    await enabled(inventory, 1)
    secret = await inventory.secrets.store("bmc_password", "bmc-pw", actor="test")
    await inventory.oobm.configure(
        "kvm-1",
        {"enabled": True, "address": "127.0.1.1", "user": "admin"},
        secret_id=secret,
        replace=True,
        actor="test",
    )
    bmcs = FakeBmcs()
    machine = Machine(bmcs.of["kvm-1"])
    directory = BmcDirectory(inventory, bmcs)
    leases = LeaseActivities(inventory, Holders(inventory, client))
    queue = f"test-{uuid.uuid4()}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=[PowerAction, BmcPasswordChange, BmcTest],
        activities=activities_of(
            leases,
            PowerActivities(
                inventory,
                directory,
                HostDirectory(inventory),
                cast(Hypervisor, machine),
                cast(ServiceManager, machine),
                leases,
            ),
            BmcAccountActivities(inventory, directory, waits=(0.05, 0.05, 0.05)),
        ),
        interceptors=[HostlerInterceptor()],
    ):
        yield Site(client, queue, inventory, bmcs, machine)
    await database.close()


# --- what is done -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        (Action.ON, PowerState.OFF, PowerState.ON),
        (Action.OFF, PowerState.ON, PowerState.OFF),
        (Action.SOFT, PowerState.ON, PowerState.OFF),
        (Action.RESET, PowerState.ON, PowerState.ON),
        (Action.CYCLE, PowerState.ON, PowerState.ON),
    ],
)
async def test_it_is_sent_once_and_proven(
    power: Site, action: Action, before: PowerState, after: PowerState
) -> None:
    power.bmc.state = before
    result = await power.act(action, reason="test")
    assert (result.outcome, result.state, result.sent) == (PowerOutcome.DONE, after, (action,))
    assert power.bmc.commands == [PowerCommand(action.value)]
    assert ("another boot" in result.proof) == (action in _BOOTS)
    known = (await power.inventory.oobm.get("kvm-1")).power
    assert (known.state, known.stale) == (after, False)
    assert await power.messages("power.changed") == []
    (message,) = await power.messages()
    assert message.startswith(f"{action} (test): {before} -> {after}: ")
    assert await power.inventory.leases.find("kvm-1", LeaseScope.POWER) is None


@pytest.mark.parametrize(
    ("action", "state"),
    [
        (Action.ON, PowerState.ON),
        (Action.OFF, PowerState.OFF),
        (Action.SOFT, PowerState.OFF),
    ],
)
async def test_what_is_there_already_is_not_sent(
    power: Site, action: Action, state: PowerState
) -> None:
    power.bmc.state = state
    result = await power.act(action)
    assert (result.outcome, result.state) == (PowerOutcome.THERE_ALREADY, state)
    assert power.bmc.commands == []


@pytest.mark.parametrize("action", _BOOTS)
async def test_a_host_that_is_off_does_not_boot_again(power: Site, action: Action) -> None:
    power.bmc.state = PowerState.OFF
    failure = await power.failure(action)
    assert failure.type == "Conflict"
    assert "hostler power on kvm-1" in failure.message
    assert power.bmc.commands == []


async def test_status_only_asks(power: Site) -> None:
    result = await power.act(Action.STATUS)
    assert (result.outcome, result.state) == (PowerOutcome.OBSERVED, PowerState.ON)
    power.bmc.fails = mute()
    result = await power.act(Action.STATUS)
    assert (result.state, result.proof) == (
        PowerState.UNKNOWN,
        "The BMC of kvm-1 does not answer",
    )
    known = (await power.inventory.oobm.get("kvm-1")).power
    assert known.problem is PowerProblem.UNREACHABLE
    assert power.bmc.commands == []


@pytest.mark.parametrize("action", [Action.STATUS, Action.OFF])
async def test_a_bmc_has_as_long_to_answer_as_the_setting_says(power: Site, action: Action) -> None:
    settings = power.inventory.settings
    await settings.set("outofbandmanagement.sync.interval", 3600, actor="test")
    await settings.set("outofbandmanagement.sync.timeout", 60, actor="test")
    handle = await power.begin(action)
    await handle.result()
    looks = [
        event.activity_task_scheduled_event_attributes
        for event in (await handle.fetch_history()).events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    (look,) = [one for one in looks if one.activity_type.name in {"ask_power", "survey_power"}]
    # The BMC's time-out, what a driver may take longer, and the host itself.
    assert look.start_to_close_timeout.ToTimedelta() >= timedelta(seconds=60 + 5 + 8)
    # One look that begins before the action's time is over, and one after it.
    for watch in [one for one in looks if one.activity_type.name == "watch_power"]:
        longest = timedelta(seconds=2 + 2 * (60 + 5 + 8))
        assert watch.start_to_close_timeout.ToTimedelta() >= longest


# --- what is refused ----------------------------------------------------------------------------

STOPS = [Action.OFF, Action.SOFT, *_BOOTS]


@pytest.mark.parametrize("action", STOPS)
async def test_a_host_that_runs_vms_is_refused(power: Site, action: Action) -> None:
    power.machine.vms = [running("vm-1"), running("vm-2")]
    failure = await power.failure(action)
    assert failure.type == "Conflict"
    assert "vm-1, vm-2" in failure.message
    assert "Nothing was sent" in failure.message
    assert power.bmc.commands == []
    assert await power.inventory.leases.find("kvm-1", LeaseScope.POWER) is None


async def test_a_host_that_does_not_tell_its_vms_is_refused(power: Site) -> None:
    power.machine.silent = True
    failure = await power.failure(Action.OFF)
    assert "does not say which VMs run there" in failure.message
    assert power.bmc.commands == []


async def test_force_goes_through_with_a_warning(power: Site) -> None:
    power.machine.vms = [running("vm-1")]
    result = await power.act(Action.OFF, force=True, reason="smoke")
    assert result.state is PowerState.OFF
    assert any("vm-1" in warning for warning in result.warnings)


async def test_force_needs_a_reason(power: Site) -> None:
    with pytest.raises(ValueError, match="force needs a reason"):
        PowerActionInput(host="kvm-1", action=Action.OFF, force=True, reason=" ")


async def test_a_host_in_maintenance_is_switched_with_a_warning(power: Site) -> None:
    await power.put_into(ResourceState.MAINTENANCE)
    power.machine.silent = True
    result = await power.act(Action.OFF)
    assert result.state is PowerState.OFF
    (warning,) = result.warnings
    assert "kvm-1 is Maintenance" in warning


async def test_a_host_on_its_way_into_maintenance_still_runs_vms(power: Site) -> None:
    await power.put_into(ResourceState.PREPARE_FOR_MAINTENANCE)
    power.machine.vms = [running("vm-1")]
    assert (await power.failure(Action.OFF)).type == "Conflict"


async def test_where_it_is_disabled_nothing_is_asked(power: Site) -> None:
    await power.inventory.oobm.set_zone_switch("zone-1", enabled=False, actor="test")
    for action in (Action.ON, Action.STATUS):
        failure = await power.failure(action)
        assert "zone zone-1" in failure.message
    assert power.bmc.asked == 0


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("login", "LoginRefused"), ("guid", "WrongBmc")],
)
async def test_nothing_is_sent_to_a_bmc_that_is_not_its_own(
    power: Site, fault: str, kind: str
) -> None:
    await power.act(Action.STATUS)
    if fault == "login":
        power.bmc.password = "another"
    else:
        power.bmc.guid = "guid-2"
    failure = await power.failure(Action.OFF)
    assert failure.type == kind
    assert "hostler oobm test kvm-1" in failure.message
    assert power.bmc.commands == []


async def test_nothing_is_sent_to_the_bmc_of_another_host(power: Site) -> None:
    await power.act(Action.STATUS)
    await enabled(power.inventory, 2)
    secret = await power.inventory.secrets.store("bmc_password", "bmc-pw", actor="test")
    await power.inventory.oobm.configure(
        "kvm-2",
        {"enabled": True, "address": "bmc-of-kvm-1.example", "user": "admin"},
        secret_id=secret,
        replace=True,
        actor="test",
    )
    power.bmcs.of["kvm-2"].guid = power.bmc.guid
    failure = await power.failure(Action.RESET, host="kvm-2", force=True, reason="test")
    assert failure.type == "WrongBmc"
    assert "the BMC of kvm-1" in failure.message
    assert power.bmcs.of["kvm-2"].commands == []


# --- what does not come about -------------------------------------------------------------------


@pytest.mark.parametrize("action", [Action.OFF, Action.SOFT, *_BOOTS])
async def test_a_bmc_that_lies_is_told(power: Site, action: Action) -> None:
    power.bmc.lies = True
    failure = await power.failure(action)
    assert failure.type == "PowerUnchanged"
    assert power.bmc.commands == [PowerCommand(action.value)]
    (message,) = await power.messages()
    assert message.startswith(f"{action}: On -> On: ")


async def test_soft_falls_back_to_off_only_if_asked(power: Site) -> None:
    def ignored() -> None:
        power.bmc.lies = len(power.bmc.commands) == 0

    power.bmcs.on_command = ignored
    result = await power.act(Action.SOFT, fall_back_to_off=True)
    assert (result.state, result.sent) == (PowerState.OFF, (Action.SOFT, Action.OFF))
    assert power.bmc.commands == [PowerCommand.SOFT, PowerCommand.OFF]


@pytest.mark.parametrize("action", [Action.OFF, *_BOOTS])
async def test_an_answer_that_is_lost_is_looked_for(power: Site, action: Action) -> None:
    power.bmc.command_fails = PowerOutcomeUnknown("no answer to the command")
    power.bmc.after_effect = True
    assert (await power.act(action)).outcome is PowerOutcome.DONE
    assert power.bmc.commands == [PowerCommand(action.value)]


@pytest.mark.parametrize("action", [Action.OFF, *_BOOTS])
async def test_what_may_have_been_lost_is_not_sent_again(power: Site, action: Action) -> None:
    power.bmc.command_fails = PowerOutcomeUnknown("no answer to the command")
    failure = await power.failure(action)
    assert failure.type == "OutcomeUnknown"
    assert "no answer to the command" in failure.message
    assert power.bmc.commands == []


@pytest.mark.parametrize(
    "error", [TimeoutError(), ConnectionError("bmc-pw"), Unavailable("gone"), Failed("odd")]
)
async def test_what_a_driver_is_not_to_raise_is_an_unknown_outcome(
    power: Site, error: Exception
) -> None:
    """Of a driver from outside: it may have sent it."""
    tries = 0

    def count() -> None:
        nonlocal tries
        tries += 1

    power.bmcs.on_command = count
    power.bmc.command_fails = error
    failure = await power.failure(Action.RESET)
    assert failure.type == "OutcomeUnknown"
    assert f"The driver ipmi has failed over the BMC of kvm-1: {type(error).__name__}" in str(
        failure.message
    )
    assert "bmc-pw" not in failure.message
    assert tries == 1
    (message,) = await power.messages()
    assert "it is not sent again" in message


async def test_a_boot_that_nobody_can_prove_is_said_to_be_so(power: Site) -> None:
    power.machine.boot_hidden = True
    failure = await power.failure(Action.RESET)
    assert failure.type == "OutcomeUnknown"
    assert "accepted, not proven: it had not told its boot before" in failure.message
    power.bmc.command_fails = PowerOutcomeUnknown("no answer to the command")
    assert (await power.failure(Action.RESET)).type == "OutcomeUnknown"


async def test_a_boot_that_nobody_knew_is_proven_by_the_power_that_was_off(power: Site) -> None:
    power.machine.boot_hidden = True
    handle = await power.begin(Action.CYCLE, timeout=20)
    while not power.bmc.commands:
        await pause()
    power.bmc.state = PowerState.OFF
    asked = power.bmc.asked
    while power.bmc.asked < asked + 2:
        await pause()
    power.bmc.state = PowerState.ON
    assert "seen off" in (await handle.result()).proof


async def test_that_it_was_off_outlives_the_worker_that_has_seen_it(power: Site) -> None:
    owner = Owner(workflow_id="power/kvm-1", first_run_id="run-1")
    lease = await power.inventory.leases.acquire("kvm-1", LeaseScope.POWER, owner, "power cycle")
    command = PowerCommandRef(lease=ref(lease), action=Action.CYCLE, generation=1, timeout=60)
    request = WatchPowerInput(command=command, until=datetime.now(UTC) + timedelta(seconds=60))
    said: list[Any] = []
    first = ActivityEnvironment()
    first.on_heartbeat = lambda *details: said.append(details)
    power.bmc.state = PowerState.OFF
    watching = asyncio.ensure_future(first.run(steps_of(power).watch_power, request))
    while not said:
        await pause()
    watching.cancel()
    power.bmc.state = PowerState.ON
    second = ActivityEnvironment()
    second.info = replace(second.info, heartbeat_details=said[-1])
    second.on_heartbeat = lambda *details: said.append(details)
    said.clear()
    seen = await second.run(steps_of(power).watch_power, request)
    assert (seen.state, seen.was_off) == (PowerState.ON, True)
    # A third attempt knows it by this one.
    assert said == [(True,)]


async def test_a_boot_is_not_over_while_the_bmc_says_off(power: Site) -> None:
    """It was asked right before the power came back, and the host right after."""
    owner = Owner(workflow_id="power/kvm-1", first_run_id="run-1")
    lease = await power.inventory.leases.acquire("kvm-1", LeaseScope.POWER, owner, "power cycle")
    command = PowerCommandRef(
        lease=ref(lease), action=Action.CYCLE, generation=1, timeout=60, boot_id="before"
    )
    request = WatchPowerInput(command=command, until=datetime.now(UTC) + timedelta(seconds=60))
    power.bmc.state, power.machine.outpaces_bmc = PowerState.OFF, True
    watching = asyncio.ensure_future(
        ActivityEnvironment().run(steps_of(power).watch_power, request)
    )
    asked = power.bmc.asked
    while power.bmc.asked < asked + 2:
        await pause()
    assert not watching.done()
    power.bmc.state = PowerState.ON
    seen = await watching
    assert (seen.state, seen.boot) == (PowerState.ON, BootSeen.ANOTHER)


@pytest.mark.parametrize("action", _BOOTS)
async def test_a_host_that_does_not_come_back_is_not_taken_for_booted(
    power: Site, action: Action
) -> None:
    def lost() -> None:
        power.machine.silent = True

    power.bmcs.on_command = lost
    failure = await power.failure(action)
    assert failure.type == "OutcomeUnknown"
    assert "accepted, not proven: it has stopped answering" in failure.message
    assert power.bmc.commands == [PowerCommand(action.value)]


async def test_a_command_that_nobody_can_watch_has_an_outcome_all_the_same(power: Site) -> None:
    async def disable() -> None:
        await power.inventory.oobm.set_zone_switch("zone-1", enabled=False, actor="test")

    power.bmc.command_fails = PowerOutcomeUnknown("no answer to the command")
    disabled: list[asyncio.Future[None]] = []
    power.bmcs.on_command = lambda: disabled.append(asyncio.ensure_future(disable()))
    failure = await power.failure(Action.OFF, timeout=20)
    assert failure.type == "OutcomeUnknown"
    assert "disabled: zone zone-1" in failure.message
    (message,) = await power.messages()
    assert message.startswith("off: On -> Unknown: ")


async def test_a_bmc_that_refuses_the_login_meanwhile_is_asked_once_more(power: Site) -> None:
    power.bmc.lies = True

    def change() -> None:
        power.bmc.password = "somebody else's"

    power.bmcs.on_command = change
    failure = await power.failure(Action.OFF, timeout=5)
    assert failure.type == "OutcomeUnknown"
    assert power.bmc.refused_logins == 2


async def test_a_bmc_that_rejects_it_ends_it(power: Site) -> None:
    power.bmc.command_fails = rejected()
    failure = await power.failure(Action.OFF)
    assert failure.type == "BmcCommandRejected"
    assert await power.messages() == [
        "off: The BMC of kvm-1 rejects it: not supported in this state."
    ]


async def test_a_bmc_that_did_not_get_it_is_told_again(power: Site) -> None:
    tries = 0

    def cut() -> None:
        nonlocal tries
        tries += 1
        power.bmc.command_fails = mute() if tries == 1 else None

    power.bmcs.on_command = cut
    assert (await power.act(Action.OFF)).outcome is PowerOutcome.DONE
    assert (tries, power.bmc.commands) == (2, [PowerCommand.OFF])


def vms_arrive(power: Site) -> None:
    power.machine.vms = [running("vm-1")]


def vms_are_hidden(power: Site) -> None:
    power.machine.silent = True


@pytest.mark.parametrize("change", [vms_arrive, vms_are_hidden])
@pytest.mark.parametrize("action", [Action.OFF, *_BOOTS])
async def test_vms_that_come_while_the_bmc_is_silent_are_not_switched_off(
    power: Site, action: Action, change: Callable[[Site], None]
) -> None:
    def cut() -> None:
        power.bmc.command_fails = mute()
        change(power)

    power.bmcs.on_command = cut
    failure = await power.failure(action)
    assert failure.type == "Conflict"
    assert f"{action} was not sent" in failure.message
    assert power.bmc.commands == []
    assert await power.inventory.leases.find("kvm-1", LeaseScope.POWER) is None


async def test_vms_on_their_way_to_the_host_are_waited_for(power: Site) -> None:
    await enabled(power.inventory, 2)
    async with power.inventory.database.writing() as session:
        session.add(
            ReservationRow(
                destination="kvm-1",
                source="kvm-2",
                lease_host="kvm-2",
                epoch=1,
                vm_uuid=str(uuid.uuid4()),
                vm="vm-9",
                memory_mib=1,
                vcpus=1,
            )
        )
    failure = await power.failure(Action.OFF)
    assert failure.type == "Conflict"
    assert "on their way to kvm-1: vm-9" in failure.message
    assert (await power.act(Action.OFF, force=True, reason="test")).state is PowerState.OFF


async def test_a_bmc_that_was_configured_anew_meanwhile_is_not_told(power: Site) -> None:
    async def configure() -> None:
        await power.inventory.oobm.configure(
            "kvm-1", {"address": "127.0.1.9"}, secret_id=None, replace=False, actor="test"
        )

    def cut() -> None:
        power.bmc.command_fails = mute()
        configured.append(asyncio.ensure_future(configure()))

    configured: list[asyncio.Future[None]] = []
    power.bmcs.on_command = cut
    failure = await power.failure(Action.RESET)
    assert failure.type == "Conflict"
    assert "configured anew" in failure.message
    assert power.bmc.commands == []


# --- others -------------------------------------------------------------------------------------


async def test_it_waits_for_whoever_works_on_the_bmc(power: Site) -> None:
    power.bmc.lies = True
    first = await power.begin(Action.OFF, timeout=3)
    while not power.bmc.commands:
        await pause()
    power.bmc.lies = False
    second = await power.begin(Action.OFF, timeout=30)
    assert (await failure_of(first)).type == "PowerUnchanged"
    assert (await second.result()).outcome is PowerOutcome.DONE
    assert power.bmc.commands == [PowerCommand.OFF, PowerCommand.OFF]


async def test_it_does_not_wait_for_ever(power: Site) -> None:
    power.bmc.lies = True
    first = await power.begin(Action.OFF, timeout=20)
    while not power.bmc.commands:
        await pause()
    failure = await power.failure(Action.ON, timeout=1)
    assert failure.type == "LeaseHeld"
    assert first.id in failure.message
    await first.terminate()


async def test_a_lease_of_one_that_was_terminated_is_taken_over(power: Site) -> None:
    gone = Owner(workflow_id=f"power-{uuid.uuid4()}", first_run_id="run-0")
    await power.inventory.leases.acquire("kvm-1", LeaseScope.POWER, gone, "power off")
    assert (await power.act(Action.OFF)).outcome is PowerOutcome.DONE


async def test_cancel_comes_too_late_once_it_was_sent(power: Site) -> None:
    power.bmc.lies = True
    handle = await power.begin(Action.OFF, timeout=3)
    while not power.bmc.commands:
        await pause()
    await handle.cancel()
    assert (await failure_of(handle)).type == "PowerUnchanged"
    assert (await handle.query(PowerAction.status)).cancel_came_late


async def test_after_a_cancel_soft_does_not_fall_back(power: Site) -> None:
    power.bmc.lies = True
    handle = await power.begin(Action.SOFT, fall_back_to_off=True, timeout=3)
    while not power.bmc.commands:
        await pause()
    await handle.cancel()
    assert (await failure_of(handle)).type == "PowerUnchanged"
    assert power.bmc.commands == [PowerCommand.SOFT]


async def test_cancel_before_that_sends_nothing(power: Site) -> None:
    power.bmc.lies = True
    first = await power.begin(Action.OFF, timeout=20)
    while not power.bmc.commands:
        await pause()
    second = await power.begin(Action.RESET, timeout=20)
    while (await second.query(PowerAction.status)).phase != "Queued":
        await pause()
    await second.cancel()
    with pytest.raises(WorkflowFailureError) as raised:
        await second.result()
    assert isinstance(raised.value.cause, CancelledError)
    assert power.bmc.commands == [PowerCommand.OFF]
    await first.terminate()


# --- a look, and another password ---------------------------------------------------------------


async def test_a_look_tells_each_step_and_keeps_nothing(power: Site) -> None:
    look = (await power.look()).look
    assert (look.reachable, look.logged_in, look.power_state) == (True, True, PowerState.ON)
    assert (look.privilege, look.guid, look.problem) == ("administrator", "guid-1", None)
    assert (await power.inventory.oobm.get("kvm-1")).power.observed_at is None
    secret = await power.inventory.secrets.store("bmc_password", "wrong", actor="test")
    look = (await power.look(secret=secret)).look
    assert (look.reachable, look.logged_in, look.power_state) == (True, False, None)
    assert await power.inventory.secrets.reveal_all([secret]) == {}
    power.bmc.fails = mute()
    look = (await power.look()).look
    assert (look.reachable, look.logged_in) == (False, None)
    assert look.problem == "The BMC of kvm-1 does not answer."


async def test_a_look_needs_no_configuration_and_not_that_it_is_enabled(power: Site) -> None:
    await power.inventory.oobm.set_zone_switch("zone-1", enabled=False, actor="test")
    assert (await power.look()).look.power_state is PowerState.ON
    await power.inventory.oobm.forget("kvm-1", actor="test")
    secret = await power.inventory.secrets.store("bmc_password", "bmc-pw", actor="test")
    given = {"address": "198.18.1.11", "user": "admin", "secret": secret}
    assert (await power.look(**given)).look.power_state is PowerState.ON
    assert await power.inventory.oobm.find("kvm-1") is None
    with pytest.raises(WorkflowFailureError) as raised:
        await power.look()
    assert isinstance(raised.value.cause, ApplicationError)
    assert raised.value.cause.type == "NotFound"


async def test_the_stored_password_goes_to_the_stored_address_alone(power: Site) -> None:
    stored = (await power.inventory.oobm.login("kvm-1")).secret_id
    for given, named in (({}, "password"), ({"secret": stored}, "password of a look")):
        with pytest.raises(WorkflowFailureError) as raised:
            await power.look(address="198.18.9.9", user="admin", **given)
        assert isinstance(raised.value.cause, ApplicationError)
        assert raised.value.cause.type == "InvalidInput"
        assert named in raised.value.cause.message
    assert power.bmc.asked == 0
    assert (await power.look()).look.logged_in


async def test_a_look_by_the_stored_configuration_wants_the_known_bmc(power: Site) -> None:
    await power.act(Action.STATUS)
    power.bmc.guid = "guid-2"
    look = (await power.look()).look
    assert (look.logged_in, look.guid) == (None, "guid-2")
    assert look.problem == "Another BMC than that of kvm-1 answers at 127.0.1.1."


async def test_no_secret_but_that_of_a_bmc_goes_to_a_bmc(power: Site) -> None:
    login = (await power.inventory.hosts.login("kvm-1")).secret_id
    with pytest.raises(WorkflowFailureError) as raised:
        await power.look(secret=login, address="198.18.9.9")
    assert isinstance(raised.value.cause, ApplicationError)
    assert raised.value.cause.type == "InvalidInput"
    assert power.bmc.asked == 0
    assert (await power.inventory.secrets.reveal(login)).plaintext == "pw"


async def test_a_new_password_is_set_proven_and_promoted(power: Site) -> None:
    former = (await power.inventory.oobm.login("kvm-1")).secret_id
    result: BmcPasswordChangeResult = await (await power.change_password()).result()
    assert "nothing but the new password" in result.proof
    login = await power.inventory.oobm.login("kvm-1")
    assert login.staged_secret_id is None
    assert (await power.inventory.secrets.reveal(login.secret_id)).plaintext == power.bmc.password
    assert power.bmc.password != "bmc-pw"
    assert await power.inventory.secrets.reveal_all([former]) == {}
    assert power.bmc.refused_logins == 0
    assert power.bmcs.forgotten == ["kvm-1"]
    assert (await power.act(Action.STATUS)).state is PowerState.ON


async def test_a_bmc_that_keeps_its_password_keeps_it_here_too(power: Site) -> None:
    power.bmc.password_fails = rejected()
    secret = await power.inventory.secrets.store("bmc_password", "new", actor="test")
    failure = await failure_of(await power.change_password(secret))
    assert "keeps its old password" in failure.message
    login = await power.inventory.oobm.login("kvm-1")
    assert login.staged_secret_id is None
    assert await power.inventory.secrets.reveal_all([secret]) == {}
    assert (await power.act(Action.STATUS)).state is PowerState.ON


class Blabs(Exception):
    """Of a driver that nobody here has written."""


@pytest.mark.parametrize("kind", [BmcCommandRejected, Blabs])
async def test_a_driver_that_tells_passwords_is_not_quoted(
    power: Site, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    power.bmc.password_fails = kind("'canary-new' in the place of 'bmc-pw' is not good enough")
    secret = await power.inventory.secrets.store("bmc_password", "canary-new", actor="test")
    handle = await power.change_password(secret)
    await failure_of(handle)
    power.bmc.fails = Blabs("no bmc-pw")
    asked = await power.begin(Action.STATUS)
    assert "Blabs: no ********" in (await asked.result()).proof
    told = [str(event) for run in (handle, asked) for event in (await run.fetch_history()).events]
    told += [event.message for event in await power.inventory.events.list()]
    told.append(caplog.text)
    assert any("not good enough" in text for text in told)
    for text in told:
        assert "canary-new" not in text
        assert "bmc-pw" not in text


async def test_a_bmc_that_takes_it_late_is_waited_for(power: Site) -> None:
    power.bmc.late_by = 4
    secret = await power.inventory.secrets.store("bmc_password", "new", actor="test")
    await (await power.change_password(secret)).result()
    login = await power.inventory.oobm.login("kvm-1")
    assert (login.secret_id, login.staged_secret_id) == (secret, None)
    assert power.bmc.password == "new"


def lies(bmc: FakeBmc) -> None:
    bmc.lies_of_passwords = True


def is_busy(bmc: FakeBmc) -> None:
    bmc.password_fails = BmcCommandRejected("It took too long.", details={"code": 0xC3})


@pytest.mark.parametrize("fault", [lies, is_busy])
async def test_what_a_bmc_was_told_is_kept_until_that_is_settled(
    power: Site, fault: Callable[[FakeBmc], None]
) -> None:
    fault(power.bmc)
    former = (await power.inventory.oobm.login("kvm-1")).secret_id
    secret = await power.inventory.secrets.store("bmc_password", "new", actor="test")
    failure = await failure_of(await power.change_password(secret))
    assert failure.type == "OutcomeUnknown"
    assert "Both passwords are kept" in failure.message
    # It lets us in with the old one still.
    assert (await power.inventory.oobm.get("kvm-1")).power.failures == 0
    login = await power.inventory.oobm.login("kvm-1")
    assert (login.secret_id, login.staged_secret_id) == (former, secret)
    assert power.bmc.refused_logins <= 4
    # A look with what counts is not misled, and takes nothing away.
    assert (await power.look()).look.logged_in
    assert (await power.inventory.oobm.login("kvm-1")).staged_secret_id == secret
    power.bmc.password = "new"
    assert (await power.look()).look.logged_in
    login = await power.inventory.oobm.login("kvm-1")
    assert (login.secret_id, login.staged_secret_id) == (secret, None)
    assert await power.inventory.secrets.reveal_all([former]) == {}
    assert await power.messages("oobm.password") == ["the BMC has a new password"]


async def test_refused_logins_are_counted_over_all_attempts(power: Site) -> None:
    """Each attempt ends at a BMC that becomes mute when it has refused one."""
    power.bmc.lies_of_passwords = True
    noticed = 0

    def go_mute(bmc: FakeBmc) -> None:
        nonlocal noticed
        bmc.fails = mute() if bmc.refused_logins > noticed else None
        noticed = bmc.refused_logins

    power.bmcs.on_login = go_mute
    failure = await failure_of(await power.change_password())
    assert failure.type == "OutcomeUnknown"
    assert power.bmc.refused_logins == 4


async def test_refused_logins_are_counted_while_a_former_change_is_settled(power: Site) -> None:
    gone = Owner(workflow_id=f"gone-{uuid.uuid4()}", first_run_id="run-0")
    lease = await power.inventory.leases.acquire("kvm-1", LeaseScope.POWER, gone, "password")
    left = await power.inventory.secrets.store("bmc_password", "half-way", actor="test")
    await power.inventory.oobm.stage_password("kvm-1", left, lease=ref(lease))
    noticed = 0

    def go_mute(bmc: FakeBmc) -> None:
        nonlocal noticed
        bmc.fails = mute() if bmc.refused_logins > noticed else None
        noticed = bmc.refused_logins

    power.bmcs.on_login = go_mute
    failure = await failure_of(await power.change_password())
    assert failure.type == "OutcomeUnknown"
    assert "Both passwords are kept" in failure.message
    assert power.bmc.refused_logins == 4
    known = (await power.inventory.oobm.get("kvm-1")).power
    assert known.problem is PowerProblem.LOGIN_REFUSED
    assert (await power.inventory.oobm.login("kvm-1")).staged_secret_id == left


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
async def test_what_a_former_change_has_left_is_settled_and_does_not_replace_the_given_one(
    power: Site, taken: bool
) -> None:
    gone = Owner(workflow_id=f"gone-{uuid.uuid4()}", first_run_id="run-0")
    lease = await power.inventory.leases.acquire("kvm-1", LeaseScope.POWER, gone, "password")
    left, given = await power.inventory.secrets.store_all(
        [("bmc_password", "half-way"), ("bmc_password", "given")], actor="test"
    )
    await power.inventory.oobm.stage_password("kvm-1", left, lease=ref(lease))
    former = (await power.inventory.oobm.login("kvm-1")).secret_id
    power.bmc.password = "half-way" if taken else power.bmc.password
    await (await power.change_password(given)).result()
    assert power.bmc.password == "given"
    login = await power.inventory.oobm.login("kvm-1")
    assert (login.secret_id, login.staged_secret_id) == (given, None)
    assert await power.inventory.secrets.reveal_all([former, left]) == {}


async def test_one_that_was_set_and_not_promoted_is_found_and_promoted(power: Site) -> None:
    gone = Owner(workflow_id=f"gone-{uuid.uuid4()}", first_run_id="run-0")
    lease = await power.inventory.leases.acquire("kvm-1", LeaseScope.POWER, gone, "password")
    staged = await power.inventory.secrets.store("bmc_password", "half-way", actor="test")
    await power.inventory.oobm.stage_password("kvm-1", staged, lease=ref(lease))
    power.bmc.password = "half-way"
    await (await power.change_password()).result()
    login = await power.inventory.oobm.login("kvm-1")
    assert (login.secret_id, login.staged_secret_id) == (staged, None)
    assert power.bmc.password == "half-way"


async def test_one_that_takes_neither_keeps_both(power: Site) -> None:
    gone = Owner(workflow_id=f"gone-{uuid.uuid4()}", first_run_id="run-0")
    lease = await power.inventory.leases.acquire("kvm-1", LeaseScope.POWER, gone, "password")
    staged = await power.inventory.secrets.store("bmc_password", "half-way", actor="test")
    await power.inventory.oobm.stage_password("kvm-1", staged, lease=ref(lease))
    power.bmc.password = "somebody else's"
    failure = await failure_of(await power.change_password())
    assert "neither" in failure.message
    login = await power.inventory.oobm.login("kvm-1")
    assert login.staged_secret_id == staged
    # Whoever comes next would be refused, too.
    known = (await power.inventory.oobm.get("kvm-1")).power
    assert (known.problem, known.failures) == (PowerProblem.LOGIN_REFUSED, 1)
    both = await power.inventory.secrets.reveal_all([login.secret_id, staged])
    assert len(both) == 2


async def test_a_new_password_that_is_not_there_is_not_proven(power: Site) -> None:
    lease = await power.inventory.leases.acquire(
        "kvm-1", LeaseScope.POWER, Owner(workflow_id="password", first_run_id="run-1"), "password"
    )
    accounts = BmcAccountActivities(power.inventory, BmcDirectory(power.inventory, power.bmcs))
    with pytest.raises(NotFound, match="No new password"):
        await ActivityEnvironment().run(accounts.set_bmc_password, ref(lease))


async def pause() -> None:
    await asyncio.sleep(0.05)


# --- booted from the network --------------------------------------------------------------------


@pytest.mark.parametrize("action", [Action.CYCLE, Action.RESET, Action.ON])
async def test_it_boots_from_the_network_once(power: Site, action: Action) -> None:
    power.bmc.state = PowerState.OFF if action is Action.ON else PowerState.ON
    await power.act(action, network_boot=True)
    assert (power.bmc.boots, power.bmc.network_boots) == (2, 1)
    await power.act(Action.CYCLE)
    assert (power.bmc.boots, power.bmc.network_boots) == (3, 1)


async def test_what_is_not_to_boot_from_the_network_is_not_switched(power: Site) -> None:
    power.bmc.network_fails = rejected()
    error = await power.failure(Action.CYCLE, network_boot=True)
    assert error.type == "BmcCommandRejected"
    assert power.bmc.commands == []


def rejects_the_command(power: Site) -> None:
    power.bmc.command_fails = rejected()


def vms_come(power: Site) -> None:
    power.bmc.command_fails = mute()
    vms_arrive(power)


def loses_the_command(power: Site) -> None:
    power.bmc.command_fails = PowerOutcomeUnknown("no answer to the command")


def accepts_and_does_nothing(power: Site) -> None:
    power.bmc.lies = True


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (rejects_the_command, "BmcCommandRejected"),
        (vms_come, "Conflict"),
        (loses_the_command, "OutcomeUnknown"),
        (accepts_and_does_nothing, "PowerUnchanged"),
    ],
)
async def test_a_boot_from_the_network_that_did_not_come_about_is_taken_back(
    power: Site, fault: Callable[[Site], None], kind: str
) -> None:
    armed: list[bool] = []

    def break_down() -> None:
        armed.append(power.bmc.network_next)
        fault(power)

    power.bmcs.on_command = break_down
    failure = await power.failure(Action.CYCLE, network_boot=True)
    assert failure.type == kind
    assert (armed, power.bmc.network_next) == ([True], False)
    power.bmc.command_fails, power.bmc.lies, power.machine.vms = None, False, []
    power.bmcs.on_command = lambda: None
    await power.act(Action.CYCLE)
    assert power.bmc.network_boots == 0


async def test_an_accepted_boot_from_the_network_is_not_taken_back(power: Site) -> None:
    """Its firmware may need longer than anybody waits."""
    power.machine.boot_hidden = power.bmc.lies = True
    failure = await power.failure(Action.CYCLE, network_boot=True)
    assert "accepted, not proven" in failure.message
    assert power.bmc.network_next


async def test_a_cancel_before_the_boot_from_the_network_takes_it_back(power: Site) -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    power.bmcs.on_network_boot = wait
    handle = await power.begin(Action.CYCLE, network_boot=True)
    while not power.bmc.network_next:
        await pause()
    await handle.cancel()
    gate.set()
    with pytest.raises(WorkflowFailureError) as raised:
        await handle.result()
    assert isinstance(raised.value.cause, CancelledError)
    assert (power.bmc.commands, power.bmc.network_next) == ([], False)
    assert await power.inventory.leases.find("kvm-1", LeaseScope.POWER) is None


@pytest.mark.parametrize("cancel", [False, True])
async def test_a_boot_from_the_network_that_can_not_be_taken_back_is_told(
    power: Site, cancel: bool
) -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    power.bmcs.on_network_boot = wait
    power.bmc.command_fails = power.bmc.clear_fails = rejected()
    handle = await power.begin(Action.CYCLE, network_boot=True)
    while not power.bmc.network_next:
        await pause()
    if cancel:
        await handle.cancel()
    gate.set()
    failure = await failure_of(handle)
    assert failure.type == ("Failed" if cancel else "BmcCommandRejected")
    assert "The next boot of kvm-1 may still be from the network: The BMC of" in failure.message


async def test_what_is_on_does_not_boot(power: Site) -> None:
    result = await power.act(Action.ON, network_boot=True)
    assert result.outcome is PowerOutcome.THERE_ALREADY
    assert not power.bmc.network_next


@pytest.mark.parametrize("action", [Action.OFF, Action.SOFT, Action.STATUS])
async def test_only_what_boots_boots_from_the_network(action: Action) -> None:
    with pytest.raises(ValueError, match="network_boot goes with on, reset and cycle only"):
        PowerActionInput(host="kvm-1", action=action, network_boot=True)


# --- what other operations ask first ------------------------------------------------------------


class NoNetworkBoots:
    """A driver that somebody has made before there was such a thing."""

    def __init__(self, driver: FakeBmcs) -> None:
        self.examine, self.power_state = driver.examine, driver.power_state


def steps_of(power: Site) -> PowerActivities:
    return PowerActivities(
        power.inventory,
        BmcDirectory(power.inventory, power.bmcs),
        HostDirectory(power.inventory),
        cast(Hypervisor, power.machine),
        cast(ServiceManager, power.machine),
        LeaseActivities(power.inventory, Holders(power.inventory, power.client)),
    )


async def refusal_of(power: Site, *, network_boot: bool = False) -> str | None:
    activities = steps_of(power)
    request = RequirePowerInput(host="kvm-1", option="an_option", network_boot=network_boot)
    try:
        use = await ActivityEnvironment().run(activities.require_power, request)
    except HostlerError as error:
        return str(error)
    assert use.boot_timeout == 900
    return None


async def test_what_has_a_bmc_can_be_switched(power: Site) -> None:
    assert await refusal_of(power) is None
    assert await refusal_of(power, network_boot=True) is None
    assert not power.bmc.network_next
    assert power.bmc.commands == []


async def test_a_bmc_that_is_disabled_is_named_with_the_way_out(power: Site) -> None:
    await power.inventory.oobm.set_zone_switch("zone-1", False, actor="test")
    said = await refusal_of(power)
    assert said is not None
    assert said.startswith("an_option: power is switched by out-of-band management, and it is ")
    assert "disabled: of kvm-1 (by zone zone-1). Enable it" in said


async def test_a_host_without_a_bmc_is_named_with_the_way_out(power: Site) -> None:
    await power.inventory.oobm.forget("kvm-1", actor="test")
    said = await refusal_of(power)
    assert said == (
        "an_option: power is switched by out-of-band management, and there is none of kvm-1. "
        "Configure it with `hostler oobm configure kvm-1`, or ask without an_option."
    )


async def test_a_driver_that_can_not_says_so(power: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = NoNetworkBoots(power.bmcs)
    monkeypatch.setattr(power.bmcs, "get", lambda _name: driver)
    assert await refusal_of(power) is None
    said = await refusal_of(power, network_boot=True)
    assert said is not None
    assert "The driver ipmi of the BMC of kvm-1 can't have it boot from the network" in said
    assert "without network_boot" in said
    error = await power.failure(Action.CYCLE, network_boot=True)
    assert error.type == "Conflict"


async def test_a_bmc_that_can_not_says_so(power: Site) -> None:
    power.bmc.network_fails = rejected()
    said = await refusal_of(power, network_boot=True)
    assert said is not None
    assert "not supported" in said


@pytest.mark.parametrize("state", [ResourceState.MAINTENANCE, ResourceState.REMOVED])
async def test_a_silent_host_that_was_emptied_is_switched(
    power: Site, state: ResourceState
) -> None:
    await power.put_into(ResourceState.MAINTENANCE)
    if state is ResourceState.REMOVED:
        await power.inventory.hosts.change_state(
            "kvm-1",
            expected=MAINTENANCE_STATES,
            target=state,
            operation="removal/kvm-1",
            step="begin",
            actor="test",
            reason="test",
        )
    power.machine.silent = True
    assert (await power.act(Action.SOFT)).state is PowerState.OFF
