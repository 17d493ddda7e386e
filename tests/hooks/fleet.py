"""Hosts that are directories, and the part of a hypervisor that asks their hooks."""

import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from drivers.errors import HostUnreachable
from drivers.protocols import CommandResult, HostAccess, HostKey, Hypervisor
from tests.hooks.local_host import LocalHost


class Fleet:
    """RemoteShell of any number of hosts; each is there as soon as it is named.

    Attributes:
        away: hosts that do not answer.
        calls: how often each was asked for anything.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hosts: dict[str, LocalHost] = {}
        self.away: set[str] = set()
        self.calls: Counter[str] = Counter()

    def host(self, name: str) -> LocalHost:
        if name not in self._hosts:
            self._hosts[name] = LocalHost(self._root / name)
        return self._hosts[name]

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - as in the protocol
    ) -> CommandResult:
        """As on that host."""
        self.calls[access.name] += 1
        if access.name in self.away:
            raise HostUnreachable(f"{access.name} does not answer.")
        return await self.host(access.name).run(access, command, stdin=stdin, timeout=timeout)

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        """They have none."""
        raise NotImplementedError

    async def forget(self, host: str) -> None:
        """Nothing is open."""

    async def close(self) -> None:
        """Nothing is open."""


class FleetLibvirt:
    """Starts probes, if the hook that is in place lets it; `deaf`: hosts whose libvirtd does not
    call it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.deaf: set[str] = set()

    async def start_probe(self, access: HostAccess) -> str | None:
        """As drivers/libvirt.py does."""
        if access.name in self.deaf:
            return None
        xml = f"<domain type='qemu'>\n  <uuid>{uuid.uuid4()}</uuid>\n</domain>\n"
        return self._fleet.host(access.name).installed_hook(xml)

    async def forget(self, host: str) -> None:
        """Nothing is open."""

    def as_hypervisor(self) -> Hypervisor:
        """For those who only start probes."""
        return cast(Hypervisor, self)
