"""`hostler ca rollover`: another CA in the place of the one that issues."""

from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from cli.arguments import HostArgument, JsonOption, QemuOfClusterOption, check_name
from cli.client import Api, connect
from cli.credentials import check_file, read_file
from cli.output import console, one_line, say, say_fields, say_json, say_table
from cli.waiting import (
    COMPLETED,
    find_operation,
    interruptible,
    patiently,
    pause,
    until_closed,
    why,
)
from contracts.certificates import CertificatesPem
from contracts.errors import Failed, InvalidInput
from contracts.operations import Operation, OperationKind
from contracts.rollover import (
    AuthorityRolloverResult,
    AuthorityRolloverView,
    RolloverProgress,
    RolloverStage,
    rollover_command,
)

_KIND = OperationKind.ROLLOVER
_CHAIN: TypeAdapter[str] = TypeAdapter(CertificatesPem)
_NOTHING_DRIVES_IT = "Nothing drives it. Have it go on: {0}"

WatchOption = Annotated[bool, typer.Option("--watch", help="Show how it goes, to its end.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(
        name="rollover",
        help="Replace the CA by another one, while all hosts trust both.",
        invoke_without_command=True,
    )
    commands.callback()(rollover)
    commands.command("status")(status)
    commands.command("pause")(pause_rollover)
    commands.command("resume")(resume)
    commands.command("leave-out")(leave_out)
    app.add_typer(commands)


def rollover(
    context: typer.Context,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A host that is not waited for; may be given again. Once the old CA is withdrawn, "
            "others do not trust it any more until it has new certificates: it gets them when it "
            "is back, after the rollover by the automatic renewal, or where that is off by "
            "`hostler cert provision`.",
        ),
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Private key (PEM) of your own CA; `-` is stdin."),
    ] = None,
    chain_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Its chain (PEM): the certificate of that key first, a self-signed one last.",
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what there is to do.")
    ] = False,
    cluster: QemuOfClusterOption = None,
    watch: WatchOption = False,
) -> None:
    """Have another CA, a new one or your own, take the place of the one that issues.

    First every host gets to trust both; then the new one issues, and every host gets certificates
    of it; then the old one is trusted no more. Hosts that are away are waited for. Whatever ends
    it, it goes on from there when it is started again. The CA that only a cluster's QEMUs go by
    has a rollover of its own.
    """
    if context.invoked_subcommand is not None:
        if cluster is not None:
            raise typer.BadParameter(f"comes after {context.invoked_subcommand}.")
        return
    body: dict[str, Any] = {
        "leave_out": [check_name(one) for one in leave_out or []],
        "reason": reason,
        "dry_run": dry_run,
    }
    if (key_file is None) != (chain_file is None):
        raise InvalidInput("--key-file and --chain-file go together.")
    if key_file is not None and chain_file is not None:
        body["chain"] = check_file("--chain-file", _CHAIN, read_file("--chain-file", chain_file))
        body["private_key"] = read_file("--key-file", key_file)
    with connect() as api:
        started = api.read(Operation, api.post("ca", "rollover", body=body, cluster=cluster))
        if dry_run:
            ended = until_closed(api, started, say=say, while_running=lambda _: None)
            if ended.status != COMPLETED:
                raise Failed(why(ended))
            _show_progress(api.read(AuthorityRolloverResult, ended.details).progress)
            return
        if watch:
            _watch(api, started.subject, cluster)
            return
    say(
        f"The rollover has started. Watch it: {rollover_command('status --watch', cluster=cluster)}"
    )


def status(
    cluster: QemuOfClusterOption = None, as_json: JsonOption = False, watch: WatchOption = False
) -> None:
    """Show how far a rollover is, and whom it waits for."""
    if as_json and watch:
        raise typer.BadParameter("goes with --watch or with --json, not with both.")
    with connect() as api:
        view = _view(api, cluster)
        if watch:
            _watch(api, view.progress.provider, cluster)
            return
    if as_json:
        say_json(view.model_dump(mode="json"))
        return
    if view.status is not None:
        say_fields(
            (
                ("phase", view.status.phase),
                ("message", view.status.message),
                ("reason", view.status.reason or None),
                ("since", view.status.since),
                ("paused", "yes" if view.status.paused else None),
                ("workflow", view.workflow_id),
            )
        )
    elif view.progress.stage is not RolloverStage.NONE:
        say(_NOTHING_DRIVES_IT.format(view.progress.command()))
    _show_progress(view.progress, view.status.busy if view.status is not None else {})
    if view.status is not None and view.status.commands:
        say("")
        say("What moves it on:")
        for command in view.status.commands:
            typer.echo(f"    {one_line(command)}")


