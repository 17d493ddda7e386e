"""What exists once per machine: the lock, the owner, the bridge, the installed packages."""

import contextlib
import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import bmc, image, paths
from .host import Host, known_hosts
from .processes import Process, strays
from .shell import LabError, is_mounted, quietly, run, say

_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "chpasswd": "passwd",
    "ipmi_sim": "openipmi",
}
_BUILD_TOOLS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux"}


def check_root() -> None:
    """Every command enters namespaces, mounts or reads what root alone may read."""
    if os.geteuid() != 0:
        raise LabError("must run as root (network namespaces, mounts and containers need it)")


def check_machine() -> None:
    """Say what is missing, before anything is touched."""
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        raise LabError("needs Debian 12 (this machine has no /etc/debian_version or apt-get)")
    if platform.machine() != "x86_64":
        raise LabError(f"needs an x86_64 machine, this is {platform.machine()}")
    if not Path("/dev/net/tun").exists():
        raise LabError("needs /dev/net/tun")


@contextlib.contextmanager
def locked(*, shared: bool = False) -> Iterator[None]:
    """One `up` or `down` at a time; the smaller commands may overlap, but not with those."""
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with paths.LOCK.open("a") as lock:
            try:
                fcntl.flock(lock, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another lab command to end")
                fcntl.flock(lock, mode)
            try:  # `down` deletes the file: what was locked may not be the lock any more
                current = paths.LOCK.stat().st_ino == os.fstat(lock.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:
                yield
                return


def owner() -> Path | None:
    """The checkout that the lab belongs to."""
    try:
        return Path(paths.OWNER.read_text().strip())
    except OSError:
        return None


def foreign_owner() -> Path | None:
    """Another checkout whose lab runs on this machine."""
    other = owner()
    if other is None or other == paths.CHECKOUT:
        return None
    alive = Process.load(bmc.RECORD) or any(_alive(host) for host in known_hosts())
    return other if alive else None


def _alive(host: Host) -> bool:
    records = (host.leader_record, host.nspawn_record, host.supervisor_record)
    return any(Process.load(record) is not None for record in records)


def require_own_lab() -> None:
    """Commands on hosts are for the checkout that started them."""
    other = foreign_owner()
    if other is not None:
        raise LabError(_belongs(other))


def _belongs(other: Path) -> str:
    return f"the lab of this machine belongs to {other} (free it: {other}/deploy/lab/lab down)"


def take_over() -> None:
    """Own the lab, clearing away a dead one of another checkout."""
    other = foreign_owner()
    if other is not None:
        raise LabError(_belongs(other))
    previous = owner()
    if previous is not None and previous != paths.CHECKOUT:
        say(f"clearing away the dead lab of {previous}")
        remove_everything()
        shutil.rmtree(previous / "deploy/lab/.state", ignore_errors=True)
    paths.RUN.mkdir(mode=0o755, exist_ok=True)
    temporary = paths.OWNER.with_name(".owner.new")
    temporary.write_text(f"{paths.CHECKOUT}\n")
    temporary.replace(paths.OWNER)
    paths.CONSOLES.mkdir(parents=True, exist_ok=True)


def ensure_tools() -> image.Image:
    """Install what is missing, and build what hosts boot from; fast when all is there."""
    cached = image.cached()
    wanted = _TOOLS if cached else _TOOLS | _BUILD_TOOLS
    missing = sorted({package for tool, package in wanted.items() if shutil.which(tool) is None})
    if not cached or missing:
        image.update_package_lists()
    if missing:
        say(f"installing {' '.join(missing)}")
        image.install(missing)
    return cached or image.build()


def ensure_bridge() -> None:
    """The network between the hosts."""
    if not Path("/sys/class/net", paths.BRIDGE).exists():
        # A fixed MAC: a bridge otherwise changes its own whenever a host comes or goes.
        run(["ip", "link", "add", paths.BRIDGE, "address", "02:00:c6:12:00:01", "type", "bridge"])
    run(["ip", "address", "replace", f"{paths.GATEWAY}/24", "dev", paths.BRIDGE])
    run(["ip", "link", "set", paths.BRIDGE, "up"])


def remove_everything() -> None:
    """Leave no process, mount, link, namespace, group or file: only the cache stays."""
    bmc.stop()
    hosts = known_hosts()
    with ThreadPoolExecutor(max(1, len(hosts))) as pool:
        list(pool.map(Host.stop, hosts))
    for stray in strays():
        stray.kill()
    for host in hosts:
        host.remove()
    if Path("/sys/class/net", paths.BRIDGE).exists():
        quietly(["ip", "link", "delete", paths.BRIDGE])
    _remove_if_empty(paths.NETNS_DIR)
    for folder in (paths.RUN, paths.STATE):
        if f" {folder}/" in Path("/proc/self/mountinfo").read_text():
            raise LabError(f"something is still mounted below {folder}: see findmnt")
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    """`ip netns` mounts its folder on itself and leaves that behind."""
    if folder.is_dir() and not any(folder.iterdir()):
        if is_mounted(folder):
            quietly(["umount", folder])
        with contextlib.suppress(OSError):
            folder.rmdir()
