"""Emptying a host: every VM leaves it, live, or somebody decides about it."""

import asyncio
from collections.abc import Container
from dataclasses import dataclass, field
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.records import RecordActivities
    from activities.survey import SurveyActivities
    from activities.virtualization import VirtualizationActivities
    from contracts.evacuation import Blocker, BlockerKind, EvacuationPlan, Survey, VmPolicy
    from contracts.maintenance import MigrationMode, OnBlocker, VmAction
    from contracts.states import Phase
    from contracts.steps import (
        STATES_OF_FATES,
        AwaitChangeInput,
        EventInput,
        HostRef,
        MigrateVmInput,
        MigrateVmResult,
        RemainingVms,
        ShutDownVmInput,
        SurveyInput,
        VmChange,
        VmFate,
        WatchVmInput,
    )
    from contracts.vms import MigrationState, Vm
    from workflows import policies
    from workflows.evacuation import intrinsic_blocker, plan_evacuation
    from workflows.failures import as_application_error, explain, is_absence
    from workflows.maintenance_state import Leaving, MaintenanceState

_LONGEST_WATCH_S = 3600
_ALWAYS = (VmAction.RETRY, VmAction.SHUTDOWN, VmAction.KEEP)
_WITH_STORAGE = (VmAction.RETRY, VmAction.COPY_STORAGE, VmAction.SHUTDOWN, VmAction.KEEP)
_TO_CONVERGE = (
    VmAction.RETRY,
    VmAction.WAIT,
    VmAction.PAUSE,
    VmAction.SHUTDOWN,
    VmAction.KEEP,
)
_CHOICES = {OnBlocker.SHUTDOWN: VmAction.SHUTDOWN, OnBlocker.KEEP: VmAction.KEEP}


@dataclass
class _Journey:
    """One VM's way out.

    Attributes:
        destination: where it goes next; None: to be chosen.
        refused: hosts that have refused it since somebody was asked last.
        asked: how often somebody was.
        absences: how often a host that has to tell of it was away for long.
        somebody_absent: a destination did not answer when they were looked at last.
        pressed: its power button was pressed for this maintenance.
    """

    vm: Vm
    destination: str | None = None
    refused: set[str] = field(default_factory=set)
    mode: MigrationMode = MigrationMode.PLAIN
    copy_storage: bool = False
    asked: int = 0
    absences: int = 0
    somebody_absent: bool = False
    pressed: bool = False


