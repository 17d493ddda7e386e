"""`hostler up`, `worker`, `api`, `db upgrade`, `token create`: what runs on this machine."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from contracts.access import Role
from contracts.errors import HostlerError, InvalidInput
from workers.settings import Settings, load_settings

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(up)
    app.command()(worker)
    app.command()(api)
    database = typer.Typer(help="The inventory's database.", no_args_is_help=True)
    database.command("upgrade")(upgrade)
    app.add_typer(database, name="db")
    key = typer.Typer(help="The key that encrypts stored credentials.", no_args_is_help=True)
    key.command("create")(create_key)
    app.add_typer(key, name="key")
    token = typer.Typer(help="Tokens for the API.", no_args_is_help=True)
    token.command("create")(create_token)
    app.add_typer(token, name="token")


def up() -> None:
    """Run all of Hostler on this machine: Temporal, inventory, worker, API."""
    from workers.processes import run_up

    _run(run_up)


def worker() -> None:
    """Run one worker, for the Temporal and the database that the settings name."""
    from workers.processes import run_worker

    _run(run_worker)


def api() -> None:
    """Serve the HTTP API, for the Temporal and the database that the settings name."""
    from workers.processes import run_api

    _run(run_api)


def upgrade() -> None:
    """Bring the inventory's tables up to this version."""
    from workers.stores import upgrade_database

    async def work(settings: Settings, say: Say) -> None:
        await upgrade_database(settings)
        say("The database is up to date.")

    _run(work)


def create_key() -> None:
    """Make the master key of a new installation, unless it is there."""
    from workers.stores import ensure_master_key

    async def work(settings: Settings, say: Say) -> None:
        await ensure_master_key(settings, say)

    _run(work)


def create_token(
    name: Annotated[str, typer.Argument(help="Whom the token is for.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.OPERATOR,
) -> None:
    """Make a token and print it, this once; a former one of that name ceases to be valid."""
    from workers import stores

    async def work(settings: Settings, say: Say) -> None:
        say(await stores.create_token(settings, name, role))

    _run(work)


def _run(work: Callable[[Settings, Say], Awaitable[None]]) -> None:
    """Exit code 1 or 2 and one line on stderr when `work` fails."""
    from workers.logs import configure_logs

    async def main(settings: Settings) -> None:
        await work(settings, typer.echo)

    # Databases, logs and keys are for this account alone, whoever made their directory.
    os.umask(0o077)
    try:
        settings = load_settings()
        configure_logs(settings.log_level, settings.log_format)
        asyncio.run(main(settings))
    except HostlerError as error:
        typer.echo(f"hostler: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, InvalidInput) else 1) from None
    except Exception as error:
        logger.exception("unexpected error")
        typer.echo(f"hostler: unexpected error: {type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from None
