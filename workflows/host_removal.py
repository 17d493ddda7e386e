"""HostRemoval: take a host out of the inventory, and what Hostler has put on it off the host.

    survey -> maintenance (if asked) -> take over -> begin -> clean and prove -> power off (if
    asked) -> delete -> certificates revoked

Until `begin` a cancel leaves the host as it is then: in maintenance, if it was or was put there.
After that there is no way back: it says so, and goes on. A host that does not answer is cleaned
when it ever does again. Its certificates are revoked after `delete`: from then on it gets no more.
"""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.records import RecordActivities
    from activities.removal import RemovalActivities
    from contracts.certificates import RevocationReason
    from contracts.hosts import Host
    from contracts.maintenance import HostMaintenanceInput, MaintenanceSettings
    from contracts.power_actions import Action, PowerActionInput
    from contracts.removal import (
        BeginRemovalInput,
        Cleaning,
        HostRemovalInput,
        HostRemovalResult,
        HostRemovalStatus,
        HostRemoved,
        RemovalAction,
        RemovalBegun,
        RemovalEffect,
        RemovalOutcome,
        RemovalSurvey,
        RemoveHostInput,
        ResolveRemovalInput,
    )
    from contracts.states import Phase, ResourceState
    from contracts.steps import EventInput, HostRef
    from workflows import certification, policies, power_use
    from workflows.failures import as_application_error
    from workflows.removal_page import current_details, next_commands
    from workflows.removal_plan import check, effects, is_lost, needs_maintenance
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE
    from workflows.takeover import Takeover, conflict

# Nobody can do anything about these by waiting or trying again.
_HOPELESS = frozenset({"LeaseLost", "NotFound"})
_ENDINGS = frozenset({Phase.ROLLING_BACK, Phase.DONE})


