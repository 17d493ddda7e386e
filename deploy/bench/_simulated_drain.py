"""A drain of many VMs in a simulated cluster: all of Hostler is real but its drivers.

Temporal's dev server on a file, the inventory on SQLite, API and worker run as `hostler up` runs
them. While VMs leave the host, this program asks once a second, as an operator's page would, and
looks at what the processes take. Exit code 1 if one of issue 4's demands is missed.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from _histories import Run, runs_of, stored_bytes
from _report import EVENTS_PER_VM, BenchFailed, Report, quantile
from temporalio.client import WorkflowHandle

from contracts.maintenance import MaintenanceStatus
from contracts.states import Phase
from tests.simulation.system import SOURCE, Moved, SimulatedSystem

_EVERY_S = 1.0
_LATENCY_MS = 200.0
_WORKFLOW = f"maintenance/{SOURCE}"
# Temporal's own limits per run; beyond the first it warns, at the second it ends the run.
_EVENTS_WARN, _EVENTS_LIMIT = 10_240, 51_200
_BYTES_WARN, _BYTES_LIMIT = 10 * 2**20, 50 * 2**20
_PAYLOAD_LIMIT = 2 * 2**20
_MOST_FAILURES = 5
_VIEW = "GET /v1/hosts/{name}/maintenance"
# A worker's memory may rise by so much while VMs leave, once it is warm.
_GROWTH_MIB = 16.0
_WARM_AFTER = 0.2  # of the VMs


@dataclass
class Samples:
    """What was seen, once a second."""

    query_ms: list[float] = field(default_factory=list)
    view_ms: list[float] = field(default_factory=list)
    hostler_mib: list[float] = field(default_factory=list)
    temporal_mib: list[float] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def warm(self, series: list[float], vms: int) -> list[float]:
        """The part of a series from when a share of the VMs had left."""
        first = sum(1 for moved in self.moved if moved < _WARM_AFTER * vms)
        return series[first:] or series[-1:]


async def main(arguments: argparse.Namespace) -> int:
    """Run it and print what was measured."""
    with ExitStack() as stack:
        directory = arguments.directory or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="hostler-simulated-drain-")
        )
        simulation = SimulatedSystem(
            Path(directory), hosts=arguments.hosts, vms=arguments.vms, seed=arguments.seed
        )
        stack.callback(simulation.system.stop)
        process = await simulation.up()
        _say(f"{arguments.hosts} hosts are added ({directory})")
        await simulation.add_hosts()
        stored = stored_bytes(simulation.system.home)
        _say(f"{SOURCE} is drained: {arguments.vms} VMs, {arguments.parallel} at a time")
        began = time.monotonic()
        await simulation.enter(arguments.parallel)
        samples = await _watch(simulation, process.pid)
        seconds = time.monotonic() - began
        runs = await runs_of(await simulation.system.client(), _WORKFLOW)
        grown = stored_bytes(simulation.system.home) - stored
        moved = simulation.moved()
    report = Report()
    _tell(report, arguments.vms, moved, samples, runs, seconds, grown)
    return report.close()


async def _watch(simulation: SimulatedSystem, pid: int) -> Samples:
    """Until the host is empty."""
    samples = Samples()
    handle = await simulation.system.workflow(_WORKFLOW)
    token = (simulation.system.home / "admin-token").read_text().strip()
    temporal = _child_of(pid, "temporal")
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{simulation.system.api_port}",
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    ) as http:
        while True:
            due = time.monotonic() + _EVERY_S
            status = await _timed(samples.query_ms, samples.failures, lambda: _query(handle))
            await _timed(samples.view_ms, samples.failures, lambda: _view(http))
            samples.hostler_mib.append(_rss_mib(pid))
            samples.temporal_mib.append(_rss_mib(temporal))
            samples.moved.append(len(simulation.moved()))
            samples.load.append(os.getloadavg()[0])
            if status is not None and status.phase in (Phase.READY, Phase.QUESTION):
                if status.phase is Phase.QUESTION:
                    raise BenchFailed(status.message)
                return samples
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _query(handle: WorkflowHandle[Any, Any]) -> MaintenanceStatus:
    status: MaintenanceStatus = await handle.query("status", result_type=MaintenanceStatus)
    return status


async def _view(http: httpx.AsyncClient) -> None:
    (await http.get(f"/v1/hosts/{SOURCE}/maintenance")).raise_for_status()


async def _timed(
    series: list[float],
    failures: list[str],
    question: Callable[[], Awaitable[Any]],
) -> Any:
    """The answer, with the milliseconds that it took noted; a failure is an answer too."""
    began = time.monotonic()
    try:
        return await question()
    except Exception as error:
        failures.append(" ".join(f"{type(error).__name__}: {error}".split()))
        return None
    finally:
        series.append((time.monotonic() - began) * 1000)


def _tell(
    report: Report,
    vms: int,
    moved: list[Moved],
    samples: Samples,
    runs: list[Run],
    seconds: float,
    grown: int,
) -> None:
    times = Counter(one.vm for one in moved)
    report.title(f"{vms} VMs left {SOURCE} in {seconds:.1f} s")
    once = len(times) == vms and set(times.values()) == {1}
    report.demand("VMs moved, each once", len(times), f"= {vms}", once)
    report.line("migrations' own time, summed", f"{sum(one.seconds for one in moved):.1f} s")
    _tell_history(report, runs, vms, grown)
    _tell_latency(report, samples)
    _tell_memory(report, samples, vms)


def _tell_history(report: Report, runs: list[Run], vms: int, grown: int) -> None:
    report.title("History")
    for number, run in enumerate(runs, start=1):
        report.line(f"run {number}", f"{len(run.events)} events, {run.size_bytes} bytes")
    events = max(len(run.events) for run in runs)
    wanted = f"< {_EVENTS_WARN}, where Temporal warns; its limit is {_EVENTS_LIMIT}"
    report.demand("most events of a run", events, wanted, events < _EVENTS_WARN)
    size = max(run.size_bytes for run in runs)
    wanted = f"< {_BYTES_WARN}, where Temporal warns; its limit is {_BYTES_LIMIT}"
    report.demand("most bytes of a run", size, wanted, size < _BYTES_WARN)
    in_all = sum(len(run.events) for run in runs)
    wanted, met = f"<= {EVENTS_PER_VM}", in_all <= EVENTS_PER_VM * vms
    report.demand("events per VM, all runs", round(in_all / vms, 2), wanted, met)
    migrating = sum(run.during("migrate_vm") for run in runs)
    report.line("of them from first to last migration", round(migrating / vms, 2))
    largest = max(event.ByteSize() for run in runs for event in run.events)
    wanted = f"< {_PAYLOAD_LIMIT}, Temporal's limit of a payload"
    report.demand("bytes of the largest event", largest, wanted, largest < _PAYLOAD_LIMIT)
    report.line("bytes of history per VM", round(sum(run.size_bytes for run in runs) / vms))
    report.line("growth of temporal.db and its WAL per VM", f"{grown / vms:.0f} bytes")


def _tell_latency(report: Report, samples: Samples) -> None:
    report.title("Latency, once a second")
    for name, series in (("query `status`", samples.query_ms), (_VIEW, samples.view_ms)):
        middle, high = quantile(series, 0.5), quantile(series, 0.99)
        report.line(name, f"{len(series)} asked, median {middle:.0f} ms, p99 {high:.0f} ms")
        wanted, met = f"<= {_LATENCY_MS:.0f} ms", max(series) <= _LATENCY_MS
        report.demand(f"{name}, longest", f"{max(series):.0f} ms", wanted, met)
    load = f"{samples.load[0]:.1f} at the start, {max(samples.load):.1f} at most"
    report.line("load average of the machine", load)
    report.demand("questions without answer", len(samples.failures), "= 0", not samples.failures)
    for failure in samples.failures[:_MOST_FAILURES]:
        report.line("", failure)


def _tell_memory(report: Report, samples: Samples, vms: int) -> None:
    report.title("Resident memory, from when a fifth of the VMs had left")
    for name, series in (
        ("hostler up (worker and API)", samples.hostler_mib),
        ("temporal server", samples.temporal_mib),
    ):
        warm = samples.warm(series, vms)
        report.line(name, f"first {warm[0]:.1f}, last {warm[-1]:.1f}, most {max(warm):.1f} MiB")
    warm = samples.warm(samples.hostler_mib, vms)
    growth = max(warm) - warm[0]
    wanted = f"<= {_GROWTH_MIB:.0f} MiB"
    report.demand("growth of hostler up", f"{growth:.1f} MiB", wanted, growth <= _GROWTH_MIB)


def _rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _child_of(pid: int, name: str) -> int:
    """The process id of a child by its program's name."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(c) for c in children if Path(f"/proc/{c}/comm").read_text().strip() == name)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="simulated-drain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--vms", type=int, default=500, help="on the host that is drained (500)")
    parser.add_argument("--hosts", type=int, default=50, help="in its cluster (50)")
    parser.add_argument("--parallel", type=int, default=10, help="migrations at a time (10)")
    parser.add_argument("--seed", type=int, default=1, help="of the migrations' durations (1)")
    parser.add_argument("--directory", help="for state and logs; default: a new one")
    return parser.parse_args(words)
