"""`hostler cluster maintain`, `hostler cluster maintenance`: the hosts of a cluster, one after
another."""

import shlex
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli.arguments import ClusterArgument, JsonOption, check_name
from cli.client import Api, connect
from cli.output import console, one_line, say, say_fields, say_json, say_table
from cli.waiting import COMPLETED, find_operation, interruptible, patiently, pause, why
from contracts.cluster_maintenance import (
    BuiltinHook,
    ClusterMaintenanceChoices,
    ClusterMaintenanceInput,
    ClusterMaintenanceOutcome,
    ClusterMaintenanceResult,
    ClusterMaintenanceView,
    ClusterPhase,
    HookOutcome,
    HookRun,
    HostProgress,
    HostWork,
    Stage,
)
from contracts.errors import Failed
from contracts.maintenance import OnBlocker
from contracts.operations import OperationKind
from contracts.validation import invalid_input

_KIND = OperationKind.CLUSTER_MAINTENANCE

OptionalHost = Annotated[
    str | None, typer.Argument(metavar="[HOST]", help="Only of this host, with what they printed.")
]


def register(clusters: typer.Typer) -> None:
    """Add the commands to `hostler cluster`."""
    commands = typer.Typer(
        name="maintenance", help="Maintenance of a cluster's hosts.", no_args_is_help=True
    )
    commands.command("status")(status)
    commands.command("pause")(pause_it)
    commands.command("resume")(resume)
    commands.command("stop")(stop)
    commands.command("hooks")(hooks)
    clusters.command("maintain")(maintain)
    clusters.add_typer(commands)


def maintain(
    cluster: ClusterArgument,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Only this host; may be given again. [default: all that are in service]"),
    ] = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="Hosts at a time.")] = 1,
    reason: Annotated[str, typer.Option(help="Why, for whoever finds a host out of service.")] = "",
    reboot: Annotated[bool, typer.Option("--reboot", help="Reboot each host.")] = False,
    power_cycle_when_lost: Annotated[
        bool,
        typer.Option(
            "--power-cycle-when-lost",
            help="With --reboot: a host that does not come back in time is switched off and on by "
            "its BMC, once.",
        ),
    ] = False,
    hook: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE=COMMAND",
            help=f"Run it on each host as root; may be given again. Stages: {', '.join(Stage)}. "
            "[default: the host's own /etc/hostler/hooks/STAGE]",
        ),
    ] = None,
    apply_updates: Annotated[
        bool,
        typer.Option("--apply-updates", help="Install the distribution's updates on each host."),
    ] = False,
    hook_timeout: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Of each hook. [default: the setting hook.timeout]"),
    ] = None,
    on_blocker: Annotated[
        OnBlocker, typer.Option(help="What to do with VMs that can't be live-migrated.")
    ] = OnBlocker.REFUSE,
    max_parallel: Annotated[
        int | None,
        typer.Option(metavar="N", help="Live migrations at a time. [default: the setting]"),
    ] = None,
    return_vms: Annotated[
        bool, typer.Option("--return-vms", help="Bring the VMs back to each host.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show how it goes, to its end.")] = False,
) -> None:
    """Take the hosts of a cluster out of service one after another, work on them, put them back."""
    body = _asked(
        cluster=cluster,
        hosts=host or None,
        parallel=parallel,
        reason=reason,
        reboot=reboot,
        power_cycle_when_lost=power_cycle_when_lost,
        hooks=_hooks(hook or [], apply_updates, hook_timeout),
        on_blocker=on_blocker,
        max_parallel=max_parallel,
        return_vms=return_vms,
    )
    with connect() as api:
        api.post("clusters", cluster, "maintenance", body=body)
        if watch:
            _watch(api, cluster)
            return
    say(
        f"The maintenance of {cluster} has started. Watch it: "
        f"hostler cluster maintenance status {cluster} --watch"
    )


