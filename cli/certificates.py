"""`hostler cert` and `hostler ca`: certificates, and the authority that issues them."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from cli import rollovers
from cli.arguments import (
    ClusterArgument,
    HostArgument,
    JsonOption,
    QemuOfClusterOption,
    check_optional_name,
)
from cli.client import Api, connect
from cli.credentials import check_file, read_file
from cli.output import note, say, say_fields, say_json, say_table
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.certificate_upkeep import HostCrls
from contracts.certificates import (
    Authority,
    Certificate,
    CertificateProvisioningResult,
    CertificateRevocationResult,
    CertificateRole,
    CertificateSigningResult,
    CertificatesPem,
    CertificateState,
    ClusterCertificatesResult,
    ClusterCertificatesStatus,
    RequestPem,
    RevocationReason,
    SecuredHost,
)
from contracts.errors import Failed, InvalidInput, Unavailable
from contracts.operations import Operation

# A worker that is there takes an operation up at once.
_NO_WORKER_S = 15.0

_REQUEST: TypeAdapter[str] = TypeAdapter(RequestPem)
_CHAIN: TypeAdapter[str] = TypeAdapter(CertificatesPem)

SerialArgument = Annotated[
    str, typer.Argument(metavar="SERIAL", help="Its serial number, hexadecimal.")
]
ReasonOption = Annotated[
    RevocationReason,
    typer.Option(metavar="REASON", help=f"One of {', '.join(RevocationReason)}."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", dir_okay=False, help="Write it there, not to stdout."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    certificates = typer.Typer(
        name="cert", help="Certificates of hosts, and of Hostler.", no_args_is_help=True
    )
    certificates.command("list")(list_all)
    certificates.command("show")(show)
    certificates.command("provision")(provision)
    certificates.command("secure")(secure)
    certificates.command("sign")(sign)
    certificates.command("revoke")(revoke)
    app.add_typer(certificates)
    authority = typer.Typer(
        name="ca", help="The authority that issues certificates.", no_args_is_help=True
    )
    authority.command("show")(show_authority)
    authority.command("create")(create)
    authority.command("import")(import_authority)
    authority.command("chain")(chain)
    authority.command("crl")(crl)
    authority.command("hosts")(hosts)
    rollovers.register(authority)
    app.add_typer(authority)


def list_all(
    host: Annotated[
        str | None,
        typer.Option(metavar="NAME", callback=check_optional_name, help="Only those of this host."),
    ] = None,
    state: Annotated[CertificateState | None, typer.Option(help="Only these.")] = None,
    expires_within: Annotated[
        int | None,
        typer.Option(metavar="DAYS", min=0, help="Only those that end until then."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the certificates that were issued, those that expire first on top."""
    until = None
    if expires_within is not None:
        until = (datetime.now(UTC) + timedelta(days=expires_within)).isoformat()
    with connect() as api:
        items = api.all_items("certificates", host=host, state=state, expires_before=until)
        if as_json:
            say_json(items)
            return
        found = [api.read(Certificate, item) for item in items]
    now = datetime.now(UTC)
    say_table(
        ["HOST", "ROLE", "STATE", "INSTALLED", "EXPIRES", "SERIAL"],
        [
            [one.host, one.role, one.state(now), one.installed_at, one.not_after, one.serial]
            for one in sorted(found, key=lambda one: (one.not_after, one.serial))
        ],
    )


def show(serial: SerialArgument, as_json: JsonOption = False) -> None:
    """Show one certificate."""
    with connect() as api:
        answer = api.get("certificates", serial)
        if as_json:
            say_json(answer)
            return
        one = api.read(Certificate, answer)
    say_fields(
        [
            ("serial", one.serial),
            ("host", one.host),
            ("role", one.role),
            ("state", one.state(datetime.now(UTC))),
            ("subject", one.subject),
            ("names", ", ".join((*one.dns_names, *one.ip_addresses)) or None),
            ("from", one.not_before),
            ("until", one.not_after),
            ("issued by", f"{one.provider} (generation {one.generation}), {one.issued_by}"),
            ("key sha256", one.key_sha256),
            ("revoked at", one.revoked_at),
            ("reason", one.revocation_reason),
            ("installed at", one.installed_at),
        ]
    )
    typer.echo(one.pem, nl=False)


