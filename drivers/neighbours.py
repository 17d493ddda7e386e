"""One host asked about another, by the script hooks/reach."""

import importlib.resources

from contracts.host_status import Reach
from drivers.commands import check, unexpected
from drivers.protocols import HostAccess, RemoteShell

# For the shell to be opened and the answer to come, beside the connection that is tried.
_ON_TOP_S = 10.0


class ShellNeighbours:
    """Neighbours by a TCP connection that bash opens."""

    def __init__(self, shell: RemoteShell) -> None:
        self._shell = shell

    async def reach(self, peer: HostAccess, address: str, port: int, seconds: int) -> Reach:
        """What comes of a TCP connection from `peer`, which has so many seconds."""
        script = importlib.resources.files("drivers.hooks").joinpath("reach")
        command = ["sh", "-c", script.read_text(encoding="utf-8"), "reach", address]
        result = await self._shell.run(
            peer, [*command, str(port), str(seconds)], timeout=seconds + _ON_TOP_S
        )
        check(peer, "reach", result)
        said = result.stdout.strip()
        if said.startswith(Reach.UNKNOWN):
            return Reach.UNKNOWN
        if said not in set(Reach):
            raise unexpected(peer, "reach", said)
        return Reach(said)
