"""An import of many simulated hosts against ansible's ping and facts over the same hosts.

The hosts are SSH servers on loopback (`tests/simulation/ssh_hosts.py`), each with /etc, /root and
/var/lib of its own, on which commands really run; it takes root. Three runs, one after another,
with one private key for all:

    ansible all -m ping, then ansible all -m setup, `--forks` at a time
    hostler host import, `--parallel` at a time, with Temporal, API and worker of their own

An import logs in, reads what the host says of itself, and installs the fence and proves it; of that
only libvirt is simulated. ansible-core comes by pip into a temporary environment. Exit code 1 if a
host was not added, or more were worked on at a time than asked for.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from _report import BenchFailed, Report

from tests.simulation.ssh_hosts import SshHost, most_at_once
from tests.simulation.ssh_system import SshSystem

_PYTHON = "/usr/bin/python3"
_ANSIBLE_RUNS = ("ping", "setup")


async def main(arguments: argparse.Namespace) -> int:
    """Run it and print what was measured."""
    report = Report()
    with ExitStack() as stack:
        # Paths of ansible's control sockets are at most 108 bytes long.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostler-")))
        simulation = SshSystem(directory, hosts=arguments.hosts)
        stack.callback(simulation.system.stop)
        _say(f"{arguments.hosts} hosts start ({directory})")
        hosts = await simulation.start_hosts()
        _say("ansible-core is installed")
        ansible = await asyncio.to_thread(Ansible, directory, simulation.directory, hosts)
        taken = {}
        for module in _ANSIBLE_RUNS:
            _say(f"ansible {module}, {arguments.forks} at a time")
            taken[module] = await asyncio.to_thread(ansible.run, module, arguments.forks)
        _say(f"hostler host import, {arguments.parallel} at a time")
        imported = await _import(simulation, hosts, arguments.parallel)
        at_once = most_at_once(simulation.directory, since=imported.began)
    _tell(report, arguments, ansible.version, taken, imported.seconds)
    wanted = f"= {arguments.hosts}"
    report.demand("hosts added", imported.added, wanted, imported.added == arguments.hosts)
    wanted, met = f"<= {arguments.parallel}", at_once <= arguments.parallel
    report.demand("hosts worked on at a time, as they saw it", at_once, wanted, met)
    return report.close()


class Reachable(Protocol):
    """A host that ansible logs in to."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...


