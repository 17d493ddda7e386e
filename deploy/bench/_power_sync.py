"""Hostler's sweep over simulated BMCs against the ways in which their power is asked otherwise.

All in one run, over 50, 200, 1,000 and 2,000 of them, first with all alive, then with every tenth
mute, one after another:

    50 ipmitool processes at a time, as CloudStack does it: `-R 1`, and `-C 3`
    ipmipower --stat of FreeIPMI, all BMCs in one call, as it is and with `--fanout 100`
    pyghmi with a thread per BMC
    Hostler: activities, inventory (SQLite) and driver as a worker has them; the first round, in
    which it logs in everywhere, and next ones

Of ipmipower and of Hostler's next rounds, each figure is the median of `--rounds`. With all alive,
there is a round more, in which every tenth falls mute. The interval is 5 s, the least that can be
set, so that BMCs that are known to be mute are due again in rounds that are measured; all other
settings have their defaults. CPU seconds and memory are those of all processes of a contender; the
simulated BMCs are not counted, and go first. It takes root, and the addresses from 127.40.0.1 on,
port 623. ipmitool and FreeIPMI come by apt if they are missing.

Exit code 1 if one of issue 6's demands is missed.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from _bmc_fleet import PASSWORD, PORT, USER, BmcFleet, SimulatedBmc
from _cost import MemoryPeak, cpu_seconds
from _report import BenchFailed, Report
from sqlmodel import select

from contracts.oobm import DEFAULT_DRIVER, endpoint
from contracts.settings import OOBM_SYNC_INTERVAL, OOBM_SYNC_TIMEOUT
from contracts.states import ResourceState
from inventory import Database, Inventory, SecretBox
from inventory.models import ClusterRow, HostRow, OobmRow

_BENCH = Path(__file__).parent
_INSTALL = f'. "{_BENCH.parent}/install.sh"; install_packages ipmitool freeipmi-tools'
_SIZES = (50, 200, 1000, 2000)
_EVERY_TENTH = 10
_AT_A_TIME = 50
_FANOUT = 100
_SESSION_TIMEOUT_MS = 5000  # of ipmipower, which has 20,000; mute BMCs cost it so much
_PAUSE_S = 0.5
# Issue 6's demands, at so many BMCs.
_DEMANDED_AT = 1000
_WARM_FASTER, _WARM_CPU, _COLD_FASTER, _MUTE_COSTS = 12.0, 80.0, 3.0, 1.3
_IPMITOOL = f"ipmitool, {_AT_A_TIME} at a time"
_IPMIPOWER = ("ipmipower", f"ipmipower --fanout {_FANOUT}")
_THREADS = "pyghmi, a thread per BMC"
_COLD, _WARM = "Hostler, first round", "Hostler, next rounds"
_FALLING = "Hostler, round in which a tenth falls mute"


@dataclass(frozen=True)
class Taken:
    """`answers`: right ones. `all_seen_s`: until the inventory had what all of those that are not
    mute said; None for those who have no inventory. `killed`: it did not end."""

    seconds: float
    cpu_s: float
    mib: float
    answers: int
    all_seen_s: float | None = None
    killed: bool = False


@dataclass(frozen=True)
class Case:
    """So many BMCs, of which some are mute."""

    bmcs: Sequence[SimulatedBmc]
    mute: Sequence[SimulatedBmc]

    @property
    def alive(self) -> list[SimulatedBmc]:
        """Those that answer."""
        silent = {bmc.number for bmc in self.mute}
        return [bmc for bmc in self.bmcs if bmc.number not in silent]

    def right(self, said: Sequence[tuple[str, str]]) -> int:
        """How many that are alive have the state that was said of their address."""
        return len({*said} & {(bmc.address, "on" if bmc.on else "off") for bmc in self.alive})


def main(arguments: argparse.Namespace) -> int:
    """Run it and print what was measured."""
    if subprocess.run(["bash", "-c", _INSTALL], check=False).returncode != 0:
        raise BenchFailed("ipmitool and freeipmi-tools can't be installed")
    # For ipmipower, which has a socket per BMC; so have the simulated ones.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    report = Report()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostler-")))
        fleet = BmcFleet(directory, max(arguments.sizes))
        stack.callback(fleet.close)
        for size in arguments.sizes:
            bench = _Bench(directory, fleet, size, arguments.rounds, arguments.patience)
            alive = bench.run(share=0)
            _tell(report, f"{size} BMCs, all alive", size, alive)
            _demand_speed(report, size, alive)
            mute = bench.run(share=1)
            live = len(bench.case(share=1).alive)
            _tell(report, f"{size} BMCs, {size - live} mute", live, mute)
            _demand_patience(report, alive, mute)
            _demand_answers(report, size, live, alive, mute)
    return report.close()


class _Bench:
    """All contenders, over BMCs of one number."""

    def __init__(
        self, directory: Path, fleet: BmcFleet, size: int, rounds: int, patience: float
    ) -> None:
        self._directory, self._fleet = directory, fleet
        self._bmcs = fleet.bmcs[:size]
        self._rounds, self._patience = rounds, patience

    def case(self, share: int) -> Case:
        """With so many of ten mute."""
        mute = [bmc for bmc in self._bmcs if bmc.number % _EVERY_TENTH >= _EVERY_TENTH - share]
        return Case(self._bmcs, mute)

    def run(self, share: int) -> dict[str, Taken]:
        """By contender."""
        case = self.case(share)
        _say(f"{len(case.bmcs)} BMCs, {len(case.mute)} of them mute")
        taken: dict[str, Taken] = {}
        contenders: dict[str, Callable[[Case], Taken]] = {
            _IPMITOOL: self._ipmitool,
            _IPMIPOWER[0]: self._ipmipower,
            _IPMIPOWER[1]: lambda case: self._ipmipower(case, f"--fanout={_FANOUT}"),
            _THREADS: self._threads,
        }
        for name, contender in contenders.items():
            _say(f"  {name}")
            self._fleet.prepare(case.mute)
            taken[name] = contender(case)
            time.sleep(_PAUSE_S)
        _say("  Hostler")
        self._fleet.prepare(case.mute)
        with _Hostler(self._directory / f"{len(case.bmcs)}-{share}.db", case) as hostler:
            taken[_COLD] = hostler.round(case)
            taken[_WARM] = _median([hostler.round(case) for _ in range(self._rounds)])
            if not case.mute:
                later = self.case(1)
                self._fleet.silence(later.mute)
                taken[_FALLING] = hostler.round(later)
        return taken

    def _ipmitool(self, case: Case) -> Taken:
        addresses = self._directory / "addresses"
        addresses.write_text("".join(f"{bmc.address}\n" for bmc in case.bmcs))
        command = ["xargs", f"--arg-file={addresses}", "-P", str(_AT_A_TIME), "-I{}"]
        command += ["ipmitool", "-I", "lanplus", "-C", "3", "-R", "1", "-U", USER, "-E"]
        command += ["-H", "{}", "-p", str(PORT), "chassis", "power", "status"]
        ran = _run(command, environment={"IPMI_PASSWORD": PASSWORD})
        # It does not say of whom.
        said = Counter(line.rpartition(" ")[2] for line in ran.lines)
        on = sum(bmc.on for bmc in case.alive)
        answers = min(said["on"], on) + min(said["off"], len(case.alive) - on)
        return Taken(ran.seconds, ran.cpu_s, ran.mib, answers)

    def _ipmipower(self, case: Case, *options: str) -> Taken:
        settings = self._directory / "ipmipower.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            f"username {USER}\npassword {PASSWORD}\ndriver-type LAN_2_0\ncipher-suite-id 3\n"
            f"session-timeout {_SESSION_TIMEOUT_MS}\n"
        )
        hosts = ",".join(bmc.address for bmc in case.bmcs)
        command = ["ipmipower", f"--config-file={settings}", *options, "-h", hosts, "--stat"]
        return _median([self._once(case, command) for _ in range(self._rounds)])

    def _once(self, case: Case, command: Sequence[str]) -> Taken:
        """ipmipower."""
        ran = _run(command, patience=self._patience)
        said = [
            (address, state) for address, _, state in (line.partition(": ") for line in ran.lines)
        ]
        return Taken(ran.seconds, ran.cpu_s, ran.mib, case.right(said), killed=ran.killed)

    def _threads(self, case: Case) -> Taken:
        addresses = [bmc.address for bmc in case.bmcs]
        task = {"user": USER, "password": PASSWORD, "addresses": addresses}
        command = [sys.executable, str(_BENCH / "_pyghmi_threads.py")]
        ran = _run(command, task=json.dumps(task), patience=self._patience)
        said = [
            (address, state) for address, _, state in (line.partition(" ") for line in ran.lines)
        ]
        return Taken(ran.seconds, ran.cpu_s, ran.mib, case.right(said), killed=ran.killed)


@dataclass(frozen=True)
class _Ran:
    seconds: float
    cpu_s: float
    mib: float
    lines: list[str]
    killed: bool


def _run(
    command: Sequence[str],
    *,
    task: str | None = None,
    patience: float | None = None,
    environment: dict[str, str] | None = None,
) -> _Ran:
    """Run it to its end, or kill it when it has taken too long. With a task: from when it says that
    it is ready for that."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=os.environ | (environment or {}),
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("started without pipes")
    spent = 0.0
    if task is not None:
        if process.stdout.readline() != "ready\n":
            raise BenchFailed(f"{command[-1]} does not start")
        spent = cpu_seconds(process.pid)
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(patience or threading.TIMEOUT_MAX, kill)
    began = time.monotonic()
    with MemoryPeak(process.pid) as peak:
        timer.start()
        process.stdin.write(task or "")
        process.stdin.close()
        lines = process.stdout.read().splitlines()
        timer.cancel()
        # What its own children took, which it has waited for, is in there.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    cpu_s = usage.ru_utime + usage.ru_stime - spent
    return _Ran(seconds, cpu_s, peak.mib, lines, killed.is_set())


