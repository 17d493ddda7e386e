"""A host is emptied in three ways, one after the other, each from the same start.

- `virsh migrate`, one VM after another;
- `virsh migrate`, with GNU parallel, as many at a time as Hostler;
- HostMaintenance.

All are managed migrations with the same flags and the same bandwidth. virsh runs on this machine
and reaches the libvirtds by their sockets, without SSH: it can't be quicker. Hostler reaches them
as always, through SSH. What is compared is the time from the first migration's start to the last
one's end; what Hostler does before and after stands beside it.

Needs root and the lab, which must be used by nobody else meanwhile: it makes guests on a host that
has none, and removes them, as well as every trace of Hostler on the hosts. Exit code 1 if one of
issue 4's demands is missed.
"""

import argparse
import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from _histories import Run, runs_of, stored_bytes
from _report import EVENTS_PER_VM, BenchFailed, Report
from temporalio.client import WorkflowFailureError

from hostlerlab.host import Host
from tests.e2e.system import System
from tests.lab import Lab

HOSTS = ("kvm-1", "kvm-2", "kvm-3")
RATIO = 1.15
LEAST_S = 60.0
# Room for all guests on any host: what is measured is how they move, not whether they may.
_CAPACITY = ("--capacity-memory-mib", "12288", "--capacity-cpus", "128")
_FLAGS = ("--live", "--persistent", "--undefinesource", "--abort-on-error")
_STARTS_AT_A_TIME = 4
_SETTLE_S = 5.0


@dataclass(frozen=True)
class Scene:
    """The host that is emptied, where its guests go to, and how."""

    lab: Lab
    source: str
    destinations: tuple[str, ...]
    guests: tuple[str, ...]
    bandwidth_mib_s: int
    parallel: int

    def destination(self, guest: str) -> str:
        """In turn, which is how Hostler spreads VMs of one size."""
        return self.destinations[self.guests.index(guest) % len(self.destinations)]


@dataclass(frozen=True)
class Taken:
    """Seconds of one way: of the migrations, before their begin, and after their end."""

    migrations: float
    before: float = 0.0
    after: float = 0.0


@dataclass(frozen=True)
class Drained:
    """Hostler's way: its time and what Temporal keeps of it."""

    taken: Taken
    runs: list[Run]
    grown_bytes: int
    migrating_s: list[float]


async def main(arguments: argparse.Namespace) -> int:
    """Set the scene, go all three ways, clear up, report."""
    _require_programs()
    lab = Lab()
    await lab.up()
    scene = await _set_scene(lab, arguments)
    try:
        await _start_guests(scene, arguments.busy, arguments.dirty)
        _say("virsh, one after another")
        one_by_one = await asyncio.to_thread(_one_by_one, scene)
        await _bring_back(scene)
        _say(f"virsh with GNU parallel, {scene.parallel} at a time")
        parallel = await asyncio.to_thread(_in_parallel, scene)
        await _bring_back(scene)
        _say(f"HostMaintenance, {scene.parallel} at a time")
        hostler = await _maintenance(scene)
        await _expect(scene, scene.destinations)
    finally:
        await _clear_up(scene)
    report = Report()
    _tell(report, scene, arguments, one_by_one, parallel, hostler)
    return report.close()


# --- the scene ----------------------------------------------------------------------------------


def _require_programs() -> None:
    if os.geteuid() != 0:
        sys.exit("drain: must run as root: it enters the lab's hosts.")
    packages = {"virsh": "libvirt-clients", "parallel": "parallel"}
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing:
        _say(f"Installing {' '.join(missing)}")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


async def _set_scene(lab: Lab, arguments: argparse.Namespace) -> Scene:
    taken = {host for guest in (await lab.status())["guests"] for host in guest["hosts"]}
    free = [host for host in HOSTS if host not in taken]
    if not free:
        sys.exit("drain: every host of the lab has guests; it needs one without.")
    for host in HOSTS:
        await _forget_hostler(lab, host)
    return Scene(
        lab=lab,
        source=free[0],
        destinations=tuple(host for host in HOSTS if host != free[0]),
        guests=tuple(f"bench-{number}" for number in range(1, arguments.guests + 1)),
        bandwidth_mib_s=arguments.bandwidth,
        parallel=arguments.parallel,
    )


async def _forget_hostler(lab: Lab, host: str) -> None:
    await lab.exec(host, "rm", "-rf", "/etc/hostler", "/etc/libvirt/hooks/qemu.d/hostler")


