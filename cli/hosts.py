"""`hostler host`: bring hosts into the inventory and look at them."""

import sys
from typing import Annotated, Any

import typer

from cli import allocation, reinstallation, removal
from cli.arguments import HostArgument, JsonOption, NameArgument
from cli.client import Api, connect
from cli.credentials import PasswordFileOption, PrivateKeyFileOption, from_files
from cli.host_import import import_hosts
from cli.oobm import fields_of, in_short
from cli.output import note, say, say_fields, say_json, say_table
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.addition import HostAdditionResult, HostAdditionStatus
from contracts.allocation import AllocationLevel
from contracts.errors import Failed, InvalidInput
from contracts.host_checks import HostSighting
from contracts.host_status import Seen
from contracts.hosts import Host, HostUsage
from contracts.operations import Operation
from contracts.preflight import Finding, Findings, Severity, errors_among, summary
from contracts.states import HostStatus, Phase, ResourceState, TlsState

# What the API gives a worker, and a little more.
_LOOK_WITHIN_S = 100.0


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(name="host", help="Hypervisor hosts.", no_args_is_help=True)
    commands.command("add")(add)
    commands.command("import")(import_hosts)
    commands.command("accept-key")(accept_key)
    commands.command("list")(list_all)
    commands.command("show")(show)
    commands.command("tag")(tag)
    allocation.register(commands, AllocationLevel.HOST)
    commands.command("check")(check)
    removal.register(commands)
    reinstallation.register(commands)
    app.add_typer(commands)


def add(
    name: NameArgument,
    cluster: Annotated[str, typer.Option(help="The cluster that it joins.")],
    address: Annotated[str, typer.Option(help="IP address of its SSH server.")],
    ssh_port: Annotated[int, typer.Option(help="Port of its SSH server.")] = 22,
    user: Annotated[
        str, typer.Option(help="Who logs in there: root, or who becomes root by sudo.")
    ] = "root",
    password_file: PasswordFileOption = None,
    private_key_file: PrivateKeyFileOption = None,
    accept_host_key: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256:...",
            help="Fingerprint of its host key, as `ssh-keygen -lf` prints it on the host.",
        ),
    ] = None,
    disabled: Annotated[
        bool, typer.Option("--disabled", help="Do not put it into service.")
    ] = False,
    capacity_memory_mib: Annotated[
        int | None, typer.Option(metavar="MIB", help="At most so much memory for VMs.")
    ] = None,
    capacity_cpus: Annotated[
        int | None, typer.Option(metavar="N", help="At most so many virtual CPUs for VMs.")
    ] = None,
    reserved_memory_mib: Annotated[
        int, typer.Option(metavar="MIB", help="Memory kept for the host itself.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only look, tell all findings, and change nothing.")
    ] = False,
    returning: Annotated[
        bool,
        typer.Option("--returning", help="It was removed before, and is back on purpose."),
    ] = False,
    install_packages: Annotated[
        bool,
        typer.Option(
            "--install-packages", help="Install libvirt's daemon and QEMU where they are missing."
        ),
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the addition has started.")
    ] = False,
) -> None:
    """Add a host: look at all that it needs, pin its host key, install the fence and a key of
    Hostler's own, put it into service.

    All findings are told at once, each with what to do about it. The password or key is read from
    a file or, on a terminal, asked for; never an argument.
    """
    asked = {
        "name": name,
        "cluster": cluster,
        "address": address,
        "ssh_port": ssh_port,
        "user": user,
        "host_key_sha256": accept_host_key,
        "enabled": not disabled,
        "capacity_memory_mib": capacity_memory_mib,
        "capacity_cpus": capacity_cpus,
        "reserved_memory_mib": reserved_memory_mib,
        "dry_run": dry_run,
        "returning": returning,
        "install_packages": install_packages,
        **_credential(f"{user}@{address}", password_file, private_key_file),
    }
    body = {field: value for field, value in asked.items() if value is not None}
    with connect() as api:
        started = api.read(Operation, api.post("hosts", body=body))
        look = f"hostler operation show addition {name}"
        if no_wait:
            say(f"The addition of {name} has started. See how it goes: {look}")
            return
        with interruptible(f"The addition of {name} goes on: {look}"):
            added = _wait(api, started)
    _say_findings(added.findings)
    if not dry_run:
        say(f"{added.name} is {added.resource_state}.")
    elif errors_among(added.findings):
        raise Failed(f"{name} can't be added like this: {_in_short(added.findings)}.")
    else:
        say(f"{added.name} can be added: {summary(added.findings)}.{_TO_GET[added.tls]}")


_TO_GET = {
    TlsState.NONE: "",
    TlsState.READY: " It gets certificates before it is put into service.",
    TlsState.SECURED: " It gets certificates and is secured before it is put into service.",
}


def accept_key(
    name: NameArgument,
    fingerprint: Annotated[
        str, typer.Argument(metavar="SHA256:...", help="The fingerprint that the host shows.")
    ],
) -> None:
    """Accept the host key that an addition waits for, after comparing it with the host's own."""
    with connect() as api:
        _accept(api, name, fingerprint)
    say(f"The host key of {name} is accepted: hostler operation show addition {name}")


