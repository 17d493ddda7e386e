"""What an operator sees of a maintenance in Temporal's UI, and which commands move it on."""

from collections.abc import Sequence

from contracts.maintenance import MaintenanceStatus, VmAction
from contracts.states import Phase

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
    lines = [
        f"### {status.host}: {_IN_WORDS.get(status.phase, status.phase)}",
        "",
        status.message,
        "",
        f"Out of service since {status.since:%Y-%m-%d %H:%M:%S} UTC"
        + (f", because: {status.reason}" if status.reason else ""),
    ]
    if status.vms:
        lines += ["", "| VM | State | Destination | Attempts | Seconds | Last error |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {_cell(vm.vm)} | {vm.state} | {vm.destination or ''} | {vm.attempt or ''} "
            f"| {'' if vm.seconds is None else vm.seconds} | {_cell(vm.error or '')} |"
            for vm in status.vms
        ]
    if status.plan is not None and status.plan.blockers:
        lines += ["", "Blockers:", ""]
        lines += [f"- {line}" for line in status.plan.describe_blockers().splitlines()]
    if status.commands:
        lines += ["", "What moves it on:", "", *(f"    {command}" for command in status.commands)]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
