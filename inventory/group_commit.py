"""One transaction for what several callers write at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from contracts.errors import Unavailable

T = TypeVar("T")

_AT_A_TIME = 200


@dataclass(eq=False)
class _Caller(Generic[T]):
    """`done`: its transaction has ended. `gone`: it was cancelled, and only waits for that."""

    one: T
    done: asyncio.Future[None]
    gone: bool = False


class GroupCommit(Generic[T]):
    """While one transaction is at work, whoever comes waits for the next one, with all others that
    do.

    Args:
        write: commits what is to be written; for each, what its caller alone is to get raised, or
            None. Unavailable, which it raises itself, all get. After anything else each is written
            alone: one that the database does not take is in nobody's way.
    """

    def __init__(
        self, write: Callable[[Sequence[T]], Awaitable[Sequence[Exception | None]]]
    ) -> None:
        self._write = write
        self._waiting: list[_Caller[T]] = []
        self._group: list[_Caller[T]] = []
        self._writing: asyncio.Task[Sequence[Exception | None]] | None = None
        self._work: asyncio.Task[None] | None = None

    async def do(self, one: T) -> None:
        """Returns when it is committed. A caller that is cancelled leaves nothing behind that is
        still at work: it is not written if its turn has not come; else the cancel comes after its
        transaction, which is cancelled when nobody else waits for it."""
        caller = _Caller(one, asyncio.get_running_loop().create_future())
        self._waiting.append(caller)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._write_all())
        try:
            await asyncio.wait([caller.done])
        except asyncio.CancelledError:
            caller.gone = True
            if caller in self._waiting:
                self._waiting.remove(caller)
            elif not caller.done.done():
                if self._writing is not None and all(other.gone for other in self._group):
                    self._writing.cancel()
                await asyncio.wait([caller.done])
            raise
        caller.done.result()

    async def _write_all(self) -> None:
        while self._waiting:
            self._group, self._waiting = self._waiting[:_AT_A_TIME], self._waiting[_AT_A_TIME:]
            self._writing = asyncio.create_task(self._commit([one.one for one in self._group]))
            try:
                await asyncio.wait([self._writing])
            except asyncio.CancelledError:
                self._writing.cancel()
                self._end(self._group + self._waiting)
                self._waiting.clear()
                raise
            if self._writing.cancelled():
                self._end(self._group)
                continue
            problems = self._writing.result()
            for caller, problem in zip(self._group, problems, strict=True):
                if problem is None or caller.gone:
                    caller.done.set_result(None)
                else:
                    caller.done.set_exception(problem)

    def _end(self, callers: Sequence[_Caller[T]]) -> None:
        for caller in callers:
            caller.done.cancel()

    async def _commit(self, ones: Sequence[T]) -> Sequence[Exception | None]:
        try:
            return await self._write(ones)
        except Unavailable as away:
            return [away] * len(ones)
        except Exception as failure:
            if len(ones) == 1:
                return [failure]
        return [problem for one in ones for problem in await self._commit([one])]
