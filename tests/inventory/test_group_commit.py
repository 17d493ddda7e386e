"""Several callers, one transaction."""

import asyncio
from collections.abc import Sequence

import pytest

from contracts.errors import Unavailable
from inventory.group_commit import GroupCommit


class Writer:
    """Keeps what is written together; `goes_on` lets it."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.goes_on = asyncio.Event()
        self.fails = False
        self.ended = 0

    async def write(self, ones: Sequence[str]) -> list[Exception | None]:
        self.groups.append(list(ones))
        try:
            await self.goes_on.wait()
        finally:
            self.ended += 1
        if self.fails:
            raise Unavailable("no database")
        if "odd" in ones:
            raise TypeError("odd")
        return [ValueError(one) if one.startswith("bad") else None for one in ones]


async def test_who_comes_meanwhile_is_in_the_next_one() -> None:
    writer = Writer()
    commit = GroupCommit(writer.write)
    callers = [asyncio.create_task(commit.do("first"))]
    while not writer.groups:
        await asyncio.sleep(0)
    callers += [asyncio.create_task(commit.do(one)) for one in ("good", "bad", "gone", "last")]
    await asyncio.sleep(0)
    callers[3].cancel()
    writer.goes_on.set()
    ended = await asyncio.gather(*callers, return_exceptions=True)
    assert writer.groups == [["first"], ["good", "bad", "last"]]
    assert [type(one) for one in ended] == [
        *(type(None), type(None), ValueError, asyncio.CancelledError, type(None))
    ]


async def test_a_failure_is_everybodys_and_not_the_next_ones() -> None:
    writer = Writer()
    writer.goes_on.set()
    writer.fails = True
    commit = GroupCommit(writer.write)
    ended = await asyncio.gather(commit.do("a"), commit.do("b"), return_exceptions=True)
    assert [type(one) for one in ended] == [Unavailable, Unavailable]
    writer.fails = False
    await commit.do("c")
    with pytest.raises(ValueError, match="bad"):
        await commit.do("bad")
    assert writer.groups == [["a", "b"], ["c"], ["bad"]]


async def test_what_the_database_does_not_take_is_in_nobodys_way() -> None:
    writer = Writer()
    commit = GroupCommit(writer.write)
    callers = [asyncio.create_task(commit.do("first"))]
    while not writer.groups:
        await asyncio.sleep(0)
    callers += [asyncio.create_task(commit.do(one)) for one in ("good", "odd", "bad")]
    await asyncio.sleep(0)
    writer.goes_on.set()
    ended = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(one) for one in ended] == [type(None), type(None), TypeError, ValueError]


async def test_one_that_is_cancelled_ends_after_its_transaction() -> None:
    writer = Writer()
    commit = GroupCommit(writer.write)
    both = [asyncio.create_task(commit.do(one)) for one in ("stays", "goes")]
    while not writer.groups:
        await asyncio.sleep(0)
    both[1].cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not both[1].done(), "its transaction is at work"
    writer.goes_on.set()
    ended = await asyncio.gather(*both, return_exceptions=True)
    assert [type(one) for one in ended] == [type(None), asyncio.CancelledError]
    assert (writer.groups, writer.ended) == ([["stays", "goes"]], 1)


async def test_a_transaction_that_hangs_is_cancelled_with_the_last_who_waits_for_it() -> None:
    """A database that has gone silent: whoever comes later does not hang behind it."""
    writer = Writer()
    commit = GroupCommit(writer.write)
    async with asyncio.timeout(20):
        first = asyncio.create_task(commit.do("first"))
        while not writer.groups:
            await asyncio.sleep(0)
        later = asyncio.create_task(commit.do("later"))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert writer.ended == 1
        writer.goes_on.set()
        await later
    assert writer.groups == [["first"], ["later"]]
