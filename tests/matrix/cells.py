"""One maintenance of kvm-1 with faults in it, from its start until kvm-1 is back in service."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.service import RPCError

from tests.e2e.conftest import GUESTS
from tests.e2e.proofs import assert_in_service
from tests.matrix.bench import SOURCE, Bench
from tests.matrix.faults import FAULTS, Fault
from tests.matrix.observation import Fate, Watch, watching
from tests.matrix.steps import STEPS, Stage, Step

Condition = Callable[[], Awaitable[bool]]

ID = f"maintenance/{SOURCE}"

_PATIENCE_S = 300
_PAUSE_S = 0.2
_MAINTENANCE = f"/v1/hosts/{SOURCE}/maintenance"


@dataclass(frozen=True)
class Cell:
    """A fault at a step."""

    step: Step
    fault: Fault

    @property
    def key(self) -> str:
        return f"{self.step.key}/{self.fault.key}"

    @property
    def exists(self) -> bool:
        """Between two calls there is only one moment to kill the worker."""
        return self.step.place is not None or self.fault.key != "worker-after"


CELLS = tuple(cell for step in STEPS for fault in FAULTS if (cell := Cell(step, fault)).exists)


@dataclass
class Course:
    """What was seen of one maintenance.

    Attributes:
        victim: the host that was taken for the destination.
        ready_after_s, left_after_s: from the last repair before it.
        during: cells whose fault still lasted when the maintenance was ready, or had ended.
        asked_again: why leaving had to be asked for more than once.
        attempts: per VM, by the word of the maintenance.
        events: of kvm-1, the oldest first.
        status, state: how the workflow closed, and what kvm-1 is then.
    """

    victim: str = ""
    ready_after_s: float | None = None
    left_after_s: float | None = None
    during: list[str] = field(default_factory=list)
    asked_again: list[str] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    status: str = ""
    state: str = ""
    fates: list[Fate] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What must not be, whatever the fault."""
        problems = [fate.problem for fate in self.fates if fate.problem is not None]
        if self.status != WorkflowExecutionStatus.COMPLETED.name:
            problems.append(f"the operation ended as {self.status}")
        return problems