@workflow.defn(name="HostRemoval")
class HostRemoval:
    """One removal of one host."""

    def __init__(self) -> None:
        self._request: HostRemovalInput | None = None
        self._phase = Phase.PLANNING
        self._message = "Looks at the host"
        self._takeover = Takeover("removal", self._enter)
        self._effects: tuple[RemovalEffect, ...] = ()
        self._begun = False
        self._canceled = False
        self._cancel_came_late = False
        self._answer: RemovalAction | None = None
        self._asking = False

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: HostRemovalInput) -> HostRemovalResult:
        """Returns when the host is removed, or when a dry run has its list."""
        self._request = request
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._enter(Phase.PLANNING, f"Looks at {request.host}")
        work = asyncio.create_task(self._remove())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._cancel(work)
        failure: BaseException | None = work.exception() if not work.cancelled() else None
        ended_early = failure is not None or work.cancelled()
        if ended_early:
            await self._give_back()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if ended_early and self._canceled:
            raise asyncio.CancelledError("the removal was cancelled before anything was cleaned")
        if isinstance(failure, ActivityError):
            failure = as_application_error(failure)
        if failure is not None:
            host = request.host
            again = f"hostler host remove {host}" if self._begun else None
            raise self._takeover.with_remains(failure, host, again)
        return work.result()

    async def _remove(self) -> HostRemovalResult:
        if self._asked.power_off:
            await power_use.require_power(self._asked.host, "power_off")
        survey = await self._survey()
        if self._asked.dry_run:
            return self._result(RemovalOutcome.PLANNED)
        if needs_maintenance(survey) and not is_lost(self._asked, survey):
            await self._take_out()
        await self._takeover.acquire(self._asked.host, survey.holder, self._asked.reason)
        await self._takeover.acquire_trust(self._asked.host, self._asked.reason)
        survey = await self._survey()
        if is_lost(self._asked, survey):
            return await self._remove_lost(survey)
        return await self._remove_clean(survey)

    async def _remove_clean(self, survey: RemovalSurvey) -> HostRemovalResult:
        begun = await self._begin(survey)
        cleaning, problem = await self._clean()
        left_on = await self._power_off(clean=cleaning is not None)
        removed = await self._delete(
            vms=survey.defined, cleaned=cleaning is not None, problem=problem
        )
        left = [f"VM {vm}, defined and shut off" for vm in survey.defined]
        if cleaning is None:
            left.append(f"what Hostler has put on it, until it answers again: {problem}")
        if left_on:
            left.append(f"its power is on: {left_on}")
        return self._result(
            RemovalOutcome.REMOVED,
            removed_from_host=begun.found if cleaning is not None else (),
            proof=cleaning.proof if cleaning is not None else "",
            left=tuple(left),
            vms=survey.defined,
            tombstone=removed.tombstone,
        )

    async def _remove_lost(self, survey: RemovalSurvey) -> HostRemovalResult:
        self._begun = True
        removed = await self._delete(vms=survey.last_seen, cleaned=False, problem=survey.problem)
        return self._result(
            RemovalOutcome.REMOVED,
            left=(f"what Hostler has put on it, until it answers again: {survey.problem}",),
            vms=survey.last_seen,
            tombstone=removed.tombstone,
        )

    # --- the steps ------------------------------------------------------------------------------

    async def _survey(self) -> RemovalSurvey:
        """What is there, refused if the host can't be removed as it is."""
        survey: RemovalSurvey = await workflow.execute_activity_method(
            RemovalActivities.survey_removal,
            HostRef(host=self._asked.host),
            summary=f"What there is of {self._asked.host}",
            **policies.FIRST_LOOK,
        )
        workflow.upsert_search_attributes(
            [HOST_CLUSTER.value_set(survey.host.cluster), HOST_ZONE.value_set(survey.host.zone)]
        )
        check(self._asked, survey, untouched=self._takeover.lease is None)
        self._effects = effects(self._asked, survey)
        return survey

    async def _take_out(self) -> None:
        await self._takeover.take_out(
            HostMaintenanceInput(
                host=self._asked.host,
                reason=self._asked.reason or "is to be removed",
                on_blocker=self._asked.on_blocker,
                max_parallel=self._asked.max_parallel,
                queue=self._asked.queue,
            ),
            then="remove the host",
        )

    async def _begin(self, survey: RemovalSurvey) -> RemovalBegun:
        self._enter(Phase.CLEANING, "From here on there is no way back")
        # Whether it has taken effect is not known while it runs.
        self._begun = True
        try:
            begun: RemovalBegun = await workflow.execute_activity_method(
                RemovalActivities.begin_removal,
                BeginRemovalInput(
                    lease=self._takeover.held,
                    leave_vms=self._asked.leave_vms,
                    step=f"{workflow.info().run_id}/begin",
                    reason=self._asked.reason or "no reason given",
                ),
                summary=f"{self._asked.host} becomes Removed",
                **policies.FIRST_LOOK,
            )
        except ActivityError:
            # Its end may be what was lost.
            host: Host = await workflow.execute_activity_method(
                RecordActivities.get_host,
                HostRef(host=self._asked.host),
                summary="Whether it is Removed all the same",
                **policies.RECORD,
            )
            self._begun = host.resource_state is ResourceState.REMOVED
            if not self._begun:
                raise
            begun = RemovalBegun(found=survey.found)
        return begun

    async def _clean(self) -> tuple[Cleaning | None, str]:
        """Until nothing of Hostler's is left on the host and that is proven, or somebody says that
        it is to be removed all the same: None, and why it could not be cleaned."""
        settings: MaintenanceSettings = await workflow.execute_activity_method(
            RecordActivities.read_settings, HostRef(host=self._asked.host), **policies.RECORD
        )
        policy = policies.ActivityPolicy(**policies.HOST_CHANGE)
        policy["schedule_to_close_timeout"] = timedelta(seconds=settings.unreachable_timeout)
        while True:
            self._enter(Phase.CLEANING, f"Takes off {self._asked.host} what Hostler has put there")
            try:
                cleaning: Cleaning = await workflow.execute_activity_method(
                    RemovalActivities.clean_host,
                    self._takeover.held,
                    summary=f"Nothing of Hostler's stays on {self._asked.host}",
                    **policy,
                )
            except ActivityError as error:
                failure = as_application_error(error)
                if failure.type in _HOPELESS:
                    raise
                answer = await self._ask(failure.message, settings.retry_interval)
                if answer is RemovalAction.LEAVE_UNCLEANED:
                    return None, failure.message
            else:
                return cleaning, ""

    async def _ask(self, problem: str, retry_s: int) -> RemovalAction:
        """An operator's answer; `retry` if nobody gives one for some time."""
        self._answer, self._asking = None, True
        self._enter(Phase.QUESTION, f"{self._asked.host} can't be cleaned: {problem}")
        try:
            await workflow.wait_condition(
                lambda: self._answer is not None,
                timeout=retry_s,
                timeout_summary=f"{self._asked.host} is tried again",
            )
        except TimeoutError:
            return RemovalAction.RETRY
        finally:
            self._asking = False
        return self._answer or RemovalAction.RETRY

    async def _power_off(self, *, clean: bool) -> str:
        """Why it is on, if it is that against what was asked: that keeps nothing from going on."""
        asked = self._asked
        if not asked.power_off:
            return ""
        if not clean:
            return "it has to be cleaned yet"
        self._enter(Phase.SWITCHING, f"{asked.host} is clean: it is shut down and switched off")
        try:
            await power_use.switch(
                PowerActionInput(
                    host=asked.host,
                    action=Action.SOFT,
                    fall_back_to_off=asked.fall_back_to_off,
                    reason=asked.reason or "is removed",
                )
            )
        except ApplicationError as error:
            await workflow.execute_activity_method(
                RecordActivities.record_event,
                EventInput(
                    lease=self._takeover.held,
                    kind="removal.not_switched_off",
                    message=error.message,
                ),
                summary=f"{asked.host} is not off",
                **policies.RECORD,
            )
            return error.message
        return ""

    async def _delete(self, *, vms: tuple[str, ...], cleaned: bool, problem: str) -> HostRemoved:
        host = self._asked.host
        self._enter(Phase.REMOVING, f"Deletes {host} from the inventory")
        removed: HostRemoved = await workflow.execute_activity_method(
            RemovalActivities.remove_host,
            RemoveHostInput(
                lease=self._takeover.held,
                reason=self._asked.reason,
                forced=self._asked.forced,
                vms=vms,
                cleaned=cleaned,
                problem=problem,
            ),
            summary=f"{host} leaves the inventory",
            **policies.RECORD,
        )
        if workflow.patched("revoke-certificates"):
            await certification.revoke_all(
                host, RevocationReason.CESSATION_OF_OPERATION, f"Of the removed host {host}"
            )
        await self._takeover.release()
        self._enter(Phase.DONE, f"{host} is removed")
        return removed

    async def _give_back(self) -> None:
        """Nobody holds the host; its state stays as it is."""
        if self._takeover.lease is not None:
            self._enter(Phase.ROLLING_BACK, "Ends, and leaves the host as it is")
            await self._takeover.release()

    # --- updates and the query ------------------------------------------------------------------

    @workflow.update(name="resolve")
    async def resolve(self, answer: ResolveRemovalInput) -> None:
        """Answer the question about a host that can't be cleaned."""
        self._answer = answer.action

    @resolve.validator
    def _check_answer(self, answer: ResolveRemovalInput) -> None:
        if not self._asking or self._answer is not None:
            raise ApplicationError(
                f"Nothing waits for an answer ({self._phase}: {self._message}).", type="Conflict"
            )

    @workflow.query(name="status")
    def status(self) -> HostRemovalStatus:
        """Where the removal stands, what it does, and what moves it on."""
        return HostRemovalStatus(
            host=self._asked.host,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            final=self._begun,
            cancel_came_late=self._cancel_came_late,
            effects=self._effects,
            commands=next_commands(
                self._asked.host,
                workflow.info().workflow_id,
                self._phase,
                asking=self._asking,
                final=self._begun,
                maintenance=self._takeover.maintenance is not None and self._takeover.lease is None,
            ),
        )

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def _asked(self) -> HostRemovalInput:
        if self._request is None:
            raise conflict("The removal has not begun yet.")
        return self._request

    def _cancel(self, work: "asyncio.Task[HostRemovalResult]") -> None:
        if self._begun:
            self._cancel_came_late = True
            self._show()
        else:
            self._canceled = True
            work.cancel()

    def _result(self, outcome: RemovalOutcome, **more: Any) -> HostRemovalResult:
        return HostRemovalResult(
            host=self._asked.host, outcome=outcome, effects=self._effects, **more
        )

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and phase not in _ENDINGS:
            raise asyncio.CancelledError
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self._show()

    def _show(self) -> None:
        workflow.set_current_details(current_details(self.status()))
