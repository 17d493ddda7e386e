"""HostReinstallation's decisions, with the activities replaced, and time skipped.

Its steps on a real machine are in test_reinstallation_steps.py.
"""

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
from contracts.allocation import TellHostsInput, TellHostsResult, UntoldHost
from contracts.evacuation import HostEnvironment
from contracts.hosts import Host
from contracts.leases import LeaseRef, Owner
from contracts.maintenance import HostMaintenanceResult
from contracts.power import PowerState
from contracts.power_actions import Action
from contracts.reinstallation import (
    AnswerReinstallationInput,
    AwaitHostKeyInput,
    CommandOutcome,
    HostReinstallationInput,
    HostReinstallationResult,
    KeyTakenAway,
    NewHostKey,
    PinHostKeyInput,
    Question,
    ReturnHostInput,
    RunCommandInput,
    SettleCredentialInput,
    SettledCredential,
    Trust,
    WithdrawTrustInput,
)
from contracts.removal import EffectKind, RemovalSurvey
from contracts.states import HostStatus, Phase, ResourceState
from contracts.steps import (
    FenceInput,
    HostKeyResult,
    HostRef,
    OwnKeyResult,
    PreflightInput,
    PreflightResult,
)
from tests.samples import FINGERPRINT
from tests.workflows.world import World, refusal, running
from workers.interceptors import HostlerInterceptor
from workflows.host_maintenance import HostMaintenance
from workflows.host_reinstallation import HostReinstallation
from workflows.power_action import PowerAction
from workflows.vm_return import VmReturn

pytestmark = pytest.mark.asyncio(loop_scope="package")

R = ResourceState
NEW = HostKeyResult(line="ssh-ed25519 BBBB", sha256="SHA256:" + "N" * 43)