def list_all(
    cluster: Annotated[str | None, typer.Option(help="Only of this cluster.")] = None,
    zone: Annotated[str | None, typer.Option(help="Only of this zone.")] = None,
    pod: Annotated[str | None, typer.Option(help="Only of this pod.")] = None,
    resource_state: Annotated[
        ResourceState | None, typer.Option(help="Only those that are so.")
    ] = None,
    status: Annotated[HostStatus | None, typer.Option(help="Only those that are seen so.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only those that have this tag.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the hosts that match all that is given."""
    filters = {
        "cluster": cluster,
        "zone": zone,
        "pod": pod,
        "resource_state": resource_state,
        "status": status,
        "tag": tag,
    }
    with connect() as api:
        items = api.all_items("hosts", **filters)
        if as_json:
            say_json(items)
            return
        hosts = [api.read(Host, item) for item in items]
    say_table(
        [
            *("NAME", "CLUSTER", "ADDRESS", "STATE", "STATUS", "CPUS", "MEMORY MIB", "VMS"),
            *("POWER", "FENCED FOR", "WHY NOT UP"),
        ],
        [
            [
                host.name,
                host.cluster,
                host.address,
                host.resource_state,
                host.status,
                host.facts.cpus if host.facts else None,
                host.facts.memory_mib if host.facts else None,
                host.usage.vms if host.usage else None,
                in_short(host.power) if host.power else None,
                host.fence,
                None if host.status is HostStatus.UP else host.status_reason,
            ]
            for host in hosts
        ],
    )


def show(name: HostArgument, as_json: JsonOption = False) -> None:
    """Show one host."""
    with connect() as api:
        answer = api.get("hosts", name)
        if as_json:
            say_json(answer)
            return
        host = api.read(Host, answer)
    parts = ("facts", "usage", "power")
    fields = [
        (field, value)
        for field, value in host
        if field not in parts and value not in ("", frozenset())
    ]
    fields += list(host.facts) if host.facts else []
    fields += _usage(host.usage) if host.usage else []
    fields += fields_of(host.power) if host.power else []
    say_fields((field.replace("_", " "), value) for field, value in fields)


def tag(
    name: HostArgument,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="TAG", help="Its tags; none clears them.")
    ] = None,
) -> None:
    """Give a host exactly these tags: evacuations move a VM whose policy asks for tags only to a
    host that has all of them."""
    with connect() as api:
        host = api.read(Host, api.put("hosts", name, "tags", body={"tags": tags or []}))
    say(f"The tags of {host.name}: {', '.join(sorted(host.tags)) or 'none'}.")


def check(name: HostArgument, as_json: JsonOption = False) -> None:
    """Look at a host now: whether it answers, and what runs there."""
    with connect() as api:
        answer = api.post("hosts", name, "check", body={}, within_s=_LOOK_WITHIN_S)
        sighting = api.read(HostSighting, answer)
    if as_json:
        say_json(answer)
    elif sighting.usage is not None:
        used = ", ".join(f"{field} {value}" for field, value in _usage(sighting.usage))
        say(f"{name} answers and is {sighting.status}: {used}.")
    if sighting.seen is not Seen.ANSWERED:
        raise Failed(
            f"{name}: {sighting.seen}: {sighting.problem}. Its status is {sighting.status}."
        )


def _usage(usage: HostUsage) -> list[tuple[str, object]]:
    return [
        ("vms", usage.vms),
        ("memory used mib", usage.memory_used_mib),
        ("cpus used", usage.cpus_used),
    ]


def _credential(
    login: str, password_file: str | None, private_key_file: str | None
) -> dict[str, str]:
    """The one field of the body that is secret. Raises InvalidInput."""
    given = from_files(password_file, private_key_file)
    if given:
        return given
    if sys.stdin.isatty():
        return {"password": typer.prompt(f"Password of {login}", hide_input=True, err=True)}
    raise InvalidInput(
        f"There is no password and no key for {login}.",
        remedy="Give --password-file FILE (`-` is stdin) or --private-key-file FILE.",
    )


def _wait(api: Api, started: Operation) -> HostAdditionResult:
    """Until the host is added, telling each phase. Raises Failed."""
    shown: tuple[Phase, str] | None = None

    def tell(operation: Operation) -> None:
        nonlocal shown
        if operation.details is None:
            return
        status = api.read(HostAdditionStatus, operation.details)
        if (status.phase, status.message) == shown:
            return
        shown = status.phase, status.message
        say(f"{status.name}: {status.phase}: {status.message}")
        if status.phase is Phase.QUESTION and status.host_key_sha256 is not None:
            _ask(api, started, status.host_key_sha256)

    ended = until_closed(api, started, say=note, while_running=tell)
    if ended.status == COMPLETED:
        return api.read(HostAdditionResult, ended.details)
    if ended.error_type == "PreflightFailed":
        refusal = api.read(Findings, ended.details)
        _say_findings(refusal.findings)
        said = f"{ended.subject} is not added: {_in_short(refusal.findings)}."
        raise Failed(" ".join((said, *refusal.remains)))
    raise Failed(why(ended))


def _in_short(findings: tuple[Finding, ...]) -> str:
    """Of findings that stand in the way."""
    codes = ", ".join(finding.code for finding in errors_among(findings))
    return f"{codes} ({summary(findings)})"


def _say_findings(findings: tuple[Finding, ...]) -> None:
    """A line each, errors first."""
    for finding in sorted(findings, key=lambda one: one.severity is Severity.WARNING):
        say(str(finding))


def _ask(api: Api, started: Operation, fingerprint: str) -> None:
    """On a terminal, the operator answers now; else somebody does with the command shown."""
    name = started.subject
    if not sys.stdin.isatty():
        say(f"Compare it with the host's own, then: hostler host accept-key {name} {fingerprint}")
        return
    if typer.confirm(f"Is {fingerprint} the host's own key?", err=True):
        _accept(api, name, fingerprint)
        return
    api.delete("operations", started.kind, name)
    raise Failed(f"The host key was not accepted: {name} is not added.")


def _accept(api: Api, name: str, fingerprint: str) -> Any:
    return api.post("hosts", name, "host-key", body={"fingerprint": fingerprint})
