"""PasswordRotation: change the password that an account has on the hosts of a cluster.

    plan -> leases -> stage -> check all hosts -> change and prove, host by host -> promote
                                                     or: put back and prove -> abandon

The new password is stored before any host is touched, the old one until all are proven: at no
moment is the only copy of one that works on its way. Whatever dies, the next attempt finds out
which one a host has. A host that fails has all of them put back, or makes a question, as was asked
for.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from enum import Enum, auto

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.passwords import PasswordActivities
    from activities.records import RecordActivities
    from contracts.leases import LeaseScope, Owner
    from contracts.passwords import (
        AcquireHostsInput,
        EndRotationInput,
        Held,
        HeldHosts,
        HostOutcome,
        HostRotation,
        HostWork,
        OnFailure,
        PasswordRotationInput,
        PasswordRotationResult,
        PasswordRotationStatus,
        PlanRotationInput,
        Promoted,
        RetryInput,
        RevertInput,
        RotationPlan,
        SkipHostInput,
        StagedPassword,
        StageRotationInput,
        SweepInput,
        SweepResult,
    )
    from contracts.states import Phase
    from contracts.steps import EventInput
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.password_rotation_page import current_details, next_commands
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_ZONE, PHASE
    from workflows.takeover import conflict

_BATCH = 200
# Whoever gets one of these is not the operation that works on the hosts any more.
_TAKEN_OVER = frozenset({"LeaseLost", "EpochRefused"})
_MOST_TOLD = 20


class _Answer(Enum):
    RETRY = auto()
    REVERT = auto()


@workflow.defn(name="PasswordRotation")
class PasswordRotation:
    """One change. A cancel puts back what was changed; once all hosts are proven it comes too
    late."""

    def __init__(self) -> None:
        self._request: PasswordRotationInput | None = None
        self._since: datetime = workflow.now()
        self._phase = Phase.PLANNING
        self._message = "Looks which hosts there are"
        self._plan: RotationPlan | None = None
        self._held: HeldHosts | None = None
        self._staged: StagedPassword | None = None
        self._hosts: dict[str, HostRotation] = {}
        self._begun = False
        self._reverting = False
        self._promoting = False
        self._why = ""
        self._answer: _Answer | None = None
        self._canceled = False

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: PasswordRotationInput) -> PasswordRotationResult:
        """Returns when the new password is the cluster's, on every host but those skipped."""
        self._request = request
        self._enter(Phase.PLANNING, f"Looks which hosts {request.cluster} has")
        work = asyncio.create_task(self._rotate())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._canceled = True
                if not self._begun:
                    work.cancel()
                elif not self._promoting:
                    self._revert_because("it was cancelled")
        problem = None if work.cancelled() else work.exception()
        if isinstance(problem, ActivityError):
            problem = as_application_error(problem)
        if not self._is_taken_over(problem):
            await self._leave()
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._canceled and not self._promoting:
            became = problem or "no host has another password than before"
            raise asyncio.CancelledError(f"cancelled: {became}")
        if problem is not None:
            self._enter(Phase.DONE, str(problem))
            raise problem
        return work.result()

    async def _rotate(self) -> PasswordRotationResult:
        plan = await self._make_plan()
        self._hosts = {one.host: one for one in plan.left_out}
        self._hosts |= {host: HostRotation(host=host) for host in plan.hosts}
        await self._acquire(plan)
        await self._stage()
        await self._check(plan)
        self._begun = True
        while not await self._change_all():
            if self._reverting:
                await self._put_all_back()
                raise self._put_back()
            await self._ask(f"{self._told_failed()}: it still has, or may have, the old password")
        self._promoting = True
        await self._promote()
        return self._result(promoted=True)

    async def _change_all(self) -> bool:
        """True when no host is left; False when some have failed, or all are to be put back."""
        self._message_of(Phase.CHANGING, "Sets the new password and proves it")
        for batch in _batches(self._in_state(HostWork.WAITING)):
            if self._reverting:
                return False
            await self._sweep(PasswordActivities.change_passwords, batch, HostWork.PROVEN)
            if self._in_state(HostWork.FAILED) and self._on_failure is OnFailure.REVERT:
                self._revert_because(self._told_failed())
        return not self._reverting and not self._in_state(HostWork.FAILED)

    async def _put_all_back(self) -> None:
        """Every host that has the new password, or may have it. One that can't be put back makes a
        question."""
        for host, one in self._hosts.items():
            if one.state in (HostWork.PROVEN, HostWork.FAILED, HostWork.WAITING):
                touched = one.state is not HostWork.WAITING and one.held is not Held.FORMER
                self._note(host, state=HostWork.WAITING if touched else HostWork.PUT_BACK)
        while True:
            self._message_of(Phase.ROLLING_BACK, "Gives hosts back what they had before")
            for batch in _batches(self._in_state(HostWork.WAITING)):
                await self._sweep(PasswordActivities.put_passwords_back, batch, HostWork.PUT_BACK)
            if not self._in_state(HostWork.FAILED):
                return
            await self._ask(f"{self._told_failed()}: it could not be put back")

    async def _ask(self, question: str) -> None:
        """Until somebody has answered, or nothing that has failed is left."""
        self._answer = None
        self._enter(Phase.QUESTION, question)
        await self._tell(question)
        await workflow.wait_condition(
            lambda: self._answer is not None or not self._in_state(HostWork.FAILED)
        )
        if self._answer is _Answer.RETRY:
            for host in self._in_state(HostWork.FAILED):
                self._note(host, state=HostWork.WAITING)

    # --- the steps ------------------------------------------------------------------------------

    async def _make_plan(self) -> RotationPlan:
        asked = self._asked
        plan: RotationPlan = await workflow.execute_activity_method(
            PasswordActivities.plan_password_rotation,
            PlanRotationInput(
                cluster=asked.cluster,
                account=asked.account,
                host=asked.host,
                leave_out=asked.leave_out,
            ),
            summary=f"Hosts of {asked.cluster}",
            **policies.RECORD,
        )
        self._plan = plan
        workflow.upsert_search_attributes([HOST_ZONE.value_set(plan.zone)])
        return plan

    async def _acquire(self, plan: RotationPlan) -> None:
        info = workflow.info()
        held: HeldHosts = await workflow.execute_activity_method(
            PasswordActivities.acquire_hosts,
            AcquireHostsInput(
                hosts=plan.hosts,
                scope=LeaseScope.TRUST,
                owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
                purpose=f"change of passwords: {self._asked.reason or 'no reason given'}",
            ),
            summary="Leases of the hosts",
            **policies.SWEEP,
        )
        self._held = held
        if held.taken_over:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )

    async def _stage(self) -> None:
        asked = self._asked
        self._enter(Phase.PLANNING, "Stores the new password")
        self._staged = await workflow.execute_activity_method(
            PasswordActivities.stage_password,
            StageRotationInput(
                cluster=asked.cluster,
                account=asked.account,
                host=asked.host,
                secret=asked.secret,
                owner=self._leases.owner,
                accepted=asked.accepted,
            ),
            summary="The new password, stored encrypted",
            **policies.RECORD,
        )

    async def _check(self, plan: RotationPlan) -> None:
        """All hosts, before anything changes on any."""
        self._message_of(Phase.VERIFYING, "Checks whether every host can be changed")
        problems: list[HostOutcome] = []
        for batch in _batches(plan.hosts):
            found: SweepResult = await workflow.execute_activity_method(
                PasswordActivities.check_hosts_for_password,
                self._sweep_of(batch),
                summary=_of(batch),
                **policies.SWEEP,
            )
            for one in found.hosts:
                self._note(one.host, held=one.held, proof=one.proof, reason=one.problem)
            problems += [one for one in found.hosts if one.problem is not None]
        if problems:
            raise ApplicationError(
                f"Nothing was changed. {_told((one.host, one.problem) for one in problems)}",
                {"hosts": {one.host: one.problem for one in problems}},
                type="PreconditionsFailed",
                non_retryable=True,
            )

    async def _sweep(
        self,
        step: Callable[[PasswordActivities, SweepInput], object],
        batch: tuple[str, ...],
        done: HostWork,
    ) -> None:
        """One step for these hosts. Whatever it ends with, they may have either password."""
        try:
            result: SweepResult = await workflow.execute_activity_method(
                step,  # type: ignore[arg-type] # one of two methods that take and give the same
                self._sweep_of(batch),
                summary=_of(batch),
                **policies.SWEEP,
            )
        except ActivityError as error:
            failure = as_application_error(error)
            if is_cancelled_exception(error) or failure.type in _TAKEN_OVER:
                raise
            for host in batch:
                self._note(
                    host, state=HostWork.FAILED, held=Held.UNKNOWN, reason=failure.message[:500]
                )
            return
        for one in result.hosts:
            state = done if one.problem is None else HostWork.FAILED
            self._note(one.host, state=state, held=one.held, reason=one.problem)

    async def _promote(self) -> None:
        """Hosts that came to the cluster meanwhile are brought up to date by Housekeeping."""
        while True:
            self._enter(Phase.CHANGING, "All hosts are proven: the new password is the cluster's")
            skipped = self._in_state(HostWork.SKIPPED, HostWork.LEFT_OUT)
            promoted: Promoted = await workflow.execute_activity_method(
                PasswordActivities.promote_password,
                self._end({host: self._hosts[host].reason or "" for host in skipped}),
                summary="The new password is current, the one before is kept as previous",
                **policies.DECISION,
            )
            if not promoted.lacking:
                self._enter(Phase.DONE, f"{self._asked.cluster} has a new password")
                return
            for host in promoted.lacking:
                self._hosts[host] = HostRotation(
                    host=host,
                    state=HostWork.SKIPPED,
                    reason="it came to the cluster during the change",
                )

    async def _leave(self) -> None:
        """What was stored and held for nothing goes. After a change that was put back, hosts that
        were skipped may have the new password all the same: it is kept for them."""
        if self._staged is not None and not self._promoting and (self._begun or self._staged.fresh):
            may_have_it = {
                host: one.reason or ""
                for host, one in self._hosts.items()
                if one.state is HostWork.SKIPPED and one.held is not Held.FORMER
            }
            try:
                await workflow.execute_activity_method(
                    PasswordActivities.abandon_password,
                    self._end(may_have_it),
                    summary="Nothing comes of the new password",
                    **policies.RECORD,
                )
            except ActivityError as error:
                # It stays staged: the next change takes it over, or replaces it.
                workflow.logger.warning("%s", as_application_error(error).message)
        if self._held is not None:
            await workflow.execute_activity_method(
                PasswordActivities.release_hosts,
                self._held,
                summary="Leases of the hosts",
                **policies.SWEEP,
            )

    async def _tell(self, question: str) -> None:
        """In the audit trail of the first that has failed."""
        failed = self._in_state(HostWork.FAILED)
        lease = next(lease for lease in self._leases.leases() if lease.host == failed[0])
        await workflow.execute_activity_method(
            RecordActivities.record_event,
            EventInput(lease=lease, kind="host.password_question", message=question[:1000]),
            summary="The question, in the audit trail",
            **policies.RECORD,
        )

    # --- updates and the query ------------------------------------------------------------------

    @workflow.update(name="retry")
    async def retry(self, _: RetryInput) -> None:
        """Try what has failed again."""
        self._answer = _Answer.RETRY

    @retry.validator
    def _check_retry(self, _: RetryInput) -> None:
        self._require_question()

    @workflow.update(name="skip_host")
    async def skip_host(self, request: SkipHostInput) -> None:
        """Go on without a host that has failed."""
        self._note(request.host, state=HostWork.SKIPPED, reason=request.reason)
        self._show()

    @skip_host.validator
    def _check_skip_host(self, request: SkipHostInput) -> None:
        self._require_question()
        one = self._hosts.get(request.host)
        if one is None or one.state is not HostWork.FAILED:
            raise conflict(f"{request.host} has not failed: it can't be skipped.")
        going_on = self._in_state(HostWork.PROVEN, HostWork.WAITING, HostWork.FAILED)
        if not self._reverting and len(going_on) == 1:
            raise conflict(f"{request.host} is the only host that is left: revert instead.")

    @workflow.update(name="revert")
    async def revert(self, _: RevertInput) -> None:
        """Give all hosts back what they had before."""
        self._revert_because("that was asked for")

    @revert.validator
    def _check_revert(self, _: RevertInput) -> None:
        if self._reverting:
            raise conflict("Hosts get back what they had already.")
        if not self._begun or self._promoting:
            raise conflict(
                "All hosts have the new password, and it is the cluster's."
                if self._promoting
                else "Nothing was changed yet: cancel it."
            )

    @workflow.query(name="status")
    def status(self) -> PasswordRotationStatus:
        """Where it stands, which host has which password, and what moves it on."""
        asked = self._asked
        return PasswordRotationStatus(
            cluster=asked.cluster,
            account=asked.account,
            phase=self._phase,
            reason=asked.reason,
            message=self._message,
            since=self._since,
            on_failure=self._on_failure if self._plan is not None else asked.on_failure,
            version=self._staged.version if self._staged is not None else None,
            reverting=self._reverting,
            hosts=tuple(self._hosts[host] for host in sorted(self._hosts)),
            commands=next_commands(
                asked.cluster, self._phase, self._in_state(HostWork.FAILED), self._reverting
            ),
        )

    # --- bookkeeping ----------------------------------------------------------------------------

    @property
    def _asked(self) -> PasswordRotationInput:
        if self._request is None:
            raise conflict("The change has not begun yet.")
        return self._request

    @property
    def _leases(self) -> HeldHosts:
        if self._held is None:
            raise conflict("The hosts are not held yet.")
        return self._held

    @property
    def _on_failure(self) -> OnFailure:
        if self._plan is None:
            raise conflict("The hosts were not read yet.")
        return self._asked.on_failure or self._plan.on_failure

    def _require_question(self) -> None:
        if self._phase is not Phase.QUESTION:
            raise conflict("No host has failed: there is no question to answer.")

    def _revert_because(self, why: str) -> None:
        if not self._reverting:
            self._reverting, self._why = True, why
            self._answer = _Answer.REVERT

    def _in_state(self, *states: HostWork) -> tuple[str, ...]:
        return tuple(sorted(host for host, one in self._hosts.items() if one.state in states))

    def _told_failed(self) -> str:
        failed = self._in_state(HostWork.FAILED)
        return _told((host, self._hosts[host].reason) for host in failed)

    def _sweep_of(self, batch: tuple[str, ...]) -> SweepInput:
        held = self._leases.only(set(batch))
        known = tuple(
            one.model_copy(update={"proof": self._hosts[one.host].proof}) for one in held.hosts
        )
        asked = self._asked
        if self._staged is None or self._plan is None:
            raise conflict("The new password was not stored yet.")
        return SweepInput(
            cluster=asked.cluster,
            account=asked.account,
            secret=self._staged.secret,
            held=held.model_copy(update={"hosts": known}),
            concurrency=self._plan.concurrency,
            accept_unknown=asked.accept_unknown,
        )

    def _end(self, skipped: dict[str, str]) -> EndRotationInput:
        asked = self._asked
        if self._staged is None:
            raise conflict("The new password was not stored yet.")
        hosts = tuple(
            one.model_copy(update={"proof": self._hosts[one.host].proof})
            for one in self._leases.hosts
            if one.host not in skipped
        )
        return EndRotationInput(
            cluster=asked.cluster,
            account=asked.account,
            host=asked.host,
            staged=self._staged,
            held=HeldHosts(owner=self._leases.owner, hosts=hosts),
            skipped=skipped,
            reason=self._why,
        )

    def _result(self, *, promoted: bool) -> PasswordRotationResult:
        status = self.status()
        return PasswordRotationResult(
            cluster=status.cluster,
            account=status.account,
            promoted=promoted,
            version=status.version,
            hosts=status.hosts,
        )

    def _put_back(self) -> ApplicationError:
        skipped = [
            host
            for host in self._in_state(HostWork.SKIPPED)
            if self._hosts[host].held is not Held.FORMER
        ]
        but = f", but for {', '.join(skipped)}" if skipped else ""
        return ApplicationError(
            f"All hosts of {self._asked.cluster} have the password that they had before{but}: "
            f"{self._why}",
            self._result(promoted=False).model_dump(mode="json"),
            type="PasswordsPutBack",
            non_retryable=True,
        )

    def _is_taken_over(self, problem: BaseException | None) -> bool:
        return isinstance(problem, ApplicationError) and problem.type in _TAKEN_OVER

    def _note(self, host: str, **changed: object) -> None:
        self._hosts[host] = self._hosts[host].model_copy(update=changed)

    def _message_of(self, phase: Phase, doing: str) -> None:
        counts = Counter(one.state for one in self._hosts.values())
        told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        self._enter(phase, f"{doing}: {told}")

    def _enter(self, phase: Phase, message: str) -> None:
        # The SDK loses a cancel that crosses the end of an activity: no further step begins.
        if self._canceled and not self._begun and phase is not Phase.DONE:
            raise asyncio.CancelledError
        self._phase, self._message = phase, message
        attributes = [HOST_CLUSTER.value_set(self._asked.cluster), PHASE.value_set(phase)]
        if self._asked.host is not None:
            attributes.append(HOST_NAME.value_set(self._asked.host))
        workflow.upsert_search_attributes(attributes)
        self._show()

    def _show(self) -> None:
        workflow.set_current_details(current_details(self.status()))


def _batches(hosts: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return [hosts[begin : begin + _BATCH] for begin in range(0, len(hosts), _BATCH)]


def _of(batch: tuple[str, ...]) -> str:
    return batch[0] if len(batch) == 1 else f"{batch[0]} to {batch[-1]}"


def _told(problems: Iterable[tuple[str, str | None]]) -> str:
    said = [f"{host}: {problem}" for host, problem in problems]
    more = f"; and {len(said) - _MOST_TOLD} more" if len(said) > _MOST_TOLD else ""
    return "; ".join(said[:_MOST_TOLD]) + more
