"""`hostler host remove`: take hosts out of the inventory, and see those that were."""

import sys
from typing import Annotated

import typer

from cli.arguments import (
    DryRunOption,
    HostArgument,
    JsonOption,
    MaxParallelOption,
    NoQueueOption,
    OnBlockerOption,
    OrOffOption,
    YesOption,
)
from cli.client import Api, connect
from cli.output import note, say, say_json, say_table
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.errors import Failed
from contracts.hosts import RemovedHost
from contracts.maintenance import OnBlocker
from contracts.operations import Operation
from contracts.removal import HostRemovalResult, HostRemovalStatus, RemovalAction
from contracts.states import Phase


def register(commands: typer.Typer) -> None:
    """Add the commands to those of `hostler host`."""
    commands.command("remove")(remove)
    commands.command("resolve-removal")(resolve_removal)
    commands.command("removed")(list_removed)
    commands.command("settle-removed")(settle_removed)


def remove(
    host: HostArgument,
    reason: Annotated[str, typer.Option(help="Why; required with --forced.")] = "",
    after_maintenance: Annotated[
        bool,
        typer.Option(
            "--after-maintenance", help="Take it out of service first: its VMs move away."
        ),
    ] = False,
    forced: Annotated[
        bool,
        typer.Option(
            "--forced",
            help="Also if it does not answer: it is cleaned, and not taken back, when it ever does "
            "again. Its VMs are named, and not started elsewhere.",
        ),
    ] = False,
    leave_vms: Annotated[
        bool,
        typer.Option("--leave-vms", help="Also if VMs are defined there that are shut off."),
    ] = False,
    on_blocker: OnBlockerOption = OnBlocker.REFUSE,
    max_parallel: MaxParallelOption = None,
    no_queue: NoQueueOption = False,
    power_off: Annotated[
        bool,
        typer.Option(
            "--power-off", help="Shut it down and switch it off by its BMC, once it is clean."
        ),
    ] = False,
    or_off: OrOffOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the removal has started.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a host out of the inventory, and what Hostler has put on it off the host.

    It must be in maintenance, or is put there with --after-maintenance. Once its cleaning has begun
    there is no way back. The machine is remembered: it is only added again on purpose.
    """
    if not (dry_run or yes) and sys.stdin.isatty():
        typer.confirm(
            f"Remove {host} for good? See --dry-run for what that does.", err=True, abort=True
        )
    with connect() as api:
        answer = api.delete(
            "hosts",
            host,
            reason=reason or None,
            after_maintenance=after_maintenance or None,
            forced=forced or None,
            leave_vms=leave_vms or None,
            on_blocker=None if on_blocker is OnBlocker.REFUSE else on_blocker,
            max_parallel=max_parallel,
            queue=False if no_queue else None,
            power_off=power_off or None,
            fall_back_to_off=or_off or None,
            dry_run=dry_run or None,
        )
        look = f"hostler operation show removal {host}"
        if no_wait:
            say(f"The removal of {host} has started. See how it goes: {look}")
            return
        with interruptible(f"The removal of {host} goes on: {look}"):
            result = _wait(api, api.read(Operation, answer), quiet=dry_run or as_json)
    if as_json:
        say_json(result.model_dump(mode="json"))
    elif dry_run:
        say_table(["ON", "EFFECT"], [[effect.kind, effect.message] for effect in result.effects])
        say(f"Nothing was changed on {host}.")
    else:
        _say_result(result)


def resolve_removal(
    host: HostArgument,
    action: Annotated[
        RemovalAction,
        typer.Argument(
            metavar="ACTION",
            help="retry: clean it again. leave_uncleaned: remove it all the same; it is cleaned if "
            "it ever answers again.",
        ),
    ],
) -> None:
    """Answer a removal whose host can't be cleaned."""
    with connect() as api:
        api.post("hosts", host, "removal", body={"action": action})
    say(f"{host}: {action}.")


def list_removed(as_json: JsonOption = False) -> None:
    """List the hosts that were removed, the latest first: when, why, and whether they are clean."""
    with connect() as api:
        items = api.items("removed-hosts")
        if as_json:
            say_json(items)
            return
        removed = [api.read(RemovedHost, item) for item in items]
    say_table(
        ["ID", "HOST", "CLUSTER", "ADDRESS", "REMOVED", "FORCED", "REASON", "CLEAN", "VMS"],
        [
            [
                one.id,
                one.name,
                one.cluster,
                one.address,
                one.removed_at,
                "yes" if one.forced else "no",
                one.reason,
                _clean(one),
                ", ".join(one.vms),
            ]
            for one in removed
        ],
    )


def settle_removed(
    tombstone: Annotated[
        int,
        typer.Argument(metavar="ID", min=1, help="Its number, as `hostler host removed` lists it."),
    ],
    reason: Annotated[str, typer.Option(help="Why; how it is known that it never comes back.")],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give up cleaning a removed host that never comes back.

    The credential that was kept for that is deleted: if it answers again nevertheless, what Hostler
    has put on it stays there.
    """
    if not yes and sys.stdin.isatty():
        typer.confirm(
            f"Delete the credential of the removed host {tombstone}?", err=True, abort=True
        )
    with connect() as api:
        answer = api.post("removed-hosts", str(tombstone), "settlement", body={"reason": reason})
        settled = api.read(RemovedHost, answer)
    if as_json:
        say_json(settled.model_dump(mode="json"))
    else:
        say(f"{settled.name} (removed host {settled.id}) is not cleaned any more.")


def _clean(removed: RemovedHost) -> object:
    """When, or why not."""
    if removed.cleaned_at is not None:
        return removed.cleaned_at
    until = "given up" if removed.settled_at is not None else "not yet"
    return f"{until}: {removed.cleaning_problem}"


def _wait(api: Api, started: Operation, *, quiet: bool) -> HostRemovalResult:
    """Until the host is removed, telling each step. Raises Failed."""
    shown = ""

    def tell(operation: Operation) -> None:
        nonlocal shown
        if quiet or operation.details is None:
            return
        status = api.read(HostRemovalStatus, operation.details)
        line = f"{status.host}: {status.phase}: {status.message}"
        if line == shown:
            return
        shown = line
        say(line)
        if status.phase is Phase.QUESTION:
            for command in status.commands:
                say(command)

    ended = until_closed(api, started, say=note, while_running=tell)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    return api.read(HostRemovalResult, ended.details)


def _say_result(result: HostRemovalResult) -> None:
    for found in result.removed_from_host:
        say(f"removed: {found}")
    if result.proof:
        say(f"proof: {result.proof}")
    for left in result.left:
        say(f"left: {left}")
    if result.vms and not result.proof:
        say(f"VMs last seen there: {', '.join(result.vms)}")
    say(f"{result.host} is removed.")
