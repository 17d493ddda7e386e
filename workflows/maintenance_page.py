"""What an operator sees of a maintenance in Temporal's UI, and which commands move it on."""

from collections.abc import Sequence

from contracts.maintenance import MaintenanceStatus, VmAction
from contracts.states import Phase

_GAP = "\N{NO-BREAK SPACE}" * 3
_IN_WORDS = {Phase.READY: "Ready for maintenance", Phase.ROLLING_BACK: "Rolling back"}


def next_commands(
    host: str, workflow_id: str, phase: Phase, *, questions: Sequence[str], kept: Sequence[str]
) -> tuple[str, ...]:
    """What can be run now, ready to paste. `questions`, `kept`: VMs in that state."""
    commands = [f"hostler maintenance resolve {host} {vm} {'|'.join(VmAction)}" for vm in questions]
    if phase is Phase.QUESTION:
        commands += [f"hostler maintenance resolve {host} {vm} {VmAction.RETRY}" for vm in kept]
    if phase not in (Phase.LEAVING, Phase.ROLLING_BACK, Phase.DONE):
        commands.append(f"hostler maintenance leave {host}")
        commands.append(
            f"temporal workflow update execute --workflow-id {workflow_id} --name leave "
            "--input '{}'"
        )
    return tuple(commands)


def current_details(status: MaintenanceStatus) -> str:
    """Markdown: where it stands, a table of the VMs, the commands."""
    title = _IN_WORDS.get(status.phase, status.phase)
    lines = [f"### {status.host}: {title}", ""]
    if status.message != title:
        lines += [status.message, ""]
    lines.append(
        f"Out of service since {status.since:%Y-%m-%d %H:%M:%S} UTC"
        + (f", because: {status.reason}" if status.reason else "")
    )
    if status.vms:
        lines += ["", _row("VM", "State", "Destination", "Attempts", "Seconds", "Last error")]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            _row(vm.vm, vm.state, vm.destination, vm.attempt or None, vm.seconds, vm.error)
            for vm in status.vms
        ]
    if status.plan is not None and status.plan.blockers:
        lines += ["", "Blockers:", ""]
        lines += [f"- {line}" for line in status.plan.describe_blockers().splitlines()]
    if status.commands:
        lines += ["", "What moves it on:", "", *(f"    {command}" for command in status.commands)]
    return "\n".join(lines)


def _row(*cells: object) -> str:
    """A row of a table. Temporal's UI leaves no room between columns, so the cells bring it."""
    texts = ("" if cell is None else str(cell) for cell in cells)
    escaped = (text.replace("|", "\\|").replace("\n", " ") for text in texts)
    return "".join(f"| {text}{_GAP} " for text in escaped) + "|"
