"""What the commands print: tables for people, JSON for programs, one line per error."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

# In a pipe nothing is folded: one row stays one line, however long it is.
_PIPE_WIDTH = 10_000


def console() -> Console:
    """The terminal, or whatever stdout is; text is shown as it is, never read as markup."""
    return Console(
        markup=False,
        emoji=False,
        highlight=False,
        width=None if sys.stdout.isatty() else _PIPE_WIDTH,
    )


def say(text: str) -> None:
    """One line on stdout."""
    typer.echo(one_line(text))


def note(text: str) -> None:
    """One line on stderr that is no error."""
    typer.echo(one_line(text), err=True)


def complain(text: str) -> None:
    """The one line on stderr that says why a command failed."""
    typer.echo(f"hostler: {one_line(text)}", err=True)


def say_json(value: Any) -> None:
    """JSON on stdout, as the API gave it."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under their column names; None is an empty cell."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    console().print(table)


def say_fields(fields: Iterable[tuple[str, object]]) -> None:
    """One `name  value` line each; fields that are None are left out."""
    shown = [(name, cell(value)) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        typer.echo(f"{name:{width}}  {value}")


def cell(value: object) -> str:
    """A value as text of one line."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, frozenset):
        return one_line(", ".join(sorted(str(one) for one in value)))
    return one_line(str(value))


def one_line(text: str) -> str:
    """`text` without line breaks, and without characters that would steer a terminal."""
    joined = ""
    for line in filter(None, (line.strip() for line in text.splitlines())):
        gap = "" if not joined else " " if joined.endswith((":", ".", "?")) else "; "
        joined += gap + line
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in joined)
