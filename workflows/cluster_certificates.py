"""ClusterCertificates: all hosts of a cluster take and give VMs by TLS only.

    certificates on each host that has none -> when all have some: each host secured

Some hosts at a time; VMs run on and may migrate all along: two hosts with certificates do so by
TLS, and none is secured before the others have some. One that fails does not hold up the others in
the same step. It fails with their names then; another one begins where this one has ended. It
continues as new after a page of hosts: how far each is, the inventory knows.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime, timedelta
from typing import NoReturn

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.leases import LeaseActivities
    from activities.securing import SecuringActivities
    from contracts.certificates import (
        CertificateProvisioningInput,
        ClusterCertificatesInput,
        ClusterCertificatesResult,
        ClusterCertificatesStatus,
        PlanSecuringInput,
        SecuredHost,
        SecuringPlan,
        SecuringSoFar,
        TlsWork,
        UnsecuredHost,
    )
    from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
    from contracts.operations import WORKFLOW_TYPES, OperationKind, workflow_id
    from contracts.states import Phase, TlsState
    from contracts.steps import AcquireLeaseInput
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_CLUSTER, HOST_ZONE, PHASE
    from workflows.takeover import conflict

_LOOK_AGAIN = timedelta(seconds=15)
_MOST_NAMED = 20
_MAX_ERROR_CHARS = 500
_WORK_OF = {
    TlsState.NONE: TlsWork.WAITING,
    TlsState.READY: TlsWork.READY,
    TlsState.SECURED: TlsWork.SECURED,
}


@workflow.defn(name="ClusterCertificates")
class ClusterCertificates:
    """One cluster. A cancel lets no other host begin; those in work come to their end."""

    def __init__(self) -> None:
        self._request: ClusterCertificatesInput | None = None
        self._since: datetime = workflow.now()
        self._phase = Phase.PLANNING
        self._message = "Looks which hosts there are"
        self._hosts: dict[str, SecuredHost] = {}
        self._in_vain: dict[str, UnsecuredHost] = {}
        self._begun = 0
        self._canceled = False

    @workflow.run
    async def run(self, request: ClusterCertificatesInput) -> ClusterCertificatesResult:
        """Returns when all hosts are secured."""
        self._request = request
        if request.continued is not None:
            self._since = request.continued.since
            self._in_vain = {one.host: one for one in request.continued.failed}
        workflow.upsert_search_attributes([HOST_CLUSTER.value_set(request.cluster)])
        self._enter(Phase.PLANNING, f"Looks which hosts {request.cluster} has")
        work = asyncio.create_task(self._secure_all())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._canceled = True
        problem = None if work.cancelled() else work.exception()
        if isinstance(problem, ActivityError):
            problem = as_application_error(problem)
        if self._canceled and problem is not None:
            raise asyncio.CancelledError("cancelled: no other host has begun")
        if problem is not None:
            self._enter(Phase.DONE, str(problem))
            raise problem
        result = work.result()
        if result is None:
            self._continue_as_new()
        return result

    async def _secure_all(self) -> ClusterCertificatesResult | None:
        """None: there is more to do than one run should."""
        plan = await self._plan()
        bare = self._untried(plan, TlsState.NONE)
        self._enter(Phase.INSTALLING, f"{len(bare)} hosts of {self._cluster} get certificates")
        if not await self._each(bare, plan, self._provide):
            return None
        # Another host may have come meanwhile.
        plan = await self._plan()
        bare = [host for host, tls in plan.hosts.items() if tls is TlsState.NONE]
        if bare:
            raise self._failed("are without certificates", bare)
        ready = self._untried(plan, TlsState.READY)
        self._enter(Phase.SWITCHING, f"{len(ready)} hosts of {self._cluster} are to be secured")
        if not await self._each(ready, plan, self._secure):
            return None
        left = [one.host for one in self._hosts.values() if one.state is not TlsWork.SECURED]
        if left:
            raise self._failed("are not secured", left)
        self._enter(Phase.DONE, f"All hosts of {self._cluster} take and give VMs by TLS only")
        return ClusterCertificatesResult(cluster=self._cluster, hosts=tuple(sorted(self._hosts)))

    async def _plan(self) -> SecuringPlan:
        plan: SecuringPlan = await workflow.execute_activity_method(
            SecuringActivities.plan_securing,
            PlanSecuringInput(cluster=self._cluster),
            summary=f"Hosts of {self._cluster}, and their certificates",
            **policies.RECORD,
        )
        workflow.upsert_search_attributes([HOST_ZONE.value_set(plan.zone)])
        # What has failed at a step that the host has taken by now is of the past.
        self._in_vain = {
            one.host: one for one in self._in_vain.values() if plan.hosts.get(one.host) is one.tls
        }
        self._hosts = {
            host: SecuredHost(host=host, state=TlsWork.FAILED, error=self._in_vain[host].error)
            if host in self._in_vain
            else SecuredHost(host=host, state=_WORK_OF[tls])
            for host, tls in sorted(plan.hosts.items())
        }
        return plan

    def _untried(self, plan: SecuringPlan, wanted: TlsState) -> list[str]:
        return [
            host for host, tls in plan.hosts.items() if tls is wanted and host not in self._in_vain
        ]

    async def _each(
        self,
        hosts: Collection[str],
        plan: SecuringPlan,
        work: Callable[[str, SecuringPlan], Awaitable[None]],
    ) -> bool:
        """A few at a time. What fails is noted. False: some are left for the next run."""
        waiting = deque(hosts)

        async def lane() -> None:
            while waiting and self._has_room(plan):
                if self._canceled:
                    raise asyncio.CancelledError
                host = waiting.popleft()
                self._begun += 1
                try:
                    await work(host, plan)
                except (ActivityError, ChildWorkflowError, ApplicationError) as error:
                    self._fail(host, plan.hosts[host], _why(error))

        lanes = min(plan.parallel, len(waiting))
        ended = await asyncio.gather(*(lane() for _ in range(lanes)), return_exceptions=True)
        for problem in ended:
            if isinstance(problem, BaseException):
                raise problem
        return not waiting

    def _has_room(self, plan: SecuringPlan) -> bool:
        return self._begun < plan.page and not workflow.info().is_continue_as_new_suggested()

    def _continue_as_new(self) -> NoReturn:
        so_far = SecuringSoFar(since=self._since, failed=tuple(self._in_vain.values()))
        workflow.continue_as_new(self._asked.model_copy(update={"continued": so_far}))

    # --- one host -------------------------------------------------------------------------------

    async def _provide(self, host: str, plan: SecuringPlan) -> None:
        """By a child of the usual id; one that runs already is waited for, and another one made."""
        self._note(host, TlsWork.INSTALLING)
        request = CertificateProvisioningInput(
            host=host, reason=self._asked.reason, requester=self._asked.requester
        )
        kind = OperationKind.PROVISIONING
        deadline = workflow.now() + timedelta(seconds=plan.wait_s)
        while True:
            try:
                await workflow.execute_child_workflow(
                    WORKFLOW_TYPES[kind],
                    request,
                    id=workflow_id(kind, host),
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    # It puts back what it did by itself, whatever becomes of this workflow.
                    parent_close_policy=ParentClosePolicy.ABANDON,
                    cancellation_type=ChildWorkflowCancellationType.ABANDON,
                    static_summary=f"Certificates of {host}: {self._cluster} is secured",
                )
            except WorkflowAlreadyStartedError:
                problem: BaseException | None = ApplicationError(
                    f"{workflow_id(kind, host)} runs already, for longer than {plan.wait_s} s.",
                    type="LeaseHeld",
                )
            except ChildWorkflowError as error:
                if not _is_held(error.cause):
                    raise
                problem = error.cause
            else:
                break
            await self._wait(deadline, host, problem)
        self._note(host, TlsWork.READY)

    async def _secure(self, host: str, plan: SecuringPlan) -> None:
        self._note(host, TlsWork.SECURING)
        lease = await self._acquire(host, plan)
        try:
            await workflow.execute_activity_method(
                SecuringActivities.secure_host,
                lease,
                summary=f"{host}: by TLS only, and proven",
                **policies.CERTIFICATE_CHANGE,
            )
        finally:
            await workflow.execute_activity_method(
                LeaseActivities.release_lease, lease, **policies.RECORD
            )
        self._note(host, TlsWork.SECURED)

    async def _acquire(self, host: str, plan: SecuringPlan) -> LeaseRef:
        info = workflow.info()
        deadline = workflow.now() + timedelta(seconds=plan.wait_s)
        while True:
            try:
                lease: Lease = await workflow.execute_activity_method(
                    LeaseActivities.acquire_lease,
                    AcquireLeaseInput(
                        host=host,
                        scope=LeaseScope.TRUST,
                        owner=Owner(
                            workflow_id=info.workflow_id,
                            first_run_id=info.first_execution_run_id,
                        ),
                        purpose=f"{self._cluster} is secured",
                    ),
                    summary=f"Certificates of {host}, for this alone",
                    **policies.RECORD,
                )
                break
            except ActivityError as error:
                if not _is_held(error.cause):
                    raise
                await self._wait(deadline, host, error.cause)
        if lease.taken_over_from is not None:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )
        return LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)

    async def _wait(self, deadline: datetime, host: str, problem: BaseException | None) -> None:
        """For another operation on the host. Raises `problem` when it is too late."""
        if problem is not None and (workflow.now() >= deadline or self._canceled):
            raise problem
        await workflow.sleep(_LOOK_AGAIN, summary=f"Another operation works on {host}")

    # --- the query and bookkeeping --------------------------------------------------------------

    @workflow.query(name="status")
    def status(self) -> ClusterCertificatesStatus:
        """Where each host stands."""
        return ClusterCertificatesStatus(
            cluster=self._cluster,
            phase=self._phase,
            reason=self._asked.reason,
            message=self._message,
            since=self._since,
            hosts=tuple(self._hosts.values()),
            commands=(f"hostler host list --cluster {self._cluster}",),
        )

    @property
    def _asked(self) -> ClusterCertificatesInput:
        if self._request is None:
            raise conflict("The operation has not begun yet.")
        return self._request

    @property
    def _cluster(self) -> str:
        return self._asked.cluster

    def _failed(self, what: str, hosts: Collection[str]) -> ApplicationError:
        told = []
        for host in sorted(hosts)[:_MOST_NAMED]:
            error = self._hosts[host].error
            told.append(f"{host} ({error})" if error else host)
        more = len(hosts) - _MOST_NAMED
        return ApplicationError(
            f"{len(hosts)} of {len(self._hosts)} hosts of {self._cluster} {what}: "
            f"{'; '.join(told)}{f'; and {more} more' if more > 0 else ''}. "
            f"When that is put right: hostler cert secure {self._cluster}",
            type="Failed",
            non_retryable=True,
        )

    def _note(self, host: str, state: TlsWork) -> None:
        self._hosts[host] = SecuredHost(host=host, state=state)
        self._show()

    def _fail(self, host: str, tls: TlsState, error: str) -> None:
        self._in_vain[host] = UnsecuredHost(host=host, tls=tls, error=error)
        self._hosts[host] = SecuredHost(host=host, state=TlsWork.FAILED, error=error)
        self._show()

    def _enter(self, phase: Phase, message: str) -> None:
        self._phase, self._message = phase, message
        workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self._show()

    def _show(self) -> None:
        rows = [f"| {one.host} | {one.state} | {one.error or ''} |" for one in self._hosts.values()]
        table = ["", "| host | TLS | problem |", "|---|---|---|", *rows] if rows else []
        title = f"### {self._cluster}: certificates: {self._phase}"
        workflow.set_current_details("\n".join([title, "", self._message, *table]))


def _why(error: FailureError) -> str:
    if isinstance(error, ActivityError):
        said = as_application_error(error).message
    elif isinstance(error, ChildWorkflowError) and isinstance(error.cause, FailureError):
        said = (
            "its provisioning was cancelled"
            if is_cancelled_exception(error)
            else error.cause.message
        )
    else:
        said = error.message
    return said if len(said) <= _MAX_ERROR_CHARS else f"{said[:_MAX_ERROR_CHARS]}..."


def _is_held(cause: BaseException | None) -> bool:
    return isinstance(cause, ApplicationError) and cause.type == "LeaseHeld"
