"""`hostler power`: switch hosts on and off by their BMCs, and see how they are."""

from typing import Annotated, Any

import typer

from cli.arguments import HostArgument, JsonOption, OrOffOption
from cli.client import Api, connect
from cli.oobm import fields_of
from cli.output import note, say, say_fields, say_json
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.errors import Failed
from contracts.oobm import HostPower
from contracts.operations import Operation
from contracts.power import PowerState
from contracts.power_actions import Action, PowerActionResult, PowerActionStatus, PowerOutcome

ReasonOption = Annotated[str, typer.Option(help="Why.")]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Also while VMs run there, or nobody knows whether any do; with --reason."
    ),
]
TimeoutOption = Annotated[
    int | None,
    typer.Option(
        metavar="SECONDS", help="Until it must have come about. [default: the cluster's setting]"
    ),
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Return as soon as the action has started.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(
        name="power", help="The power of hosts, by their BMCs.", no_args_is_help=True
    )
    commands.command("on")(on)
    commands.command("off")(off)
    commands.command("reset")(reset)
    commands.command("cycle")(cycle)
    commands.command("soft")(soft)
    commands.command("status")(status)
    app.add_typer(commands)


def on(
    host: HostArgument,
    reason: ReasonOption = "",
    timeout: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Switch a host on; done if it is on."""
    _switch(Action.ON, host, reason, False, timeout, no_wait, as_json)


def off(
    host: HostArgument,
    reason: ReasonOption = "",
    force: ForceOption = False,
    timeout: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take the power away, at once; done if it is off. See `soft` for good order."""
    _switch(Action.OFF, host, reason, force, timeout, no_wait, as_json)


def reset(
    host: HostArgument,
    reason: ReasonOption = "",
    force: ForceOption = False,
    timeout: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a host again at once, without taking the power away. Never sent twice."""
    _switch(Action.RESET, host, reason, force, timeout, no_wait, as_json)


def cycle(
    host: HostArgument,
    reason: ReasonOption = "",
    force: ForceOption = False,
    timeout: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take the power away, and give it back. Never sent twice."""
    _switch(Action.CYCLE, host, reason, force, timeout, no_wait, as_json)


def soft(
    host: HostArgument,
    reason: ReasonOption = "",
    or_off: OrOffOption = False,
    force: ForceOption = False,
    timeout: TimeoutOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a host's operating system to shut down, as its power button does; done if it is off."""
    _switch(Action.SOFT, host, reason, force, timeout, no_wait, as_json, fall_back_to_off=or_off)


def status(
    host: HostArgument,
    known: Annotated[
        bool, typer.Option("--known", help="Only tell what was seen last; ask nobody.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a host's BMC how the power is now."""
    with connect() as api:
        if known:
            answer = api.get("hosts", host, "power")
            if as_json:
                say_json(answer)
            else:
                say_fields(fields_of(api.read(HostPower, answer)))
            return
        started = api.read(
            Operation, api.post("hosts", host, "power", body={"action": Action.STATUS})
        )
        result = _wait(api, started, quiet=True)
    if as_json:
        say_json(result.model_dump(mode="json"))
    elif result.state is not PowerState.UNKNOWN:
        say(f"{host} is {result.state}.")
    if result.state is PowerState.UNKNOWN:
        raise Failed(f"{host}: {result.state}: {result.proof or 'its BMC does not say'}.")


def _switch(
    action: Action,
    host: str,
    reason: str,
    force: bool,
    timeout: int | None,
    no_wait: bool,
    as_json: bool,
    **more: Any,
) -> None:
    body = {"action": action, "reason": reason, "force": force, **more}
    if timeout is not None:
        body["timeout"] = timeout
    with connect() as api:
        started = api.read(Operation, api.post("hosts", host, "power", body=body))
        look = f"hostler operation show power {host}"
        for warning in started.warnings:
            note(f"Warning: {warning}.")
        if no_wait:
            say(f"power {action} of {host} has started. See how it goes: {look}")
            return
        with interruptible(f"power {action} of {host} goes on: {look}"):
            result = _wait(api, started, quiet=as_json)
    if as_json:
        say_json(result.model_dump(mode="json"))
        return
    for warning in result.warnings:
        if warning not in started.warnings:
            note(f"Warning: {warning}.")
    already = " already" if result.outcome is PowerOutcome.THERE_ALREADY else ""
    say(f"{host} is {result.state}{already}: {result.proof}.")


def _wait(api: Api, started: Operation, *, quiet: bool) -> PowerActionResult:
    """Until it has ended, telling each step. Raises Failed."""
    shown = ""

    def tell(operation: Operation) -> None:
        nonlocal shown
        if quiet or operation.details is None:
            return
        now = api.read(PowerActionStatus, operation.details)
        line = f"{now.host}: {now.phase}: {now.message}"
        if line != shown:
            shown = line
            say(line)

    ended = until_closed(api, started, say=note, while_running=tell)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    return api.read(PowerActionResult, ended.details)
