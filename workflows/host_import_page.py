"""What an operator sees of a HostImport, and which commands move it on."""

from collections.abc import Mapping

from contracts.host_import import ENDED_STATES, HostImportStatus, ImportState

_MOST_ROWS = 60


def message(counts: Mapping[ImportState, int], total: int, keyless: int, *, canceled: bool) -> str:
    """One sentence. `keyless`: additions that run without a fingerprint to compare with."""
    ended = sum(counts.get(state, 0) for state in ENDED_STATES)
    stands = ", ".join(f"{counts[state]} {state}" for state in ImportState if counts.get(state))
    text = f"{ended} of {total} hosts are done: {stands}"
    if canceled:
        return f"Cancelled; {text}. Additions that run go on by themselves"
    if keyless:
        text += (
            f". {keyless} of those being added came without a fingerprint: "
            "compare the key that each shows and accept it"
        )
    return text


def next_commands(name: str, workflow_id: str) -> tuple[str, ...]:
    """What can be run now, ready to paste."""
    return (
        f"hostler operation show import {name}",
        f"hostler operation cancel import {name}",
        f"temporal workflow cancel --workflow-id {workflow_id}",
    )


def current_details(status: HostImportStatus) -> str:
    """Markdown: counts, what is being added, what has failed."""
    lines = [
        f"### Import {status.name}",
        "",
        status.message,
        "",
        f"Since {status.since:%Y-%m-%d %H:%M:%S} UTC, {status.parallel} at a time",
    ]
    if status.adding:
        lines += ["", "At work on: " + ", ".join(f"`{host}`" for host in status.adding)]
    if status.failed:
        lines += ["", "Failed:", ""]
        lines += [f"- `{one.host}`: {one.error}" for one in status.failed[:_MOST_ROWS]]
    if len(status.failed) > _MOST_ROWS:
        lines += [f"- and {len(status.failed) - _MOST_ROWS} more"]
    if status.commands:
        lines += ["", "What moves it on:", "", *(f"    {command}" for command in status.commands)]
    return "\n".join(lines)
