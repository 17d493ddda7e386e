"""`hostler oobm`: how hosts' BMCs are reached, and where out-of-band management is enabled."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.arguments import HostArgument, JsonOption, check_name
from cli.client import Api, connect
from cli.credentials import from_files
from cli.output import note, say, say_fields, say_json, say_table
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.errors import Failed, InvalidInput
from contracts.oobm import BmcLook, HostPower, Oobm, OobmOverview, OobmSwitch
from contracts.operations import Operation
from contracts.power import BmcPrivilege
from contracts.power_actions import BmcPasswordChangeResult

# What the API gives a worker, and a little more.
_LOOK_WITHIN_S = 110.0

DriverOption = Annotated[
    str | None, typer.Option(help="ipmi, ipmitool, redfish, or one that was installed beside.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="IP address or name of the BMC, not of the host.")
]
PortOption = Annotated[
    int | None, typer.Option(metavar="N", help="[default: the driver's: 623 for IPMI]")
]
UserOption = Annotated[str | None, typer.Option(help="Who logs in to the BMC.")]
BmcPasswordFileOption = Annotated[
    str | None,
    typer.Option("--password-file", metavar="FILE", help="File with its password; `-` is stdin."),
]
PrivilegeOption = Annotated[BmcPrivilege | None, typer.Option(help="As what it logs in.")]
CipherSuiteOption = Annotated[
    int | None, typer.Option(metavar="N", help="IPMI's number of a cipher suite.")
]
CertificateOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Certificate in PEM that has signed the BMC's, or is it (redfish)."
    ),
]


class Unset(StrEnum):
    """What may be taken back."""

    PORT = "port"
    CIPHER_SUITE = "cipher-suite"
    CERTIFICATE = "certificate"


UnsetOption = Annotated[
    list[Unset] | None,
    typer.Option(
        help="Take back what was given before: the driver's own choice holds, and the "
        "certificates that the worker's machine trusts. May be repeated."
    ),
]
ClusterOption = Annotated[str | None, typer.Option(help="A cluster, in the place of a host.")]
ZoneOption = Annotated[str | None, typer.Option(help="A zone, in the place of a host.")]
OptionalHostArgument = Annotated[
    str | None, typer.Argument(metavar="[HOST]", help="The host's name.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(
        name="oobm", help="Out-of-band management: the BMCs of hosts.", no_args_is_help=True
    )
    commands.command("configure")(configure)
    commands.command("show")(show)
    commands.command("test")(look)
    commands.command("enable")(enable)
    commands.command("disable")(disable)
    commands.command("change-password")(change_password)
    commands.command("delete")(delete)
    app.add_typer(commands)


def configure(
    host: HostArgument,
    address: AddressOption = None,
    user: UserOption = None,
    password_file: BmcPasswordFileOption = None,
    driver: DriverOption = None,
    port: PortOption = None,
    privilege: PrivilegeOption = None,
    cipher_suite: CipherSuiteOption = None,
    certificate_file: CertificateOption = None,
    unset: UnsetOption = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Switch it on, or off.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how the BMC of a host is reached. What is not given stays as it is; the first time,
    address, user and password are needed.

    The password is read from a file; never an argument. `hostler oobm test` shows whether it is
    right.
    """
    asked = _asked(
        address, user, password_file, driver, port, privilege, cipher_suite, certificate_file
    )
    for one in unset or ():
        field = one.replace("-", "_")
        if asked.get(field) is not None:
            raise InvalidInput(f"--unset {one} does not go with another {one}: give one of both.")
        asked[field] = None
    if enabled is not None:
        asked["enabled"] = enabled
    if not asked:
        raise InvalidInput("There is nothing to change: give at least one option.")
    with connect() as api:
        first = {"address", "user", "password"} <= asked.keys() and not _is_configured(api, host)
        send = api.put if first else api.patch
        answer = send("hosts", host, "oobm", body=asked)
        configured = api.read(Oobm, answer)
    if as_json:
        say_json(answer)
        return
    say(f"The BMC of {host} is at {configured.address}, by {configured.driver}.")
    if not configured.enabled:
        say(f"It is not asked yet: hostler oobm enable {host}")


