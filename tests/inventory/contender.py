"""One of several writers: `python -m tests.inventory.contender URL NAME`.

For each host name on standard input it tries to begin a maintenance, and says how that ended.
"""

import asyncio
import sys

from contracts.errors import HostlerError
from contracts.states import ResourceState
from inventory import Database
from inventory.hosts import Hosts


def say(word: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def main(url: str, name: str) -> None:
    """Answer each line with "won" or the type of the error."""
    database = Database(url)
    hosts = Hosts(database)
    await database.ping()
    say("ready")
    for line in sys.stdin:
        try:
            await hosts.change_state(
                line.strip(),
                expected=frozenset({ResourceState.ENABLED}),
                target=ResourceState.PREPARE_FOR_MAINTENANCE,
                operation=name,
                step="1",
                actor=name,
                reason="a race",
            )
        except HostlerError as error:
            say(error.type)
        else:
            say("won")
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
