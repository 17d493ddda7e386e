"""What an operator sees of a removal in Temporal's UI, and which commands move it on."""

from contracts.removal import HostRemovalStatus, RemovalAction
from contracts.states import Phase

_ENDED = frozenset({Phase.ROLLING_BACK, Phase.DONE})


def next_commands(
    host: str, workflow_id: str, phase: Phase, *, asking: bool, final: bool, maintenance: bool
) -> tuple[str, ...]:
    """What can be run now, ready to paste. `maintenance`: one that the removal has started runs."""
    if asking:
        return tuple(
            command
            for action in RemovalAction
            for command in (
                f"hostler host resolve-removal {host} {action}",
                f"temporal workflow update execute --workflow-id {workflow_id} --name resolve "
                f'--input \'{{"action": "{action}"}}\'',
            )
        )
    if final or phase in _ENDED:
        return ()
    cancel = f"temporal workflow cancel --workflow-id {workflow_id}"
    return (f"hostler maintenance status {host}", cancel) if maintenance else (cancel,)


def current_details(status: HostRemovalStatus) -> str:
    """Markdown: where it stands, what it does, the commands."""
    lines = [f"### Removal of {status.host}: {status.phase}", "", status.message]
    if status.reason:
        lines += ["", f"Because: {status.reason}"]
    if status.cancel_came_late:
        lines += [
            "",
            "**A cancel came too late:** Hostler is being taken off the host, and half of it must "
            "not stay. The removal goes on.",
        ]
    if status.effects:
        lines += ["", "What it does:", ""]
        lines += [f"- {effect.kind}: {effect.message}" for effect in status.effects]
    if status.commands:
        lines += ["", "What moves it on:", "", *(f"    {command}" for command in status.commands)]
    return "\n".join(lines)
