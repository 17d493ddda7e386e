"""`python -m tests.inventory.rekeyer URL`: a change of the master key in a process of its own.

Reads the keys, the one to change to first, from standard input.
"""

import asyncio
import sys

from inventory import Database, Inventory, SecretBox


async def main(url: str) -> None:
    """Say how far it is, line by line."""
    inventory = Inventory(Database(url), SecretBox(*sys.stdin.readline().split()))

    def progress(done: int, left: int) -> None:
        sys.stdout.write(f"{done} {left}\n")
        sys.stdout.flush()

    await inventory.master_keys.rekey(actor="test", progress=progress)
    await inventory.database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
