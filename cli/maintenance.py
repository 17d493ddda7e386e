"""`hostler maintenance`: take a host out of service, put it back, see where it stands."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli.arguments import HostArgument, JsonOption, check_vm_name
from cli.client import Api, connect
from cli.output import console, note, one_line, say, say_fields, say_json, say_table
from cli.waiting import COMPLETED, interruptible, until_closed, why
from cli.watch import Lines, Watch, find_view, migration_of, open_display
from contracts.errors import Failed
from contracts.evacuation import EvacuationPlan
from contracts.hosts import Host
from contracts.maintenance import (
    HostMaintenanceInput,
    HostMaintenanceResult,
    MaintenanceView,
    OnBlocker,
    VmAction,
)
from contracts.operations import Operation
from contracts.states import MAINTENANCE_STATES
from contracts.validation import invalid_input

_ASKED_FIELDS = frozenset({"reason", "dry_run", "on_blocker", "max_parallel"})


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(
        name="maintenance", help="Hosts out of service, and back.", no_args_is_help=True
    )
    commands.command("enter")(enter)
    commands.command("leave")(leave)
    commands.command("status")(status)
    commands.command("resolve")(resolve)
    commands.command("list")(list_all)
    app.add_typer(commands)


def enter(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host's name.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever finds it out of service.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    on_blocker: Annotated[
        OnBlocker, typer.Option(help="What to do with VMs that can't be live-migrated.")
    ] = OnBlocker.REFUSE,
    max_parallel: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Live migrations at a time. [default: the worker's setting]"
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show how it goes, until it is ready.")
    ] = False,
) -> None:
    """Take a host out of service: its VMs move to other hosts while they run."""
    body = _asked(
        host=host,
        reason=reason,
        dry_run=dry_run,
        on_blocker=on_blocker,
        max_parallel=max_parallel,
    )
    with connect() as api:
        started = api.read(Operation, api.post("hosts", host, "maintenance", body=body))
        if dry_run:
            _show_plan(_plan(api, started))
        elif watch:
            if not _watch(api, host):
                raise Failed(f"{host} is back in service before it was ready for maintenance.")
        else:
            say(
                f"The maintenance of {host} has started. Watch it: "
                f"hostler maintenance status {host} --watch"
            )


def leave(host: HostArgument) -> None:
    """Put a host back into service, and wait until it is."""
    with connect() as api:
        api.delete("hosts", host, "maintenance")
        with interruptible(
            f"{host} goes on leaving its maintenance: hostler maintenance status {host}"
        ):
            _wait_until_left(api, host)


def status(
    host: HostArgument,
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing it, until it is ready or has ended.")
    ] = False,
) -> None:
    """Show where a host's maintenance stands."""
    if as_json and watch:
        raise typer.BadParameter("goes with --watch or with --json, not with both.")
    with connect() as api:
        answer = api.get("hosts", host, "maintenance")
        if as_json:
            say_json(answer)
        elif watch:
            _watch(api, host)
        else:
            _show(api.read(MaintenanceView, answer))


def resolve(
    host: HostArgument,
    vm: Annotated[
        str, typer.Argument(metavar="VM", callback=check_vm_name, help="The VM in question.")
    ],
    action: Annotated[
        VmAction,
        typer.Argument(
            metavar="retry|shutdown|keep",
            help="Try to move it again, shut it down, or keep it running where it is.",
        ),
    ],
) -> None:
    """Answer the question about a VM that could not be moved."""
    with connect() as api:
        api.post("hosts", host, "maintenance", "vms", vm, body={"action": action})
    say(f"{vm}: {action}.")


def list_all(as_json: JsonOption = False) -> None:
    """List the hosts that are out of service: why, and since when."""
    with connect() as api:
        hosts = [api.read(Host, item) for item in api.items("hosts")]
        rows = [
            _out_of_service(host, find_view(api, host.name))
            for host in hosts
            if host.resource_state in MAINTENANCE_STATES
        ]
    if as_json:
        say_json(rows)
        return
    columns = ("host", "cluster", "resource_state", "phase", "since", "reason", "message")
    say_table(
        ["HOST", "CLUSTER", "STATE", "PHASE", "SINCE", "REASON", "MESSAGE"],
        [[row[column] for column in columns] for row in rows],
    )


