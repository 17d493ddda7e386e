"""Which process is ours: a pid alone is not proof, it may have been given away again."""

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .paths import LAB_PROGRAM

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


@dataclass(frozen=True)
class Process:
    """A process of the lab, known by pid, start time and the boot of the machine it runs on."""

    pid: int
    started: int
    machine_boot: str

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this pid now."""
        stat = _stat(pid)
        return cls(pid, stat[1], _BOOT_ID.read_text().strip()) if stat else None

    @classmethod
    def load(cls, path: Path) -> "Process | None":
        """The recorded process if it still runs."""
        try:
            process = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return process if process.alive() else None

    def save(self, path: Path) -> None:
        """Record it, whole or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(path)

    def alive(self) -> bool:
        """True while this very process runs (a zombie does not)."""
        stat = _stat(self.pid)
        return (
            stat is not None
            and stat[0] not in "ZX"
            and stat[1] == self.started
            and self.machine_boot == _BOOT_ID.read_text().strip()
        )

    def send(self, signal_number: int) -> None:
        """Signal it if it is still the same process."""
        if self.alive():
            try:
                os.kill(self.pid, signal_number)
            except ProcessLookupError:
                return

    def gone(self, timeout: float) -> bool:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        """SIGKILL and wait."""
        self.send(signal.SIGKILL)
        self.gone(10)


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_namespace_init(pid: int) -> bool:
    """True for the pid 1 of a container."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    line = next((ln for ln in status.splitlines() if ln.startswith("NSpid:")), "")
    numbers = line.split()[1:]
    return len(numbers) > 1 and numbers[-1] == "1"


def strays(program: Path = LAB_PROGRAM) -> list[Process]:
    """Supervisors and BMCs of this very program that no record names, or not yet."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argv[1:2] == [str(program).encode()] and argv[2:3] in ([b"_supervise"], [b"_bmc"]):
            process = Process.of(int(entry.name))
            if process is not None and process.alive():
                found.append(process)
    return found
