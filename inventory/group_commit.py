"""One transaction for what several callers write at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_AT_A_TIME = 200


class GroupCommit(Generic[T]):
    """While one transaction is at work, whoever comes waits for the next one, with all others that
    do.

    Args:
        write: commits what is to be written; for each, what its caller alone is to get raised, or
            None. What it raises itself, all get.
    """

    def __init__(
        self, write: Callable[[Sequence[T]], Awaitable[Sequence[Exception | None]]]
    ) -> None:
        self._write = write
        self._waiting: list[tuple[T, asyncio.Future[None]]] = []
        self._work: asyncio.Task[None] | None = None

    async def do(self, one: T) -> None:
        """Returns when it is committed. A caller that is cancelled meanwhile does not know whether
        it was."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, done))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._write_all())
        await done

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:_AT_A_TIME], self._waiting[_AT_A_TIME:]
            try:
                problems = await self._write([one for one, _ in group])
            except Exception as failure:
                problems = [failure] * len(group)
            except BaseException:
                for _, done in [*group, *self._waiting]:
                    done.cancel()
                self._waiting.clear()
                raise
            for (_, done), problem in zip(group, problems, strict=True):
                if done.done():
                    continue
                if problem is None:
                    done.set_result(None)
                else:
                    done.set_exception(problem)
