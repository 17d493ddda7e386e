"""Hosts in memory for tests of ClusterMaintenance: their hooks and reboots, and a workflow that
stands in for HostMaintenance, with its names and handlers."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from pydantic import BaseModel

    from contracts.cluster_maintenance import (
        BootId,
        ClusterPlan,
        HookOutcome,
        PlanClusterInput,
        ReadBootIdInput,
        RebootHostInput,
        RunHookInput,
        RunHookResult,
        Stage,
    )
    from contracts.maintenance import HostMaintenanceResult, LeaveInput, MaintenanceOutcome
    from contracts.power import PowerState
    from contracts.power_actions import (
        PowerActionInput,
        PowerActionResult,
        PowerOutcome,
        PowerWord,
    )
    from contracts.states import Phase, ResourceState
    from contracts.steps import HostRef
    from tests.samples import WHEN
    from tests.workflows.world import refusal


class StandInRequest(BaseModel):
    """Of HostMaintenanceInput what is needed, and whether the host is ready."""

    host: str
    ready: bool = False


class Order(BaseModel):
    """What the world wants of a maintenance that begins."""

    refusal: str | None = None
    question: str | None = None
    queue: str | None = None


@workflow.defn(name="HostMaintenance")
class StandIn:
    """Ready, and a new run, when the world lets it; waits and asks until the signal `answer`."""

    @workflow.init
    def __init__(self, request: StandInRequest) -> None:
        self._host = request.host
        self._phase = Phase.EVACUATING
        self._message = ""
        self._answered = False
        self._left = False

    @workflow.run
    async def run(self, request: StandInRequest) -> HostMaintenanceResult:
        if not request.ready:
            await self._drain(request)
        self._phase = Phase.READY
        await workflow.wait_condition(lambda: self._left)
        await self._tell("end_maintenance")
        await workflow.wait_condition(workflow.all_handlers_finished)
        return HostMaintenanceResult(
            host=request.host,
            outcome=MaintenanceOutcome.LEFT,
            resource_state=ResourceState.ENABLED,
            plan=None,
        )

    async def _drain(self, request: StandInRequest) -> None:
        order = Order.model_validate(await self._tell("begin_maintenance"))
        if order.refusal is not None:
            raise ApplicationError(order.refusal, type="EvacuationImpossible", non_retryable=True)
        if order.queue is not None:
            self._phase, self._message = Phase.QUEUED, order.queue
            await workflow.wait_condition(lambda: self._answered)
            self._phase, self._answered = Phase.EVACUATING, False
        if order.question is not None:
            self._phase, self._message = Phase.QUESTION, order.question
            await workflow.wait_condition(lambda: self._answered)
            self._phase = Phase.EVACUATING
        workflow.continue_as_new(request.model_copy(update={"ready": True}))

    async def _tell(self, name: str) -> object:
        told: object = await workflow.execute_activity(
            name, self._host, start_to_close_timeout=timedelta(seconds=60)
        )
        return told

    @workflow.signal(name="answer")
    def answer(self) -> None:
        self._answered = True

    @workflow.update(name="leave")
    async def leave(self, _: LeaveInput) -> None:
        trouble = await self._tell("may_leave")
        if trouble:
            raise ApplicationError(str(trouble), type="FenceFailed")
        self._left = True

    @workflow.query(name="status")
    def status(self) -> dict[str, str]:
        return {"phase": self._phase, "message": self._message, "a later field": ""}


@workflow.defn(name="PowerAction")
class StandInPower:
    """Does what the world lets a BMC do."""

    @workflow.run
    async def run(self, request: PowerActionInput) -> PowerActionResult:
        state: str = await workflow.execute_activity(
            "switch_power", request, start_to_close_timeout=timedelta(seconds=60)
        )
        return PowerActionResult(
            host=request.host,
            action=request.action,
            outcome=PowerOutcome.DONE,
            state=PowerState(state),
            observed_at=WHEN,
        )


@dataclass
class ClusterWorld:
    """Hosts of a cluster, and what is to go wrong.

    Attributes:
        log: what was done to which host, in order.
        outcomes: (host, stage) to what its next hooks answer: a status, a problem, an error.
        gates: hooks of (host, stage) wait until theirs is set.
        orders: host to what its next maintenances are told.
        troubles: host to why its next attempts to leave fail.
        without: stages for which there is nothing to run.
        lost: hosts that do not answer after a reboot until their BMC has them boot; they are off
            if `lost_off`; with `answering` they answer, and never come to the end of their boot.
        bmc_refuses: why a BMC does not do it.
        powered: what BMCs were told.
    """

    number: int = 3
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    log: list[tuple[str, str]] = field(default_factory=list)
    asked: list[RunHookInput] = field(default_factory=list)
    outcomes: dict[tuple[str, Stage], list[int | str | ApplicationError]] = field(
        default_factory=lambda: defaultdict(list)
    )
    gates: dict[tuple[str, Stage], asyncio.Event] = field(default_factory=dict)
    orders: dict[str, list[Order]] = field(default_factory=lambda: defaultdict(list))
    troubles: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    without: frozenset[Stage] = frozenset()
    boots: dict[str, int] = field(default_factory=lambda: defaultdict(lambda: 1))
    slow_boots: int = 0
    lost: set[str] = field(default_factory=set)
    lost_off: bool = False
    answering: bool = False
    bmc_refuses: ApplicationError | None = None
    powered: list[PowerActionInput] = field(default_factory=list)
    planned: list[PlanClusterInput] = field(default_factory=list)
    plan_error: ApplicationError | None = None
    out: set[str] = field(default_factory=set)
    most_out: int = 0

    @property
    def cluster(self) -> str:
        return f"cluster-{self.token}"

    def host(self, number: int) -> str:
        return f"kvm-{number}-{self.token}"

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(self.host(number) for number in range(1, self.number + 1))

    def of(self, host: str) -> list[str]:
        """What was done to a host, in order."""
        return [what for what, whom in self.log if whom == host]

    def gate(self, number: int, stage: Stage) -> asyncio.Event:
        return self.gates.setdefault((self.host(number), stage), asyncio.Event())

    @activity.defn(name="plan_cluster_maintenance")
    async def plan_cluster_maintenance(self, request: PlanClusterInput) -> ClusterPlan:
        self.planned.append(request)
        if self.plan_error is not None:
            raise self.plan_error
        return ClusterPlan(
            cluster=request.cluster,
            zone="zone-1",
            hosts=request.hosts or self.hosts,
            hook_timeout=1800,
            reboot_timeout=900,
            unreachable_timeout=120,
        )

    @activity.defn(name="run_hook")
    async def run_hook(self, request: RunHookInput) -> RunHookResult:
        if request.stage in self.without:
            return RunHookResult(outcome=None)
        self.log.append((request.stage, request.host))
        self.asked.append(request)
        gate = self.gates.get((request.host, request.stage))
        while gate is not None and not gate.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.05)
        answers = self.outcomes[request.host, request.stage]
        answer = answers.pop(0) if answers else 0
        if isinstance(answer, ApplicationError):
            raise answer
        return RunHookResult(
            outcome=HookOutcome(
                stage=request.stage,
                attempt=request.attempt,
                exit_status=answer if isinstance(answer, int) else None,
                problem=answer if isinstance(answer, str) else None,
            )
        )

    @activity.defn(name="read_boot_id")
    async def read_boot_id(self, request: ReadBootIdInput) -> BootId:
        self.log.append(("read_boot_id", request.host))
        return self._boot_id(request.host)

    @activity.defn(name="reboot_host")
    async def reboot_host(self, request: RebootHostInput) -> BootId:
        assert request.host in self.out
        if self._boot_id(request.host).boot_id == request.boot_id:
            self.log.append(("reboot", request.host))
            self.boots[request.host] += 1
        if request.host in self.lost:
            raise ApplicationError(
                f"{request.host} is not back from its reboot after 900 s.",
                {"answers": self.answering},
                type="RebootTimedOut",
                non_retryable=True,
            )
        if self.slow_boots > 0:
            self.slow_boots -= 1
            raise refusal("RebootTimedOut", f"{request.host} is not back.")
        return self._boot_id(request.host)

    @activity.defn(name="ask_power")
    async def ask_power(self, request: HostRef) -> PowerWord:
        off = self.lost_off and request.host in self.lost
        return PowerWord(state=PowerState.OFF if off else PowerState.ON, observed_at=WHEN)

    @activity.defn(name="switch_power")
    async def switch_power(self, request: PowerActionInput) -> PowerState:
        assert request.host in self.out
        self.log.append((f"power {request.action}", request.host))
        self.powered.append(request)
        if self.bmc_refuses is not None:
            raise self.bmc_refuses
        self.lost.discard(request.host)
        self.boots[request.host] += 1
        return PowerState.ON

    def _boot_id(self, host: str) -> BootId:
        return BootId(boot_id=f"boot-{self.boots[host]}-of-{host}")

    @activity.defn(name="begin_maintenance")
    async def begin_maintenance(self, host: str) -> Order:
        order = self.orders[host].pop(0) if self.orders[host] else Order()
        if order.refusal is None:
            self.log.append(("drain", host))
            self.out.add(host)
            self.most_out = max(self.most_out, len(self.out))
        return order

    @activity.defn(name="may_leave")
    async def may_leave(self, host: str) -> str:
        return self.troubles[host].pop(0) if self.troubles[host] else ""

    @activity.defn(name="end_maintenance")
    async def end_maintenance(self, host: str) -> None:
        self.log.append(("leave", host))
        self.out.discard(host)

    def activities(self) -> list[Callable[..., Any]]:
        """Everything that a Worker registers, but what goes through Temporal's client."""
        return [
            self.plan_cluster_maintenance,
            self.run_hook,
            self.read_boot_id,
            self.reboot_host,
            self.ask_power,
            self.switch_power,
            self.begin_maintenance,
            self.may_leave,
            self.end_maintenance,
        ]
