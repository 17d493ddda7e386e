"""The fence: a libvirt `qemu` hook on the host that refuses to start or accept any VM.

All of it lies on the host, under /etc, so it holds across reboots and without Hostler:

    /etc/libvirt/hooks/qemu.d/hostler   the hook (hooks/hostler)
    /etc/hostler/fence                  the operation it is up for; up while it has a word in it
    /etc/hostler/epoch                  the highest lease epoch seen: lower ones are refused
    /etc/hostler/lock                   one change at a time
"""

import asyncio
import importlib.resources
import time

from drivers.commands import check
from drivers.errors import CallTimedOut, EpochRefused
from drivers.protocols import FenceState, HostAccess, RemoteShell

# Distinct statuses of hooks/change-fence.
_EPOCH_REFUSED = 77


class HookFence:
    """Fence by a libvirt hook.

    Args:
        shell: runs the changes on the host.
        command_timeout: seconds for one change, waiting for the host's lock included.
        restart_timeout: seconds for libvirtd to restart and answer again.
    """

    def __init__(
        self,
        shell: RemoteShell,
        *,
        command_timeout: float = 30.0,
        restart_timeout: float = 60.0,
    ) -> None:
        self._shell = shell
        self._command_timeout = command_timeout
        self._restart_timeout = restart_timeout

    async def install(self, access: HostAccess, epoch: int) -> bool:
        """Put the hook in place; True if it was missing or different."""
        said = await self._change(access, "install", str(epoch), stdin=_resource("hostler"))
        return said.strip() == "installed"

    async def put_up(self, access: HostAccess, operation: str, epoch: int) -> None:
        """Refuse starts and incoming migrations from now on. May be called many times."""
        if not operation.strip() or not operation.isprintable():
            raise ValueError(f"an operation's id is one line of text, not {operation!r}")
        await self._change(access, "put-up", str(epoch), operation)

    async def take_down(self, access: HostAccess, epoch: int) -> None:
        """Allow them again. May be called many times."""
        await self._change(access, "take-down", str(epoch))

    async def read(self, access: HostAccess) -> FenceState:
        """The fence as it is now."""
        epoch, _, operation = (await self._change(access, "read")).partition("\n")
        return FenceState(operation=operation.strip() or None, epoch=int(epoch))

    async def restart_libvirtd(self, access: HostAccess) -> None:
        """Restart the daemon (VMs run on) and wait until it answers. Raises CommandFailed,
        CallTimedOut."""
        deadline = time.monotonic() + self._restart_timeout
        restart = ["systemctl", "restart", "libvirtd"]
        result = await self._shell.run(access, restart, timeout=self._restart_timeout)
        check(access, "systemctl restart libvirtd", result)
        ask = ["timeout", "10", "virsh", "--quiet", "--connect", "qemu:///system", "uri"]
        while True:
            result = await self._shell.run(access, ask, timeout=15)
            if result.exit_status == 0:
                return
            if time.monotonic() > deadline:
                raise CallTimedOut(
                    f"libvirtd on {access.name} does not answer {self._restart_timeout:g} s after "
                    f"its restart: {result.stderr.strip()}",
                    remedy="Look at journalctl -u libvirtd there.",
                )
            await asyncio.sleep(0.5)

    async def _change(self, access: HostAccess, *words: str, stdin: str | None = None) -> str:
        command = ["sh", "-c", _resource("change-fence"), "change-fence", *words]
        result = await self._shell.run(access, command, stdin=stdin, timeout=self._command_timeout)
        if result.exit_status == _EPOCH_REFUSED:
            held = int(result.stdout)
            raise EpochRefused(
                f"{access.name} was taken over by a later operation: it holds epoch {held}, this "
                f"one has {words[1]}.",
                remedy="Only if Hostler's inventory was lost, or the host belonged to another "
                "Hostler: rm /etc/hostler/epoch on the host, and start again.",
                details={"held": held, "own": int(words[1])},
            )
        check(access, f"change-fence {words[0]}", result)
        return result.stdout


def _resource(name: str) -> str:
    return importlib.resources.files("drivers.hooks").joinpath(name).read_text(encoding="utf-8")
