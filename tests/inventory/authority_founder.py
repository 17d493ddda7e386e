"""One of several processes that need the CA first: `python -m tests.inventory.authority_founder
URL KEY`. When told to, by a line on standard input, it asks for the chain, and prints it.
"""

import asyncio
import sys

from activities.authorities import InventoryStore
from drivers.authorities.protocols import ExternalAccess, ProviderContext
from drivers.authorities.root import RootAuthority
from inventory import Database, Inventory, SecretBox
from tests.inventory.contender import say


async def main(url: str, key: str) -> None:
    """Says "ready", then the chain and the number of its generation."""
    database = Database(url)
    inventory = Inventory(database, SecretBox(key))
    authority = RootAuthority(
        ProviderContext(
            "root",
            await inventory.settings.resolve(),
            InventoryStore(inventory, "root", "test"),
            ExternalAccess(),
        )
    )
    await database.ping()
    say("ready")
    sys.stdin.readline()
    (anchor,) = await authority.chain()
    say(anchor.replace("\n", "|"))
    say(str((await inventory.authorities.get("root")).generation))
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
