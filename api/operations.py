"""Operations as Temporal runs them: found, started, steered, described."""

import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import quote

from temporalio import exceptions
from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WithStartWorkflowOperation,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
)
from temporalio.common import SearchAttributeKey, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, FailureError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from contracts import errors
from contracts.access import Principal
from contracts.base import Contract
from contracts.cluster_maintenance import ClusterMaintenanceStatus
from contracts.errors import Conflict, Failed, HostlerError, LeaseHeld, NotFound, Unavailable
from contracts.host_checks import HOST_CHECK, HostCheckInput, HostCheckResult, HostSighting
from contracts.host_import import HostImportStatus
from contracts.leases import Owner
from contracts.maintenance import MaintenanceStatus
from contracts.oobm import BmcLook
from contracts.operations import (
    ACCEPTED_MEMO,
    CALLER_MEMO,
    HOST_KINDS,
    POWER_KINDS,
    SUBJECTS,
    WORKFLOW_TYPES,
    Operation,
    OperationKind,
    kind_of,
    kinds_of,
    lease_scope,
    workflow_id,
)
from contracts.passwords import (
    PASSWORD_VERIFICATION,
    PasswordRotationStatus,
    PasswordVerificationInput,
    PasswordVerificationResult,
)
from contracts.power_actions import BMC_TEST, BmcTestInput, BmcTestResult
from contracts.rollover import AuthorityRolloverStatus
from contracts.states import Phase
from contracts.tls_check import TLS_CHECK, TlsCheckInput, TlsReport
from inventory import Inventory

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = timedelta(seconds=10)
_A_MOMENT = timedelta(milliseconds=100)
_ATTRIBUTES = {
    level: SearchAttributeKey.for_keyword(f"Hostler{level.capitalize()}")
    for level in ("host", "cluster", "pod", "zone")
}
_PHASE = SearchAttributeKey.for_keyword("HostlerPhase")
# libvirt and SSH one after the other, each with its time-out, and a worker that has much to do.
_LONGEST_LOOK = timedelta(seconds=100)
# Of a cluster: hosts that do not answer take their time-outs, fifty at a time.
_LONGEST_SWEEP = timedelta(minutes=10)
# It is one line in a table of Temporal's UI.
_MAX_SUMMARY_BYTES = 200

# After one of these nobody knows whether the request had an effect.
_UNANSWERED = frozenset(
    {
        RPCStatusCode.ABORTED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.INTERNAL,
        RPCStatusCode.RESOURCE_EXHAUSTED,
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.UNKNOWN,
    }
)