class Ansible:
    """ansible-core in an environment of its own, and its inventory of the hosts.

    Args:
        hosts_directory: has `known_hosts`, and the private key `id` that all hosts let in.
        package: what is installed; `ansible` has the collections, too.
    """

    def __init__(
        self,
        directory: Path,
        hosts_directory: Path,
        hosts: Sequence[Reachable],
        package: str = "ansible-core",
    ) -> None:
        environment = directory / "ansible"
        self._hosts = len(hosts)
        self._home = directory / "a"
        self._inventory = directory / "inventory"
        self._program = environment / "bin" / "ansible"
        pip: list[str | Path] = [environment / "bin" / "pip", "install", "--quiet", package]
        _done([_PYTHON, "-m", "venv", environment])
        _done(pip)
        options = f"-o UserKnownHostsFile={hosts_directory / 'known_hosts'} -o IdentitiesOnly=yes"
        lines = [
            f"{one.name} ansible_host={one.address} ansible_port={one.port}" for one in hosts
        ] + [
            # What a play delegates to it has ansible's own libraries.
            "localhost ansible_connection=local "
            f"ansible_python_interpreter={environment / 'bin' / 'python'}",
            "[all:vars]",
            "ansible_user=root",
            f"ansible_ssh_private_key_file={hosts_directory / 'id'}",
            f"ansible_ssh_common_args={options}",
            f"ansible_python_interpreter={_PYTHON}",
        ]
        self._inventory.write_text("\n".join(lines) + "\n")
        self.version = self._call("--version").partition("\n")[0]

    def run(self, module: str, forks: int) -> float:
        """Seconds for all hosts. Raises BenchFailed if one did not answer."""
        began = time.monotonic()
        said = self._call(*self.words(module, forks))
        seconds = time.monotonic() - began
        answered = sum(" | SUCCESS => " in line for line in said.splitlines())
        if answered != self._hosts:
            raise BenchFailed(f"ansible {module}: {answered} of {self._hosts} answered:\n{said}")
        return seconds

    def words(self, module: str, forks: int, arguments: str = "") -> list[str]:
        """The program's arguments for that."""
        more = ["-a", arguments] if arguments else []
        inventory = str(self._inventory)
        return ["all:!localhost", "-i", inventory, "-m", module, "-f", str(forks), "-o", *more]

    def start(self, words: Sequence[str]) -> "subprocess.Popen[str]":
        """The program, running; what it says comes through a pipe."""
        return self._start(self._program, words)

    def start_playbook(self, playbook: Path, forks: int, **values: str) -> "subprocess.Popen[str]":
        """Of all hosts (`all:!localhost`), with these variables."""
        more = [word for item in values.items() for word in ("-e", "=".join(item))]
        words = [str(playbook), "-i", str(self._inventory), "-f", str(forks), *more]
        return self._start(self._program.with_name("ansible-playbook"), words)

    def _start(self, program: Path, words: Sequence[str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [program, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | self._settings,
        )

    @property
    def _settings(self) -> dict[str, str]:
        return {"ANSIBLE_HOME": str(self._home), "ANSIBLE_LOCALHOST_WARNING": "false"}

    def _call(self, *arguments: str) -> str:
        return _done([self._program, *arguments], **self._settings)


class _Imported:
    """When the import began (as the hosts' journals tell time), how long it took, how many."""

    def __init__(self, began: float, seconds: float, added: int) -> None:
        self.began, self.seconds, self.added = began, seconds, added


async def _import(simulation: SshSystem, hosts: Sequence[SshHost], parallel: int) -> _Imported:
    await simulation.up()
    await simulation.worker()
    path = simulation.write_list(hosts, ("private_key_file", "id"))
    began, started = time.time(), time.monotonic()
    said = await simulation.system.hostler("host", "import", str(path), "--parallel", str(parallel))
    seconds = time.monotonic() - started
    if said.status != 0:
        _say(said.stdout + said.stderr)
    listed = (await simulation.ask("GET", f"/v1/hosts?limit={len(hosts)}"))["items"]
    added = sum(host["resource_state"] == "Enabled" for host in listed)
    return _Imported(began, seconds, added)


def _tell(
    report: Report,
    arguments: argparse.Namespace,
    version: str,
    taken: dict[str, float],
    imported: float,
) -> None:
    number, ansible = arguments.hosts, sum(taken.values())
    report.title(f"{number} simulated hosts")
    for module, seconds in taken.items():
        report.line(f"ansible {module}, {arguments.forks} forks", _per_host(seconds, number))
    report.line("ansible, both", _per_host(ansible, number))
    report.line(f"hostler host import, {arguments.parallel} at a time", _per_host(imported, number))
    report.line("ratio of the import to ansible's both", f"{imported / ansible:.2f}")
    report.line("ansible", version)
    report.line("load average of the machine", f"{os.getloadavg()[0]:.1f}")


def _per_host(seconds: float, number: int) -> str:
    return f"{seconds:.1f} s, {seconds / number:.3f} s per host"


def _done(command: Sequence[str | Path], **environment: str) -> str:
    """What the command says. Raises BenchFailed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if done.returncode != 0:
        raise BenchFailed(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="host-import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, default=200, help="how many there are (200)")
    parser.add_argument("--forks", type=int, default=50, help="of ansible (50)")
    parser.add_argument("--parallel", type=int, default=50, help="additions at a time (50)")
    return parser.parse_args(words)
