"""All BMCs, asked in shards: those that answer are not held up by those that do not."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from temporalio import activity

from activities.bmcs import Bmc, BmcDirectory, ask, sighting_of
from contracts.errors import HostlerError
from contracts.oobm import PowerRound
from contracts.power import PowerState
from contracts.power_actions import (
    FinishPowerRoundInput,
    PowerRoundBegun,
    PowerRoundPlan,
    PowerSighting,
    PowerSwept,
    PowerSyncResult,
    SweepPowerInput,
)
from contracts.settings import (
    OOBM_SYNC_INTERVAL,
    OOBM_SYNC_POOLSIZE,
    OOBM_SYNC_SHARD_SIZE,
    OOBM_SYNC_TIMEOUT,
)
from inventory import Inventory
from inventory.oobm import BmcLogin
from inventory.power import PowerFleet

# Sightings are written several at a time, and soon: a retry asks again who is not written. They are
# written as well when there is a pause, of a seventh of the time so far: the rest may be silent.
_WRITE_EVERY_S = 0.5
_WRITE_AT_MOST = 250
_PAUSE = 0.15
_PAUSE_AT_LEAST_S = 0.001
# From then on a BMC is a silent one: it is waited for beside the others, not in the place of one.
# Where BMCs usually answer sooner, twice as long as they take is enough.
_PROMPT_S = 0.5
_PROMPT_AT_LEAST_S = 0.05
_SILENT_AT_A_TIME = 1000
# Of those that are known to be silent, at a time; a round does not wait for all of them.
_TRIED_AGAIN_AT_MOST = 500
# So much later than the others, since logins, which they need, are most of the work.
_TRIED_AGAIN_AFTER_S = 1.0


class PowerSyncActivities:
    """Ask, write down, count. What is written is what was seen, and nothing else."""

    def __init__(self, inventory: Inventory, bmcs: BmcDirectory) -> None:
        self._inventory = inventory
        self._bmcs = bmcs

    @activity.defn(name="plan_power_sync")
    async def plan_power_sync(self) -> PowerRoundBegun:
        """The settings of now, for the whole round, and its shards."""
        settings = await self._inventory.settings.resolve()
        plan = PowerRoundPlan(
            started_at=datetime.now(UTC),
            interval=settings[OOBM_SYNC_INTERVAL],
            concurrency=settings[OOBM_SYNC_POOLSIZE],
            # Of two settings that are changed at once, nobody sees the other one.
            timeout=min(settings[OOBM_SYNC_TIMEOUT], settings[OOBM_SYNC_INTERVAL] - 1),
        )
        power = self._inventory.power
        return PowerRoundBegun(
            plan=plan,
            shards=await power.shards(settings[OOBM_SYNC_SHARD_SIZE]),
            silent_due=bool(await power.to_try_again(plan.started_at, 1)),
        )

    @activity.defn(name="sweep_power")
    async def sweep_power(self, request: SweepPowerInput) -> PowerSwept:
        """Ask each BMC of the shard that was not asked since the round began. What was seen is
        written as it comes: another attempt goes on where this one ended."""
        plan = request.plan
        logins = await self._inventory.power.to_ask(request.shard, plan.started_at)
        return await self._sweep(logins, plan)

    @activity.defn(name="try_silent_bmcs")
    async def try_silent_bmcs(self, plan: PowerRoundPlan) -> PowerSwept:
        """Ask those that did not answer before and whose time has come; five hundred at the most,
        the longest due first: the others come in a later round."""
        logins = await self._inventory.power.to_try_again(plan.started_at, _TRIED_AGAIN_AT_MOST)
        if logins:
            await asyncio.sleep(_TRIED_AGAIN_AFTER_S)
        return await self._sweep(logins, plan)

    @activity.defn(name="finish_power_sync")
    async def finish_power_sync(self, request: FinishPowerRoundInput) -> PowerSyncResult:
        """Keep what the round has come to, and measure it."""
        plan, fleet = request.plan, await self._inventory.power.fleet()
        ended_at = datetime.now(UTC)
        done = PowerRound(
            started_at=plan.started_at,
            ended_at=ended_at,
            seconds=(ended_at - plan.started_at).total_seconds(),
            asked=request.asked,
            answered=request.answered,
            waiting=fleet.waiting,
            changed=request.changed,
            oldest_observed_at=fleet.oldest_observed_at,
            counts=fleet.counts,
        )
        await self._inventory.power.record_round(done)
        _measure(done, fleet)
        return PowerSyncResult(
            asked=done.asked,
            answered=done.answered,
            waiting=done.waiting,
            changed=done.changed,
            seconds=done.seconds,
            counts=done.counts,
        )

    async def _sweep(self, logins: Sequence[BmcLogin], plan: PowerRoundPlan) -> PowerSwept:
        answered = changed = asked = 0
        found = await self._bmcs.of_many(logins)
        async with aclosing(_sightings(found, plan)) as several:
            async for seen in several:
                changes = await self._inventory.power.record(
                    seen,
                    interval=timedelta(seconds=plan.interval),
                    operation=activity.info().workflow_id or "power-sync",
                )
                asked += len(seen)
                answered += sum(one.state is not PowerState.UNKNOWN for one in seen)
                changed += len(changes)
                _count_errors(seen)
                activity.heartbeat(asked)
        return PowerSwept(asked=asked, answered=answered, changed=changed)


async def _sightings(
    bmcs: Sequence[tuple[BmcLogin, Bmc | HostlerError]], plan: PowerRoundPlan
) -> AsyncGenerator[list[PowerSighting], None]:
    """What they say, several at a time, as it comes."""
    slots, silent = asyncio.Semaphore(plan.concurrency), asyncio.Semaphore(_SILENT_AT_A_TIME)
    usual = _UsualTime()

    async def one(login: BmcLogin, bmc: Bmc | HostlerError) -> PowerSighting:
        if isinstance(bmc, HostlerError):
            return sighting_of(login, datetime.now(UTC), bmc)
        async with silent:
            async with slots:
                began = time.monotonic()
                answer = asyncio.create_task(ask(bmc, plan.timeout))
                try:
                    await asyncio.wait([answer], timeout=usual.prompt_s)
                except asyncio.CancelledError:
                    answer.cancel()
                    raise
            try:
                seen = await answer
            finally:
                answer.cancel()
        if seen.state is not PowerState.UNKNOWN:
            usual.note(time.monotonic() - began)
        return seen

    ended: asyncio.Queue[asyncio.Task[PowerSighting]] = asyncio.Queue()
    tasks = [asyncio.create_task(one(*entry)) for entry in bmcs]
    for task in tasks:
        task.add_done_callback(ended.put_nowait)
    ready: list[PowerSighting] = []
    left, began = len(tasks), time.monotonic()
    written = began
    try:
        while left or ready:
            paused = False
            pause = max(_PAUSE * (time.monotonic() - began), _PAUSE_AT_LEAST_S)
            try:
                async with asyncio.timeout(min(pause, _WRITE_EVERY_S) if ready else None):
                    several = [await ended.get()]
            except TimeoutError:
                several, paused = [], True
            while not ended.empty():
                several.append(ended.get_nowait())
            ready += [task.result() for task in several]
            left -= len(several)
            late = time.monotonic() - written >= _WRITE_EVERY_S
            if paused or late or len(ready) >= _WRITE_AT_MOST or not left:
                yield ready
                ready, written = [], time.monotonic()
    finally:
        for task in tasks:
            task.cancel()


class _UsualTime:
    """How long BMCs take that answer, on average, the latest ones the most."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def note(self, seconds: float) -> None:
        """One more has answered."""
        if self._seconds is None:
            self._seconds = seconds
        self._seconds += (seconds - self._seconds) / 16

    @property
    def prompt_s(self) -> float:
        """Who takes longer is silent for now."""
        if self._seconds is None:
            return _PROMPT_S
        return min(max(2 * self._seconds, _PROMPT_AT_LEAST_S), _PROMPT_S)


def _count_errors(seen: Sequence[PowerSighting]) -> None:
    errors = activity.metric_meter().create_counter(
        "hostler_bmc_errors", "BMCs that did not say how the power is, by kind"
    )
    for one in seen:
        if one.problem is not None:
            errors.add(1, {"kind": one.problem})


def _measure(done: PowerRound, fleet: PowerFleet) -> None:
    meter = activity.metric_meter()
    meter.create_histogram_float(
        "hostler_power_sweep_seconds", "Duration of one round over all BMCs", "s"
    ).record(done.seconds)
    hosts = meter.create_gauge("hostler_bmcs", "BMCs that are enabled, by what they last said")
    counted = dict.fromkeys((PowerState.ON, PowerState.OFF, PowerState.UNKNOWN), 0)
    for count in fleet.counts:
        counted[count.state] += count.hosts
    for state, number in counted.items():
        hosts.set(number, {"state": state})
    if fleet.oldest_observed_at is not None:
        meter.create_gauge_float(
            # A time, not an age, which would stand still between the rounds, and without them.
            "hostler_power_oldest_timestamp_seconds",
            "When the oldest power state that is taken for known was observed, in Unix time",
            "s",
        ).set(fleet.oldest_observed_at.timestamp())
