"""What an operator sees of a re-installation in Temporal's UI, and which commands move it on."""

from contracts.reinstallation import HostReinstallationStatus, Question
from contracts.states import Phase

_ENDED = frozenset({Phase.ROLLING_BACK, Phase.DONE})
_WHEN = "%Y-%m-%d %H:%M:%S UTC"


def next_commands(
    status: HostReinstallationStatus, workflow_id: str, *, maintenance: bool
) -> tuple[str, ...]:
    """What can be run now, ready to paste. `maintenance`: one that it has started runs."""
    if status.phase in _ENDED:
        return ()
    if not status.final:
        look = (f"hostler maintenance status {status.host}",) if maintenance else ()
        cancel = f"temporal workflow cancel --workflow-id {workflow_id}"
        return (*_answers(status, workflow_id), *look, cancel)
    return (*_answers(status, workflow_id), *_ways_out(status.host, workflow_id))


def _answers(status: HostReinstallationStatus, workflow_id: str) -> tuple[str, ...]:
    answer = f"hostler host answer-reinstallation {status.host}"
    update = f"temporal workflow update execute --workflow-id {workflow_id} --name answer --input"
    match status.question:
        case Question.HOST_KEY:
            key = status.host_key_sha256
            return (
                f"{answer} --accept-host-key {key}",
                f'{update} \'{{"host_key_sha256": "{key}"}}\'',
            )
        case Question.FINDINGS:
            return (
                answer,
                f"{answer} --password-file FILE",
                f"{answer} --force",
                f"{update} '{{}}'",
            )
        case Question.COMMAND:
            return (answer, f"{answer} --skip-command", f"{update} '{{}}'")
        case Question.NETWORK_BOOT:
            return (
                f"hostler power status {status.host}",
                answer,
                f"{answer} --skip-network-boot",
                f"{update} '{{}}'",
            )
    if status.phase is Phase.REINSTALLING:
        return (f"{answer} --accept-host-key SHA256:...",)
    return ()


def _ways_out(host: str, workflow_id: str) -> tuple[str, ...]:
    """If it never comes back."""
    return (
        f"temporal workflow terminate --workflow-id {workflow_id}",
        f"hostler host remove {host} --forced --reason ...",
    )


def current_details(status: HostReinstallationStatus) -> str:
    """Markdown: where it stands, what it does, the commands."""
    lines = [f"### Re-installation of {status.host}: {status.phase}", "", status.message]
    if status.reason:
        lines += ["", f"Because: {status.reason}"]
    if status.since is not None:
        lines += ["", f"Its trust was withdrawn by {status.since:{_WHEN}}."]
    if status.cancel_came_late:
        lines += [
            "",
            "**A cancel came too late:** the old installation is trusted no more. The "
            "re-installation goes on; to give the host up, terminate it, then remove the host.",
        ]
    if status.host_key_sha256 is not None:
        lines += ["", f"New SSH host key: `{status.host_key_sha256}`"]
    if status.findings:
        lines += ["", *(f"- {finding}" for finding in status.findings)]
    if status.effects:
        lines += ["", "What it does:", ""]
        lines += [f"- {effect.kind}: {effect.message}" for effect in status.effects]
    if status.commands:
        lines += ["", "What moves it on:", "", *(f"    {command}" for command in status.commands)]
    return "\n".join(lines)
