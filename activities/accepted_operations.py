"""Requests that were taken, and whose operation nobody has started: the process that took them has
died, or Temporal did not answer it."""

from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from contracts.errors import Conflict, Unavailable
from contracts.operations import (
    ACCEPTED_MEMO,
    CALLER_MEMO,
    WORKFLOW_TYPES,
    AcceptedOperation,
    workflow_id,
)
from contracts.passwords import PasswordRotationInput
from contracts.settings import OPERATION_START_TIMEOUT
from inventory import Inventory

# Whoever takes a request starts it within seconds.
_OVERDUE_AFTER = timedelta(minutes=1)


class AcceptedActivities:
    """Starts them, on the task queue that asks for it."""

    def __init__(self, inventory: Inventory, client: Client) -> None:
        self._inventory = inventory
        self._client = client

    @activity.defn(name="start_accepted")
    async def start_accepted(self) -> None:
        """Start each that is overdue. One that is too old, or that another operation is in the way
        of, expires: nobody waits for it any more. Raises Unavailable."""
        settings = await self._inventory.settings.resolve()
        longest = timedelta(seconds=settings[OPERATION_START_TIMEOUT])
        for accepted in await self._inventory.accepted.overdue(_OVERDUE_AFTER):
            too_old = datetime.now(UTC) - accepted.accepted_at >= longest
            try:
                run_id = await (self._find(accepted) if too_old else self._start(accepted))
                if run_id is None:
                    await self._inventory.accepted.expire(
                        accepted.id,
                        f"nobody started it within {settings[OPERATION_START_TIMEOUT]} s"
                        if too_old
                        else f"{workflow_id(accepted.kind, accepted.subject)} runs already",
                    )
                else:
                    await self._inventory.accepted.begin(accepted.id, run_id)
            except Conflict as conflict:  # whoever took it was only slow
                activity.logger.warning("%s", conflict)

    async def _start(self, accepted: AcceptedOperation) -> str | None:
        """Its run; None if another operation is in the way."""
        try:
            handle = await self._client.start_workflow(
                WORKFLOW_TYPES[accepted.kind],
                PasswordRotationInput.model_validate(accepted.request),
                id=workflow_id(accepted.kind, accepted.subject),
                task_queue=activity.info().task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                static_summary=f"{accepted.kind.capitalize()} of {accepted.subject} by "
                f"{accepted.caller}, started late",
                memo={CALLER_MEMO: accepted.caller, ACCEPTED_MEMO: accepted.id},
            )
        except WorkflowAlreadyStartedError:
            return await self._find(accepted)
        except RPCError as error:
            raise _unavailable(accepted, error) from error
        activity.logger.warning(
            "%s was asked for by %s, and not started until now", handle.id, accepted.caller
        )
        return handle.first_execution_run_id

    async def _find(self, accepted: AcceptedOperation) -> str | None:
        """Its run, if that is the latest one under its id."""
        handle = self._client.get_workflow_handle(workflow_id(accepted.kind, accepted.subject))
        try:
            latest = await handle.describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise _unavailable(accepted, error) from error
        own = await latest.memo_value(ACCEPTED_MEMO, None)
        return latest.raw_info.first_run_id if own == accepted.id else None


def _unavailable(accepted: AcceptedOperation, error: RPCError) -> Unavailable:
    return Unavailable(
        f"Temporal did not start the {accepted.kind} of {accepted.subject}: {error.message}."
    )