def status(
    cluster: ClusterArgument,
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing it, until it fails or has ended.")
    ] = False,
) -> None:
    """Show where a cluster's maintenance stands."""
    if as_json and watch:
        raise typer.BadParameter("goes with --watch or with --json, not with both.")
    with connect() as api:
        if watch:
            _watch(api, cluster)
            return
        answer = api.get("clusters", cluster, "maintenance")
        if as_json:
            say_json(answer)
        else:
            _show(api.read(ClusterMaintenanceView, answer))


def pause_it(cluster: ClusterArgument) -> None:
    """Let no new host begin; those in work go on to their end."""
    _steer(cluster, "pause")
    say(f"The maintenance of {cluster} is paused.")


def resume(cluster: ClusterArgument) -> None:
    """Go on after a pause, or after a failure: what has failed is tried again."""
    _steer(cluster, "resume")
    say(f"The maintenance of {cluster} goes on.")


def stop(cluster: ClusterArgument) -> None:
    """End it when the hosts in work are done; one that has failed stays as it is."""
    _steer(cluster, "stop")
    say(f"The maintenance of {cluster} ends as soon as no host is in work.")


def hooks(cluster: ClusterArgument, host: OptionalHost = None, as_json: JsonOption = False) -> None:
    """Show the hooks that the newest maintenance has run; of one host, what they printed."""
    path = ["clusters", cluster, "maintenance", "hooks"]
    with connect() as api:
        items = api.items(*path, *([] if host is None else [check_name(host)]))
        if as_json:
            say_json(items)
            return
        runs = [api.read(HookRun, item) for item in items]
    if host is None:
        say_table(
            ["HOST", "STAGE", "ATTEMPT", "RESULT", "STARTED", "ENDED", "COMMAND"],
            [
                [
                    run.host,
                    run.stage,
                    run.attempt,
                    _result(run),
                    run.started_at,
                    run.finished_at,
                    shlex.join(run.command),
                ]
                for run in runs
            ],
        )
        return
    for run in runs:
        say(f"{run.stage}, attempt {run.attempt}: {shlex.join(run.command)}: {_result(run)}")
        for line in (run.output or "").splitlines():
            typer.echo(f"    {one_line(line)}")


def _steer(cluster: str, update: str) -> None:
    with connect() as api:
        api.post("clusters", cluster, "maintenance", update, body={})


def _hooks(given: list[str], apply_updates: bool, timeout: int | None) -> dict[str, dict[str, Any]]:
    """The option's values as hooks. Raises BadParameter."""
    found: dict[str, dict[str, Any]] = {}
    for one in given:
        stage, _, command = one.partition("=")
        if stage not in tuple(Stage) or not command.strip():
            raise typer.BadParameter(
                f"{one!r} is not STAGE=COMMAND with a stage of {', '.join(Stage)}.",
                param_hint="--hook",
            )
        if stage in found:
            raise typer.BadParameter(f"{stage} is given twice.", param_hint="--hook")
        try:
            found[stage] = {"command": shlex.split(command)}
        except ValueError as error:
            raise typer.BadParameter(f"{one!r}: {error}.", param_hint="--hook") from None
    if apply_updates:
        if Stage.MAINTENANCE in found:
            raise typer.BadParameter(
                f"is a hook of the stage {Stage.MAINTENANCE}, which has one by --hook.",
                param_hint="--apply-updates",
            )
        found[Stage.MAINTENANCE] = {"builtin": BuiltinHook.APPLY_UPDATES}
    if timeout is not None:
        found = {stage: {**hook, "timeout_s": timeout} for stage, hook in found.items()}
    return found


def _asked(*, cluster: str, **fields: object) -> dict[str, Any]:
    """The request's body. Raises InvalidInput in the words that a workflow's own input gets."""
    try:
        request = ClusterMaintenanceInput.model_validate({"cluster": cluster, **fields})
    except ValidationError as error:
        raise invalid_input("ClusterMaintenance", error.errors()) from None
    choices = set(ClusterMaintenanceChoices.model_fields)
    return request.model_dump(mode="json", include=choices, exclude_none=True)


