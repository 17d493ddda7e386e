"""PowerAction: switch a host's power by its BMC, or ask how it is.

    settings -> lease -> look -> (refuse | there already) -> send once -> watch -> say what came

A command is sent at most once. After a crash in between nobody sends it again: it is looked for
what became of it, and if that can't be told the action ends as OutcomeUnknown. Cancel before the
command is sent ends the action; later it comes too late, what became of it is still found out, and
no other command follows.
"""

import asyncio
from datetime import timedelta

from temporalio import exceptions, workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.leases import LeaseActivities
    from activities.power import PowerActivities
    from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
    from contracts.power import PowerState
    from contracts.power_actions import (
        Action,
        CommandOutcome,
        FinishPowerInput,
        PowerActionInput,
        PowerActionResult,
        PowerActionStatus,
        PowerCommandRef,
        PowerOutcome,
        PowerSeen,
        PowerSent,
        PowerSettings,
        PowerSurvey,
        PowerWord,
        WatchPowerInput,
    )
    from contracts.states import Phase
    from contracts.steps import AcquireLeaseInput, AwaitLeaseInput, HostRef
    from workflows import policies
    from workflows.failures import as_application_error, explain
    from workflows.power_plan import check, failure, is_there_already, judge, warnings
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE
    from workflows.takeover import conflict

_ENDINGS = frozenset({Phase.ROLLING_BACK, Phase.DONE})