class Operations:
    """All methods raise Unavailable when Temporal, or the worker that must answer, does not."""

    def __init__(self, client: Client, inventory: Inventory, task_queue: str) -> None:
        self._client = client
        self._inventory = inventory
        self._task_queue = task_queue

    async def ping(self) -> None:
        """Raises Unavailable if Temporal does not answer."""
        with _translated():
            await self._client.service_client.check_health(timeout=_PATIENCE)

    # --- find -----------------------------------------------------------------------------------

    async def running(
        self, host: str, *kinds: OperationKind
    ) -> WorkflowExecutionDescription | None:
        """The open operation of one of `kinds` on the host, under whichever id it runs.

        The lease names its holder; one that has only just begun has no lease yet, and is found by
        the usual id.
        """
        for scope in {lease_scope(kind) for kind in kinds}:
            lease = await self._inventory.leases.find(host, scope)
            holder = await self._open_run(lease.owner) if lease is not None else None
            if holder is not None and any(kind in kinds for kind in kinds_of(holder.workflow_type)):
                return holder
        for kind in kinds:
            usual = await self._describe(workflow_id(kind, host))
            if usual is not None and is_open(usual) and usual.workflow_type == WORKFLOW_TYPES[kind]:
                return usual
        return None

    async def require_free(self, host: str, *, but: OperationKind | None = None) -> None:
        """Raises LeaseHeld, with a link to the operation that is open on the host; one of the kind
        `but` may be."""
        holder = await self.running(host, *(kind for kind in HOST_KINDS if kind is not but))
        if holder is not None:
            raise _held(host, holder)

    async def require_no_power_operation(self, host: str) -> None:
        """Raises LeaseHeld, with a link, while something is done to the host's BMC."""
        holder = await self.running(host, *POWER_KINDS)
        if holder is not None:
            raise _held(host, holder)

    async def require_unnamed(self, level: str, name: str) -> None:
        """Raises LeaseHeld if an open operation goes by the name of that zone, pod or cluster.

        Those on the hosts of a cluster carry its name along. They are found here by the search
        attribute that they have set, which lags behind: who holds a host, its lease says.
        """
        for kind in (kind for kind, subject in SUBJECTS.items() if subject == level):
            usual = await self._describe(workflow_id(kind, name))
            if usual is not None and is_open(usual):
                raise _held(name, usual)
        if level == "cluster":
            query = f"{_ATTRIBUTES['cluster'].name} = '{name}' AND ExecutionStatus = 'Running'"
            with _translated():
                found = [
                    execution.id
                    async for execution in self._client.list_workflows(query, rpc_timeout=_PATIENCE)
                ]
            for workflow in found:
                holder = await self._describe(workflow)
                if holder is not None and is_open(holder):
                    raise _held(name, holder)
            await self._require_no_import_into(name)

    async def _require_no_import_into(self, cluster: str) -> None:
        """Raises LeaseHeld if an open import is to add hosts to it. One that adds to several has no
        search attribute that names them: it is asked."""
        query = (
            f"WorkflowType = '{WORKFLOW_TYPES[OperationKind.IMPORT]}' "
            "AND ExecutionStatus = 'Running'"
        )
        with _translated():
            found = [
                execution
                async for execution in self._client.list_workflows(query, rpc_timeout=_PATIENCE)
            ]
        for listed in found:
            execution = await self._describe(listed.id)
            if (
                execution is not None
                and is_open(execution)
                and cluster in (await self.import_status(execution)).clusters
            ):
                raise _held(cluster, execution)

    async def require_ended(self, name: str, owners: Iterable[Owner]) -> None:
        """Raises LeaseHeld, with a link, if one of these, which work on `name`, is open."""
        for owner in owners:
            holder = await self._open_run(owner)
            if holder is not None:
                raise _held(name, holder)

    async def _open_run(self, owner: Owner) -> WorkflowExecutionDescription | None:
        """Of the owner's chain. Another chain under its id means that it has ended."""
        latest = await self._describe(owner.workflow_id)
        if (
            latest is not None
            and latest.raw_info.first_run_id == owner.first_run_id
            and is_open(latest)
        ):
            return latest
        return None

    async def find(self, kind: OperationKind, subject: str) -> WorkflowExecutionDescription:
        """The newest operation of that kind; `subject` may also be the workflow's own id, should
        a person have chosen that. Raises NotFound."""
        for candidate in (workflow_id(kind, subject), subject):
            found = await self._describe(candidate)
            if found is not None and _kind(found) is kind:
                return found
        raise NotFound(
            f"There is no {kind} of {subject!r}.",
            remedy="See `hostler operation list` for the operations there are.",
        )

    async def run(
        self, kind: OperationKind, subject: str, run_id: str
    ) -> WorkflowExecutionDescription:
        """That run of it. Raises NotFound, also if Temporal does not keep it any more."""
        with _translated():
            return await self._client.get_workflow_handle(
                workflow_id(kind, subject), run_id=run_id
            ).describe(rpc_timeout=_PATIENCE)

    async def search(
        self, *, kind: OperationKind | None, status: str | None, limit: int
    ) -> list[Operation]:
        """The open ones and those that Temporal still keeps, newest first, without details."""
        types = {WORKFLOW_TYPES[kind]} if kind is not None else set(WORKFLOW_TYPES.values())
        # A run that continues as new is no operation of its own.
        query = (
            f"WorkflowType IN ({', '.join(map(repr, sorted(types)))}) "
            "AND ExecutionStatus != 'ContinuedAsNew'"
        )
        if kind is not None and len(kinds_of(WORKFLOW_TYPES[kind])) > 1:
            query += (
                f" AND (WorkflowId STARTS_WITH '{workflow_id(kind, '')}'"
                f" OR {_attribute(kind).name} IS NOT NULL)"
            )
        if status is not None:
            query += f" AND ExecutionStatus = '{status.title().replace('_', '')}'"
        with _translated():
            found = [
                as_operation(execution)
                async for execution in self._client.list_workflows(
                    query, limit=limit, rpc_timeout=_PATIENCE
                )
            ]
        return sorted(found, key=lambda operation: operation.started_at, reverse=True)

    async def open_import(self, name: str) -> WorkflowExecutionDescription | None:
        """The import of that name, while it runs."""
        found = await self._describe(workflow_id(OperationKind.IMPORT, name))
        return found if found is not None and is_open(found) else None

    async def require_no_rotation(self, cluster: str) -> None:
        """Raises LeaseHeld, with a link, while the passwords of the cluster's hosts are changed."""
        usual = await self._describe(workflow_id(OperationKind.ROTATION, cluster))
        if usual is not None and is_open(usual):
            raise _held(cluster, usual)

    async def require_no_import(self, name: str) -> None:
        """Raises LeaseHeld, with a link, while an import of that name runs."""
        running = await self.open_import(name)
        if running is not None:
            raise _held(f"The import {name}", running)

    async def addition_phases(self) -> dict[str, Phase]:
        """Of the additions that run, by host, as far as Temporal's index knows them yet."""
        query = (
            f"WorkflowType = '{WORKFLOW_TYPES[OperationKind.ADDITION]}' "
            "AND ExecutionStatus = 'Running'"
        )
        phases = {}
        with _translated():
            async for execution in self._client.list_workflows(query, rpc_timeout=_PATIENCE):
                phase = execution.typed_search_attributes.get(_PHASE)
                if phase is not None:
                    phases[subject_of(execution)] = Phase(phase)
        return phases

    # --- describe -------------------------------------------------------------------------------

    async def show(self, execution: WorkflowExecutionDescription) -> Operation:
        """The operation with what it says of itself, or how it ended."""
        operation = as_operation(execution)
        if is_open(execution):
            return operation.model_copy(update={"details": await self._details(execution)})
        try:
            with _translated():
                result = await self._handle(execution).result(
                    follow_runs=False, rpc_timeout=_PATIENCE
                )
        except WorkflowFailureError as failure:
            return operation.model_copy(update=_failure(failure.cause))
        return operation.model_copy(update={"details": result if _is_object(result) else None})

    async def status(self, execution: WorkflowExecution) -> MaintenanceStatus:
        """What the maintenance answers to its query `status`."""
        answer: MaintenanceStatus = await self._query(execution, MaintenanceStatus)
        return answer

    async def cluster_status(self, execution: WorkflowExecution) -> ClusterMaintenanceStatus:
        """What the maintenance of a cluster answers to its query `status`."""
        answer: ClusterMaintenanceStatus = await self._query(execution, ClusterMaintenanceStatus)
        return answer

    async def rotation_status(self, execution: WorkflowExecution) -> PasswordRotationStatus:
        """What the change of passwords answers to its query `status`."""
        answer: PasswordRotationStatus = await self._query(execution, PasswordRotationStatus)
        return answer

    async def rollover_status(self, execution: WorkflowExecution) -> AuthorityRolloverStatus:
        """What the rollover answers to its query `status`."""
        answer: AuthorityRolloverStatus = await self._query(execution, AuthorityRolloverStatus)
        return answer

    async def import_status(self, execution: WorkflowExecution) -> HostImportStatus:
        """What the import answers to its query `status`."""
        answer: HostImportStatus = await self._query(execution, HostImportStatus)
        return answer

    async def shown_host_key(self, host: str) -> str | None:
        """The fingerprint that the addition of the host waits for somebody to accept."""
        addition = await self.running(host, OperationKind.ADDITION)
        details = await self._details(addition) if addition is not None else None
        return (details or {}).get("host_key_sha256")

    async def _details(self, execution: WorkflowExecution) -> dict[str, Any] | None:
        """Temporal knows the operation even while no worker can answer for it."""
        try:
            answer = await self._query(execution, None)
        except (Failed, Unavailable) as error:
            logger.warning("%s", error)
            return None
        return answer if _is_object(answer) else None

    async def _query(self, execution: WorkflowExecution, result_type: type | None) -> Any:
        try:
            return await self._handle(execution).query(
                "status", result_type=result_type, rpc_timeout=_PATIENCE
            )
        except WorkflowQueryFailedError as error:
            raise Failed(f"{execution.id} can't say where it stands: {error.message}") from error
        except RPCError as error:
            raise Unavailable(
                f"{execution.id} does not say where it stands: {error.message}.",
                remedy="Is a worker running?",
            ) from error

    # --- start ----------------------------------------------------------------------------------

    async def start(
        self,
        kind: OperationKind,
        subject: str,
        request: Contract,
        caller: Principal,
        reason: str,
        *,
        accepted: str | None = None,
    ) -> str:
        """Start the operation under its usual id; the run. `accepted`: the request that was stored
        before: one that has started it already starts nothing. Raises LeaseHeld if another one
        runs."""
        try:
            with _translated():
                started = await self._client.start_workflow(
                    WORKFLOW_TYPES[kind],
                    request,
                    id=workflow_id(kind, subject),
                    task_queue=self._task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                    static_summary=_summary(kind, subject, caller, reason),
                    memo=_memo(caller) | ({ACCEPTED_MEMO: accepted} if accepted else {}),
                    rpc_timeout=_PATIENCE,
                )
        except WorkflowAlreadyStartedError as error:
            holder = await self._describe(error.workflow_id)
            if holder is None:
                raise Unavailable(f"{error.workflow_id} has just ended.") from error
            if accepted is not None and await holder.memo_value(ACCEPTED_MEMO, None) == accepted:
                return holder.raw_info.first_run_id
            raise _held(subject, holder) from error
        return str(started.first_execution_run_id)

    async def start_with_update(
        self,
        kind: OperationKind,
        subject: str,
        request: Contract,
        caller: Principal,
        reason: str,
        *,
        update: str,
        argument: Contract,
    ) -> None:
        """Start the operation, unless it runs by now, and send it an update in the same step.

        Returns when the update was accepted. Raises the validator's refusal.
        """
        start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
            WORKFLOW_TYPES[kind],
            request,
            id=workflow_id(kind, subject),
            task_queue=self._task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=_summary(kind, subject, caller, reason),
            memo=_memo(caller),
        )
        with _sent(workflow_id(kind, subject)):
            sent = await self._client.start_update_with_start_workflow(
                update,
                argument,
                start_workflow_operation=start,
                wait_for_stage=WorkflowUpdateStage.ACCEPTED,
                rpc_timeout=_PATIENCE,
            )
            await _raise_refusal(sent)

    # --- look -----------------------------------------------------------------------------------

    async def check_host(self, host: str, caller: Principal) -> HostSighting:
        """Have a worker look at the host now; callers at the same time share one look."""
        result = await self._look(
            *(HOST_CHECK, HostCheckInput(host=host), HostCheckResult),
            workflow=f"check/{host}",
            summary=f"Look at {host} for {caller.name}",
            caller=caller,
        )
        if result.sighting is None:
            raise Failed(f"The check of {host} says nothing of it.")
        return result.sighting

    async def verify_passwords(self, cluster: str, caller: Principal) -> PasswordVerificationResult:
        """Have a worker look which password each host has now; callers at the same time share one
        look."""
        return await self._look(
            PASSWORD_VERIFICATION,
            PasswordVerificationInput(cluster=cluster),
            PasswordVerificationResult,
            workflow=f"password-verification/{cluster}",
            summary=f"Passwords of {cluster} for {caller.name}",
            caller=caller,
            longest=_LONGEST_SWEEP,
        )

    async def check_tls(self, host: str, caller: Principal) -> TlsReport:
        """Have a worker look at the host's TLS now; callers at the same time share one look."""
        return await self._look(
            *(TLS_CHECK, TlsCheckInput(host=host), TlsReport),
            workflow=f"tls-check/{host}",
            summary=f"TLS of {host} for {caller.name}",
            caller=caller,
        )

    async def test_bmc(self, request: BmcTestInput, caller: Principal) -> BmcLook:
        """Have a worker log in to a BMC now, and look."""
        result = await self._look(
            *(BMC_TEST, request, BmcTestResult),
            # What is tested may differ from call to call: nobody shares another one's answer.
            workflow=f"bmc-test/{request.host}/{uuid.uuid4()}",
            summary=f"Look at the BMC of {request.host} for {caller.name}",
            caller=caller,
        )
        return result.look

    async def _look(
        self,
        workflow_type: str,
        request: Contract,
        result_type: type[T],
        *,
        workflow: str,
        summary: str,
        caller: Principal,
        longest: timedelta | None = None,
    ) -> T:
        """What a workflow of that id says, an open one or a new one. Raises its refusal, and
        Unavailable if no worker answers in time."""
        longest = longest or _LONGEST_LOOK
        handle: WorkflowHandle[Any, T]
        with _translated():
            handle = await self._client.start_workflow(
                workflow_type,
                request,
                id=workflow,
                task_queue=self._task_queue,
                result_type=result_type,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                execution_timeout=longest,
                static_summary=summary,
                memo=_memo(caller),
                rpc_timeout=_PATIENCE,
            )
            try:
                # Temporal says when its time is over, as long as it answers.
                return await handle.result(rpc_timeout=longest + _PATIENCE)
            except WorkflowFailureError as failure:
                if isinstance(failure.cause, exceptions.TimeoutError):
                    raise _no_worker() from failure
                raise _refusal(failure.cause) from failure

    # --- steer ----------------------------------------------------------------------------------

    async def update(self, execution: WorkflowExecution, name: str, argument: Contract) -> None:
        """Send an update and return when it was accepted. Raises the validator's refusal."""
        with _sent(execution.id):
            sent = await self._chain(execution).start_update(
                name,
                argument,
                wait_for_stage=WorkflowUpdateStage.ACCEPTED,
                rpc_timeout=_PATIENCE,
            )
            await _raise_refusal(sent)

    async def cancel(self, execution: WorkflowExecution, caller: Principal) -> None:
        """Ask it to take back what it did and end. Raises Conflict if it has ended."""
        if not is_open(execution):
            raise _ended(execution.id)
        try:
            with _translated():
                await self._chain(execution).cancel(
                    reason=f"asked for by {caller.name}", rpc_timeout=_PATIENCE
                )
        except NotFound as error:
            raise _ended(execution.id) from error

    # --- Temporal -------------------------------------------------------------------------------

    async def _describe(self, workflow: str) -> WorkflowExecutionDescription | None:
        try:
            with _translated():
                return await self._client.get_workflow_handle(workflow).describe(
                    rpc_timeout=_PATIENCE
                )
        except NotFound:
            return None

    def _handle(self, execution: WorkflowExecution) -> WorkflowHandle[Any, Any]:
        """That very run."""
        return self._client.get_workflow_handle(execution.id, run_id=execution.run_id)

    def _chain(self, execution: WorkflowExecution) -> WorkflowHandle[Any, Any]:
        """The run that is open now, if it descends from the same first one."""
        return self._client.get_workflow_handle(
            execution.id, first_execution_run_id=execution.raw_info.first_run_id
        )


