"""`hostler secret`: stored credentials, as far as they may be told; and one in clear, in need."""

import sys
from typing import Annotated, Any

import typer

from cli.arguments import JsonOption
from cli.client import Api, connect
from cli.output import note, say_json, say_table
from cli.passwords import stage
from contracts.errors import Conflict, InvalidInput, NotFound
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
    host: HostOption = None,
    cluster: ClusterOption = None,
    removed: Annotated[
        int | None, typer.Option(metavar="ID", help="Of this one of `hostler host removed`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the credentials of a host, of a cluster, or what is kept of a removed host; none of them
    in clear. Of a host, the likeliest first."""
    with connect() as api:
        items = _items(api, host, cluster, removed)
        if as_json:
            say_json(items)
            return
        secrets = [api.read(StoredSecret, item) for item in items]
    say_table(
        ["ID", "KIND", "STATE", "ACCOUNT", "VERSION", "MASTER KEY", "STORED AT", "HOSTS", "MAYBE"],
        [
            [
                *(secret.id, secret.kind, secret.state, secret.account, secret.version),
                *(secret.key_id, secret.created_at, ", ".join(secret.hosts)),
                ", ".join(secret.attempted_on),
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
    account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this account, where several have one.")
    ] = None,
) -> None:
    """Print a credential in clear, for when nothing else helps: needs the role admin, and leaves an
    event that says who did it and why."""
    if (secret, host, cluster).count(None) != 2:
        raise InvalidInput("Give one of ID, --host and --cluster.")
    if secret is not None and account is not None:
        raise InvalidInput("Give --account with --host or --cluster.")
    with connect() as api:
        wanted = secret or _current_password(api, host, cluster, account)
        answer = api.post("secrets", wanted, "disclosure", body={"reason": reason})
        disclosed = api.read(DisclosedSecret, answer)
    note(f"The {disclosed.kind} {disclosed.id}; that it was shown is in the audit trail.")
    # typer's echo would leave out what steers a terminal, and so change it.
    sys.stdout.write(f"{disclosed.plaintext}\n")


def _items(
    api: Api, host: str | None, cluster: str | None, removed: int | None = None
) -> list[Any]:
    if (host, cluster, removed).count(None) != 2:
        raise InvalidInput("Give one of --host, --cluster and --removed.")
    if removed is not None:
        return api.items("removed-hosts", str(removed), "secrets")
    if host is not None:
        return api.items("hosts", host, "secrets")
    return api.items("clusters", str(cluster), "secrets")


def _current_password(api: Api, host: str | None, cluster: str | None, account: str | None) -> str:
    subject = f"--host {host}" if host is not None else f"--cluster {cluster}"
    passwords = [
        secret
        for secret in (api.read(StoredSecret, item) for item in _items(api, host, cluster))
        if secret.kind == "password" and account in (None, secret.account)
    ]
    if host is not None and any(secret.attempted_on for secret in passwords):
        raise Conflict(
            f"A change of a password of {host} was cut off: it may be one of several.",
            remedy=f"Try them in this order, by ID: hostler secret list {subject}",
        )
    found = [secret for secret in passwords if secret.state is SecretState.CURRENT and secret.id]
    if len(found) != 1:
        accounts = sorted({secret.account for secret in found if secret.account})
        several = f" (of {', '.join(accounts)})" if accounts else ""
        raise NotFound(
            f"{'No' if not found else 'More than one'} current password is stored there{several}.",
            remedy=f"Give --account, or choose an ID: hostler secret list {subject}",
        )
    return str(found[0].id)
