"""HostImport: many hosts, each by a HostAddition of its own, so many at a time.

    look which hosts are there already -> add the others in a sliding window -> report

One that fails is reported and fails nothing else. A host with `dry_run` is only looked at, and all
that was found is in the report. An addition that somebody else has started is joined. The additions
outlive the import: one that is cancelled begins no other, and a second import of the same list
finishes what is left.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    FailureError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.workflow import (
    ChildWorkflowCancellationType,
    ChildWorkflowHandle,
    ParentClosePolicy,
)

with workflow.unsafe.imports_passed_through():
    from activities.host_import import ImportActivities
    from contracts.addition import HostAdditionInput, HostAdditionResult
    from contracts.host_import import (
        ENDED_STATES,
        AwaitAdditionsInput,
        AwaitAdditionsResult,
        CarriedImport,
        DiscardSecretsInput,
        FindHostsInput,
        FindHostsResult,
        HostImportInput,
        HostImportResult,
        HostImportStatus,
        ImportedHost,
        ImportState,
    )
    from contracts.leases import Owner
    from contracts.operations import WORKFLOW_TYPES, OperationKind, workflow_id
    from contracts.preflight import Finding, errors_among
    from contracts.states import Phase
    from workflows import policies
    from workflows.failures import as_application_error, explain
    from workflows.host_import_page import current_details, message, next_commands
    from workflows.search_attributes import HOST_CLUSTER, PHASE

# Looked for in the inventory at a time, right before it is their turn.
_AHEAD = 200
# A reason is carried along for every host that failed; beyond so many, its addition tells it.
_MAX_ERROR_BYTES = 250
_MOST_ERRORS = 1000
# The same of what dry runs have found, of all hosts together.
_MAX_FINDINGS_BYTES = 200_000


@workflow.defn(name="HostImport")
class HostImport:
    """One import of one list of hosts."""

    def __init__(self) -> None:
        self._request: HostImportInput | None = None
        self._since: datetime = workflow.now()
        # In the order of the list that the import began with; `_asked` has those not ended.
        self._hosts: list[ImportedHost] = []
        self._asked: dict[int, HostAdditionInput] = {}
        self._counts: Counter[ImportState] = Counter()
        self._clusters: Counter[str] = Counter()
        self._room_for_findings = _MAX_FINDINGS_BYTES
        self._failed: list[ImportedHost] = []
        self._unseen: deque[int] = deque()
        self._absent: deque[int] = deque()
        self._begun: set[int] = set()
        self._in_work: dict[int, asyncio.Task[None]] = {}
        self._owners: dict[int, Owner] = {}
        self._joined: dict[str, Owner | None] = {}
        self._joined_ended: dict[str, str | None] = {}
        self._joining: asyncio.Task[None] | None = None
        self._canceled = False
        self._changes = 0

    # --- the run, read like a runbook -----------------------------------------------------------

    @workflow.run
    async def run(self, request: HostImportInput) -> HostImportResult:
        """Returns when each host was added, was there already, or has failed."""
        self._request = request
        self._take_up(request)
        self._show(Phase.INSTALLING)
        if not await self._work_unless_canceled():
            self._continue_as_new()
        if self._canceled:
            await self._drop_secrets()
            raise asyncio.CancelledError("the import was cancelled; additions that run go on")
        self._show(Phase.DONE)
        return HostImportResult(name=request.name, hosts=tuple(self._hosts))

    async def _work_unless_canceled(self) -> bool:
        """True at the end; False when it is to continue as new."""
        work = asyncio.create_task(self._work())
        while not work.done():
            try:
                await workflow.wait_condition(work.done)
            except asyncio.CancelledError:
                self._canceled = True
                for task in (work, *self._in_work.values()):
                    task.cancel()
        try:
            return work.cancelled() or work.result()
        except ActivityError as error:
            raise as_application_error(error) from error

    async def _work(self) -> bool:
        while not self._canceled:
            while self._unseen and not self._absent:
                await self._look_ahead()
            self._begin_additions()
            if not self._in_work and not self._unseen and not self._absent:
                return True
            if workflow.info().is_continue_as_new_suggested() and self._all_have_begun():
                return False
            await self._until_changed(self._changes)
        return True

    async def _until_changed(self, seen: int) -> None:
        await workflow.wait_condition(lambda: self._changes != seen)

    async def _look_ahead(self) -> None:
        """Sort out the next hosts: those that are there as asked, or otherwise, and the rest."""
        some = [self._unseen.popleft() for _ in range(min(_AHEAD, len(self._unseen)))]
        found = await self._find([self._asked[position] for position in some])
        for position in some:
            name = self._asked[position].name
            if name in found.present:
                self._end(position, ImportState.PRESENT)
            elif name in found.different:
                self._end(position, ImportState.FAILED, found.different[name])
            else:
                self._absent.append(position)

    def _begin_additions(self) -> None:
        while self._absent and len(self._in_work) < self._list.parallel:
            if self._ends_with_this_run(self._absent[0]):
                return
            self._begin(self._absent.popleft())

    def _ends_with_this_run(self, position: int) -> bool:
        """What a dry run finds is only told to the run that began it: when that is to end soon, it
        begins no further one, and waits for those that it has begun."""
        return self._asked[position].dry_run and workflow.info().is_continue_as_new_suggested()

    def _begin(self, position: int) -> None:
        self._begun.add(position)
        dry_run = self._asked[position].dry_run
        self._note(position, ImportState.CHECKING if dry_run else ImportState.ADDING)
        self._in_work[position] = asyncio.create_task(self._add(position))

    # --- one host -------------------------------------------------------------------------------

    async def _add(self, position: int) -> None:
        """By a child of the usual id, or by the addition that runs already."""
        asked = self._asked[position]
        try:
            if asked.dry_run:
                await self._look_at(position, asked)
            elif position in self._owners or not await self._is_child(position, asked):
                await self._join(position, asked)
            else:
                self._end(position, ImportState.ADDED)
        except ChildWorkflowError as error:
            self._end(position, ImportState.FAILED, _why(error))
        except ActivityError as error:
            self._end(position, ImportState.FAILED, explain(error))
        finally:
            del self._in_work[position]
            self._changes += 1

    async def _look_at(self, position: int, asked: HostAdditionInput) -> None:
        """By an addition that changes nothing."""
        child = await self._start_child(asked)
        if child is None:
            await self._discard([asked.secret])
            running = workflow_id(OperationKind.ADDITION, asked.name)
            self._end(position, ImportState.FAILED, f"{running} runs already.")
            return
        found = HostAdditionResult.model_validate(await child).findings
        errors = "; ".join(error.found for error in errors_among(found))
        state = ImportState.FAILED if errors else ImportState.ADDABLE
        self._end(position, state, errors or None, found)

    async def _is_child(self, position: int, asked: HostAdditionInput) -> bool:
        """Add the host by a child; False if an addition of it runs already."""
        child = await self._start_child(asked)
        if child is None:
            return False
        self._owners[position] = Owner(
            workflow_id=child.id, first_run_id=child.first_execution_run_id or ""
        )
        self._changes += 1
        await child
        return True

    async def _start_child(self, asked: HostAdditionInput) -> ChildWorkflowHandle[Any, Any] | None:
        """None if an addition of that host runs already."""
        try:
            return await workflow.start_child_workflow(
                WORKFLOW_TYPES[OperationKind.ADDITION],
                asked,
                id=workflow_id(OperationKind.ADDITION, asked.name),
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                # It takes back what it did by itself, whatever becomes of this workflow.
                parent_close_policy=ParentClosePolicy.ABANDON,
                cancellation_type=ChildWorkflowCancellationType.ABANDON,
                static_summary=f"Addition of {asked.name}: import {self._list.name}",
            )
        except WorkflowAlreadyStartedError:
            return None

    async def _join(self, position: int, asked: HostAdditionInput) -> None:
        """Wait for an addition that is not this run's child; what it has made may be otherwise than
        asked here."""
        error = await self._until_ended(asked.name, self._owners.get(position))
        if error is not None:
            self._end(position, ImportState.FAILED, error)
            return
        found = await self._find([asked])
        if asked.name in found.present:
            self._end(position, ImportState.ADDED)
        else:
            problem = found.different.get(asked.name, "It is gone again.")
            self._end(position, ImportState.FAILED, problem)

    async def _until_ended(self, host: str, owner: Owner | None) -> str | None:
        """Why it did not end well, if so. One activity waits for all: they are many."""
        self._joined[host] = owner
        if self._joining is None or self._joining.done():
            self._joining = asyncio.create_task(self._watch_joined())
        await workflow.wait_condition(lambda: host in self._joined_ended)
        return self._joined_ended.pop(host)

    async def _watch_joined(self) -> None:
        while self._joined:
            watched = dict(self._joined)
            try:
                result: AwaitAdditionsResult = await workflow.execute_activity_method(
                    ImportActivities.await_additions,
                    AwaitAdditionsInput(additions=watched),
                    summary="Additions that run already",
                    **policies.HOST_JOB,
                )
                ended = result.ended
            except ActivityError as error:
                ended = dict.fromkeys(watched, explain(error))
            for host, problem in ended.items():
                del self._joined[host]
                self._joined_ended[host] = problem

    async def _find(self, hosts: Sequence[HostAdditionInput]) -> FindHostsResult:
        found: FindHostsResult = await workflow.execute_activity_method(
            ImportActivities.find_hosts,
            FindHostsInput(hosts=tuple(hosts)),
            summary="Hosts that are there already",
            **policies.RECORD,
        )
        return found

    async def _drop_secrets(self) -> None:
        """Of hosts whose addition has not begun."""
        left = [
            asked.secret for position, asked in self._asked.items() if position not in self._begun
        ]
        try:
            await self._discard(left)
        except ActivityError as error:
            raise as_application_error(error) from error

    async def _discard(self, secrets: Sequence[str]) -> None:
        await workflow.execute_activity_method(
            ImportActivities.discard_secrets,
            DiscardSecretsInput(secrets=tuple(secrets)),
            summary="Credentials that nobody needs",
            **policies.RECORD,
        )

    # --- continue as new ------------------------------------------------------------------------

    def _all_have_begun(self) -> bool:
        """Whether it is known of each addition in work which one it is, and none is a dry run."""
        return all(
            position in self._owners or self._asked[position].name in self._joined
            for position in self._in_work
        )

    def _continue_as_new(self) -> None:
        workflow.continue_as_new(
            HostImportInput(
                name=self._list.name,
                parallel=self._list.parallel,
                hosts=tuple(self._asked[position] for position in sorted(self._asked)),
                continued=CarriedImport(
                    since=self._since,
                    ended={
                        position: host
                        for position, host in enumerate(self._hosts)
                        if host.state in ENDED_STATES
                    },
                    adding={
                        self._asked[position].name: self._owners[position]
                        for position in self._in_work
                        if position in self._owners
                    },
                ),
            )
        )

    def _take_up(self, request: HostImportInput) -> None:
        """What there is to do, after what runs before this one have left."""
        carried = request.continued
        if carried is not None and workflow.info().continued_run_id is None:
            raise ApplicationError(
                "The input of HostImport is not valid: continued: is Hostler's own field.",
                type="InvalidInput",
                non_retryable=True,
            )
        ended = carried.ended if carried is not None else {}
        waiting = iter(request.hosts)
        for position in range(len(request.hosts) + len(ended)):
            if position in ended:
                self._hosts.append(ended[position])
            else:
                asked = self._asked[position] = next(waiting)
                self._hosts.append(ImportedHost(host=asked.name, state=ImportState.WAITING))
        self._counts.update(host.state for host in self._hosts)
        self._clusters.update(asked.cluster for asked in self._asked.values())
        self._room_for_findings -= sum(
            len(finding.model_dump_json()) for host in ended.values() for finding in host.findings
        )
        self._failed += [host for host in self._hosts if host.state is ImportState.FAILED]
        adding = carried.adding if carried is not None else {}
        self._since = carried.since if carried is not None else self._since
        for position, asked in self._asked.items():
            if asked.name in adding:
                self._owners[position] = adding[asked.name]
                self._begin(position)
        # Those that wait for somebody to accept their key come last: they hold others up.
        self._unseen.extend(
            sorted(
                self._asked.keys() - self._owners.keys(),
                key=lambda position: (self._asked[position].host_key_sha256 is None, position),
            )
        )

    # --- the query and bookkeeping --------------------------------------------------------------

    @workflow.query(name="status")
    def status(self) -> HostImportStatus:
        """How many hosts stand how, which are being added, which have failed and why."""
        adding = [self._asked[position] for position in sorted(self._in_work.keys() & self._asked)]
        keyless = sum(asked.host_key_sha256 is None and not asked.dry_run for asked in adding)
        name, total = self._list.name, len(self._hosts)
        going_on = sum(self._counts[state] for state in ENDED_STATES) < total
        return HostImportStatus(
            name=name,
            message=message(self._counts, total, keyless, canceled=self._canceled),
            since=self._since,
            parallel=self._list.parallel,
            total=total,
            counts={state: self._counts[state] for state in ImportState},
            adding=tuple(asked.name for asked in adding),
            failed=tuple(self._failed[:_MOST_ERRORS]),
            commands=next_commands(name, workflow.info().workflow_id) if going_on else (),
            clusters=tuple(sorted(+self._clusters)),
        )

    @property
    def _list(self) -> HostImportInput:
        if self._request is None:
            raise ApplicationError("The import has not begun yet.", type="Conflict")
        return self._request

    def _end(
        self,
        position: int,
        state: ImportState,
        error: str | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        cluster = self._asked.pop(position).cluster
        self._clusters[cluster] -= 1
        look = f"see: hostler operation show addition {self._hosts[position].host}"
        size = sum(len(finding.model_dump_json()) for finding in findings)
        if size > self._room_for_findings:
            error, findings, size = look, (), 0
        self._room_for_findings -= size
        if error is not None and len(self._failed) >= _MOST_ERRORS:
            error = look
        self._note(position, state, error, findings)

    def _note(
        self,
        position: int,
        state: ImportState,
        error: str | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        before = self._hosts[position]
        self._hosts[position] = now = ImportedHost(
            host=before.host,
            state=state,
            error=_cut(error) if error is not None else None,
            findings=findings,
        )
        self._counts[before.state] -= 1
        self._counts[state] += 1
        if state is ImportState.FAILED:
            self._failed.append(now)
        self._changes += 1
        workflow.set_current_details(current_details(self.status()))

    def _show(self, phase: Phase) -> None:
        clusters = {asked.cluster for asked in self._list.hosts}
        attributes = [PHASE.value_set(phase)]
        if len(clusters) == 1:
            attributes.append(HOST_CLUSTER.value_set(*clusters))
        workflow.upsert_search_attributes(attributes)
        workflow.set_current_details(current_details(self.status()))


def _cut(error: str) -> str:
    return " ".join(error.split()).encode()[:_MAX_ERROR_BYTES].decode(errors="ignore")


def _why(error: ChildWorkflowError) -> str:
    """Why the addition did not succeed, in words."""
    cause = error.cause
    if isinstance(cause, CancelledError):
        return "Its addition was cancelled."
    if isinstance(cause, TerminatedError):
        return "Its addition was terminated."
    if isinstance(cause, ActivityError):
        return explain(cause)
    return cause.message if isinstance(cause, FailureError) else str(cause or error)