@workflow.defn(name="PowerAction")
class PowerAction:
    """One action on the power of one host."""

    def __init__(self) -> None:
        self._request: PowerActionInput | None = None
        self._phase = Phase.PLANNING
        self._message = "Looks at the host"
        self._lease: LeaseRef | None = None
        self._state: PowerState | None = None
        self._warnings: tuple[str, ...] = ()
        self._sent: tuple[Action, ...] = ()
        self._final = False
        self._canceled = False
        self._cancel_came_late = False
        self._may_have_booted = False
        self._answer_timeout = 0

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: PowerActionInput) -> PowerActionResult:
        """Returns when the power is as it should be, or was asked for."""
        self._request = request
        workflow.upsert_search_attributes([HOST_NAME.value_set(request.host)])
        self._enter(Phase.PLANNING, f"Asks the BMC of {request.host}")
        work = asyncio.create_task(
            self._observe() if request.action is Action.STATUS else self._switch()
        )
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._cancel(work)
        problem = None if work.cancelled() else work.exception()
        await self._release()
        if work.cancelled() or (problem is not None and self._canceled):
            raise asyncio.CancelledError("the action was cancelled before anything was sent")
        if isinstance(problem, ActivityError):
            problem = as_application_error(problem)
        if problem is not None:
            self._enter(Phase.DONE, str(problem))
            raise problem
        return work.result()

    async def _observe(self) -> PowerActionResult:
        settings = await self._settings()
        word: PowerWord = await workflow.execute_activity_method(
            PowerActivities.ask_power,
            HostRef(host=self._asked.host),
            summary=f"What the BMC of {self._asked.host} says",
            **policies.bmc_look(settings.answer_timeout),
        )
        self._state = word.state
        self._enter(Phase.DONE, f"It is {word.state}" + (f": {word.reason}" if word.reason else ""))
        return PowerActionResult(
            host=self._asked.host,
            action=self._asked.action,
            outcome=PowerOutcome.OBSERVED,
            state=word.state,
            observed_at=word.observed_at,
            proof=word.reason,
        )

    async def _switch(self) -> PowerActionResult:
        asked = self._asked
        settings = await self._settings()
        seconds, self._answer_timeout = asked.timeout or settings.timeout, settings.answer_timeout
        await self._acquire(seconds)
        survey = await self._survey(settings)
        if is_there_already(asked.action, survey.state):
            return self._result(
                PowerOutcome.THERE_ALREADY, survey.state, survey, "nothing was sent"
            )
        do = self._do_from_network if asked.network_boot else self._do
        seen, proof = await do(asked.action, survey, seconds)
        return self._result(PowerOutcome.DONE, seen.state, seen, proof)

    # --- the steps ------------------------------------------------------------------------------

    async def _settings(self) -> PowerSettings:
        settings: PowerSettings = await workflow.execute_activity_method(
            PowerActivities.read_power_settings,
            HostRef(host=self._asked.host),
            summary="Settings",
            **policies.RECORD,
        )
        workflow.upsert_search_attributes(
            [HOST_CLUSTER.value_set(settings.cluster), HOST_ZONE.value_set(settings.zone)]
        )
        return settings

    async def _acquire(self, seconds: int) -> None:
        """Of several at once on one BMC, one at a time."""
        asked, info = self._asked, workflow.info()
        self._enter(Phase.QUEUED, f"Waits for whatever else is done to the BMC of {asked.host}")
        lease: Lease = await workflow.execute_activity_method(
            PowerActivities.await_power_lease,
            AwaitLeaseInput(
                acquire=AcquireLeaseInput(
                    host=asked.host,
                    scope=LeaseScope.POWER,
                    owner=Owner(
                        workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id
                    ),
                    purpose=f"power {asked.action!s}: {asked.reason or 'no reason given'}",
                ),
                within_s=seconds,
            ),
            summary=f"The BMC of {asked.host}, for this alone",
            **policies.HOST_WAIT,
        )
        self._lease = LeaseRef(
            host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch
        )
        if lease.taken_over_from is not None:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )

    async def _survey(self, settings: PowerSettings) -> PowerSurvey:
        host = self._asked.host
        self._enter(Phase.PLANNING, f"Looks at {host}: power, VMs, boot")
        survey: PowerSurvey = await workflow.execute_activity_method(
            PowerActivities.survey_power,
            HostRef(host=host),
            summary=f"How {host} is",
            **policies.bmc_look(settings.answer_timeout),
        )
        self._state = survey.state
        check(self._asked, survey)
        self._warnings = warnings(self._asked, survey)
        return survey

    async def _do_from_network(
        self, action: Action, survey: PowerSurvey, seconds: int
    ) -> tuple[PowerSeen, str]:
        """Set under the lease, right before it boots; without a boot not left behind: there are
        BMCs that would go by it weeks later."""
        self._enter(Phase.SWITCHING, f"{self._asked.host} is to boot from the network, once")
        try:
            await workflow.execute_activity_method(
                PowerActivities.set_network_boot,
                self._held,
                summary="The next boot is from the network",
                **policies.BMC_COMMAND,
            )
            return await self._do(action, survey, seconds)
        except (asyncio.CancelledError, ActivityError, ApplicationError) as error:
            if not self._may_have_booted:
                await self._clear_network_boot(error)
            raise

    async def _clear_network_boot(self, error: BaseException) -> None:
        """Raises ApplicationError in the place of `error` if that is left behind."""
        host = self._asked.host
        self._enter(Phase.ROLLING_BACK, f"{host} is to boot as before")
        self._final = True
        try:
            await workflow.execute_activity_method(
                PowerActivities.clear_network_boot,
                self._held,
                summary="The next boot is as before",
                **policies.BMC_COMMAND,
            )
        except ActivityError as left:
            if isinstance(error, ActivityError) and not self._canceled:
                error = as_application_error(error)
            first = (
                error
                if isinstance(error, ApplicationError)
                else ApplicationError("The action was cancelled.", type="Failed")
            )
            # It ends as a failure, though it was cancelled: a cancel would not say this.
            self._canceled = False
            raise ApplicationError(
                f"{first.message} The next boot of {host} may still be from the network: "
                f"{explain(left)}",
                *first.details,
                type=first.type,
                non_retryable=True,
            ) from error

    async def _do(self, action: Action, survey: PowerSurvey, seconds: int) -> tuple[PowerSeen, str]:
        """Send, watch, judge; what was seen, and by what it is known that it is done."""
        command = PowerCommandRef(
            lease=self._held,
            action=action,
            generation=survey.generation,
            reason=self._asked.reason,
            boot_id=survey.boot_id,
            timeout=seconds,
            force=self._asked.force,
            may_be_silent=action is not self._asked.action,
        )
        sent = await self._send(command)
        # The boot of before is the one that the first attempt has written down.
        command = command.model_copy(update={"boot_id": sent.boot_id})
        seen = await self._watch(command, seconds)
        self._state = seen.state
        verdict = judge(action, sent, seen, seconds)
        before, after = survey.state, seen.state
        await workflow.execute_activity_method(
            PowerActivities.finish_power_command,
            FinishPowerInput(
                command=command,
                outcome=verdict.outcome,
                message=f"{before} -> {after}: {verdict.message}",
            ),
            summary=f"{action!s}: {verdict.outcome}",
            **policies.RECORD,
        )
        if verdict.outcome is CommandOutcome.DONE:
            return seen, verdict.message
        is_on = seen.state is PowerState.ON
        goes_on = self._asked.fall_back_to_off and not self._cancel_came_late
        if action is Action.SOFT and goes_on and is_on:
            self._enter(Phase.SWITCHING, f"{verdict.message}: it is switched off")
            return await self._do(Action.OFF, survey, seconds)
        self._may_have_booted = sent.accepted and verdict.outcome is CommandOutcome.UNKNOWN
        raise failure(self._asked.host, action, verdict)

    async def _send(self, command: PowerCommandRef) -> PowerSent:
        host, action = command.lease.host, command.action
        self._enter(Phase.SWITCHING, f"Tells the BMC of {host}: {action!s}")
        # Whether it has taken effect is not known while it runs.
        self._final = True
        self._sent = (*self._sent, action)
        try:
            sent: PowerSent = await workflow.execute_activity_method(
                PowerActivities.send_power_command,
                command,
                summary=f"{host}: {action!s}",
                **policies.BMC_COMMAND,
            )
        except ActivityError as error:
            if not isinstance(error.cause, exceptions.TimeoutError):
                raise
            # Its worker died again and again: the last of them may have sent it.
            return PowerSent(
                accepted=False,
                sent_at=workflow.now(),
                boot_id=command.boot_id,
                problem="no worker was able to say",
            )
        return sent

    async def _watch(self, command: PowerCommandRef, seconds: int) -> PowerSeen:
        host = command.lease.host
        self._enter(Phase.VERIFYING, f"Watches {host} until {command.action!s} has come about")
        try:
            seen: PowerSeen = await workflow.execute_activity_method(
                PowerActivities.watch_power,
                WatchPowerInput(command=command, until=workflow.now() + timedelta(seconds=seconds)),
                summary=f"{host}: until {command.action!s} has come about",
                **policies.bmc_watch(seconds, self._answer_timeout),
            )
        except ActivityError as error:
            # Its configuration was deleted or disabled, for example: the command was sent all the
            # same, and has an outcome.
            problem = as_application_error(error).message
            workflow.logger.warning("%s can't be watched: %s", host, problem)
            return PowerSeen(
                state=PowerState.UNKNOWN, observed_at=workflow.now(), problem=problem.rstrip(".")
            )
        return seen

    async def _release(self) -> None:
        if self._lease is not None:
            await workflow.execute_activity_method(
                LeaseActivities.release_lease, self._lease, **policies.RECORD
            )

    # --- the query, bookkeeping -----------------------------------------------------------------

    @workflow.query(name="status")
    def status(self) -> PowerActionStatus:
        """Where the action stands."""
        return PowerActionStatus(
            host=self._asked.host,
            action=self._asked.action,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            state=self._state,
            sent=self._sent,
            cancel_came_late=self._cancel_came_late,
            warnings=self._warnings,
            commands=(f"hostler power status {self._asked.host}",),
        )

    @property
    def _asked(self) -> PowerActionInput:
        if self._request is None:
            raise conflict("The action has not begun yet.")
        return self._request

    @property
    def _held(self) -> LeaseRef:
        if self._lease is None:
            raise conflict("The action holds no lease yet.")
        return self._lease

    def _cancel(self, work: "asyncio.Task[PowerActionResult]") -> None:
        if self._final:
            self._cancel_came_late = True
            self._show()
        else:
            self._canceled = True
            work.cancel()

    def _result(
        self,
        outcome: PowerOutcome,
        state: PowerState,
        seen: PowerSurvey | PowerSeen,
        proof: str,
    ) -> PowerActionResult:
        self._enter(Phase.DONE, f"It is {state}: {proof}")
        return PowerActionResult(
            host=self._asked.host,
            action=self._asked.action,
            outcome=outcome,
            state=state,
            observed_at=seen.observed_at,
            sent=self._sent,
            proof=proof,
            warnings=self._warnings,
        )

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and phase not in _ENDINGS:
            raise asyncio.CancelledError
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self._show()

    def _show(self) -> None:
        asked = self._asked
        lines = [f"### {asked.host}: power {asked.action!s}: {self._phase}", "", self._message]
        lines += ["", f"Reason: {asked.reason}"] if asked.reason else []
        if self._state is not None:
            lines += ["", f"Its BMC says: {self._state}"]
        lines += [f"\n**Warning:** {warning}" for warning in self._warnings]
        if self._cancel_came_late:
            lines += ["", "The cancel came too late: what was sent can't be taken back."]
        workflow.set_current_details(
            "\n".join([*lines, "", f"    hostler power status {asked.host}"])
        )
