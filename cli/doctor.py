"""`hostler doctor`: why something does not work, in words."""

import typer

from cli.arguments import HostArgument, JsonOption
from cli.client import connect
from cli.output import say, say_json
from contracts.errors import Failed
from contracts.preflight import Severity, errors_among, summary
from contracts.tls_check import TlsReport

# What the API gives a worker, and a little more.
_LOOK_WITHIN_S = 100.0


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    commands = typer.Typer(name="doctor", help="What is wrong, and why.", no_args_is_help=True)
    commands.callback()(_doctor)
    commands.command("tls")(tls)
    app.add_typer(commands)


def _doctor() -> None:
    # With a single command, typer would leave its name out.
    pass


def tls(host: HostArgument, as_json: JsonOption = False) -> None:
    """Look at a host's TLS from here and there, and say why a handshake fails.

    Fails if anything is wrong; warnings alone are none.
    """
    with connect() as api:
        answer = api.post("hosts", host, "certificate", "check", body={}, within_s=_LOOK_WITHIN_S)
        report = api.read(TlsReport, answer)
    if as_json:
        say_json(answer)
    else:
        for finding in sorted(report.findings, key=lambda one: one.severity is Severity.WARNING):
            say(str(finding))
    problems = errors_among(report.findings)
    if problems:
        codes = ", ".join(finding.code for finding in problems)
        raise Failed(f"TLS of {host} does not work: {codes} ({summary(report.findings)}).")
    if not as_json:
        until = f", until {report.not_after:%Y-%m-%d %H:%M} UTC" if report.not_after else ""
        say(f"TLS of {host} works: it shows the certificate {report.shown_serial}{until}.")
