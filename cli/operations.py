"""`hostler operation`: what runs and what ran, of every kind."""

import json
from typing import Annotated

import typer

from cli.arguments import JsonOption, check_subject
from cli.client import connect
from cli.output import say, say_fields, say_json, say_table
from contracts.operations import Operation, OperationKind

KindArgument = Annotated[
    OperationKind, typer.Argument(metavar="KIND", help=f"One of {', '.join(OperationKind)}.")
]
SubjectArgument = Annotated[
    str,
    typer.Argument(
        metavar="SUBJECT",
        callback=check_subject,
        help="What it is done to: a host; or its workflow id, should a person have chosen that.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(name="operation", help="Operations on hosts.", no_args_is_help=True)
    commands.command("list")(list_all)
    commands.command("show")(show)
    commands.command("cancel")(cancel)
    app.add_typer(commands)


def list_all(
    kind: Annotated[OperationKind | None, typer.Option(help="Only these.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the operations, newest first."""
    with connect() as api:
        items = api.items("operations", kind=kind)
        if as_json:
            say_json(items)
            return
        operations = [api.read(Operation, item) for item in items]
    say_table(
        ["KIND", "SUBJECT", "STATUS", "STARTED", "ENDED", "WORKFLOW", "ERROR"],
        [
            [
                operation.kind,
                operation.subject,
                operation.status,
                operation.started_at,
                operation.closed_at,
                operation.workflow_id,
                operation.error,
            ]
            for operation in operations
        ],
    )


def show(kind: KindArgument, subject: SubjectArgument, as_json: JsonOption = False) -> None:
    """Show the newest operation of a kind on a subject."""
    with connect() as api:
        answer = api.get("operations", kind, subject)
        if as_json:
            say_json(answer)
            return
        operation = api.read(Operation, answer)
    say_fields(
        (
            ("workflow", operation.workflow_id),
            ("run", operation.run_id),
            ("status", operation.status),
            ("started", operation.started_at),
            ("ended", operation.closed_at),
            ("error", operation.error),
            *(
                (name.replace("_", " "), value if isinstance(value, str) else json.dumps(value))
                for name, value in (operation.details or {}).items()
                if value not in (None, "", [], {})
            ),
        )
    )


def cancel(kind: KindArgument, subject: SubjectArgument) -> None:
    """Cancel an operation: it takes back what it did, then ends."""
    with connect() as api:
        api.delete("operations", kind, subject)
    say(f"{kind} of {subject} is asked to stop: hostler operation show {kind} {subject}")
