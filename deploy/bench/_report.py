"""What a bench prints: figures, and demands that were met or missed."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from math import ceil
from pathlib import Path

EVENTS_PER_VM = 12  # of a maintenance's histories, at most


class BenchFailed(Exception):
    """There is nothing to report; the message says why."""


class Report:
    """Printed as it grows."""

    def __init__(self) -> None:
        self._missed: list[str] = []
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {_machine()}, commit {_commit()}")
        print(f"{Path(sys.argv[0]).name.lstrip('_')} {' '.join(sys.argv[1:])}".rstrip())

    def title(self, text: str) -> None:
        """A headline."""
        print(f"\n{text}", flush=True)

    def line(self, name: str, value: object) -> None:
        """A figure."""
        print(f"  {name:44} {value}", flush=True)

    def demand(self, name: str, value: object, wanted: str, met: bool) -> None:
        """A figure that has to be as wanted."""
        print(f"  {name:44} {value}   {'met' if met else 'MISSED'}: {wanted}", flush=True)
        if not met:
            self._missed.append(name)

    def close(self) -> int:
        """The exit code: 1 if a demand was missed."""
        if self._missed:
            print(f"\nMissed: {'; '.join(self._missed)}", flush=True)
        return 1 if self._missed else 0


def quantile(series: list[float], share: float) -> float:
    """The smallest value that `share` of the series do not exceed."""
    return sorted(series)[max(0, ceil(share * len(series)) - 1)]


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return (
        f"{len(models)} x {models[0] if models else platform.machine()}, "
        f"{memory_kib / 2**20:.0f} GiB, Linux {platform.release()}"
    )


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
