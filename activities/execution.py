"""Work in activities that a cancel must not tear apart."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


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
