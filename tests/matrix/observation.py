"""What became of the guests, seen from outside: libvirt on each host, and their own consoles."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.e2e.conftest import GUESTS, HOSTS
from tests.lab import Lab
from tests.matrix.bench import SOURCE

_SAMPLE_S = 0.25


@dataclass(frozen=True)
class Fate:
    """Of one guest over a whole maintenance.

    Attributes:
        active, defined: hosts on which libvirt has it running, and persistently defined.
        last_tick: the last number on its console.
        wrong_ticks: whether numbers are missing, or there more than once.
        pause_s: the longest time without a new one.
        state: libvirt's, with the reason.
        ticks_on: whether it still counts.
        struck: hosts that lost their power while it ran there.
    """

    guest: str
    active: tuple[str, ...]
    defined: tuple[str, ...]
    last_tick: int
    wrong_ticks: bool
    pause_s: float
    state: str
    ticks_on: bool
    struck: tuple[str, ...]

    @property
    def problem(self) -> str | None:
        """What nobody asked for: stopped, duplicated, lost."""
        if len(self.defined) != 1:
            return f"{self.guest} is defined on {_names(self.defined)}"
        if len(self.active) > 1:
            return f"{self.guest} runs on {_names(self.active)}"
        if self.wrong_ticks:
            return f"{self.guest} counted a number twice, or left one out"
        if self.struck:
            return None
        if not self.active or self.active != self.defined:
            return f"{self.guest} runs on {_names(self.active)}, defined on {_names(self.defined)}"
        if not self.ticks_on:
            return f"{self.guest} does not count any more: {self.state}"
        return None

    @property
    def words(self) -> str:
        """What happened to it."""
        if self.struck and not self.active:
            return f"lost with {_names(self.struck)}, shut off there"
        if not self.active:
            return f"does not run; defined on {_names(self.defined)}"
        went = "stayed on" if self.active == (SOURCE,) else "went to"
        return f"{went} {_names(self.active)}"


class Watch:
    """Looks at the consoles all the time."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._last = {guest: lab.ticks(guest)[-1] for guest in GUESTS}
        self._since = dict.fromkeys(GUESTS, time.monotonic())
        self._pauses = dict.fromkeys(GUESTS, 0.0)
        self._struck: dict[str, list[str]] = {guest: [] for guest in GUESTS}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_SAMPLE_S)
            for guest in GUESTS:
                last, now = self._lab.ticks(guest)[-1], time.monotonic()
                self._pauses[guest] = max(self._pauses[guest], now - self._since[guest])
                if last != self._last[guest]:
                    self._last[guest], self._since[guest] = last, now

    async def about_to_die(self, host: str) -> None:
        """What runs on `host` is lost with it; what is only on its way there is not."""
        running = await self._lab.virsh(host, "list", "--name", "--state-running")
        for guest in set(running.stdout.split()) & set(GUESTS):
            self._struck[guest].append(host)

    async def fates(self) -> list[Fate]:
        """How it ended, with all hosts up."""
        places: dict[str, dict[str, list[str]]] = {}
        for which in ("active", "persistent"):
            places[which] = {guest: [] for guest in GUESTS}
            more = ("--all", "--persistent") if which == "persistent" else ()
            for host in HOSTS:
                names = (await self._lab.virsh(host, "list", "--name", *more)).stdout.split()
                for guest in set(names) & set(GUESTS):
                    places[which][guest].append(host)
        before = {guest: self._lab.ticks(guest)[-1] for guest in GUESTS}
        alive = [guest for guest in GUESTS if places["active"][guest]]
        counting = await asyncio.gather(*(self._counts_on(guest) for guest in alive))
        ticking = dict(zip(alive, counting, strict=True))
        return [
            Fate(
                guest=guest,
                active=tuple(places["active"][guest]),
                defined=tuple(places["persistent"][guest]),
                last_tick=before[guest],
                # The last line may be half written.
                wrong_ticks=_wrong(self._lab.ticks(guest)[:-1]),
                pause_s=round(self._pauses[guest], 1),
                state=await self._state(guest, places["active"][guest]),
                ticks_on=ticking.get(guest, False),
                struck=tuple(self._struck[guest]),
            )
            for guest in GUESTS
        ]

    async def _state(self, guest: str, hosts: list[str]) -> str:
        said = [await self._lab.virsh(host, "domstate", "--reason", guest) for host in hosts]
        return ", ".join(" ".join(one.stdout.split()) for one in said)

    async def _counts_on(self, guest: str) -> bool:
        try:
            async with asyncio.timeout(20):
                await self._lab.ticks_on(guest)
        except TimeoutError:
            return False
        return True


@asynccontextmanager
async def watching(lab: Lab) -> AsyncIterator[Watch]:
    """As long as the block."""
    watch = Watch(lab)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _wrong(ticks: list[int]) -> bool:
    steps = {following - one for one, following in itertools.pairwise(ticks)}
    return ticks[0] != 1 or steps != {1}


def _names(hosts: tuple[str, ...]) -> str:
    return ", ".join(hosts) or "no host"