def as_operation(execution: WorkflowExecution) -> Operation:
    """What Temporal itself says of it."""
    status = execution.status or WorkflowExecutionStatus.RUNNING
    return Operation(
        kind=_kind(execution),
        subject=subject_of(execution),
        workflow_id=execution.id,
        run_id=execution.run_id,
        status=status.name,
        started_at=execution.start_time,
        closed_at=execution.close_time,
    )


def subject_of(execution: WorkflowExecution) -> str:
    """The host, cluster, pod or zone: by the usual form of the id, else by the search attribute
    that it has set."""
    kind = _kind(execution)
    usual = workflow_id(kind, "")
    if execution.id.startswith(usual):
        return execution.id.removeprefix(usual)
    return execution.typed_search_attributes.get(_attribute(kind)) or execution.id


def link(execution: WorkflowExecution) -> str:
    """Where the API shows it."""
    kind = _kind(execution)
    subject = execution.id.removeprefix(workflow_id(kind, ""))
    return f"/v1/operations/{kind}/{quote(subject, safe='')}"


def event_subject(execution: WorkflowExecution) -> str:
    """Its subject as the audit trail names it."""
    return f"{SUBJECTS.get(_kind(execution), 'host')}/{subject_of(execution)}"


def _kind(execution: WorkflowExecution) -> OperationKind:
    """Of several that its type may be, the one whose search attribute it has set; one that has not
    begun has set none."""
    known = kind_of(execution.workflow_type, execution.id)
    if known is not None:
        return known
    kinds = kinds_of(execution.workflow_type)
    attributes = execution.typed_search_attributes
    return next((kind for kind in kinds if attributes.get(_attribute(kind))), kinds[0])


