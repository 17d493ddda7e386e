"""Each host's own control groups.

Hosts that share one see each other's units, since every systemd takes the group that it is started
in for the root of its own tree: an incoming migration then fails with "Unit machine-qemu-1-vm.scope
was already loaded" because of the guest's scope at the source. The groups also name every process
of a host, recorded or not.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from . import paths
from .shell import LabError

_EMPTY_WITHIN = 10  # seconds


def _groups(name: str) -> list[Path]:
    """This host's group in every hierarchy of the machine, version 1 or 2."""
    groups = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            groups.append(Path(before.split()[4]) / paths.CGROUP / name)
    return groups


def members(name: str) -> set[int]:
    """Every process of the host, its supervisor among them."""
    pids: set[int] = set()
    for group in _groups(name):
        for folder, _, _ in os.walk(group):
            try:
                pids |= {int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split()}
            except OSError:
                continue
    return pids - {0}


def enter(name: str) -> None:
    """Move this process, and what it starts from now on, into the host's groups."""
    for group in _groups(name):
        try:
            for folder in (group.parent, group):
                folder.mkdir(exist_ok=True)
                for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts them empty
                    if (folder / setting).exists():
                        (folder / setting).write_text((folder.parent / setting).read_text())
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            sys.stderr.write(f"supervisor: no group {group}: {error}\n")


def leave(name: str) -> None:
    """Move this process out again, so that the groups can be removed."""
    for group in _groups(name):
        try:
            (group.parent.parent / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            continue


def remove(name: str) -> None:
    """Remove the groups of a host that does not run.

    Raises:
        LabError: processes of the host are still in them after ten seconds.
    """
    deadline = time.monotonic() + _EMPTY_WITHIN
    while held := [group for group in _groups(name) if not _removed(group)]:
        # A killed process leaves its group at the end of its exit, which takes time under load.
        if time.monotonic() > deadline:
            raise LabError(f"{held[0]} is still in use, by {sorted(members(name)) or 'no process'}")
        time.sleep(0.05)


def _removed(group: Path) -> bool:
    """Whether the group is gone now; the lab's own goes with the last host's."""
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()
    with suppress(OSError):
        group.parent.rmdir()
    return not group.exists()