def provision(
    host: HostArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="For the audit trail.")] = "",
) -> None:
    """Give a host keys and certificates of its own, or new ones; its VMs run on.

    From then on its libvirtd takes TLS connections of its cluster's hosts and of Hostler, and no
    plain ones. If a step fails, it has what it had before.
    """
    with connect() as api:
        answer = api.post("hosts", host, "certificate", body={"reason": reason})
        result = api.read(CertificateProvisioningResult, _wait(api, api.read(Operation, answer)))
    say_fields([("libvirt", result.libvirt), ("qemu", result.qemu), ("until", result.not_after)])


def secure(
    cluster: ClusterArgument,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="For the audit trail.")] = "",
) -> None:
    """Have all hosts of a cluster take and give VMs by TLS only; VMs run on, and may migrate.

    First each host that has none gets certificates; when all have some, each is secured. Whatever
    ends it, it goes on from there when it is started again.
    """
    told: dict[str, SecuredHost] = {}

    def tell(operation: Operation) -> None:
        if operation.details is None:
            return
        status = ClusterCertificatesStatus.model_validate(operation.details)
        for one in status.hosts:
            if told.get(one.host) != one:
                told[one.host] = one
                note(f"{one.host}: {one.state}" + (f": {one.error}" if one.error else ""))

    with connect() as api:
        answer = api.post("clusters", cluster, "certificates", body={"reason": reason})
        ended = _wait(api, api.read(Operation, answer), tell)
        result = api.read(ClusterCertificatesResult, ended)
    say(f"{len(result.hosts)} hosts of {cluster} take and give VMs by TLS only.")


def sign(
    csr_file: Annotated[
        str,
        typer.Option(metavar="FILE", help="The signing request (PKCS #10, PEM); `-` is stdin."),
    ],
    host: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST",
            callback=check_optional_name,
            help="Whom it is for; nobody in the role controller.",
        ),
    ] = None,
    role: Annotated[
        CertificateRole, typer.Option(help=f"One of {', '.join(CertificateRole)}.")
    ] = CertificateRole.HOST,
    out: OutOption = None,
) -> None:
    """Have a signing request signed for the names that the inventory has of a host.

    Prints the certificate, then the CAs between it and the root, which is left out.
    """
    if (role is CertificateRole.CONTROLLER) == (host is not None):
        raise InvalidInput("Every role needs a HOST, but controller, which takes none.")
    csr = check_file("--csr-file", _REQUEST, read_file("--csr-file", csr_file))
    body = {"host": host, "role": role.value, "csr": csr}
    with connect() as api:
        started = api.read(Operation, api.post("certificates", body=body))
        result = api.read(CertificateSigningResult, _wait(api, started))
    _put(result.certificate.pem + "".join(result.chain[:-1]), out)
    note(f"Certificate {result.certificate.serial} is issued.")


def revoke(
    serial: Annotated[
        str | None, typer.Argument(metavar="[SERIAL]", help="Its serial number, hexadecimal.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=check_optional_name,
            help="All valid ones of this host instead.",
        ),
    ] = None,
    reason: ReasonOption = RevocationReason.UNSPECIFIED,
) -> None:
    """Revoke a certificate, or all of a host: there is no way back."""
    if (serial is None) == (host is None):
        raise InvalidInput("Give either a SERIAL or --host.")
    path = ("certificates", serial) if serial is not None else ("hosts", host or "", "certificate")
    with connect() as api:
        answer = api.post(*path, "revocation", body={"reason": reason.value})
        started = api.read(Operation, answer)
        result = api.read(CertificateRevocationResult, _wait(api, started))
    say(f"Revoked: {', '.join(result.serials)}.")
    for provider, facts in result.crls.items():
        say(f"Revocation list {facts.number} of {provider} has {facts.revoked} entries.")
    if result.delivered:
        say(f"Hosts that have got it: {', '.join(result.delivered)}.")
    for name, problem in result.missing.items():
        say(f"{name} has not got it yet: {problem}")


def show_authority(cluster: QemuOfClusterOption = None, as_json: JsonOption = False) -> None:
    """Show what issues certificates now."""
    with connect() as api:
        answer = api.get("ca", cluster=cluster)
        if as_json:
            say_json(answer)
            return
        one = api.read(Authority, answer)
    _say_authority(one)


