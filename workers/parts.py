"""The parts that a process runs beside each other, until a signal or the end of one of them."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from temporalio.worker import Worker

from contracts.errors import Failed

logger = logging.getLogger(__name__)

_PAUSE_S = 0.05
_API_DRAIN_S = 5
# On top of the worker's own bound: what it needs to tell Temporal how its activities ended.
_WORKER_REPORT_S = 5.0


@dataclass(frozen=True)
class Part:
    """Something that runs until the process stops; `task` ending earlier is a failure."""

    name: str
    task: asyncio.Task[object]


async def until_signalled(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`; SIGTERM or SIGINT cancels it, once, and it may take its time to clean up."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work())
    signalled = False

    def stop(name: str) -> None:
        nonlocal signalled
        if not signalled:
            signalled = True
            logger.info("stops (%s)", name)
            task.cancel()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop, number.name)
    try:
        await asyncio.wait([task])
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    if task.cancelled() and signalled:
        return
    await task


async def first_end(parts: Sequence[Part]) -> NoReturn:
    """Wait until a part ends. Raises Failed, which says which one and why."""
    await asyncio.wait([part.task for part in parts], return_when=asyncio.FIRST_COMPLETED)
    for part in parts:
        if part.task.done():
            reason = part.task.exception() if not part.task.cancelled() else None
            raise Failed(
                f"{part.name} ended{f': {reason}' if reason else ''}.",
                remedy="Hostler has stopped; the log tells more. Start it again.",
            ) from reason
    raise AssertionError("asyncio.wait returned without an ended part")


@asynccontextmanager
async def running_worker(worker: Worker, drain_s: float) -> AsyncIterator[Part]:
    """Run `worker` during the block; afterwards it has `drain_s` to end its activities."""
    task: asyncio.Task[object] = asyncio.create_task(worker.run(), name="worker")
    try:
        while not (worker.is_running or task.done()):
            await asyncio.wait([task], timeout=_PAUSE_S)
        yield Part("The worker", task)
    finally:
        if not task.done():
            shutdown = asyncio.create_task(worker.shutdown())
            await asyncio.wait([task], timeout=drain_s + _WORKER_REPORT_S)
            shutdown.cancel()
        if not task.done():
            logger.warning("the worker's activities did not end in time; Temporal retries them")
            task.cancel()
            await asyncio.wait([task], timeout=_WORKER_REPORT_S)


@asynccontextmanager
async def running_api(
    app: FastAPI, listener: socket.socket, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Part]:
    """Serve `app` on `listener` during the block, by TLS if there is a context for it; afterwards
    requests have 5 s to end."""
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=_API_DRAIN_S,
            server_header=False,
            ssl_context_factory=(lambda *_: tls) if tls is not None else None,
        )
    )
    task: asyncio.Task[object] = asyncio.create_task(server.serve(sockets=[listener]), name="api")
    try:
        while not (server.started or task.done()):
            await asyncio.wait([task], timeout=_PAUSE_S)
        yield Part("The API", task)
    finally:
        server.should_exit = True
        await asyncio.wait([task], timeout=2 * _API_DRAIN_S)
        task.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
