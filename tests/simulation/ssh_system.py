"""Hostler as people run it, each part a process of its own, and hosts that are SSH servers."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.e2e.system import ROOT, Process, System
from tests.simulation.ssh_hosts import PAM_HASH, READY, SshHost, read_hosts

CLUSTER = "cluster-1"
_HOSTLER = (sys.executable, "-m", "tests.simulation.hostler")


class SshSystem:
    """`hosts` SSH servers, ssh-1 and up, and an installation without any of them.

    `hosts_in`: where the hosts' own directories lie; None: in `directory`, too. `pam_hash`: how
    they store a new password.
    """

    def __init__(
        self,
        directory: Path,
        *,
        hosts: int,
        hosts_in: Path | None = None,
        pam_hash: str = PAM_HASH,
        record_histories: bool = False,
        database_url: str | None = None,
        forked: bool = False,
    ) -> None:
        self.system = System(
            directory,
            record_histories=record_histories,
            database_url=database_url,
            forked=forked,
        )
        self.directory = (hosts_in or directory) / "ssh"
        self.directory.mkdir()
        self._hosts, self._pam_hash = hosts, pam_hash
        self._environment = {"PYTHONPATH": str(ROOT), "SIMULATION_SSH": str(self.directory)}

    async def start_hosts(self) -> list[SshHost]:
        """The SSH servers."""
        program = (sys.executable, "-m", "tests.simulation.ssh_hosts")
        await self.system.start(
            *(READY, *program, str(self.directory), str(self._hosts), self._pam_hash),
            **self._environment,
        )
        return read_hosts(self.directory)

    async def up(self) -> None:
        """Temporal, the API, zone, pod and cluster; no worker yet."""
        await self.system.temporal_server()
        await self.system.done("db", "upgrade")
        await self.system.done("key", "create")
        token = await self.system.done("token", "create", "admin", "--role", "admin")
        (self.system.home / "admin-token").write_text(token)
        await self.system.api()
        for kind, parent in (("zone", None), ("pod", "zone"), ("cluster", "pod")):
            above = {} if parent is None else {parent: f"{parent}-1"}
            await self.ask("POST", f"/v1/{kind}s", json={"name": f"{kind}-1", **above})
            await self.ask("PATCH", f"/v1/{kind}s/{kind}-1", json={"allocation_state": "Enabled"})

    async def worker(self, **settings: str) -> Process:
        """A worker, ready."""
        return await self.system.start(
            *("Worker on queue", *_HOSTLER, "worker"), **(self._environment | settings)
        )

    def write_list(
        self,
        hosts: Sequence[SshHost],
        credential: tuple[str, str] = ("password_file", "password"),
        users: Mapping[str, str] = MappingProxyType({}),
    ) -> Path:
        """The file that `hostler host import` reads. `users`: who logs in, if not root."""
        path = self.directory / "hosts.yaml"
        listed = [
            {"name": one.name, "address": one.address, "ssh_port": one.port}
            | {"user": users.get(one.name, "root")}
            for one in hosts
        ]
        lines = [f"  - {json.dumps(host)}" for host in listed]
        defaults = dict([("cluster", CLUSTER), credential])
        path.write_text(
            f"known_hosts: known_hosts\ndefaults: {json.dumps(defaults)}\nhosts:\n"
            + "\n".join(lines)
            + "\n"
        )
        return path

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        """An answer of the API, which must be a good one."""
        answer = await self.system.request(method, path, **more)
        assert answer.is_success, (method, path, answer.text)
        return answer.json() if answer.content else None
