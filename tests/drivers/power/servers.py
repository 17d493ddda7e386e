"""Real servers on loopback for the drivers of BMCs: two of IPMI that have nothing in common, one of
Redfish."""

import asyncio
import contextlib
import ipaddress
import json
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from contracts.errors import HostlerError
from drivers.protocols import BmcAccess
from tests.ports import free_port

USER, PASSWORD = "admin", "a-password"
OPERATOR = "operator"  # of ipmi_sim
READER = "reader"  # of the Redfish emulator, which has these machines
SYSTEMS = ("6f1f9a3e-4c1b-4f61-9d5a-1b6b6a000001", "6f1f9a3e-4c1b-4f61-9d5a-1b6b6a000002")
_SIMULATED = Path(__file__).parents[3] / "deploy/lab/simulated_bmcs.py"
_FIRST = ipaddress.ip_address("127.4.0.1")
_CHASSIS = """#!/bin/sh
# What ipmi_sim calls: get power; set power 0|1, reset 1, shutdown 1; get boot; set boot pxe.
cd "$(dirname "$0")"
case "$*" in
    *"get power") echo "power:$(cat power)" ;;
    *"set power 0") echo off >>commands; echo 0 >power ;;
    *"set power 1") echo on >>commands; echo 1 >power ;;
    *"set reset 1") echo reset >>commands ;;
    *"get boot") echo "boot:$(cat boot)" ;;
    *"set boot "*) for device; do :; done; echo "$device" | tee boot >>commands ;;
    *"set shutdown 1") echo soft >>commands; echo 0 >power ;;
esac
"""


class Machine(Protocol):
    """A machine with a BMC, as somebody sees it who stands beside it."""

    def access(self, user: str = USER, password: str = PASSWORD, **more: Any) -> BmcAccess: ...

    @property
    def guid(self) -> str: ...

    async def commands(self) -> list[str]:
        """What the BMC was told, as it has done it."""


def fields_of(refused: HostlerError) -> list[str]:
    """Which are not valid."""
    named: Any = refused.details["fields"]
    return [one["field"] for one in named]


async def until_ready(port: int, address: str, kind: str) -> None:
    """Until something answers there."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                if kind == "tcp":
                    _, writer = await asyncio.open_connection(address, port)
                    writer.close()
                    return
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.setblocking(False)
                    client.connect((address, port))
                    # RMCP, ASF: "are you there?"
                    client.send(bytes.fromhex("0600ff06 000011be 80010000"))
                    async with asyncio.timeout(0.5):
                        await loop.sock_recv(client, 64)
                    return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(
    *command: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=env
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class IpmiSim:
    """OpenIPMI's ipmi_sim: an operator beside the administrator."""

    directory: Path
    address: str
    port: int
    guid: str = field(default_factory=lambda: str(uuid.uuid4()))

    def access(self, user: str = USER, password: str = PASSWORD, **more: Any) -> BmcAccess:
        return BmcAccess("kvm-1", self.address, user, password, port=self.port, **more)

    async def commands(self) -> list[str]:
        log = self.directory / "commands"
        return log.read_text().split() if log.exists() else []

    def write(self) -> None:
        """Its configuration, see ipmi_lan(5) and ipmi_sim_cmd(5)."""
        levels = ("callback", "user", "operator", "admin")
        chassis = self.directory / "chassis"
        chassis.write_text(_CHASSIS)
        chassis.chmod(0o755)
        (self.directory / "power").write_text("1\n")
        (self.directory / "boot").write_text("default\n")
        (self.directory / "state").mkdir()
        (self.directory / "lan.conf").write_text(
            "\n".join(
                [
                    'name "test"',
                    "set_working_mc 0x20",
                    "  startlan 1",
                    f"    addr {self.address} {self.port}",
                    "    priv_limit admin",
                    *(f"    allowed_auths_{level} md5" for level in levels),
                    f"    guid {uuid.UUID(self.guid).bytes_le.hex()}",
                    "  endlan",
                    f'  chassis_control "{chassis}"',
                    f'  user 2 true "{USER}" "{PASSWORD}" admin 20 md5',
                    f'  user 3 true "{OPERATOR}" "{PASSWORD}" operator 20 md5',
                    "",
                ]
            )
        )
        (self.directory / "sim.emu").write_text(
            "mc_setbmc 0x20\n"
            "mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n"
            "mc_enable 0x20\n"
        )


@asynccontextmanager
async def ipmi_sim(directory: Path) -> AsyncIterator[IpmiSim]:
    address = "127.3.0.1"
    server = IpmiSim(directory, address, free_port(address, socket.SOCK_DGRAM))
    server.write()
    command = ("ipmi_sim", "-n", "-c", f"{directory}/lan.conf", "-f", f"{directory}/sim.emu")
    async with running(*command, "-s", f"{directory}/state"):
        await until_ready(server.port, server.address, "udp")
        yield server


@dataclass
class SimulatedBmcs:
    """deploy/lab/simulated_bmcs.py."""

    control_path: Path
    port: int
    count: int

    def address(self, number: int) -> str:
        return str(_FIRST + number)

    async def control(self, *bmcs: int, **message: Any) -> list[dict[str, Any]]:
        """See there. Without BMCs: all."""
        reader, writer = await asyncio.open_unix_connection(self.control_path, limit=1 << 24)
        chosen = {"bmcs": bmcs} if bmcs else {}
        writer.write(json.dumps({**chosen, **message}).encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        if isinstance(answer, dict):
            raise AssertionError(answer["error"])
        states: list[dict[str, Any]] = answer
        return states

    async def state(self, number: int = 0) -> dict[str, Any]:
        return (await self.control(number))[0]

    async def switch(self, *bmcs: int, **switches: Any) -> None:
        await self.control(*bmcs, set=switches)

    def bmc(self, number: int = 0) -> "SimulatedBmc":
        return SimulatedBmc(self, number)


@dataclass
class SimulatedBmc:
    """One of them."""

    all: SimulatedBmcs
    number: int

    def access(self, user: str = USER, password: str = PASSWORD, **more: Any) -> BmcAccess:
        more = {"port": self.all.port, **more}
        return BmcAccess(
            f"kvm-{self.number + 1}", self.all.address(self.number), user, password, **more
        )

    @property
    def guid(self) -> str:
        machine = f"simulated BMC {self.all.address(self.number)}:{self.all.port}"
        return str(uuid.uuid5(uuid.NAMESPACE_OID, machine))

    async def state(self) -> dict[str, Any]:
        return await self.all.state(self.number)

    async def switch(self, **switches: Any) -> None:
        await self.all.switch(self.number, **switches)

    async def commands(self) -> list[str]:
        commands: list[str] = (await self.state())["commands"]
        return commands


@asynccontextmanager
async def simulated_bmcs(directory: Path, count: int = 3) -> AsyncIterator[SimulatedBmcs]:
    servers = SimulatedBmcs(directory / "control", free_port(str(_FIRST), socket.SOCK_DGRAM), count)
    arguments = ("--count", str(count), "--first", f"{_FIRST}:{servers.port}")
    login = ("--user", USER, "--password", PASSWORD)
    control = ("--control", str(servers.control_path))
    async with running(sys.executable, str(_SIMULATED), *arguments, *login, *control) as process:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        yield servers
