"""A shell whose tunnels break at a chosen message of libvirt's protocol.

What a host sees of a client that is killed -9 is that its connections close. Here they close
exactly when a given message goes by, which no signal could be timed for.
"""

import asyncio
import shutil
import struct
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drivers.errors import HostUnreachable
from drivers.libvirt import Tunnel
from drivers.protocols import CommandResult, HostAccess, HostKey
from drivers.ssh import AsyncSshShell

# Procedures of libvirt's remote protocol (src/remote/remote_protocol.x; stable numbers).
BEGIN, PREPARE, PERFORM, FINISH, CONFIRM = 302, 303, 305, 306, 307
_CALL, _REPLY = 0, 1


@dataclass(frozen=True)
class Cut:
    """Where to cut: at the call or reply of `procedure` seen on the tunnels of `host`.

    `delivered`: the message itself still goes through, nothing after it. `only_host`: the other
    host's tunnels stay.
    """

    host: str
    procedure: int
    reply: bool
    delivered: bool
    only_host: bool = False

    def concerns(self, host: str) -> bool:
        """Whether the tunnels of `host` are cut."""
        return not self.only_host or host == self.host


class TappedShell:
    """AsyncSshShell, with taps on its tunnels.

    Once cut off from both hosts it opens none any more, as if its process had been killed.

    Attributes:
        cut_at: the cut to make; None again when it is made.
        before_cut: awaited between the delivery of the message and the cut.
    """

    def __init__(self, shell: AsyncSshShell) -> None:
        self._shell = shell
        self._taps: list[_Tap] = []
        self._cutting: Cut | None = None
        self._dead = False
        self.cut_at: Cut | None = None
        self.before_cut: Callable[[], Awaitable[None]] | None = None

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        return await self._shell.scan_host_key(address, port)

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the port's
    ) -> CommandResult:
        return await self._shell.run(access, command, stdin=stdin, timeout=timeout)

    async def forget(self, host: str) -> None:
        await self._shell.forget(host)

    async def close(self) -> None:
        for tap in list(self._taps):
            await tap.close()
        await self._shell.close()

    async def open_unix_tunnel(self, access: HostAccess, remote_path: str) -> Tunnel:
        if self._dead:
            raise HostUnreachable(f"The connections to {access.name} were cut.")
        tap = _Tap(self, access.name, await self._shell.open_unix_tunnel(access, remote_path))
        await tap.listen()
        self._taps.append(tap)
        return tap

    def saw(self, host: str, procedure: int, *, reply: bool) -> Cut | None:
        """Take note of a message; the cut to make at it, if any."""
        cut = self.cut_at
        if cut is None or (cut.host, cut.procedure, cut.reply) != (host, procedure, reply):
            return None
        self.cut_at, self._cutting = None, cut
        return cut

    def holds(self, host: str) -> bool:
        """True while a cut is made that concerns `host`: nothing passes any more."""
        return self._cutting is not None and self._cutting.concerns(host)

    async def make(self, cut: Cut) -> None:
        """Break the tunnels."""
        if cut.delivered and self.before_cut is not None:
            await self.before_cut()
        self._dead = not cut.only_host
        for tap in list(self._taps):
            if cut.concerns(tap.host):
                await tap.close()
        self._cutting = None


class _Tap:
    """Between libvirt and a tunnel, frame by frame."""

    def __init__(self, shell: TappedShell, host: str, tunnel: Tunnel) -> None:
        self.host = host
        self._shell = shell
        self._tunnel = tunnel
        self._directory = Path(tempfile.mkdtemp(prefix="hostler-tap-"))
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_end: list[Callable[[], None]] = []
        tunnel.at_end(self._break)

    @property
    def path(self) -> Path:
        return self._directory / "socket"

    @property
    def dead(self) -> bool:
        return self._tunnel.dead

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    def at_end(self, action: Callable[[], None]) -> None:
        self._at_end.append(action)

    def abort(self) -> None:
        self._tunnel.abort()

    def _break(self) -> None:
        for action in self._at_end:
            action()
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        await self._tunnel.close()
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        remote_in, remote_out = await asyncio.open_unix_connection(str(self._tunnel.path))
        self._writers += [writer, remote_out]
        for pump in (
            self._pump(reader, remote_out, reply=False),
            self._pump(remote_in, writer, reply=True),
        ):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, reply: bool
    ) -> None:
        try:
            while True:
                head = await source.readexactly(4)
                body = await source.readexactly(struct.unpack(">I", head)[0] - 4)
                procedure, kind = struct.unpack(">8xiI", body[:16])
                cut = None
                if kind == (_REPLY if reply else _CALL):
                    cut = self._shell.saw(self.host, procedure, reply=reply)
                if cut.delivered if cut is not None else not self._shell.holds(self.host):
                    sink.write(head + body)
                    await sink.drain()
                if cut is not None:
                    await self._shell.make(cut)
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tunnel.abort()
