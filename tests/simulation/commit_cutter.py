"""A way to PostgreSQL on which the server is killed at a commit."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum

_CHUNK = 64 * 1024
_COMMIT = b"COMMIT"


class CutAt(StrEnum):
    """A moment of a commit."""

    BEFORE = "before COMMIT has come to it"
    UNDER_WAY = "as COMMIT comes to it"
    AFTER = "when it has committed, before that is told"


class CommitCutter:
    """TCP from `port` of loopback to the server's.

    Args:
        kill: ends the server, kill -9.
    """

    def __init__(self, server_port: int, kill: Callable[[], None]) -> None:
        self.port = 0
        self.cut = asyncio.Event()
        self._is_open = True
        self._server_port = server_port
        self._kill = kill
        self._told: bytes | None = None
        self._at = CutAt.BEFORE

    def arm(self, told: bytes, at: CutAt) -> None:
        """Kill it at the next commit of a transaction in which it is told that. Nobody gets to it
        then until `reopen`."""
        self.cut.clear()
        self._told, self._at = told, at

    def reopen(self) -> None:
        """Let clients through again."""
        self._is_open = True

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """During the block."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_open:
            writer.close()
            return
        try:
            server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        answers = asyncio.Event()
        committing = asyncio.Event()
        there = asyncio.create_task(self._pump_requests(reader, server[1], committing, answers))
        back = asyncio.create_task(self._pump_answers(server[0], writer, committing, answers))
        await asyncio.gather(there, back)

    async def _pump_requests(
        self,
        client: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        committing: asyncio.Event,
        answered: asyncio.Event,
    ) -> None:
        concerned = False
        with suppress(OSError):
            while data := await client.read(_CHUNK):
                concerned = concerned or (self._told is not None and self._told in data)
                if concerned and _COMMIT in data:
                    self._told, self._is_open = None, False
                    if self._at is not CutAt.BEFORE:
                        committing.set()
                        server.write(data)
                        await server.drain()
                    if self._at is CutAt.AFTER:
                        await answered.wait()
                    await asyncio.to_thread(self._kill)
                    self.cut.set()
                    break
                server.write(data)
                await server.drain()
        server.close()

    async def _pump_answers(
        self,
        server: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        committing: asyncio.Event,
        answered: asyncio.Event,
    ) -> None:
        with suppress(OSError):
            while data := await server.read(_CHUNK):
                if committing.is_set():
                    # Nobody gets to know.
                    answered.set()
                    continue
                client.write(data)
                await client.drain()
        client.close()