class _Hostler:
    """Its process, and an inventory of all BMCs of the case."""

    def __init__(self, path: Path, case: Case) -> None:
        url, key = f"sqlite:///{path}", SecretBox.new_key()
        asyncio.run(_fill(Database(url), key, case.bmcs))
        self._process = subprocess.Popen(
            [sys.executable, str(_BENCH / "_power_rounds.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._write({"database": url, "key": key})

    def __enter__(self) -> "_Hostler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def round(self, case: Case) -> Taken:
        """One."""
        time.sleep(_PAUSE_S)
        with MemoryPeak(self._process.pid) as peak:
            self._write({})
            done = self._read()
        seen, states = done["seen"], done["states"]
        right = [bmc.host for bmc in case.alive if states[bmc.host] == ("On" if bmc.on else "Off")]
        times = [seen[host] for host in right if host in seen]
        return Taken(done["seconds"], done["cpu"], peak.mib, len(times), max(times, default=0.0))

    def _write(self, message: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise RuntimeError("started without pipes")
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise BenchFailed("Hostler's process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


async def _fill(database: Database, key: str, bmcs: Sequence[SimulatedBmc]) -> None:
    """An inventory of hosts whose BMCs are enabled and were never asked."""
    await database.upgrade()
    inventory, actor = Inventory(database, SecretBox(key)), "bench"
    await inventory.topology.create_zone("zone-1", actor=actor)
    await inventory.topology.create_pod("pod-1", "zone-1", actor=actor)
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor=actor)
    await inventory.settings.set(OOBM_SYNC_TIMEOUT.name, 4, actor=actor)
    await inventory.settings.set(OOBM_SYNC_INTERVAL.name, 5, actor=actor)
    login = await inventory.secrets.store("password", "none", actor=actor)
    secrets = await inventory.secrets.store_all(
        [("bmc_password", PASSWORD)] * len(bmcs), actor=actor
    )
    async with database.writing() as session:
        cluster_id = cast("int", (await session.exec(select(ClusterRow.id))).one())
        session.add_all(
            HostRow(
                name=bmc.host,
                cluster_id=cluster_id,
                address=bmc.address,
                ssh_port=22,
                user="root",
                secret_id=login,
                host_key_line="",
                host_key_sha256="",
                resource_state=ResourceState.ENABLED,
                state_operation=actor,
                state_step=actor,
            )
            for bmc in bmcs
        )
        await session.flush()
        session.add_all(
            OobmRow(
                host=bmc.host,
                enabled=True,
                address=bmc.address,
                port=PORT,
                endpoint=endpoint(DEFAULT_DRIVER, bmc.address, PORT),
                user=USER,
                secret_id=secret,
            )
            for bmc, secret in zip(bmcs, secrets, strict=True)
        )
    await database.close()


def _median(several: Sequence[Taken]) -> Taken:
    """Of times and CPU; of the answers, the fewest."""
    seen = [one.all_seen_s for one in several if one.all_seen_s is not None]
    return Taken(
        seconds=statistics.median(one.seconds for one in several),
        cpu_s=statistics.median(one.cpu_s for one in several),
        mib=max(one.mib for one in several),
        answers=min(one.answers for one in several),
        all_seen_s=statistics.median(seen) if seen else None,
        killed=any(one.killed for one in several),
    )


def _tell(report: Report, title: str, live: int, taken: dict[str, Taken]) -> None:
    report.title(title)
    for name, one in taken.items():
        figures = f"{one.seconds:7.2f} s, {one.cpu_s:6.2f} s CPU, {one.mib:5.0f} MiB"
        wanted = "" if name == _FALLING else f", {one.answers} of {live} answers"
        seen = "" if one.all_seen_s is None else f", all seen after {one.all_seen_s:.2f} s"
        report.line(name, f"{figures}{wanted}{seen}{', killed' if one.killed else ''}")
    ipmitool = taken[_IPMITOOL]
    for name in (_COLD, _WARM):
        faster = ipmitool.seconds / taken[name].seconds
        less = ipmitool.cpu_s / max(taken[name].cpu_s, 0.01)
        report.line(f"ipmitool / {name}", f"{faster:.1f} x the time, {less:.0f} x the CPU")
    report.line("load average of the machine", f"{os.getloadavg()[0]:.1f}")


def _demand_speed(report: Report, size: int, taken: dict[str, Taken]) -> None:
    if size != _DEMANDED_AT:
        return
    ipmitool, cold, warm = taken[_IPMITOOL], taken[_COLD], taken[_WARM]
    faster = ipmitool.seconds / warm.seconds
    wanted, met = f">= {_WARM_FASTER:.0f}", faster >= _WARM_FASTER
    report.demand("next rounds: faster than ipmitool", f"{faster:.1f} x", wanted, met)
    less = ipmitool.cpu_s / warm.cpu_s
    wanted, met = f">= {_WARM_CPU:.0f}", less >= _WARM_CPU
    report.demand("next rounds: less CPU than ipmitool", f"{less:.1f} x", wanted, met)
    # A time in which answers were lost is no time for all of them.
    rivals = [taken[name] for name in _IPMIPOWER]
    whole = [one for one in rivals if one.answers == size] or rivals
    faster = min(one.seconds for one in whole) / warm.seconds
    report.demand("next rounds: faster than ipmipower", f"{faster:.2f} x", ">= 1", faster >= 1)
    faster = ipmitool.seconds / cold.seconds
    wanted, met = f">= {_COLD_FASTER:.0f}", faster >= _COLD_FASTER
    report.demand("first round: faster than ipmitool", f"{faster:.1f} x", wanted, met)


def _demand_patience(report: Report, alive: dict[str, Taken], mute: dict[str, Taken]) -> None:
    """Those that are alive do not wait for those that are mute."""
    for name, with_mute, without in (
        (_COLD, mute[_COLD], alive[_COLD]),
        (_WARM, mute[_WARM], alive[_WARM]),
        (_FALLING, alive[_FALLING], alive[_WARM]),
    ):
        ratio = (with_mute.all_seen_s or 0.0) / (without.all_seen_s or 1.0)
        met = ratio <= _MUTE_COSTS
        wanted = f"<= {_MUTE_COSTS}"
        report.demand(f"{name}: seen later", f"{ratio:.2f} x", wanted, met)


def _demand_answers(
    report: Report, size: int, live: int, alive: dict[str, Taken], mute: dict[str, Taken]
) -> None:
    lost = sum(size - alive[name].answers for name in (_COLD, _WARM))
    lost += sum(live - mute[name].answers for name in (_COLD, _WARM))
    lost += live - alive[_FALLING].answers
    report.demand("Hostler: answers lost", lost, "= 0", lost == 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="power-sync",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(_SIZES), metavar="BMCS", help="(%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of ipmipower, and next ones of Hostler (3)"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="for a contender (60)"
    )
    return parser.parse_args(words)
