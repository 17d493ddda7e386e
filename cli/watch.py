"""`--watch`: a maintenance as it goes on, in bars on a terminal, in lines in a pipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from cli.client import Api
from cli.output import console, one_line
from cli.waiting import COMPLETED, RUNNING, find_operation, patiently, pause, why
from contracts.errors import Failed, NotFound
from contracts.hosts import Host
from contracts.maintenance import MaintenanceView, VmStatus
from contracts.operations import Operation, OperationKind, workflow_id
from contracts.states import MAINTENANCE_STATES, Phase
from contracts.vms import MigrationState, VmMigration

# Rows that a terminal keeps for the bar of the whole, questions and the prompt.
_ROWS_KEPT = 8

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
    """One line per change, of the whole and, unless `vms` is False, of each VM."""

    def __init__(self, out: Console, *, vms: bool = True) -> None:
        self._console = out
        self._with_vms = vms
        self._headline = ""
        self._vms: dict[str, str] = {}

    def show(self, view: MaintenanceView) -> None:
        """Say what is new."""
        headline = f"{view.host}: {view.phase}: {view.message}"
        if headline != self._headline:
            self._headline = headline
            # A question is said by the watch, with what answers it.
            if view.phase is not Phase.QUESTION:
                self.say(headline)
        for vm in view.vms if self._with_vms else ():
            line = f"{vm.vm}: {_in_words(vm, migration_of(view, vm))}"
            if self._vms.get(vm.vm) != line:
                self._vms[vm.vm] = line
                self.say(line)

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
            note=f"{ended} of {len(view.vms)} VMs" if view.vms else one_line(view.message),
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
                note=_in_words(vm, migration, percent=False),
                visible=roomy or vm.state in (MigrationState.MIGRATING, MigrationState.FAILED),
            )

    def say(self, text: str) -> None:
        """Print it above the bars."""
        self._progress.console.print(one_line(text), soft_wrap=True)


def migration_of(view: MaintenanceView, vm: VmStatus) -> VmMigration | None:
    """The live migration of the VM that runs now."""
    running = [
        migration
        for migration in view.migrations
        if migration.vm == vm.vm and migration.state is MigrationState.MIGRATING
    ]
    if vm.state is not MigrationState.MIGRATING or not running:
        return None
    return max(running, key=lambda migration: migration.started_at)


def find_view(api: Api, host: str) -> MaintenanceView | None:
    """The host's open maintenance; None if there is none."""
    try:
        answer = api.get("hosts", host, "maintenance")
    except NotFound:
        return None
    return api.read(MaintenanceView, answer)


class Watch:
    """One maintenance of one host, shown on `display` until there is nothing more to see."""

    def __init__(self, api: Api, host: str, display: Display) -> None:
        self._api = api
        self._host = host
        self._display = display
        self._last: MaintenanceView | None = None
        self._asked: frozenset[str] = frozenset()

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

    def _say_questions(self, view: MaintenanceView) -> None:
        """Each question once, with the commands that answer it."""
        if view.phase is not Phase.QUESTION:
            self._asked = frozenset()
            return
        asked = {vm.vm: vm.error for vm in view.vms if vm.vm in view.questions}
        questions = frozenset(f"{vm} can't be moved: {error}" for vm, error in asked.items())
        if not questions:
            questions = frozenset({view.message})
        new = questions - self._asked
        self._asked = questions
        if not new:
            return
        for question in sorted(new):
            self._display.say(f"Question: {question}")
        for command in view.commands:
            self._display.say(f"Run: {command}")


def _in_words(vm: VmStatus, migration: VmMigration | None, *, percent: bool = True) -> str:
    words = str(vm.state)
    if vm.destination is not None and vm.state in (
        MigrationState.WAITING,
        MigrationState.MIGRATING,
        MigrationState.MOVED,
    ):
        words += f" to {vm.destination}"
    if migration is not None and percent:
        words += f", {migration.percent} %"
    if migration is not None:
        words += f", {migration.rate_mib_s:.1f} MiB/s"
    if vm.seconds is not None and vm.state is MigrationState.MOVED:
        words += f" in {vm.seconds:.1f} s"
    if vm.error is not None and vm.state in (MigrationState.WAITING, MigrationState.FAILED):
        words += f" ({vm.error})"
    return one_line(words)
