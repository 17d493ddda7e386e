"""Installations that have the lab's hosts already: made once, each test gets a copy.

To add three hosts takes longer than most of what tests do with them.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.system import System
from tests.lab import Lab

# Whatever an addition leaves on a host.
_TRACES = "etc/hostler etc/libvirt/hooks/qemu.d root/.ssh"
_PACK = f"tar -C / -cz {_TRACES} | base64 -w 0"
_UNPACK = f"cd / && rm -rf {_TRACES} && base64 -d | tar -xz"
_RUN_OF_LIBVIRTD = "systemctl show -P InvocationID libvirtd"

_Host = tuple[str, ...]


@dataclass(frozen=True)
class _Original:
    """`knowing`: the run of each host's libvirtd that has found the hook as it started."""

    hosts: list[_Host]
    home: Path
    traces: dict[str, str]
    knowing: dict[str, str]


class Prepared:
    """What `make` has made of a System: it adds the hosts, and stops the System when it is done."""

    def __init__(self, directory: Path, make: Callable[[Path], Awaitable[System]]) -> None:
        self._directory = directory
        self._make = make
        self._original: _Original | None = None
        self._made = 0

    async def give(self, system: System, lab: Lab) -> None:
        """To a System that is not running, and to the hosts, which are bare."""
        hosts = await _identities(lab)
        if self._original is None or self._original.hosts != hosts:
            self._original = await self._prepare(lab, hosts)
        else:
            await asyncio.gather(*(self._restore(lab, self._original, name) for name, *_ in hosts))
        shutil.copytree(self._original.home, system.home)

    async def _prepare(self, lab: Lab, hosts: list[_Host]) -> _Original:
        self._made += 1
        made = await self._make(self._directory / str(self._made))
        names = [name for name, *_ in hosts]
        return _Original(
            hosts,
            made.home,
            traces={name: (await lab.exec(name, "sh", "-c", _PACK)).stdout for name in names},
            knowing={name: await _run_of_libvirtd(lab, name) for name in names},
        )

    async def _restore(self, lab: Lab, original: _Original, host: str) -> None:
        await lab.exec(host, "sh", "-c", _UNPACK, stdin=original.traces[host])
        if await _run_of_libvirtd(lab, host) != original.knowing[host]:
            await lab.exec(host, "systemctl", "restart", "libvirtd")
            original.knowing[host] = await _run_of_libvirtd(lab, host)


async def _run_of_libvirtd(lab: Lab, host: str) -> str:
    return (await lab.exec(host, "sh", "-c", _RUN_OF_LIBVIRTD)).stdout


async def _identities(lab: Lab) -> list[_Host]:
    """Other ones when a host was installed anew, has booted, or was given another password."""
    return [
        (
            row["name"],
            row["address"],
            row["host_key_sha256"],
            row["boot_id"],
            Path(row["password_file"]).read_text(),  # noqa: ASYNC240 - small
        )
        for row in (await lab.status())["hosts"]
    ]
