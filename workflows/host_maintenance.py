"""HostMaintenance: take a host out of service without stopping a VM, and put it back.

    prepare -> migrate -> ready -> leave

The workflow stays open while the host is out: it is the one place that says why, since when and
for whom. Cancelling it, or the update `leave`, ends the maintenance from any phase.
"""

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.fencing import FencingActivities
    from activities.leases import LeaseActivities
    from activities.power import PowerActivities
    from activities.records import RecordActivities
    from activities.survey import SurveyActivities
    from activities.turns import TurnActivities
    from activities.virtualization import VirtualizationActivities
    from contracts.evacuation import EvacuationPlan, Survey
    from contracts.hosts import Host
    from contracts.leases import Lease, LeaseRef, Owner
    from contracts.maintenance import (
        CarriedMaintenance,
        HandOverInput,
        HandOverResult,
        HostMaintenanceInput,
        HostMaintenanceResult,
        LeaveInput,
        LeaveResult,
        MaintenanceOutcome,
        MaintenanceStatus,
        OnBlocker,
        ResolveVmInput,
        VmAction,
    )
    from contracts.operations import OperationKind, workflow_id
    from contracts.power import PowerState
    from contracts.power_actions import PowerWord
    from contracts.states import MAINTENANCE_STATES, HostStatus, Phase, ResourceState
    from contracts.steps import (
        AcquireLeaseInput,
        AwaitChangeInput,
        AwaitTicketInput,
        BeginEvacuationInput,
        CheckHostInput,
        EventInput,
        FenceInput,
        HostRef,
        SetStatusInput,
        StartVmInput,
        SurveyInput,
        Ticket,
        VmChange,
        VmFate,
        WatchVmInput,
    )
    from contracts.vm_return import VmReturnInput
    from contracts.vms import MigrationState
    from workflows import policies
    from workflows.failures import as_application_error, explain, is_absence
    from workflows.maintenance_power import MaintenancePower
    from workflows.maintenance_state import Leaving, MaintenanceState
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE
    from workflows.vm_board import VmBoard
    from workflows.vm_evacuation import VmEvacuation
    from workflows.vm_return import VmReturn

_IN_SERVICE = frozenset({ResourceState.ENABLED, ResourceState.DISABLED})
_LONGEST_WAIT_S = 3600
# What answers in the place of a host that is down is no answer of its own.
_ANOTHER = "another-installation"
_OFF = "bmc-says-off"
_CONFIRMED = "confirmed by whoever asked for the maintenance"


