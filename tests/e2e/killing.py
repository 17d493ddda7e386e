"""A worker that is killed at each step of an operation, and replaced.

With `--matrix`, at every step, in an operation for each moment. Without, in one operation, at an
eighth of its steps, but at one at least: which, and when, is by a seed (MATRIX_SEED, or the day).
"""

import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.system import ROOT, Process, System
from tests.matrix.failpoints import FOLDER_VARIABLE, Failpoints, Moment, Place
from tests.seed import seed_of_the_day

Moments = Callable[[Sequence[str]], dict[str, Moment]]
"""Of an operation's steps: at which, and when."""

_SHARE = 8
_AT_LEAST = 1


def choices_of_moments(*, all_of_them: bool) -> dict[str, Moments]:
    """Those to be tried, by name."""
    if all_of_them:
        return {moment.name.lower(): partial(_at_each, moment) for moment in Moment}
    seed = seed_of_the_day()
    return {f"seed-{seed}": partial(_by_chance, seed)}


def _at_each(moment: Moment, steps: Sequence[str]) -> dict[str, Moment]:
    return dict.fromkeys(steps, moment)


def _by_chance(seed: str, steps: Sequence[str]) -> dict[str, Moment]:
    chance = random.Random(f"{seed} {steps}")  # noqa: S311 - no secret comes of it
    number = min(len(steps), max(_AT_LEAST, len(steps) // _SHARE))
    return {step: chance.choice([*Moment]) for step in chance.sample(steps, number)}


class MortalWorker:
    """The worker of a System, which waits at failpoints. `start` it first."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._failpoints = Failpoints(folder)
        self._process: Process | None = None

    async def start(self) -> None:
        """A worker where there is none."""
        self._process = await self._system.start(
            "Worker with failpoints.",
            *(sys.executable, "-m", "tests.matrix.worker"),
            PYTHONPATH=str(ROOT),
            **{FOLDER_VARIABLE: str(self._failpoints.folder)},
        )

    def arm(self, steps: Sequence[str], moments: Moments) -> set[str]:
        """From now on the next call of each of these activities waits. Returns the failpoints."""
        chosen = moments(steps).items()
        return {self._failpoints.arm(Place(step), moment) for step, moment in chosen}

    async def die_at(self, armed: set[str], operation: asyncio.Task[Any]) -> None:
        """Kill the worker wherever it waits, until it did at each failpoint. Fails if the
        operation ends before."""
        left = set(armed)
        while left:
            reached = asyncio.create_task(self._failpoints.any_reached(left))
            await asyncio.wait({reached, operation}, return_when=asyncio.FIRST_COMPLETED)
            if not reached.done():
                reached.cancel()
                await operation
                raise AssertionError(f"The operation has ended, and never came to {left}.")
            left -= reached.result()
            assert self._process is not None
            self._system.kill(self._process)
            await self.start()
