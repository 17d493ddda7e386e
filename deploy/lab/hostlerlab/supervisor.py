"""The process beside each host: it boots the host, and boots it again when it reboots."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from . import cgroups, paths
from .host import DROPPED, Host
from .image import Image
from .processes import Process, children, is_namespace_init
from .shell import clean_environment, die_with_parent, is_mounted

_REBOOT = 133  # what nspawn --keep-unit ends with when its container asked for a reboot
_GRACE = 1.5  # a lab host is thrown away: it may flush its files, not more
_HALT = signal.SIGRTMIN + 3  # systemd's "halt" for a container's pid 1

# CAP_SYS_BOOT stays: without it systemd's reboot ends like a poweroff (nspawn: 0 instead of 133).
# In a container, reboot() ends the container alone; kexec, which would reach further, is refused.
_REFUSED_CALLS = "~kexec_load kexec_file_load"


def _nspawn_command(host: Host, guest_files: Path) -> list[str]:
    return [
        "systemd-nspawn", "--quiet", "--boot", "--settings=no", "--keep-unit", "--register=no",
        f"--directory={host.root}", f"--machine={host.name}", f"--hostname={host.name}",
        f"--network-namespace-path={paths.NETNS_DIR / host.netns}",
        "--capability=all", f"--drop-capability={','.join(DROPPED)}",
        f"--system-call-filter={_REFUSED_CALLS}",
        "--bind=/dev/net/tun", f"--bind={paths.CONSOLES}:/shared/consoles",
        f"--bind-ro={guest_files}:/shared/guest",
        "--kill-signal=SIGRTMIN+3", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
        "--console=read-only",
    ]  # fmt: skip


def supervise(name: str) -> int:
    """Run one host until it is powered off, killed, or this process gets SIGTERM."""
    host = Host(name)
    if not host.run_dir.is_dir():
        return 1  # `lab down` was faster
    lock = (host.run_dir / "supervisor.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # another one is at it
    me = Process.of(os.getpid())
    if me is None or not is_mounted(host.root) or host.machine_uuid() is None:
        return 1
    me.save(host.supervisor_record)

    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        leader = host.leader()
        if leader is None:
            host.kill_container()
            return
        leader.send(_HALT)
        signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def kill(_signal: int, _frame: FrameType | None) -> None:
        host.kill_container()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, kill)

    status = _REBOOT
    while status == _REBOOT and not stopping:
        status = _boot_once(host)
        sys.stderr.write(f"supervisor: {name} ended with {status}\n")
        sys.stderr.flush()
    host.unplug()
    return 0  # the record stays: the host's power is on until this process has given its lock back


def _boot_once(host: Host) -> int:
    """One boot of the host, from power-on to the end of its container; its exit status."""
    host.kill_container()  # what a killed supervisor may have left
    for record in (host.leader_record, host.nspawn_record):
        record.unlink(missing_ok=True)
    cgroups.leave(host.name)
    cgroups.remove(host.name)
    host.plug_in()
    cgroups.enter(host.name)
    guest_files = Image(_lowerdir(host.root).parent).guest
    container = subprocess.Popen(
        _nspawn_command(host, guest_files),
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=clean_environment(),
        preexec_fn=die_with_parent(),
    )
    process = Process.of(container.pid)
    if process is not None:
        process.save(host.nspawn_record)
    while container.poll() is None:
        leader = next((pid for pid in children(container.pid) if is_namespace_init(pid)), None)
        process = Process.of(leader) if leader is not None else None
        if process is not None:
            process.save(host.leader_record)
            break
        time.sleep(0.02)
    status = container.wait()
    host.kill_container()
    return status


def _lowerdir(root: Path) -> Path:
    """The build under an overlay: guests' files come from the same one."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == str(root):
            options = dict(o.partition("=")[::2] for o in after.split()[2].split(","))
            return Path(options["lowerdir"])
    raise FileNotFoundError(f"{root} is not mounted")
