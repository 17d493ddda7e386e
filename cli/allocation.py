"""`hostler zone|pod|cluster|host enable|disable`: start, wait, say which hosts don't know yet."""

import time
from typing import Annotated

import typer

from cli.arguments import NameArgument
from cli.client import Api, connect
from cli.output import note, say
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.allocation import AllocationLevel, AllocationStateResult
from contracts.errors import Failed, Unavailable
from contracts.operations import Operation
from contracts.states import AllocationState

# A worker that is there takes an operation up at once.
_NO_WORKER_S = 15.0

_Reason = Annotated[str, typer.Option(help="Why, for whoever finds that no VM starts.")]
_NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Return as soon as it has started, before hosts know.")
]


def register(commands: typer.Typer, level: AllocationLevel) -> None:
    """Add `enable` and `disable` to the commands of that level."""
    hosts = "the host" if level is AllocationLevel.HOST else f"the {level}'s hosts"

    @commands.command("enable", help=f"Let VMs come to {hosts}.")
    def _enable(name: NameArgument, reason: _Reason = "", no_wait: _NoWait = False) -> None:
        _allocate(level, name, AllocationState.ENABLED, reason, no_wait)

    @commands.command(
        "disable",
        help=f"Keep new VMs from {hosts}, which refuse them themselves; those there stay.",
    )
    def _disable(name: NameArgument, reason: _Reason = "", no_wait: _NoWait = False) -> None:
        _allocate(level, name, AllocationState.DISABLED, reason, no_wait)


def _allocate(
    level: AllocationLevel, name: str, state: AllocationState, reason: str, no_wait: bool
) -> None:
    field = "resource_state" if level is AllocationLevel.HOST else "allocation_state"
    with connect() as api:
        body = {field: state.value, "reason": reason}
        started = api.read(Operation, api.patch(f"{level}s", name, body=body))
        look = f"hostler operation show {started.kind} {name}"
        if no_wait:
            say(f"{level} {name} becomes {state}. See how it goes: {look}")
            return
        with interruptible(f"The {started.kind} of {name} goes on: {look}"):
            result = _wait(api, started, look)
    if result.allocation_state is not state:
        raise Failed(
            f"{level} {name} is {result.allocation_state}: somebody has asked for that meanwhile.",
            remedy=f"Who did: hostler event list --subject {level}/{name}",
        )
    hosts = "1 host was" if result.told == 1 else f"{result.told} hosts were"
    say(f"{level} {name} is {result.allocation_state}. {hosts} told.")
    for one in result.untold:
        note(f"{one.host} could not be told: {one.reason}")
    if result.not_told > len(result.untold):
        note(f"Neither could {result.not_told - len(result.untold)} more.")
    if result.not_told:
        note("Hosts that could not be told now will be when they answer again.")


def _wait(api: Api, started: Operation, look: str) -> AllocationStateResult:
    """Until it has ended. Raises Failed; Unavailable if nobody does the work."""
    deadline: float | None = time.monotonic() + _NO_WORKER_S

    def watch(operation: Operation) -> None:
        nonlocal deadline
        if operation.details is not None:
            deadline = None
        elif deadline is not None and time.monotonic() > deadline:
            raise Unavailable(
                f"The {started.kind} of {started.subject} has started, but no worker takes it up.",
                remedy=f"Start one with `hostler worker`, and it goes on by itself: {look}",
            )

    ended = until_closed(api, started, say=note, while_running=watch)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    return api.read(AllocationStateResult, ended.details)
