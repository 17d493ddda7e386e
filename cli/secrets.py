"""`hostler secret`: stored credentials, as far as they may be told; and one in clear, in need."""

import sys
from typing import Annotated, Any

import typer

from cli.arguments import JsonOption
from cli.client import Api, connect
from cli.output import note, say_json, say_table
from cli.passwords import stage
from contracts.errors import InvalidInput, NotFound
from contracts.secrets import DisclosedSecret, SecretState, StoredSecret

HostOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of this host.")]
ClusterOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of this cluster.")]


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands to `app`; the group, for those that run on this machine."""
    commands = typer.Typer(
        name="secret", help="Stored credentials of hosts and clusters.", no_args_is_help=True
    )
    commands.command("list")(list_all)
    commands.command("show")(show)
    commands.command("stage")(stage)
    app.add_typer(commands)
    return commands


def list_all(
    host: HostOption = None, cluster: ClusterOption = None, as_json: JsonOption = False
) -> None:
    """List the credentials of a host or of a cluster, none of them in clear."""
    with connect() as api:
        items = _items(api, host, cluster)
        if as_json:
            say_json(items)
            return
        secrets = [api.read(StoredSecret, item) for item in items]
    say_table(
        ["ID", "KIND", "STATE", "ACCOUNT", "VERSION", "MASTER KEY", "STORED AT", "HOSTS"],
        [
            [
                *(secret.id, secret.kind, secret.state, secret.account, secret.version),
                *(secret.key_id, secret.created_at, ", ".join(secret.hosts)),
            ]
            for secret in secrets
        ],
    )


def show(
    reason: Annotated[str, typer.Option(help="Why it has to be seen; kept in the audit trail.")],
    secret: Annotated[
        str | None, typer.Argument(metavar="ID", help="As `secret list` has it.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of ID: this host's password.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of ID: this cluster's password.")
    ] = None,
) -> None:
    """Print a credential in clear, for when nothing else helps: needs the role admin, and leaves an
    event that says who did it and why."""
    if (secret, host, cluster).count(None) != 2:
        raise InvalidInput("Give one of ID, --host and --cluster.")
    with connect() as api:
        wanted = secret or _current_password(api, host, cluster)
        answer = api.post("secrets", wanted, "disclosure", body={"reason": reason})
        disclosed = api.read(DisclosedSecret, answer)
    note(f"The {disclosed.kind} {disclosed.id}; that it was shown is in the audit trail.")
    # typer's echo would leave out what steers a terminal, and so change it.
    sys.stdout.write(f"{disclosed.plaintext}\n")


def _items(api: Api, host: str | None, cluster: str | None) -> list[Any]:
    if host is not None and cluster is None:
        return api.items("hosts", host, "secrets")
    if cluster is not None and host is None:
        return api.items("clusters", cluster, "secrets")
    raise InvalidInput("Give one of --host and --cluster.")


def _current_password(api: Api, host: str | None, cluster: str | None) -> str:
    subject = f"--host {host}" if host is not None else f"--cluster {cluster}"
    found = [
        secret.id
        for secret in (api.read(StoredSecret, item) for item in _items(api, host, cluster))
        if secret.kind == "password" and secret.state is SecretState.CURRENT and secret.id
    ]
    if len(found) != 1:
        raise NotFound(
            f"{'No' if not found else 'More than one'} current password is stored there.",
            remedy=f"Choose an ID: hostler secret list {subject}",
        )
    return found[0]
