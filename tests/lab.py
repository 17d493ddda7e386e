"""The lab, for tests: what deploy/lab/lab does, most of it without starting Python each time."""

import asyncio
import dataclasses
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from drivers.protocols import HostAccess

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "deploy/lab"))

from hostlerlab import guests, machine  # noqa: E402
from hostlerlab.host import Host, known_hosts  # noqa: E402
from hostlerlab.report import host_row, report  # noqa: E402
from hostlerlab.shell import LabError  # noqa: E402

BRIDGE = "hostler0"
_PROGRAM = ROOT / "deploy/lab/lab"
_CONSOLES = ROOT / "deploy/lab/.state/consoles"
# Not below /home: nobody is to assume that.
_ADD_USER = """
set -eu
mkdir -p /srv
useradd --create-home --home-dir "/srv/$1" --shell /bin/sh "$1"
chpasswd
printf '%s\\n' "$2" >"/etc/sudoers.d/$1"
"""
_REMOVE_USER = 'rm -f "/etc/sudoers.d/$1"; pkill -KILL -u "$1"; userdel --force --remove "$1"'
# What Hostler leaves on a host it works on, certificates among it.
_BARE = """
rm -rf /etc/hostler /etc/libvirt/hooks/qemu.d/hostler
there=$(find /etc/pki/libvirt* /etc/pki/qemu /etc/pki/CA ! -type d 2>/dev/null)
configuration='/etc/libvirt/libvirtd.conf /etc/libvirt/qemu.conf'
if [ -n "$there" ] || grep -qs '^# begin hostler$' $configuration; then
    systemctl disable -q --now libvirtd-tls.socket libvirtd-tcp.socket 2>/dev/null
    rm -rf /etc/pki/libvirt* /etc/pki/qemu /etc/pki/CA
    sed -i '/^# begin hostler$/,/^# end hostler$/d' $configuration
    units='libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service'
    systemctl reset-failed $units 2>/dev/null
    systemctl stop -q libvirtd.service 2>/dev/null
    systemctl start $units
fi
"""
_T = TypeVar("_T")
_TICK = re.compile(rb"^tick (\d+)\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    exit_status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class BmcAccess:
    """How to reach a host's BMC."""

    address: str
    port: int
    user: str
    password: str
    guid: str


class Lab:
    """The lab of this checkout. Every call is awaited: a test's event loop carries tunnels."""

    async def status(self) -> dict[str, Any]:
        """What `lab status --json` says."""
        found = await _in_thread(report)
        return {"hosts": found.hosts, "guests": found.guests}

    async def up(self, hosts: int = 3) -> None:
        """Start it, or repair it, unless all is well, with at least so many hosts."""
        there = (await self.status())["hosts"]
        if len(there) < hosts or any(host["state"] != "running" for host in there):
            await self._lab("up", "--hosts", str(hosts))

    async def exec(
        self, host: str, *command: str, stdin: str | None = None, check: bool = True
    ) -> Said:
        """Run a command in a host, network or not."""
        try:
            inside = Host(host).inside(command)
        except LabError as error:
            if check:
                raise AssertionError(f"lab: {error}") from error
            return Said(1, "", str(error))
        return await _run(*inside, stdin=stdin, check=check)

    async def virsh(
        self, host: str, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> Said:
        """virsh in a host."""
        command = ("virsh", "-q", "-c", "qemu:///system", *arguments)
        return await self.exec(host, *command, stdin=stdin, check=check)

    async def make_bare(self, host: str) -> None:
        """No trace of Hostler is left on a host; its VMs run on."""
        await self.exec(host, "sh", "-c", _BARE)

    async def start_guest(
        self,
        name: str,
        *,
        on: str,
        dirty: int | None = None,
        bridge: str | None = None,
        disk_local: bool = False,
    ) -> str:
        """Start a guest; its UUID. `dirty`: MiB of memory that it rewrites for ever; `bridge`: of
        the host, to which it has an interface; `disk_local`: with a disk in the host's own file
        system."""
        memory = guests.DEFAULT_MEMORY if dirty is None else 128
        guest = guests.Guest(name, memory, bridge, disk_local, dirty)

        def start() -> None:
            with machine.locked(shared=True):
                guests.start(guest, Host(on), known_hosts())

        await _in_thread(start)
        return (await self.virsh(on, "domuuid", name)).stdout.strip()

    async def remove_guest(self, name: str) -> None:
        """Leave nothing of a guest."""

        def remove() -> None:
            with machine.locked(shared=True):
                guests.remove(name, known_hosts())

        await _in_thread(remove)

    async def cut(self, host: str) -> None:
        """Cut a host's cable."""
        await self._lab("cut", host)

    async def heal(self, host: str) -> None:
        """Mend a host's cable."""
        await self._lab("heal", host)

    async def reboot(self, host: str) -> None:
        """Reboot a host, and wait until it answers."""
        await self._lab("reboot", host)

    async def kill(self, host: str) -> None:
        """A host loses its power; it stays off."""
        await self._lab("kill", host)

    async def rebuild(self, host: str) -> None:
        """Re-install a host: a new disk, new keys, another password, the same machine."""
        await self._lab("rebuild", host)

    async def remove(self, host: str) -> None:
        """Take a host away."""
        await self._lab("remove", host)

    async def power_on(self) -> None:
        """Boot all hosts that are off, mend all cables, and wait until all answer."""
        await self._lab("up", "--guests", "0")

    async def access(self, host: str) -> HostAccess:
        """How to reach a host; its key is read inside, not through the network."""
        key = (await self.exec(host, "cat", "/etc/ssh/ssh_host_ed25519_key.pub")).stdout
        its = Host(host)
        return HostAccess(
            name=host,
            address=its.address,
            port=22,
            user="root",
            host_key=" ".join(key.split()[:2]),
            password=its.password_file.read_text().strip(),
        )

    @asynccontextmanager
    async def user(self, host: str, name: str, sudoers: str = "") -> AsyncIterator[HostAccess]:
        """How to log in as a user who is there meanwhile, with root's password and these lines of
        sudoers; at home in /srv/NAME."""
        access = dataclasses.replace(await self.access(host), user=name)
        password = f"{name}:{access.password}\n"
        await self.exec(host, "sh", "-c", _ADD_USER, "sh", name, sudoers, stdin=password)
        try:
            yield access
        finally:
            await self.exec(host, "sh", "-c", _REMOVE_USER, "sh", name, check=False)

    async def boot_id(self, host: str) -> str | None:
        """The kernel's name for the boot of a host; None while it is off or just starting."""
        return Host(host).boot_id()

    async def bmc(self, host: str) -> BmcAccess:
        """How to reach a host's BMC, with the password that it was made with."""
        row = host_row(Host(host))["bmc"]
        password = Path(row["password_file"]).read_text().strip()  # noqa: ASYNC240 - small
        return BmcAccess(row["address"], row["port"], row["user"], password, row["guid"])

    async def ipmitool(
        self, bmc: BmcAccess, *command: str, retries: int = 4, check: bool = True
    ) -> Said:
        """Ask a BMC, as administrator. ipmi_sim knows cipher suite 3 alone."""
        login = ("-H", bmc.address, "-p", str(bmc.port), "-U", bmc.user, "-E", "-R", str(retries))
        return await _run(
            "ipmitool", "-I", "lanplus", "-C", "3", *login, *command,
            check=check, env={**os.environ, "IPMI_PASSWORD": bmc.password},
        )  # fmt: skip

    async def powered(self, bmc: BmcAccess) -> bool:
        """What `power status` says."""
        said = (await self.ipmitool(bmc, "power", "status")).stdout
        return {"Chassis Power is on\n": True, "Chassis Power is off\n": False}[said]

    async def until_powered(self, bmc: BmcAccess, wanted: bool) -> None:
        """Return when `power status` says so."""
        while await self.powered(bmc) != wanted:
            await asyncio.sleep(0.1)

    def ticks(self, guest: str) -> list[int]:
        """All numbers that a guest has printed."""
        console = (_CONSOLES / f"{guest}.log").read_bytes()
        return [int(number) for number in _TICK.findall(console)]

    async def ticks_on(self, guest: str, more: int = 3) -> None:
        """Return when the guest has printed `more` numbers more: it runs."""
        wanted = self.ticks(guest)[-1] + more
        while self.ticks(guest)[-1] < wanted:
            await asyncio.sleep(0.05)

    async def _lab(self, *arguments: str, stdin: str | None = None, check: bool = True) -> Said:
        return await _run(_PROGRAM, *arguments, stdin=stdin, check=check)


async def _in_thread(action: Callable[[], _T]) -> _T:
    try:
        return await asyncio.to_thread(action)
    except LabError as error:
        raise AssertionError(f"lab: {error}") from error


async def _run(
    program: str | Path,
    *arguments: str,
    stdin: str | None = None,
    check: bool = True,
    env: dict[str, str] | None = None,
) -> Said:
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    output = await process.communicate(None if stdin is None else stdin.encode())
    stdout, stderr = (part.decode(errors="replace") for part in output)
    status = process.returncode or 0
    if check and status != 0:
        name = Path(program).name
        raise AssertionError(f"{name} {' '.join(arguments)}: exit {status}: {stderr}{stdout}")
    return Said(status, stdout, stderr)
