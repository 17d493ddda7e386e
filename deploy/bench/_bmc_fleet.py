"""The simulated BMCs of the power bench, in processes of their own."""

import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import BenchFailed

USER, PASSWORD, PORT = "admin", "password", 623  # what they start with
_PROGRAM = Path(__file__).parents[1] / "lab/simulated_bmcs.py"
_FIRST = ipaddress.ip_address("127.40.0.1")
_PER_PROCESS = 500
# They stand for machines of their own, which have processors of their own.
_NICER = -10


@dataclass(frozen=True)
class SimulatedBmc:
    """`host`: the name of the host that it belongs to. `on`: whether that has power."""

    number: int
    address: str
    host: str
    on: bool


class BmcFleet:
    """Every third host has no power. Raises BenchFailed if they do not start."""

    def __init__(self, directory: Path, count: int) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._controls: list[Path] = []
        self.bmcs = [
            SimulatedBmc(number, str(_FIRST + number), f"kvm-{number:04}", number % 3 != 2)
            for number in range(count)
        ]
        try:
            for first in range(0, count, _PER_PROCESS):
                self._start(directory, first, min(_PER_PROCESS, count - first))
            for process in self._processes:
                if process.stdout is None or process.stdout.readline() != "ready\n":
                    raise BenchFailed("the simulated BMCs do not start")
            self._control(self.bmcs, lambda bmc: not bmc.on, power=False)
        except BaseException:
            self.close()
            raise

    def _start(self, directory: Path, first: int, count: int) -> None:
        control = directory / f"bmcs-{first}"
        command = [sys.executable, str(_PROGRAM), "--control", str(control)]
        command += ["--count", str(count), "--first", f"{_FIRST + first}:{PORT}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        self._controls.append(control)
        nice = os.getpriority(os.PRIO_PROCESS, process.pid)
        os.setpriority(os.PRIO_PROCESS, process.pid, nice + _NICER)

    def prepare(self, mute: Sequence[SimulatedBmc]) -> None:
        """Nobody has a session, and those alone say nothing."""
        silent = {bmc.number for bmc in mute}
        self._control(self.bmcs, lambda _: True, forget=True, set={"mute": False})
        self._control(self.bmcs, lambda bmc: bmc.number in silent, set={"mute": True})

    def silence(self, mute: Sequence[SimulatedBmc]) -> None:
        """From now on they say nothing."""
        self._control(mute, lambda _: True, set={"mute": True})

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _control(self, bmcs: Sequence[SimulatedBmc], which: Any, **message: Any) -> None:
        for index, control in enumerate(self._controls):
            begin = index * _PER_PROCESS
            chosen = [
                bmc.number - begin
                for bmc in bmcs
                if begin <= bmc.number < begin + _PER_PROCESS and which(bmc)
            ]
            if not chosen:
                continue
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(control))
                with connection.makefile("rw") as stream:
                    stream.write(json.dumps({"bmcs": chosen, **message}) + "\n")
                    stream.flush()
                    answer = json.loads(stream.readline())
            if isinstance(answer, dict):
                raise BenchFailed(f"the simulated BMCs: {answer['error']}")
