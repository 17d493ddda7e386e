"""BMCs on loopback addresses, by the simulator that the lab has for many of them, and the hosts
that they switch: BMC N-1 is that of sim-N.

    Bmcs              the simulator's process, and its switches
    SimulatedBoots    ServiceManager: a host answers while its BMC says that it is on
    MortalDrivers     drivers that take their worker with them
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contracts.power import PowerCommand
from drivers.errors import HostUnreachable
from drivers.power.registry import PowerDrivers
from drivers.protocols import BmcAccess, Boot, HostAccess, NetworkBooter, PowerDriver

ROOT = Path(__file__).parents[2]
USER, PASSWORD = "operator-7", "canary-of-bmcs"
_FIRST = (127, 77, 0, 1)


def address_of(number: int) -> str:
    """Of the BMC of sim-`number`."""
    offset = _FIRST[3] + number - 1
    return f"{_FIRST[0]}.{_FIRST[1]}.{_FIRST[2] + offset // 256}.{offset % 256}"


def control(path: Path, **message: Any) -> list[dict[str, Any]]:
    """What the simulator answers to one line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(message) + "\n")
            stream.flush()
            answer = json.loads(stream.readline())
    assert isinstance(answer, list), answer
    return answer


class Bmcs:
    """Hosts are named as in `Bmcs.state("sim-1")`."""

    def __init__(self, path: Path, port: int) -> None:
        self.path = path
        self.port = port

    def set(self, *hosts: str, **switches: Any) -> None:
        """What is wrong with their BMCs."""
        control(self.path, bmcs=[_index(host) for host in hosts], set=switches)

    def press(self, host: str, *, on: bool) -> None:
        """As by its power button."""
        control(self.path, bmcs=[_index(host)], power=on)

    def change_password(self, host: str, password: str) -> None:
        """Past Hostler."""
        control(self.path, bmcs=[_index(host)], password=password)

    def move(self, host: str, address: str) -> None:
        """Another address, from now on."""
        control(self.path, bmcs=[_index(host)], address=[address, self.port])

    def forget(self, *hosts: str) -> None:
        """All sessions, as after a restart of the BMC."""
        control(self.path, bmcs=[_index(host) for host in hosts], forget=True)

    def state(self, host: str) -> dict[str, Any]:
        """All that is known of it."""
        return control(self.path, bmcs=[_index(host)])[0]

    def states(self) -> dict[str, dict[str, Any]]:
        """Of all."""
        return {f"sim-{state['bmc'] + 1}": state for state in control(self.path)}


@contextmanager
def simulated_bmcs(directory: Path, count: int) -> Iterator[Bmcs]:
    """The BMCs of sim-1 to sim-`count`, all on."""
    path, port = directory / "bmcs.sock", _free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "deploy" / "lab" / "simulated_bmcs.py")),
            *("--count", str(count), "--first", f"{address_of(1)}:{port}"),
            *("--control", str(path), "--user", USER, "--password", PASSWORD),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield Bmcs(path, port)
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    """Another one for each run of the tests on this machine."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind((address_of(1), 0))
        port: int = probe.getsockname()[1]
        return port


class SimulatedBoots:
    """ServiceManager, as far as a boot goes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def boot(self, access: HostAccess) -> Boot:
        """The boot that its machine is in. Raises HostUnreachable while it is off."""
        number = _index(access.name)
        (state,) = await asyncio.to_thread(control, self._path, bmcs=[number])
        if not state["on"]:
            raise HostUnreachable(f"{access.name} does not answer.")
        return Boot(boot_id=f"{access.name}/boot-{state['boots']}", complete=True)


class MortalDrivers(PowerDrivers):
    """The worker is killed once `calls` commands have come as far as `at`: "before" they are sent,
    or "after" their BMCs have accepted them and nobody has heard of it; or, "password", when so
    many BMCs have taken another password; or, "boot", are to boot from the network."""

    def __init__(self, at: str, calls: int) -> None:
        super().__init__()
        self._at = at
        self._left = calls

    def get(self, name: str) -> PowerDriver:
        """The driver, which dies."""
        return _Mortal(super().get(name), self)

    async def reached(self, at: str) -> None:
        """Whoever comes to the deadly place waits for the others there."""
        if at == self._at:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.Event().wait()


class _Mortal:
    def __init__(self, driver: PowerDriver, deaths: MortalDrivers) -> None:
        self._driver = driver
        self._deaths = deaths

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def set_power(
        self,
        access: BmcAccess,
        command: PowerCommand,
        *,
        timeout: float,  # noqa: ASYNC109 - the protocol's
    ) -> None:
        await self._deaths.reached("before")
        await self._driver.set_power(access, command, timeout=timeout)
        await self._deaths.reached("after")

    async def check_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        await self._booter.check_network_boot(access, timeout=timeout)

    async def set_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        await self._booter.set_network_boot(access, timeout=timeout)
        await self._deaths.reached("boot")

    async def clear_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        await self._booter.clear_network_boot(access, timeout=timeout)

    @property
    def _booter(self) -> NetworkBooter:
        assert isinstance(self._driver, NetworkBooter)
        return self._driver

    async def change_password(
        self,
        access: BmcAccess,
        new_password: str,
        *,
        timeout: float,  # noqa: ASYNC109 - the protocol's
    ) -> None:
        await self._driver.change_password(access, new_password, timeout=timeout)
        await self._deaths.reached("password")


def _index(host: str) -> int:
    return int(host.removeprefix("sim-")) - 1