def show(
    host: OptionalHostArgument = None,
    cluster: ClusterOption = None,
    zone: ZoneOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how the BMC of a host is reached and what it last said; whether it is enabled for a
    cluster or zone; or, with nothing, how all BMCs stand and the latest rounds."""
    with connect() as api:
        if host is None and cluster is None and zone is None:
            answer = api.get("oobm")
            overview = api.read(OobmOverview, answer)
            if as_json:
                say_json(answer)
            else:
                _say_overview(overview)
            return
        path = _subject(host, cluster, zone)
        answer = api.get(*path)
        if as_json:
            say_json(answer)
        elif host is not None:
            _say_oobm(api.read(Oobm, answer))
        else:
            _say_switch(path[0], api.read(OobmSwitch, answer))


def look(
    host: HostArgument,
    address: AddressOption = None,
    user: UserOption = None,
    password_file: BmcPasswordFileOption = None,
    driver: DriverOption = None,
    port: PortOption = None,
    privilege: PrivilegeOption = None,
    cipher_suite: CipherSuiteOption = None,
    certificate_file: CertificateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Log in to the BMC of a host and look: reachable, login, privilege, power. By its
    configuration, or with what is given in its place; nothing is stored."""
    asked = _asked(
        address, user, password_file, driver, port, privilege, cipher_suite, certificate_file
    )
    with connect() as api:
        answer = api.post("hosts", host, "oobm", "test", body=asked, within_s=_LOOK_WITHIN_S)
        shown = api.read(BmcLook, answer)
    if as_json:
        say_json(answer)
    else:
        say_fields(
            (name.replace("_", " "), _word(value)) for name, value in shown if name != "problem"
        )
    if shown.problem is not None:
        raise Failed(f"{host}: {shown.problem.rstrip('.')}.")


def enable(
    host: OptionalHostArgument = None, cluster: ClusterOption = None, zone: ZoneOption = None
) -> None:
    """Enable out-of-band management of a host, a cluster or a zone: in force where all three are
    enabled."""
    _switch(_subject(host, cluster, zone), enabled=True)


def disable(
    host: OptionalHostArgument = None, cluster: ClusterOption = None, zone: ZoneOption = None
) -> None:
    """Disable it: BMCs are neither asked nor told anything; their power state is Disabled."""
    _switch(_subject(host, cluster, zone), enabled=False)


def change_password(
    host: HostArgument,
    password_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File with the new password; `-` is stdin. [default: a random one]"
        ),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as it has started.")
    ] = False,
) -> None:
    """Give the BMC of a host another password. The old one is kept until the new one is proven; it
    is not shown."""
    body = {"reason": reason, **from_files(password_file, None)}
    with connect() as api:
        started = api.read(Operation, api.post("hosts", host, "oobm", "password", body=body))
        look = f"hostler operation show {started.kind} {host}"
        if no_wait:
            say(f"The password of the BMC of {host} is being changed. See how it goes: {look}")
            return
        with interruptible(f"The change goes on: {look}"):
            ended = until_closed(api, started, say=note, while_running=lambda _: None)
        if ended.status != COMPLETED:
            raise Failed(why(ended))
        result = api.read(BmcPasswordChangeResult, ended.details)
    say(f"The BMC of {host} has a new password, proven by {result.proof}.")


def delete(host: HostArgument) -> None:
    """Delete how the BMC of a host is reached, with its password."""
    with connect() as api:
        api.delete("hosts", host, "oobm")
    say(f"{host} has no out-of-band management any more.")


# --- what is shown of power, here and of hosts --------------------------------------------------


def in_short(power: HostPower) -> str:
    """In one cell of a table."""
    return f"{power.state} (stale)" if power.stale else power.state.value


def fields_of(power: HostPower) -> list[tuple[str, object]]:
    """In lines of their own."""
    return [
        ("power", in_short(power)),
        ("power since", power.since),
        ("power observed at", power.observed_at),
        ("power not known", power.problem),
        ("power problem", power.reason or None),
        ("BMC failures", power.failures or None),
        ("BMC asked again at", power.next_try_at),
        ("OOBM disabled by", ", ".join(power.disabled_by) or None),
    ]


def _say_oobm(found: Oobm) -> None:
    say_fields(
        [
            *(
                (name.replace("_", " "), _word(value))
                for name, value in found
                if name not in ("power", "certificate")
            ),
            ("certificate", "yes" if found.certificate else None),
            *fields_of(found.power),
        ]
    )


def _say_overview(overview: OobmOverview) -> None:
    say_table(
        ["POWER", "WHY NOT KNOWN", "HOSTS"],
        [[count.state, count.problem, count.hosts] for count in overview.counts],
    )
    if overview.rounds:
        say_table(
            ["ROUND AT", "SECONDS", "ASKED", "ANSWERED", "WAITING", "CHANGED", "OLDEST ANSWER"],
            [
                [
                    round_.started_at,
                    f"{round_.seconds:.1f}",
                    round_.asked,
                    round_.answered,
                    round_.waiting,
                    round_.changed,
                    round_.oldest_observed_at,
                ]
                for round_ in overview.rounds
            ],
        )


def _say_switch(level: str, switch: OobmSwitch) -> None:
    state = "enabled" if switch.enabled else "disabled"
    say(
        f"Out-of-band management of the {level.rstrip('s')} {switch.name} is {state}; "
        f"{switch.hosts} of its hosts have any."
    )


def _word(value: object) -> object:
    """Booleans as people say them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value


def _is_configured(api: Api, host: str) -> bool:
    answer = api.get("hosts", host)
    return isinstance(answer, dict) and answer.get("power") is not None


def _subject(host: str | None, cluster: str | None, zone: str | None) -> tuple[str, str, str]:
    """Path of the one that is given. Raises InvalidInput."""
    given = [
        (level, name)
        for level, name in (("hosts", host), ("clusters", cluster), ("zones", zone))
        if name is not None
    ]
    if len(given) != 1:
        raise InvalidInput("Give either a host, or --cluster, or --zone.")
    level, name = given[0]
    return level, check_name(name), "oobm"


def _switch(path: tuple[str, str, str], *, enabled: bool) -> None:
    level, name, _ = path
    with connect() as api:
        answer = api.patch(*path, body={"enabled": enabled})
        if level != "hosts":
            _say_switch(level, api.read(OobmSwitch, answer))
            return
        power = api.read(Oobm, answer).power
    if not enabled:
        say(f"Out-of-band management of the host {name} is disabled.")
    elif power.disabled_by:
        say(f"Enabled for {name}, but not in force: {', '.join(power.disabled_by)}.")
    else:
        say(f"Out-of-band management of the host {name} is enabled; the next round asks its BMC.")


def _asked(
    address: str | None,
    user: str | None,
    password_file: str | None,
    driver: str | None,
    port: int | None,
    privilege: BmcPrivilege | None,
    cipher_suite: int | None,
    certificate_file: str | None,
) -> dict[str, Any]:
    """What is given, as fields of a body."""
    fields = {
        "address": address,
        "user": user,
        "driver": driver,
        "port": port,
        "privilege": privilege,
        "cipher_suite": cipher_suite,
        "certificate": _certificate(certificate_file),
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return {**given, **from_files(password_file, None)}


def _certificate(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--certificate-file {name} can't be read: {error}.") from error
