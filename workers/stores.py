"""The inventory as a process opens it: its database, its master key, its first token."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from contracts.access import Role
from contracts.errors import Failed
from inventory import Database, Inventory, SecretBox
from inventory.secrets import any_secret
from workers.home import make_private_directory, write_private
from workers.settings import Settings

_FIRST_TOKEN = "admin"  # noqa: S105 - its name


async def upgrade_database(settings: Settings) -> None:
    """Bring the tables up to this version; no effect if they are."""
    if not settings.database_url:
        make_private_directory(settings.home)
    database = Database(settings.inventory_url)
    try:
        await database.upgrade()
    finally:
        await database.close()


@asynccontextmanager
async def open_inventory(settings: Settings) -> AsyncIterator[Inventory]:
    """The inventory, for as long as the block. Raises Failed if its tables or its key are not
    there."""
    database = Database(settings.inventory_url)
    try:
        await database.check()
        yield Inventory(database, SecretBox(_read_master_key(settings)))
    finally:
        await database.close()


async def ensure_master_key(settings: Settings, say: Callable[[str], None]) -> None:
    """Make the key at the first start, and say what it means. Raises Failed if it was lost."""
    path = settings.master_key_path
    if path.exists():
        return
    if settings.admin_token_path.exists() or await _holds_secrets(settings):
        raise Failed(
            f"The master key {path} is missing, and there is an inventory that was made with it.",
            remedy="Put it back from your backup; a new one could read no stored credential.",
        )
    make_private_directory(path.parent)
    write_private(path, SecretBox.new_key())
    say(f"New master key in {path}. Back it up: without it, no stored credential can be read.")


async def ensure_admin_token(
    settings: Settings, inventory: Inventory, say: Callable[[str], None]
) -> None:
    """Leave a token of the role `admin` in its file, unless one is there."""
    path = settings.admin_token_path
    if path.exists():
        return
    write_private(path, await inventory.tokens.create(_FIRST_TOKEN, Role.ADMIN) + "\n")
    say(f"New admin token in {path}.")


async def create_token(settings: Settings, name: str, role: Role) -> str:
    """A new token for the API; it can't be shown again."""
    async with open_inventory(settings) as inventory:
        return await inventory.tokens.create(name, role)


async def _holds_secrets(settings: Settings) -> bool:
    database = Database(settings.inventory_url)
    try:
        await database.check()
        return await any_secret(database)
    except Failed:  # no tables, so nothing in them
        return False
    finally:
        await database.close()


def _read_master_key(settings: Settings) -> str:
    path = settings.master_key_path
    try:
        return path.read_text().strip()
    except OSError as error:
        raise Failed(
            f"The master key {path} can't be read: {error.strerror}.",
            remedy="Put it there from your backup, set HOSTLER_MASTER_KEY_FILE, or, for a new "
            "installation, run `hostler key create`.",
        ) from error
