"""A cluster in memory that answers to the activities' wire names, for tests of workflow logic."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from temporalio import activity
from temporalio.exceptions import ApplicationError

from contracts.evacuation import Candidate, Survey
from contracts.hosts import Host
from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
from contracts.maintenance import MaintenanceSettings
from contracts.oobm import HostPower
from contracts.power import PowerState
from contracts.power_actions import (
    SHOULD_BE,
    Action,
    FinishPowerInput,
    PowerCommandRef,
    PowerSeen,
    PowerSent,
    PowerSettings,
    PowerSurvey,
    PowerUse,
    PowerWord,
    RequirePowerInput,
    WatchPowerInput,
)
from contracts.states import HostStatus, ResourceState, may_change_to
from contracts.steps import (
    AcquireLeaseInput,
    AwaitChangeInput,
    AwaitLeaseInput,
    AwaitTicketInput,
    BeginEvacuationInput,
    ChangeStateInput,
    CheckHostInput,
    EventInput,
    FenceInput,
    HostRef,
    MigrateVmInput,
    MigrateVmResult,
    RemainingVms,
    ReturnSurvey,
    ReturnSurveyInput,
    SetStatusInput,
    ShutDownVmInput,
    StartVmInput,
    SurveyInput,
    Ticket,
    VmChange,
    VmFate,
    WatchVmInput,
)
from contracts.vms import Vm, VmState
from tests.samples import WHEN, host


def refusal(kind: str, message: str) -> ApplicationError:
    """What an activity raises when a system said no."""
    return ApplicationError(message, {}, type=kind, non_retryable=True)


def default_settings() -> MaintenanceSettings:
    """As they are when nothing was set."""
    return MaintenanceSettings(
        queue_timeout=86_400,
        unreachable_timeout=120,
        retry_interval=600,
        question_reminder=86_400,
        arrivals_timeout=3_600,
        leave_timeout=180,
        shutdown_timeout=120,
        auto_converge=True,
    )


@dataclass
class World:
    """Hosts, their VMs, and what is to go wrong.

    Attributes:
        refusals: (VM, destination) to how often that migration is refused.
        gate: migrations wait until it is set.
        fence_down_fails: how often `take_down_fence` fails; `fence_up_fails` likewise.
        failures: VM to the errors that its next migrations end with, whatever the destination.
        requests: every migration that was asked for.
        silent: kvm-1 does not answer when it is asked for its VMs.
        mute: kvm-1 does not answer when it is surveyed.
        absent: destinations that do not answer.
        dead: UUIDs of VMs that had crashed.
        ahead: hosts that are out, or come first; it is kvm-1's turn when it is empty.
        out: host to the operation for which it is out of service.
        outdated: how often the plan is out of date when the evacuation is to begin.
        missing: what kvm-1 lacks when it is to go back into service.
        unstartable: VMs that do not start again.
        watch_ends: how often a watch's time is up without a change.
        watching: a power command is watched; `watched`: it is not watched any longer.
        outcomes: of power commands.
        shut_down_after: how many VMs were left on the host after each shutdown.
        changed: set when something has changed about a VM that is watched.
        states: the resource states of kvm-1, in order.
        power: what kvm-1's BMC says; None: it has none.
        told: the commands that it was sent; `boots_from_network`: after how many of them it was
            told to boot from there, and `not_from_network`: not to.
        deaf: it accepts these, and nothing comes of it; `rejected`: it has no such commands.
        no_network_boot: why it can't boot from the network.
        hangs: kvm-1 does not answer when it was switched on.
    """

    vms: dict[str, list[Vm]]
    states: list[ResourceState] = field(default_factory=lambda: [ResourceState.ENABLED])
    before: ResourceState | None = None
    status: HostStatus = HostStatus.UP
    fence: str | None = None
    lease: Owner | None = None
    trust: Owner | None = None
    arriving: tuple[str, ...] = ()
    closed_holder: Owner | None = None
    memory_mib: int = 1024
    refusals: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fence_down_fails: int = 0
    fence_up_fails: int = 0
    failures: dict[str, list[ApplicationError]] = field(default_factory=dict)
    requests: list[MigrateVmInput] = field(default_factory=list)
    silent: bool = False
    mute: bool = False
    dead: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    ahead: tuple[str, ...] = ()
    out: dict[str, str] = field(default_factory=dict)
    outdated: int = 0
    missing: str = ""
    unstartable: frozenset[str] = frozenset()
    shut_off: dict[str, Vm] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watches: list[WatchVmInput] = field(default_factory=list)
    events: list[EventInput] = field(default_factory=list)
    settings: MaintenanceSettings = field(default_factory=default_settings)
    shutdown_fails: int = 0
    shut_down_after: list[int] = field(default_factory=list)
    watch_ends: int = 0
    wanted_fence: str | None = None
    moving: int = 0
    most_moving: int = 0
    settled: int = 0
    reasons: list[str] = field(default_factory=list)
    power: PowerState | None = None
    told: list[Action] = field(default_factory=list)
    boots_from_network: list[int] = field(default_factory=list)
    not_from_network: list[int] = field(default_factory=list)
    deaf: frozenset[Action] = frozenset()
    rejected: frozenset[Action] = frozenset()
    no_network_boot: str = ""
    hangs: bool = False
    watching: asyncio.Event = field(default_factory=asyncio.Event)
    watched: asyncio.Event = field(default_factory=asyncio.Event)
    outcomes: list[FinishPowerInput] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self.watched.set()

    @property
    def state(self) -> ResourceState:
        return self.states[-1]

    def places(self, name: str) -> list[str]:
        """Where a VM is, by this world's own word."""
        return [host for host, vms in self.vms.items() for vm in vms if vm.name == name]

    def _take(self, host: str, uuid: str) -> Vm:
        found = next(vm for vm in self.vms[host] if vm.uuid == uuid)
        self.vms[host].remove(found)
        return found

    @activity.defn(name="acquire_lease")
    async def acquire_lease(self, request: AcquireLeaseInput) -> Lease:
        if request.known and request.host not in self.vms:
            raise refusal("NotFound", f"There is no host {request.host!r}.")
        scope = "trust" if request.scope is LeaseScope.TRUST else "lease"
        holder: Owner | None = getattr(self, scope)
        taken_over = None
        if holder is not None and holder != request.owner:
            if holder != self.closed_holder:
                raise refusal("LeaseHeld", f"{request.host} is held by {holder.workflow_id}.")
            taken_over = holder
        setattr(self, scope, request.owner)
        return Lease(
            host=request.host,
            scope=request.scope,
            owner=request.owner,
            epoch=1,
            purpose=request.purpose,
            taken_over_from=taken_over,
        )

    @activity.defn(name="release_lease")
    async def release_lease(self, lease: LeaseRef) -> None:
        if lease.scope is LeaseScope.TRUST:
            self.trust = None if self.trust == lease.owner else self.trust
        elif self.lease == lease.owner:
            self.lease = None

    @activity.defn(name="await_lease")
    async def await_lease(self, request: AwaitLeaseInput) -> Lease:
        assert request.within_s > 0
        return await World.acquire_lease(self, request.acquire)

    @activity.defn(name="wait_for_arrivals")
    async def wait_for_arrivals(self, request: AwaitChangeInput) -> None:
        self.arriving = ()

    @activity.defn(name="take_ticket")
    async def take_ticket(self, lease: LeaseRef) -> Ticket:
        return Ticket(granted=not self.ahead, ahead=self.ahead, most=1)

    @activity.defn(name="await_ticket")
    async def await_ticket(self, request: AwaitTicketInput) -> Ticket:
        while self.ahead == request.seen.ahead:
            activity.heartbeat()
            await asyncio.sleep(0.05)
        return Ticket(granted=not self.ahead, ahead=self.ahead, most=1)

    @activity.defn(name="await_room")
    async def await_room(self, request: AwaitChangeInput) -> None:
        before = dict(self.out)
        while self.out == before:
            activity.heartbeat()
            await asyncio.sleep(0.05)

    @activity.defn(name="begin_evacuation")
    async def begin_evacuation(self, request: BeginEvacuationInput) -> None:
        if self.outdated > 0:
            self.outdated -= 1
            raise refusal("PlanOutdated", "kvm-2 is PrepareForMaintenance and takes no VM.")
        self._become(ResourceState.PREPARE_FOR_MAINTENANCE, request.reason)

    @activity.defn(name="read_settings")
    async def read_settings(self, request: HostRef) -> MaintenanceSettings:
        return self.settings

    @activity.defn(name="record_event")
    async def record_event(self, request: EventInput) -> None:
        self.events.append(request)

    @activity.defn(name="set_host_status")
    async def set_host_status(self, request: SetStatusInput) -> Host:
        self.status = request.status
        return await self.get_host(HostRef(host=request.lease.host))

    @activity.defn(name="want_fence")
    async def want_fence(self, request: FenceInput) -> None:
        self.wanted_fence = request.operation

    @activity.defn(name="wait_for_host")
    async def wait_for_host(self, request: AwaitChangeInput) -> bool:
        while self.silent:
            if self.hangs:
                return False
            activity.heartbeat()
            await asyncio.sleep(0.05)
        return True

    @activity.defn(name="watch_vm")
    async def watch_vm(self, request: WatchVmInput) -> VmChange:
        """What has changed is told once; a time that is up is not waited for."""
        self.watches.append(request)
        while not self.changed.is_set():
            if not any(vm.uuid == request.uuid for vm in self.vms[request.host]):
                return VmChange.LEFT
            if self.watch_ends > 0:
                self.watch_ends -= 1
                return VmChange.NONE
            activity.heartbeat()
            await asyncio.sleep(0.05)
        self.changed.clear()
        return VmChange.CHANGED

    @activity.defn(name="check_host")
    async def check_host(self, request: CheckHostInput) -> None:
        if self.silent:
            raise ApplicationError(f"{request.host} does not answer.", type="HostUnreachable")
        if self.missing and request.environment is not None:
            raise refusal("HostNotSound", f"{request.host} lacks {self.missing}.")

    @activity.defn(name="start_vm")
    async def start_vm(self, request: StartVmInput) -> MigrateVmResult:
        if request.vm in self.unstartable:
            raise refusal("HypervisorFailed", f"{request.vm} does not start.")
        self.vms[request.lease.host].append(self.shut_off.pop(request.vm))
        return MigrateVmResult(vm=request.vm, fate=VmFate.AT_SOURCE, host=request.lease.host)

    @activity.defn(name="survey_return")
    async def survey_return(self, request: ReturnSurveyInput) -> ReturnSurvey:
        home = self._candidate(request.host)
        return ReturnSurvey(
            surveys=tuple(
                Survey(
                    host=name,
                    vms=tuple(vm for vm in vms if vm.name in request.vms),
                    candidates=(home,),
                    max_parallel=2,
                )
                for name, vms in self.vms.items()
                if name != request.host and any(vm.name in request.vms for vm in vms)
            )
        )

    @activity.defn(name="get_host")
    async def get_host(self, request: HostRef) -> Host:
        return host(
            request.host,
            self.state,
            state_before_maintenance=self.before,
            status=self.status,
            fence=self.fence,
            # What was seen before may be over.
            power=HostPower(state=PowerState.ON) if self.power is not None else None,
        )

    @activity.defn(name="ask_power")
    async def ask_power(self, request: HostRef) -> PowerWord:
        if self.power is None:
            raise refusal("NotFound", f"{request.host} has no out-of-band management.")
        return PowerWord(state=self.power, observed_at=WHEN)

    @activity.defn(name="require_power")
    async def require_power(self, request: RequirePowerInput) -> PowerUse:
        if self.power is None:
            raise refusal("Conflict", f"{request.option}: there is none of {request.host}.")
        if request.network_boot and self.no_network_boot:
            raise refusal("BmcCommandRejected", self.no_network_boot)
        return PowerUse(boot_timeout=900)

    @activity.defn(name="read_power_settings")
    async def read_power_settings(self, request: HostRef) -> PowerSettings:
        await self.ask_power(request)
        return PowerSettings(cluster="cluster-1", zone="zone-1", timeout=60, answer_timeout=10)

    @activity.defn(name="await_power_lease")
    async def await_power_lease(self, request: AwaitLeaseInput) -> Lease:
        asked = request.acquire
        return Lease(
            host=asked.host, scope=asked.scope, owner=asked.owner, epoch=1, purpose=asked.purpose
        )

    @activity.defn(name="survey_power")
    async def survey_power(self, request: HostRef) -> PowerSurvey:
        if self.power in (None, PowerState.UNKNOWN):
            raise refusal("BmcUnreachable", f"The BMC of {request.host} does not answer.")
        return PowerSurvey(
            host=request.host,
            generation=1,
            resource_state=self.state,
            state=self.power,
            observed_at=WHEN,
            vms=None if self.silent else tuple(vm.name for vm in self.vms[request.host]),
        )

    @activity.defn(name="set_network_boot")
    async def set_network_boot(self, lease: LeaseRef) -> None:
        self.boots_from_network.append(len(self.told))

    @activity.defn(name="clear_network_boot")
    async def clear_network_boot(self, lease: LeaseRef) -> None:
        self.not_from_network.append(len(self.told))

    @activity.defn(name="send_power_command")
    async def send_power_command(self, request: PowerCommandRef) -> PowerSent:
        if request.action in self.rejected:
            raise refusal("BmcCommandRejected", f"The BMC does not offer {request.action}.")
        self.told.append(request.action)
        if request.action not in self.deaf:
            self.power = SHOULD_BE[request.action]
            self.silent = self.hangs or self.power is PowerState.OFF
        return PowerSent(accepted=True, sent_at=WHEN)

    @activity.defn(name="watch_power")
    async def watch_power(self, request: WatchPowerInput) -> PowerSeen:
        self.watching.set()
        while not self.watched.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.05)
        action = request.command.action
        return PowerSeen(
            state=self.power or PowerState.UNKNOWN,
            observed_at=WHEN,
            was_off=action is Action.CYCLE and action not in self.deaf,
        )

    @activity.defn(name="finish_power_command")
    async def finish_power_command(self, request: FinishPowerInput) -> None:
        self.outcomes.append(request)

    @activity.defn(name="change_host_state")
    async def change_host_state(self, request: ChangeStateInput) -> Host:
        if self.state not in request.expected:
            raise refusal("Conflict", f"is {self.state}, expected {sorted(request.expected)}")
        self._become(request.target, request.reason)
        return await self.get_host(HostRef(host=request.lease.host))

    def _become(self, target: ResourceState, reason: str) -> None:
        if target is not self.state:
            if not may_change_to(self.state, target):
                raise refusal("Conflict", f"{self.state} can't become {target}")
            if self.state in (ResourceState.ENABLED, ResourceState.DISABLED):
                self.before = self.state
            self.states.append(target)
        self.reasons.append(reason)

    def _unsuitable(self, name: str) -> str | None:
        if name in self.absent:
            return "does not answer: no route to host"
        return f"is out for {self.out[name]}" if name in self.out else None

    def _candidate(self, name: str) -> Candidate:
        used = sum(vm.memory_mib for vm in self.vms[name])
        return Candidate(
            host=name,
            unsuitable=self._unsuitable(name),
            absent=name in self.absent,
            out_for=self.out.get(name),
            memory_free_mib=self.memory_mib - used,
            cpus_free=8,
        )

    @activity.defn(name="survey_host")
    async def survey_host(self, request: SurveyInput) -> Survey:
        if self.mute:
            raise ApplicationError(f"{request.host} does not answer.", type="HostUnreachable")
        here = self.vms[request.host]
        return Survey(
            host=request.host,
            vms=tuple(vm for vm in here if request.only in (None, vm.uuid)),
            candidates=tuple(self._candidate(name) for name in self.vms if name != request.host),
            max_parallel=2,
        )

    @activity.defn(name="list_remaining_vms")
    async def list_remaining_vms(self, request: HostRef) -> RemainingVms:
        if self.silent:
            raise ApplicationError(f"{request.host} does not answer.", type="HostUnreachable")
        alive = tuple(vm for vm in self.vms[request.host] if vm.uuid not in self.dead)
        return RemainingVms(vms=alive, arriving=self.arriving)

    @activity.defn(name="migrate_vm")
    async def migrate_vm(self, request: MigrateVmInput) -> MigrateVmResult:
        self.requests.append(request)
        self.moving += 1
        self.most_moving = max(self.most_moving, self.moving)
        try:
            while not self.gate.is_set():
                activity.heartbeat()
                await asyncio.sleep(0.05)
            if self.refusals[request.vm, request.destination] > 0:
                self.refusals[request.vm, request.destination] -= 1
                raise refusal("MigrationRefused", f"{request.destination} has no bridge br-1")
            if self.failures.get(request.vm):
                raise self.failures[request.vm].pop(0)
            vm = self._take(request.source or request.lease.host, request.uuid)
            self.vms[request.destination].append(vm)
        finally:
            self.moving -= 1
        return MigrateVmResult(
            vm=request.vm, fate=VmFate.MOVED, host=request.destination, seconds=1.5
        )

    @activity.defn(name="settle_migrations")
    async def settle_migrations(self, lease: LeaseRef) -> None:
        if self.silent:
            raise ApplicationError(f"{lease.host} does not answer.", type="HostUnreachable")
        self.settled += 1

    @activity.defn(name="shut_down_vm")
    async def shut_down_vm(self, request: ShutDownVmInput) -> MigrateVmResult:
        if self.shutdown_fails > 0:
            self.shutdown_fails -= 1
            raise refusal("ShutdownTimedOut", f"{request.vm} did not power off.")
        self.shut_off[request.vm] = self._take(request.lease.host, request.uuid)
        self.shut_down_after.append(len(self.vms[request.lease.host]))
        return MigrateVmResult(vm=request.vm, fate=VmFate.SHUT_OFF, host=None)

    @activity.defn(name="put_up_fence")
    async def put_up_fence(self, request: FenceInput) -> None:
        if self.fence_up_fails > 0:
            self.fence_up_fails -= 1
            raise refusal("FenceFailed", "The hook is missing.")
        self.fence = request.operation

    @activity.defn(name="take_down_fence")
    async def take_down_fence(self, lease: LeaseRef) -> None:
        if self.fence_down_fails > 0:
            self.fence_down_fails -= 1
            raise refusal("FenceFailed", "The hook still refuses.")
        self.fence = None

    def activities(self) -> list[object]:
        """Everything that a Worker registers."""
        methods = (getattr(self, name) for name in dir(type(self)) if not name.startswith("_"))
        return [method for method in methods if hasattr(method, "__temporal_activity_definition")]


def running(name: str, memory_mib: int = 96, **more: object) -> Vm:
    """A VM that can be moved, unless `more` says otherwise."""
    values = {"state": VmState.RUNNING, **more}
    return Vm.model_validate(
        {"name": name, "uuid": f"uuid-{name}", "memory_mib": memory_mib, "vcpus": 1, **values}
    )


def three_hosts(*vms: Vm) -> World:
    """kvm-1 with `vms`, kvm-2 and kvm-3 empty."""
    return World(vms={"kvm-1": list(vms), "kvm-2": [], "kvm-3": []})
