"""Connections to hosts, offered at local paths: what libvirt's library connects to."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import asyncssh

_CHUNK = 256 * 1024


class LocalTunnel:
    """One connection to something of a host, offered at a private local path.

    The path takes exactly one connection and vanishes when it has come: nothing is left to find.

    Args:
        is_dead: whether what carries the connection is of no more use.
        stack: what is freed at its end.
    """

    def __init__(self, is_dead: Callable[[], bool], stack: AsyncExitStack) -> None:
        self._is_dead = is_dead
        self._stack = stack
        self._directory = Path(tempfile.mkdtemp(prefix="hostler-"))  # mode 0700
        self._server: asyncio.Server | None = None
        self._hang_up: Callable[[], None] | None = None
        self._local: asyncio.StreamWriter | None = None
        self._pumps: asyncio.Task[None] | None = None
        self._closed = False
        self._at_end: list[Callable[[], None]] = []

    @property
    def path(self) -> Path:
        """Where to connect to."""
        return self._directory / "socket"

    @property
    def dead(self) -> bool:
        """True once either end has closed it."""
        return self._closed or self._is_dead()

    async def open(
        self,
        reader: "asyncio.StreamReader | asyncssh.SSHReader[bytes]",
        writer: "asyncio.StreamWriter | asyncssh.SSHWriter[bytes]",
        *,
        hang_up: Callable[[], None],
    ) -> None:
        """Listen here for who is to be connected with that; `hang_up` ends it. Raises OSError."""
        self._hang_up = hang_up

        async def accept(local_in: asyncio.StreamReader, local_out: asyncio.StreamWriter) -> None:
            if self._local is not None or self._closed:
                local_out.transport.abort()
                return
            self._local = local_out
            self._pumps = asyncio.current_task()
            self._stop_listening()
            try:
                await _first_end(_pump(local_in, writer), _pump(reader, local_out))
            finally:
                await self.close()

        self._server = await asyncio.start_unix_server(accept, self.path, limit=_CHUNK)

    def at_end(self, action: Callable[[], None]) -> None:
        """Do `action` when it breaks or is closed, before the local end gets to know."""
        self._at_end.append(action)

    def abort(self) -> None:
        """Break it at once: whoever waits at the local end gets an end of file."""
        if self._closed:
            return
        self._closed = True
        for action in self._at_end:
            action()
        self._stop_listening()
        if self._local is not None:
            self._local.transport.abort()
        if self._hang_up is not None:
            self._hang_up()
        if self._pumps is not None and self._pumps is not asyncio.current_task():
            self._pumps.cancel()

    async def close(self) -> None:
        """Break it, and free what carries it."""
        self.abort()
        await self._stack.aclose()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._directory, ignore_errors=True)


async def _first_end(*pumps: Coroutine[None, None, None]) -> None:
    """Run both directions until one of them ends."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _pump(
    source: "asyncio.StreamReader | asyncssh.SSHReader[bytes]",
    sink: "asyncio.StreamWriter | asyncssh.SSHWriter[bytes]",
) -> None:
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(_CHUNK):
            sink.write(data)
            await sink.drain()