@workflow.defn(name="HostMaintenance")
class HostMaintenance:
    """One maintenance of one host."""

    def __init__(self) -> None:
        self._state = MaintenanceState()
        self._evacuation = VmEvacuation(self._state)
        self._power = MaintenancePower(self._state)
        self._touched = False
        self._must_be_sound = False
        self._canceled = False
        self._left = False
        self._leave_attempts = 0
        self._leave_error: ApplicationError | None = None
        self._leave_forced = False
        self._return_vms = False
        self._failure: ApplicationError | None = None
        self._successor: str | None = None
        self._is_back = False
        self._is_off = False

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: HostMaintenanceInput) -> HostMaintenanceResult:
        """Returns when the host is back in service, when it was handed over to another operation,
        or when a dry run has its plan."""
        self._state.request = request
        self._return_vms = self._return_vms or request.return_vms
        if request.continued is not None:
            self._resume(request.continued)
            return await self._finish(await self._attempt(self._stand_by()))
        if request.dry_run:
            return await self._dry_run()
        failure = await self._attempt(self._take_out())
        if failure is not None and self._must_be_sound and not self._state.leave_requested:
            failure = await self._attempt(self._hold(failure))
        if failure is None and not self._state.leave_requested:
            await self._hand_over_to_ready()
        return await self._finish(failure)

    async def _dry_run(self) -> HostMaintenanceResult:
        await self._power.require()
        await self._look()
        self._evacuation.plan(await self._first_survey())
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._result(MaintenanceOutcome.PLANNED)

    async def _take_out(self) -> None:
        """Prepare and evacuate."""
        await self._power.require()
        await self._take_lease()
        await self._look()
        adopted = self._state.host.resource_state in MAINTENANCE_STATES
        if self._state.asked.host_is_down or self._is_off:
            if not await self._answers():
                await self._take_out_as_it_is()
                return
            if not adopted:
                raise _conflict(
                    f"{self._state.name} answers, while its BMC says that it is off: is that its "
                    f"own BMC? See `hostler oobm test {self._state.name}`."
                    if self._is_off
                    else f"{self._state.name} answers: it is not down. Start its maintenance "
                    "without host_is_down."
                )
        if adopted:
            await self._adopt()
        else:
            await self._await_turn()
            await self._plan_and_begin()
        await self._put_up_fence()
        await self._empty()
        await self._power.switch_off()

    async def _empty(self) -> None:
        """Until the host is `Maintenance`: no VM is active on it."""
        if workflow.patched("event-evacuating"):
            await self._record_evacuating()
        await self._evacuation.until_empty()
        while self._state.vms.kept:
            await self._hold_with_kept()
            await self._evacuation.until_empty()
        self._state.forget_troubles()
        await self._state.change_state(
            MAINTENANCE_STATES, ResourceState.MAINTENANCE, "no VM is active"
        )

    async def _record_evacuating(self) -> None:
        """For the audit trail: from here on VMs leave the host."""
        plan = self._state.plan
        await workflow.execute_activity_method(
            RecordActivities.record_event,
            EventInput(
                lease=self._state.lease,
                kind="maintenance.evacuating",
                message=f"fenced; {len(plan.moves) if plan else 'its'} VMs leave it",
            ),
            summary=f"{self._state.name} is being emptied",
            **policies.RECORD,
        )

    async def _finish(self, failure: ApplicationError | None) -> HostMaintenanceResult:
        """Put the host back, as often as it takes, and close the way the operation was ended."""
        self._failure = failure
        self._state.vms.withdraw()
        while self._successor is None and not await self._put_back(failure):
            await self._attempt(self._stand_by())
        if self._successor is not None:
            return await self._end_handed_over(self._successor)
        self._left = True
        await workflow.wait_condition(workflow.all_handlers_finished)
        if failure is not None:
            raise failure
        if self._canceled:
            raise asyncio.CancelledError("the maintenance was cancelled; the host is in service")
        return self._result(MaintenanceOutcome.LEFT)

    async def _end_handed_over(self, successor: str) -> HostMaintenanceResult:
        """State, fence and lease stay as they are: the successor takes them over."""
        self._state.enter(Phase.DONE, f"Handed over to {successor}: {self._state.name} stays out")
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._result(MaintenanceOutcome.HANDED_OVER)

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> ApplicationError | None:
        """Run `work` to its end, or until somebody wants the host back. Returns why it had to give
        up, if it had to. A cancel of the workflow means: somebody wants the host back."""
        task = asyncio.create_task(work)
        while not task.done():
            try:
                await workflow.wait_condition(task.done)
            except asyncio.CancelledError:
                self._request_leave(canceled=True)
        try:
            task.result()
        except Leaving:
            return None
        except ActivityError as error:
            return as_application_error(error)
        except ApplicationError as error:
            return error
        return None

    # --- prepare --------------------------------------------------------------------------------

    async def _take_lease(self) -> None:
        info = workflow.info()
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.acquire_lease,
            AcquireLeaseInput(
                host=self._state.name,
                owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
                purpose=f"maintenance: {self._state.asked.reason or 'no reason given'}",
            ),
            summary=f"Lease of {self._state.name}",
            **policies.RECORD,
        )
        self._state.held = LeaseRef(
            host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch
        )
        if lease.taken_over_from is not None:
            self._state.message = (
                f"Takes over from {lease.taken_over_from.workflow_id}, which has ended"
            )
            await self._outlast_predecessor()

    async def _outlast_predecessor(self) -> None:
        """A closed workflow's last activity may still run: it ends at its heartbeat time-out."""
        await workflow.sleep(
            policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
        )

    async def _look(self) -> None:
        state = self._state
        host: Host = await workflow.execute_activity_method(
            RecordActivities.get_host, HostRef(host=state.name), **policies.RECORD
        )
        state.known_host, state.cluster, state.zone = host, host.cluster, host.zone
        state.read_settings = await workflow.execute_activity_method(
            RecordActivities.read_settings, HostRef(host=state.name), **policies.RECORD
        )
        workflow.upsert_search_attributes(
            [
                HOST_NAME.value_set(host.name),
                HOST_CLUSTER.value_set(host.cluster),
                HOST_ZONE.value_set(host.zone),
                PHASE.value_set(state.phase),
            ]
        )
        if host.being_reinstalled:
            raise _conflict(
                f"{host.name} is being re-installed. Go on with that: hostler host reinstall "
                f"{host.name}"
            )
        if host.resource_state in MAINTENANCE_STATES:
            state.restore = host.state_before_maintenance or ResourceState.ENABLED
            # Somebody may be working on it: whatever goes wrong, it does not go back unasked.
            self._touched = self._must_be_sound = True
            return
        if host.resource_state not in _IN_SERVICE:
            raise _conflict(
                f"{host.name} is {host.resource_state}: a maintenance starts from Enabled or "
                "Disabled."
            )
        if host.status is not HostStatus.UP and not state.asked.host_is_down:
            self._is_off = await self._bmc_says_off(host)
        if not (host.status is HostStatus.UP or state.asked.host_is_down or self._is_off):
            raise _conflict(
                f"{host.name} is {host.status}: its VMs can't be moved while it is not Up. If it "
                f"answers again, say so with `hostler host check {host.name}`; if it is known to "
                "be off, take it out as it is with host_is_down."
            )
        state.restore = host.resource_state

    async def _await_turn(self) -> None:
        """So many hosts of the cluster may be out at a time; the next one queues, visibly."""
        state = self._state
        ticket: Ticket = await workflow.execute_activity_method(
            TurnActivities.take_ticket, state.lease, **policies.RECORD
        )
        since = workflow.now()
        while not ticket.granted:
            ahead = ", ".join(ticket.ahead)
            reason = f"{ticket.most} of {state.cluster} may be out at a time, and it is {ahead}"
            left = self._patience_left(since, f"It is not the turn of {state.name}: {reason}.")
            state.enter(Phase.QUEUED, f"Waits for its turn: {reason}")
            ticket = await state.unless_leaving(
                workflow.execute_activity_method(
                    TurnActivities.await_ticket,
                    AwaitTicketInput(lease=state.lease, seen=ticket, within_s=left),
                    summary=f"Whose turn it is in {state.cluster}",
                    **policies.HOST_WAIT,
                )
            )

    async def _plan_and_begin(self) -> None:
        """Until there is a plan that holds: made, checked, and committed to in one step."""
        state, since = self._state, workflow.now()
        survey = await self._first_survey()
        while True:
            plan = self._evacuation.plan(survey)
            state.environment = survey.environment
            if not await self._await_room(plan, since):
                self._refuse_blocked_plan(plan)
                state.enter(Phase.PLANNING, f"{len(plan.moves)} VMs to move")
                if await self._begin(plan, survey):
                    return
            survey = await self._evacuation.survey()

    async def _await_room(self, plan: EvacuationPlan, since: datetime) -> bool:
        """Wait if other hosts of the cluster are out whose return would make room; False: there is
        nothing to wait for."""
        state = self._state
        if not plan.waits_for or state.asked.on_blocker in (OnBlocker.SHUTDOWN, OnBlocker.KEEP):
            return False
        out = ", ".join(plan.waits_for)
        reason = f"there is no room without {out}: {plan.describe_blockers()}"
        left = self._patience_left(since, f"{state.name} can't be evacuated: {reason}")
        state.enter(Phase.QUEUED, f"Waits for {out} to come back: {plan.describe_blockers()}")
        await state.unless_leaving(
            workflow.execute_activity_method(
                SurveyActivities.await_room,
                AwaitChangeInput(host=state.name, within_s=left),
                summary=f"Until {out} is back",
                **policies.HOST_WAIT,
            )
        )
        return True

    def _patience_left(self, since: datetime, refusal: str) -> float:
        """Seconds of waiting at a time. Raises Conflict when it is not to wait, or has for long
        enough."""
        most = timedelta(seconds=self._state.settings.queue_timeout)
        left = (most - (workflow.now() - since)).total_seconds()
        if not self._state.asked.queue or left <= 0:
            raise _conflict(f"{refusal} Nothing was changed.")
        return min(left, _LONGEST_WAIT_S)

    async def _first_survey(self) -> Survey:
        """A host that does not answer at the start refuses the operation soon."""
        try:
            survey: Survey = await self._state.unless_leaving(
                workflow.execute_activity_method(
                    SurveyActivities.survey_host,
                    SurveyInput(host=self._state.name),
                    summary=f"VMs of {self._state.name}, room in its cluster",
                    **policies.FIRST_LOOK,
                )
            )
        except ActivityError as error:
            if not is_absence(error):
                raise
            raise _conflict(
                f"{explain(error)} Nothing was changed. If {self._state.name} is known to be off, "
                "take it out as it is with host_is_down."
            ) from error
        return survey

    def _refuse_blocked_plan(self, plan: EvacuationPlan) -> None:
        refuses = self._state.asked.on_blocker in (OnBlocker.REFUSE, OnBlocker.COPY_STORAGE)
        if not plan.blockers or not refuses:
            return
        raise ApplicationError(
            f"{self._state.name} can't be evacuated, and nothing was changed:\n"
            f"{plan.describe_blockers()}\n"
            "Remove these blockers, or choose with on_blocker: copy_storage (for local disks), "
            "shutdown or keep.",
            {"plan": plan.model_dump(mode="json")},
            type="EvacuationImpossible",
            non_retryable=True,
        )

    async def _begin(self, plan: EvacuationPlan, survey: Survey) -> bool:
        """`PrepareForMaintenance`, with the plan's room set aside. False: others were faster."""
        state = self._state
        wanted = {move.destination for move in plan.moves}
        try:
            await workflow.execute_activity_method(
                TurnActivities.begin_evacuation,
                BeginEvacuationInput(
                    lease=state.lease,
                    moves=plan.moves,
                    seen={
                        candidate.host: candidate.reserved_for
                        for candidate in survey.candidates
                        if candidate.host in wanted
                    },
                    step=state.next_step(),
                    reason="prepares for maintenance",
                ),
                summary=f"{state.name} becomes {ResourceState.PREPARE_FOR_MAINTENANCE}",
                **policies.RECORD,
            )
        except ActivityError as error:
            if as_application_error(error).type != "PlanOutdated":
                raise
            state.enter(Phase.PLANNING, f"Plans again: {explain(error)}")
            return False
        return True

    async def _adopt(self) -> None:
        """Go on from what a predecessor left: its state, its fence, its half-done migrations."""
        state = self._state
        await workflow.execute_activity_method(
            TurnActivities.take_ticket, state.lease, **policies.RECORD
        )
        await state.change_state(
            MAINTENANCE_STATES, ResourceState.PREPARE_FOR_MAINTENANCE, "adopted as it was found"
        )
        await state.on_host(self._settle_migrations, policies.HOST_CHANGE)

    async def _put_up_fence(self) -> None:
        state = self._state
        self._touched = True
        state.enter(Phase.EVACUATING, "The fence goes up")
        await state.on_host(
            lambda policy: workflow.execute_activity_method(
                FencingActivities.put_up_fence,
                FenceInput(lease=state.lease, operation=workflow.info().workflow_id),
                summary=f"Fence of {state.name} up",
                **policy,
            ),
            policies.HOST_CHANGE,
        )

    # --- a host that is down --------------------------------------------------------------------

    async def _take_out_as_it_is(self) -> None:
        """An operator, or the host's BMC, says that it is off. Nothing of it is started
        elsewhere."""
        state = self._state
        self._touched = state.down = True
        self._power.found_off()
        confirmed = "its BMC says that it is off" if self._is_off else _CONFIRMED
        reason = f"{confirmed}, and it does not answer"
        if state.host.status is not HostStatus.DOWN:
            await self._set_status(HostStatus.DOWN, reason)
        await state.change_state(
            _IN_SERVICE | MAINTENANCE_STATES,
            ResourceState.PREPARE_FOR_MAINTENANCE,
            f"is down: {reason}",
        )
        await workflow.execute_activity_method(
            FencingActivities.want_fence,
            FenceInput(lease=state.lease, operation=workflow.info().workflow_id),
            **policies.RECORD,
        )
        await state.change_state(MAINTENANCE_STATES, ResourceState.MAINTENANCE, "is down")

    async def _bmc_says_off(self, host: Host) -> bool:
        """Asked at this moment: what the inventory knows may be over."""
        known = host.power
        if known is None or known.state is PowerState.DISABLED or not workflow.patched(_OFF):
            return False
        try:
            word: PowerWord = await workflow.execute_activity_method(
                PowerActivities.ask_power,
                HostRef(host=host.name),
                summary=f"Does the BMC of {host.name} say that it is off?",
                **policies.FIRST_CONTACT,
            )
        except ActivityError:
            return False
        return word.state is PowerState.OFF

    async def _answers(self) -> bool:
        try:
            await workflow.execute_activity_method(
                SurveyActivities.list_remaining_vms,
                HostRef(host=self._state.name),
                summary=f"Does {self._state.name} answer?",
                **policies.FIRST_CONTACT,
            )
        except ActivityError as error:
            another = as_application_error(error).type == "HostKeyChanged"
            if not is_absence(error) and not (another and workflow.patched(_ANOTHER)):
                raise
            return False
        return True

    async def _guard_until_back(self) -> None:
        """When the host answers again it is fenced at once, and what has started on it by itself
        leaves it like any other VM."""
        state = self._state
        while not await state.unless_leaving(
            workflow.execute_activity_method(
                SurveyActivities.wait_for_host,
                AwaitChangeInput(host=state.name, within_s=_LONGEST_WAIT_S),
                summary=f"Until {state.name} is back",
                **policies.HOST_WAIT,
            )
        ):
            pass
        self._is_back = True
        await self._set_status(HostStatus.UP, "answers again")
        await state.change_state(
            MAINTENANCE_STATES, ResourceState.PREPARE_FOR_MAINTENANCE, "is back, and is fenced"
        )
        self._must_be_sound = True
        await self._put_up_fence()
        await self._empty()
        self._is_back = state.down = False
        state.enter(Phase.READY, "Ready for maintenance")

    async def _show_held(self, problem: ApplicationError) -> None:
        """Out of service it stays, whatever went wrong: only `leave` ends that. Raises LeaseLost:
        whoever took over is in charge."""
        if problem.type == "LeaseLost":
            raise problem
        state = self._state
        reason = f"{state.name} stays out of service: {problem.message}"
        await state.change_state(MAINTENANCE_STATES, ResourceState.ERROR_IN_MAINTENANCE, reason)
        state.enter(Phase.QUESTION, reason)

    async def _set_status(self, status: HostStatus, reason: str) -> None:
        await workflow.execute_activity_method(
            RecordActivities.set_host_status,
            SetStatusInput(lease=self._state.lease, status=status, reason=reason),
            summary=f"{self._state.name} is {status}",
            **policies.RECORD,
        )

    # --- kept VMs -------------------------------------------------------------------------------

    async def _hold_with_kept(self) -> None:
        """Kept VMs run on: the host is never `Maintenance` with them, and says which they are. It
        goes on when one is to move after all, or when one has gone by itself."""
        state = self._state
        kept = [status for status in state.vms.statuses if state.vms.is_kept(status.vm)]
        names = ", ".join(status.vm for status in kept)
        on = "; it stays on as long" if state.asked.power_off_when_ready else ""
        state.enter(Phase.QUESTION, f"Fenced, with VMs kept on purpose: {names}{on}")
        await state.change_state(
            MAINTENANCE_STATES, ResourceState.ERROR_IN_MAINTENANCE, f"VMs kept on purpose: {names}"
        )
        watches = [
            asyncio.create_task(self._until_changed(status.vm, status.uuid)) for status in kept
        ]
        try:
            await state.unless_leaving(
                workflow.wait_condition(
                    lambda: (
                        any(state.vms.has_answer(status.vm) for status in kept)
                        or any(watch.done() for watch in watches)
                    )
                )
            )
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
        for status in kept:
            if state.vms.take_answer(status.vm) is VmAction.RETRY:
                state.vms.note(status.vm, status.uuid, MigrationState.WAITING)
        self._evacuation.forget_plan()
        await state.change_state(
            MAINTENANCE_STATES,
            ResourceState.PREPARE_FOR_MAINTENANCE,
            "a kept VM is to move, or has gone",
        )

    async def _until_changed(self, vm: str, uuid: str) -> None:
        """Until the kept VM has left the host by itself."""
        change = VmChange.NONE
        while change is not VmChange.LEFT:
            change = await workflow.execute_activity_method(
                SurveyActivities.watch_vm,
                WatchVmInput(host=self._state.name, uuid=uuid, within_s=_LONGEST_WAIT_S),
                summary=f"Is {vm} still there?",
                **policies.HOST_WAIT,
            )

    # --- ready ----------------------------------------------------------------------------------

    async def _hand_over_to_ready(self) -> None:
        """Waiting may take months: it starts with a small history and the newest code."""
        state = self._state
        await workflow.wait_condition(
            lambda: state.leave_requested or workflow.all_handlers_finished()
        )
        if state.leave_requested:
            return
        workflow.continue_as_new(
            state.asked.model_copy(
                update={
                    "continued": CarriedMaintenance(
                        lease=state.lease,
                        cluster=state.cluster,
                        zone=state.zone,
                        restore_state=state.restore,
                        since=state.since,
                        vms=state.vms.statuses,
                        plan=state.plan,
                        settings=state.settings,
                        environment=state.environment,
                        down=state.down,
                        power=self._power.carried,
                    )
                }
            )
        )

    def _resume(self, carried: CarriedMaintenance) -> None:
        if workflow.info().continued_run_id is None:
            raise ApplicationError(
                "The input of HostMaintenance is not valid: continued: is Hostler's own field.",
                type="InvalidInput",
                non_retryable=True,
            )
        state = self._state
        state.held = carried.lease
        state.cluster, state.zone = carried.cluster, carried.zone
        state.restore = carried.restore_state
        state.since = carried.since
        state.vms = VmBoard(carried.vms)
        state.plan = carried.plan
        state.read_settings = carried.settings
        state.environment = carried.environment
        state.down = carried.down
        self._power.resume(carried.power)
        self._evacuation = VmEvacuation(state)
        self._touched = True
        state.enter(Phase.READY, self._power.ready)

    async def _stand_by(self) -> None:
        """Wait for `leave`, for Temporal's cancel, which means the same, or for `hand_over`."""
        state = self._state
        while state.down:
            state.enter(Phase.READY, "Ready for maintenance: the host is down")
            try:
                await self._guard_until_back()
            except ActivityError as error:
                problem = as_application_error(error)
                if problem.type == "HostKeyChanged" and workflow.patched(_ANOTHER):
                    # What has come back is not the host that was taken out: nothing is done to it.
                    state.enter(Phase.READY, f"Ready for maintenance: {problem.message}")
                else:
                    await self._show_held(problem)
                await state.unless_leaving(
                    workflow.sleep(
                        state.settings.retry_interval, summary=f"{state.name} is fenced again"
                    )
                )
        await workflow.wait_condition(lambda: state.leave_requested)

    async def _hold(self, failure: ApplicationError) -> None:
        """A host that was out already stays out until somebody wants it back."""
        await self._show_held(failure)
        await workflow.wait_condition(lambda: self._state.leave_requested)

    # --- leave ----------------------------------------------------------------------------------

    async def _put_back(self, failure: ApplicationError | None) -> bool:
        """Give the host back: sound, fence down, its former state, lease released.

        Returns False, with the problem kept for whoever asked to leave, when a check failed: the
        host then stays as it is.
        """
        state = self._state
        rolling_back = state.phase is not Phase.READY
        back = asyncio.create_task(self._restore_host(rolling_back))
        while not back.done():
            try:
                await workflow.wait_condition(back.done)
            except asyncio.CancelledError:
                self._canceled = True
        try:
            back.result()
        except (ActivityError, ApplicationError) as error:
            problem = as_application_error(error) if isinstance(error, ActivityError) else error
            self._leave_error = problem
            state.leave_problem = problem.message
            state.leave_requested = False
            self._leave_attempts += 1
            if problem.type == "LeaseLost":
                # Whoever took over is in charge; there is nothing left to put back.
                self._failure = failure or problem
                self._left = True
                await workflow.wait_condition(workflow.all_handlers_finished)
                raise self._failure from error
            message = f"Stays out of service: {problem.message}"
            state.enter(Phase.READY if not rolling_back else Phase.QUESTION, message)
            return False
        return True

    async def _restore_host(self, rolling_back: bool) -> None:
        state = self._state
        if state.held is None:
            return
        if self._touched:
            phase = Phase.ROLLING_BACK if rolling_back else Phase.LEAVING
            if await self._power.switch_on(phase, self._answers):
                await self._set_status(HostStatus.UP, "is switched on, and answers")
            await self._make_fit(rolling_back)
        if self._touched or state.steps:
            await state.change_state(
                MAINTENANCE_STATES | _IN_SERVICE, state.restore, "back in service"
            )
        await self._start_again()
        await workflow.execute_activity_method(
            LeaseActivities.release_lease, state.lease, **policies.RECORD
        )
        state.enter(Phase.DONE, f"{state.name} is {state.restore}")
        await self._bring_back()

    async def _make_fit(self, rolling_back: bool) -> None:
        """No migration half done, host sound, fence down."""
        state = self._state
        if rolling_back:
            state.enter(Phase.ROLLING_BACK, "Goes back: no migration stays half done")
            if self._must_be_sound or state.down:
                await self._require_sound()
            await state.on_host(self._settle_migrations, policies.HOST_CHANGE, leaving=True)
        else:
            state.enter(Phase.LEAVING, "Checks the host, then takes the fence down")
            await self._require_sound()
        await workflow.execute_activity_method(
            FencingActivities.take_down_fence,
            state.lease,
            summary=f"Fence of {state.name} down",
            **policies.HOST_CHANGE,
        )
        if state.down:
            await self._set_status(HostStatus.UP, "answers again")
            state.down = False

    async def _require_sound(self) -> None:
        """A host that does not answer soon, or lacks what it had, stays out, rather than go into
        service whenever it is next switched on."""
        state = self._state
        policy = policies.ActivityPolicy(**policies.FIRST_LOOK)
        policy["schedule_to_close_timeout"] = timedelta(seconds=state.settings.leave_timeout)
        await workflow.execute_activity_method(
            SurveyActivities.check_host,
            CheckHostInput(
                host=state.name,
                environment=None if self._leave_forced else state.environment,
            ),
            summary=f"Is {state.name} sound?",
            **policy,
        )

    async def _start_again(self) -> None:
        """VMs that were shut down for the maintenance; one that does not start is reported, and
        keeps nothing from going on."""
        state = self._state
        for status in state.vms.statuses:
            if not status.start_again:
                continue
            state.enter(state.phase, f"Starts {status.vm} again")
            try:
                result = await workflow.execute_activity_method(
                    VirtualizationActivities.start_vm,
                    StartVmInput(lease=state.lease, vm=status.vm, uuid=status.uuid),
                    summary=f"Starts {status.vm} again",
                    **policies.FIRST_LOOK,
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                state.vms.note(
                    status.vm, status.uuid, MigrationState.SHUT_OFF, error=explain(error)
                )
            else:
                here = result.fate is VmFate.AT_SOURCE
                state.vms.note(
                    status.vm,
                    status.uuid,
                    MigrationState.RESTARTED if here else MigrationState.MOVED,
                    destination=result.host,
                )

    async def _bring_back(self) -> None:
        """By an operation of its own: what becomes of it fails nothing here."""
        state = self._state
        moved = tuple(
            status.vm for status in state.vms.statuses if status.state is MigrationState.MOVED
        )
        if not self._return_vms or self._canceled or not moved:
            return
        try:
            await workflow.start_child_workflow(
                VmReturn.run,
                VmReturnInput(host=state.name, vms=moved),
                id=workflow_id(OperationKind.RETURN, state.name),
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                static_summary=f"What {workflow.info().workflow_id} has moved comes back",
            )
        except WorkflowAlreadyStartedError:
            workflow.logger.warning("VMs already come back to %s", state.name)

    # --- updates and the query ------------------------------------------------------------------

    @workflow.update(name="leave")
    async def leave(self, asked: LeaveInput) -> LeaveResult:
        """End the maintenance. Completes when the host is back in service; fails with the reason
        when a check failed, and the host then stays out."""
        # It may come in the very first task, before the run itself has begun.
        await workflow.wait_condition(lambda: self._state.request is not None)
        if self._state.asked.dry_run:
            raise _nothing_to_leave()
        if self._successor is not None:
            raise self._handed_over()
        attempts = self._leave_attempts
        if asked.return_vms is not None:
            self._return_vms = asked.return_vms
        self._leave_forced = asked.force
        self._request_leave(canceled=False)
        await workflow.wait_condition(lambda: self._left or self._leave_attempts > attempts)
        problem = self._failure if self._left else self._leave_error
        if problem is not None:
            raise problem
        return LeaveResult(host=self._state.name, resource_state=self._state.restore)

    @leave.validator
    def _check_leave(self, asked: LeaveInput) -> None:
        if self._state.request is not None and self._state.request.dry_run:
            raise _nothing_to_leave()
        if self._successor is not None:
            raise self._handed_over()

    @workflow.update(name="hand_over")
    async def hand_over(self, asked: HandOverInput) -> HandOverResult:
        """Another operation goes on with the host as it is: this one completes at once, and leaves
        it its lease to take over. Only a host that is ready is handed over."""
        await workflow.wait_condition(lambda: self._state.request is not None)
        self._require_ready_for(asked.successor)
        self._successor = asked.successor
        self._state.leave_requested = True
        return HandOverResult(host=self._state.name, lease=self._state.lease)

    @hand_over.validator
    def _check_hand_over(self, asked: HandOverInput) -> None:
        # In the very first task nothing is known yet: the handler itself checks then.
        if self._state.request is not None:
            self._require_ready_for(asked.successor)

    @workflow.update(name="resolve_vm")
    async def resolve_vm(self, answer: ResolveVmInput) -> None:
        """Answer the question about one VM."""
        self._state.vms.answer(answer.vm, answer.action)

    @resolve_vm.validator
    def _check_answer(self, answer: ResolveVmInput) -> None:
        vms = self._state.vms
        if vms.is_kept(answer.vm) and self._state.phase is Phase.QUESTION:
            if answer.action is VmAction.RETRY:
                return
            raise ApplicationError(
                f"{answer.vm} is kept on purpose: only retry applies.", type="Conflict"
            )
        status = vms.find(answer.vm)
        if answer.vm not in vms.questions or status is None:
            waiting = ", ".join(vms.questions) or "none"
            raise ApplicationError(
                f"{answer.vm} waits for no answer; VMs that do: {waiting}.", type="Conflict"
            )
        if answer.action not in status.actions:
            raise ApplicationError(
                f"{answer.action} does not apply to {answer.vm} ({status.error}); what does: "
                f"{', '.join(status.actions)}.",
                type="Conflict",
            )

    @workflow.query(name="status")
    def status(self) -> MaintenanceStatus:
        """Phase, plan, each VM's state with its last error, and what moves it on."""
        return self._state.status()

    # --- bookkeeping ----------------------------------------------------------------------------

    def _require_ready_for(self, successor: str) -> None:
        """Raises Conflict."""
        state = self._state
        if self._successor is not None:
            raise self._handed_over()
        kept = [status.vm for status in state.vms.statuses if state.vms.is_kept(status.vm)]
        if kept:
            reason = f"VMs are kept on it on purpose: {', '.join(kept)}"
        elif state.leave_requested or self._is_back or state.phase is not Phase.READY:
            # One that is back after it was down is fenced and emptied before it is ready again.
            reason = f"its maintenance is not ready ({state.phase}: {state.message})"
        else:
            return
        raise ApplicationError(
            f"{state.name} can't be handed over to {successor}: {reason}. See "
            f"`hostler maintenance status {state.name}`.",
            type="Conflict",
        )

    def _handed_over(self) -> ApplicationError:
        return ApplicationError(
            f"{self._state.name} was handed over to {self._successor}.", type="Conflict"
        )

    def _request_leave(self, *, canceled: bool) -> None:
        self._state.leave_requested = True
        self._state.leave_problem = None
        self._leave_error = None
        self._canceled = self._canceled or canceled

    def _result(self, outcome: MaintenanceOutcome) -> HostMaintenanceResult:
        state = self._state
        resource_state = state.restore
        if outcome is MaintenanceOutcome.PLANNED:
            resource_state = state.host.resource_state
        elif outcome is MaintenanceOutcome.HANDED_OVER:
            resource_state = ResourceState.MAINTENANCE
        return HostMaintenanceResult(
            host=state.name,
            outcome=outcome,
            resource_state=resource_state,
            plan=state.plan,
            vms=state.vms.statuses,
            handed_over_to=self._successor,
        )

    def _settle_migrations(self, policy: policies.ActivityPolicy) -> Coroutine[Any, Any, None]:
        return workflow.execute_activity_method(
            VirtualizationActivities.settle_migrations,
            self._state.lease,
            summary="No migration stays half done",
            **policy,
        )


def _conflict(message: str) -> ApplicationError:
    return ApplicationError(message, type="Conflict", non_retryable=True)


def _nothing_to_leave() -> ApplicationError:
    return ApplicationError("A dry run has nothing to leave.", type="Conflict")
