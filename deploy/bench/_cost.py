"""What a process and all below it take: CPU seconds, and memory at most."""

import os
import threading
from contextlib import suppress
from pathlib import Path

_EVERY_S = 0.05
_MIB = 2**20


def family(pid: int) -> list[int]:
    """The process and all that descend from it, as far as they still run; each must have been
    started by the first thread of its parent."""
    found, to_do = [], [pid]
    while to_do:
        one = to_do.pop()
        found.append(one)
        with suppress(OSError):
            to_do += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Of the process, of all below it, and of those below that were waited for; in ticks of the
    kernel, as a rule 0.01 s."""
    ticks = 0
    for one in family(pid):
        with suppress(OSError):
            # Its name may have spaces. utime, stime, cutime and cstime: see proc(5).
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class MemoryPeak:
    """Looks at a process and all below it until the block ends. `mib`: resident at the same time,
    at most; what several of them share counts for each."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.mib = 0.0

    def __enter__(self) -> "MemoryPeak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            pages = 0
            for one in family(self._pid):
                with suppress(OSError):
                    pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
            self.mib = max(self.mib, pages * page / _MIB)
            if self._end.wait(_EVERY_S):
                return
