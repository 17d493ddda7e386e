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
from contracts.errors import Failed, Unavailable
from contracts.leases import Owner
from contracts.maintenance import LeaveInput
from contracts.states import Phase

_LOOK_AGAIN_S = 2.0
_SAME_NEWS_S = 60.0


class NotLeft(Failed):
    """The host is still out of service."""


class OperationActivities:
    """What a ClusterMaintenance asks of the HostMaintenances that it has started.

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
            cause = error.cause
            reason = cause.message if isinstance(cause, FailureError) else str(cause)
            raise NotLeft(f"{request.host} stays out of service: {reason}") from error
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise _unanswered(request.maintenance, error) from error
            await self._require_left(request)

    async def _require_left(self, request: LeaveMaintenanceInput) -> None:
        latest = await self._describe(request.maintenance)
        if latest is None or latest.status in (
            WorkflowExecutionStatus.COMPLETED,
            WorkflowExecutionStatus.CANCELED,
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
        handle = self._client.get_workflow_handle(
            maintenance.workflow_id, run_id=maintenance.first_run_id
        )
        try:
            await handle.result()
        except WorkflowFailureError as failure:
            cause = failure.cause
            return cause.message if isinstance(cause, FailureError) else str(cause)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return "Temporal does not know it any more"
            raise _unanswered(maintenance, error) from error
        return "somebody has put the host back into service"

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


def _unanswered(maintenance: Owner, error: RPCError) -> Unavailable:
    return Unavailable(f"Temporal did not answer about {maintenance.workflow_id}: {error.message}.")
