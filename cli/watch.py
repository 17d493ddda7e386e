"""`--watch`: a maintenance as it goes on, in bars on a terminal, in lines in a pipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cli.client import Api
from cli.output import console, one_line
from cli.progress import answers, in_words, migration_of, other_commands
from cli.waiting import COMPLETED, RUNNING, find_operation, patiently, pause, why
from contracts.errors import Failed
from contracts.hosts import Host
from contracts.maintenance import MaintenanceView, VmStatus
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.states import MAINTENANCE_STATES, Phase
from contracts.vms import MigrationState, VmMigration

# Rows that a terminal keeps for the bar of the whole, questions and the prompt.
_ROWS_KEPT = 8
# Between two lines about the same migration in a pipe.
_PERCENT_STEP = 10

_ENDED = frozenset(MigrationState) - {
    MigrationState.WAITING,
    MigrationState.MIGRATING,
    MigrationState.FAILED,
}


class Display(Protocol):
    """Where a maintenance is shown while it goes on."""

    def show(self, view: MaintenanceView) -> None:
        """This is how it stands now."""

    def say(self, text: str) -> None:
        """One line that stays."""


@contextmanager
def open_display() -> Iterator[Display]:
    """Bars if stdout is a terminal, lines if not."""
    out = console()
    if not out.is_terminal:
        yield Lines(out)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=out) as progress:
        yield Bars(progress)


class Lines:
    """One line per change of the whole and, unless `vms` is False, of each VM: of its state, or of
    so many per cent; what changes at every look is only told then."""

    def __init__(self, out: Console, *, vms: bool = True) -> None:
        self._console = out
        self._with_vms = vms
        self._headline = ""
        self._told: dict[str, tuple[object, ...]] = {}
        self._percent: dict[str, int] = {}

    def show(self, view: MaintenanceView) -> None:
        """Say what is new."""
        headline = f"{view.host}: {view.phase}: {view.message}"
        if headline != self._headline:
            self._headline = headline
            # A question is said by the watch, with what answers it.
            if view.phase is not Phase.QUESTION:
                self.say(headline)
        for vm in view.vms if self._with_vms else ():
            self.show_vm(vm, migration_of(view, vm))

    def show_vm(self, vm: VmStatus, migration: VmMigration | None = None) -> None:
        """Say what is new about one VM."""
        stands = (vm.state, vm.destination, vm.attempt, vm.mode, vm.start_again)
        percent = migration.percent if migration is not None else 0
        if self._told.get(vm.vm) == stands and percent < self._percent[vm.vm] + _PERCENT_STEP:
            return
        self._told[vm.vm] = stands
        self._percent[vm.vm] = percent - percent % _PERCENT_STEP
        self.say(f"{vm.vm}: {in_words(vm, migration, datetime.now(UTC))}")

    def say(self, text: str) -> None:
        """Print it; whoever reads the pipe has it at once."""
        self._console.print(one_line(text), soft_wrap=True)
        self._console.file.flush()


class Bars:
    """A bar per VM, and one for the whole."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._whole: TaskID | None = None
        self._bars: dict[str, TaskID] = {}

    def show(self, view: MaintenanceView) -> None:
        """Move the bars."""
        ended = sum(vm.state in _ENDED for vm in view.vms)
        if self._whole is None:
            self._whole = self._progress.add_task("", total=1, note="")
        self._progress.update(
            self._whole,
            description=f"{view.host} {view.phase}",
            total=max(len(view.vms), 1),
            completed=ended if view.vms else int(view.phase is Phase.READY),
            note=_note(view, ended),
        )
        roomy = len(view.vms) + _ROWS_KEPT <= self._progress.console.height
        for vm in view.vms:
            if vm.vm not in self._bars:
                self._bars[vm.vm] = self._progress.add_task("", total=100, note="")
            migration = migration_of(view, vm)
            self._progress.update(
                self._bars[vm.vm],
                description=one_line(vm.vm),
                completed=100 if vm.state in _ENDED else migration.percent if migration else 0,
                note=in_words(vm, migration, datetime.now(UTC), percent=False),
                visible=roomy or vm.state in (MigrationState.MIGRATING, MigrationState.FAILED),
            )

    def say(self, text: str) -> None:
        """Print it above the bars."""
        self._progress.console.print(one_line(text), soft_wrap=True)