@dataclass
class Site(World):
    """A world whose kvm-1 is to be re-installed.

    Attributes:
        installed: the new installation answers; `overdue`: how often its time is up before.
        commands: exit statuses of the next runs of the command.
        untold: how often it does not take what it is told of its closing.
        packages: they are missing.
        takes_no_key: its sshd lets no key in.
        lost_secret: the credential that was given is gone.
        environment: what the old installation offered, as it is stored.
        held_up: what the installation of the own key waits for.
    """

    installed: bool = True
    overdue: int = 0
    commands: list[int] = field(default_factory=list)
    untold: int = 0
    packages: bool = False
    takes_no_key: bool = False
    lost_secret: bool = False
    withdrawn: bool = False
    pinned: str = FINGERPRINT
    secret: str = "the password"
    environment: HostEnvironment | None = None
    held_up: asyncio.Event | None = None
    calls: list[str] = field(default_factory=list)
    preflights: list[PreflightInput] = field(default_factory=list)

    @activity.defn(name="get_host")
    async def get_host(self, request: HostRef) -> Host:
        found = await super().get_host(request)
        return found.model_copy(
            update={"being_reinstalled": self.withdrawn, "host_key_sha256": self.pinned}
        )

    @activity.defn(name="survey_removal")
    async def survey_removal(self, request: HostRef) -> RemovalSurvey:
        self.calls.append("survey_removal")
        answers = not self.silent and not self.withdrawn
        return RemovalSurvey(
            host=await self.get_host(request),
            answers=answers,
            problem="" if answers else "kvm-1 does not answer.",
            active=tuple(vm.name for vm in self.vms["kvm-1"]) if answers else (),
            last_seen=("vm-9",),
            holder=self.lease,
        )

    @activity.defn(name="run_command")
    async def run_command(self, request: RunCommandInput) -> CommandOutcome:
        self.calls.append(f"run_command {request.attempt}")
        return CommandOutcome(exit_status=self.commands.pop(0), problem=None, output="/jobs/1")

    @activity.defn(name="read_environment")
    async def read_environment(self, request: HostRef) -> HostEnvironment:
        self.calls.append("read_environment")
        assert not self.withdrawn
        return HostEnvironment(networks=frozenset({"default"}))

    @activity.defn(name="withdraw_trust")
    async def withdraw_trust(self, request: WithdrawTrustInput) -> Trust:
        self.calls.append("withdraw_trust")
        assert self.state is R.MAINTENANCE
        if not self.withdrawn:
            self.withdrawn, self.environment = True, request.environment
        return Trust(
            former_sha256=FINGERPRINT,
            pinned_sha256=None,
            secret=self.secret,
            environment=self.environment,
        )

    @activity.defn(name="take_away_key")
    async def take_away_key(self, lease: LeaseRef) -> KeyTakenAway:
        self.calls.append("take_away_key")
        if self.silent:
            raise refusal("HostKeyChanged", "kvm-1 shows another SSH host key.")
        return KeyTakenAway(proof="refused")

    @activity.defn(name="settle_credential")
    async def settle_credential(self, request: SettleCredentialInput) -> SettledCredential:
        self.calls.append("settle_credential")
        if request.secret is not None and not self.lost_secret:
            self.secret = request.secret
        return SettledCredential(secret=self.secret, problem="gone" if self.lost_secret else "")

    @activity.defn(name="await_host_key")
    async def await_host_key(self, request: AwaitHostKeyInput) -> NewHostKey:
        if self.overdue > 0:
            self.overdue -= 1
            return NewHostKey(key=None)
        while not self.installed or NEW.sha256 in request.unlike:
            activity.heartbeat()
            await asyncio.sleep(0.05)
        return NewHostKey(key=NEW)

    @activity.defn(name="preflight_host")
    async def preflight_host(self, request: PreflightInput) -> PreflightResult:
        self.calls.append("preflight_host")
        self.preflights.append(request)
        return PreflightResult(findings=(), lacks_packages=self.packages)

    @activity.defn(name="pin_host_key")
    async def pin_host_key(self, request: PinHostKeyInput) -> None:
        self.calls.append("pin_host_key")
        self.pinned = request.key.sha256
        self.silent = False  # the new installation answers

    @activity.defn(name="install_packages")
    async def install_packages(self, lease: LeaseRef) -> None:
        self.calls.append("install_packages")
        self.packages = False

    @activity.defn(name="install_fence")
    async def install_fence(self, request: FenceInput) -> None:
        self.calls.append("install_fence")
        assert request.stays_up
        self.fence = request.operation

    @activity.defn(name="stage_own_key")
    async def stage_own_key(self, lease: LeaseRef) -> None:
        assert self.fence is not None

    @activity.defn(name="install_own_key")
    async def install_own_key(self, lease: LeaseRef) -> OwnKeyResult:
        if self.held_up is not None:
            self.calls.append("install_own_key")
            await self.held_up.wait()
        return OwnKeyResult(proven=not self.takes_no_key, problem="no keys")

    @activity.defn(name="promote_own_key")
    async def promote_own_key(self, lease: LeaseRef) -> None:
        self.calls.append("promote_own_key")

    @activity.defn(name="drop_own_key")
    async def drop_own_key(self, lease: LeaseRef) -> None:
        self.calls.append("drop_own_key")

    @activity.defn(name="tell_hosts")
    async def tell_hosts(self, request: TellHostsInput) -> TellHostsResult:
        assert self.fence is not None
        if self.untold > 0:
            self.untold -= 1
            return TellHostsResult(
                told=(), untold=(UntoldHost(host="kvm-1", reason="kvm-1 keeps nothing."),)
            )
        return TellHostsResult(told=request.hosts, untold=())

    @activity.defn(name="return_host")
    async def return_host(self, request: ReturnHostInput) -> Host:
        self.calls.append("return_host")
        assert self.fence is None
        self._become(self.before or R.ENABLED, request.reason)
        self.withdrawn, self.status = False, HostStatus.UP
        return await self.get_host(HostRef(host="kvm-1"))


def in_maintenance(**more: Any) -> Site:
    states = [R.DISABLED, R.PREPARE_FOR_MAINTENANCE, R.MAINTENANCE]
    return Site(
        vms={"kvm-1": [], "kvm-2": [], "kvm-3": []},
        states=states,
        before=R.DISABLED,
        fence="maintenance/kvm-1",
        **more,
    )


def in_service(**more: Any) -> Site:
    return Site(vms={"kvm-1": [running("vm-1")], "kvm-2": [], "kvm-3": []}, **more)


Handle = WorkflowHandle[HostReinstallation, HostReinstallationResult]
Begin = Callable[..., Awaitable[Handle]]


@pytest_asyncio.fixture(loop_scope="package")
async def reinstall(client: Client) -> AsyncIterator[Begin]:
    """`await reinstall(site, **input)` starts a re-installation of kvm-1, with the fingerprint
    given unless `input` says otherwise, and a worker of its own."""
    workers: list[Worker] = []

    async def start(site: Site, **asked: Any) -> Handle:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[HostMaintenance, HostReinstallation, PowerAction, VmReturn],
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
            HostReinstallation.run,
            HostReinstallationInput.model_validate(
                {"host": "kvm-1", "host_key_sha256": NEW.sha256, **asked}
            ),
            id=f"reinstallation/kvm-1-{uuid.uuid4()}",
            task_queue=queue,
        )

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


