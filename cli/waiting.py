"""Waiting for an operation: through the API's absences, until Ctrl-C, until it has ended."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import typer

from cli.client import Api
from cli.output import note
from contracts.errors import Unavailable
from contracts.operations import Operation, OperationKind

T = TypeVar("T")

Say = Callable[[str], None]

_POLL_S = 0.5
# Long enough for Hostler to be started again; operations outlive that.
_PATIENCE_S = 120.0

RUNNING = "RUNNING"
COMPLETED = "COMPLETED"
_ENDED_BY = {
    "CANCELED": "was cancelled",
    "TERMINATED": "was terminated",
    "TIMED_OUT": "took longer than it may",
}


def pause() -> None:
    """Between two looks."""
    time.sleep(_POLL_S)


def patiently(read: Callable[[], T], say: Say) -> T:
    """What `read` returns, tried again while something does not answer.

    Raises Unavailable when that takes longer than a restart of Hostler takes.
    """
    deadline: float | None = None
    while True:
        try:
            return read()
        except Unavailable as error:
            if deadline is None:
                deadline = time.monotonic() + _PATIENCE_S
                say(f"{error.message} Trying again.")
            elif time.monotonic() > deadline:
                raise
        pause()


@contextmanager
def interruptible(text: str) -> Iterator[None]:
    """Ctrl-C inside ends the command, not the operation: `text` says so."""
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        if sys.stderr.isatty():
            typer.echo(err=True)  # the terminal has written ^C
        note(text)
        raise typer.Exit(130) from None


def find_operation(api: Api, kind: OperationKind, subject: str) -> Operation | None:
    """The newest run of the operation; None if there never was one."""
    return api.find(Operation, "operations", kind, subject)


def until_closed(
    api: Api, started: Operation, *, say: Say, while_running: Callable[[Operation], None]
) -> Operation:
    """Look at the operation until it has ended. Raises NotFound if Temporal has forgotten it."""

    def look() -> Operation:
        return api.read(Operation, api.get("operations", started.kind, started.subject))

    while (operation := patiently(look, say)).status == RUNNING:
        while_running(operation)
        pause()
    return operation


def why(operation: Operation) -> str:
    """Why an operation that has ended did not complete."""
    if operation.status in _ENDED_BY:
        return f"The {operation.kind} of {operation.subject} {_ENDED_BY[operation.status]}."
    return operation.error or f"The {operation.kind} of {operation.subject} failed."
