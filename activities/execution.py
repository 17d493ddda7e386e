"""Work in activities that must not be torn apart: by a cancel, or by one host of many."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from temporalio import activity

from contracts.errors import Failed, HostlerError

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


@contextmanager
def surprises_of(host: str) -> Iterator[None]:
    """Around calls of drivers in a sweep: what a driver did not expect of a host is a failure of
    that host (Failed), so that the sweep goes on with all the others."""
    try:
        yield
    except (HostlerError, TimeoutError):
        raise
    except Exception as error:
        activity.logger.exception("%s is beyond Hostler", host)
        raise Failed(
            f"{host} answered what Hostler does not understand: {type(error).__name__}: {error}"
        ) from error