@pytest_asyncio.fixture(loop_scope="package")
async def maintenance(
    client: Client,
) -> AsyncIterator[WorkflowHandle[HostMaintenance, HostMaintenanceResult]]:
    """The maintenance of the usual id that a re-installation starts; ended afterwards."""
    handle = client.get_workflow_handle("maintenance/kvm-1", result_type=HostMaintenanceResult)
    yield handle
    if (await handle.describe()).close_time is None:
        await handle.terminate()


async def until_question(handle: Handle, question: Question) -> Any:
    while (status := await handle.query(HostReinstallation.status)).question is not question:
        await asyncio.sleep(0.05)
    return status


async def let_go(site: Site) -> None:
    """The maintenance has ended by the time its lease is wanted."""
    while site.state is not R.MAINTENANCE:
        await asyncio.sleep(0.02)
    site.closed_holder = site.lease


def kinds(site: Site) -> list[str]:
    return [event.kind for event in site.events]


async def test_from_maintenance_to_what_it_was_before(reinstall: Begin) -> None:
    site = in_maintenance()
    handle = await reinstall(site, reason="disk broken")
    result = await handle.result()
    assert result.resource_state is R.DISABLED
    assert result.host_key_sha256 == NEW.sha256
    assert site.calls == [
        *("survey_removal", "survey_removal", "read_environment", "withdraw_trust"),
        "take_away_key",
        *("settle_credential", "preflight_host", "pin_host_key", "install_fence"),
        *("promote_own_key", "return_host"),
    ]
    (looked,) = site.preflights
    assert looked.known
    assert looked.host_key == NEW
    assert site.lease is None
    assert kinds(site) == ["reinstallation.key_taken"]
    attributes = (await handle.describe()).typed_search_attributes
    told = {pair.key.name: pair.value for pair in attributes}
    assert (told["HostlerHost"], told["HostlerPhase"]) == ("kvm-1", "Done")


async def test_after_a_maintenance_whose_vms_come_back(
    reinstall: Begin, client: Client, maintenance: WorkflowHandle[Any, HostMaintenanceResult]
) -> None:
    site = in_service()
    handle = await reinstall(site, after_maintenance=True, reason="disk broken", return_vms=True)
    await let_go(site)
    result = await handle.result()
    assert result.resource_state is R.ENABLED
    assert site.places("vm-1") != ["kvm-1"]
    ended = await maintenance.result()
    assert ended.handed_over_to == handle.id
    # By an operation of its own; what that does is its own affair.
    back = client.get_workflow_handle("return/kvm-1")
    assert (await back.describe()).workflow_type == "VmReturn"
    await back.terminate()


async def test_a_host_that_is_down_is_taken_out_as_it_is(
    reinstall: Begin, maintenance: WorkflowHandle[Any, HostMaintenanceResult]
) -> None:
    site = in_service()
    site.silent, site.status = True, HostStatus.DISCONNECTED
    handle = await reinstall(site, host_is_down=True)
    await let_go(site)
    result = await handle.result()
    assert result.resource_state is R.ENABLED
    assert result.lost_vms == ("vm-9",)
    assert site.status is HostStatus.UP
    assert "take_away_key" not in site.calls
    assert (await maintenance.result()).handed_over_to is not None


async def test_a_dry_run_lists_and_changes_nothing(reinstall: Begin) -> None:
    site = in_service()
    result = await (await reinstall(site, after_maintenance=True, dry_run=True)).result()
    assert result.effects
    assert (site.calls, site.state, site.lease) == (["survey_removal"], R.ENABLED, None)


async def test_a_key_that_can_not_be_taken_away_is_told(reinstall: Begin) -> None:
    site = in_maintenance(withdrawn=True)
    site.silent = True
    await (await reinstall(site)).result()
    assert kinds(site) == ["reinstallation.key_left"]


async def test_a_command_that_fails_is_tried_again_or_skipped(reinstall: Begin) -> None:
    site = in_maintenance(commands=[1, 2])
    handle = await reinstall(site, command=("efibootmgr", "-n", "3"))
    status = await until_question(handle, Question.COMMAND)
    assert "exit status 1" in status.message
    assert not status.final
    assert not site.withdrawn
    await handle.execute_update("answer", AnswerReinstallationInput())
    while "run_command 2" not in site.calls:
        await asyncio.sleep(0.05)
    status = await until_question(handle, Question.COMMAND)
    assert any("--skip-command" in command for command in status.commands)
    await handle.execute_update("answer", AnswerReinstallationInput(skip_command=True))
    await handle.result()
    assert "run_command 3" not in site.calls