class _Lines:
    """One line per change, of the whole and of each host."""

    def __init__(self) -> None:
        self._console = console()
        self._headline = ""
        self._hosts: dict[str, str] = {}

    def show(self, view: ClusterMaintenanceView) -> None:
        """Say what is new."""
        for host in view.hosts:
            line = f"{host.host}: {_in_words(host)}"
            if self._hosts.get(host.host) != line:
                self._hosts[host.host] = line
                self.say(line)
        headline = f"{view.cluster}: {view.phase}"
        if headline != self._headline:
            self._headline = headline
            self.say(headline)

    def say(self, text: str) -> None:
        """Print it; whoever reads the pipe has it at once."""
        self._console.print(one_line(text), soft_wrap=True)
        self._console.file.flush()


def _watch(api: Api, cluster: str) -> None:
    """Until it has ended. Raises Failed, with the reason and the way on, when it has stopped."""
    lines = _Lines()
    with interruptible(
        f"The maintenance of {cluster} goes on. Watch it again: "
        f"hostler cluster maintenance status {cluster} --watch"
    ):
        while (view := patiently(lambda: _find_view(api, cluster), lines.say)) is not None:
            lines.show(view)
            if view.phase is ClusterPhase.QUESTION and all(
                host.state is not HostWork.WORKING for host in view.hosts
            ):
                for command in view.commands:
                    lines.say(f"Run: {command}")
                raise Failed(f"The maintenance of {cluster} waits: {view.message}")
            pause()
        ended = patiently(lambda: find_operation(api, _KIND, cluster), lines.say)
    if ended is None or ended.status != COMPLETED:
        raise Failed(why(ended) if ended is not None else f"{cluster} was not in maintenance.")
    result = api.read(ClusterMaintenanceResult, ended.details)
    done = sum(host.state is HostWork.DONE for host in result.hosts)
    if result.outcome is ClusterMaintenanceOutcome.STOPPED:
        raise Failed(
            f"The maintenance of {cluster} was stopped: {done} of {len(result.hosts)} hosts done."
        )
    say(f"The maintenance of {cluster} is done: {done} hosts.")


def _find_view(api: Api, cluster: str) -> ClusterMaintenanceView | None:
    """The open maintenance; None if there is none."""
    return api.find(ClusterMaintenanceView, "clusters", cluster, "maintenance")


def _show(view: ClusterMaintenanceView) -> None:
    say_fields(
        (
            ("cluster", view.cluster),
            ("phase", view.phase),
            ("message", view.message),
            ("reason", view.reason or None),
            ("since", view.since),
            ("at a time", view.parallel),
            ("reboot", "yes" if view.reboot else "no"),
            ("workflow", view.workflow_id),
        )
    )
    say("")
    say_table(
        ["HOST", "STATE", "STEP", "HOOKS", "BOOT", "LAST ERROR"],
        [
            [
                host.host,
                host.state,
                None if host.state is HostWork.DONE else host.step,
                ", ".join(f"{run.stage} {_short(run)}" for run in host.hooks),
                _boots(host),
                host.error or host.question or host.queued,
            ]
            for host in view.hosts
        ],
    )
    if view.commands:
        say("")
        say("What moves it on:")
        for command in view.commands:
            typer.echo(f"    {one_line(command)}")


def _in_words(host: HostProgress) -> str:
    words = str(host.state)
    if host.state in (HostWork.WORKING, HostWork.FAILED):
        words += f" at {host.step}" if host.state is HostWork.FAILED else f", {host.step}"
    if host.state is HostWork.DONE and host.boot_id_after is not None:
        words += f", boot {_boots(host)}" + (", by its BMC" if host.power_cycled else "")
    trouble = host.error or host.question or host.queued
    return f"{words} ({trouble})" if trouble is not None else words


def _boots(host: HostProgress) -> str:
    boots = [boot[:8] for boot in (host.boot_id_before, host.boot_id_after) if boot is not None]
    return " -> ".join(boots)


def _short(run: HookOutcome) -> str:
    return "-" if run.exit_status is None else str(run.exit_status)


def _result(run: HookRun) -> str:
    if run.finished_at is None:
        return "running"
    return run.problem or f"status {run.exit_status}"
