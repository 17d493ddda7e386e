"""`hostler passwords`: passwords of a cluster's hosts, changed and looked at."""

from typing import Annotated, Any

import typer

from cli.arguments import ClusterArgument, HostArgument, JsonOption, check_name
from cli.client import Api, connect
from cli.credentials import from_files
from cli.output import console, one_line, say, say_fields, say_json, say_table
from cli.waiting import COMPLETED, find_operation, interruptible, patiently, pause, why
from contracts.errors import Failed, NotFound
from contracts.operations import OperationKind
from contracts.passwords import (
    DEFAULT_ACCOUNT,
    HostPasswordReport,
    HostRotation,
    HostWork,
    OnFailure,
    PasswordRotationResult,
    PasswordRotationView,
    PasswordState,
    PasswordVerificationResult,
    StagedVersion,
    check_password,
)
from contracts.states import Phase

_KIND = OperationKind.ROTATION
_VERIFY_WITHIN_S = 610.0  # what the API gives a worker, and a little more

AccountOption = Annotated[str, typer.Option(metavar="NAME", help="Whose password.")]
PasswordFileOption = Annotated[
    str | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        help="File with the new password; `-` is stdin.",
    ),
]
WatchOption = Annotated[bool, typer.Option("--watch", help="Show how it goes, to its end.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(
        name="passwords", help="Passwords of the hosts of a cluster.", no_args_is_help=True
    )
    commands.command("rotate")(rotate)
    commands.command("status")(status)
    commands.command("verify")(verify)
    commands.command("retry")(retry)
    commands.command("skip-host")(skip_host)
    commands.command("revert")(revert)
    app.add_typer(commands)


def stage(
    cluster: ClusterArgument,
    account: AccountOption = DEFAULT_ACCOUNT,
    password_file: PasswordFileOption = None,
) -> None:
    """Store the password that the next `hostler passwords rotate` sets. Asks for it, twice, unless
    it is in a file. No host is told."""
    body = {"account": account, **_new_password(cluster, account, password_file)}
    with connect() as api:
        answer = api.post("clusters", cluster, "passwords", "staged", body=body)
        staged = api.read(StagedVersion, answer)
    say(
        f"Version {staged.version} of the password of {account} on {cluster} is staged. "
        f"Set it: hostler passwords rotate {cluster}"
    )


def rotate(
    cluster: ClusterArgument,
    account: AccountOption = DEFAULT_ACCOUNT,
    password_file: PasswordFileOption = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Only this one's, where the setting password.hosts.may.differ allows it.",
        ),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A host that keeps what it has for now; may be given again. Those that are down "
            "must be named.",
        ),
    ] = None,
    on_failure: Annotated[
        OnFailure | None,
        typer.Option(
            help="What becomes of it if one host fails. [default: the setting "
            "password.rotation.on.failure]"
        ),
    ] = None,
    accept_unknown: Annotated[
        bool,
        typer.Option(
            "--accept-unknown",
            help="Go on although the present password of a host is not known: it can't be put "
            "back there.",
        ),
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")] = "",
    watch: WatchOption = False,
) -> None:
    """Give all hosts of a cluster another password: the one of a file, the staged one, or a random
    one. Each host is proven by a new login before the new password counts."""
    body: dict[str, Any] = {
        "account": account,
        "leave_out": [check_name(one) for one in leave_out or []],
        "accept_unknown": accept_unknown,
        "reason": reason,
        **from_files(password_file, None),
    }
    if host is not None:
        body["host"] = check_name(host)
    if on_failure is not None:
        body["on_failure"] = on_failure
    with connect() as api:
        api.post("clusters", cluster, "password-rotation", body=body)
        if watch:
            _watch(api, cluster)
            return
    say(
        f"The change of the passwords of {cluster} has started. Watch it: "
        f"hostler passwords status {cluster} --watch"
    )


def status(
    cluster: ClusterArgument,
    account: AccountOption = DEFAULT_ACCOUNT,
    as_json: JsonOption = False,
    watch: WatchOption = False,
) -> None:
    """Show where a change of passwords stands; if there is none, which host has which password, as
    it was last seen."""
    if as_json and watch:
        raise typer.BadParameter("goes with --watch or with --json, not with both.")
    with connect() as api:
        if watch:
            _watch(api, cluster)
            return
        view = _find_view(api, cluster)
        if view is not None:
            if as_json:
                say_json(view.model_dump(mode="json"))
            else:
                _show(view)
            return
        items = api.items("clusters", cluster, "passwords", account=account)
        if as_json:
            say_json(items)
            return
        _show_reports([api.read(HostPasswordReport, item) for item in items])


def verify(cluster: ClusterArgument, as_json: JsonOption = False) -> None:
    """Look which password each host has now. Exit code 1 if one has another than its cluster, or if
    the cluster has none."""
    with connect() as api:
        answer = api.post(
            *("clusters", cluster, "passwords", "verification"),
            body={},
            within_s=_VERIFY_WITHIN_S,
        )
        result = api.read(PasswordVerificationResult, answer)
    if as_json:
        say_json(answer)
    elif result.hosts:
        _show_reports(result.hosts)
    if result.hosts:
        counts = ", ".join(f"{number} {state}" for state, number in result.counts.items())
        raise Failed(f"Not all hosts of {cluster} have its password: {counts}.")
    if not (result.accounts or result.counts):
        raise Failed(
            f"{cluster} has no current password: no host was looked at.",
            remedy=f"Give its hosts one: hostler passwords rotate {cluster}",
        )
    if not as_json:
        agreeing = result.counts.get(PasswordState.AGREES, 0)
        say(f"{agreeing} hosts of {cluster} were looked at: all agree.")