async def test_a_cancel_while_the_command_is_asked_about(reinstall: Begin) -> None:
    site = in_maintenance(commands=[1])
    handle = await reinstall(site, command=("false",))
    await until_question(handle, Question.COMMAND)
    await handle.cancel()
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert isinstance(failed.value.cause, CancelledError)
    assert (site.withdrawn, site.lease, site.state) == (False, None, R.MAINTENANCE)


async def test_packages_are_installed_when_somebody_says_so(reinstall: Begin) -> None:
    site = in_maintenance(packages=True)
    await (await reinstall(site, install_packages=True)).result()
    assert [looked.install_packages for looked in site.preflights] == [True, False]
    assert site.calls.index("pin_host_key") < site.calls.index("install_packages")


async def test_it_is_waited_for_beyond_its_time_with_a_line_each(reinstall: Begin) -> None:
    site = in_maintenance(overdue=2)
    await (await reinstall(site)).result()
    assert kinds(site).count("reinstallation.waits") == 2


async def test_what_goes_wrong_afterwards_is_tried_again(reinstall: Begin) -> None:
    site = in_maintenance(untold=2)
    handle = await reinstall(site)
    await handle.result()
    assert site.calls.count("install_fence") == 3
    assert site.fence is None


async def test_what_the_old_installation_offered_is_to_be_there_again(reinstall: Begin) -> None:
    site = in_maintenance()
    site.missing = "network default"
    handle = await reinstall(site)
    status = await until_question(handle, Question.FINDINGS)
    assert "kvm-1 lacks network default" in status.message
    assert any(command.endswith(" --force") for command in status.commands)
    # No VM starts there before that is settled.
    assert site.fence is not None
    assert "return_host" not in site.calls
    site.missing = ""
    await handle.execute_update("answer", AnswerReinstallationInput())
    assert (await handle.result()).resource_state is R.DISABLED


async def test_what_is_missing_can_be_accepted(reinstall: Begin) -> None:
    site = in_maintenance()
    site.missing = "network default"
    handle = await reinstall(site)
    await until_question(handle, Question.FINDINGS)
    await handle.execute_update("answer", AnswerReinstallationInput(force=True))
    assert (await handle.result()).resource_state is R.DISABLED


async def test_another_one_compares_with_what_the_first_has_seen(reinstall: Begin) -> None:
    site = in_maintenance(
        withdrawn=True, environment=HostEnvironment(networks=frozenset({"default"}))
    )
    site.missing = "network default"
    handle = await reinstall(site)
    await until_question(handle, Question.FINDINGS)
    assert "read_environment" not in site.calls
    await handle.terminate()


async def test_a_server_that_takes_no_keys_is_told(reinstall: Begin) -> None:
    site = in_maintenance(takes_no_key=True)
    result = await (await reinstall(site)).result()
    assert [finding.code for finding in result.findings] == ["own-key-refused"]
    assert "drop_own_key" in site.calls
    assert "reinstallation.warning" in kinds(site)


async def test_a_credential_that_comes_too_late_is_refused(reinstall: Begin) -> None:
    site = in_maintenance(held_up=asyncio.Event())
    handle = await reinstall(site)
    while "install_own_key" not in site.calls:
        await asyncio.sleep(0.05)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update("answer", AnswerReinstallationInput(secret="another"))
    assert "provisioned with the credential that it has" in str(refused.value.cause)
    assert site.held_up is not None
    site.held_up.set()
    await handle.result()
    assert site.secret == "the password"
    assert site.calls.count("promote_own_key") == 1


async def test_a_credential_that_is_gone_is_told(reinstall: Begin) -> None:
    site = in_maintenance(lost_secret=True)
    await (await reinstall(site, secret="gone")).result()
    assert site.preflights[0].secret == "the password"
    assert "reinstallation.credential_lost" in kinds(site)


async def test_nobody_changes_its_passwords_or_certificates_meanwhile(reinstall: Begin) -> None:
    site = in_maintenance(installed=False)
    site.trust = rotation = Owner(workflow_id="rotation/cluster-1", first_run_id="run-0")
    refused = await reinstall(site)
    with pytest.raises(WorkflowFailureError) as failed:
        await refused.result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.type == "LeaseHeld"
    assert "kvm-1 is held by rotation/cluster-1" in failed.value.cause.message
    assert (site.withdrawn, site.lease, site.trust) == (False, None, rotation)

    site.trust = None
    handle = await reinstall(site)
    while (await handle.query(HostReinstallation.status)).phase is not Phase.REINSTALLING:
        await asyncio.sleep(0.05)
    assert site.trust is not None
    assert site.trust.workflow_id == handle.id
    site.installed = True
    await handle.result()
    assert (site.lease, site.trust) == (None, None)


