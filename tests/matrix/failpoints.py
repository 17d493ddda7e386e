"""Failpoints: a worker of the tests waits at a step of an operation until it is let go.

They are files in a folder: NAME.armed says where, NAME.reached that a worker waits there, NAME.go
that it may go on. Each holds up one call; a worker that is started later sees those that are left.
"""

import asyncio
import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

FOLDER_VARIABLE = "MATRIX_FAILPOINTS"

_PAUSE_S = 0.05


class Moment(StrEnum):
    """Of an activity's execution."""

    BEFORE = "before its effect"
    AFTER = "after its effect, before Temporal knows"


@dataclass(frozen=True)
class Place:
    """A call of an activity. `fields`: of its input, which tell it from other calls."""

    activity: str
    fields: Mapping[str, str] = field(default_factory=dict)


class Failpoints:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._numbers = 0

    def arm(self, place: Place, moment: Moment) -> str:
        """The next call of that kind will wait. Returns the failpoint's name."""
        self._numbers += 1
        name = f"{self._numbers}-{place.activity}"
        armed = self.folder / f"{name}.armed"
        draft = armed.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(place) | {"moment": moment}))
        draft.rename(armed)
        return name

    async def reached(self, name: str) -> None:
        """Returns when a worker waits there."""
        await self.any_reached({name})

    async def any_reached(self, names: Set[str]) -> set[str]:
        """Those at which a worker waits, as soon as there is one."""
        while True:
            found = {name for name in names if (self.folder / f"{name}.reached").exists()}
            if found:
                return found
            await asyncio.sleep(_PAUSE_S)

    def release(self, name: str) -> None:
        """It may go on."""
        (self.folder / f"{name}.go").touch()

    def clear(self) -> None:
        """Disarm and release all."""
        for armed in self.folder.glob("*.armed"):
            armed.unlink()
        for reached in self.folder.glob("*.reached"):
            reached.with_suffix(".go").touch()


class FailpointInterceptor(Interceptor):
    """The worker's side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """Wrap activities."""
        return _Activities(next, self._folder)


class _Activities(ActivityInboundInterceptor):
    def __init__(self, following: ActivityInboundInterceptor, folder: Path) -> None:
        super().__init__(following)
        self._folder = folder

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's name
        await self._wait(Moment.BEFORE, input)
        result = await self.next.execute_activity(input)
        await self._wait(Moment.AFTER, input)
        return result

    async def _wait(self, moment: Moment, call: ExecuteActivityInput) -> None:
        for armed in sorted(self._folder.glob("*.armed")):
            if _matches(json.loads(armed.read_text()), moment, call):
                armed.rename(armed.with_suffix(".reached"))
                while not armed.with_suffix(".go").exists():
                    await asyncio.sleep(_PAUSE_S)


def _matches(armed: dict[str, Any], moment: Moment, call: ExecuteActivityInput) -> bool:
    if (armed["activity"], armed["moment"]) != (activity.info().activity_type, moment):
        return False
    given: dict[str, Any] = {}
    for argument in call.args:  # some activities take none
        if isinstance(argument, BaseModel):
            given |= argument.model_dump(mode="json")
    return all(given.get(name) == value for name, value in armed["fields"].items())