class Maintenance:
    """Takes kvm-1 out and puts it back, and breaks things on the way."""

    def __init__(self, bench: Bench, cells: Sequence[Cell], *, brief: bool = False) -> None:
        self._bench = bench
        self._system = bench.system
        self._cells = cells
        self._brief = brief
        self._course = Course()
        self._repaired_at = 0.0

    async def run(self) -> Course:
        """Raises AssertionError when it does not come to its end, naming where it stands."""
        bench, course = self._bench, self._course
        await bench.fresh_guests(slow=any(cell.step.copying for cell in self._cells))
        seen = await self._events()
        async with watching(bench.lab) as watch:
            await self._enter(watch)
            await self._leave(watch)
            description = await self._described()
            assert description is not None
            assert description.status is not None
            course.status = description.status.name
            course.state = (await self._system.host(SOURCE))["resource_state"]
            course.fates = await watch.fates()
        course.events = (await self._events())[len(seen) :]
        await assert_in_service(bench.lab, SOURCE, await self._system.host(SOURCE))
        return course

    # --- there and back -------------------------------------------------------------------------

    async def _enter(self, watch: Watch) -> None:
        cells = self._of(Stage.ENTERING)
        names = self._arm(cells)
        self._repaired_at = time.monotonic()
        reason = " and ".join(cell.key for cell in self._cells)
        answer = await self._system.request("POST", _MAINTENANCE, json={"reason": reason})
        assert answer.status_code == 202, answer.text
        for cell in cells:
            async with self._bounded(f"to be reached: {cell.key}"):
                await self._reach(cell, names)
            await self._break(cell, names, watch, until=self._is_ready)
        async with self._bounded("Ready"):
            view = await self._system.until_phase(SOURCE, "Ready")
        self._course.ready_after_s = time.monotonic() - self._repaired_at
        left = (await self._bench.lab.virsh(SOURCE, "list", "--name")).stdout.split()
        assert left == [], f"{SOURCE} is said to be ready, and runs {left}"
        self._course.attempts = {vm["vm"]: vm["attempt"] for vm in view["vms"]}
        for cell in self._of(Stage.READY):
            await self._break(cell, names, watch, until=self._never)

    async def _leave(self, watch: Watch) -> None:
        cells = self._of(Stage.LEAVING)
        names = self._arm(cells)
        self._repaired_at = time.monotonic()
        async with self._bounded("an answer to leave"):
            await self._ask_to_leave()
        for cell in cells:
            async with self._bounded(f"to be reached: {cell.key}"):
                await self._reach(cell, names)
            await self._break(cell, names, watch, until=self._is_closed)
        async with self._bounded("the end"):
            while not await self._is_closed():
                view = await self._system.maintenance(SOURCE)
                if view.get("leave_problem"):
                    self._course.asked_again.append(view["leave_problem"])
                    await self._ask_to_leave()
                await asyncio.sleep(_PAUSE_S)
        self._course.left_after_s = time.monotonic() - self._repaired_at

    async def _ask_to_leave(self) -> None:
        """As somebody does who tries again when there is no good answer."""
        while (await self._system.request("DELETE", _MAINTENANCE)).status_code != 202:
            await asyncio.sleep(_PAUSE_S)

    # --- one fault ------------------------------------------------------------------------------

    def _of(self, stage: Stage) -> list[Cell]:
        """In the order in which they are reached."""
        cells = [cell for cell in self._cells if cell.step.stage is stage]
        return sorted(cells, key=lambda cell: STEPS.index(cell.step))

    def _arm(self, cells: list[Cell]) -> dict[str, str]:
        """Names of the failpoints, by cell."""
        return {
            cell.key: self._bench.failpoints.arm(cell.step.place, cell.fault.moment)
            for cell in cells
            if cell.step.place is not None
        }

    async def _reach(self, cell: Cell, names: dict[str, str]) -> None:
        if cell.step.copying:
            await self._system.until_migrating(SOURCE, len(GUESTS))
        else:
            await self._bench.failpoints.reached(names[cell.key])

    async def _break(
        self, cell: Cell, names: dict[str, str], watch: Watch, *, until: Condition
    ) -> None:
        """Strike, let the step go on, wait, repair."""
        fault, victim = cell.fault, await self._destination()
        self._course.victim = victim
        if fault.kills_destination:
            await watch.about_to_die(victim)
        await fault.strike(self._bench, victim)
        try:
            if cell.key in names:
                self._bench.failpoints.release(names[cell.key])
            await asyncio.sleep(fault.lasts(copying=cell.step.copying, brief=self._brief))
            if await until():
                self._course.during.append(cell.key)
        finally:
            await fault.repair(self._bench, victim)
        self._repaired_at = time.monotonic()

    async def _destination(self) -> str:
        """A host that VMs go to, by the plan if there is one."""
        view = await self._system.maintenance(SOURCE)
        moves = (view.get("plan") or {}).get("moves") or [{"destination": "kvm-2"}]
        destination: str = moves[0]["destination"]
        return destination

    # --- looking on -----------------------------------------------------------------------------

    async def _is_ready(self) -> bool:
        return (await self._system.maintenance(SOURCE)).get("phase") == "Ready"

    async def _is_closed(self) -> bool:
        description = await self._described()
        return description is not None and description.close_time is not None

    async def _never(self) -> bool:
        return False

    async def _described(self) -> WorkflowExecutionDescription | None:
        """None while Temporal is away."""
        with suppress(RPCError, RuntimeError):
            return await (await self._system.workflow(ID)).describe()
        return None

    async def _events(self) -> list[str]:
        query = {"subject": f"host/{SOURCE}", "limit": 1000}
        answer = await self._system.request("GET", "/v1/events", params=query)
        return [event["message"] for event in reversed(answer.json()["items"])]

    @asynccontextmanager
    async def _bounded(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                yield
        except TimeoutError:
            view: dict[str, Any] = await self._system.maintenance(SOURCE)
            events = "\n".join((await self._events())[-12:])
            raise AssertionError(
                f"waited {_PATIENCE_S} s for {what}; phase {view.get('phase')}: "
                f"{view.get('message')}\n{view.get('vms')}\n{events}"
            ) from None
