"""What an operator sees of a ClusterMaintenance, and which commands move it on."""

from collections import Counter
from collections.abc import Mapping, Sequence

from contracts.cluster_maintenance import (
    ClusterMaintenanceStatus,
    ClusterPhase,
    HostProgress,
    HostWork,
    Stage,
    Step,
)

_GAP = "\N{NO-BREAK SPACE}" * 3
# Of hundreds of hosts the page shows those that something is to be said of.
_MOST_ROWS = 60
_RANKS = {HostWork.FAILED: 0, HostWork.WORKING: 1, HostWork.WAITING: 2, HostWork.DONE: 3}
_HOOK_STEPS = frozenset(stage.value for stage in Stage)
_UPDATES: Mapping[ClusterPhase, tuple[str, ...]] = {
    ClusterPhase.PRE_FLIGHT: ("pause", "stop"),
    ClusterPhase.WORKING: ("pause", "stop"),
    ClusterPhase.PAUSED: ("resume", "stop"),
}


def message(phase: ClusterPhase, hosts: Sequence[HostProgress], *, paused: bool) -> str:
    """One sentence: what happens now, or what is wrong."""
    failed = [host for host in hosts if host.state is HostWork.FAILED]
    asking = [host for host in hosts if host.question is not None]
    working = [host for host in hosts if host.state is HostWork.WORKING]
    counts = Counter(host.state for host in hosts)
    at_work = ", ".join(map(_step, working)) or "no host is in work"
    done = f"{counts[HostWork.DONE]} of {len(hosts)} hosts are done"
    if phase is ClusterPhase.PLANNING:
        return "Reads which hosts there are"
    if phase is ClusterPhase.QUESTION:
        problems = [f"{host.host} has failed at {host.step}: {host.error}" for host in failed]
        problems += [f"{host.host} waits for an answer: {host.question}" for host in asking]
        text = "; ".join(problems)
        return f"{text}. It is paused as well" if paused else text
    if phase is ClusterPhase.PRE_FLIGHT:
        left = sum(host.step is Step.PRE_FLIGHT for host in hosts)
        return f"Pre-flight: {len(hosts) - left} of {len(hosts)} hosts have passed"
    if phase is ClusterPhase.PAUSED:
        return f"Paused; {at_work}; {done}"
    if phase is ClusterPhase.STOPPING:
        return f"Ends as soon as no host is in work; {at_work}; {done}"
    if phase is ClusterPhase.DONE:
        left_failed = ", ".join(host.host for host in failed)
        return done + (f"; failed and left as it was: {left_failed}" if failed else "")
    return f"{at_work}; {done}"


def next_commands(
    cluster: str, workflow_id: str, phase: ClusterPhase, hosts: Sequence[HostProgress]
) -> tuple[str, ...]:
    """What can be run now, ready to paste."""
    commands = [
        f"hostler maintenance status {host.host}" for host in hosts if host.question is not None
    ]
    failed = [host for host in hosts if host.state is HostWork.FAILED]
    commands += [
        f"hostler cluster maintenance hooks {cluster} {host.host}"
        for host in failed
        if host.step.value in _HOOK_STEPS
    ]
    updates = _UPDATES.get(phase, ())
    if phase is ClusterPhase.QUESTION:
        updates = ("resume", "stop") if failed else ("stop",)
    commands += [f"hostler cluster maintenance {name} {cluster}" for name in updates]
    update = f"temporal workflow update execute --workflow-id {workflow_id} --input '{{}}' --name"
    commands += [f"{update} {name}" for name in updates]
    return tuple(commands)


def current_details(status: ClusterMaintenanceStatus) -> str:
    """Markdown: where it stands, a table of the hosts, the commands."""
    lines = [
        f"### {status.cluster}: {status.phase}",
        "",
        status.message,
        "",
        f"Since {status.since:%Y-%m-%d %H:%M:%S} UTC, {status.parallel} at a time"
        + (", with a reboot each" if status.reboot else "")
        + (f", because: {status.reason}" if status.reason else ""),
    ]
    shown = sorted(status.hosts, key=lambda host: _RANKS[host.state])[:_MOST_ROWS]
    if shown:
        lines += ["", _row("Host", "State", "Step", "Hooks", "Boot", "What is to be said")]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_host_row(host) for host in shown]
    if len(status.hosts) > len(shown):
        counts = Counter(host.state for host in status.hosts)
        total = ", ".join(f"{counts[state]} {state}" for state in HostWork if counts[state])
        lines += ["", f"{len(status.hosts)} hosts: {total}."]
    if status.commands:
        lines += ["", "What moves it on:", "", *(f"    {command}" for command in status.commands)]
    return "\n".join(lines)


def _step(host: HostProgress) -> str:
    return f"{host.host}: {host.step}" + (f" ({host.queued})" if host.queued else "")


def _host_row(host: HostProgress) -> str:
    hooks = ", ".join(
        f"{run.stage} {run.exit_status if run.problem is None else '-'}" for run in host.hooks
    )
    boots = [boot[:8] for boot in (host.boot_id_before, host.boot_id_after) if boot is not None]
    step = None if host.state is HostWork.DONE else host.step
    cycled = "its BMC had it boot: it did not come back" if host.power_cycled else None
    said = host.error or host.question or host.queued or cycled
    return _row(host.host, host.state, step, hooks, " → ".join(boots), said)


def _row(*cells: object) -> str:
    """A row of a table. Temporal's UI leaves no room between columns, so the cells bring it."""
    texts = ("" if cell is None else str(cell) for cell in cells)
    escaped = (text.replace("|", "\\|").replace("\n", " ") for text in texts)
    return "".join(f"| {text}{_GAP} " for text in escaped) + "|"
