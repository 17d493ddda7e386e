"""What an operator sees of a maintenance in Temporal's UI, and which commands move it on."""

import shlex
from collections import Counter
from collections.abc import Sequence

from contracts.maintenance import MaintenanceStatus, VmAction, VmStatus
from contracts.states import Phase
from contracts.vm_return import VmReturnStatus
from contracts.vms import MigrationState

_GAP = "\N{NO-BREAK SPACE}" * 3
_MOST_ROWS = 50
_RANKS = {
    MigrationState.FAILED: 0,
    MigrationState.MIGRATING: 1,
    MigrationState.KEPT: 2,
    MigrationState.SHUT_OFF: 3,
    MigrationState.WAITING: 4,
}
_IN_WORDS = {Phase.READY: "Ready for maintenance", Phase.ROLLING_BACK: "Rolling back"}


def next_commands(
    host: str, workflow_id: str, phase: Phase, vms: Sequence[VmStatus]
) -> tuple[str, ...]:
    """What can be run now, ready to paste: one answer a line, as a shell takes the `|` between
    `retry` and `shutdown` for a pipe."""
    commands = [
        f"hostler maintenance resolve {host} {shlex.quote(vm.vm)} {action}"
        for vm in vms
        if vm.state is MigrationState.FAILED
        for action in vm.actions
    ]
    if phase is Phase.QUESTION:
        commands += [
            f"hostler maintenance resolve {host} {shlex.quote(vm.vm)} {VmAction.RETRY}"
            for vm in vms
            if vm.state is MigrationState.KEPT
        ]
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
    if status.troubles:
        lines += ["", "In an error state, until this is over:", ""]
        lines += [f"- {' '.join(trouble.split())}" for trouble in status.troubles]
    lines += _table(status.vms)
    if status.plan is not None and status.plan.blockers:
        lines += ["", "Blockers:", ""]
        lines += [f"- {line}" for line in status.plan.describe_blockers().splitlines()]
    if status.plan is not None and status.plan.broken:
        lines += ["", "Broken before, and left alone:", ""]
        lines += [f"- {vm.vm}: {vm.message}" for vm in status.plan.broken]
    if status.commands:
        lines += ["", "What moves it on:", "", *(f"    {command}" for command in status.commands)]
    return "\n".join(lines)


def return_details(status: VmReturnStatus) -> str:
    """The same for VMs that come back."""
    lines = [f"### VMs come back to {status.host}", "", status.message, *_table(status.vms)]
    return "\n".join(lines)


def _table(vms: Sequence[VmStatus]) -> list[str]:
    """Those that need somebody's attention first; of a long list the others are only counted."""
    shown = sorted(vms, key=lambda vm: _RANKS.get(vm.state, len(_RANKS)))[:_MOST_ROWS]
    if not shown:
        return []
    lines = ["", _row("VM", "State", "Destination", "Attempts", "Seconds", "Last error")]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        _row(vm.vm, vm.state, vm.destination, vm.attempt or None, vm.seconds, vm.error)
        for vm in shown
    ]
    if len(vms) > len(shown):
        counts = Counter(vm.state for vm in vms)
        total = ", ".join(f"{counts[state]} {state}" for state in sorted(counts))
        lines += ["", f"{len(vms)} VMs: {total}."]
    return lines


def _row(*cells: object) -> str:
    """A row of a table. Temporal's UI leaves no room between columns, so the cells bring it."""
    texts = ("" if cell is None else str(cell) for cell in cells)
    escaped = (text.replace("|", "\\|").replace("\n", " ") for text in texts)
    return "".join(f"| {text}{_GAP} " for text in escaped) + "|"
