"""`hostler event`: the audit trail."""

from typing import Annotated

import typer

from cli.arguments import JsonOption
from cli.client import connect
from cli.output import say_json, say_table
from contracts.hosts import Event


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(name="event", help="The audit trail.", no_args_is_help=True)
    commands.command("list")(list_all)
    app.add_typer(commands)


def list_all(
    subject: Annotated[
        str | None, typer.Option(help="Only of this one, for example host/kvm-1.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the events, newest first."""
    with connect() as api:
        items = api.items("events", subject=subject, limit=limit)
        if as_json:
            say_json(items)
            return
        events = [api.read(Event, item) for item in items]
    say_table(
        ["AT", "SUBJECT", "KIND", "MESSAGE", "ACTOR", "OPERATION"],
        [
            [event.at, event.subject, event.kind, event.message, event.actor, event.operation]
            for event in events
        ],
    )
