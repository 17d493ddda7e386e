"""`hostler host`: bring hosts into the inventory and look at them."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.arguments import HostArgument, JsonOption, NameArgument
from cli.client import Api, connect
from cli.output import note, say, say_fields, say_json, say_table
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.addition import HostAdditionResult, HostAdditionStatus
from contracts.errors import Failed, InvalidInput
from contracts.hosts import Host
from contracts.operations import Operation
from contracts.states import Phase


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(name="host", help="Hypervisor hosts.", no_args_is_help=True)
    commands.command("add")(add)
    commands.command("accept-key")(accept_key)
    commands.command("list")(list_all)
    commands.command("show")(show)
    commands.command("tag")(tag)
    app.add_typer(commands)


def add(
    name: NameArgument,
    cluster: Annotated[str, typer.Option(help="The cluster that it joins.")],
    address: Annotated[str, typer.Option(help="IP address of its SSH server.")],
    ssh_port: Annotated[int, typer.Option(help="Port of its SSH server.")] = 22,
    user: Annotated[str, typer.Option(help="Who logs in there.")] = "root",
    password_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File with the user's password; `-` is stdin."),
    ] = None,
    private_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the user's private SSH key.")
    ] = None,
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
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the addition has started.")
    ] = False,
) -> None:
    """Add a host: pin its host key, read its facts, install the fence, put it into service.

    The password or key is read from a file or, on a terminal, asked for; never an argument.
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
    say(f"{added.name} is {added.resource_state}.")


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
    as_json: JsonOption = False,
) -> None:
    """List the hosts."""
    with connect() as api:
        items = api.items("hosts", cluster=cluster)
        if as_json:
            say_json(items)
            return
        hosts = [api.read(Host, item) for item in items]
    say_table(
        ["NAME", "CLUSTER", "ADDRESS", "STATE", "STATUS", "CPUS", "MEMORY MIB", "FENCED FOR"],
        [
            [
                host.name,
                host.cluster,
                host.address,
                host.resource_state,
                host.status,
                host.facts.cpus if host.facts else None,
                host.facts.memory_mib if host.facts else None,
                host.fence,
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
    fields = [(field, value) for field, value in host if field != "facts" and value != frozenset()]
    fields += list(host.facts) if host.facts else []
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


def _credential(
    login: str, password_file: str | None, private_key_file: str | None
) -> dict[str, str]:
    """The one field of the body that is secret. Raises InvalidInput."""
    if password_file is not None and private_key_file is not None:
        raise InvalidInput("Give --password-file or --private-key-file, not both.")
    if private_key_file is not None:
        return {"private_key": _read("--private-key-file", private_key_file)}
    if password_file is not None:
        # A line break at the end is the editor's.
        return {"password": _read("--password-file", password_file).rstrip("\r\n")}
    if sys.stdin.isatty():
        return {"password": typer.prompt(f"Password of {login}", hide_input=True, err=True)}
    raise InvalidInput(
        f"There is no password and no key for {login}.",
        remedy="Give --password-file FILE (`-` is stdin) or --private-key-file FILE.",
    )


def _read(option: str, name: str) -> str:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{option} {name} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        # The error itself would show what is in the file.
        raise InvalidInput(f"{option} {name} is no text in UTF-8.") from None
    if not text.strip():
        raise InvalidInput(f"{option} {name} is empty.")
    return text


def _wait(api: Api, started: Operation) -> HostAdditionResult:
    """Until the host is added, telling each phase. Raises Failed."""
    shown: HostAdditionStatus | None = None

    def tell(operation: Operation) -> None:
        nonlocal shown
        if operation.details is None:
            return
        status = api.read(HostAdditionStatus, operation.details)
        if status == shown:
            return
        shown = status
        say(f"{status.name}: {status.phase}: {status.message}")
        if status.phase is Phase.QUESTION and status.host_key_sha256 is not None:
            _ask(api, started, status.host_key_sha256)

    ended = until_closed(api, started, say=note, while_running=tell)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    return api.read(HostAdditionResult, ended.details)


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
