"""What an operator sees of a PasswordRotation, and which commands move it on."""

from collections.abc import Sequence

from contracts.passwords import HostRotation, HostWork, PasswordRotationStatus
from contracts.states import Phase

# Of hundreds of hosts the page shows those that something is to be said of.
_MOST_ROWS = 60
_RANKS = {HostWork.FAILED: 0, HostWork.SKIPPED: 1, HostWork.LEFT_OUT: 2, HostWork.WAITING: 3}


def next_commands(
    cluster: str, phase: Phase, failed: Sequence[str], reverting: bool
) -> tuple[str, ...]:
    """What can be run now, ready to paste."""
    if phase is Phase.QUESTION:
        commands = [f"hostler passwords retry {cluster}"]
        commands += [
            f"hostler passwords skip-host {cluster} {host} --reason ..." for host in failed[:3]
        ]
        if not reverting:
            commands.append(f"hostler passwords revert {cluster}")
        return tuple(commands)
    if phase is Phase.DONE:
        return (f"hostler passwords verify {cluster}",)
    return (f"hostler passwords status {cluster}",)


def current_details(status: PasswordRotationStatus) -> str:
    """The page in Temporal's UI."""
    lines = [f"### {status.cluster}: password of {status.account}: {status.phase}", ""]
    lines.append(status.message)
    if status.reason:
        lines += ["", f"Reason: {status.reason}"]
    if status.hosts:
        lines += ["", "| Host | State | Has | Proven by | |", "|-|-|-|-|-|"]
        rows = sorted(status.hosts, key=lambda one: (_RANKS.get(one.state, 9), one.host))
        lines += [_row(one) for one in rows[:_MOST_ROWS]]
        if len(rows) > _MOST_ROWS:
            lines.append(f"\nand {len(rows) - _MOST_ROWS} more")
    return "\n".join([*lines, "", *(f"    {command}" for command in status.commands)])


def _row(one: HostRotation) -> str:
    words = " ".join((one.reason or "").split()).replace("|", "/")
    return f"| {one.host} | {one.state} | {one.held} | {one.proof or ''} | {words} |"