async def _start_guests(scene: Scene, busy: int, dirty: int) -> None:
    _say(f"{len(scene.guests)} guests start on {scene.source}")
    some = asyncio.Semaphore(_STARTS_AT_A_TIME)

    async def start(guest: str) -> None:
        async with some:
            await scene.lab.remove_guest(guest)
            rewrites = dirty if guest in scene.guests[:busy] else None
            await scene.lab.start_guest(guest, on=scene.source, dirty=rewrites)

    await asyncio.gather(*(start(guest) for guest in scene.guests))
    await asyncio.sleep(_SETTLE_S)


async def _bring_back(scene: Scene) -> None:
    """All guests on the source again, as fast as they can."""
    await _expect(scene, scene.destinations)
    for guest in scene.guests:
        back = _migrate(scene, guest, scene.destination(guest), scene.source, bandwidth=None)
        await asyncio.to_thread(_run, back)
    await _expect(scene, (scene.source,))
    await asyncio.sleep(_SETTLE_S)


async def _expect(scene: Scene, hosts: tuple[str, ...]) -> None:
    """Every guest on exactly one host, one of `hosts`, by libvirt's word."""
    places = {guest["name"]: guest["hosts"] for guest in (await scene.lab.status())["guests"]}
    for guest in scene.guests:
        if len(places[guest]) != 1 or places[guest][0] not in hosts:
            raise BenchFailed(f"{guest} runs on {places[guest]}, not on one of {hosts}.")


async def _clear_up(scene: Scene) -> None:
    for guest in scene.guests:
        await scene.lab.remove_guest(guest)
    for host in HOSTS:
        await _forget_hostler(scene.lab, host)


# --- virsh --------------------------------------------------------------------------------------


def _uri(host: str) -> str:
    leader = Host(host).leader()
    if leader is None:
        raise BenchFailed(f"{host} does not run.")
    return f"qemu+unix:///system?socket=/proc/{leader.pid}/root/run/libvirt/libvirt-sock"


def _migrate(
    scene: Scene, guest: str, source: str, destination: str, *, bandwidth: int | None
) -> list[str]:
    """The command."""
    bound = [] if bandwidth is None else ["--bandwidth", str(bandwidth)]
    return [
        *("virsh", "--quiet", "--connect", _uri(source), "migrate", *_FLAGS, *bound),
        *("--migrateuri", f"tcp://{Host(destination).address}"),
        *(guest, _uri(destination)),
    ]


def _away(scene: Scene, guest: str) -> list[str]:
    return _migrate(
        scene,
        guest,
        scene.source,
        scene.destination(guest),
        bandwidth=scene.bandwidth_mib_s,
    )


def _one_by_one(scene: Scene) -> Taken:
    began = time.monotonic()
    for guest in scene.guests:
        _run(_away(scene, guest))
    return Taken(time.monotonic() - began)


def _in_parallel(scene: Scene) -> Taken:
    """By GNU parallel's own log: begin and length of every job."""
    commands = "\n".join(shlex.join(_away(scene, guest)) for guest in scene.guests)
    with tempfile.NamedTemporaryFile("r", suffix=".joblog") as log:
        subprocess.run(
            [
                "parallel",
                "--jobs",
                str(scene.parallel),
                "--halt",
                "now,fail=1",
                "--joblog",
                log.name,
            ],
            input=commands,
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows = [line.split("\t") for line in log.read().splitlines()[1:]]
    starts = [float(row[2]) for row in rows]
    ends = [float(row[2]) + float(row[3]) for row in rows]
    return Taken(max(ends) - min(starts))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"{' '.join(command)}: {done.stderr.strip()}")


# --- Hostler ------------------------------------------------------------------------------------


async def _maintenance(scene: Scene) -> Drained:
    with tempfile.TemporaryDirectory(prefix="hostler-drain-") as directory:
        system = System(Path(directory))
        try:
            await system.start("Hostler is ready.", "hostler", "up")
            await _add_lab(system, scene)
            stored = stored_bytes(system.home)
            began = time.time()
            await system.done("maintenance", "enter", scene.source, "--reason", "bench")
            view = await _ready(system, scene)
            ended = time.time()
            if view["phase"] != "Ready":
                raise BenchFailed(view["message"])
            runs = await runs_of(await system.client(), view["workflow_id"])
            drained = _as_drained(view, runs, stored_bytes(system.home) - stored, began, ended)
            await system.done("maintenance", "leave", scene.source)
        finally:
            system.stop()
    return drained


async def _ready(system: System, scene: Scene) -> dict[str, Any]:
    """The view of the maintenance when it is ready, or asks. One that was refused has ended."""
    workflow = await system.workflow(f"maintenance/{scene.source}")
    phase = asyncio.create_task(system.until_phase(scene.source, "Ready", "Question"))
    end = asyncio.create_task(workflow.result())
    await asyncio.wait({phase, end}, return_when=asyncio.FIRST_COMPLETED)
    if phase.done():
        end.cancel()
        return phase.result()
    phase.cancel()
    raise BenchFailed(f"The maintenance has ended: {_reason(end.exception())}")