def _attribute(kind: OperationKind) -> SearchAttributeKey[str]:
    return _ATTRIBUTES.get(SUBJECTS.get(kind, "host"), _ATTRIBUTES["host"])


def is_open(execution: WorkflowExecution) -> bool:
    """Whether it has not ended yet."""
    return execution.close_time is None


def _held(host: str, holder: WorkflowExecution) -> LeaseHeld:
    known = bool(kinds_of(holder.workflow_type))
    return LeaseHeld(
        f"{host} is held by {holder.id}, which is running.",
        remedy="Wait for it, end it, or, if nobody needs it any more, terminate it in Temporal.",
        details={"workflow_id": holder.id, "run_id": holder.raw_info.first_run_id}
        | ({"operation": link(holder)} if known else {}),
    )


def _ended(workflow: str) -> Conflict:
    return Conflict(f"{workflow} has ended already.")


def _failure(cause: BaseException) -> dict[str, Any]:
    """Why it did not complete, in one line."""
    message = cause.message if isinstance(cause, FailureError) else str(cause)
    found: dict[str, Any] = {"error": " ".join(message.split())}
    if isinstance(cause, ApplicationError):
        found["error_type"] = cause.type
        if cause.details and _is_object(cause.details[0]):
            found["details"] = cause.details[0]
    return found


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _summary(kind: OperationKind, subject: str, caller: Principal, reason: str) -> str:
    """One line for Temporal's UI: the end of a long reason is cut off."""
    line = f"{kind.replace('-', ' ').capitalize()} of {subject} by {caller.name}" + (
        f": {reason}" if reason else ""
    )
    return " ".join(line.split()).encode()[:_MAX_SUMMARY_BYTES].decode(errors="ignore")