async def test_a_refusal_under_the_lease_gives_it_back(reinstall: Begin) -> None:
    site = in_maintenance()
    site.vms["kvm-1"] = [running("vm-1")]
    handle = await reinstall(site)
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert "VMs run on kvm-1: vm-1" in failed.value.cause.message
    assert (site.withdrawn, site.lease) == (False, None)


async def test_a_maintenance_leaves_it_alone(client: Client, reinstall: Begin) -> None:
    site = in_maintenance(withdrawn=True, installed=False)
    handle = await reinstall(site)
    while (await handle.query(HostReinstallation.status)).phase is not Phase.REINSTALLING:
        await asyncio.sleep(0.05)
    await handle.terminate()
    site.closed_holder = site.lease
    leaving = await client.start_workflow(
        "HostMaintenance",
        {"host": "kvm-1"},
        id=f"maintenance/kvm-1-{uuid.uuid4()}",
        task_queue=(await handle.describe()).task_queue,
    )
    with pytest.raises(WorkflowFailureError) as failed:
        await leaving.result()
    assert "hostler host reinstall kvm-1" in str(failed.value.cause)
    assert (site.state, site.lease) == (R.MAINTENANCE, None)


# --- booted from the network --------------------------------------------------------------------


async def test_it_boots_from_the_network_when_its_trust_was_withdrawn(reinstall: Begin) -> None:
    site = in_maintenance(power=PowerState.ON, installed=False)
    handle = await reinstall(site, network_boot=True, reason="new release")
    while (await handle.query(HostReinstallation.status)).phase is not Phase.REINSTALLING:
        await asyncio.sleep(0.05)
    assert site.withdrawn
    assert site.told == [Action.CYCLE]
    # Right before the cycle.
    assert site.boots_from_network == [0]
    site.installed = True
    result = await handle.result()
    assert any(
        effect.kind is EffectKind.POWER and "boots once from the network" in effect.message
        for effect in result.effects
    )
    assert "reinstallation.network_boot" in kinds(site)


async def test_one_that_is_off_is_switched_on(reinstall: Begin) -> None:
    site = in_maintenance(power=PowerState.OFF, silent=True)
    await (await reinstall(site, network_boot=True, host_is_down=True)).result()
    assert (site.told, site.boots_from_network) == ([Action.ON], [0])


async def test_a_bmc_that_has_no_cycle_switches_off_and_on(reinstall: Begin) -> None:
    site = in_maintenance(power=PowerState.ON, rejected=frozenset({Action.CYCLE}))
    await (await reinstall(site, network_boot=True)).result()
    assert site.told == [Action.OFF, Action.ON]
    # Taken back when the cycle was refused, and set again before it is switched on.
    assert (site.boots_from_network, site.not_from_network) == ([0, 1], [0])


@pytest.mark.parametrize(
    ("power", "why", "said"),
    [
        (None, "", "network_boot: there is none of kvm-1. Nothing was changed."),
        (
            PowerState.ON,
            "The driver x can't. Ask without network_boot.",
            "The driver x can't. Ask without network_boot. Nothing was changed.",
        ),
        (PowerState.ON, "It can't.", "network_boot: It can't. Nothing was changed."),
    ],
)
async def test_what_can_not_boot_from_the_network_is_refused_before_anything(
    reinstall: Begin, power: PowerState | None, why: str, said: str
) -> None:
    site = in_maintenance(power=power, no_network_boot=why)
    handle = await reinstall(site, network_boot=True)
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.message == said
    assert (site.calls, site.withdrawn, site.told) == ([], False, [])


async def test_what_its_bmc_does_not_do_is_a_question(reinstall: Begin) -> None:
    deaf = frozenset({Action.OFF})
    site = in_maintenance(power=PowerState.ON, rejected=frozenset({Action.CYCLE}), deaf=deaf)
    handle = await reinstall(site, network_boot=True)
    status = await until_question(handle, Question.NETWORK_BOOT)
    assert "kvm-1 was not booted from the network: off of kvm-1" in status.message
    assert status.final
    assert "hostler host answer-reinstallation kvm-1 --skip-network-boot" in status.commands
    # It waits: a command to a BMC is not sent again unasked.
    await handle.execute_update("answer", AnswerReinstallationInput())
    while len(site.told) < 2:
        await asyncio.sleep(0.05)
    await until_question(handle, Question.NETWORK_BOOT)
    await handle.execute_update("answer", AnswerReinstallationInput(skip_network_boot=True))
    await handle.result()
    assert site.told == [Action.OFF, Action.OFF]
    assert "reinstallation.network_boot" not in kinds(site)