def _reason(error: BaseException | None) -> str:
    return str(error.cause if isinstance(error, WorkflowFailureError) else error)


async def _add_lab(system: System, scene: Scene) -> None:
    for kind, name, parent in (
        ("zone", "zone-1", ()),
        ("pod", "pod-1", ("--zone", "zone-1")),
        ("cluster", "cluster-1", ("--pod", "pod-1")),
    ):
        await system.done(kind, "create", name, *parent)
        await system.done(kind, "enable", name)
    for setting, value in (
        ("migration.bandwidth", scene.bandwidth_mib_s),
        ("migration.parallel.max", scene.parallel),
    ):
        await system.done("setting", "set", setting, str(value), "--cluster", "cluster-1")
    for row in (await scene.lab.status())["hosts"]:
        await system.done(
            *("host", "add", row["name"], "--cluster", "cluster-1", "--address", row["address"]),
            *("--password-file", row["password_file"]),
            *("--accept-host-key", row["host_key_sha256"]),
            *_CAPACITY,
        )


def _as_drained(
    view: dict[str, Any], runs: list[Run], grown: int, began: float, ended: float
) -> Drained:
    migrations = view["migrations"]
    starts = [_seconds(migration["started_at"]) for migration in migrations]
    ends = [_seconds(migration["finished_at"]) for migration in migrations]
    return Drained(
        taken=Taken(
            migrations=max(ends) - min(starts), before=min(starts) - began, after=ended - max(ends)
        ),
        runs=runs,
        grown_bytes=grown,
        migrating_s=[vm["seconds"] for vm in view["vms"] if vm["seconds"] is not None],
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


# --- the report ---------------------------------------------------------------------------------


def _tell(
    report: Report,
    scene: Scene,
    arguments: argparse.Namespace,
    one_by_one: Taken,
    parallel: Taken,
    hostler: Drained,
) -> None:
    vms = len(scene.guests)
    report.title(
        f"{vms} guests leave {scene.source}, {arguments.busy} of them rewriting {arguments.dirty} "
        f"MiB for ever; {scene.bandwidth_mib_s} MiB/s per migration"
    )
    report.line("virsh migrate, one after another", f"{one_by_one.migrations:.1f} s")
    report.demand(
        f"virsh migrate, GNU parallel -j{scene.parallel}",
        f"{parallel.migrations:.1f} s",
        f">= {LEAST_S:.0f} s",
        parallel.migrations >= LEAST_S,
    )
    report.line(f"HostMaintenance, {scene.parallel} at a time", f"{hostler.taken.migrations:.1f} s")
    ratio = hostler.taken.migrations / parallel.migrations
    report.demand("HostMaintenance : parallel virsh", f"{ratio:.3f}", f"<= {RATIO}", ratio <= RATIO)
    report.line(
        "HostMaintenance beyond parallel virsh",
        f"{(hostler.taken.migrations - parallel.migrations) / vms:+.2f} s per VM",
    )
    report.line("migrations' own time, summed", f"{sum(hostler.migrating_s):.1f} s")
    report.line("before the first (lease, plan, fence)", f"{hostler.taken.before:.1f} s")
    report.line("after the last (libvirt asked twice, state)", f"{hostler.taken.after:.1f} s")
    report.title("What Temporal keeps")
    events = sum(len(run.events) for run in hostler.runs)
    report.demand(
        "events per VM, all runs",
        f"{events / vms:.1f} ({events} in all)",
        f"<= {EVENTS_PER_VM}",
        events <= EVENTS_PER_VM * vms,
    )
    migrating = sum(run.during("migrate_vm") for run in hostler.runs)
    report.line("of them from first to last migration", f"{migrating / vms:.1f}")
    size = sum(run.size_bytes for run in hostler.runs)
    report.line("bytes of history per VM", f"{size / vms:.0f} ({size} in all)")
    report.line(
        "growth of temporal.db and its WAL per VM", f"{hostler.grown_bytes / vms:.0f} bytes"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="drain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guests", type=int, default=16, help="on the host (16)")
    parser.add_argument("--busy", type=int, default=2, help="guests that rewrite memory (2)")
    parser.add_argument("--dirty", type=int, default=1, metavar="MiB", help="that they rewrite (1)")
    parser.add_argument(
        "--bandwidth", type=int, default=11, metavar="MiB/s", help="of each migration (11)"
    )
    parser.add_argument("--parallel", type=int, default=2, help="migrations at a time (2)")
    return parser.parse_args(words)