class VmEvacuation:
    """Moves all VMs of the maintenance's host. Raises Leaving when the host is wanted back."""

    def __init__(self, state: MaintenanceState) -> None:
        self._state = state
        self._vms = state.vms
        self._survey: Survey | None = None
        self._planned: set[str] = set()
        self._put_off: set[str] = set()

    def plan(self, survey: Survey, moving: Container[str] | None = None) -> EvacuationPlan:
        """Make a plan. `moving`: names of the VMs that it is made for; None: for all."""
        plan = plan_evacuation(survey, copy_storage=self._with_storage(survey.vms)).brief()
        self._survey = survey
        self._state.plan = plan
        self._planned = {move.vm for move in plan.moves} | {b.vm for b in plan.blockers}
        for move in plan.moves:
            if moving is None or move.vm in moving:
                self._note(move.vm, move.uuid, MigrationState.WAITING, destination=move.destination)
        return plan

    def forget_plan(self) -> None:
        """The next VM that is to move asks for a new one."""
        self._planned = set()

    async def survey(self, *, only: str | None = None) -> Survey:
        """Look at the host and its cluster, or at one VM of the host by its UUID."""
        found: Survey = await self._state.on_host(
            lambda policy: workflow.execute_activity_method(
                SurveyActivities.survey_host,
                SurveyInput(host=self._state.name, only=only),
                summary=f"VMs of {self._state.name}, room in its cluster",
                **policy,
            ),
            policies.HOST_READ,
        )
        return found

    async def until_empty(self) -> None:
        """Until libvirt itself, asked twice, reports no active VM but those kept on purpose."""
        quiet = 0
        while quiet < 2:
            remaining = await self._remaining()
            self._vms.note_absent({vm.uuid for vm in remaining.vms})
            pending = [vm for vm in remaining.vms if not self._vms.is_kept(vm.name)]
            quiet = quiet + 1 if not pending and not remaining.arriving else 0
            if pending:
                await self._move_all(pending)
            elif remaining.arriving:
                await self._wait_for_arrivals(remaining)

    async def _remaining(self) -> RemainingVms:
        found: RemainingVms = await self._state.on_host(
            lambda policy: workflow.execute_activity_method(
                SurveyActivities.list_remaining_vms,
                HostRef(host=self._state.name),
                summary=f"What still runs on {self._state.name}",
                **policy,
            ),
            policies.HOST_READ,
        )
        return found

    async def _wait_for_arrivals(self, remaining: RemainingVms) -> None:
        names = ", ".join(remaining.arriving)
        self._state.enter(Phase.EVACUATING, f"Waits for {names}, on the way here")
        await self._state.unless_leaving(
            workflow.execute_activity_method(
                SurveyActivities.wait_for_arrivals,
                AwaitChangeInput(
                    host=self._state.name, within_s=self._state.settings.arrivals_timeout
                ),
                summary=f"VMs on their way to {self._state.name}",
                **policies.HOST_WAIT,
            )
        )

    # --- many -----------------------------------------------------------------------------------

    async def _move_all(self, vms: list[Vm]) -> None:
        """A sliding window of live migrations; one that fails does not hold up the rest."""
        if self._survey is None or not {vm.name for vm in vms} <= self._planned:
            self.plan(await self.survey(), {vm.name for vm in vms})
        width = self._state.asked.max_parallel or self._known_survey.max_parallel
        window = asyncio.Semaphore(width)
        self._state.enter(Phase.EVACUATING, f"{len(vms)} VMs to move, {width} at a time")
        moves = [asyncio.create_task(self._move(vm, window, width)) for vm in vms]
        try:
            await self._state.unless_leaving(_all(moves))
        finally:
            for move in moves:
                move.cancel()
            if moves:
                await asyncio.gather(*moves, return_exceptions=True)

    # --- one ------------------------------------------------------------------------------------

    async def _move(self, vm: Vm, window: asyncio.Semaphore, width: int) -> None:
        """Bring one VM away, to whichever destination takes it, or ask."""
        journey = _Journey(
            vm=vm,
            destination=self._planned_destination(vm),
            copy_storage=vm.name in self._with_storage([vm]),
        )
        over = await self._decided_beforehand(journey)
        while not over:
            over = await self._go_on(journey, window, width)
        await self._state.trouble_over(vm.name)

    async def _decided_beforehand(self, journey: _Journey) -> bool:
        """VMs that can't be moved as things are: what was chosen for such, or a question. True:
        nothing is left to do."""
        blocker = self._blocker(journey)
        if blocker is None and journey.destination is not None:
            return False
        reason = blocker.message if blocker is not None else self._blocked_because(journey.vm)
        action = None
        if not self._vms.was_answered(journey.vm.name):
            action = _CHOICES.get(self._state.asked.on_blocker)
        if action is VmAction.SHUTDOWN:
            await self._until_others_have_left(journey.vm)
            if blocker is None:
                # It was only that no destination took it: by now one may.
                if await self._choose_destination(journey) is None:
                    return journey.destination is None and self._gone(journey.vm)
                if journey.somebody_absent:
                    action = None
        if action is None:
            action = await self._ask(journey, reason, blocker)
        return await self._do(journey, action)

    async def _go_on(self, journey: _Journey, window: asyncio.Semaphore, width: int) -> bool:
        """One attempt. True: the VM has left, or is to stay."""
        if journey.destination is None:
            blocker = await self._choose_destination(journey)
            if blocker is not None:
                reason = self._why_not(journey.vm, blocker)
                return await self._do(journey, await self._ask(journey, reason, blocker))
            if journey.destination is None:
                return self._gone(journey.vm)
        if self._state.leave_requested:
            raise Leaving
        try:
            async with window:
                await self._migrate(journey, width)
        except ActivityError as error:
            return await self._after_failure(journey, error)
        return True

    async def _after_failure(self, journey: _Journey, error: ActivityError) -> bool:
        vm, failure = journey.vm, as_application_error(error)
        if is_cancelled_exception(error) or failure.type == "LeaseLost":
            raise error
        if self._state.leave_requested:
            # The SDK loses a cancel that crosses the end of an activity.
            raise Leaving
        workflow.logger.warning("%s to %s: %s", vm.name, journey.destination, failure.message)
        reason = f"{journey.destination}: {failure.message}"
        if is_absence(error):
            self._note(vm.name, vm.uuid, MigrationState.WAITING, error=reason)
            journey.absences += 1
            await self._state.trouble(vm.name, f"{vm.name} waits: {failure.message}")
            return False
        if failure.type == "NotConverging":
            if journey.mode is MigrationMode.PLAIN and self._state.settings.auto_converge:
                journey.mode = MigrationMode.AUTO_CONVERGE
                self._note(vm.name, vm.uuid, MigrationState.WAITING, error=reason)
                return False
            action = await self._ask(journey, reason, None, actions=_TO_CONVERGE)
            return await self._do(journey, action)
        if failure.type in ("MigratedByOthers", "WhereaboutsUnknown"):
            return await self._do(journey, await self._ask(journey, reason, None))
        journey.refused.add(str(journey.destination))
        journey.destination = None
        self._note(vm.name, vm.uuid, MigrationState.WAITING, error=reason)
        return False

    async def _migrate(self, journey: _Journey, width: int) -> None:
        vm, destination = journey.vm, str(journey.destination)
        self._note(
            vm.name,
            vm.uuid,
            MigrationState.MIGRATING,
            destination=destination,
            attempt=self._vms.attempts(vm.name) + 1,
            mode=journey.mode,
        )
        how = "" if journey.mode is MigrationMode.PLAIN else f" ({journey.mode})"
        result = await workflow.execute_activity_method(
            VirtualizationActivities.migrate_vm,
            MigrateVmInput(
                lease=self._state.lease,
                vm=vm.name,
                uuid=vm.uuid,
                destination=destination,
                memory_mib=vm.memory_mib,
                vcpus=vm.vcpus,
                max_parallel=width,
                mode=journey.mode,
                copy_storage=journey.copy_storage,
            ),
            summary=f"{vm.name} → {destination}{how}",
            **policies.after_absences(policies.LIVE_MIGRATION, journey.absences),
        )
        self._note_result(vm, result)

    async def _choose_destination(self, journey: _Journey) -> Blocker | None:
        """A host that has not refused the VM yet, into the journey, or what speaks against all.
        Neither: the VM is not here any more."""
        vm = journey.vm
        survey = await self.survey(only=vm.uuid)
        if not survey.vms:
            return None
        journey.vm = survey.vms[0]
        journey.somebody_absent = any(candidate.absent for candidate in survey.candidates)
        plan = plan_evacuation(
            survey,
            excluded={vm.name: frozenset(journey.refused)},
            copy_storage=frozenset({vm.name} if journey.copy_storage else ()),
        )
        if plan.blockers:
            return plan.blockers[0]
        journey.destination = plan.moves[0].destination if plan.moves else None
        return None

    # --- decisions ------------------------------------------------------------------------------

    async def _ask(
        self,
        journey: _Journey,
        reason: str,
        blocker: Blocker | None,
        *,
        actions: tuple[VmAction, ...] = _ALWAYS,
    ) -> VmAction | None:
        """The VM can't be moved: say so, and wait for an operator's `resolve_vm`, or until it is
        worth another attempt (`retry`), or until it is gone (None)."""
        vm = journey.vm
        if blocker is not None and blocker.kind is BlockerKind.LOCAL_DISK:
            actions = _WITH_STORAGE
        journey.asked += 1
        self._vms.ask(vm, reason, actions)
        self._state.enter(Phase.QUESTION, f"{vm.name} can't be moved: {reason}")
        await self._state.trouble(vm.name, f"{vm.name} can't be moved: {reason}")
        watch = asyncio.create_task(self._watch(journey, reason, own=blocker))
        try:
            # Not left to the task's cancel: the SDK loses one that crosses an activity's end.
            await workflow.wait_condition(
                lambda: self._vms.has_answer(vm.name) or watch.done() or self._state.leave_requested
            )
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        action = self._vms.take_answer(vm.name)
        if action is None and self._state.leave_requested:
            raise Leaving
        said = f"{action}, as an operator answered"
        if action is None:
            action = watch.result()
            said = "is not here any more" if action is None else "tried again"
        self._note(vm.name, vm.uuid, MigrationState.WAITING)
        if not self._vms.questions:
            self._state.enter(Phase.EVACUATING, f"{vm.name}: {said}")
        await self._state.trouble_over(vm.name)
        return action

    async def _watch(
        self, journey: _Journey, reason: str, *, own: Blocker | None
    ) -> VmAction | None:
        """Until it is worth another attempt: something has changed, or, unless the VM itself is in
        the way, some time has passed, longer after each question."""
        settings = self._state.settings
        intrinsic = own is not None and self._blocker(journey) is not None
        within = min(settings.retry_interval * 2 ** (journey.asked - 1), _LONGEST_WATCH_S)
        reminded = workflow.now()
        while True:
            change = await workflow.execute_activity_method(
                SurveyActivities.watch_vm,
                WatchVmInput(host=self._state.name, uuid=journey.vm.uuid, within_s=within),
                summary=f"Does anything change about {journey.vm.name}?",
                **policies.HOST_WAIT,
            )
            if change is VmChange.LEFT:
                return None
            if change is VmChange.CHANGED:
                # Something that keeps changing must not fill the history.
                pause = min(2 ** (journey.asked - 1) - 1, 40) * 15
                if pause:
                    await workflow.sleep(pause, summary=f"Before {journey.vm.name} is tried again")
                return VmAction.RETRY
            if not intrinsic:
                return VmAction.RETRY
            if workflow.now() - reminded >= timedelta(seconds=settings.question_reminder):
                reminded = workflow.now()
                await self._remind(journey.vm, reason)
            within = min(2 * within, _LONGEST_WATCH_S)

    async def _remind(self, vm: Vm, reason: str) -> None:
        await workflow.execute_activity_method(
            RecordActivities.record_event,
            EventInput(
                lease=self._state.lease,
                kind="maintenance.question",
                message=f"{vm.name} still waits for an answer: {reason}",
            ),
            summary=f"Reminds of {vm.name}",
            **policies.RECORD,
        )

    async def _do(self, journey: _Journey, action: VmAction | None) -> bool:
        """Do what was decided. True: nothing is left to do for the VM."""
        vm = journey.vm
        if action is None:
            if journey.pressed:
                self._vms.note(vm.name, vm.uuid, MigrationState.SHUT_OFF, start_again=True)
                self._state.show()
                return True
            return self._gone(vm)
        if action is VmAction.KEEP:
            self._note(vm.name, vm.uuid, MigrationState.KEPT)
            return True
        if action is VmAction.SHUTDOWN:
            return await self._shut_down(journey)
        if action in (VmAction.WAIT, VmAction.PAUSE):
            waits = action is VmAction.WAIT
            journey.mode = MigrationMode.UNBOUNDED if waits else MigrationMode.PAUSED
            return False
        journey.mode = MigrationMode.PLAIN
        journey.copy_storage = journey.copy_storage or action is VmAction.COPY_STORAGE
        journey.refused.clear()
        journey.destination = None
        return False

    async def _shut_down(self, journey: _Journey) -> bool:
        vm = journey.vm
        journey.pressed = True
        try:
            result = await workflow.execute_activity_method(
                VirtualizationActivities.shut_down_vm,
                ShutDownVmInput(
                    lease=self._state.lease,
                    vm=vm.name,
                    uuid=vm.uuid,
                    timeout_s=self._state.settings.shutdown_timeout,
                ),
                summary=f"{vm.name} powers off, as asked",
                **policies.LIVE_MIGRATION,
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            answer = await self._ask(journey, explain(error), None)
            return await self._do(journey, answer)
        self._note_result(vm, result, start_again=result.fate is VmFate.SHUT_OFF)
        return True

    async def _until_others_have_left(self, vm: Vm) -> None:
        """What is shut down, is so as late as can be: not while another one may still spoil it."""
        self._put_off.add(vm.name)
        self._note(vm.name, vm.uuid, MigrationState.WAITING)
        await workflow.wait_condition(
            lambda: (
                self._state.leave_requested
                or not any(
                    self._vms.is_open(other.vm)
                    for other in self._vms.statuses
                    if other.vm not in self._put_off
                )
            )
        )
        if self._state.leave_requested:
            raise Leaving

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def _known_survey(self) -> Survey:
        if self._survey is None:
            raise ApplicationError("The host was not surveyed yet.", type="Conflict")
        return self._survey

    def _with_storage(self, vms: "list[Vm] | tuple[Vm, ...]") -> frozenset[str]:
        """VMs that move together with their local disks, by what was asked for."""
        if self._state.asked.on_blocker is not OnBlocker.COPY_STORAGE:
            return frozenset()
        return frozenset(vm.name for vm in vms if vm.local_disks)

    def _policy(self, vm: str) -> VmPolicy | None:
        return next((one for one in self._known_survey.policies if one.vm == vm), None)

    def _blocker(self, journey: _Journey) -> Blocker | None:
        return intrinsic_blocker(
            journey.vm,
            policy=self._policy(journey.vm.name),
            copy_storage=journey.copy_storage,
        )

    def _planned_destination(self, vm: Vm) -> str | None:
        moves = self._state.plan.moves if self._state.plan is not None else ()
        return next((move.destination for move in moves if move.uuid == vm.uuid), None)

    def _blocked_because(self, vm: Vm) -> str:
        blockers = self._state.plan.blockers if self._state.plan is not None else ()
        named = tuple(blocker for blocker in blockers if blocker.vm == vm.name)
        return EvacuationPlan(host=self._state.name, blockers=named).describe_blockers()

    def _why_not(self, vm: Vm, blocker: Blocker) -> str:
        """What the last destination said, and what speaks against the others."""
        last = self._vms.find(vm.name)
        plan = EvacuationPlan(host=self._state.name, blockers=(blocker,))
        error = last.error if last is not None and last.attempt else None
        return "; ".join(filter(None, (error, plan.describe_blockers())))

    def _note(
        self,
        vm: str,
        uuid: str,
        state: MigrationState,
        *,
        destination: str | None = None,
        attempt: int | None = None,
        mode: MigrationMode | None = None,
        error: str | None = None,
    ) -> None:
        self._vms.note(
            vm, uuid, state, destination=destination, attempt=attempt, mode=mode, error=error
        )
        self._state.show()

    def _gone(self, vm: Vm) -> bool:
        """True: nothing is left to do for it."""
        self._note(vm.name, vm.uuid, MigrationState.GONE)
        return True

    def _note_result(self, vm: Vm, result: MigrateVmResult, *, start_again: bool = False) -> None:
        self._vms.note(
            vm.name,
            vm.uuid,
            STATES_OF_FATES[result.fate],
            destination=result.host,
            seconds=result.seconds,
            start_again=start_again,
        )
        self._state.show()


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)