def pause_rollover(cluster: QemuOfClusterOption = None) -> None:
    """Let no other host begin; those in work come to their end."""
    with connect() as api:
        api.post("ca", "rollover", "pause", body={}, cluster=cluster)
    say(f"No other host begins. Go on: {rollover_command('resume', cluster=cluster)}")


def resume(cluster: QemuOfClusterOption = None) -> None:
    """Go on after a pause."""
    with connect() as api:
        api.post("ca", "rollover", "resume", body={}, cluster=cluster)
    say("It goes on.")


def leave_out(
    host: HostArgument,
    reason: Annotated[str, typer.Option(help="Why; kept in the audit trail.")],
    cluster: QemuOfClusterOption = None,
) -> None:
    """Do not wait for a host. It gets new certificates if it is back before the rollover ends;
    afterwards by the automatic renewal or, where that is off, by `hostler cert provision`. From
    the withdrawal of the old CA until then, others do not trust it."""
    with connect() as api:
        body = {"host": host, "reason": reason}
        api.post("ca", "rollover", "leave-out", body=body, cluster=cluster)
    say(f"{host} is not waited for.")


def _view(api: Api, cluster: str | None) -> AuthorityRolloverView:
    return api.read(AuthorityRolloverView, api.get("ca", "rollover", cluster=cluster))


def _watch(api: Api, provider: str, cluster: str | None) -> None:
    """Until it has ended. Raises Failed with the reason."""
    out, told = console(), ""

    def tell(line: str) -> None:
        out.print(one_line(line), soft_wrap=True)
        out.file.flush()

    again = rollover_command("status --watch", cluster=cluster)
    with interruptible(f"The rollover goes on. Watch it again: {again}"):
        while (view := patiently(lambda: _view(api, cluster), tell)).status is not None:
            waiting = ", ".join(f"{one.host} ({one.reason})" for one in view.progress.waiting[:5])
            line = view.status.message + (f": {waiting}" if waiting else "")
            if line != told:
                told = line
                tell(line)
            pause()
        ended = patiently(lambda: find_operation(api, _KIND, provider), tell)
    if ended is None:
        say(f"The CA of {provider} was never replaced.")
        return
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    progress = view.progress
    if api.read(AuthorityRolloverResult, ended.details).dry_run:
        say(f"No rollover of the CA of {provider} is open; the last one was a dry run.")
        _show_progress(progress)
    elif progress.stage is not RolloverStage.NONE:
        say(_NOTHING_DRIVES_IT.format(progress.command()))
    elif progress.behind:
        names = ", ".join(progress.behind[:5]) + (", ..." if progress.behind_count > 5 else "")
        say(
            f"Generation {progress.current} of {provider} issues, and hosts trust no other one, "
            f"but for {progress.behind_count} that were left out: {names}."
        )
    else:
        say(f"Generation {progress.current} of {provider} issues, and hosts trust no other one.")


def _show_progress(progress: RolloverProgress, busy: dict[str, str] | None = None) -> None:
    say_fields(
        (
            ("provider", progress.provider),
            ("QEMUs of", progress.cluster),
            ("issues", f"generation {progress.current}"),
            ("rollover to", f"generation {progress.to}" if progress.to is not None else None),
            ("stage", progress.stage),
            ("hosts", progress.total),
            ("done", progress.done),
            ("to be done now", progress.due_count),
            ("waited for", progress.waiting_count),
            ("left out", progress.left_out_count),
            ("behind", progress.behind_count or None),
            ("signed for others", progress.unmanaged or None),
            ("stands still", progress.stopped or None),
        )
    )
    rows = [[one.host, "waited for", one.reason] for one in progress.waiting]
    rows += [[one.host, "left out", one.reason] for one in progress.left_out]
    rows += [[one, "behind", "it goes by, or trusts, a CA that is gone"] for one in progress.behind]
    named = {row[0] for row in rows}
    rows += [[host, "busy", why] for host, why in (busy or {}).items() if host not in named]
    if rows:
        say("")
        say_table(["HOST", "STATE", "WHY"], rows)
