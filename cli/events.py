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
    kind: Annotated[
        str | None, typer.Option(help="Only of this kind, for example host.state.")
    ] = None,
    operation: Annotated[
        str | None, typer.Option(help="Only of this one, for example maintenance/kvm-1.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(help="Only by this one, for example token:olga.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="With zone: 2026-11-26T08:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="The same.")] = None,
    before: Annotated[
        int | None, typer.Option(metavar="ID", help="Only older than that event.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most so many.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the events, newest first."""
    with connect() as api:
        items = api.items(
            "events",
            subject=subject,
            kind=kind,
            operation=operation,
            actor=actor,
            since=since,
            until=until,
            before=before,
            limit=limit,
        )
        if as_json:
            say_json(items)
            return
        events = [api.read(Event, item) for item in items]
    say_table(
        ["ID", "AT", "SUBJECT", "KIND", "MESSAGE", "ACTOR", "OPERATION"],
        [
            [
                event.id,
                event.at,
                event.subject,
                event.kind,
                event.message,
                event.actor,
                event.operation,
            ]
            for event in events
        ],
    )
