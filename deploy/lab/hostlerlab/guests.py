"""The guests: small machines that count on their console."""

import hashlib
import os
import re
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import image, paths
from .host import Host
from .shell import LabError

DEFAULT_MEMORY = 96
# More than libvirt knows of. QEMU before 9.0, when it emulates the CPU and the guest's memory is a
# multiple of 256 KiB, loses what the guest writes during a migration (fixed by "physmem: Fix
# migration dirty bitmap coherency with TCG memory access"): guests then hang at their destination.
# libvirt rounds up to whole MiB, QEMU takes multiples of 8 KiB.
_ODD_BYTES = 8 << 10
_NAMES = uuid.UUID("6f5f4a0e-1d1c-4d0e-9d55-c3f5f0b6a1de")
_DISK_MIB = 32
_BOOTS = 2
_PAUSE_S = 0.1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TICK = re.compile(rb"^tick (\d+)\r?$", re.MULTILINE)


def check_name(name: str) -> None:
    """Names become parts of paths and of XML."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} is no name for a guest")


@dataclass(frozen=True)
class Guest:
    """What to start."""

    name: str
    memory: int = DEFAULT_MEMORY
    bridge: str | None = None
    disk_local: bool = False
    dirty: int | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.bridge is not None and not _NAME.fullmatch(self.bridge):
            raise LabError(f"{self.bridge!r} is no name for a bridge")

    def xml(self) -> str:
        """Its libvirt domain: nothing in it that would keep it from moving between hosts."""
        command_line = "console=ttyS0 quiet loglevel=1 mitigations=off cryptomgr.notests"
        if self.dirty:
            command_line += f" dirty={self.dirty}"
        extra = ""
        if self.bridge is not None:
            extra += f"""
    <interface type='bridge'>
      <source bridge='{self.bridge}'/>
      <model type='virtio'/>
    </interface>"""
        if self.disk_local:
            extra += f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{disk_path(self.name)}'/>
      <target dev='vda' bus='virtio'/>
    </disk>"""
        odd = (self.memory << 20) + _ODD_BYTES
        return f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name>
  <uuid>{uuid.uuid5(_NAMES, self.name)}</uuid>
  <memory unit='MiB'>{self.memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <kernel>/shared/guest/vmlinuz</kernel>
    <initrd>/shared/guest/initrd.img</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path='/shared/consoles/{self.name}.log' append='on'/>
      <target port='0'/>
    </serial>{extra}
  </devices>
  <qemu:commandline>
    <qemu:arg value='-m'/>
    <qemu:arg value='size={odd >> 10}k'/>
    <qemu:arg value='-object'/>
    <qemu:arg value='memory-backend-ram,id=odd.ram,size={odd}'/>
    <qemu:arg value='-machine'/>
    <qemu:arg value='memory-backend=odd.ram'/>
  </qemu:commandline>
</domain>
"""


@dataclass
class Found:
    """Where a guest is."""

    active: list[Host] = field(default_factory=list)
    defined: list[Host] = field(default_factory=list)


def disk_path(name: str) -> str:
    """A guest's local disk, in the host's own file system."""
    return f"/var/lib/libvirt/images/{name}.raw"


def console(name: str) -> Path:
    """A guest's console, on this machine."""
    return paths.CONSOLES / f"{name}.log"


def last_tick(name: str) -> int | None:
    """The last number that it printed."""
    try:
        with console(name).open("rb") as log:
            log.seek(max(0, console(name).stat().st_size - 4096))
            ticks = _TICK.findall(log.read())
    except OSError:
        return None
    return int(ticks[-1]) if ticks else None


def find(hosts: list[Host]) -> dict[str, Found]:
    """Every guest on the running hosts."""
    running = [host for host in hosts if host.running()]
    found: dict[str, Found] = {}

    def names(host: Host) -> tuple[list[str], list[str]]:
        active = host.virsh("list", "--name", timeout=15).split()
        return active, host.virsh("list", "--all", "--name", timeout=15).split()

    with ThreadPoolExecutor(max(1, len(running))) as pool:
        for host, (active, every) in zip(running, pool.map(names, running), strict=True):
            for name in active:
                found.setdefault(name, Found()).active.append(host)
            for name in every:
                found.setdefault(name, Found()).defined.append(host)
    return found


def start(guest: Guest, on: Host, hosts: list[Host], timeout: float = 60) -> None:
    """Define it there and nowhere else, start it, return at its first tick.

    One that does not tick in time is started again: under TCG a guest hangs now and then as it
    boots, most of all on a machine that is busy.
    """
    where = find(hosts).get(guest.name, Found())
    if where.active:
        raise LabError(f"{guest.name} already runs on {where.active[0].name}")
    for host in where.defined:
        _undefine(host, guest.name)
    log = console(guest.name)
    if guest.disk_local:
        on.run(["truncate", "-s", f"{_DISK_MIB}M", disk_path(guest.name)])
    on.run(["virsh", "-q", "-c", "qemu:///system", "define", "/dev/stdin"], stdin=guest.xml())
    booted = _Booted(guest)
    offset = log.stat().st_size if log.exists() else 0
    if booted.there():
        if booted.resume(on, log, timeout):
            return
        # Also if the host refuses VMs: the start says so.
        booted.forget()
        on.virsh("destroy", guest.name, check=False)
        os.truncate(log, offset)
    for _ in range(_BOOTS):
        try:
            on.virsh("start", guest.name)
            if _ticks(log, offset, timeout):
                if booted.may_be_kept:
                    booted.keep(on, log, offset, timeout)
                return
        except LabError:
            on.virsh("destroy", guest.name, check=False)
            _undefine(on, guest.name)
            raise
        on.virsh("destroy", guest.name)
    raise LabError(
        f"{guest.name} does not tick {timeout:.0f} s after each of {_BOOTS} boots (console: {log})"
    )


class _Booted:
    """A guest as it was at its first ticks, in a file: the next start goes on from there. To boot
    takes an emulated machine longest."""

    def __init__(self, guest: Guest) -> None:
        self._name = guest.name
        recipe = f"{image.recipe()} {guest.xml()}"
        self._file = f"saved/{guest.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
        # Of the others, an interface has another address, and a disk what was written to it.
        self.may_be_kept = guest.bridge is None and not guest.disk_local

    def there(self) -> bool:
        """Whether there is such a file; what is renamed last is whole."""
        return self._console.exists()

    def keep(self, on: Host, log: Path, offset: int, timeout: float) -> None:
        """Write the file, and go on. Raises LabError if it does not tick then."""
        self._console.parent.mkdir(exist_ok=True)
        on.virsh("save", self._name, self._inside)
        printed = self._console.with_suffix(".new")
        printed.write_bytes(log.read_bytes()[offset:])
        printed.rename(self._console)
        self._restore(on, log, timeout)

    def resume(self, on: Host, log: Path, timeout: float) -> bool:
        """Go on from the file, on the console too; whether it does."""
        with log.open("ab") as console:
            console.write(self._console.read_bytes())
        try:
            self._restore(on, log, timeout)
        except LabError:
            return False
        return True

    def forget(self) -> None:
        """The next start boots."""
        self._console.unlink()

    def _restore(self, on: Host, log: Path, timeout: float) -> None:
        offset = log.stat().st_size
        on.virsh("restore", self._inside)
        if not _ticks(log, offset, timeout):
            raise LabError(f"{self._name} does not go on from {self._inside} (console: {log})")

    @property
    def _inside(self) -> str:
        """The file, as hosts see it."""
        return f"/shared/consoles/{self._file}"

    @property
    def _console(self) -> Path:
        return paths.CONSOLES / f"{self._file}.console"


def _ticks(log: Path, offset: int, timeout: float) -> bool:
    """Whether a number comes within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (log.exists() and _TICK.search(log.read_bytes()[offset:])):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def remove(name: str, hosts: list[Host]) -> None:
    """Leave nothing of it on any running host."""
    check_name(name)
    where = find(hosts).get(name, Found())
    for host in where.active:
        host.virsh("destroy", name, check=False)
    for host in where.defined:
        _undefine(host, name)
    for host in hosts:
        if host.running():
            host.run(["rm", "-f", disk_path(name)])
    console(name).unlink(missing_ok=True)


def _undefine(host: Host, name: str) -> None:
    # A transient guest is gone once destroyed, so a failure is looked at, not assumed.
    host.virsh("undefine", name, "--managed-save", "--snapshots-metadata", check=False)
    if name in host.virsh("list", "--all", "--name").split():
        raise LabError(f"{host.name} does not let go of {name}: virsh undefine fails there")
