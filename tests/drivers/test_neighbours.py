"""What a host says of another one's port: the script itself, run on this machine."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from contracts.host_status import Reach
from drivers.errors import CommandFailed
from drivers.neighbours import ShellNeighbours
from drivers.protocols import CommandResult, HostAccess, HostKey
from tests.ports import free_port

PEER = HostAccess(name="kvm-2", address="127.0.0.1", port=22, user="root", host_key="none")


class LocalShell:
    """RemoteShell whose hosts are all this machine. `tools`: the only directory with programs."""

    def __init__(self, tools: Path | None = None) -> None:
        self._tools = tools

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the protocol's
    ) -> CommandResult:
        words = list(command)
        if self._tools is not None:
            words[2] = words[2].replace("/usr/sbin:/usr/bin:/sbin:/bin", str(self._tools))
        process = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        stdout, stderr = await asyncio.wait_for(process.communicate(), timeout)
        return CommandResult(process.returncode or 0, stdout.decode(), stderr.decode())

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        raise NotImplementedError

    async def forget(self, host: str) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def neighbours() -> ShellNeighbours:
    return ShellNeighbours(LocalShell())


async def test_a_port_where_something_listens(neighbours: ShellNeighbours) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await neighbours.reach(PEER, "127.0.0.1", port, 5) is Reach.CONNECTED


async def test_a_machine_where_nothing_listens(neighbours: ShellNeighbours) -> None:
    assert await neighbours.reach(PEER, "127.0.0.1", free_port(), 5) is Reach.REFUSED


async def test_one_that_does_not_answer_costs_its_time_and_no_more(
    neighbours: ShellNeighbours,
) -> None:
    """A listener whose queue is full drops what comes: like a host that is off."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        assert await neighbours.reach(PEER, address[0], address[1], 1) is Reach.NO_ANSWER
        for one in waiting:
            one.close()


@pytest.mark.parametrize("address", ["no-such-name.invalid", "127.0.0.1 -x", "", "224.0.0.1"])
async def test_what_was_not_tried_says_nothing(neighbours: ShellNeighbours, address: str) -> None:
    assert await neighbours.reach(PEER, address, 22, 2) is Reach.UNKNOWN


async def test_without_bash_it_says_nothing(tmp_path: Path) -> None:
    neighbours = ShellNeighbours(LocalShell(tools=tmp_path))
    assert await neighbours.reach(PEER, "127.0.0.1", free_port(), 5) is Reach.UNKNOWN


async def test_a_peer_that_can_run_nothing_is_an_error() -> None:
    class Broken(LocalShell):
        async def run(self, *_: object, **__: object) -> CommandResult:
            return CommandResult(126, "", "sh: cannot fork")

    with pytest.raises(CommandFailed, match="cannot fork"):
        await ShellNeighbours(Broken()).reach(PEER, "127.0.0.1", 22, 5)
