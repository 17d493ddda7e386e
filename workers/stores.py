"""The inventory as a process opens it: its database, its master keys, its first token."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext

from contracts.access import Role
from contracts.errors import Conflict, Failed
from contracts.secrets import MasterKeyUse, Rekeyed
from inventory import Database, Inventory, SecretBox
from inventory.errors import SecretUnreadable
from inventory.master_keys import is_keyed
from workers.home import make_private_directory, write_private
from workers.master_keys import FileKeys, master_keys_of
from workers.settings import Settings

logger = logging.getLogger(__name__)

_FIRST_TOKEN = "admin"  # noqa: S105 - its name
_ACTOR = "local"
_MOST_NAMED = 10


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
async def open_inventory(settings: Settings, *, settle: bool = True) -> AsyncIterator[Inventory]:
    """The inventory, for as long as the block. Raises Failed if its tables or a key that it needs
    are not there; of the keys, only if there is none, without `settle`. Raises Unavailable."""
    database = Database(settings.inventory_url)
    try:
        await database.check()
        inventory = Inventory(database, await SecretBox.load(master_keys_of(settings)))
        if settle:
            await inventory.master_keys.settle()
            if damaged := await inventory.master_keys.damaged():
                logger.warning("stored credentials are damaged: %s", _named(damaged))
        yield inventory
    finally:
        await database.close()


async def ensure_master_key(settings: Settings, say: Callable[[str], None]) -> None:
    """Make the key at the first start, and say what it means. Raises Failed if it was lost."""
    keys = master_keys_of(settings)
    if not isinstance(keys, FileKeys) or keys.path.exists():
        return
    if settings.admin_token_path.exists() or await _is_keyed(settings):
        raise Failed(
            f"The master key {keys.path} is missing, and there is an inventory that was made with "
            "it.",
            remedy="Put it back from your backup; a new one could read no stored credential.",
        )
    await keys.add()
    say(f"New master key in {keys.path}. Back it up: without it, no stored credential can be read.")


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


# --- master keys --------------------------------------------------------------------------------


async def add_master_key(settings: Settings) -> str:
    """A new key in the file, before those that are there; its id. Raises Conflict, Failed."""
    return await _key_file(settings).add()


async def master_key_uses(settings: Settings) -> list[MasterKeyUse]:
    """Which keys there are, and what needs them."""
    async with open_inventory(settings, settle=False) as inventory:
        return await inventory.master_keys.uses()


async def remove_master_key(settings: Settings, key_id: str) -> None:
    """Take a key out of the file that nothing needs. Raises Conflict, Failed."""
    keys = _key_file(settings)
    with keys.changing():
        use = next((use for use in await master_key_uses(settings) if use.key_id == key_id), None)
        if use is None or not use.loaded:
            raise Conflict(
                f"{keys.path} has no master key {key_id!r}.",
                remedy="See `hostler key list` for those there are.",
            )
        if not use.may_go:
            raise Conflict(
                f"The master key {key_id} is needed: {use.secrets} stored credentials take it"
                f"{', and new ones are encrypted with it' if use.encrypts else ''}.",
                remedy="Change to another one: `hostler key add`, then `hostler secret rekey`.",
            )
        await keys.remove(key_id)


async def give_up_master_key(settings: Settings, key_id: str, reason: str) -> int:
    """Processes start without a key that is lost; how many credentials are lost with it."""
    async with open_inventory(settings, settle=False) as inventory:
        return await inventory.master_keys.give_up(key_id, reason=reason, actor=_ACTOR)


async def rekey(settings: Settings, progress: Callable[[int, int], None]) -> Rekeyed:
    """Encrypt everything anew, with the first key. Raises SecretUnreadable if not all could be:
    then the others are; Conflict if another command works on the keys."""
    keys = master_keys_of(settings)
    # Until the end: nobody takes the key out of the file that is being changed to.
    with keys.changing() if isinstance(keys, FileKeys) else nullcontext():
        async with open_inventory(settings) as inventory:
            done = await inventory.master_keys.rekey(actor=_ACTOR, progress=progress)
    if done.unreadable:
        raise SecretUnreadable(
            f"{done.rekeyed} credentials are encrypted with {done.key_id} now; "
            f"{len(done.unreadable)} can't be read and stayed as they are: "
            f"{_named(done.unreadable)}.",
            remedy="Restore them from a backup of the inventory, or store them anew.",
        )
    return done


def _named(secret_ids: Sequence[str]) -> str:
    more = len(secret_ids) - _MOST_NAMED
    return f"{', '.join(secret_ids[:_MOST_NAMED])}{f' and {more} more' if more > 0 else ''}"


def _key_file(settings: Settings) -> FileKeys:
    keys = master_keys_of(settings)
    if not isinstance(keys, FileKeys):
        raise Conflict(
            f"The master keys come from {keys.origin}.", remedy="Change them where that is set."
        )
    return keys


async def _is_keyed(settings: Settings) -> bool:
    database = Database(settings.inventory_url)
    try:
        return await is_keyed(database)
    finally:
        await database.close()