def find_view(api: Api, host: str) -> MaintenanceView | None:
    """The host's open maintenance; None if there is none."""
    return api.find(MaintenanceView, "hosts", host, "maintenance")


class Watch:
    """One maintenance of one host, shown on `display` until there is nothing more to see."""

    def __init__(self, api: Api, host: str, display: Display) -> None:
        self._api = api
        self._host = host
        self._display = display
        self._last: MaintenanceView | None = None
        self._asked: frozenset[tuple[str, ...]] = frozenset()
        self._troubles: tuple[str, ...] = ()

    def views(self) -> Iterator[MaintenanceView]:
        """Every look at it; ends when it has ended. Raises Unavailable after a while without."""
        while True:
            view = patiently(lambda: find_view(self._api, self._host), self._display.say)
            if view is not None:
                self._last = view
                self._display.show(view)
                yield view
            elif not self._is_starting():
                return
            pause()

    def until_ready(self) -> bool:
        """True: ready for maintenance. False: it has ended before."""
        for view in self.views():
            self._say_troubles(view)
            self._say_questions(view)
            if view.phase is Phase.READY:
                return True
        return False

    def ending(self) -> Host:
        """The host after its maintenance has ended. Raises Failed if it did not give it back."""
        host = patiently(
            lambda: self._api.read(Host, self._api.get("hosts", self._host)), self._display.say
        )
        if host.resource_state in MAINTENANCE_STATES:
            raise Failed(
                f"The maintenance of {host.name} has ended, but it is still {host.resource_state}.",
                remedy=f"`hostler maintenance leave {host.name}` puts it back into service.",
            )
        return host

    def check_outcome(self) -> None:
        """Raises Failed, with the reason, if the maintenance has failed or was cancelled."""
        operation = self._operation()
        if operation is not None and operation.status != COMPLETED:
            raise Failed(why(operation))

    def _is_starting(self) -> bool:
        operation = self._operation()
        return operation is not None and operation.status == RUNNING

    def _operation(self) -> Operation | None:
        """The one that was seen last; before that, the one of the usual id."""
        usual = workflow_id(OperationKind.MAINTENANCE, self._host)
        subject = self._host
        if self._last is not None and self._last.workflow_id != usual:
            subject = self._last.workflow_id
        return patiently(
            lambda: find_operation(self._api, OperationKind.MAINTENANCE, subject),
            self._display.say,
        )

    def _say_troubles(self, view: MaintenanceView) -> None:
        """Each once when it begins, and once when it is over; a question is said as such."""
        asked = {_question(vm) for vm in view.vms if vm.vm in view.questions}
        troubles = tuple(trouble for trouble in view.troubles if trouble not in asked)
        for trouble in troubles:
            if trouble not in self._troubles:
                self._display.say(f"Trouble: {trouble}")
        for trouble in self._troubles:
            if trouble not in view.troubles:
                self._display.say(f"Over: {trouble}")
        self._troubles = troubles

    def _say_questions(self, view: MaintenanceView) -> None:
        """Each question once, with the commands that answer it."""
        asked = tuple(_questions(view)) if view.phase is Phase.QUESTION else ()
        for lines in asked:
            for line in lines if lines not in self._asked else ():
                self._display.say(line)
        self._asked = frozenset(asked)


def _note(view: MaintenanceView, ended: int) -> str:
    """Beside the bar of the whole."""
    if not view.vms or view.phase is Phase.QUEUED:
        return one_line(view.message)
    return f"{ended} of {len(view.vms)} VMs"


def _questions(view: MaintenanceView) -> Iterator[tuple[str, ...]]:
    """The lines of each question, then each other command."""
    for vm in view.vms:
        if vm.vm in view.questions:
            commands = (f"Run: {command}" for command in answers(view.host, vm))
            yield (f"Question: {_question(vm)}", *commands)
    if not view.questions:
        yield (f"Question: {view.message}",)
    for command in other_commands(view):
        yield (f"Run: {command}",)


def _question(vm: VmStatus) -> str:
    return f"{vm.vm} can't be moved: {vm.error}"
