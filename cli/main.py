"""The `hostler` command."""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import (
    certificates,
    doctor,
    events,
    hosts,
    maintenance,
    oobm,
    operations,
    passwords,
    placement,
    power,
    processes,
    settings,
    topology,
)
from cli.output import complain
from contracts.errors import HostlerError, InvalidInput
from workers.limits import keep_memory_private


class _Hostler(TyperGroup):
    """Ends with one line on stderr, and exit code 1 or 2, when a command raises a HostlerError."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HostlerError as error:
            complain(str(error))
            raise typer.Exit(2 if isinstance(error, InvalidInput) else 1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hostler {version('hostler')}")
        raise typer.Exit


# Without rich's markup and tracebacks, errors are plain lines, and local variables stay private.
app = typer.Typer(
    name="hostler",
    help="Durable operations on hypervisor hosts.\n\n"
    "Exit code 0: done; 1: failed, with the reason on stderr; 2: wrong usage.",
    cls=_Hostler,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _hostler(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it, and end."
        ),
    ] = False,
) -> None:
    pass


processes.register(app)
topology.register(app)
hosts.register(app)
placement.register(app)
maintenance.register(app)
oobm.register(app)
power.register(app)
passwords.register(app)
certificates.register(app)
doctor.register(app)
operations.register(app)
settings.register(app)
events.register(app)


def main() -> None:
    """Run the command that the arguments name. Some ask for passwords, or print them."""
    keep_memory_private()
    app(prog_name="hostler")


if __name__ == "__main__":
    main()
