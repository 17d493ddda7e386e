"""How activities run: heartbeats beside the work, and work that a cancel must not tear apart."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from temporalio import activity

T = TypeVar("T")


@asynccontextmanager
async def beating() -> AsyncIterator[None]:
    """Heartbeat three times per heartbeat time-out until the block ends."""
    limit = activity.info().heartbeat_timeout
    if limit is None:
        yield
        return

    async def beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(limit.total_seconds() / 3)

    beats = asyncio.create_task(beat())
    try:
        yield
    finally:
        beats.cancel()
        with suppress(asyncio.CancelledError):
            await beats


async def uninterrupted(work: Coroutine[None, None, T]) -> T:
    """Run `work` to its end even if the activity is cancelled meanwhile; the cancel comes after.

    A command that was sent to a host goes on there whatever happens here: only its end tells in
    which state it left the host. `work` must be bounded by itself.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def ended(task: "asyncio.Future[T]") -> None:
    """Wait for the end of a task that is bounded by itself, whatever cancels come meanwhile."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
