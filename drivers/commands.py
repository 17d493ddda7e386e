"""Commands on hosts whose success is expected."""

from drivers.errors import CommandFailed, EpochRefused
from drivers.protocols import CommandResult, HostAccess

# Status of a change that came with a lower number than the host has seen, which is on its stdout.
NUMBER_REFUSED = 77
EPOCH_FILE = "/etc/hostler/epoch"


def check(access: HostAccess, command: str, result: CommandResult) -> None:
    """Raises CommandFailed, with what the command said, if its status is not 0."""
    if result.exit_status != 0:
        said = result.stderr.strip()[-1000:]
        raise CommandFailed(
            f"{command!r} on {access.name} ended with status {result.exit_status}: {said}",
            details={"command": command, "exit_status": result.exit_status, "stderr": said},
        )


def unexpected(access: HostAccess, command: str, said: str) -> CommandFailed:
    """It ended well, and what it said is not what it says."""
    return CommandFailed(
        f"{command!r} on {access.name} answered {said.strip()[-200:]!r}, which says nothing.",
        remedy="See whether a start-up file of the shell there (~/.bashrc) prints something "
        "where nobody is at a terminal.",
        details={"command": command, "exit_status": 0, "stderr": ""},
    )


def number(access: HostAccess, command: str, said: str) -> int:
    """The number that a command has said. Raises CommandFailed if it is none."""
    if not said.strip().isdecimal():
        raise unexpected(access, command, said)
    return int(said)


def check_change(
    access: HostAccess,
    command: str,
    result: CommandResult,
    epoch: int,
    *,
    counter: str = EPOCH_FILE,
) -> None:
    """The same for a change under a lease's `epoch`; raises EpochRefused too. `counter`: where the
    host keeps the highest epoch that such changes have come with."""
    if result.exit_status == NUMBER_REFUSED:
        raise epoch_refused(
            access, own=epoch, held=number(access, command, result.stdout), counter=counter
        )
    check(access, command, result)


def epoch_refused(
    access: HostAccess, *, own: int, held: int, counter: str = EPOCH_FILE
) -> EpochRefused:
    """The host has seen a later epoch, `held`."""
    return EpochRefused(
        f"{access.name} was taken over by a later operation: it holds epoch {held}, this one has "
        f"{own}.",
        remedy="Only if Hostler's inventory was lost, or the host belonged to another Hostler: rm "
        f"{counter} on the host, and start again.",
        details={"held": held, "own": own},
    )
