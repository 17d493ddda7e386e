"""HostMaintenance: take a host out of service without stopping a VM, and put it back.

    prepare -> migrate -> ready -> leave

The workflow stays open while the host is out: it is the one place that says why, since when and
for whom. Cancelling it, or the update `leave`, ends the maintenance from any phase.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.fencing import FencingActivities
    from activities.leases import LeaseActivities
    from activities.records import RecordActivities
    from activities.virtualization import VirtualizationActivities
    from contracts.evacuation import EvacuationPlan, Survey
    from contracts.hosts import Host
    from contracts.leases import Lease, LeaseRef, Owner
    from contracts.maintenance import (
        CarriedMaintenance,
        HostMaintenanceInput,
        HostMaintenanceResult,
        LeaveInput,
        LeaveResult,
        MaintenanceOutcome,
        MaintenanceStatus,
        OnBlocker,
        ResolveVmInput,
        VmAction,
        VmStatus,
    )
    from contracts.states import MAINTENANCE_STATES, HostStatus, Phase, ResourceState
    from contracts.steps import (
        AcquireLeaseInput,
        ChangeStateInput,
        FenceInput,
        HostRef,
        MigrateVmInput,
        MigrateVmResult,
        ShutDownVmInput,
        SurveyInput,
        VmFate,
    )
    from contracts.vms import MigrationState, Vm
    from workflows import policies
    from workflows.evacuation import intrinsic_blocker, plan_evacuation
    from workflows.failures import as_application_error, explain
    from workflows.maintenance_page import current_details, next_commands
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE

T = TypeVar("T")

_IN_SERVICE = frozenset({ResourceState.ENABLED, ResourceState.DISABLED})
_OPEN_STATES = frozenset({MigrationState.WAITING, MigrationState.MIGRATING, MigrationState.FAILED})
_FATES = {
    VmFate.MOVED: MigrationState.MOVED,
    VmFate.SHUT_OFF: MigrationState.SHUT_OFF,
    VmFate.GONE: MigrationState.GONE,
}


class _Leaving(Exception):
    """Somebody wants the host back; the evacuation stops where it is."""


class _Gone(Exception):
    """The VM is not on the host any more: its owner stopped it or moved it."""


@workflow.defn(name="HostMaintenance")
class HostMaintenance:
    """One maintenance of one host."""

    def __init__(self) -> None:
        self._request: HostMaintenanceInput | None = None
        self._phase = Phase.PLANNING
        self._message = "Reads the host and plans the evacuation"
        self._since = workflow.now()
        self._lease: LeaseRef | None = None
        self._host: Host | None = None
        self._cluster = ""
        self._zone = ""
        self._restore = ResourceState.ENABLED
        self._plan: EvacuationPlan | None = None
        self._survey: Survey | None = None
        self._vms: dict[str, VmStatus] = {}
        self._answers: dict[str, VmAction] = {}
        self._answered: set[str] = set()
        self._touched = False
        self._steps = 0
        self._leave_requested = False
        self._canceled = False
        self._left = False
        self._leave_attempts = 0
        self._leave_problem: ApplicationError | None = None
        self._failure: ApplicationError | None = None

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: HostMaintenanceInput) -> HostMaintenanceResult:
        """Returns when the host is back in service, or when a dry run has its plan."""
        self._request = request
        if request.continued is not None:
            self._resume(request.continued)
            await self._until_leave()
            return await self._finish(None)
        if request.dry_run:
            return await self._dry_run()
        failure = await self._take_out()
        if failure is None and not self._leave_requested:
            await self._hand_over_to_ready()
        return await self._finish(failure)

    async def _dry_run(self) -> HostMaintenanceResult:
        await self._look()
        await self._make_plan()
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._result(MaintenanceOutcome.PLANNED)

    async def _take_out(self) -> ApplicationError | None:
        """Prepare and evacuate. Returns why it had to give up, or None when no VM is left, or
        when somebody wants the host back."""
        work = asyncio.create_task(self._prepare_and_evacuate())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._request_leave(canceled=True)
        try:
            work.result()
        except _Leaving:
            return None
        except ActivityError as error:
            return as_application_error(error)
        except ApplicationError as error:
            return error
        return None

    async def _prepare_and_evacuate(self) -> None:
        await self._take_lease()
        await self._look()
        adopted = self._known_host.resource_state in MAINTENANCE_STATES
        if not adopted:
            await self._make_plan()
            self._refuse_blocked_plan()
            await self._change_state(
                _IN_SERVICE, ResourceState.PREPARE_FOR_MAINTENANCE, "prepares for maintenance"
            )
        else:
            await self._adopt()
        await self._put_up_fence()
        while True:
            await self._evacuate()
            kept = [vm for vm in self._vms.values() if vm.state is MigrationState.KEPT]
            if not kept:
                break
            await self._hold_with_kept(kept)
        await self._change_state(MAINTENANCE_STATES, ResourceState.MAINTENANCE, "no VM is active")

    async def _finish(self, failure: ApplicationError | None) -> HostMaintenanceResult:
        """Put the host back, as often as it takes, and close the way the operation was ended."""
        self._failure = failure
        self._withdraw_questions()
        while not await self._put_back(failure):
            await self._until_leave()
        self._left = True
        await workflow.wait_condition(workflow.all_handlers_finished)
        if failure is not None:
            raise failure
        if self._canceled:
            raise asyncio.CancelledError("the maintenance was cancelled; the host is in service")
        return self._result(MaintenanceOutcome.LEFT)

    # --- prepare --------------------------------------------------------------------------------

    async def _take_lease(self) -> None:
        info = workflow.info()
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.acquire_lease,
            AcquireLeaseInput(
                host=self._name,
                owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
                purpose=f"maintenance: {self._asked.reason or 'no reason given'}",
            ),
            summary=f"Lease of {self._name}",
            **policies.RECORD,
        )
        self._lease = LeaseRef(
            host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch
        )
        if lease.taken_over_from is not None:
            self._message = f"Takes over from {lease.taken_over_from.workflow_id}, which has ended"
            await self._outlast_predecessor()

    async def _outlast_predecessor(self) -> None:
        """A closed workflow's last activity may still run: it ends at its heartbeat time-out."""
        await workflow.sleep(
            policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
        )

    async def _look(self) -> None:
        host: Host = await workflow.execute_activity_method(
            RecordActivities.get_host, HostRef(host=self._name), **policies.RECORD
        )
        self._host, self._cluster, self._zone = host, host.cluster, host.zone
        workflow.upsert_search_attributes(
            [
                HOST_NAME.value_set(host.name),
                HOST_CLUSTER.value_set(host.cluster),
                HOST_ZONE.value_set(host.zone),
                PHASE.value_set(self._phase),
            ]
        )
        if host.resource_state in MAINTENANCE_STATES:
            self._restore = host.state_before_maintenance or ResourceState.ENABLED
            self._touched = True
            return
        if host.resource_state not in _IN_SERVICE:
            raise ApplicationError(
                f"{host.name} is {host.resource_state}: a maintenance starts from Enabled or "
                "Disabled.",
                type="Conflict",
                non_retryable=True,
            )
        if host.status is not HostStatus.UP:
            raise ApplicationError(
                f"{host.name} is {host.status}: its VMs can't be moved while it is not Up.",
                type="Conflict",
                non_retryable=True,
            )
        self._restore = host.resource_state

    async def _make_plan(self) -> None:
        self._survey = await self._survey_host(policies.FIRST_LOOK)
        self._plan = plan_evacuation(self._survey)
        for move in self._plan.moves:
            self._note(move.vm, move.uuid, MigrationState.WAITING, destination=move.destination)
        self._message = f"{len(self._plan.moves)} VMs to move"

    def _refuse_blocked_plan(self) -> None:
        plan = self._plan
        if plan is None or not plan.blockers or self._asked.on_blocker is not OnBlocker.REFUSE:
            return
        raise ApplicationError(
            f"{self._name} can't be evacuated, and nothing was changed:\n"
            f"{plan.describe_blockers()}\n"
            "Remove these blockers, or choose with on_blocker: shutdown or keep.",
            {"plan": plan.model_dump(mode="json")},
            type="EvacuationImpossible",
            non_retryable=True,
        )

    async def _adopt(self) -> None:
        """Go on from what a predecessor left: its state, its fence, its half-done migrations."""
        await self._unless_leaving(self._settle_migrations())
        await self._change_state(
            MAINTENANCE_STATES, ResourceState.PREPARE_FOR_MAINTENANCE, "adopted as it was found"
        )

    async def _put_up_fence(self) -> None:
        self._touched = True
        self._enter(Phase.EVACUATING, "The fence goes up")
        await self._unless_leaving(
            workflow.execute_activity_method(
                FencingActivities.put_up_fence,
                FenceInput(lease=self._held, operation=workflow.info().workflow_id),
                summary=f"Fence of {self._name} up",
                **policies.HOST_CHANGE,
            )
        )

    # --- migrate --------------------------------------------------------------------------------

    async def _evacuate(self) -> None:
        """Until libvirt itself, asked twice, reports no active VM but those kept on purpose."""
        quiet = 0
        while quiet < 2:
            remaining = await self._unless_leaving(
                workflow.execute_activity_method(
                    VirtualizationActivities.list_remaining_vms,
                    HostRef(host=self._name),
                    summary=f"What still runs on {self._name}",
                    **policies.HOST_READ,
                )
            )
            self._note_absent({vm.uuid for vm in remaining.vms})
            pending = [
                vm for vm in remaining.vms if self._state_of(vm.name) is not MigrationState.KEPT
            ]
            if pending:
                quiet = 0
                await self._move_all(pending)
            elif remaining.arriving:
                quiet = 0
                self._enter(
                    Phase.EVACUATING, f"Waits for {', '.join(remaining.arriving)}, on the way here"
                )
                await self._unless_leaving(
                    workflow.execute_activity_method(
                        VirtualizationActivities.wait_for_arrivals,
                        HostRef(host=self._name),
                        summary=f"VMs on their way to {self._name}",
                        **policies.HOST_WAIT,
                    )
                )
            else:
                quiet += 1

    async def _move_all(self, vms: list[Vm]) -> None:
        """A sliding window of live migrations; one that fails does not hold up the rest."""
        if self._plan is None or not {vm.name for vm in vms} <= self._planned:
            self._survey = await self._survey_host(policies.HOST_READ)
            self._plan = plan_evacuation(self._survey)
        survey = self._known_survey
        width = self._asked.max_parallel or survey.max_parallel
        window = asyncio.Semaphore(width)
        self._enter(Phase.EVACUATING, f"{len(vms)} VMs to move, {width} at a time")
        moves = [asyncio.create_task(self._move(vm, window, width)) for vm in vms]
        try:
            await self._unless_leaving(_all(moves))
        finally:
            for move in moves:
                move.cancel()
            if moves:
                await asyncio.gather(*moves, return_exceptions=True)

    async def _move(self, vm: Vm, window: asyncio.Semaphore, width: int) -> None:
        """Bring one VM away, to whichever destination takes it, or ask."""
        refused: set[str] = set()
        destination = self._planned_destination(vm)
        blocker = intrinsic_blocker(vm)
        if blocker is not None or destination is None:
            reason = self._blocked_because(vm)
            action = self._chosen_beforehand(vm) or await self._ask(vm, reason)
            if await self._settled_by(vm, action):
                return
            destination = None
        while True:
            if destination is None:
                try:
                    destination, reason = await self._another_destination(vm, refused)
                except _Gone:
                    self._note(vm.name, vm.uuid, MigrationState.GONE)
                    return
                if destination is None:
                    if await self._settled_by(vm, await self._ask(vm, reason)):
                        return
                    refused.clear()
                    continue
            try:
                async with window:
                    await self._migrate(vm, destination, width)
            except ActivityError as error:
                failure = as_application_error(error)
                if is_cancelled_exception(error) or failure.type == "LeaseLost":
                    raise
                workflow.logger.warning("%s to %s: %s", vm.name, destination, explain(error))
                refused.add(destination)
                self._note(
                    vm.name,
                    vm.uuid,
                    MigrationState.WAITING,
                    error=f"{destination}: {failure.message}",
                )
                destination = None
            else:
                return

    def _chosen_beforehand(self, vm: Vm) -> VmAction | None:
        """What `on_blocker` says, unless somebody has answered for this very VM since."""
        if vm.name in self._answered:
            return None
        choices = {OnBlocker.SHUTDOWN: VmAction.SHUTDOWN, OnBlocker.KEEP: VmAction.KEEP}
        return choices.get(self._asked.on_blocker)

    async def _migrate(self, vm: Vm, destination: str, width: int) -> None:
        attempt = self._vms[vm.name].attempt + 1 if vm.name in self._vms else 1
        self._note(
            vm.name, vm.uuid, MigrationState.MIGRATING, destination=destination, attempt=attempt
        )
        result = await workflow.execute_activity_method(
            VirtualizationActivities.migrate_vm,
            MigrateVmInput(
                lease=self._held,
                vm=vm.name,
                uuid=vm.uuid,
                destination=destination,
                memory_mib=vm.memory_mib,
                vcpus=vm.vcpus,
                max_parallel=width,
            ),
            summary=f"{vm.name} → {destination}",
            **policies.LIVE_MIGRATION,
        )
        self._note_result(vm, result)

    async def _another_destination(self, vm: Vm, refused: set[str]) -> tuple[str | None, str]:
        """A host that has not refused the VM yet, or why there is none. Raises _Gone."""
        survey = await self._survey_host(policies.HOST_READ, only=vm.uuid)
        if not survey.vms:
            raise _Gone
        plan = plan_evacuation(survey, excluded={vm.name: frozenset(refused)})
        if plan.moves:
            return plan.moves[0].destination, ""
        last = self._vms[vm.name].error if vm.name in self._vms else None
        return None, "; ".join(filter(None, (last, plan.describe_blockers())))

    async def _settled_by(self, vm: Vm, action: VmAction) -> bool:
        """Do what was chosen for the VM; False means: try to move it again."""
        if action is VmAction.KEEP:
            self._note(vm.name, vm.uuid, MigrationState.KEPT)
            return True
        if action is VmAction.RETRY:
            self._note(vm.name, vm.uuid, MigrationState.WAITING)
            return False
        while True:
            try:
                result = await workflow.execute_activity_method(
                    VirtualizationActivities.shut_down_vm,
                    ShutDownVmInput(lease=self._held, vm=vm.name, uuid=vm.uuid),
                    summary=f"{vm.name} powers off, as asked",
                    **policies.LIVE_MIGRATION,
                )
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                answer = await self._ask(vm, explain(error))
                if answer is VmAction.SHUTDOWN:
                    continue
                return await self._settled_by(vm, answer)
            self._note_result(vm, result)
            return True

    async def _ask(self, vm: Vm, reason: str) -> VmAction:
        """The VM can't be moved: say so, and wait for an operator's `resolve_vm`."""
        self._note(vm.name, vm.uuid, MigrationState.FAILED, error=reason)
        self._answers.pop(vm.name, None)
        self._enter(Phase.QUESTION, f"{vm.name} can't be moved: {reason}")
        await self._change_state(
            MAINTENANCE_STATES,
            ResourceState.ERROR_IN_PREPARE_FOR_MAINTENANCE,
            f"{vm.name} can't be moved: {reason}",
        )
        # Not left to the task's cancel: the SDK loses one that crosses the end of an activity.
        await workflow.wait_condition(lambda: vm.name in self._answers or self._leave_requested)
        if vm.name not in self._answers:
            raise _Leaving
        action = self._answers.pop(vm.name)
        self._note(vm.name, vm.uuid, MigrationState.WAITING)
        if not self._questions:
            self._enter(Phase.EVACUATING, f"{vm.name}: {action}, as an operator answered")
            await self._change_state(
                MAINTENANCE_STATES,
                ResourceState.PREPARE_FOR_MAINTENANCE,
                f"{vm.name}: {action}, as an operator answered",
            )
        return action

    async def _hold_with_kept(self, kept: list[VmStatus]) -> None:
        """Kept VMs run on: the host is never `Maintenance` with them, and says which they are."""
        names = ", ".join(vm.vm for vm in kept)
        self._enter(Phase.QUESTION, f"Fenced, with VMs kept on purpose: {names}")
        await self._change_state(
            MAINTENANCE_STATES, ResourceState.ERROR_IN_MAINTENANCE, f"VMs kept on purpose: {names}"
        )
        await self._unless_leaving(
            workflow.wait_condition(lambda: any(vm.vm in self._answers for vm in kept))
        )
        for vm in kept:
            if self._answers.pop(vm.vm, None) is VmAction.RETRY:
                self._note(vm.vm, vm.uuid, MigrationState.WAITING)
        self._plan = None  # it was made when that VM could not move
        await self._change_state(
            MAINTENANCE_STATES, ResourceState.PREPARE_FOR_MAINTENANCE, "a kept VM is to move"
        )

    # --- ready ----------------------------------------------------------------------------------

    async def _hand_over_to_ready(self) -> None:
        """Waiting may take months: it starts with a small history and the newest code."""
        await workflow.wait_condition(
            lambda: self._leave_requested or workflow.all_handlers_finished()
        )
        if self._leave_requested:
            return
        workflow.continue_as_new(
            self._asked.model_copy(
                update={
                    "continued": CarriedMaintenance(
                        lease=self._held,
                        cluster=self._cluster,
                        zone=self._zone,
                        restore_state=self._restore,
                        since=self._since,
                        vms=tuple(self._vms.values()),
                        plan=self._plan,
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
        self._lease = carried.lease
        self._cluster, self._zone = carried.cluster, carried.zone
        self._restore = carried.restore_state
        self._since = carried.since
        self._vms = {vm.vm: vm for vm in carried.vms}
        self._plan = carried.plan
        self._touched = True
        self._enter(Phase.READY, "Ready for maintenance")

    async def _until_leave(self) -> None:
        """Wait for `leave`, or for Temporal's cancel, which means the same."""
        try:
            await workflow.wait_condition(lambda: self._leave_requested)
        except asyncio.CancelledError:
            self._request_leave(canceled=True)

    # --- leave ----------------------------------------------------------------------------------

    async def _put_back(self, failure: ApplicationError | None) -> bool:
        """Give the host back: sound, fence down, its former state, lease released.

        Returns False, with the problem kept for whoever asked to leave, when a check failed: the
        host then stays as it is.
        """
        rolling_back = self._phase is not Phase.READY
        back = asyncio.create_task(self._restore_host(rolling_back))
        while not back.done():
            try:
                await workflow.wait_condition(back.done)
            except asyncio.CancelledError:
                self._canceled = True
        try:
            back.result()
        except ActivityError as error:
            problem = as_application_error(error)
            self._leave_problem = problem
            self._leave_requested = False
            self._leave_attempts += 1
            if problem.type == "LeaseLost":
                # Whoever took over is in charge; there is nothing left to put back.
                self._failure = failure or problem
                self._left = True
                await workflow.wait_condition(workflow.all_handlers_finished)
                raise self._failure from error
            self._message = f"Stays out of service: {problem.message}"
            self._enter(Phase.READY if not rolling_back else Phase.QUESTION, self._message)
            return False
        return True

    async def _restore_host(self, rolling_back: bool) -> None:
        if self._lease is None:
            return
        if self._touched:
            if rolling_back:
                self._enter(Phase.ROLLING_BACK, "Goes back: no migration stays half done")
                await self._settle_migrations()
            else:
                self._enter(Phase.LEAVING, "Checks the host, then takes the fence down")
                await self._require_answer()
            await workflow.execute_activity_method(
                FencingActivities.take_down_fence,
                self._held,
                summary=f"Fence of {self._name} down",
                **policies.HOST_CHANGE,
            )
        if self._touched or self._steps:
            await self._change_state(
                MAINTENANCE_STATES | _IN_SERVICE, self._restore, "back in service"
            )
        await workflow.execute_activity_method(
            LeaseActivities.release_lease, self._held, **policies.RECORD
        )
        self._enter(Phase.DONE, f"{self._name} is {self._restore}")

    async def _require_answer(self) -> None:
        """A host that does not answer soon stays out, rather than go into service whenever it is
        next switched on."""
        await workflow.execute_activity_method(
            VirtualizationActivities.list_remaining_vms,
            HostRef(host=self._name),
            summary=f"Does {self._name} answer?",
            **policies.FIRST_LOOK,
        )

    def _withdraw_questions(self) -> None:
        """Nobody waits for an answer any more."""
        for vm in list(self._vms.values()):
            if vm.state in _OPEN_STATES:
                self._note(vm.vm, vm.uuid, MigrationState.CANCELED)

    # --- updates and the query ------------------------------------------------------------------

    @workflow.update(name="leave")
    async def leave(self, _: LeaveInput) -> LeaveResult:
        """End the maintenance. Completes when the host is back in service; fails with the reason
        when a check failed, and the host then stays out."""
        # It may come in the very first task, before the run itself has begun.
        await workflow.wait_condition(lambda: self._request is not None)
        if self._asked.dry_run:
            raise _nothing_to_leave()
        attempts = self._leave_attempts
        self._request_leave(canceled=False)
        await workflow.wait_condition(lambda: self._left or self._leave_attempts > attempts)
        problem = self._failure if self._left else self._leave_problem
        if problem is not None:
            raise problem
        return LeaveResult(host=self._name, resource_state=self._restore)

    @leave.validator
    def _check_leave(self, _: LeaveInput) -> None:
        if self._request is not None and self._request.dry_run:
            raise _nothing_to_leave()

    @workflow.update(name="resolve_vm")
    async def resolve_vm(self, answer: ResolveVmInput) -> None:
        """Answer the question about one VM."""
        self._answers[answer.vm] = answer.action
        self._answered.add(answer.vm)

    @resolve_vm.validator
    def _check_answer(self, answer: ResolveVmInput) -> None:
        state = self._state_of(answer.vm)
        if state is MigrationState.KEPT and self._phase is Phase.QUESTION:
            if answer.action is VmAction.RETRY:
                return
            raise ApplicationError(
                f"{answer.vm} is kept on purpose: only retry applies.", type="Conflict"
            )
        if answer.vm not in self._questions:
            waiting = ", ".join(self._questions) or "none"
            raise ApplicationError(
                f"{answer.vm} waits for no answer; VMs that do: {waiting}.", type="Conflict"
            )

    @workflow.query(name="status")
    def status(self) -> MaintenanceStatus:
        """Phase, plan, each VM's state with its last error, and what moves it on."""
        return MaintenanceStatus(
            host=self._name,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            since=self._since,
            plan=self._plan,
            vms=tuple(self._vms.values()),
            questions=self._questions,
            leave_problem=None if self._leave_problem is None else self._leave_problem.message,
            commands=next_commands(
                self._name,
                workflow.info().workflow_id,
                self._phase,
                questions=self._questions,
                kept=self._kept,
            ),
        )

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def _asked(self) -> HostMaintenanceInput:
        if self._request is None:
            raise ApplicationError("The maintenance has not begun yet.", type="Conflict")
        return self._request

    @property
    def _name(self) -> str:
        return self._asked.host

    @property
    def _held(self) -> LeaseRef:
        if self._lease is None:
            raise ApplicationError("The maintenance holds no lease yet.", type="Conflict")
        return self._lease

    @property
    def _known_host(self) -> Host:
        if self._host is None:
            raise ApplicationError("The host was not read yet.", type="Conflict")
        return self._host

    @property
    def _known_survey(self) -> Survey:
        if self._survey is None:
            raise ApplicationError("The host was not surveyed yet.", type="Conflict")
        return self._survey

    @property
    def _planned(self) -> set[str]:
        if self._plan is None:
            return set()
        return {move.vm for move in self._plan.moves} | {b.vm for b in self._plan.blockers}

    @property
    def _questions(self) -> tuple[str, ...]:
        return tuple(vm.vm for vm in self._vms.values() if vm.state is MigrationState.FAILED)

    @property
    def _kept(self) -> tuple[str, ...]:
        return tuple(vm.vm for vm in self._vms.values() if vm.state is MigrationState.KEPT)

    def _request_leave(self, *, canceled: bool) -> None:
        self._leave_requested = True
        self._leave_problem = None
        self._canceled = self._canceled or canceled

    def _planned_destination(self, vm: Vm) -> str | None:
        moves = self._plan.moves if self._plan is not None else ()
        return next((move.destination for move in moves if move.uuid == vm.uuid), None)

    def _blocked_because(self, vm: Vm) -> str:
        blocker = intrinsic_blocker(vm)
        if blocker is not None:
            return blocker.message
        blockers = self._plan.blockers if self._plan is not None else ()
        named = [b for b in blockers if b.vm == vm.name]
        return EvacuationPlan(host=self._name, blockers=tuple(named)).describe_blockers()

    def _state_of(self, vm: str) -> MigrationState | None:
        return self._vms[vm].state if vm in self._vms else None

    def _note(
        self,
        vm: str,
        uuid: str,
        state: MigrationState,
        *,
        destination: str | None = None,
        attempt: int | None = None,
        error: str | None = None,
        seconds: float | None = None,
    ) -> None:
        before = self._vms.get(vm) or VmStatus(vm=vm, uuid=uuid, state=state)
        self._vms[vm] = before.model_copy(
            update={
                "state": state,
                "destination": destination or before.destination,
                "attempt": before.attempt if attempt is None else attempt,
                "error": error if error is not None else before.error,
                "seconds": seconds if seconds is not None else before.seconds,
            }
        )
        self._show()

    def _note_result(self, vm: Vm, result: MigrateVmResult) -> None:
        self._note(
            vm.name,
            vm.uuid,
            _FATES[result.fate],
            destination=result.host,
            seconds=result.seconds,
        )

    def _note_absent(self, present: set[str]) -> None:
        """VMs that their owners stopped or moved themselves need nothing more of us."""
        for vm in list(self._vms.values()):
            if vm.uuid not in present and (
                vm.state in _OPEN_STATES or vm.state is MigrationState.KEPT
            ):
                self._note(vm.vm, vm.uuid, MigrationState.GONE)

    def _enter(self, phase: Phase, message: str) -> None:
        if phase is not self._phase:
            self._phase = phase
            workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self._message = message
        self._show()

    def _show(self) -> None:
        workflow.set_current_details(current_details(self.status()))

    def _result(self, outcome: MaintenanceOutcome) -> HostMaintenanceResult:
        state = self._restore
        if outcome is MaintenanceOutcome.PLANNED:
            state = self._known_host.resource_state
        return HostMaintenanceResult(
            host=self._name,
            outcome=outcome,
            resource_state=state,
            plan=self._plan,
            vms=tuple(self._vms.values()),
        )

    async def _survey_host(
        self, policy: policies.ActivityPolicy, *, only: str | None = None
    ) -> Survey:
        survey: Survey = await self._unless_leaving(
            workflow.execute_activity_method(
                VirtualizationActivities.survey_host,
                SurveyInput(host=self._name, only=only),
                summary=f"VMs of {self._name}, room in its cluster",
                **policy,
            )
        )
        return survey

    async def _settle_migrations(self) -> None:
        await workflow.execute_activity_method(
            VirtualizationActivities.settle_migrations,
            self._held,
            summary="No migration stays half done",
            **policies.HOST_CHANGE,
        )

    async def _change_state(
        self, expected: frozenset[ResourceState], target: ResourceState, reason: str
    ) -> None:
        self._steps += 1
        await workflow.execute_activity_method(
            RecordActivities.change_host_state,
            ChangeStateInput(
                lease=self._held,
                expected=expected,
                target=target,
                step=f"{workflow.info().run_id}/{self._steps}",
                reason=reason,
            ),
            summary=f"{self._name} becomes {target}",
            **policies.RECORD,
        )

    async def _unless_leaving(self, step: Coroutine[Any, Any, T]) -> T:
        """Await `step`, but give it up as soon as somebody wants the host back."""
        task = asyncio.ensure_future(step)
        await workflow.wait_condition(lambda: task.done() or self._leave_requested)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise _Leaving


def _nothing_to_leave() -> ApplicationError:
    return ApplicationError("A dry run has nothing to leave.", type="Conflict")


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)
