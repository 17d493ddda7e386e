"""A cluster in memory that answers to the activities' wire names, for tests of workflow logic."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from temporalio import activity
from temporalio.exceptions import ApplicationError

from contracts.evacuation import Candidate, Survey
from contracts.hosts import Host
from contracts.leases import Lease, LeaseRef, Owner
from contracts.states import HostStatus, ResourceState, may_change_to
from contracts.steps import (
    AcquireLeaseInput,
    ChangeStateInput,
    FenceInput,
    HostRef,
    MigrateVmInput,
    MigrateVmResult,
    RemainingVms,
    ShutDownVmInput,
    SurveyInput,
    VmFate,
)
from contracts.vms import Vm, VmState
from tests.samples import host


def refusal(kind: str, message: str) -> ApplicationError:
    """What an activity raises when a system said no."""
    return ApplicationError(message, {}, type=kind, non_retryable=True)


@dataclass
class World:
    """Hosts, their VMs, and what is to go wrong.

    Attributes:
        refusals: (VM, destination) to how often that migration is refused.
        gate: migrations wait until it is set.
        fence_down_fails: how often `take_down_fence` fails.
        silent: kvm-1 does not answer when it is asked for its VMs.
        states: the resource states of kvm-1, in order.
    """

    vms: dict[str, list[Vm]]
    states: list[ResourceState] = field(default_factory=lambda: [ResourceState.ENABLED])
    before: ResourceState | None = None
    status: HostStatus = HostStatus.UP
    fence: str | None = None
    lease: Owner | None = None
    arriving: tuple[str, ...] = ()
    closed_holder: Owner | None = None
    memory_mib: int = 1024
    refusals: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fence_down_fails: int = 0
    silent: bool = False
    shutdown_fails: int = 0
    moving: int = 0
    most_moving: int = 0
    settled: int = 0
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

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
        taken_over = None
        if self.lease is not None and self.lease != request.owner:
            if self.lease != self.closed_holder:
                raise refusal("LeaseHeld", f"{request.host} is held by {self.lease.workflow_id}.")
            taken_over = self.lease
        self.lease = request.owner
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
        if self.lease == lease.owner:
            self.lease = None

    @activity.defn(name="wait_for_arrivals")
    async def wait_for_arrivals(self, request: HostRef) -> None:
        self.arriving = ()

    @activity.defn(name="get_host")
    async def get_host(self, request: HostRef) -> Host:
        return host(
            request.host,
            self.state,
            state_before_maintenance=self.before,
            status=self.status,
            fence=self.fence,
        )

    @activity.defn(name="change_host_state")
    async def change_host_state(self, request: ChangeStateInput) -> Host:
        if self.state not in request.expected:
            raise refusal("Conflict", f"is {self.state}, expected {sorted(request.expected)}")
        if request.target is not self.state:
            if not may_change_to(self.state, request.target):
                raise refusal("Conflict", f"{self.state} can't become {request.target}")
            if self.state in (ResourceState.ENABLED, ResourceState.DISABLED):
                self.before = self.state
            self.states.append(request.target)
        self.reasons.append(request.reason)
        return await self.get_host(HostRef(host=request.lease.host))

    @activity.defn(name="survey_host")
    async def survey_host(self, request: SurveyInput) -> Survey:
        here = self.vms[request.host]
        return Survey(
            host=request.host,
            vms=tuple(vm for vm in here if request.only in (None, vm.uuid)),
            candidates=tuple(
                Candidate(
                    host=name,
                    unsuitable=None,
                    memory_free_mib=self.memory_mib - sum(vm.memory_mib for vm in vms),
                    cpus_free=8,
                )
                for name, vms in self.vms.items()
                if name != request.host
            ),
            max_parallel=2,
        )

    @activity.defn(name="list_remaining_vms")
    async def list_remaining_vms(self, request: HostRef) -> RemainingVms:
        if self.silent:
            raise ApplicationError(f"{request.host} does not answer.", type="HostUnreachable")
        return RemainingVms(vms=tuple(self.vms[request.host]), arriving=self.arriving)

    @activity.defn(name="migrate_vm")
    async def migrate_vm(self, request: MigrateVmInput) -> MigrateVmResult:
        self.moving += 1
        self.most_moving = max(self.most_moving, self.moving)
        try:
            while not self.gate.is_set():
                activity.heartbeat()
                await asyncio.sleep(0.05)
            if self.refusals[request.vm, request.destination] > 0:
                self.refusals[request.vm, request.destination] -= 1
                raise refusal("MigrationRefused", f"{request.destination} has no bridge br-1")
            vm = self._take(request.lease.host, request.uuid)
            self.vms[request.destination].append(vm)
        finally:
            self.moving -= 1
        return MigrateVmResult(
            vm=request.vm, fate=VmFate.MOVED, host=request.destination, seconds=1.5
        )

    @activity.defn(name="settle_migrations")
    async def settle_migrations(self, lease: LeaseRef) -> None:
        self.settled += 1

    @activity.defn(name="shut_down_vm")
    async def shut_down_vm(self, request: ShutDownVmInput) -> MigrateVmResult:
        if self.shutdown_fails > 0:
            self.shutdown_fails -= 1
            raise refusal("ShutdownTimedOut", f"{request.vm} did not power off.")
        self._take(request.lease.host, request.uuid)
        return MigrateVmResult(vm=request.vm, fate=VmFate.SHUT_OFF, host=None)

    @activity.defn(name="put_up_fence")
    async def put_up_fence(self, request: FenceInput) -> None:
        self.fence = request.operation

    @activity.defn(name="take_down_fence")
    async def take_down_fence(self, lease: LeaseRef) -> None:
        if self.fence_down_fails > 0:
            self.fence_down_fails -= 1
            raise refusal("FenceFailed", "The hook still refuses.")
        self.fence = None

    def activities(self) -> list[object]:
        """Everything that a Worker registers."""
        return [
            self.acquire_lease,
            self.release_lease,
            self.wait_for_arrivals,
            self.get_host,
            self.change_host_state,
            self.survey_host,
            self.list_remaining_vms,
            self.migrate_vm,
            self.settle_migrations,
            self.shut_down_vm,
            self.put_up_fence,
            self.take_down_fence,
        ]


def running(name: str, memory_mib: int = 96, **more: object) -> Vm:
    """A VM that can be moved, unless `more` says otherwise."""
    values = {"state": VmState.RUNNING, **more}
    return Vm.model_validate(
        {"name": name, "uuid": f"uuid-{name}", "memory_mib": memory_mib, "vcpus": 1, **values}
    )


def three_hosts(*vms: Vm) -> World:
    """kvm-1 with `vms`, kvm-2 and kvm-3 empty."""
    return World(vms={"kvm-1": list(vms), "kvm-2": [], "kvm-3": []})
