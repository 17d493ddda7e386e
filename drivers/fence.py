"""The fence: a libvirt `qemu` hook on the host that refuses to start or accept any VM, or, while
the host is closed, any VM that was not there before.

All of it lies on the host, under /etc, so it holds across reboots and without Hostler:

    /etc/libvirt/hooks/qemu.d/hostler   the hook (hooks/hostler)
    /etc/hostler/fence                  the operation it is up for; up while it has a word in it
    /etc/hostler/epoch                  the highest lease epoch seen: lower ones are refused
    /etc/hostler/closed                 why the host is closed; it is while it has a word in it
    /etc/hostler/belongs                UUIDs of the VMs that may start nevertheless; its last line
                                        is "settled" when all are in it
    /etc/hostler/told                   the highest generation of close and reopen: no lower ones
    /etc/hostler/lock                   one change at a time

Two numbers, because two things are ordered by different rules. The fence belongs to an operation
that holds the host's lease, whose epoch it carries. Whether the host is closed belongs to nobody:
it follows the inventory, which may change while a maintenance of weeks holds the lease. Whoever
tells the host has asked the inventory right before, and got a number that rises with every other
answer (inventory/closings.py).
"""

import asyncio
import importlib.resources
import time

from drivers.commands import NUMBER_REFUSED, check, epoch_refused, number, unexpected
from drivers.errors import CallTimedOut, EpochRefused, GenerationRefused
from drivers.protocols import FenceState, HostAccess, RemoteShell

_LINES_READ = 3


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
        command_timeout: float = 60.0,
        restart_timeout: float = 60.0,
    ) -> None:
        self._shell = shell
        self._command_timeout = command_timeout
        self._restart_timeout = restart_timeout

    async def install(self, access: HostAccess, epoch: int) -> bool:
        """Put the hook in place; True if it was missing or different."""
        said = await self._change(access, "install", str(epoch), stdin=_resource("hostler"))
        return said.strip() == "installed"

    async def refresh(self, access: HostAccess) -> bool:
        """The same on a host that has the fence, whoever works there; anywhere else it fails."""
        said = await self._change(access, "refresh", stdin=_resource("hostler"))
        return said.strip() == "installed"

    async def put_up(self, access: HostAccess, operation: str, epoch: int) -> None:
        """Refuse starts and incoming migrations from now on. May be called many times."""
        _require_line("an operation's id", operation)
        await self._change(access, "put-up", str(epoch), operation)

    async def take_down(self, access: HostAccess, epoch: int) -> None:
        """Allow them again. May be called many times."""
        await self._change(access, "take-down", str(epoch))

    async def close(self, access: HostAccess, because: str, generation: int) -> None:
        """Let only VMs start that are there now; those of the first time, if it is closed already.
        May be called many times. Raises GenerationRefused."""
        _require_line("a reason", because)
        await self._change(access, "close", str(generation), because)

    async def reopen(self, access: HostAccess, generation: int) -> None:
        """Let any VM start. May be called many times. Raises GenerationRefused."""
        await self._change(access, "reopen", str(generation))

    async def read(self, access: HostAccess) -> FenceState:
        """The fence as it is now."""
        said = await self._change(access, "read")
        lines = said.splitlines()
        if len(lines) != _LINES_READ:
            raise unexpected(access, "change-fence read", said)
        epoch, operation, closed = lines
        return FenceState(
            operation=operation.strip() or None,
            epoch=number(access, "change-fence read", epoch),
            closed=closed.strip() or None,
        )

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
        name = f"change-fence {words[0]}"
        command = ["sh", "-c", _resource("change-fence"), "change-fence", *words]
        result = await self._shell.run(access, command, stdin=stdin, timeout=self._command_timeout)
        if result.exit_status == NUMBER_REFUSED:
            held = number(access, name, result.stdout)
            raise _refused(access, words[0], own=int(words[1]), held=held)
        check(access, name, result)
        return result.stdout


def _refused(
    access: HostAccess, action: str, *, own: int, held: int
) -> EpochRefused | GenerationRefused:
    if action in ("close", "reopen"):
        return GenerationRefused(
            f"{access.name} was told something later: it holds generation {held}, this is {own}.",
            remedy="Only if Hostler's inventory was lost, or the host belonged to another "
            "Hostler: rm /etc/hostler/told on the host, and start again.",
            details={"held": held, "own": own},
        )
    return epoch_refused(access, own=own, held=held)


def _require_line(what: str, text: str) -> None:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{what} is one line of text, not {text!r}")


def _resource(name: str) -> str:
    return importlib.resources.files("drivers.hooks").joinpath(name).read_text(encoding="utf-8")
