"""Certificates on all hosts of the lab, by ansible and by Hostler: see `_certificates.py`."""

import asyncio
import base64
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from _cost import cpu_seconds
from _host_import import Ansible
from _report import BenchFailed, Report

from drivers.protocols import HostAccess
from drivers.ssh import AsyncSshShell
from drivers.tls import ScriptCertificates
from tests.e2e.system import System
from tests.lab import Lab

_PLAYBOOK = Path(__file__).with_name("_certificate_playbook.yaml")
_FIRST, _RENEWAL = "the first ones", "renewal"
_UNIT = "cluster-bench"
# ansible's modules on the hosts need them.
_NEEDED = ("python3", "python3-cryptography")
_KEY_COMMENT = "hostler-bench"
_CA_SETUP = """
set -eu
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout ca.key -out ca.pem \\
    -subj '/CN=Bench CA' -days 3650 -addext 'keyUsage = critical, keyCertSign, cRLSign'
"""
# As a host is before it has certificates, whoever has brought them.
_BARE = r"""
systemctl disable -q --now libvirtd-tls.socket libvirtd-tcp.socket 2>/dev/null
rm -rf /etc/hostler /etc/libvirt/hooks/qemu.d/hostler /etc/pki/libvirt* /etc/pki/qemu /etc/pki/CA
sed -i '/^# begin hostler$/,/^# end hostler$/d; /^tls_allowed_dn_list/d' /etc/libvirt/libvirtd.conf
sed -i '/^# begin hostler$/,/^# end hostler$/d' /etc/libvirt/qemu.conf
if [ -e /root/.ssh/authorized_keys ]; then sed -i '/ hostler:/d' /root/.ssh/authorized_keys; fi
units='libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service'
systemctl reset-failed $units 2>/dev/null
systemctl stop -q libvirtd.service 2>/dev/null
systemctl start $units
"""
_INSTALL = """
set -eu
mkdir -p /root/bench-packages
cd /root/bench-packages
base64 -d | tar -x
# In their order, which dpkg alone does not find.
DEBIAN_FRONTEND=noninteractive apt-get -o APT::Sandbox::User=root -yqq install ./*.deb >/dev/null
"""
_REMOVE = """
rm -rf /root/.ansible
cd /root/bench-packages 2>/dev/null || exit 0
for package in *.deb; do dpkg-deb --field "$package" Package; done |
    DEBIAN_FRONTEND=noninteractive xargs dpkg --purge >/dev/null
rm -rf /root/bench-packages
"""
_LET_IN = "umask 077; mkdir -p /root/.ssh; cat >>/root/.ssh/authorized_keys"
_LET_NO_MORE = f"sed -i '/{_KEY_COMMENT}$/d' /root/.ssh/authorized_keys"
# Room for the guests that are there.
_CAPACITY = ("--capacity-memory-mib", "12288")


@dataclass(frozen=True)
class _Taken:
    """Wall seconds, and CPU seconds of all that runs here; `proven`: hosts that showed a new
    certificate of the CA, and let in nobody without one."""

    seconds: float
    cpu_s: float
    proven: int


async def measure(report: Report, forks: int | None, lab: Lab | None = None) -> None:
    """Go both ways, clear up, and tell."""
    if os.geteuid() != 0:
        raise BenchFailed("must run as root: it enters the lab's hosts")
    lab = lab or Lab()
    await lab.up()
    rows = (await lab.status())["hosts"]
    forks = forks or len(rows)
    async with AsyncExitStack() as stack:
        # Paths of ansible's control sockets are at most 108 bytes long.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostler-")))
        shell = AsyncSshShell()
        stack.push_async_callback(shell.close)
        hosts = [await lab.access(row["name"]) for row in rows]
        scene = _Scene(lab, hosts, ScriptCertificates(shell))
        stack.push_async_callback(scene.on_all, _BARE)
        await scene.on_all(_BARE)
        _say("ansible is installed, here and what it needs on the hosts")
        ansible = await _prepare_ansible(scene, directory, stack)
        by_ansible = await _by_ansible(scene, ansible, directory, forks)
        await scene.on_all(_BARE)
        by_hostler, secured_s = await _by_hostler(scene, rows, directory)
    _tell(report, len(hosts), forks, ansible.version, by_ansible, by_hostler, secured_s)


