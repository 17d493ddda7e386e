"""Commands on hosts whose success is expected."""

from drivers.errors import CommandFailed
from drivers.protocols import CommandResult, HostAccess


def check(access: HostAccess, command: str, result: CommandResult) -> None:
    """Raises CommandFailed, with what the command said, if its status is not 0."""
    if result.exit_status != 0:
        said = result.stderr.strip()[-1000:]
        raise CommandFailed(
            f"{command!r} on {access.name} ended with status {result.exit_status}: {said}",
            details={"command": command, "exit_status": result.exit_status, "stderr": said},
        )
