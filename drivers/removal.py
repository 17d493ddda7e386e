"""What Hostler has put on a host, and its removal, by the script hooks/clean.

    /etc/libvirt/hooks/qemu.d/hostler   the fence's hook
    /etc/hostler                        the fence, its epoch and lock, and what else it goes by
    /var/lib/hostler, hostler-job-*     jobs: hooks of a maintenance that ran or run there
    /run/hostler-disks.lock             the lock of disks that are copied
    ~root/.ssh/authorized_keys          the line of Hostler's own key, comment `hostler:HOST`

libvirtd needs no restart when its hook is gone: it remembers that there was one when it started,
looks into the folder at every call, and goes on when it finds nothing to run (virHookCall).
"""

import importlib.resources

from drivers.commands import check
from drivers.errors import EpochRefused
from drivers.protocols import HostAccess, RemoteShell

# A distinct status of hooks/clean.
_EPOCH_REFUSED = 77
_NOBODYS = "-"


class ScriptCleaner:
    """HostCleaner by a script on the host.

    Args:
        shell: runs it there.
        command_timeout: seconds for one run, the end of running jobs included.
    """

    def __init__(self, shell: RemoteShell, *, command_timeout: float = 120.0) -> None:
        self._shell = shell
        self._command_timeout = command_timeout

    async def look(self, access: HostAccess, host: str) -> list[str]:
        """What of Hostler's is there, one line each ("file /etc/hostler/fence")."""
        return await self._run(access, "look", host)

    async def remove_files(self, access: HostAccess, host: str, epoch: int | None) -> list[str]:
        """Remove all but the key that logs in; what was there. May be called many times."""
        return await self._change(access, "files", host, epoch)

    async def remove_key(self, access: HostAccess, host: str, epoch: int | None) -> list[str]:
        """Remove Hostler's own key; what was there. May be called many times."""
        return await self._change(access, "key", host, epoch)

    async def _change(
        self, access: HostAccess, action: str, host: str, epoch: int | None
    ) -> list[str]:
        return await self._run(access, action, host, _NOBODYS if epoch is None else str(epoch))

    async def _run(self, access: HostAccess, action: str, *words: str) -> list[str]:
        command = ["sh", "-c", _SCRIPT, "clean", action, *words]
        result = await self._shell.run(access, command, timeout=self._command_timeout)
        if result.exit_status == _EPOCH_REFUSED:
            held = int(result.stdout)
            raise EpochRefused(
                f"{access.name} was taken over by a later operation: it holds epoch {held}, this "
                f"one has {words[1]}.",
                remedy="Only if Hostler's inventory was lost, or the host belongs to another "
                "Hostler: rm /etc/hostler/epoch on the host, and start again.",
                details={"held": held, "own": int(words[1])},
            )
        check(access, f"clean {action}", result)
        return result.stdout.splitlines()


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("clean").read_text(encoding="utf-8")