def _memo(caller: Principal) -> dict[str, Any]:
    return {CALLER_MEMO: caller.name}


@contextmanager
def _translated() -> Iterator[None]:
    """Temporal's errors as ours."""
    try:
        yield
    except RPCTimeoutOrCancelledError as error:
        raise _no_worker() from error
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NotFound(f"Temporal has no such thing: {error.message}.") from error
        if error.status in _UNANSWERED:
            raise Unavailable(
                f"Temporal did not answer: {error.message}.", remedy="Try again."
            ) from error
        raise Failed(f"Temporal refused: {error.message}.") from error


@contextmanager
def _sent(workflow: str) -> Iterator[None]:
    """What comes back from an update, as ours."""
    try:
        with _translated():
            yield
    except WorkflowUpdateFailedError as error:
        raise _refusal(error.cause) from error
    except NotFound as error:
        raise _ended(workflow) from error


async def _raise_refusal(sent: WorkflowUpdateHandle[Any]) -> None:
    """Raises WorkflowUpdateFailedError if the update was refused.

    Then Temporal has said so already, and nothing is asked again. Of one that was accepted, the
    outcome is not waited for: it may take as long as the operation.
    """
    with suppress(RPCTimeoutOrCancelledError, RPCError):
        await sent.result(rpc_timeout=_A_MOMENT)


def _no_worker() -> Unavailable:
    return Unavailable(
        "No worker took the request in time; one may still do so later.",
        remedy="Is a worker running?",
    )


def _refusal(cause: BaseException) -> HostlerError:
    """The error that a validator raised, by the type that Temporal kept of it."""
    message = cause.message if isinstance(cause, FailureError) else str(cause)
    name = cause.type if isinstance(cause, ApplicationError) else None
    kind = getattr(errors, name or "", None)
    if isinstance(kind, type) and issubclass(kind, HostlerError):
        return kind(message, details=_failure(cause).get("details"))
    return Failed(message)
