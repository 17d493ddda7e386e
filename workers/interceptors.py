"""What surrounds every activity and every workflow: typed errors, checked inputs, metrics,
heartbeats."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from temporalio import activity, workflow
from temporalio.exceptions import FailureError, is_cancelled_exception
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from contracts.certificate_renewal import CERTIFICATE_RENEWAL, CERTIFICATE_RENEWAL_SCHEDULE
from contracts.certificates import AUTHORITY_UPKEEP, AUTHORITY_UPKEEP_SCHEDULE
from contracts.errors import HostlerError, InvalidInput
from contracts.host_checks import HOST_CHECK, HOST_CHECK_SCHEDULE, HOUSEKEEPING, HOUSEKEEPING_ID
from contracts.operations import kind_of
from contracts.passwords import PASSWORD_VERIFICATION, PASSWORD_VERIFICATION_SCHEDULE
from contracts.power_actions import (
    BMC_TEST,
    POWER_PROBE,
    POWER_PROBE_ID,
    POWER_SYNC,
    POWER_SYNC_SCHEDULE,
)
from contracts.steps import MigrateVmResult
from contracts.tls_check import TLS_CHECK
from workers.converter import application_error
from workers.logs import host_of_log

# Workflows that are no operations of anybody's, as metrics name them.
_NO_OPERATIONS = {
    AUTHORITY_UPKEEP: AUTHORITY_UPKEEP_SCHEDULE,
    BMC_TEST: "bmc-test",
    CERTIFICATE_RENEWAL: CERTIFICATE_RENEWAL_SCHEDULE,
    HOST_CHECK: HOST_CHECK_SCHEDULE,
    HOUSEKEEPING: HOUSEKEEPING_ID,
    POWER_PROBE: POWER_PROBE_ID,
    PASSWORD_VERIFICATION: PASSWORD_VERIFICATION_SCHEDULE,
    POWER_SYNC: POWER_SYNC_SCHEDULE,
    TLS_CHECK: "tls-check",
}


class HostlerInterceptor(Interceptor):
    """Goes to every Worker; order it after tracing, so that spans see the final error."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """Wrap activities."""
        return _Activities(next)

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor]:
        """Wrap workflows."""
        return _Workflows


class _Activities(ActivityInboundInterceptor):
    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        super().init(_Beats(outbound))

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        with host_of_log(_host_of(input.args)):
            try:
                async with _beating():
                    result = await self.next.execute_activity(input)
            except HostlerError as error:
                failure = application_error(error).with_traceback(error.__traceback__)
                raise failure from error.__cause__
        if isinstance(result, MigrateVmResult) and result.seconds is not None:
            activity.metric_meter().create_histogram_float(
                "hostler_migration_seconds", "Duration of one live migration", "s"
            ).record(result.seconds)
        return result


class _Beats(ActivityOutboundInterceptor):
    """A heartbeat that says nothing keeps what the last one said."""

    _said: Sequence[Any] = ()

    def heartbeat(self, *details: Any) -> None:
        self._said = details or self._said
        self.next.heartbeat(*self._said)


@asynccontextmanager
async def _beating() -> AsyncIterator[None]:
    """Heartbeat three times per heartbeat time-out, if the call has one, until the block ends."""
    limit = activity.info().heartbeat_timeout
    if limit is None:
        yield
        return

    async def beat() -> None:
        while True:
            await asyncio.sleep(limit.total_seconds() / 3)
            activity.heartbeat()

    beats = asyncio.create_task(beat())
    try:
        yield
    finally:
        beats.cancel()
        with suppress(asyncio.CancelledError):
            await beats


class _Workflows(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        try:
            # The dynamic workflow takes its inputs in one list, however many they are.
            _require_one_input(workflow.info().workflow_type, "workflow", input.args)
            result = await self.next.execute_workflow(input)
        except (FailureError, asyncio.CancelledError) as error:
            if not is_cancelled_exception(error):
                _count_end("failed")
            elif workflow.cancellation_reason() is not None:  # else: only evicted from the cache
                _count_end("canceled")
            raise
        _count_end("completed")
        return result

    def handle_update_validator(self, input: HandleUpdateInput) -> None:  # noqa: A002
        _require_one_input(input.update, "update", input.args)
        self.next.handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
        # Again: an update that has no validator of its own comes here at once.
        _require_one_input(input.update, "update", input.args)
        return await self.next.handle_update_handler(input)


def _count_end(outcome: str) -> None:
    info = workflow.info()
    kind: str | None = kind_of(info.workflow_type, info.workflow_id)
    kind = _NO_OPERATIONS.get(info.workflow_type, kind)
    workflow.metric_meter().create_counter(
        "hostler_operations_ended", "Operations that ended, by kind and outcome"
    ).add(1, {"kind": str(kind or "unknown"), "outcome": outcome})


def _require_one_input(name: str, what: str, args: Sequence[Any]) -> None:
    """Every workflow and every update of Hostler's takes one model.

    Temporal decodes another number of inputs without their types, and the call itself would be a
    TypeError, retried for ever.
    """
    if len(args) == 1:
        return
    given = len(args) or "none"
    error = InvalidInput(
        f"{name} takes exactly one input, a JSON object; it was given {given}.",
        remedy=f"Send the {what} again with one; nothing was changed.",
        details={"fields": [{"field": "input", "message": f"exactly one, not {given}"}]},
    )
    raise application_error(error)


def _host_of(args: Sequence[Any]) -> str | None:
    """The host that an activity's input is about: its own field or that of its lease."""
    for source in (*args, *(getattr(arg, "lease", None) for arg in args)):
        host = getattr(source, "host", None)
        if isinstance(host, str):
            return host
    return None