class _Scene:
    """The hosts, and what they show from outside."""

    def __init__(
        self, lab: Lab, hosts: Sequence[HostAccess], certificates: ScriptCertificates
    ) -> None:
        self.lab, self.hosts = lab, hosts
        self._certificates = certificates
        self._seen: set[str] = set()

    async def on_all(self, script: str, stdin: str | None = None) -> None:
        """Run it on each host."""
        await asyncio.gather(
            *(self.lab.exec(host.name, "sh", "-c", script, stdin=stdin) for host in self.hosts)
        )

    async def count_proven(self, authorities: str) -> int:
        """Hosts that show a certificate of that CA which was not seen before, and let in nobody who
        has none."""
        answers = await asyncio.gather(
            *(self._certificates.ask(host, authorities) for host in self.hosts)
        )
        new = {answer.serial for answer in answers if not answer.lets_in} - self._seen
        self._seen |= new
        return len(new)

    async def take(
        self,
        work: Callable[[], Awaitable[None]],
        authorities: Callable[[], Awaitable[str]],
        pids: Sequence[int] = (),
    ) -> _Taken:
        """What the work took, of these processes, and of all that it has started itself."""
        cpu, began = _spent(pids), time.monotonic()
        await work()
        seconds, cpu = time.monotonic() - began, _spent(pids) - cpu
        return _Taken(seconds, cpu, await self.count_proven(await authorities()))


def _spent(pids: Sequence[int]) -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime + sum(map(cpu_seconds, pids))


# --- ansible ------------------------------------------------------------------------------------


async def _prepare_ansible(scene: _Scene, directory: Path, stack: AsyncExitStack) -> Ansible:
    """With all that it needs on the hosts, which goes again with the stack."""
    login = directory / "login"
    login.mkdir()
    key = asyncssh.generate_private_key("ssh-ed25519", _KEY_COMMENT)
    key.write_private_key(login / "id")
    (login / "id").chmod(0o600)
    (login / "known_hosts").write_text(
        "".join(f"{host.address} {host.host_key}\n" for host in scene.hosts)
    )
    stack.push_async_callback(scene.on_all, _LET_NO_MORE)
    await scene.on_all(_LET_IN, key.export_public_key().decode())
    status = (await scene.lab.exec(scene.hosts[0].name, "cat", "/var/lib/dpkg/status")).stdout
    packages = await asyncio.to_thread(_fetch_packages, directory / "packages", status)
    stack.push_async_callback(scene.on_all, _REMOVE)
    await scene.on_all(_INSTALL, packages)
    return await asyncio.to_thread(Ansible, directory, login, scene.hosts, "ansible")


def _fetch_packages(directory: Path, status: str) -> str:
    """All that a host of that dpkg status lacks, as a tar archive in base64."""
    (directory / "partial").mkdir(parents=True)
    (directory / "status").write_text(status)
    _done(
        *("apt-get", "--yes", "-qq", "--download-only", "--no-install-recommends"),
        *("-o", f"Dir::State::status={directory / 'status'}"),
        *("-o", f"Dir::Cache::archives={directory}", "-o", "APT::Sandbox::User=root"),
        # Nothing of this machine is touched.
        *("-o", "Debug::NoLocking=true", "install", *_NEEDED),
    )
    names = sorted(path.name for path in directory.glob("*.deb"))
    archive = subprocess.run(
        ["tar", "-c", "-C", str(directory), *names], capture_output=True, check=True
    ).stdout
    return base64.b64encode(archive).decode()