def retry(cluster: ClusterArgument) -> None:
    """Try the hosts that have failed again."""
    _steer(cluster, "retry", {})
    say("They are tried again.")


def skip_host(
    cluster: ClusterArgument,
    host: HostArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
) -> None:
    """Go on without a host that has failed. It is brought up to date when it can be."""
    _steer(cluster, "skip-host", {"host": host, "reason": reason})
    say(f"{host} keeps what it has for now.")


def revert(cluster: ClusterArgument) -> None:
    """Give all hosts back the password that they had before."""
    _steer(cluster, "revert", {})
    say(f"The hosts of {cluster} get back what they had.")


def _steer(cluster: str, update: str, body: dict[str, Any]) -> None:
    with connect() as api:
        api.post("clusters", cluster, "password-rotation", update, body=body)


def _new_password(cluster: str, account: str, password_file: str | None) -> dict[str, str]:
    """Checked here already: whoever types it is told at once. Raises InvalidInput."""
    given = from_files(password_file, None)
    if not given:
        text = f"New password of {account} on all hosts of {cluster}"
        given = {
            "password": typer.prompt(text, hide_input=True, confirmation_prompt=True, err=True)
        }
    check_password(given["password"])
    return given


class _Lines:
    """One line per change, of the whole and of each host."""

    def __init__(self) -> None:
        self._console = console()
        self._headline = ""
        self._hosts: dict[str, str] = {}

    def show(self, view: PasswordRotationView) -> None:
        """Say what is new."""
        headline = f"{view.cluster}: {view.phase}: {view.message}"
        if headline != self._headline:
            self._headline = headline
            self.say(headline)
        for one in view.hosts:
            line = f"{one.host}: {_in_words(one)}"
            if one.state is not HostWork.WAITING and self._hosts.get(one.host) != line:
                self._hosts[one.host] = line
                self.say(line)

    def say(self, text: str) -> None:
        """Print it; whoever reads the pipe has it at once."""
        self._console.print(one_line(text), soft_wrap=True)
        self._console.file.flush()


def _watch(api: Api, cluster: str) -> None:
    """Until it has ended. Raises Failed, with the reason and the way on, when it has stopped."""
    lines = _Lines()
    with interruptible(
        f"The change of the passwords of {cluster} goes on. Watch it again: "
        f"hostler passwords status {cluster} --watch"
    ):
        while (view := patiently(lambda: _find_view(api, cluster), lines.say)) is not None:
            lines.show(view)
            if view.phase is Phase.QUESTION:
                for command in view.commands:
                    lines.say(f"Run: {command}")
                raise Failed(f"The change of the passwords of {cluster} waits: {view.message}")
            pause()
        ended = patiently(lambda: find_operation(api, _KIND, cluster), lines.say)
    if ended is None:
        raise NotFound(f"The passwords of {cluster} were never changed.")
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    result = api.read(PasswordRotationResult, ended.details)
    proven = sum(one.state is HostWork.PROVEN for one in result.hosts)
    without = [one.host for one in result.hosts if one.state is not HostWork.PROVEN]
    but = f"; not on {', '.join(without)}" if without else ""
    say(f"{proven} hosts of {cluster} have a new password, proven on each{but}.")


def _find_view(api: Api, cluster: str) -> PasswordRotationView | None:
    """The open change; None if there is none."""
    return api.find(PasswordRotationView, "clusters", cluster, "password-rotation")


def _show(view: PasswordRotationView) -> None:
    say_fields(
        (
            ("cluster", view.cluster),
            ("account", view.account),
            ("phase", view.phase),
            ("message", view.message),
            ("reason", view.reason or None),
            ("since", view.since),
            ("version", view.version),
            ("on failure", view.on_failure),
            ("workflow", view.workflow_id),
        )
    )
    say("")
    say_table(
        ["HOST", "STATE", "HAS", "PROVEN BY", "WHY"],
        [[one.host, one.state, one.held, one.proof, one.reason] for one in view.hosts],
    )
    if view.commands:
        say("")
        say("What moves it on:")
        for command in view.commands:
            typer.echo(f"    {one_line(command)}")


def _show_reports(reports: list[HostPasswordReport] | tuple[HostPasswordReport, ...]) -> None:
    say_table(
        ["HOST", "ACCOUNT", "STATE", "VERSION", "PROVEN BY", "LOOKED AT", "WHY"],
        [
            [
                *(one.host, one.account, one.state, one.version),
                *(one.proof, one.checked_at, one.reason),
            ]
            for one in reports
        ],
    )


def _in_words(one: HostRotation) -> str:
    by = f" ({one.proof})" if one.state is HostWork.PROVEN and one.proof is not None else ""
    has = f", has {one.held}" if one.state is HostWork.FAILED else ""
    return f"{one.state}{by}{has}" + (f": {one.reason}" if one.reason else "")
