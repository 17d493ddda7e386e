"""Taking away what Hostler has put on a host, by the script hooks/take-back."""

import importlib.resources
from collections.abc import Sequence

from drivers.commands import check_change
from drivers.protocols import HostAccess, RemoteShell


class ShellTraces:
    """Traces with a shell script.

    Args:
        shell: runs it on the host.
        command_timeout: seconds for one run, waiting for another change's end included.
    """

    def __init__(self, shell: RemoteShell, *, command_timeout: float = 30.0) -> None:
        self._shell = shell
        self._command_timeout = command_timeout

    async def remove(self, access: HostAccess, epoch: int, jobs: Sequence[str] = ()) -> list[str]:
        """Take away hook, fence and the named jobs; returns those of them that still run, and
        stay. May be called many times. Raises EpochRefused, CommandFailed."""
        command = ["sh", "-c", _SCRIPT, "take-back", str(epoch), *jobs]
        result = await self._shell.run(access, command, timeout=self._command_timeout)
        check_change(access, "take-back", result, epoch)
        return result.stdout.split()


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("take-back").read_text("utf-8")