async def _by_ansible(
    scene: _Scene, ansible: Ansible, directory: Path, forks: int
) -> dict[str, _Taken]:
    authority = directory / "authority"
    authority.mkdir()
    await asyncio.to_thread(_done, "sh", "-c", _CA_SETUP, directory=authority)

    def play() -> None:
        process = ansible.start_playbook(_PLAYBOOK, forks, authority=str(authority), unit=_UNIT)
        said, _ = process.communicate()
        if process.returncode != 0:
            raise BenchFailed(f"ansible-playbook failed:\n{said}")

    async def authorities() -> str:
        return (authority / "ca.pem").read_text()

    taken = {}
    for which in (_FIRST, _RENEWAL):
        _say(f"ansible-playbook, {forks} forks: {which}")
        taken[which] = await scene.take(lambda: asyncio.to_thread(play), authorities)
    return taken


def _done(*command: str, directory: Path | None = None) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


# --- Hostler ------------------------------------------------------------------------------------


async def _by_hostler(
    scene: _Scene, rows: Sequence[dict[str, str]], directory: Path
) -> tuple[dict[str, _Taken], float]:
    """And the seconds that it takes to secure the cluster then."""
    system = System(directory / "hostler")
    try:
        await system.up()
        await _add(system, rows)

        async def provision() -> None:
            await asyncio.gather(
                *(system.done("cert", "provision", host.name) for host in scene.hosts)
            )

        async def authorities() -> str:
            return await system.done("ca", "chain")

        taken = {}
        for which in (_FIRST, _RENEWAL):
            _say(f"hostler cert provision, all at once: {which}")
            taken[which] = await scene.take(provision, authorities, system.pids)
        _say("hostler cert secure")
        began = time.monotonic()
        await system.done("cert", "secure", "cluster-1")
        return taken, time.monotonic() - began
    finally:
        system.stop()


async def _add(system: System, rows: Sequence[dict[str, str]]) -> None:
    for kind, name, parent in (
        ("zone", "zone-1", ()),
        ("pod", "pod-1", ("--zone", "zone-1")),
        ("cluster", "cluster-1", ("--pod", "pod-1")),
    ):
        await system.done(kind, "create", name, *parent)
        await system.done(kind, "enable", name)
    await asyncio.gather(
        *(
            system.done(
                *("host", "add", row["name"], "--cluster", "cluster-1"),
                *("--address", row["address"], "--password-file", row["password_file"]),
                *("--accept-host-key", row["host_key_sha256"], *_CAPACITY),
            )
            for row in rows
        )
    )


# --- the report ---------------------------------------------------------------------------------


def _tell(
    report: Report,
    number: int,
    forks: int,
    version: str,
    by_ansible: dict[str, _Taken],
    by_hostler: dict[str, _Taken],
    secured_s: float,
) -> None:
    report.title(f"Certificates of libvirt and QEMU on {number} hosts of the lab")
    for which in (_FIRST, _RENEWAL):
        ansible, hostler = by_ansible[which], by_hostler[which]
        report.line(f"ansible-playbook, {forks} forks: {which}", _figures(ansible))
        report.line(f"hostler cert provision, proven: {which}", _figures(hostler))
        report.line(
            f"ansible-playbook : hostler, {which}",
            f"{ansible.seconds / hostler.seconds:.2f} x the time, "
            f"{ansible.cpu_s / hostler.cpu_s:.2f} x the CPU",
        )
    report.line("hostler cert secure after that, proven", f"{secured_s:.1f} s")
    report.line("ansible", version)
    report.line("load average of the machine", f"{os.getloadavg()[0]:.1f}")
    wanted = f"= {number}"
    for who, taken in (("ansible", by_ansible), ("Hostler", by_hostler)):
        for which, one in taken.items():
            name = f"hosts that show {who}'s, {which}"
            report.demand(name, one.proven, wanted, one.proven == number)


def _figures(taken: _Taken) -> str:
    return f"{taken.seconds:.1f} s, {taken.cpu_s:.1f} s of CPU"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
