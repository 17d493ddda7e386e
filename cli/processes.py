"""`hostler up`, `worker`, `api`, `db upgrade`, `token create`, `key`: what runs on this machine."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from cli import secrets
from cli.arguments import JsonOption
from cli.output import say_json, say_table
from contracts.access import Role
from contracts.errors import HostlerError, InvalidInput
from contracts.secrets import MasterKeyUse
from workers.settings import Settings, load_settings

logger = logging.getLogger(__name__)

Say = Callable[[str], None]

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `key list` has it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(up)
    app.command()(worker)
    app.command()(api)
    database = typer.Typer(help="The inventory's database.", no_args_is_help=True)
    database.command("upgrade")(upgrade)
    app.add_typer(database, name="db")
    key = typer.Typer(help="The keys that encrypt stored credentials.", no_args_is_help=True)
    key.command("create")(create_key)
    key.command("add")(add_key)
    key.command("list")(list_keys)
    key.command("remove")(remove_key)
    key.command("give-up")(give_up_key)
    app.add_typer(key, name="key")
    secrets.register(app).command("rekey")(rekey)
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


def add_key() -> None:
    """Make one more master key, the one to change to; those that are there stay."""
    from workers import stores

    async def work(settings: Settings, say: Say) -> None:
        key_id = await stores.add_master_key(settings)
        say(
            f"New master key {key_id}. Back it up, give it to all machines of this inventory, then "
            "change to it: hostler secret rekey"
        )

    _run(work)


def list_keys(as_json: JsonOption = False) -> None:
    """List the master keys: how many credentials take each, and whether it may go."""
    from workers import stores

    async def work(settings: Settings, _say: Say) -> None:
        uses = await stores.master_key_uses(settings)
        if as_json:
            say_json([{**use.model_dump(), "may_go": use.may_go} for use in uses])
            return
        say_table(
            ["KEY", "CREDENTIALS", "HERE", "USE"],
            [[use.key_id, use.secrets, "yes" if use.loaded else "no", _use(use)] for use in uses],
        )

    _run(work)


def remove_key(key_id: KeyArgument) -> None:
    """Take a master key out of its file; refused while a credential takes it."""
    from workers import stores

    async def work(settings: Settings, say: Say) -> None:
        await stores.remove_master_key(settings, key_id)
        say(
            f"The master key {key_id} is removed. Keep a copy of it for as long as a backup of the "
            "inventory is kept that was made before."
        )

    _run(work)


def give_up_key(
    key_id: KeyArgument,
    reason: Annotated[str, typer.Option(help="What became of it.")],
) -> None:
    """Say that a master key is lost for good: Hostler starts without it, and the credentials that
    take it can't be read."""
    from workers import stores

    async def work(settings: Settings, say: Say) -> None:
        lost = await stores.give_up_master_key(settings, key_id, reason)
        say(f"The master key {key_id} is given up, and {lost} credentials with it.")

    _run(work)


def rekey() -> None:
    """Encrypt all credentials anew, with the first master key, while everything runs.

    What is done stays done: give it again after it was cut off.
    """
    from workers import stores

    async def work(settings: Settings, say: Say) -> None:
        def progress(done: int, left: int) -> None:
            say(f"{done} done, {left} to do")

        done = await stores.rekey(settings, progress)
        say(
            f"All credentials are encrypted with the master key {done.key_id}. `hostler key list` "
            "says which others may go."
        )

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


def _use(use: MasterKeyUse) -> str:
    if use.encrypts:
        return "encrypts new credentials"
    if use.may_go:
        return "none: it may go"
    if use.given_up:
        return "given up: these credentials are lost"
    return "decrypts" if use.loaded else "missing"


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