def _asked(*, host: str, **fields: object) -> dict[str, Any]:
    """The request's body. Raises InvalidInput in the words that a workflow's own input gets."""
    try:
        request = HostMaintenanceInput.model_validate({"host": host, **fields})
    except ValidationError as error:
        raise invalid_input("HostMaintenance", error.errors()) from None
    return request.model_dump(mode="json", include=set(_ASKED_FIELDS), exclude_none=True)


def _plan(api: Api, started: Operation) -> EvacuationPlan:
    """What a dry run has found. Raises Failed."""
    with interruptible(
        f"The dry run goes on: hostler operation show maintenance {started.subject}"
    ):
        ended = until_closed(api, started, say=note, while_running=lambda _: None)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    plan = api.read(HostMaintenanceResult, ended.details).plan
    if plan is None:
        raise Failed(f"The dry run of {started.subject} has ended without a plan.")
    return plan


def _show_plan(plan: EvacuationPlan) -> None:
    if plan.moves:
        say_table(
            ["VM", "DESTINATION", "MEMORY MIB", "VCPUS"],
            [[move.vm, move.destination, move.memory_mib, move.vcpus] for move in plan.moves],
        )
    if plan.blockers:
        rows: list[list[object]] = []
        for blocker in plan.blockers:
            rows.append([blocker.vm, blocker.kind, None, blocker.message])
            rows += [[None, None, *candidate] for candidate in blocker.candidates.items()]
        say_table(["BLOCKED VM", "KIND", "CANDIDATE", "REASON"], rows)
    blocked = len(plan.blockers)
    say(
        f"{plan.host}: {len(plan.moves)} VMs can move, {blocked} can't. Nothing was changed."
        + (" With --on-blocker refuse, its maintenance would be refused." if blocked else "")
    )


def _watch(api: Api, host: str) -> bool:
    """True: ready for maintenance. False: back in service. Raises Failed, with the reason."""
    with (
        interruptible(
            f"The maintenance of {host} goes on. Watch it again: "
            f"hostler maintenance status {host} --watch"
        ),
        open_display() as display,
    ):
        watch = Watch(api, host, display)
        if watch.until_ready():
            end = f"is ready for maintenance. Put it back: hostler maintenance leave {host}"
            ready = True
        else:
            watch.check_outcome()
            end = f"is {watch.ending().resource_state}."
            ready = False
    say(f"{host} {end}")
    return ready


def _wait_until_left(api: Api, host: str) -> None:
    """Raises Failed when a check keeps the host out of service."""
    watch = Watch(api, host, Lines(console(), vms=False))
    for view in watch.views():
        if view.leave_problem is not None:
            raise Failed(f"{host} stays out of service: {view.leave_problem}")
    say(f"{host} is {watch.ending().resource_state}.")


def _show(view: MaintenanceView) -> None:
    say_fields(
        (
            ("host", view.host),
            ("phase", view.phase),
            ("message", view.message),
            ("reason", view.reason or None),
            ("since", view.since),
            ("workflow", view.workflow_id),
        )
    )
    if view.vms:
        say("")
        rows = []
        for vm in view.vms:
            migration = migration_of(view, vm)
            progress = f"{migration.percent} %" if migration is not None else None
            seconds = None if vm.seconds is None else f"{vm.seconds:.1f}"
            rows.append([vm.vm, vm.state, vm.destination, progress, seconds, vm.error])
        say_table(["VM", "STATE", "DESTINATION", "PROGRESS", "SECONDS", "LAST ERROR"], rows)
    if view.commands:
        say("")
        say("What moves it on:")
        for command in view.commands:
            typer.echo(f"    {one_line(command)}")


def _out_of_service(host: Host, view: MaintenanceView | None) -> dict[str, Any]:
    """One row of the list; a host whose operation was terminated has no view."""
    row: dict[str, Any] = {
        "host": host.name,
        "cluster": host.cluster,
        "resource_state": host.resource_state,
        "phase": None,
        "since": None,
        "reason": None,
        "message": f"no operation is open: `hostler maintenance leave {host.name}` puts it back",
        "workflow_id": None,
    }
    if view is not None:
        row |= view.model_dump(
            mode="json", include={"phase", "since", "reason", "message", "workflow_id"}
        )
    return row
