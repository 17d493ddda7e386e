"""Hostler as people run it, on simulated hosts."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.system import ROOT, Process, System
from tests.simulation.cluster import SimulatedHost, address_of

SOURCE = "sim-1"
_ADDITIONS_AT_A_TIME = 4
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Moved:
    """A migration that ended well, by the simulation's own word."""

    vm: str
    source: str
    destination: str
    seconds: float


class SimulatedSystem:
    """`hostler up` in a directory of its own, and hosts sim-1 to sim-`hosts`, with `vms` VMs on
    the first one."""

    def __init__(
        self, directory: Path, *, hosts: int, vms: int, seed: int, forked: bool = False
    ) -> None:
        self.system = System(directory, forked=forked)
        self.vms = vms
        self._hosts = hosts
        self._journal = directory / "journal"
        self._environment = {
            "PYTHONPATH": str(ROOT),
            "SIMULATION_HOSTS": str(hosts),
            "SIMULATION_VMS": str(vms),
            "SIMULATION_SEED": str(seed),
            "SIMULATION_JOURNAL": str(self._journal),
        }

    async def up(self) -> Process:
        """The process with API and worker, ready."""
        return await self.system.start(
            *("Hostler is ready.", sys.executable, "-m", "tests.simulation.hostler", "up"),
            **self._environment,
        )

    async def add_hosts(self) -> None:
        """Zone, pod, cluster and all hosts, by HostAddition."""
        await self.add_topology()
        some = asyncio.Semaphore(_ADDITIONS_AT_A_TIME)

        async def add(number: int) -> None:
            async with some:
                await self.add_host(number)

        await asyncio.gather(*(add(number) for number in range(1, self._hosts + 1)))

    async def add_topology(self) -> None:
        """zone-1, pod-1 and cluster-1, enabled."""
        for kind, parent in (("zone", None), ("pod", "zone"), ("cluster", "pod")):
            above = {} if parent is None else {parent: f"{parent}-1"}
            await self._ask("POST", f"/v1/{kind}s", json={"name": f"{kind}-1", **above})
            enabled = {"allocation_state": "Enabled"}
            await self._ask("PATCH", f"/v1/{kind}s/{kind}-1", json=enabled)
            await self._completed(f"{kind}-allocation", f"{kind}-1")

    async def enter(self, max_parallel: int) -> None:
        """Begin the maintenance of SOURCE."""
        await self._ask(
            "POST",
            f"/v1/hosts/{SOURCE}/maintenance",
            json={"max_parallel": max_parallel, "reason": "simulated drain"},
        )

    async def leave(self) -> None:
        """End it, and wait for that: the answer may come before."""
        await self._ask("DELETE", f"/v1/hosts/{SOURCE}/maintenance")
        await (await self.system.workflow(f"maintenance/{SOURCE}")).result()

    def moved(self) -> list[Moved]:
        """All migrations so far."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [Moved(**json.loads(line)) for line in lines]

    async def add_host(self, number: int) -> None:
        """sim-`number`, by HostAddition."""
        name, address = f"sim-{number}", address_of(number)
        await self._ask(
            "POST",
            "/v1/hosts",
            json={
                "name": name,
                "cluster": "cluster-1",
                "address": address,
                "password": "simulated",
                "host_key_sha256": SimulatedHost(name, address).key.sha256,
            },
        )
        await self._completed("addition", name)

    async def _completed(self, kind: str, subject: str) -> None:
        path = f"/v1/operations/{kind}/{subject}"
        while (operation := await self._ask("GET", path))["status"] == "RUNNING":
            await asyncio.sleep(_PAUSE_S)
        assert operation["status"] == "COMPLETED", operation

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        answer = await self.system.request(method, path, **more)
        assert answer.is_success, (method, path, answer.text)
        return answer.json() if answer.content else None
