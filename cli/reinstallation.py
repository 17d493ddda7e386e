"""`hostler host reinstall`: give a host a new installation, and answer what that asks."""

import shlex
import sys
from typing import Annotated, Any

import typer

from cli.arguments import (
    DryRunOption,
    HostArgument,
    JsonOption,
    MaxParallelOption,
    NoQueueOption,
    OnBlockerOption,
    YesOption,
)
from cli.client import Api, connect
from cli.credentials import PasswordFileOption, PrivateKeyFileOption, from_files
from cli.output import note, say, say_json, say_table
from cli.waiting import COMPLETED, interruptible, until_closed, why
from contracts.errors import Failed, InvalidInput
from contracts.maintenance import OnBlocker
from contracts.operations import Operation
from contracts.reinstallation import HostReinstallationResult, HostReinstallationStatus
from contracts.states import Phase

AcceptHostKeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256:...",
        help="Fingerprint of its new host key, as `ssh-keygen -lf` prints it on the host.",
    ),
]
InstallPackagesOption = Annotated[
    bool,
    typer.Option(
        "--install-packages", help="Install libvirt's daemon and QEMU where they are missing."
    ),
]


def register(commands: typer.Typer) -> None:
    """Add the commands to those of `hostler host`."""
    commands.command("reinstall")(reinstall)
    commands.command("answer-reinstallation")(answer)


def reinstall(
    host: HostArgument,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    after_maintenance: Annotated[
        bool,
        typer.Option(
            "--after-maintenance", help="Take it out of service first: its VMs move away."
        ),
    ] = False,
    host_is_down: Annotated[
        bool,
        typer.Option(
            "--host-is-down",
            help="It is known to be off, or to be another installation already: it is taken out as "
            "it is.",
        ),
    ] = False,
    lose_vms: Annotated[
        bool,
        typer.Option(
            "--lose-vms", help="Also if VMs are defined there that are shut off: they are lost."
        ),
    ] = False,
    accept_host_key: AcceptHostKeyOption = None,
    password_file: PasswordFileOption = None,
    private_key_file: PrivateKeyFileOption = None,
    command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Run on it as root before its trust is withdrawn: what has it boot into an "
            "installer a minute later, say.",
        ),
    ] = None,
    network_boot: Annotated[
        bool,
        typer.Option(
            "--network-boot",
            help="When its trust was withdrawn, have it boot once from the network, by its BMC.",
        ),
    ] = False,
    install_packages: InstallPackagesOption = False,
    return_vms: Annotated[
        bool,
        typer.Option("--return-vms", help="Bring back what its last maintenance has moved."),
    ] = False,
    on_blocker: OnBlockerOption = OnBlocker.REFUSE,
    max_parallel: MaxParallelOption = None,
    no_queue: NoQueueOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return as soon as the re-installation has started.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a host into service again that gets a new installation: under its name, in its cluster,
    with its history.

    It must be in maintenance, or is put there. Then its old installation is trusted no more, and
    there is no way back: somebody, or something, installs it anew meanwhile, and it is waited for
    until it shows another SSH host key.
    """
    asked: dict[str, Any] = {
        "reason": reason,
        "after_maintenance": after_maintenance,
        "host_is_down": host_is_down,
        "lose_vms": lose_vms,
        "host_key_sha256": accept_host_key,
        "command": _words(command),
        "network_boot": network_boot,
        "install_packages": install_packages,
        "return_vms": return_vms,
        "dry_run": dry_run,
        "on_blocker": on_blocker,
        "max_parallel": max_parallel,
        "queue": not no_queue,
        **from_files(password_file, private_key_file),
    }
    if not (dry_run or yes) and sys.stdin.isatty():
        typer.confirm(
            f"Withdraw the trust in {host} as it is installed now? See --dry-run for what that "
            "does.",
            err=True,
            abort=True,
        )
    body = {field: value for field, value in asked.items() if value is not None}
    with connect() as api:
        started = api.read(Operation, api.post("hosts", host, "reinstallation", body=body))
        look = f"hostler operation show reinstallation {host}"
        if no_wait:
            say(f"The re-installation of {host} has started. See how it goes: {look}")
            return
        with interruptible(f"The re-installation of {host} goes on: {look}"):
            result = _wait(api, started, quiet=dry_run or as_json)
    if as_json:
        say_json(result.model_dump(mode="json"))
    elif dry_run:
        say_table(["ON", "EFFECT"], [[effect.kind, effect.message] for effect in result.effects])
        say(f"Nothing was changed on {host}.")
    else:
        _say_result(result)


def answer(
    host: HostArgument,
    accept_host_key: AcceptHostKeyOption = None,
    password_file: PasswordFileOption = None,
    private_key_file: PrivateKeyFileOption = None,
    install_packages: InstallPackagesOption = False,
    skip_command: Annotated[
        bool, typer.Option("--skip-command", help="Go on although the command has failed.")
    ] = False,
    skip_network_boot: Annotated[
        bool,
        typer.Option(
            "--skip-network-boot",
            help="Go on although its BMC has not had it boot from the network: you do it.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on although networks, bridges or storage pools that it had before are "
            "missing.",
        ),
    ] = False,
) -> None:
    """Answer what the re-installation of a host asks, or will ask. Without options: look again now.

    A host key is accepted after it was compared with the host's own.
    """
    asked: dict[str, Any] = {
        "host_key_sha256": accept_host_key,
        "install_packages": install_packages,
        "skip_command": skip_command,
        "skip_network_boot": skip_network_boot,
        "force": force,
        **from_files(password_file, private_key_file),
    }
    body = {field: value for field, value in asked.items() if value is not None}
    with connect() as api:
        api.post("hosts", host, "reinstallation", "answer", body=body)
    say(f"{host}: answered. See how it goes: hostler operation show reinstallation {host}")


def _words(command: str | None) -> list[str] | None:
    """As a shell splits it. Raises InvalidInput."""
    if command is None:
        return None
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InvalidInput(f"--command can't be read: {error}.") from error


def _wait(api: Api, started: Operation, *, quiet: bool) -> HostReinstallationResult:
    """Until the host is back, telling each step. Raises Failed."""
    shown = ""

    def tell(operation: Operation) -> None:
        nonlocal shown
        if quiet or operation.details is None:
            return
        status = api.read(HostReinstallationStatus, operation.details)
        line = f"{status.host}: {status.phase}: {status.message}"
        if line == shown:
            return
        shown = line
        say(line)
        if status.phase in (Phase.QUESTION, Phase.REINSTALLING):
            for finding in status.findings:
                say(str(finding))
            for command in status.commands:
                say(command)

    ended = until_closed(api, started, say=note, while_running=tell)
    if ended.status != COMPLETED:
        raise Failed(why(ended))
    return api.read(HostReinstallationResult, ended.details)


def _say_result(result: HostReinstallationResult) -> None:
    for finding in result.findings:
        say(str(finding))
    if result.lost_vms:
        say(f"VMs lost with the old installation: {', '.join(result.lost_vms)}")
    say(f"{result.host} is {result.resource_state}, with the host key {result.host_key_sha256}.")
