"""What a maintenance knows of itself and shows, and the steps that every part of it takes."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.records import RecordActivities
    from contracts.evacuation import EvacuationPlan, HostEnvironment
    from contracts.hosts import Host
    from contracts.leases import LeaseRef
    from contracts.maintenance import (
        HostMaintenanceInput,
        MaintenanceSettings,
        MaintenanceStatus,
    )
    from contracts.states import MAINTENANCE_STATES, Phase, ResourceState
    from contracts.steps import ChangeStateInput
    from workflows import policies
    from workflows.failures import explain, is_absence
    from workflows.maintenance_page import current_details, next_commands
    from workflows.policies import ActivityPolicy
    from workflows.search_attributes import PHASE
    from workflows.vm_board import VmBoard

T = TypeVar("T")

_LONGEST_WAIT_S = 3600
_HOST = "host"


class Leaving(Exception):
    """Somebody wants the host back; the evacuation stops where it is."""


class MaintenanceState:
    """One per workflow. Nothing of it decides what comes next."""

    def __init__(self) -> None:
        self.request: HostMaintenanceInput | None = None
        self.phase = Phase.PLANNING
        self.message = "Reads the host and plans the evacuation"
        self.since = workflow.now()
        self.held: LeaseRef | None = None
        self.known_host: Host | None = None
        self.read_settings: MaintenanceSettings | None = None
        self.cluster = ""
        self.zone = ""
        self.restore = ResourceState.ENABLED
        self.plan: EvacuationPlan | None = None
        self.environment: HostEnvironment | None = None
        self.down = False
        self.vms = VmBoard()
        self.leave_requested = False
        self.leave_problem: str | None = None
        self.steps = 0
        self._troubles: dict[str, str] = {}
        self._recorded: tuple[str, ...] = ()
        self._recording = asyncio.Lock()

    # --- what must be there by now --------------------------------------------------------------

    @property
    def asked(self) -> HostMaintenanceInput:
        """What the maintenance was asked for."""
        if self.request is None:
            raise ApplicationError("The maintenance has not begun yet.", type="Conflict")
        return self.request

    @property
    def name(self) -> str:
        """The host's."""
        return self.asked.host

    @property
    def lease(self) -> LeaseRef:
        """Of the host."""
        if self.held is None:
            raise ApplicationError("The maintenance holds no lease yet.", type="Conflict")
        return self.held

    @property
    def host(self) -> Host:
        """As it was read at the start."""
        if self.known_host is None:
            raise ApplicationError("The host was not read yet.", type="Conflict")
        return self.known_host

    @property
    def settings(self) -> MaintenanceSettings:
        """Of the cluster, as they were read last."""
        if self.read_settings is None:
            raise ApplicationError("The settings were not read yet.", type="Conflict")
        return self.read_settings

    # --- what it shows --------------------------------------------------------------------------

    def enter(self, phase: Phase, message: str) -> None:
        """Where it stands, in one sentence."""
        if phase is not self.phase:
            self.phase = phase
            workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self.message = message
        self.show()

    def show(self) -> None:
        """Bring the page in Temporal's UI up to date."""
        workflow.set_current_details(current_details(self.status()))

    def status(self) -> MaintenanceStatus:
        """The same as data."""
        return MaintenanceStatus(
            host=self.name,
            phase=self.phase,
            reason=self.asked.reason,
            message=self.message,
            since=self.since,
            plan=self.plan,
            vms=self.vms.statuses,
            questions=self.vms.questions,
            leave_problem=self.leave_problem,
            troubles=tuple(self._troubles.values()),
            commands=next_commands(
                self.name, workflow.info().workflow_id, self.phase, self.vms.statuses
            ),
        )

    # --- states of the host ---------------------------------------------------------------------

    async def change_state(
        self, expected: frozenset[ResourceState], target: ResourceState, reason: str
    ) -> None:
        """Compare-and-set the host's resource state."""
        await workflow.execute_activity_method(
            RecordActivities.change_host_state,
            ChangeStateInput(
                lease=self.lease,
                expected=expected,
                target=target,
                step=self.next_step(),
                reason=reason,
            ),
            summary=f"{self.name} becomes {target}",
            **policies.RECORD,
        )

    def next_step(self) -> str:
        """A name by which a repetition of the next change of state is recognized."""
        self.steps += 1
        return f"{workflow.info().run_id}/{self.steps}"

    async def trouble(self, subject: str, reason: str) -> None:
        """Something needs attention: the host is in an error state until that is over."""
        self._troubles[subject] = reason
        self.show()
        await self._record_troubles()

    async def trouble_over(self, subject: str) -> None:
        """The reason has gone away."""
        if self._troubles.pop(subject, None) is not None:
            self.show()
            await self._record_troubles()

    def forget_troubles(self) -> None:
        """The host's state is about to be decided by something else."""
        self._troubles.clear()

    async def _record_troubles(self) -> None:
        """One at a time: what is recorded last must be what is true last."""
        async with self._recording:
            troubles = tuple(self._troubles.values())
            if troubles == self._recorded or self.leave_requested:
                return
            if troubles:
                await self.change_state(
                    MAINTENANCE_STATES,
                    ResourceState.ERROR_IN_PREPARE_FOR_MAINTENANCE,
                    "; ".join(troubles),
                )
            else:
                await self.change_state(
                    MAINTENANCE_STATES,
                    ResourceState.PREPARE_FOR_MAINTENANCE,
                    f"goes on; this is over: {'; '.join(self._recorded)}",
                )
            self._recorded = troubles

    # --- waiting --------------------------------------------------------------------------------

    async def unless_leaving(self, step: Coroutine[Any, Any, T]) -> T:
        """Await `step`, but give it up as soon as somebody wants the host back."""
        task = asyncio.ensure_future(step)
        await workflow.wait_condition(lambda: task.done() or self.leave_requested)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise Leaving

    async def on_host(
        self,
        step: Callable[[ActivityPolicy], Coroutine[Any, Any, T]],
        policy: ActivityPolicy,
        *,
        leaving: bool = False,
    ) -> T:
        """Do a step on the host, however long it is away: an absence is a pause, and after a while
        an error state that says so and ends by itself. `leaving`: it is a part of going back."""
        patience = self.settings.unreachable_timeout
        while True:
            bounded = ActivityPolicy(**policy)
            bounded["schedule_to_close_timeout"] = timedelta(seconds=patience)
            try:
                work = step(bounded)
                result = await (work if leaving else self.unless_leaving(work))
            except ActivityError as error:
                if not is_absence(error):
                    raise
                self.enter(self.phase, f"Waits for {self.name}: {explain(error)}")
                await self.trouble(_HOST, f"{self.name} does not answer: {explain(error)}")
                patience = min(2 * patience, _LONGEST_WAIT_S)
            else:
                await self.trouble_over(_HOST)
                return result
