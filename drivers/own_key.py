"""Hostler's own key in the authorized_keys of who logs in, by the script hooks/own-key.

One ed25519 key per host: its line ends with the comment `hostler:NAME`, by which it is found again.
"""

import dataclasses
import importlib.resources

import asyncssh

from drivers.commands import check, check_change
from drivers.protocols import HostAccess, RemoteShell


class AuthorizedKeys:
    """OwnKeys with a shell script.

    Args:
        shell: runs the changes on the host, and logs in.
        command_timeout: seconds for one change, waiting for another one's end included.
    """

    def __init__(self, shell: RemoteShell, *, command_timeout: float = 30.0) -> None:
        self._shell = shell
        self._command_timeout = command_timeout

    def create(self) -> str:
        """A new private key, OpenSSH's PEM."""
        return asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh").decode()

    async def install(self, access: HostAccess, private_key: str, epoch: int) -> None:
        """Let its public half in, in the place of any other own key. Raises CommandFailed,
        EpochRefused."""
        public = asyncssh.import_private_key(private_key).export_public_key("openssh").decode()
        kind, base64, *_ = public.split()
        line = f"{kind} {base64} {_mark(access.name)}\n"
        await self._change(access, "install", access.user, access.name, epoch, line)

    async def log_in(self, access: HostAccess, private_key: str) -> None:
        """Prove it by a new login with nothing else. Raises LoginRefused."""
        # A connection that is open already proves nothing.
        await self._shell.forget(access.name)
        own = dataclasses.replace(access, password=None, private_key=private_key)
        await self._shell.run(own, ["true"], timeout=self._command_timeout)

    async def remove(self, access: HostAccess, epoch: int) -> None:
        """Let no own key in any more; all others stay as they are. Raises CommandFailed,
        EpochRefused."""
        await self.remove_of(access, access.name, epoch)

    async def find(self, access: HostAccess, host: str) -> list[str]:
        """What is there of the own key that the machine has as `host`, one line each ("key
        hostler:kvm-1 in /root/.ssh/authorized_keys")."""
        command = ["sh", "-c", _SCRIPT, "own-key", "look", access.user, _mark(host)]
        result = await self._shell.run(access, command, timeout=self._command_timeout)
        check(access, "own-key look", result)
        return result.stdout.splitlines()

    async def remove_of(
        self, access: HostAccess, host: str, epoch: int, *, user: str | None = None
    ) -> list[str]:
        """Let that key in no more, as `user` if that is another one than logs in; what was there of
        it. Raises CommandFailed, EpochRefused."""
        return await self._change(access, "remove", user or access.user, host, epoch)

    async def _change(
        self,
        access: HostAccess,
        action: str,
        user: str,
        host: str,
        epoch: int,
        line: str | None = None,
    ) -> list[str]:
        command = ["sh", "-c", _SCRIPT, "own-key", action, user, _mark(host), str(epoch)]
        result = await self._shell.run(access, command, stdin=line, timeout=self._command_timeout)
        check_change(access, f"own-key {action}", result, epoch)
        return result.stdout.splitlines()


def _mark(host: str) -> str:
    return f"hostler:{host}"


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("own-key").read_text("utf-8")