def create() -> None:
    """Have the provider make its CA, unless it has one."""
    with connect() as api:
        started = api.read(Operation, api.post("ca", body={}))
        _say_authority(api.read(Authority, _wait(api, started)))


def import_authority(
    key_file: Annotated[
        str, typer.Option(metavar="FILE", help="Its private key (PEM); `-` is stdin.")
    ],
    chain_file: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Its chain (PEM): the certificate of that key first, a self-signed one last.",
        ),
    ],
) -> None:
    """Issue with your own CA, which may be an intermediate one, from now on.

    It has to be Hostler's alone: lists of what it has revoked elsewhere are not continued.
    """
    body = {
        "chain": check_file("--chain-file", _CHAIN, read_file("--chain-file", chain_file)),
        "private_key": read_file("--key-file", key_file),
    }
    with connect() as api:
        started = api.read(Operation, api.post("ca", body=body))
        _say_authority(api.read(Authority, _wait(api, started)))


def chain(
    out: OutOption = None,
    trusted: Annotated[
        bool,
        typer.Option(
            "--trusted", help="Of all CAs that hosts are to trust now: two, during a rollover."
        ),
    ] = False,
    cluster: QemuOfClusterOption = None,
) -> None:
    """Print the CA's chain in PEM: the issuing certificate first, the root last."""
    with connect() as api:
        _put(api.text("ca", "chain", trusted=str(trusted).lower(), cluster=cluster), out)


def crl(out: OutOption = None, cluster: QemuOfClusterOption = None) -> None:
    """Print the newest revocation lists in PEM: those of all CAs whose certificates are in use;
    with --cluster, as hosts of that one have them."""
    with connect() as api:
        _put(api.text("ca", "crl", format="pem", cluster=cluster), out)


def hosts(
    missing: Annotated[
        bool, typer.Option("--missing", help="Only those that do not have the newest ones.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which revocation lists hosts go by; those that are away get them when they are back."""
    with connect() as api:
        items = [
            item
            for item in api.all_items("ca", "crl", "hosts")
            if not (missing and api.read(HostCrls, item).current)
        ]
        if as_json:
            say_json(items)
            return
        found = [api.read(HostCrls, item) for item in items]
    say_table(
        ["HOST", "LISTS", "NEWEST", "SINCE", "PROBLEM"],
        [
            [
                one.host,
                ", ".join(f"{name}: {number}" for name, number in sorted(one.lists.items())),
                "yes" if one.current else "no",
                one.delivered_at,
                one.problem or None,
            ]
            for one in found
        ],
    )


def _say_authority(one: Authority) -> None:
    listed = one.crl and (
        f"number {one.crl.number}, {one.crl.revoked} revoked, until "
        f"{one.crl.next_update.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    )
    say_fields(
        [
            ("provider", one.provider),
            ("generation", one.generation),
            ("state", one.state),
            ("origin", one.origin),
            ("subject", one.subject),
            ("sha256", one.sha256),
            ("from", one.not_before),
            ("until", one.not_after),
            ("certificates", len(one.chain)),
            ("crl", listed),
        ]
    )


def _wait(
    api: Api, started: Operation, tell: Callable[[Operation], None] = lambda _: None
) -> dict[str, Any] | None:
    """What it ended with; `tell` gets to see it from time to time while it runs. Raises Failed;
    Unavailable if nobody does the work."""
    look = f"hostler operation show {started.kind} '{started.subject}'"
    deadline: float | None = time.monotonic() + _NO_WORKER_S

    def watch(operation: Operation) -> None:
        nonlocal deadline
        tell(operation)
        if operation.details is not None:
            deadline = None
        elif deadline is not None and time.monotonic() > deadline:
            raise Unavailable(
                f"The {started.kind} has started, but no worker takes it up.",
                remedy=f"Start one with `hostler worker`, and it goes on by itself: {look}",
            )

    with interruptible(f"The {started.kind} goes on: {look}"):
        ended = until_closed(api, started, say=note, while_running=watch)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    return ended.details


def _put(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    # libvirtd does not start with half a file.
    new = out.with_name(f".{out.name}.new")
    try:
        with new.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(out)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise InvalidInput(f"{out} can't be written: {error.strerror}.") from error
