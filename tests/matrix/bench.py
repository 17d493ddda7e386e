"""The lab with a Hostler on it that can be broken: each of its processes on its own, PostgreSQL."""

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

import psycopg

from tests.e2e.conftest import GUESTS, HOSTS, add_hosts
from tests.e2e.system import ROOT, Process, System
from tests.lab import Lab
from tests.matrix.failpoints import FOLDER_VARIABLE, Failpoints
from tests.postgres import PostgresqlServer, postgresql_server

SOURCE = "kvm-1"
# What is unreachable shows within seconds, not within a quarter of a minute.
_KEEPALIVE = {
    "HOSTLER_SSH_CONNECT_TIMEOUT_S": "5",
    "HOSTLER_SSH_KEEPALIVE_INTERVAL_S": "2",
    "HOSTLER_LIBVIRT_KEEPALIVE_INTERVAL_S": "2",
}
_LIBVIRTD = ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")
# Much slower, and QEMU without KVM now and then leaves a guest that hangs at its destination.
_SLOWLY_MIB_S = "8"


class Bench:
    """One installation, for as many maintenances as wanted.

    Attributes:
        worker, temporal: the processes, of which there is one at a time.
    """

    def __init__(self, lab: Lab, system: System, database: PostgresqlServer) -> None:
        self.lab = lab
        self.system = system
        self.database = database
        self.failpoints = Failpoints(system.logs.parent / "failpoints")
        self.worker: Process
        self.temporal: Process
        self._slow = False

    async def start(self) -> None:
        """Everything up, the hosts added, no trace of an earlier installation on them."""
        await self.lab.power_on()
        for host in HOSTS:
            await self.start_libvirtd(host)
        await clean(self.lab)
        with psycopg.connect(f"{self.database.url}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE hostler")
        await self.start_temporal()
        await self.system.done("db", "upgrade")
        await self.system.done("key", "create")
        token = await self.system.done("token", "create", "admin", "--role", "admin")
        (self.system.home / "admin-token").write_text(token)
        await self.system.api()
        await self.start_worker()
        await add_hosts(self.system, self.lab)
        await self.system.done("setting", "set", "migration.parallel.max", str(len(GUESTS)))

    async def start_worker(self) -> None:
        """The worker with failpoints."""
        self.worker = await self.system.start(
            "Worker with failpoints.",
            *(sys.executable, "-m", "tests.matrix.worker"),
            PYTHONPATH=str(ROOT),
            **{FOLDER_VARIABLE: str(self.failpoints.folder)},
            **_KEEPALIVE,
        )

    async def start_temporal(self) -> None:
        """Its server, on the file of the one before."""
        self.temporal = await self.system.temporal_server()

    async def kill_libvirtd(self, host: str) -> None:
        """kill -9, and nothing starts it again; its VMs run on."""
        kill = "systemctl kill --signal=KILL libvirtd.service"
        await self.lab.exec(host, "sh", "-c", f"{kill}; systemctl stop {' '.join(_LIBVIRTD)}")

    async def start_libvirtd(self, host: str) -> None:
        """Undo that."""
        await self.lab.exec(host, "systemctl", "start", *_LIBVIRTD[1:], _LIBVIRTD[0])

    async def fresh_guests(self, *, slow: bool) -> None:
        """All on the source, counting from 1. `slow`: they take about ten seconds to move."""
        await remove_guests(self.lab)
        await asyncio.gather(*(self.lab.start_guest(guest, on=SOURCE) for guest in GUESTS))
        if slow != self._slow:
            change = ("set", "migration.bandwidth", _SLOWLY_MIB_S)
            await self.system.done("setting", *(change if slow else ("unset", change[1])))
            self._slow = slow


async def clean(lab: Lab) -> None:
    """No guests, and no trace of Hostler on the hosts."""
    for host in HOSTS:
        await lab.exec(host, "rm", "-rf", "/etc/hostler", "/etc/libvirt/hooks/qemu.d/hostler")
    await remove_guests(lab)


async def remove_guests(lab: Lab) -> None:
    """Whoever has left them."""
    there = {guest["name"] for guest in (await lab.status())["guests"]}
    await asyncio.gather(*(lab.remove_guest(guest) for guest in there | set(GUESTS)))


class Benches:
    """The bench in use; a new one after a maintenance that went wrong."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._directory = directory
        self._numbers = 0
        self._stack = ExitStack()
        self._bench: Bench | None = None

    async def bench(self) -> Bench:
        """Ready for a maintenance."""
        if self._bench is None:
            self._numbers += 1
            database = self._stack.enter_context(postgresql_server())
            directory = self._directory / f"bench-{self._numbers}"
            system = System(directory, database_url=f"{database.url}/hostler", forked=True)
            self._stack.callback(system.stop)
            bench = Bench(self._lab, system, database)
            await bench.start()
            self._bench = bench
        return self._bench

    def discard(self) -> None:
        """End what runs; nothing of it is used again."""
        if self._bench is not None:
            self._bench.failpoints.clear()
        self._bench = None
        self._stack.close()

    async def clean_up(self) -> None:
        """Leave the lab as one that is up, without guests."""
        await clean(self._lab)
