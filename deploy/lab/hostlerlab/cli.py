"""The `lab` command."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import bmc, guests, machine, paths
from .host import Host, known_hosts
from .report import report
from .shell import PATH as SYSTEM_PATH
from .shell import LabError, say
from .supervisor import supervise

_MAX_GUESTS = 99

DESCRIPTION = """\
Hostler's lab: hosts kvm-1, kvm-2, ... that boot systemd, sshd and libvirtd, and guests vm-1,
vm-2, ... that count on their consoles (deploy/lab/.state/consoles/VM.log).
"""


def _up(arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    machine.check_machine()
    with machine.locked():
        machine.take_over()
        built = machine.ensure_tools()
        machine.ensure_bridge()
        # Hosts beyond N stay as they are: `up` repairs and adds, it takes nothing away.
        hosts = [Host(f"kvm-{number}") for number in range(1, arguments.hosts + 1)]
        with ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(lambda host: host.bring_up(built), hosts))
        bmc.ensure([host for host in known_hosts() if host.machine_uuid()])
        everyone = known_hosts()
        found = guests.find(everyone)
        names = [f"vm-{number}" for number in range(1, arguments.guests + 1)]
        absent = [name for name in names if not found.get(name, guests.Found()).active]
        for name in absent:
            say(f"starting {name} on {hosts[0].name}")
        with ThreadPoolExecutor(max(1, len(absent))) as pool:
            list(
                pool.map(lambda name: guests.start(guests.Guest(name), hosts[0], everyone), absent)
            )
        last = hosts[-1]
        say(
            f"up: {hosts[0].name} to {last.name} at {hosts[0].address} to {last.address}, "
            f"{len(names)} guests, in {time.monotonic() - began:.1f} s"
        )


def _down(_arguments: argparse.Namespace) -> None:
    with machine.locked():
        other = machine.foreign_owner()
        if other is None:
            machine.remove_everything()
            say("down: nothing is left but the cache in /var/cache/hostler-lab")
        else:
            say(f"nothing of this checkout runs; the lab of {other} is left alone")
        paths.LOCK.unlink(missing_ok=True)


def _status(arguments: argparse.Namespace) -> None:
    machine.require_own_lab()
    found = report()
    if arguments.json:
        rows = {"hosts": found.hosts, "guests": found.guests}
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        places = {guest["name"]: guest["hosts"] for guest in found.guests}
        sys.stdout.write(_table(found.hosts, places))
    for line in found.unclear:
        say(line)


def _table(hosts: list[dict[str, Any]], places: dict[str, list[str]]) -> str:
    lines = []
    for host in hosts:
        on_it = [guest for guest, names in places.items() if host["name"] in names]
        lines += [
            f"{host['name']}  {host['address']}  {host['state']}  "
            f"guests: {' '.join(on_it) or 'none'}",
            f"    boot id {host['boot_id']}  host key {host['host_key_sha256']}",
            f"    password in {host['password_file']}",
        ]
        if (its := host["bmc"]) is not None:
            lines.append(
                f"    BMC {its['address']}  user {its['user']}  password in {its['password_file']}"
            )
    for guest, names in places.items():
        where = ", ".join(names) or "not running"
        lines.append(f"{guest}  {where}  last tick {guests.last_tick(guest)}")
    return "\n".join(lines or ["no host: lab up makes them"]) + "\n"


def _host(name: str) -> Host:
    try:
        host = Host(name)
    except ValueError as error:
        raise LabError(str(error)) from error
    machine.require_own_lab()
    if not host.run_dir.is_dir():
        raise LabError(f"there is no host {name}: lab up makes it")
    return host


def _exec_command(arguments: argparse.Namespace) -> list[str]:
    command: list[str] = arguments.command
    return command[1:] if command[:1] == ["--"] else command


def _exec(arguments: argparse.Namespace) -> None:
    inside = _host(arguments.host).inside(_exec_command(arguments))
    os.execvp(inside[0], inside)  # noqa: S606 - the exit status and standard input are the command's


def _guest_start(arguments: argparse.Namespace) -> None:
    guest = guests.Guest(
        arguments.vm, arguments.memory, arguments.bridge, arguments.disk_local, arguments.dirty
    )
    with machine.locked(shared=True):
        guests.start(guest, _host(arguments.on), known_hosts())


def _guest_remove(arguments: argparse.Namespace) -> None:
    machine.require_own_lab()
    with machine.locked(shared=True):
        guests.remove(arguments.vm, known_hosts())


def _on_host(action: Callable[[Host], object]) -> Callable[[argparse.Namespace], None]:
    def command(arguments: argparse.Namespace) -> None:
        with machine.locked(shared=True):
            action(_host(arguments.host))

    return command


def _kill(host: Host) -> None:
    if not host.running():
        raise LabError(f"{host.name} does not run")
    host.power_loss()


def _remove(host: Host) -> None:
    host.power_loss()
    host.remove()


def _rebuild(host: Host) -> None:
    host.rebuild(machine.ensure_tools())
    host.wait_ready(120)


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be {least} to {most}, not {text!r}")
        return int(text)

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, action: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    up = add("up", _up, "start the lab, or repair it; safe to run at any time")
    up.add_argument("--hosts", type=_between(1, paths.MAX_HOSTS), default=3, metavar="N")
    up.add_argument("--guests", type=_between(0, _MAX_GUESTS), default=3, metavar="M")
    add("down", _down, "leave nothing of it but the cache")
    status = add("status", _status, "what runs where")
    status.add_argument("--json", action="store_true")
    execute = add("exec", _exec, "run a command in a host: lab exec HOST -- COMMAND...")
    execute.add_argument("host")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    for name, action, text in (
        ("reboot", Host.reboot, "reboot a host in good order, and wait until it answers"),
        ("kill", _kill, "hard power loss of a host; it stays off until up"),
        ("rebuild", _rebuild, "re-install a host: a new disk with new keys and password"),
        ("remove", _remove, "take a host away; up makes a new one"),
        ("cut", Host.cut, "cut a host's cable"),
        ("heal", Host.heal, "mend a host's cable"),
    ):
        add(name, _on_host(action), text).add_argument("host")
    guest = commands.add_parser("guest", help="guests for tests").add_subparsers(
        required=True, metavar="COMMAND"
    )
    start = guest.add_parser("start", help="define and start a guest, wait for its first tick")
    start.add_argument("vm")
    start.add_argument("--on", default="kvm-1", metavar="HOST")
    start.add_argument("--memory", type=int, default=guests.DEFAULT_MEMORY, metavar="MiB")
    start.add_argument("--bridge", metavar="NAME", help="a virtio interface on that bridge")
    start.add_argument(
        "--disk-local", action="store_true", help="a disk in the host's own file system"
    )
    start.add_argument("--dirty", type=int, metavar="MiB", help="memory it rewrites for ever")
    start.set_defaults(action=_guest_start)
    remove = guest.add_parser("remove", help="destroy and undefine it wherever it is")
    remove.add_argument("vm")
    remove.set_defaults(action=_guest_remove)
    return parser


def main(argv: list[str]) -> int:
    """Exit 0 done, 1 failed with the reason in one line, 2 usage."""
    if argv[:1] == ["_supervise"]:
        return supervise(argv[1])
    if argv[:1] == ["_bmc"]:
        return bmc.serve()
    parser = _parser()
    arguments = parser.parse_args(argv)
    # Plain `su` keeps a user's PATH, without the programs of the system.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    if arguments.action is _exec and not _exec_command(arguments):
        parser.error("exec needs a command: lab exec HOST -- COMMAND...")
    try:
        machine.check_root()
        arguments.action(arguments)
    except LabError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"{error.strerror}: {error.filename}" if error.filename else str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; run it again at any time")
        return 1
    return 0
