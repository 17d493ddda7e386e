"""How an operation that starts from `Maintenance` gets hold of its host: by a maintenance that it
starts, by one that is ready and hands it over, or from an operation that has ended."""

import asyncio
from collections.abc import Callable

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from activities.leases import LeaseActivities
    from activities.operations import OperationActivities
    from contracts.cluster_maintenance import MaintenanceProgress, WaitForMaintenanceInput
    from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
    from contracts.maintenance import HostMaintenanceInput
    from contracts.operations import WORKFLOW_TYPES, OperationKind, workflow_id
    from contracts.states import Phase
    from contracts.steps import (
        AcquireLeaseInput,
        AwaitLeaseInput,
        HandedOver,
        HandOverMaintenanceInput,
    )
    from workflows import policies

# A change of passwords or certificates takes minutes; one that waits for its operator is named.
_TRUST_WITHIN_S = 900


class Takeover:
    """One per workflow.

    Args:
        kind: the operation, in words ("removal").
        enter: told at each step where it stands.

    Attributes:
        maintenance: the one that was started, until it has ended.
        lease: the host's, as soon as it is held.
        trust: its lease of the scope `trust`, likewise.
    """

    def __init__(self, kind: str, enter: Callable[[Phase, str], None]) -> None:
        self.maintenance: Owner | None = None
        self.lease: LeaseRef | None = None
        self.trust: LeaseRef | None = None
        self._kind = kind
        self._enter = enter

    @property
    def held(self) -> LeaseRef:
        """The lease. Raises Conflict."""
        if self.lease is None:
            raise conflict(f"The {self._kind} holds no lease yet.")
        return self.lease

    async def take_out(self, request: HostMaintenanceInput, then: str) -> None:
        """By a HostMaintenance of the usual id, which goes on whatever becomes of this workflow.
        Returns when it is ready. Raises Conflict; `then`: what is to follow, in words."""
        host = request.host
        usual = workflow_id(OperationKind.MAINTENANCE, host)
        try:
            started = await workflow.start_child_workflow(
                WORKFLOW_TYPES[OperationKind.MAINTENANCE],
                request,
                id=usual,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                parent_close_policy=ParentClosePolicy.ABANDON,
                cancellation_type=ChildWorkflowCancellationType.ABANDON,
                static_summary=f"Maintenance of {host} before its {self._kind}",
            )
        except WorkflowAlreadyStartedError as error:
            raise conflict(
                f"{usual} is running already. Wait until it is ready, then {then}; or end it: "
                f"hostler maintenance leave {host}"
            ) from error
        started.add_done_callback(_hear_of_it)
        self.maintenance = Owner(
            workflow_id=started.id, first_run_id=started.first_execution_run_id or ""
        )
        await self._until_ready(host, self.maintenance)

    async def _until_ready(self, host: str, maintenance: Owner) -> None:
        found = MaintenanceProgress()
        while not found.ready:
            self._show_maintenance(found)
            found = await workflow.execute_activity_method(
                OperationActivities.wait_for_maintenance,
                WaitForMaintenanceInput(host=host, maintenance=maintenance, seen=found),
                summary=f"Until {host} is ready for maintenance",
                **policies.HOST_JOB,
            )
            if found.ended is not None:
                self.maintenance = None
                raise conflict(
                    f"The maintenance of {host} has ended before it was ready: {found.ended}"
                )

    def _show_maintenance(self, found: MaintenanceProgress) -> None:
        if found.question is not None:
            self._enter(Phase.QUESTION, f"Its maintenance asks: {found.question}")
        elif found.queued is not None:
            self._enter(Phase.QUEUED, f"Its maintenance waits: {found.queued}")
        else:
            self._enter(Phase.EVACUATING, "It is taken out of service first")

    async def acquire(self, host: str, holder: Owner | None, reason: str) -> None:
        """The lease, from a maintenance that is ready, or from whoever has ended."""
        holder = self.maintenance or holder
        self._enter(Phase.PLANNING, f"Takes {host} over")
        handed_over = holder is not None and await self._hand_over(host, holder)
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.acquire_lease,
            self._wanted(host, LeaseScope.PLACEMENT, reason),
            summary=f"Lease of {host}",
            **policies.RECORD,
        )
        self.lease = _ref(lease)
        if lease.taken_over_from is not None and not handed_over:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )

    async def acquire_trust(self, host: str, reason: str) -> None:
        """The lease of what lets in and is shown: whoever changes passwords or certificates there
        ends first, and nobody begins to. Raises LeaseHeld when that takes too long."""
        if not workflow.patched("trust"):
            return
        self._enter(Phase.QUEUED, f"Waits for who changes passwords or certificates of {host}")
        lease: Lease = await workflow.execute_activity_method(
            LeaseActivities.await_lease,
            AwaitLeaseInput(
                acquire=self._wanted(host, LeaseScope.TRUST, reason), within_s=_TRUST_WITHIN_S
            ),
            summary=f"Passwords and certificates of {host}, for this alone",
            **policies.HOST_WAIT,
        )
        self.trust = _ref(lease)
        if lease.taken_over_from is not None:
            await workflow.sleep(
                policies.HEARTBEAT_TIMEOUT, summary="The predecessor's activities come to an end"
            )

    def _wanted(self, host: str, scope: LeaseScope, reason: str) -> AcquireLeaseInput:
        info = workflow.info()
        return AcquireLeaseInput(
            host=host,
            scope=scope,
            owner=Owner(workflow_id=info.workflow_id, first_run_id=info.first_execution_run_id),
            purpose=f"{self._kind}: {reason or 'no reason given'}",
        )

    async def _hand_over(self, host: str, holder: Owner) -> bool:
        """Whether it was a maintenance that has let go: nothing of it runs any more then."""
        outcome: HandedOver = await workflow.execute_activity_method(
            OperationActivities.hand_over_maintenance,
            HandOverMaintenanceInput(
                host=host,
                holder=holder,
                successor=workflow.info().workflow_id,
                request=str(workflow.uuid4()),
            ),
            summary=f"{holder.workflow_id} hands {host} over",
            **policies.RECORD,
        )
        return outcome.handed_over

    def with_remains(self, failure: BaseException, host: str, again: str | None) -> BaseException:
        """The failure, and what to do about what is left: a maintenance that was taken over is open
        no more, and one that was started goes on.

        Args:
            failure: why the operation ends; only an ApplicationError is told more.
            host: the one it worked on.
            again: the command that goes on with what can't be taken back; None: nothing has begun.
        """
        if not isinstance(failure, ApplicationError):
            return failure
        if again is not None:
            more = f"Start the {self._kind} again: {again}"
        elif self.lease is not None:
            more = f"{host} stays as it is. Put it back: hostler maintenance leave {host}"
        elif self.maintenance is not None:
            more = f"Its maintenance goes on: hostler maintenance status {host}"
        else:
            return failure
        return ApplicationError(
            f"{failure.message} {more}",
            *failure.details,
            type=failure.type,
            non_retryable=failure.non_retryable,
        )

    async def release(self) -> None:
        """Nobody holds the host."""
        if self.trust is not None:
            await workflow.execute_activity_method(
                LeaseActivities.release_lease, self.trust, **policies.RECORD
            )
        await workflow.execute_activity_method(
            LeaseActivities.release_lease, self.held, **policies.RECORD
        )


def _ref(lease: Lease) -> LeaseRef:
    return LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)


def conflict(message: str) -> ApplicationError:
    """What can't be as things stand."""
    return ApplicationError(message, type="Conflict", non_retryable=True)


def _hear_of_it(maintenance: asyncio.Task[object]) -> None:
    """Its end is learnt by an activity; the event is only read."""
    if not maintenance.cancelled():
        maintenance.exception()
