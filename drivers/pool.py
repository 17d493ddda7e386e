"""Connections that are kept: one per host and credential, shared by concurrent callers."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

from drivers.errors import HostUnreachable


def look_at(done: asyncio.Future[Any]) -> None:
    """Tell asyncio that an exception of this future is of no interest if nobody awaits it."""
    if not done.cancelled():
        done.exception()


class Access(Protocol):
    """How to reach something: two that are equal reach it in the same way."""

    @property
    def name(self) -> str:
        """The host's."""


class Connection(Protocol):
    """What a Pool keeps."""

    @property
    def dead(self) -> bool:
        """True once it is of no more use."""

    async def close(self) -> None:
        """Close it, and break what still runs through it. May be called more than once."""


A = TypeVar("A", bound=Access)
C = TypeVar("C", bound=Connection)


class Pool(Generic[A, C]):
    """Opens a connection when it is first wanted, and again when it is dead.

    A changed access (another password, another pinned key, another address) gets a connection of
    its own; the old one is closed when its last user is done, since that may be a migration.

    Args:
        open_connection: makes one.
        idle: seconds after which one that nobody has used is closed, up to twice as many; None: it
            is kept.
    """

    def __init__(
        self,
        open_connection: Callable[[A], Coroutine[None, None, C]],
        *,
        idle: float | None = None,
    ) -> None:
        self._open = open_connection
        self._idle = idle
        self._slots: dict[str, list[_Slot[A, C]]] = {}
        self._purge: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def use(self, access: A) -> AsyncIterator[C]:
        """The connection to a host. What opening it raises, every waiting caller gets."""
        slot = self._slot(access)
        slot.users += 1
        if self._idle is not None and (self._purge is None or self._purge.done()):
            self._purge = asyncio.create_task(self._end_idle(self._idle))
        try:
            await self._tidy(access.name)
            yield await slot.opened()
        finally:
            slot.users -= 1
            slot.used = asyncio.get_running_loop().time()
            await self._tidy(access.name)

    async def forget(self, host: str) -> None:
        """Close all connections to `host`, in use or not."""
        for slot in self._slots.pop(host, []):
            await slot.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._purge is not None:
            self._purge.cancel()
        for host in list(self._slots):
            await self.forget(host)

    def _slot(self, access: A) -> "_Slot[A, C]":
        slots = self._slots.setdefault(access.name, [])
        if not slots or slots[-1].access != access or slots[-1].useless:
            slots.append(_Slot(access, asyncio.create_task(self._open(access))))
        return slots[-1]

    async def _tidy(self, host: str, used_since: float = -math.inf) -> None:
        """Close what nobody uses or can use any more, or has used since then."""
        slots = self._slots.get(host, [])

        def kept(slot: _Slot[A, C]) -> bool:
            latest = slot is slots[-1] and slot.used > used_since
            return not slot.useless and (latest or slot.users > 0)

        done = [slot for slot in slots if not kept(slot)]
        for slot in done:
            slots.remove(slot)
        if not slots:
            self._slots.pop(host, None)
        for slot in done:
            await slot.close()

    async def _end_idle(self, seconds: float) -> None:
        """As long as any connection is kept."""
        while self._slots:
            await asyncio.sleep(seconds)
            for host in list(self._slots):
                await self._tidy(host, asyncio.get_running_loop().time() - seconds)


class _Slot(Generic[A, C]):
    """A connection that is open or being opened."""

    def __init__(self, access: A, opening: asyncio.Task[C]) -> None:
        self.access = access
        self.opening = opening
        self.users = 0
        self.used = asyncio.get_running_loop().time()
        # All who waited may have been cancelled: nobody would look at the exception then.
        opening.add_done_callback(look_at)

    async def opened(self) -> C:
        """The connection, when it is open."""
        try:
            return await asyncio.shield(self.opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.opening.cancelled() and task is not None and not task.cancelling():
                raise HostUnreachable(f"The connection to {self.access.name} was closed.") from None
            raise

    @property
    def useless(self) -> bool:
        if not self.opening.done():
            return False
        failed = self.opening.cancelled() or self.opening.exception() is not None
        return failed or self.opening.result().dead

    async def close(self) -> None:
        if not self.opening.done():
            self.opening.cancel()
            await asyncio.wait([self.opening])
        if not self.opening.cancelled() and self.opening.exception() is None:
            await self.opening.result().close()
