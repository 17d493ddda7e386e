"""PowerSync's order and history, with the activities replaced and time skipped."""

import asyncio
import resource
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from contracts.host_checks import AlignScheduleInput
from contracts.power_actions import (
    POWER_PROBE_ID,
    FinishPowerRoundInput,
    PowerRoundBegun,
    PowerRoundPlan,
    PowerShard,
    PowerSwept,
    PowerSyncInput,
    PowerSyncResult,
    SweepPowerInput,
)
from contracts.settings import SMALLEST_SHARD
from tests.samples import WHEN
from workers.interceptors import HostlerInterceptor
from workers.worker import activities_of
from workflows.power_probe import PowerProbe
from workflows.power_sync import PowerSync

pytestmark = pytest.mark.asyncio(loop_scope="package")

PLAN = PowerRoundPlan(started_at=WHEN, interval=30, concurrency=50, timeout=10)


@dataclass
class Fleet:
    """BMCs of so many hosts, in shards of `size`. `fails`: so many attempts at each shard are lost.
    `silent`: some did not answer before; they are asked until `heard` is set. `apart`: seconds by
    which each shard takes longer than the one before it."""

    hosts: int
    fails: int = 0
    seconds: float = 0.2
    size: int = 500
    apart: float = 0
    silent: bool = False
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    at_a_time: int = 0
    most_at_a_time: int = 0
    calls: list[str] = field(default_factory=list)

    @activity.defn(name="plan_power_sync")
    async def plan_power_sync(self) -> PowerRoundBegun:
        lasts = [*range(self.size, self.hosts, self.size), self.hosts] if self.hosts else []
        shards = tuple(
            PowerShard(after=f"host-{after:05}" if after else "", last=f"host-{last:05}")
            for after, last in zip([0, *lasts], lasts, strict=False)
        )
        return PowerRoundBegun(plan=PLAN, shards=shards, silent_due=self.silent)

    @activity.defn(name="align_schedule")
    async def align_schedule(self, request: AlignScheduleInput) -> bool:
        self.calls.append(f"align {request.schedule} {request.every_s}")
        return False

    @activity.defn(name="sweep_power")
    async def sweep_power(self, request: SweepPowerInput) -> PowerSwept:
        assert request.plan == PLAN
        if activity.info().attempt <= self.fails:
            raise ApplicationError("the database is away")
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        last = int(request.shard.last.removeprefix("host-"))
        await asyncio.sleep(self.seconds + self.apart * (last // self.size))
        self.at_a_time -= 1
        self.calls.append(f"sweep {request.shard.last}")
        return PowerSwept(asked=500, answered=499, changed=1)

    @activity.defn(name="try_silent_bmcs")
    async def try_silent_bmcs(self, plan: PowerRoundPlan) -> PowerSwept:
        assert plan == PLAN
        self.calls.append("silent")
        await self.heard.wait()
        return PowerSwept(asked=3, answered=1)

    @activity.defn(name="finish_power_sync")
    async def finish_power_sync(self, request: FinishPowerRoundInput) -> PowerSyncResult:
        self.calls.append("finish")
        return PowerSyncResult(
            asked=request.asked,
            answered=request.answered,
            waiting=0,
            changed=request.changed,
            seconds=1.5,
            counts=(),
        )


@pytest_asyncio.fixture(loop_scope="package")
async def sweep(client: Client) -> AsyncIterator[Any]:
    """`await sweep(fleet)`: a round's result and its history."""
    workers: list[Worker] = []

    async def run(fleet: Fleet) -> tuple[PowerSyncResult, Any]:
        queue = f"test-{uuid.uuid4()}"
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[PowerProbe, PowerSync],
            activities=activities_of(fleet),
            interceptors=[HostlerInterceptor()],
        )
        await worker.__aenter__()
        workers.append(worker)
        handle = await client.start_workflow(
            PowerSync.run, PowerSyncInput(), id=f"power-sync-{uuid.uuid4()}", task_queue=queue
        )
        return await handle.result(), await handle.fetch_history()

    yield run
    for worker in workers:
        await worker.__aexit__(None, None, None)


async def test_a_round_over_2000_bmcs_has_a_short_history_without_names(sweep: Any) -> None:
    fleet = Fleet(hosts=2000)
    result, history = await sweep(fleet)
    assert (result.asked, result.answered, result.changed) == (2000, 1996, 4)
    assert fleet.calls[0] == "align power-sync 30"
    assert fleet.calls[-1] == "finish"
    assert sorted(fleet.calls[1:-1]) == [
        *(f"sweep host-{last:05}" for last in (500, 1000, 1500, 2000)),
    ]
    assert fleet.most_at_a_time > 1
    assert len(history.events) <= 60


async def test_the_smallest_shards_that_may_be_set_keep_it_short(sweep: Any) -> None:
    """Each ends at another time, which wakes the workflow up; and there are silent ones."""
    fleet = Fleet(hosts=2000, size=SMALLEST_SHARD, apart=0.3, silent=True)
    fleet.heard.set()
    _, history = await sweep(fleet)
    assert len(fleet.calls) == 2 + 1 + 2000 // SMALLEST_SHARD
    assert len(history.events) < 60


async def test_a_round_does_not_wait_for_those_that_are_silent(sweep: Any, client: Client) -> None:
    fleet = Fleet(hosts=500, silent=True)
    for _ in range(2):
        result, _ = await sweep(fleet)
        assert (result.asked, result.answered) == (500, 499)
    # They were asked once, and that goes on: there is one at a time.
    assert fleet.calls.count("silent") == 1
    fleet.heard.set()
    probe = client.get_workflow_handle(POWER_PROBE_ID, result_type=PowerSwept)
    assert await probe.result() == PowerSwept(asked=3, answered=1)


async def test_a_shard_that_is_lost_is_swept_again(sweep: Any) -> None:
    fleet = Fleet(hosts=700, fails=2)
    result, _ = await sweep(fleet)
    assert result.asked == 1000
    assert fleet.calls.count("sweep host-00500") == 1


async def test_without_bmcs_there_is_nothing_to_sweep(sweep: Any) -> None:
    fleet = Fleet(hosts=0)
    result, _ = await sweep(fleet)
    assert result.answered == 0
    assert fleet.calls == ["align power-sync 30", "finish"]


@pytest.mark.timeout(600)
async def test_500_rounds_leave_nothing_behind(client: Client) -> None:
    fleet, queue = Fleet(hosts=500, seconds=0), f"test-{uuid.uuid4()}"
    at_a_time, lengths, peaks = 10, [], []

    async def one(number: int) -> int:
        handle = await client.start_workflow(
            PowerSync.run, PowerSyncInput(), id=f"{queue}-{number}", task_queue=queue
        )
        await handle.result()
        return len((await handle.fetch_history()).events)

    async with Worker(
        client,
        task_queue=queue,
        workflows=[PowerSync],
        activities=activities_of(fleet),
        interceptors=[HostlerInterceptor()],
        max_cached_workflows=at_a_time,
    ):
        for begin in range(0, 500, at_a_time):
            numbers = range(begin, begin + at_a_time)
            lengths += await asyncio.gather(*(one(number) for number in numbers))
            fleet.calls.clear()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert max(lengths) <= 60
    # KiB; the first fifth has brought everything that stays.
    assert peaks[-1] - peaks[len(peaks) // 5] < 20 * 1024
