"""Other operations, through Temporal's client: waited for, and ended."""

import asyncio
import time
from typing import Any

from temporalio import activity
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.exceptions import FailureError
from temporalio.service import RPCError, RPCStatusCode

from contracts.cluster_maintenance import (
    LeaveMaintenanceInput,
    MaintenanceProgress,
    WaitForMaintenanceInput,
)
from contracts.errors import Conflict, Failed, Unavailable
from contracts.leases import Owner
from contracts.maintenance import HandOverInput, LeaveInput, MaintenanceOutcome
from contracts.operations import WORKFLOW_TYPES, OperationKind
from contracts.states import Phase
from contracts.steps import HandedOver, HandOverMaintenanceInput

_LOOK_AGAIN_S = 2.0
_SAME_NEWS_S = 60.0
_PUT_BACK = "somebody has put the host back into service"


class NotLeft(Failed):
    """The host is still out of service."""


class OperationActivities:
    """What operations ask of the HostMaintenances that they have started, or go on from.

    Args:
        look_again: seconds between two looks at one that is waited for.
    """

    def __init__(self, client: Client, *, look_again: float = _LOOK_AGAIN_S) -> None:
        self._client = client
        self._look_again = look_again

    @activity.defn(name="wait_for_maintenance")
    async def wait_for_maintenance(self, request: WaitForMaintenanceInput) -> MaintenanceProgress:
        """Until it is ready, has ended, or stands otherwise than it was seen to."""
        started = time.monotonic()
        while True:
            progress = await self._look(request.maintenance)
            if progress is not None and _is_news(
                progress, request.seen, time.monotonic() - started
            ):
                return progress
            await asyncio.sleep(self._look_again)

    @activity.defn(name="leave_maintenance")
    async def leave_maintenance(self, request: LeaveMaintenanceInput) -> None:
        """Have it put its host back. No effect if somebody has done that already.

        Raises NotLeft, with the reason, if the host stays out of service.
        """
        try:
            sent = await self._chain(request.maintenance).start_update(
                "leave",
                LeaveInput(return_vms=request.return_vms),
                id=request.request,
                wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            )
            await sent.result()
        except WorkflowUpdateFailedError as error:
            raise NotLeft(f"{request.host} stays out of service: {_words(error.cause)}") from error
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise _unanswered(request.maintenance, error) from error
            await self._require_left(request)

    @activity.defn(name="hand_over_maintenance")
    async def hand_over_maintenance(self, request: HandOverMaintenanceInput) -> HandedOver:
        """Have the maintenance end with its host as it is, for its successor to take the lease.
        No effect on one that has ended, and on an operation of another kind: its lease tells.

        Raises Conflict, with the reason and what to do, if it is not ready.
        """
        latest = await self._describe(request.holder)
        if (
            latest is None
            or latest.status is not WorkflowExecutionStatus.RUNNING
            or latest.workflow_type != WORKFLOW_TYPES[OperationKind.MAINTENANCE]
        ):
            return HandedOver(handed_over=False)
        try:
            sent = await self._chain(request.holder).start_update(
                "hand_over",
                HandOverInput(successor=request.successor),
                id=request.request,
                wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            )
            await sent.result()
        except WorkflowUpdateFailedError as error:
            raise Conflict(
                _words(error.cause),
                remedy=f"Or end it first: hostler maintenance leave {request.host}; if the host is "
                f"lost: temporal workflow terminate --workflow-id {request.holder.workflow_id}",
            ) from error
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise _unanswered(request.holder, error) from error
            return HandedOver(handed_over=False)  # it has just ended
        return HandedOver(handed_over=True)

    async def _require_left(self, request: LeaveMaintenanceInput) -> None:
        latest = await self._describe(request.maintenance)
        if latest is None or latest.status is WorkflowExecutionStatus.CANCELED:
            return
        if (
            latest.status is WorkflowExecutionStatus.COMPLETED
            and await self._ending(request.maintenance) == _PUT_BACK
        ):
            return
        raise NotLeft(
            f"{request.maintenance.workflow_id} has ended without putting {request.host} back: "
            f"{await self._ending(request.maintenance)}",
            remedy=f"Put it back with `hostler maintenance leave {request.host}`.",
        )

    async def _look(self, maintenance: Owner) -> MaintenanceProgress | None:
        """How it stands; None as long as it can't tell."""
        latest = await self._describe(maintenance)
        if latest is None or latest.status is not WorkflowExecutionStatus.RUNNING:
            return MaintenanceProgress(ended=await self._ending(maintenance))
        try:
            # As a plain object: its model may have fields of a later version.
            status: dict[str, Any] = await self._chain(maintenance).query("status")
        except (WorkflowQueryFailedError, RPCError) as error:
            activity.logger.info("%s does not tell: %s", maintenance.workflow_id, error)
            return None
        phase, message = status["phase"], status["message"]
        return MaintenanceProgress(
            ready=phase == Phase.READY,
            question=message if phase == Phase.QUESTION else None,
            queued=message if phase == Phase.QUEUED else None,
        )

    async def _describe(self, maintenance: Owner) -> WorkflowExecutionDescription | None:
        """The chain's latest run; None if there is none that Temporal remembers."""
        try:
            latest = await self._client.get_workflow_handle(maintenance.workflow_id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise _unanswered(maintenance, error) from error
        return latest if latest.raw_info.first_run_id == maintenance.first_run_id else None

    async def _ending(self, maintenance: Owner) -> str:
        """How its chain of runs has ended, in words."""
        try:
            successor = await self._successor(maintenance)
        except WorkflowFailureError as failure:
            return _words(failure.cause)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return "Temporal does not know it any more"
            raise _unanswered(maintenance, error) from error
        if successor is not None:
            return f"it was handed over to {successor}"
        return _PUT_BACK

    async def _successor(self, maintenance: Owner) -> str | None:
        """The operation that it was handed over to, when it has completed. Raises
        WorkflowFailureError, RPCError."""
        # As a plain object: its model may have fields of a later version.
        result: dict[str, Any] = await self._client.get_workflow_handle(
            maintenance.workflow_id, run_id=maintenance.first_run_id
        ).result()
        if result["outcome"] != MaintenanceOutcome.HANDED_OVER:
            return None
        return str(result["handed_over_to"])

    def _chain(self, maintenance: Owner) -> WorkflowHandle[Any, Any]:
        """The run that is open now, if it descends from the same first one."""
        return self._client.get_workflow_handle(
            maintenance.workflow_id, first_execution_run_id=maintenance.first_run_id
        )


def _is_news(now: MaintenanceProgress, seen: MaintenanceProgress, waited: float) -> bool:
    """Another text of the same can wait: each news is an entry in the history."""
    if now.ready or now.ended is not None:
        return True
    if (now.question is None, now.queued is None) != (seen.question is None, seen.queued is None):
        return True
    return now != seen and waited > _SAME_NEWS_S


def _words(cause: BaseException) -> str:
    return cause.message if isinstance(cause, FailureError) else str(cause)


def _unanswered(maintenance: Owner, error: RPCError) -> Unavailable:
    return Unavailable(f"Temporal did not answer about {maintenance.workflow_id}: {error.message}.")
