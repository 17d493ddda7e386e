"""`hostler maintenance`: take a host out of service, put it back, see where it stands."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli.arguments import HostArgument, JsonOption, OrOffOption, check_vm_name
from cli.client import Api, connect
from cli.output import console, note, one_line, say, say_fields, say_json, say_table
from cli.progress import (
    answers,
    migration_of,
    other_commands,
    progress_in_words,
    state_in_words,
)
from cli.waiting import (
    COMPLETED,
    RUNNING,
    find_operation,
    interruptible,
    patiently,
    until_closed,
    why,
)
from cli.watch import Lines, Watch, find_view, open_display
from contracts.errors import Failed
from contracts.evacuation import EvacuationPlan
from contracts.hosts import Host
from contracts.maintenance import (
    HostMaintenanceInput,
    HostMaintenanceResult,
    MaintenanceView,
    OnBlocker,
    VmAction,
    VmStatus,
)
from contracts.operations import Operation, OperationKind
from contracts.states import MAINTENANCE_STATES
from contracts.validation import invalid_input
from contracts.vm_return import VmReturnResult, VmReturnStatus
from contracts.vms import MigrationState

_ASKED_FIELDS = frozenset(HostMaintenanceInput.model_fields) - {"host", "continued"}
# As many as the API lists at most.
_MOST_OPERATIONS = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(
        name="maintenance", help="Hosts out of service, and back.", no_args_is_help=True
    )
    commands.command("enter")(enter)
    commands.command("leave")(leave)
    commands.command("return")(bring_back)
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
            metavar="N", help="Live migrations at a time. [default: the cluster's setting]"
        ),
    ] = None,
    return_vms: Annotated[
        bool,
        typer.Option(
            "--return-vms/--no-return-vms",
            help="Bring its VMs back when it is back in service, as far as there is room.",
        ),
    ] = False,
    no_queue: Annotated[
        bool,
        typer.Option(
            "--no-queue",
            help="Give up rather than wait while too many other hosts of the cluster are out.",
        ),
    ] = False,
    host_is_down: Annotated[
        bool,
        typer.Option(
            "--host-is-down",
            help="You confirm that the host is off: it is taken out of service as it is, and what "
            "ran on it is not started elsewhere.",
        ),
    ] = False,
    power_off_when_ready: Annotated[
        bool,
        typer.Option(
            "--power-off-when-ready",
            help="Shut it down and switch it off by its BMC when no VM is active on it; `leave` "
            "switches it on again.",
        ),
    ] = False,
    or_off: OrOffOption = False,
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
        return_vms=return_vms,
        queue=not no_queue,
        host_is_down=host_is_down,
        power_off_when_ready=power_off_when_ready,
        fall_back_to_off=or_off,
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


def leave(
    host: HostArgument,
    return_vms: Annotated[
        bool | None,
        typer.Option(
            "--return-vms/--no-return-vms",
            help="Bring its VMs back then, as far as there is room. [default: as `enter` said]",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also if networks or storage that it had before are missing now."
        ),
    ] = False,
) -> None:
    """Put a host back into service, and wait until it is."""
    with connect() as api:
        answer = api.delete(
            "hosts", host, "maintenance", return_vms=return_vms, force=force or None
        )
        left = api.read(Operation, answer)
        with interruptible(
            f"{host} goes on leaving its maintenance: hostler maintenance status {host}"
        ):
            _wait_until_left(api, host)
        returning = patiently(lambda: find_operation(api, OperationKind.RETURN, host), note)
        if returning is not None and returning.started_at >= left.started_at:
            say(f"Its VMs come back: hostler operation show return {host}")


def bring_back(host: HostArgument) -> None:
    """Bring back to a host what its last maintenance has moved away, and wait until that is done.

    A VM that can't come back stays where it is and says why; that fails nothing.
    """
    with connect() as api:
        answer = api.post("hosts", host, "maintenance", "return", body={})
        with interruptible(f"The return to {host} goes on: hostler operation show return {host}"):
            returned = _wait_until_returned(api, api.read(Operation, answer))
    if not returned.vms:
        say(f"There are no VMs to bring back to {host}.")
        return
    say_table(
        ["VM", "STATE", "HOST", "REASON"],
        [[vm.vm, vm.state, vm.destination, vm.error] for vm in returned.vms],
    )
    back = sum(_is_back(vm, host) for vm in returned.vms)
    say(f"{back} of {len(returned.vms)} VMs came back to {host}.")


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
            metavar="ACTION",
            help="retry: move it again. wait: move it, however long that takes. pause: move it, "
            "and pause it so that this comes to an end. copy_storage: move it together with its "
            "local disks. shutdown: shut it down, until the host is back. keep: leave it running "
            "where it is. `hostler maintenance status` shows which of them apply.",
        ),
    ],
) -> None:
    """Answer the question about a VM that could not be moved."""
    with connect() as api:
        api.post("hosts", host, "maintenance", "vms", vm, body={"action": action})
    say(f"{vm}: {action}.")


def list_all(as_json: JsonOption = False) -> None:
    """List the hosts that are out of service or wait for their turn: why, and since when."""
    with connect() as api:
        hosts = [api.read(Host, item) for item in api.all_items("hosts")]
        rows = list(_maintenances(api, hosts))
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
    if plan.broken:
        say_table(["BROKEN VM", "REASON"], [[broken.vm, broken.message] for broken in plan.broken])
    say(
        f"{plan.host}: {len(plan.moves)} VMs can move, {len(plan.blockers)} can't"
        + (f", {len(plan.broken)} were broken before and are left alone" if plan.broken else "")
        + ". Nothing was changed."
        + _consequence(plan)
    )


def _consequence(plan: EvacuationPlan) -> str:
    """What a maintenance would make of the blockers."""
    if not plan.blockers:
        return ""
    if plan.waits_for:
        return (
            f" With --on-blocker refuse, its maintenance would wait for {', '.join(plan.waits_for)}"
            " to come back, when there is room for all; with --no-queue, it would be refused."
        )
    return " With --on-blocker refuse, its maintenance would be refused."


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


def _wait_until_returned(api: Api, started: Operation) -> VmReturnResult:
    """Tells each change. Raises Failed."""
    lines = Lines(console())

    def tell(operation: Operation) -> None:
        if operation.details is not None:
            for vm in api.read(VmReturnStatus, operation.details).vms:
                lines.show_vm(vm)

    ended = until_closed(api, started, say=note, while_running=tell)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    return api.read(VmReturnResult, ended.details)


def _is_back(vm: VmStatus, host: str) -> bool:
    return vm.state is MigrationState.MOVED and vm.destination == host


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
    _show_block("In an error state, until this is over:", view.troubles)
    if view.vms:
        say("")
        say_table(
            ["VM", "STATE", "DESTINATION", "PROGRESS", "SECONDS", "LAST ERROR"],
            [_row(view, vm, datetime.now(UTC)) for vm in view.vms],
        )
    for vm in view.vms:
        _show_block(f"{vm.vm} waits for one of these answers:", answers(view.host, vm))
    _show_block("What moves it on:", other_commands(view))


def _row(view: MaintenanceView, vm: VmStatus, now: datetime) -> list[object]:
    return [
        vm.vm,
        state_in_words(vm),
        vm.destination,
        progress_in_words(vm, migration_of(view, vm), now),
        None if vm.seconds is None else f"{vm.seconds:.1f}",
        vm.error,
    ]


def _show_block(title: str, lines: Iterable[str]) -> None:
    """Lines under a title, unless there are none."""
    shown = list(lines)
    if not shown:
        return
    say("")
    say(title)
    for line in shown:
        typer.echo(f"    {one_line(line)}")


def _maintenances(api: Api, hosts: list[Host]) -> Iterator[dict[str, Any]]:
    """Rows of the list. A host that waits for its turn is still in service: the operations tell."""
    running = api.items(
        "operations", kind=OperationKind.MAINTENANCE, status=RUNNING, limit=_MOST_OPERATIONS
    )
    begun = {api.read(Operation, item).subject for item in running}
    for host in hosts:
        out = host.resource_state in MAINTENANCE_STATES
        view = find_view(api, host.name) if out or host.name in begun else None
        if out or view is not None:
            yield _out_of_service(host, view)


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
