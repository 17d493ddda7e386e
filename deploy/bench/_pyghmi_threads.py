"""A thread per BMC with pyghmi, as the power bench runs it: a process of its own.

Standard output has the line "ready", then one per BMC that has answered: its address, and on or
off. Standard input has one line of JSON: user, password, addresses.
"""

import json
import os
import sys
import threading

from pyghmi.exceptions import IpmiException
from pyghmi.ipmi.command import Command


def main() -> None:
    """Ask all of them."""
    print("ready", flush=True)
    given = json.loads(sys.stdin.readline())
    user, password = given["user"].encode(), given["password"].encode()

    def ask(address: str) -> None:
        try:
            state = Command(address, user, password).get_power()["powerstate"]
        except IpmiException as error:
            print(f"{address}: {error}", file=sys.stderr)
        else:
            # In one piece: they do not take turns.
            os.write(sys.stdout.fileno(), f"{address} {state}\n".encode())

    threads = [threading.Thread(target=ask, args=(one,)) for one in given["addresses"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # pyghmi's own threads would go on.
    os._exit(0)


if __name__ == "__main__":
    main()
