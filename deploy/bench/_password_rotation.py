"""Another password of root on many simulated hosts, by Hostler and by ansible's user module.

The hosts are SSH servers on loopback (`tests/simulation/ssh_hosts.py`), each with an /etc/shadow of
its own, which is what lets people in; it takes root. Two runs, one after the other, over the same
hosts:

    ansible all -m user -a "name=root password=HASH", `--forks` at a time
    hostler passwords rotate, with Temporal, API and worker of their own

ansible writes a hash. Hostler checks all hosts beforehand, sets the password, proves it by a new
login, and the old one by a refused one. ansible-core comes by pip into a temporary environment. CPU
seconds and memory are those of ansible with all that it starts here, and of Hostler's three
processes; what the hosts take themselves, which share this machine, is told beside. Exit code 1 if
a host has another password than it should, or Hostler is not five times as fast.
"""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from _cost import MemoryPeak, cpu_seconds
from _host_import import Ansible
from _report import BenchFailed, Report

from tests.simulation.ssh_hosts import SshHost
from tests.simulation.ssh_system import CLUSTER, SshSystem
from tests.simulation.test_password_rotation import takes

_OF_ANSIBLE, _OF_HOSTLER = "set-by-ansible-1", "set-by-hostler-2"
_TIMES_AS_FAST = 5
# Two or three hashes per host and change are the hosts' own work, which would be done on as many
# processors as there are hosts.
_PAM_HASH = "sha512 rounds=1000"


@dataclass(frozen=True)
class _Cost:
    """Wall seconds, CPU seconds, MiB at most, and CPU seconds of the hosts themselves."""

    seconds: float
    cpu: float
    mib: float
    hosts_cpu: float = 0

    def __str__(self) -> str:
        return (
            f"{self.seconds:.1f} s, {self.cpu:.1f} s of CPU, {self.mib:.0f} MiB; "
            f"the hosts {self.hosts_cpu:.1f} s of CPU"
        )


async def main(arguments: argparse.Namespace) -> int:
    """Run it and print what was measured."""
    report = Report()
    with ExitStack() as stack:
        # Paths of ansible's control sockets are at most 108 bytes long.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostler-")))
        # Each host has a disk of its own in truth: here they would all wait for one.
        memory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hostler-", dir="/dev/shm"))
        simulation = SshSystem(
            directory, hosts=arguments.hosts, hosts_in=Path(memory), pam_hash=_PAM_HASH
        )
        stack.callback(simulation.system.stop)
        _say(f"{arguments.hosts} hosts start ({directory})")
        hosts = await simulation.start_hosts()
        _say("ansible-core is installed")
        ansible = await asyncio.to_thread(Ansible, directory, simulation.directory, hosts)
        _say(f"ansible user, {arguments.forks} at a time")
        (hosts_pid,) = simulation.system.pids
        began = cpu_seconds(hosts_pid)
        by_ansible = await asyncio.to_thread(_by_ansible, ansible, arguments.forks)
        by_ansible = replace(by_ansible, hosts_cpu=cpu_seconds(hosts_pid) - began)
        set_by_ansible = await _count(hosts, _OF_ANSIBLE)
        _say("hosts are added to Hostler")
        pids = await _add(simulation, hosts)
        _say("hostler passwords rotate")
        began = cpu_seconds(hosts_pid)
        by_hostler = await _by_hostler(simulation, pids)
        by_hostler = replace(by_hostler, hosts_cpu=cpu_seconds(hosts_pid) - began)
        set_by_hostler = await _count(hosts, _OF_HOSTLER)
        still_old = await _count(hosts, _OF_ANSIBLE)
    ratio = by_ansible.seconds / by_hostler.seconds
    report.title(f"{arguments.hosts} simulated hosts")
    report.line(f"ansible user, {arguments.forks} forks, nothing proven", by_ansible)
    report.line("hostler passwords rotate, proofs included", by_hostler)
    report.line("ansible", ansible.version)
    report.line("load average of the machine", f"{os.getloadavg()[0]:.1f}")
    number = arguments.hosts
    wanted = f"= {number}"
    report.demand("hosts with ansible's password", set_by_ansible, wanted, set_by_ansible == number)
    report.demand("hosts with Hostler's password", set_by_hostler, wanted, set_by_hostler == number)
    report.demand("hosts that let the old one in, too", still_old, "= 0", still_old == 0)
    wanted, met = f">= {_TIMES_AS_FAST}", ratio >= _TIMES_AS_FAST
    report.demand("times as fast as ansible", f"{ratio:.1f}", wanted, met)
    return report.close()


def _by_ansible(ansible: Ansible, forks: int) -> _Cost:
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"],
        input=_OF_ANSIBLE + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = ansible.start(ansible.words("user", forks, f"name=root password={hashed}"))
    with MemoryPeak(process.pid) as memory:
        said, _ = process.communicate()
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise BenchFailed(f"ansible user failed:\n{said}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Cost(seconds, cpu, memory.mib)


async def _add(simulation: SshSystem, hosts: Sequence[SshHost]) -> list[int]:
    """Each with the password that ansible has set. The pids of all that is Hostler's."""
    before = len(simulation.system.pids)
    await simulation.up()
    await simulation.worker()
    password = simulation.directory / "of-ansible"
    password.write_text(_OF_ANSIBLE + "\n")
    path = simulation.write_list(hosts, ("password_file", password.name))
    await simulation.system.done("host", "import", str(path), "--parallel", "50")
    return simulation.system.pids[before:]


async def _by_hostler(simulation: SshSystem, pids: Sequence[int]) -> _Cost:
    password = simulation.directory / "of-hostler"
    password.write_text(_OF_HOSTLER + "\n")
    before = sum(map(cpu_seconds, pids))
    with ExitStack() as stack:
        peaks = [stack.enter_context(MemoryPeak(pid)) for pid in pids]
        began = time.monotonic()
        await simulation.system.done(
            *("passwords", "rotate", CLUSTER, "--watch", "--password-file", str(password))
        )
        seconds = time.monotonic() - began
    cpu = sum(map(cpu_seconds, pids)) - before
    return _Cost(seconds, cpu, sum(peak.mib for peak in peaks))


async def _count(hosts: Sequence[SshHost], password: str) -> int:
    """Hosts that let somebody in with it."""
    slots = asyncio.Semaphore(20)

    async def one(host: SshHost) -> bool:
        async with slots:
            return await takes(host, password)

    return sum(await asyncio.gather(*map(one, hosts)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="password-rotation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, default=200, help="how many there are (200)")
    parser.add_argument("--forks", type=int, default=50, help="of ansible (50)")
    return parser.parse_args(words)
