"""Several callers, one transaction."""

import asyncio
from collections.abc import Sequence

import pytest

from inventory.group_commit import GroupCommit


class Writer:
    """Keeps what is written together; `goes_on` lets it."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.goes_on = asyncio.Event()
        self.fails = False

    async def write(self, ones: Sequence[str]) -> list[Exception | None]:
        self.groups.append(list(ones))
        await self.goes_on.wait()
        if self.fails:
            raise ConnectionError("no database")
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
    assert writer.groups == [["first"], ["good", "bad", "gone", "last"]]
    assert [type(one) for one in ended] == [
        *(type(None), type(None), ValueError, asyncio.CancelledError, type(None))
    ]


async def test_a_failure_is_everybodys_and_not_the_next_ones() -> None:
    writer = Writer()
    writer.goes_on.set()
    writer.fails = True
    commit = GroupCommit(writer.write)
    ended = await asyncio.gather(commit.do("a"), commit.do("b"), return_exceptions=True)
    assert [type(one) for one in ended] == [ConnectionError, ConnectionError]
    writer.fails = False
    await commit.do("c")
    with pytest.raises(ValueError, match="bad"):
        await commit.do("bad")
