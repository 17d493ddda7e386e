"""ClusterMaintenance: the hosts of a cluster, one after another or a few at a time.

    pre_flight on all hosts
    then per host: pre_maintenance -> drain -> maintenance -> reboot -> post_maintenance -> leave

The first failure lets no other host begin, and leaves the failed one as it is: out of service, once
it was drained. The workflow stays open, says what has failed, and goes on from that step when it is
told to. Each host is taken out by a HostMaintenance of its own, which outlives this workflow.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.clusters import ClusterActivities
    from activities.hooks import HookActivities
    from activities.operations import OperationActivities
    from contracts.cluster_maintenance import (
        BootId,
        CarriedClusterMaintenance,
        ClusterMaintenanceInput,
        ClusterMaintenanceOutcome,
        ClusterMaintenanceResult,
        ClusterMaintenanceStatus,
        ClusterPhase,
        ClusterPlan,
        HookOutcome,
        HostProgress,
        HostWork,
        LeaveMaintenanceInput,
        MaintenanceProgress,
        PauseInput,
        PlanClusterInput,
        ReadBootIdInput,
        RebootHostInput,
        ResumeInput,
        RunHookInput,
        RunHookResult,
        Stage,
        Step,
        StopInput,
        WaitForMaintenanceInput,
    )
    from contracts.leases import Owner
    from contracts.maintenance import HostMaintenanceInput
    from contracts.operations import WORKFLOW_TYPES, OperationKind, workflow_id
    from workflows import policies, power_use
    from workflows.cluster_maintenance_page import current_details, message, next_commands
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_CLUSTER, HOST_ZONE, PHASE

_PRE_FLIGHTS_AT_A_TIME = 10
# Steps for which the host must be out of service already.
_OUT_OF_SERVICE = frozenset({Step.MAINTENANCE, Step.REBOOT, Step.POST_MAINTENANCE})
_NEEDS_READY_HOST = frozenset({Stage.MAINTENANCE, Stage.POST_MAINTENANCE})
# An error's text is carried along for every host.
_MAX_ERROR_CHARS = 1000


@workflow.defn(name="ClusterMaintenance")
class ClusterMaintenance:
    """One maintenance of a cluster's hosts."""

    def __init__(self) -> None:
        self._request: ClusterMaintenanceInput | None = None
        self._plan: ClusterPlan | None = None
        self._since: datetime = workflow.now()
        self._hosts: dict[str, HostProgress] = {}
        self._in_work: dict[str, asyncio.Task[None]] = {}
        self._shown_phase: ClusterPhase | None = None
        self._paused = False
        self._halted = False
        self._stopping = False
        self._canceled = False
        self._ended = False
        self._changes = 0

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: ClusterMaintenanceInput) -> ClusterMaintenanceResult:
        """Returns when all hosts are done, or when it was stopped."""
        self._request = request
        if request.continued is not None:
            self._resume_carried(request.continued)
        self._show()
        try:
            while not await self._work_unless_stopped():
                if not self._stopping:
                    self._continue_as_new()
        finally:
            self._ended = True
        self._show()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._canceled:
            raise asyncio.CancelledError("the maintenance was cancelled; no host is in work")
        return ClusterMaintenanceResult(
            cluster=request.cluster,
            outcome=ClusterMaintenanceOutcome.COMPLETED
            if self._all_are(HostWork.DONE)
            else ClusterMaintenanceOutcome.STOPPED,
            hosts=tuple(self._hosts.values()),
        )

    async def _work_unless_stopped(self) -> bool:
        """Temporal's cancel means the same as `stop`: what is begun is brought to its end."""
        work = asyncio.create_task(self._work())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._canceled = True
                self._stop()
        return work.result()

    async def _work(self) -> bool:
        """True at the end; False when it is to continue as new. No host is in work then."""
        if self._plan is None:
            await self._make_plan()
        while True:
            # With a long history no host begins any more, so that it comes to a point without any.
            grown = workflow.info().is_continue_as_new_suggested()
            if not grown:
                self._begin_hosts()
            if not self._in_work:
                if self._stopping or self._all_are(HostWork.DONE):
                    return True
                if grown:
                    await workflow.wait_condition(workflow.all_handlers_finished)
                    return False
            await self._until_changed(self._changes)

    async def _until_changed(self, seen: int) -> None:
        await workflow.wait_condition(lambda: self._changes != seen)

    async def _make_plan(self) -> None:
        try:
            plan: ClusterPlan = await workflow.execute_activity_method(
                ClusterActivities.plan_cluster_maintenance,
                PlanClusterInput(
                    cluster=self._asked.cluster,
                    hosts=self._asked.hosts,
                    parallel=self._asked.parallel,
                    power_cycle_when_lost=self._asked.power_cycle_when_lost,
                ),
                summary=f"Hosts of {self._asked.cluster}",
                **policies.RECORD,
            )
        except ActivityError as error:
            raise as_application_error(error) from error
        self._plan = plan
        self._hosts = {host: HostProgress(host=host) for host in plan.hosts}
        self._show()

    def _begin_hosts(self) -> None:
        """Those whose turn it is. All pass their pre-flight before the first is touched; and as
        long as something is wrong with one, no other one begins."""
        if self._paused or self._stopping:
            return
        waiting = [name for name in self._hosts if self._hosts[name].state is HostWork.WAITING]
        in_pre_flight = [name for name in self._hosts if self._hosts[name].step is Step.PRE_FLIGHT]
        if in_pre_flight:
            # One that fails does not keep the others from being looked at.
            turn, most = [name for name in waiting if name in in_pre_flight], _PRE_FLIGHTS_AT_A_TIME
        elif self._halted or any(host.question for host in self._hosts.values()):
            return
        else:
            # One that has failed before may still be out of service: it comes first.
            turn = sorted(waiting, key=lambda name: self._hosts[name].step is Step.PRE_MAINTENANCE)
            most = self._asked.parallel
        for name in turn[: max(most - len(self._in_work), 0)]:
            self._note(name, state=HostWork.WORKING, error=None)
            self._in_work[name] = asyncio.create_task(self._take_through(name))

    async def _take_through(self, host: str) -> None:
        """One host, from the step that is next for it."""
        try:
            if self._hosts[host].step is Step.PRE_FLIGHT:
                await self._run_hook(host, Stage.PRE_FLIGHT)
                self._note(host, state=HostWork.WAITING, step=Step.PRE_MAINTENANCE)
            else:
                await self._look_again(host)
                await self._take_out_and_back(host)
                self._note(host, state=HostWork.DONE)
        except (ActivityError, ApplicationError) as error:
            failure = as_application_error(error) if isinstance(error, ActivityError) else error
            self._halted = True
            self._note(
                host,
                state=HostWork.FAILED,
                question=None,
                queued=None,
                error=" ".join(failure.message.split())[:_MAX_ERROR_CHARS],
            )
            workflow.logger.warning("%s: %s", host, failure.message)
        finally:
            del self._in_work[host]
            self._changes += 1

    async def _take_out_and_back(self, host: str) -> None:
        steps: dict[Step, Callable[[str], Awaitable[None]]] = {
            Step.PRE_MAINTENANCE: lambda host: self._run_hook(host, Stage.PRE_MAINTENANCE),
            Step.DRAIN: self._drain,
            Step.MAINTENANCE: lambda host: self._run_hook(host, Stage.MAINTENANCE),
            Step.REBOOT: self._reboot,
            # Before it is back in service: one that does not pass stays out.
            Step.POST_MAINTENANCE: lambda host: self._run_hook(host, Stage.POST_MAINTENANCE),
            Step.LEAVE: self._leave,
        }
        order = list(steps)
        for step in order[order.index(self._hosts[host].step) :]:
            self._note(host, step=step)
            await steps[step](host)

    # --- the steps ------------------------------------------------------------------------------

    async def _run_hook(self, host: str, stage: Stage) -> None:
        before = self._hosts[host].hooks
        result: RunHookResult = await workflow.execute_activity_method(
            HookActivities.run_hook,
            RunHookInput(
                operation=self._operation,
                cluster=self._settled.cluster,
                host=host,
                stage=stage,
                attempt=1 + sum(run.stage is stage for run in before),
                hook=self._asked.hooks.get(stage),
                maintenance=self._maintenance_of(host) if stage in _NEEDS_READY_HOST else None,
                timeout=self._settled.hook_timeout,
                unreachable_timeout=self._settled.unreachable_timeout,
            ),
            summary=f"{stage} of {host}",
            **policies.HOST_JOB,
        )
        if result.outcome is None:
            return
        self._note(host, hooks=(*before, result.outcome))
        if not result.outcome.passed:
            raise _hook_failed(result.outcome)

    async def _drain(self, host: str) -> None:
        """By a HostMaintenance of the usual id. Its plan, made right before it changes anything, is
        the check of the cluster's capacity: it waits for its turn and for room, or refuses."""
        if self._hosts[host].maintenance is None:
            await self._start_maintenance(host)
        found = MaintenanceProgress()
        while not found.ready:
            found = await self._wait_for_maintenance(host, found)
            self._note(host, question=found.question, queued=found.queued)
            if found.ended is not None:
                self._note(host, maintenance=None)
                raise ApplicationError(
                    f"its maintenance has ended before the host was ready: {found.ended}",
                    type="Conflict",
                )

    async def _start_maintenance(self, host: str) -> None:
        usual = workflow_id(OperationKind.MAINTENANCE, host)
        own = f"maintenance of {self._settled.cluster}"
        try:
            started = await workflow.start_child_workflow(
                WORKFLOW_TYPES[OperationKind.MAINTENANCE],
                HostMaintenanceInput(
                    host=host,
                    reason=self._asked.reason or own,
                    on_blocker=self._asked.on_blocker,
                    max_parallel=self._asked.max_parallel,
                ),
                id=usual,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                # It guards the host, whatever becomes of this workflow.
                parent_close_policy=ParentClosePolicy.ABANDON,
                cancellation_type=ChildWorkflowCancellationType.ABANDON,
                static_summary=f"Maintenance of {host}: {own}",
            )
        except WorkflowAlreadyStartedError as error:
            raise ApplicationError(
                f"{usual} is running already, started by somebody else. Wait for it or end it "
                f"(hostler maintenance leave {host}), then resume.",
                type="LeaseHeld",
            ) from error
        started.add_done_callback(_hear_of_it)
        self._note(
            host,
            maintenance=Owner(
                workflow_id=started.id, first_run_id=started.first_execution_run_id or ""
            ),
            boot_id_before=None,
            boot_id_after=None,
        )

    async def _look_again(self, host: str) -> None:
        """One that was put back by hand since it has failed is drained again before it is worked
        on."""
        progress = self._hosts[host]
        if progress.step not in _OUT_OF_SERVICE or progress.maintenance is None:
            return
        found = await self._wait_for_maintenance(host, MaintenanceProgress())
        if found.ended is not None:
            self._note(host, step=Step.DRAIN, maintenance=None)

    async def _reboot(self, host: str) -> None:
        """The proof is another boot id than before."""
        if not self._asked.reboot:
            return
        before = self._hosts[host].boot_id_before
        if before is None:
            read: BootId = await workflow.execute_activity_method(
                HookActivities.read_boot_id,
                ReadBootIdInput(host=host, unreachable_timeout=self._settled.unreachable_timeout),
                summary=f"Boot id of {host}",
                **policies.HOST_JOB,
            )
            before = read.boot_id
            self._note(host, boot_id_before=before)
        try:
            booted = await self._until_rebooted(host, before)
        except ActivityError as error:
            if not self._is_lost(host, as_application_error(error)):
                raise
            await self._power_cycle(host)
            booted = await self._until_rebooted(host, before)
        self._note(host, boot_id_after=booted.boot_id)

    async def _until_rebooted(self, host: str, before: str) -> BootId:
        booted: BootId = await workflow.execute_activity_method(
            HookActivities.reboot_host,
            RebootHostInput(
                host=host,
                maintenance=self._maintenance_of(host),
                boot_id=before,
                timeout=self._settled.reboot_timeout,
            ),
            summary=f"Reboot of {host}",
            **policies.HOST_JOB,
        )
        return booted

    def _is_lost(self, host: str, failure: ApplicationError) -> bool:
        """Whether its BMC is to help it, which it does once."""
        asked, progress = self._asked.power_cycle_when_lost, self._hosts[host]
        if not asked or progress.power_cycled or failure.type != "RebootTimedOut":
            return False
        return any(
            isinstance(told, dict) and told.get("answers") is False for told in failure.details
        )

    async def _power_cycle(self, host: str) -> None:
        """Its VMs have left it. The command, and why, is in its events."""
        self._note(host, power_cycled=True)
        try:
            await power_use.boot(
                host,
                f"it did not come back from its reboot within {self._settled.reboot_timeout} s, in "
                f"the maintenance of {self._settled.cluster}",
            )
        except ApplicationError as error:
            raise ApplicationError(
                f"it did not come back from its reboot, and its BMC could not help: "
                f"{error.message}",
                type=error.type,
                non_retryable=True,
            ) from error

    async def _leave(self, host: str) -> None:
        await workflow.execute_activity_method(
            OperationActivities.leave_maintenance,
            LeaveMaintenanceInput(
                host=host,
                maintenance=self._maintenance_of(host),
                request=str(workflow.uuid4()),
                return_vms=self._asked.return_vms,
            ),
            summary=f"{host} goes back into service",
            **policies.HOST_JOB,
        )

    async def _wait_for_maintenance(
        self, host: str, seen: MaintenanceProgress
    ) -> MaintenanceProgress:
        found: MaintenanceProgress = await workflow.execute_activity_method(
            OperationActivities.wait_for_maintenance,
            WaitForMaintenanceInput(host=host, maintenance=self._maintenance_of(host), seen=seen),
            summary=f"Until {host} is ready",
            **policies.HOST_JOB,
        )
        return found

    # --- continue as new ------------------------------------------------------------------------

    def _continue_as_new(self) -> None:
        workflow.continue_as_new(
            self._asked.model_copy(
                update={
                    "continued": CarriedClusterMaintenance(
                        plan=self._settled,
                        hosts=tuple(self._hosts.values()),
                        since=self._since,
                        paused=self._paused,
                        halted=self._halted,
                    )
                }
            )
        )

    def _resume_carried(self, carried: CarriedClusterMaintenance) -> None:
        if workflow.info().continued_run_id is None:
            raise ApplicationError(
                "The input of ClusterMaintenance is not valid: continued: is Hostler's own field.",
                type="InvalidInput",
                non_retryable=True,
            )
        self._plan = carried.plan
        self._since = carried.since
        self._hosts = {progress.host: progress for progress in carried.hosts}
        self._paused = self._paused or carried.paused
        self._halted = carried.halted

    # --- updates and the query ------------------------------------------------------------------

    @workflow.update(name="pause")
    async def pause(self, _: PauseInput) -> None:
        """No new host begins; those in work go on to their end."""
        self._paused = True
        self._changed()

    @pause.validator
    def _check_pause(self, _: PauseInput) -> None:
        self._require_going_on()
        if self._paused:
            raise _refused("It is paused already: resume or stop.")

    @workflow.update(name="resume")
    async def resume(self, _: ResumeInput) -> None:
        """Go on after a pause, or after a failure: what has failed is tried again."""
        self._paused = self._halted = False
        for name, progress in self._hosts.items():
            if progress.state is HostWork.FAILED:
                self._note(name, state=HostWork.WAITING)
        self._changed()

    @resume.validator
    def _check_resume(self, _: ResumeInput) -> None:
        self._require_going_on()
        if not self._paused and not self._halted:
            raise _refused(
                "It is neither paused, nor has a host failed: there is nothing to resume."
            )

    @workflow.update(name="stop")
    async def stop(self, _: StopInput) -> None:
        """End when the hosts in work are done; one that has failed stays as it is."""
        self._stop()

    @stop.validator
    def _check_stop(self, _: StopInput) -> None:
        self._require_going_on()

    @workflow.query(name="status")
    def status(self) -> ClusterMaintenanceStatus:
        """Each host's state, step and last error, and what moves it on."""
        asked, phase = self._asked, self._phase
        hosts = tuple(self._hosts.values())
        return ClusterMaintenanceStatus(
            cluster=asked.cluster,
            phase=phase,
            reason=asked.reason,
            message=message(phase, hosts, paused=self._paused),
            since=self._since,
            parallel=asked.parallel,
            reboot=asked.reboot,
            hosts=hosts,
            commands=next_commands(asked.cluster, workflow.info().workflow_id, phase, hosts),
        )

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def _asked(self) -> ClusterMaintenanceInput:
        if self._request is None:
            raise _refused("The maintenance has not begun yet.")
        return self._request

    @property
    def _settled(self) -> ClusterPlan:
        if self._plan is None:
            raise _refused("The hosts were not read yet.")
        return self._plan

    @property
    def _operation(self) -> str:
        info = workflow.info()
        return f"{info.workflow_id}#{info.first_execution_run_id}"

    @property
    def _phase(self) -> ClusterPhase:
        hosts = self._hosts.values()
        if self._ended:
            return ClusterPhase.DONE
        if self._stopping:
            return ClusterPhase.STOPPING
        if self._plan is None:
            return ClusterPhase.PLANNING
        if self._halted or any(host.question for host in hosts):
            return ClusterPhase.QUESTION
        if self._paused:
            return ClusterPhase.PAUSED
        if any(host.step is Step.PRE_FLIGHT for host in hosts):
            return ClusterPhase.PRE_FLIGHT
        return ClusterPhase.WORKING

    def _maintenance_of(self, host: str) -> Owner:
        maintenance = self._hosts[host].maintenance
        if maintenance is None:
            raise _refused(f"{host} was not taken out of service yet.")
        return maintenance

    def _all_are(self, state: HostWork) -> bool:
        return all(host.state is state for host in self._hosts.values())

    def _require_going_on(self) -> None:
        if self._stopping or self._ended:
            raise _refused("It is being stopped already; hosts in work are brought to their end.")

    def _stop(self) -> None:
        self._stopping = True
        self._changed()

    def _note(self, host: str, **changed: object) -> None:
        self._hosts[host] = self._hosts[host].model_copy(update=changed)
        self._changed()

    def _changed(self) -> None:
        self._changes += 1
        if self._request is not None:
            self._show()

    def _show(self) -> None:
        status = self.status()
        if status.phase is not self._shown_phase:
            self._shown_phase = status.phase
            attributes = [HOST_CLUSTER.value_set(status.cluster), PHASE.value_set(status.phase)]
            if self._plan is not None:
                attributes.append(HOST_ZONE.value_set(self._plan.zone))
            workflow.upsert_search_attributes(attributes)
        workflow.set_current_details(current_details(status))


def _hook_failed(outcome: HookOutcome) -> ApplicationError:
    how = outcome.problem or f"it ended with status {outcome.exit_status}"
    return ApplicationError(f"the hook {outcome.stage} has failed: {how}", type="HookFailed")


def _refused(text: str) -> ApplicationError:
    return ApplicationError(text, type="Conflict", non_retryable=True)


def _hear_of_it(maintenance: asyncio.Task[object]) -> None:
    """Its end is learnt by an activity, which outlives this run; the event is only read."""
    if not maintenance.cancelled():
        maintenance.exception()
