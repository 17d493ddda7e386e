"""Local disks that move with their VM: files on hosts, made and put away by hooks/local-disk.

libvirt copies what is in a disk while the VM runs (MigrationOptions.copy_disks), into a file that
must be there before, and leaves the old one. So a disk moves in three steps:

1. `prepare` at the destination, before the migration. PATH.hostler names the operation.
2. The migration.
3. `keep` at the destination, then `retire` at the source; or `discard` at the destination, if the
   VM has stayed.

Each may be killed between any two of its commands, and done again: the mark is written before the
file has its name, and removed after the file; a file gets its name when it is whole. What a killed
one leaves is either marked, and `discard` or the next `prepare` of the same owner deals with it; or
it is a mark without a file, which the next `prepare` of anybody takes over. A VM's own disk is only
ever renamed, and no file that a process has open is touched: an operation that has lost its lease
and does not know it yet takes no disk from a VM that runs.
"""

import importlib.resources

from drivers.commands import check
from drivers.errors import DiskInTheWay, DiskInUse
from drivers.protocols import CommandResult, DiskImage, HostAccess, RemoteShell

# Distinct statuses of hooks/local-disk.
_IN_THE_WAY = 77
_IN_USE = 79


class ShellDisks:
    """LocalDisks with commands on the host.

    Args:
        shell: runs them.
        command_timeout: seconds for one of them, waiting for others on the host included.
    """

    def __init__(self, shell: RemoteShell, *, command_timeout: float = 60.0) -> None:
        self._shell = shell
        self._command_timeout = command_timeout

    async def prepare(self, destination: HostAccess, image: DiskImage, owner: str) -> None:
        """Make an empty disk of that path, format and size, unless `owner` has done so before.

        Its directory must exist. Raises DiskInTheWay if there is a file that was not prepared by
        `owner`, whatever is in it.
        """
        if not owner.strip() or not owner.isprintable():
            raise ValueError(f"an operation's id is one line of text, not {owner!r}")
        words = (owner, image.format, str(image.size_bytes))
        result = await self._run(destination, "prepare", image.path, *words)
        if result.exit_status == _IN_THE_WAY:
            raise _in_the_way(destination, image.path, result.stdout or None)
        check(destination, "local-disk prepare", result)

    async def is_copy(self, destination: HostAccess, path: str, owner: str) -> bool:
        """Whether that disk was prepared by `owner`, and is not kept yet."""
        mark = ["cat", f"{path}.hostler"]
        result = await self._shell.run(destination, mark, timeout=self._command_timeout)
        return result.exit_status == 0 and result.stdout.strip() == owner

    async def keep(self, destination: HostAccess, path: str) -> None:
        """The VM runs there: from now on the disk is its own, and nobody discards it."""
        check(destination, "local-disk keep", await self._run(destination, "keep", path))

    async def discard(self, destination: HostAccess, path: str, owner: str) -> None:
        """Remove a copy that `owner` has prepared, and nothing else.

        Raises DiskInUse while a process has it open.
        """
        result = await self._run(destination, "discard", path, owner)
        self._refuse_in_use(destination, path, result)
        check(destination, "local-disk discard", result)

    async def retire(self, source: HostAccess, path: str) -> None:
        """Rename the old copy of a disk that has moved to PATH.moved, over an older one.

        A copy that is on its way in stays. Raises DiskInUse while a process has it open.
        """
        result = await self._run(source, "retire", path)
        self._refuse_in_use(source, path, result)
        check(source, "local-disk retire", result)

    async def _run(self, access: HostAccess, *words: str) -> CommandResult:
        command = ["sh", "-c", _script(), "local-disk", *words]
        return await self._shell.run(access, command, timeout=self._command_timeout)

    @staticmethod
    def _refuse_in_use(access: HostAccess, path: str, result: CommandResult) -> None:
        if result.exit_status == _IN_USE:
            raise DiskInUse(
                f"{path} on {access.name} is in use.",
                remedy=f"See which VM has it open there: lsof {path}.",
                details={"path": path},
            )


def _in_the_way(access: HostAccess, path: str, owner: str | None) -> DiskInTheWay:
    whose = f"was left by {owner}" if owner else "is not a copy that Hostler has begun"
    return DiskInTheWay(
        f"{path} is on {access.name} already, and {whose}.",
        remedy="If the hosts share that storage, declare it with the setting storage.shared.paths. "
        f"If the file is of no use, remove it there, and {path}.hostler too.",
        details={"path": path, "owner": owner},
    )


def _script() -> str:
    return importlib.resources.files("drivers.hooks").joinpath("local-disk").read_text("utf-8")
