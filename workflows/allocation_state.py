"""AllocationState: enable or disable a zone, a pod, a cluster or a host, and tell the hosts.

set in the inventory -> tell all hosts below, batch by batch

While it runs, the update `change` turns it round: the other state is set, and all are told again.
"""

import asyncio
from collections.abc import Iterator

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.allocation import AllocationActivities
    from contracts.allocation import (
        MAX_LISTED,
        AllocationLevel,
        AllocationStateInput,
        AllocationStateResult,
        AllocationStateStatus,
        ChangeAllocationInput,
        HostsBelow,
        SetAllocationInput,
        TellHostsInput,
        TellHostsResult,
        UntoldHost,
    )
    from contracts.operations import ALLOCATION_KINDS
    from contracts.states import AllocationState as State
    from contracts.states import Phase
    from workflows import policies
    from workflows.failures import as_application_error
    from workflows.search_attributes import HOST_CLUSTER, HOST_NAME, HOST_POD, HOST_ZONE, PHASE

_BATCH = 100
# Of hundreds of hosts the page shows some, the result more.
_MOST_ROWS = 60
_VERBS = {State.ENABLED: "enable", State.DISABLED: "disable"}
_ATTRIBUTES = {
    AllocationLevel.ZONE: HOST_ZONE,
    AllocationLevel.POD: HOST_POD,
    AllocationLevel.CLUSTER: HOST_CLUSTER,
    AllocationLevel.HOST: HOST_NAME,
}


