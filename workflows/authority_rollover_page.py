"""What an operator sees of an AuthorityRollover, and which commands move it on."""

from contracts.rollover import AuthorityRolloverStatus, RolloverProgress, RolloverStage
from contracts.states import Phase

_MOST_ROWS = 50
PHASES = {
    RolloverStage.TRUST: Phase.TELLING,
    RolloverStage.CERTIFICATES: Phase.CHANGING,
    RolloverStage.WITHDRAWAL: Phase.CLEANING,
    RolloverStage.NONE: Phase.DONE,
}
_STAGES = {
    RolloverStage.TRUST: "Hosts get to trust the next CA beside the one that issues",
    RolloverStage.CERTIFICATES: "Hosts get certificates of the new CA, and trust both",
    RolloverStage.WITHDRAWAL: "Hosts get to trust the former CA no more",
    RolloverStage.NONE: "No host trusts the former CA any more, but for those that were left out",
}


def headline(progress: RolloverProgress, *, paused: bool) -> str:
    """Where it stands, in one sentence."""
    said = f"{_STAGES[progress.stage]}: {progress.done} of {progress.total}"
    if paused:
        said += "; paused: no other host begins"
    elif progress.stopped:
        said += f"; it stands still: {progress.stopped.rstrip('.')}"
    elif progress.due_count == 0 and progress.waiting_count:
        said += f"; waits for {progress.waiting_count}"
    if progress.left_out_count:
        said += f"; {progress.left_out_count} left out"
    return said


def next_commands(progress: RolloverProgress | None, *, paused: bool) -> tuple[str, ...]:
    """What can be run now, ready to paste."""
    if progress is None:
        return ("hostler ca rollover resume" if paused else "hostler ca rollover status",)
    if paused:
        return (progress.command("resume"),)
    if progress.stage is RolloverStage.NONE:
        return (progress.command("status"),)
    return (
        *(progress.command("leave-out", one.host, "--reason ...") for one in progress.waiting[:3]),
        progress.command("pause"),
    )


def current_details(status: AuthorityRolloverStatus) -> str:
    """The page in Temporal's UI."""
    lines = [f"### CA of {status.provider or 'the provider'}: {status.phase}", "", status.message]
    if status.reason:
        lines += ["", f"Reason: {status.reason}"]
    progress = status.progress
    if progress is not None:
        rows = [(one.host, "waited for", one.reason) for one in progress.waiting]
        rows += [(one.host, "left out", one.reason) for one in progress.left_out]
        if rows:
            lines += ["", "| Host | | |", "|-|-|-|"]
            lines += [_row(*one) for one in rows[:_MOST_ROWS]]
        more = progress.waiting_count + progress.left_out_count - min(len(rows), _MOST_ROWS)
        if more > 0:
            lines.append(f"\nand {more} more")
        if progress.unmanaged and progress.stage is not RolloverStage.NONE:
            lines += [
                "",
                f"{progress.unmanaged} certificates of the former CA were signed for others to "
                "install: they count no more once it is withdrawn.",
            ]
    return "\n".join([*lines, "", *(f"    {command}" for command in status.commands)])


def _row(host: str, state: str, reason: str) -> str:
    words = " ".join(reason.split()).replace("|", "/")
    return f"| {host} | {state} | {words} |"
