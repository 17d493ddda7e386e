"""AuthorityRollover: another CA takes the place of a provider's, while all hosts trust each other.

    the next CA is made, or an operator's taken -> every host trusts both -> it issues: Hostler and
    every host get certificates of it -> the former one is taken off every host

Each stage begins when every host is through the one before, but for those that were left out on
purpose: who is away is waited for. How far it is, the inventory says: another run goes on where one
has ended, however it did. VMs run on, and may migrate all along.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, NoReturn, TypeVar

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ActivityHandle, ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.certificates import CertificateActivities
    from activities.crl_delivery import CrlDeliveryActivities
    from activities.rollover import RolloverActivities
    from contracts.certificate_upkeep import CrlDelivery, DeliverCrlsInput
    from contracts.certificates import (
        CertificateProvisioningInput,
        PublishCrlInput,
        SetUpAuthorityInput,
    )
    from contracts.leases import Owner
    from contracts.operations import WORKFLOW_TYPES, OperationKind, workflow_id
    from contracts.rollover import (
        AuthorityRolloverInput,
        AuthorityRolloverResult,
        AuthorityRolloverStatus,
        FindRolloverInput,
        LeaveHostOutInput,
        LeaveOutInput,
        LookAtRolloverInput,
        NoteRolloverInput,
        PauseInput,
        PrepareNextInput,
        RolloverCarried,
        RolloverProgress,
        RolloverStage,
        RolloverStepInput,
        RolloverStepResult,
    )
    from contracts.states import Phase
    from workflows import policies
    from workflows.authority_rollover_page import (
        PHASES,
        current_details,
        headline,
        next_commands,
    )
    from workflows.crl_delivery import deliver_crls
    from workflows.failures import as_application_error
    from workflows.search_attributes import PHASE
    from workflows.takeover import conflict

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")

# How long a host keeps its place: one that goes away in the middle is waited for by its
# provisioning.
_PATIENCE = timedelta(minutes=15)
# Another operation has the host by now; it is tried again.
_TAKEN_OVER = frozenset({"LeaseLost", "EpochRefused"})
_STEPS = {
    RolloverStage.TRUST: (RolloverActivities.begin_issuing, "All trust it: it issues"),
    RolloverStage.CERTIFICATES: (
        RolloverActivities.withdraw_authority,
        "All have certificates of the new CA: the former one is to be trusted no more",
    ),
    RolloverStage.WITHDRAWAL: (RolloverActivities.end_rollover, "No host trusts the former CA"),
}


@workflow.defn(name="AuthorityRollover")
class AuthorityRollover:
    """One provider's. A cancel drops the next CA as long as it does not issue; from then on it lets
    no other host begin, and both CAs stay in force until another run goes on."""

    def __init__(self) -> None:
        self._request: AuthorityRolloverInput | None = None
        self._provider: str | None = None
        self._since: datetime = workflow.now()
        self._phase = Phase.PLANNING
        self._message = "Looks which CA issues"
        self._progress: RolloverProgress | None = None
        self._busy: dict[str, str] = {}
        self._left_out: set[str] = set()
        self._renewed_own = False
        self._paused = False
        self._canceled = False
        self._woken = False
        self._call: ActivityHandle[Any] | None = None

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: AuthorityRolloverInput) -> AuthorityRolloverResult:
        """Returns when no host trusts the former CA any more, but for those left out."""
        self._request = request
        if request.carried is not None:
            self._provider, self._since = request.carried.provider, request.carried.since
            self._paused = request.carried.paused
            self._renewed_own = request.carried.renewed_own
        self._enter(Phase.PLANNING, "Looks which CA issues")
        work = asyncio.create_task(self._work())
        while not (work.done() and workflow.all_handlers_finished()):
            try:
                await workflow.wait_condition(
                    lambda: work.done() and workflow.all_handlers_finished()
                )
            except asyncio.CancelledError:
                self._canceled = self._woken = True
                if self._call is not None:
                    self._call.cancel()
        problem = work.exception()
        if isinstance(problem, ActivityError):
            problem = as_application_error(problem)
        if problem is not None:
            self._enter(Phase.DONE, str(problem))
            raise problem
        result = work.result()
        if result is None and self._canceled:
            await self._give_up()
            raise asyncio.CancelledError(self._message)
        if result is None:
            self._continue_as_new()
        return result

    async def _work(self) -> AuthorityRolloverResult | None:
        """None: it is to continue as new, or was cancelled."""
        try:
            return await self._go_round()
        except (ActivityError, asyncio.CancelledError) as error:
            if self._canceled and is_cancelled_exception(error):
                return None
            raise

    async def _go_round(self) -> AuthorityRolloverResult | None:
        progress = await self._look() if self._asked.carried else await self._begin()
        rounds = 0
        if self._canceled and not self._asked.dry_run:
            return None
        while progress.stage is not RolloverStage.NONE and not self._asked.dry_run:
            await workflow.wait_condition(lambda: not self._paused or self._canceled)
            grown = workflow.info().is_continue_as_new_suggested()
            if self._canceled or grown or rounds >= self._asked.rounds:
                return None
            rounds += 1
            self._woken = False
            if not progress.stopped:
                await self._move(progress)
            before, progress = _position(progress), await self._look()
            if _position(progress) == before:
                await self._wait()
        self._enter(Phase.DONE, headline(progress, paused=False))
        return AuthorityRolloverResult(progress=progress, dry_run=self._asked.dry_run)

    async def _move(self, progress: RolloverProgress) -> None:
        if progress.stage is RolloverStage.CERTIFICATES and not self._renewed_own:
            await self._renew_own()
        self._busy = {}
        told = tuple(host for host in progress.due if host not in progress.to_certify)
        if told:
            await self._deliver(told)
        if progress.to_certify:
            await self._reissue(progress)
        # Those that were left out are no reason to stay.
        if progress.is_through and not (self._paused or self._canceled):
            await self._advance(progress.stage)

    # --- the steps ------------------------------------------------------------------------------

    async def _begin(self) -> RolloverProgress:
        """The next CA is there, with its revocation list, or what was begun before goes on."""
        asked, operation = self._asked, workflow.info().workflow_id
        try:
            progress = self._take(
                await self._ask_ca(
                    RolloverActivities.find_rollover,
                    FindRolloverInput(provider=asked.provider, operation=operation),
                    "Which CA issues, and whether it is being replaced",
                )
            )
            if asked.dry_run or self._canceled:
                return progress
            progress = self._take(
                await self._ask_ca(
                    RolloverActivities.prepare_next_authority,
                    PrepareNextInput(
                        provider=progress.provider,
                        after=progress.newest,
                        key_secret=asked.key_secret,
                        chain=asked.chain,
                        leave_out=asked.leave_out,
                        reason=asked.reason,
                        operation=operation,
                        requester=asked.requester,
                    ),
                    "The next CA, unless it is there",
                )
            )
        finally:
            await self._discard_key()
        if progress.to is not None:
            await self._ask_ca(
                CertificateActivities.publish_crl,
                PublishCrlInput(
                    provider=progress.provider, generation=progress.to, operation=operation
                ),
                "Its revocation list",
            )
        return progress

    async def _ask_ca(
        self, step: Callable[[Any, _Asked], Awaitable[_Answer]], asked: _Asked, summary: str
    ) -> _Answer:
        """A cancel ends it: an external CA may not answer for days. If it has an effect in spite of
        that, it is as if the cancel had come after it."""
        if self._canceled:
            raise asyncio.CancelledError
        self._call = workflow.start_activity_method(
            step, asked, summary=summary, **policies.CA_CALL
        )
        try:
            answer: _Answer = await self._call
            return answer
        finally:
            self._call = None

    async def _discard_key(self) -> None:
        """The copy that came in with the request, whether it was taken or not."""
        if self._asked.key_secret is not None:
            await workflow.execute_activity_method(
                CertificateActivities.discard_imported_key,
                SetUpAuthorityInput(
                    key_secret=self._asked.key_secret,
                    chain=self._asked.chain,
                    operation=workflow.info().workflow_id,
                ),
                summary="The key that came in with the request",
                **policies.RECORD,
            )

    async def _look(self) -> RolloverProgress:
        self._left_out.clear()  # From here on, the inventory says it.
        return self._take(
            await workflow.execute_activity_method(
                RolloverActivities.look_at_rollover,
                LookAtRolloverInput(**dict(self._step), busy=tuple(self._busy)),
                summary="How far it is",
                **policies.RECORD,
            )
        )

    async def _deliver(self, hosts: tuple[str, ...]) -> None:
        info = workflow.info()
        try:
            done: CrlDelivery = await workflow.execute_activity_method(
                CrlDeliveryActivities.deliver_crls,
                DeliverCrlsInput(
                    hosts=hosts,
                    owner=Owner(
                        workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id
                    ),
                ),
                summary=f"CAs that are to be trusted, for {hosts[0]} and on",
                **policies.SWEEP,
            )
        except ActivityError as error:
            failure = as_application_error(error)
            if failure.type not in _TAKEN_OVER:
                raise
            self._busy[hosts[0]] = failure.message
        else:
            self._busy.update(done.missing)

    async def _renew_own(self) -> None:
        """First of all, when every host trusts its CA. One that an external provider has changed to
        by itself may be news to hosts."""
        await self._tell_all()
        await self._ask_ca(
            RolloverActivities.renew_own_certificate, self._step, "Hostler's own certificate"
        )
        self._renewed_own = True

    async def _tell_all(self) -> None:
        """Which CAs to trust, and what was revoked. Who is away is told by Housekeeping."""
        try:
            await deliver_crls()
        except ActivityError as error:
            workflow.logger.warning("%s", as_application_error(error).message)

    async def _advance(self, stage: RolloverStage) -> None:
        """No effect if a host has come meanwhile that is not through."""
        step, summary = _STEPS[stage]
        await workflow.execute_activity_method(
            step,
            self._step,
            summary=summary,
            **policies.RECORD,
        )

    async def _reissue(self, progress: RolloverProgress) -> None:
        """Some of each cluster at a time."""
        places = {
            cluster: asyncio.Semaphore(number) for cluster, number in progress.at_a_time.items()
        }

        async def one(host: str) -> None:
            async with places[progress.due[host]]:
                if self._paused or self._canceled or host in self._left_out:
                    return
                problem = await self._provision(host)
            if problem is None:
                self._busy[host] = "a provisioning, which has begun before, is under way there"
                return
            await workflow.execute_activity_method(
                RolloverActivities.note_rollover,
                NoteRolloverInput(
                    host=host, problem=problem, operation=workflow.info().workflow_id
                ),
                summary=f"How it ended: {host}",
                **policies.RECORD,
            )

        ended = await asyncio.gather(*map(one, progress.to_certify), return_exceptions=True)
        for result in ended:
            if isinstance(result, BaseException):
                raise result

    async def _provision(self, host: str) -> str | None:
        """What went wrong; nothing (""), or others are at it (None)."""
        operation = workflow_id(OperationKind.PROVISIONING, host)
        try:
            provisioning = await workflow.start_child_workflow(
                WORKFLOW_TYPES[OperationKind.PROVISIONING],
                CertificateProvisioningInput(
                    host=host,
                    reason=f"another CA issues: {self._asked.reason or 'no reason given'}"[:1000],
                    requester=workflow.info().workflow_id,
                ),
                id=operation,
                parent_close_policy=ParentClosePolicy.ABANDON,
                cancellation_type=ChildWorkflowCancellationType.ABANDON,
                static_summary=f"{host}: certificates of the CA that issues now",
            )
        except WorkflowAlreadyStartedError:
            return None
        try:
            await workflow.wait_condition(provisioning.done, timeout=_PATIENCE)
            await provisioning
        except TimeoutError:
            return f"{operation} is still under way after {_PATIENCE.total_seconds():.0f} s"
        except ChildWorkflowError as error:
            if isinstance(error.cause, ApplicationError):
                return error.cause.message
            return f"{operation} was ended: {error.cause or error}"
        return ""

    async def _wait(self) -> None:
        """Until it is time for another look, or somebody has said something meanwhile."""
        interval = timedelta(seconds=self._asked.look_again_s)
        try:
            await workflow.wait_condition(lambda: self._woken, timeout=interval)
        except TimeoutError:
            return

    async def _give_up(self) -> None:
        """After a cancel: the next CA goes, if it does not issue yet."""
        if self._provider is None or self._asked.dry_run:
            self._enter(Phase.DONE, "Cancelled before it has begun: nothing has changed")
            return
        dropped: RolloverStepResult = await workflow.execute_activity_method(
            RolloverActivities.drop_next_authority,
            self._step,
            summary="The next CA does not come, unless it issues",
            **policies.RECORD,
        )
        if not dropped.done:
            self._enter(
                Phase.DONE,
                "Cancelled: hosts keep what they have; another rollover goes on from there",
            )
            return
        self._enter(Phase.ROLLING_BACK, "Cancelled: hosts get to trust the next CA no more")
        await self._tell_all()
        self._enter(Phase.DONE, "Cancelled: the next CA was dropped, nothing else has changed")

    # --- updates and the query ------------------------------------------------------------------

    @workflow.update(name="pause")
    async def pause(self, _: PauseInput) -> None:
        """Let no other host begin; those in work come to their end."""
        self._paused = self._woken = True
        self._show()

    @pause.validator
    def _check_pause(self, _: PauseInput) -> None:
        if self._paused:
            raise conflict("It is paused already.")

    @workflow.update(name="resume")
    async def resume(self, _: PauseInput) -> None:
        """Go on."""
        self._paused = False
        self._show()

    @resume.validator
    def _check_resume(self, _: PauseInput) -> None:
        if not self._paused:
            raise conflict("It is not paused.")

    @workflow.update(name="leave_out")
    async def leave_out(self, request: LeaveOutInput) -> None:
        """Do not wait for that host: others will not trust it, nor it others, until it has got
        its certificates."""
        self._left_out.add(request.host)
        try:
            await workflow.execute_activity_method(
                RolloverActivities.leave_host_out,
                LeaveHostOutInput(
                    **dict(request),
                    provider=self._step.provider,
                    operation=workflow.info().workflow_id,
                ),
                summary=f"{request.host} is not waited for",
                **policies.RECORD,
            )
        except ActivityError as error:
            self._left_out.discard(request.host)
            raise as_application_error(error) from error
        # A look that was under way meanwhile may not have seen it.
        self._left_out.add(request.host)
        self._woken = True

    @leave_out.validator
    def _check_leave_out(self, request: LeaveOutInput) -> None:
        if self._progress is None or self._progress.stage is RolloverStage.NONE:
            raise conflict("The rollover has not begun yet, or has ended.")

    @workflow.query(name="status")
    def status(self) -> AuthorityRolloverStatus:
        """Where it stands, whom it waits for, and what moves it on."""
        return AuthorityRolloverStatus(
            provider=self._provider,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            since=self._since,
            paused=self._paused,
            progress=self._progress,
            busy=dict(sorted(self._busy.items())),
            commands=next_commands(self._progress, paused=self._paused),
        )

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def _asked(self) -> AuthorityRolloverInput:
        if self._request is None:
            raise conflict("The rollover has not begun yet.")
        return self._request

    @property
    def _step(self) -> RolloverStepInput:
        if self._provider is None:
            raise conflict("The rollover has not begun yet.")
        return RolloverStepInput(provider=self._provider, operation=workflow.info().workflow_id)

    def _take(self, progress: RolloverProgress) -> RolloverProgress:
        self._provider, self._progress = progress.provider, progress
        self._enter(PHASES[progress.stage], headline(progress, paused=self._paused))
        return progress

    def _continue_as_new(self) -> NoReturn:
        carried = RolloverCarried(
            provider=self._step.provider,
            since=self._since,
            paused=self._paused,
            renewed_own=self._renewed_own,
        )
        done = {"key_secret": None, "chain": None, "leave_out": (), "carried": carried}
        workflow.continue_as_new(self._asked.model_copy(update=done))

    def _enter(self, phase: Phase, message: str) -> None:
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self._show()

    def _show(self) -> None:
        if self._progress is not None and self._phase is PHASES[self._progress.stage]:
            self._message = headline(self._progress, paused=self._paused)
        workflow.set_current_details(current_details(self.status()))


def _position(progress: RolloverProgress) -> tuple[RolloverStage, int, int]:
    """What a round that has come to something changes."""
    return progress.stage, progress.done, progress.due_count