@workflow.defn(name="AllocationState")
class AllocationState:
    """One change of one zone, pod, cluster or host.

    Holds no lease: a host is told whatever operation has it, and each look into the inventory has
    the last word. Cancel stops the telling; the state stays as it was set, and the hosts that do
    not know of it are told by the next check of theirs.
    """

    def __init__(self) -> None:
        self._request: AllocationStateInput | None = None
        self._changes = 0
        self._phase = Phase.PLANNING
        self._hosts: tuple[str, ...] | None = None
        self._told = 0
        self._not_told = 0
        self._untold: list[UntoldHost] = []

    @workflow.run
    async def run(self, request: AllocationStateInput) -> AllocationStateResult:
        """Returns when every host was told or could not be; the latter does not fail it."""
        self._request = request
        try:
            while not await self._set_and_tell(self._changes):
                self._begin_anew()
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise as_application_error(error) from error
        self._enter(Phase.DONE)
        return AllocationStateResult(
            level=self._asked.level,
            name=self._asked.name,
            allocation_state=self._asked.allocation_state,
            told=self._told,
            not_told=self._not_told,
            untold=tuple(self._untold),
        )

    async def _set_and_tell(self, change: int) -> bool:
        """What is asked for now; False as soon as something else is."""
        self._enter(Phase.PLANNING)
        self._hosts = await self._set(change)
        for batch in self._batches(self._hosts):
            if self._changes == change:
                self._enter(Phase.TELLING)
                await self._tell_unless_changed(batch, change)
        return self._changes == change

    async def _tell_unless_changed(self, hosts: tuple[str, ...], change: int) -> None:
        """Whoever is being told when it is turned round is told again."""
        telling = asyncio.create_task(self._tell(hosts))
        try:
            await workflow.wait_condition(lambda: telling.done() or self._changes != change)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        if self._changes == change:
            telling.result()

    def _begin_anew(self) -> None:
        self._hosts, self._told, self._not_told, self._untold = None, 0, 0, []

    async def _set(self, change: int) -> tuple[str, ...]:
        asked, info = self._asked, workflow.info()
        below: HostsBelow = await workflow.execute_activity_method(
            AllocationActivities.set_allocation,
            SetAllocationInput(
                level=asked.level,
                name=asked.name,
                allocation_state=asked.allocation_state,
                reason=asked.reason,
                operation=info.workflow_id,
                step=f"{info.first_execution_run_id}/set/{change}",
            ),
            summary=f"{asked.level} {asked.name} becomes {asked.allocation_state}",
            **policies.RECORD,
        )
        return below.hosts

    async def _tell(self, hosts: tuple[str, ...]) -> None:
        result: TellHostsResult = await workflow.execute_activity_method(
            AllocationActivities.tell_hosts,
            TellHostsInput(hosts=hosts),
            summary=f"{hosts[0]}" if len(hosts) == 1 else f"{hosts[0]} to {hosts[-1]}",
            **policies.SWEEP,
        )
        self._told += len(result.told)
        self._not_told += len(result.untold)
        self._untold += result.untold[: MAX_LISTED - len(self._untold)]

    def _batches(self, hosts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for begin in range(0, len(hosts), _BATCH):
            # The SDK loses a cancel that crosses the end of an activity.
            if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError
            yield hosts[begin : begin + _BATCH]

    @workflow.update(name="change")
    async def change(self, request: ChangeAllocationInput) -> None:
        """The other state, from now on."""
        self._request = self._asked.model_copy(
            update={"allocation_state": request.allocation_state, "reason": request.reason}
        )
        self._changes += 1

    @change.validator
    def _check_change(self, request: ChangeAllocationInput) -> None:
        if request.allocation_state is self._asked.allocation_state:
            place = f"{self._asked.level} {self._asked.name}"
            raise ApplicationError(
                f"{place} becomes {request.allocation_state} already.", type="Conflict"
            )
        if self._phase is Phase.DONE or workflow.cancellation_reason() is not None:
            raise ApplicationError("The change is at its end.", type="Conflict")

    @workflow.query(name="status")
    def status(self) -> AllocationStateStatus:
        """Where it stands, and which hosts could not be told."""
        asked = self._asked
        return AllocationStateStatus(
            level=asked.level,
            name=asked.name,
            allocation_state=asked.allocation_state,
            phase=self._phase,
            reason=asked.reason,
            message=self._message(),
            since=workflow.info().start_time,
            hosts=None if self._hosts is None else len(self._hosts),
            told=self._told,
            not_told=self._not_told,
            untold=tuple(self._untold),
            commands=self._commands(),
        )

    @property
    def _asked(self) -> AllocationStateInput:
        if self._request is None:
            raise ApplicationError("The change has not begun yet.", type="Conflict")
        return self._request

    def _message(self) -> str:
        asked = self._asked
        if self._hosts is None:
            return f"{asked.level} {asked.name} is to become {asked.allocation_state}"
        left = f", {self._not_told} could not be" if self._not_told else ""
        return (
            f"{asked.level} {asked.name} is {asked.allocation_state}; "
            f"{self._told} of {len(self._hosts)} hosts were told{left}"
        )

    def _commands(self) -> tuple[str, ...]:
        asked = self._asked
        look = f"hostler operation show {ALLOCATION_KINDS[asked.level]} {asked.name}"
        again, back = (
            f"hostler {asked.level} {_VERBS[state]} {asked.name}"
            for state in sorted(State, key=lambda state: state is not asked.allocation_state)
        )
        if self._phase is not Phase.DONE:
            return (look, back)
        return (look, again) if self._not_told else (look,)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        workflow.upsert_search_attributes(
            [_ATTRIBUTES[self._asked.level].value_set(self._asked.name), PHASE.value_set(phase)]
        )
        workflow.set_current_details(self._page())

    def _page(self) -> str:
        asked = self._asked
        lines = [f"### {asked.level} {asked.name}: {self._phase}", "", self._message()]
        if asked.reason:
            lines += ["", f"Reason: {asked.reason}"]
        if self._untold:
            lines += ["", "These are told when they answer again:", "", "| Host | Why |", "|-|-|"]
            lines += [
                f"| {one.host} | {' '.join(one.reason.split()).replace('|', '/')} |"
                for one in self._untold[:_MOST_ROWS]
            ]
            if self._not_told > _MOST_ROWS:
                lines.append(f"\nand {self._not_told - _MOST_ROWS} more")
        return "\n".join([*lines, "", *(f"    {command}" for command in self._commands())])
