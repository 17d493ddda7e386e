"""What Hostler has put on a host, and its removal, by the scripts hooks/clean, hooks/tls and
hooks/own-key.

    /etc/libvirt/hooks/qemu.d/hostler   the fence's hook
    /etc/hostler                        the fence, its epoch and lock, and what else it goes by
    /var/lib/hostler/jobs, hostler-job-*
                                        jobs: hooks of a maintenance that ran or run there
    /run/hostler-disks.lock             the lock of disks that are copied
    /etc/pki, libvirtd.conf             links to certificates below /etc/hostler, who may come in
    ~USER/.ssh/authorized_keys          the line of Hostler's own key, comment `hostler:HOST`;
                                        USER is who logs in with it

libvirtd needs no restart when its hook is gone: it remembers that there was one when it started,
looks into the folder at every call, and goes on when it finds nothing to run (virHookCall).
"""

import importlib.resources

from drivers.commands import check, check_change
from drivers.own_key import AuthorizedKeys
from drivers.protocols import CommandResult, HostAccess, HostCertificates, RemoteShell


class ScriptCleaner:
    """HostCleaner by a script on the host.

    Args:
        shell: runs it there.
        certificates: their own side of it.
        command_timeout: seconds for one run, the end of running jobs included.
    """

    def __init__(
        self,
        shell: RemoteShell,
        certificates: HostCertificates,
        *,
        command_timeout: float = 120.0,
    ) -> None:
        self._shell = shell
        self._certificates = certificates
        self._keys = AuthorizedKeys(shell)
        self._command_timeout = command_timeout

    async def look(self, access: HostAccess, host: str) -> list[str]:
        """What of Hostler's is there, one line each ("file /etc/hostler/fence")."""
        result = await self._run(access, "look")
        check(access, "clean look", result)
        return [
            *result.stdout.splitlines(),
            *await self._certificates.look(access),
            *await self._keys.find(access, host),
        ]

    async def remove_files(
        self, access: HostAccess, epoch: int, *, spare_jobs: bool = False
    ) -> list[str]:
        """Remove all but the key that logs in; what was there. May be called many times."""
        spare = ["spare"] if spare_jobs else []
        result = await self._run(access, "files", str(epoch), *spare)
        check_change(access, "clean files", result, epoch)
        # Only now: a host that refuses the epoch is another Hostler's, and so are these.
        return [*result.stdout.splitlines(), *await self._certificates.remove(access)]

    async def remove_key(
        self, access: HostAccess, host: str, epoch: int, *, user: str | None = None
    ) -> list[str]:
        """Remove Hostler's own key; what was there. May be called many times."""
        return await self._keys.remove_of(access, host, epoch, user=user)

    async def _run(self, access: HostAccess, *words: str) -> CommandResult:
        command = ["sh", "-c", _SCRIPT, "clean", *words]
        return await self._shell.run(access, command, timeout=self._command_timeout)


_SCRIPT = importlib.resources.files("drivers.hooks").joinpath("clean").read_text(encoding="utf-8")
