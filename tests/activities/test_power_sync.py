"""Sweeps over BMCs in memory: whom they ask, what they write, and what holds nobody up."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.common import MetricMeter
from temporalio.testing import ActivityEnvironment

from activities import power_sync
from activities.bmcs import BmcDirectory
from activities.power_sync import PowerSyncActivities
from contracts.oobm import PowerProblem
from contracts.power import PowerState
from contracts.power_actions import (
    FinishPowerRoundInput,
    PowerRoundBegun,
    PowerSwept,
    PowerSyncResult,
    SweepPowerInput,
)
from drivers.protocols import BmcAccess, BmcReport
from inventory import Inventory, SecretBox
from inventory.models import KeyringRow, SecretVersionRow
from inventory.secrets import identity
from tests.activities.conftest import run
from tests.databases import sqlite_database
from tests.fake_bmcs import FakeBmcs, mute
from tests.inventory.test_oobm import configured


class SlowBmcs(FakeBmcs):
    """`hanging` ones answer when they are told to; `most`: so many were asked at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: set[str] = set()
        self.go = asyncio.Event()
        self.now = self.most = 0
        self.answered: list[str] = []

    async def examine(self, access: BmcAccess, *, timeout: float) -> BmcReport:  # noqa: ASYNC109
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        if access.name in self.hanging:
            await self.go.wait()
        self.now -= 1
        report = await super().examine(access, timeout=timeout)
        self.answered.append(access.name)
        return report


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """kvm-1 to kvm-6, whose BMCs are enabled."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    for number in range(1, 7):
        await configured(inventory, number)
    yield inventory
    await database.close()


@pytest.fixture
def bmcs() -> SlowBmcs:
    return SlowBmcs()


@pytest.fixture
def activities(inventory: Inventory, bmcs: SlowBmcs) -> PowerSyncActivities:
    return PowerSyncActivities(inventory, BmcDirectory(inventory, bmcs))


async def begin(activities: PowerSyncActivities) -> PowerRoundBegun:
    begun: PowerRoundBegun = await run(activities.plan_power_sync)
    return begun


async def sweep(activities: PowerSyncActivities, begun: PowerRoundBegun) -> PowerSwept:
    (shard,) = begun.shards
    swept: PowerSwept = await run(
        activities.sweep_power, SweepPowerInput(plan=begun.plan, shard=shard)
    )
    return swept


async def states(inventory: Inventory) -> dict[str, PowerState | None]:
    hosts = await inventory.hosts.list()
    return {host.name: host.power.state if host.power else None for host in hosts}


async def test_settings_take_effect_with_the_next_round(
    activities: PowerSyncActivities, inventory: Inventory
) -> None:
    for name, value in (("interval", 60), ("shard.size", 600), ("poolsize", 7), ("timeout", 3)):
        await inventory.settings.set(f"outofbandmanagement.sync.{name}", value, actor="test")
    plan = (await begin(activities)).plan
    assert (plan.interval, plan.concurrency, plan.timeout) == (60, 7, 3)


async def test_all_are_asked_so_many_at_a_time(
    activities: PowerSyncActivities, inventory: Inventory, bmcs: SlowBmcs
) -> None:
    await inventory.settings.set("outofbandmanagement.sync.poolsize", 2, actor="test")
    bmcs.of["kvm-3"].state = PowerState.OFF
    swept = await sweep(activities, await begin(activities))
    assert (swept.asked, swept.answered, swept.changed) == (6, 6, 6)
    found = await states(inventory)
    assert found.pop("kvm-3") is PowerState.OFF
    assert {*found.values()} == {PowerState.ON}
    assert bmcs.most == 2


async def test_a_password_that_can_not_be_read_costs_that_bmc_alone(
    activities: PowerSyncActivities, inventory: Inventory
) -> None:
    """One is damaged; of the other one the key is missing here, which says nothing of the BMC."""
    of = {host: (await inventory.oobm.login(host)).secret_id for host in ("kvm-1", "kvm-2")}
    other = SecretBox(SecretBox.new_key())
    async with inventory.database.writing() as session:
        damaged = await session.get_one(SecretVersionRow, of["kvm-1"])
        damaged.ciphertext = damaged.ciphertext[:-1]
        moved = await session.get_one(SecretVersionRow, of["kvm-2"])
        moved.ciphertext = other.seal("pw", identity(moved.id, moved.kind), key_id=other.key_ids[0])
        keyring = await session.get_one(KeyringRow, 1)
        keyring.known = [*keyring.known, *other.key_ids]
        session.add_all([damaged, moved, keyring])
    swept = await sweep(activities, await begin(activities))
    assert (swept.asked, swept.answered) == (5, 4)
    first, second = [(await inventory.hosts.get(host)).power for host in of]
    assert first is not None
    assert second is not None
    assert of["kvm-1"] in first.reason
    assert second.problem is PowerProblem.NOT_ASKED


async def test_those_that_hang_hold_nobody_up(
    activities: PowerSyncActivities, inventory: Inventory, bmcs: SlowBmcs
) -> None:
    await inventory.settings.set("outofbandmanagement.sync.poolsize", 1, actor="test")
    bmcs.hanging = {"kvm-1", "kvm-2"}
    task = asyncio.create_task(sweep(activities, await begin(activities)))
    while [*(await states(inventory)).values()].count(PowerState.ON) < 4:
        await asyncio.sleep(0.02)
    assert {*bmcs.answered} == {"kvm-3", "kvm-4", "kvm-5", "kvm-6"}
    assert not task.done()
    bmcs.go.set()
    assert (await task).answered == 6


async def test_what_is_known_is_written_while_the_others_are_silent(
    activities: PowerSyncActivities,
    inventory: Inventory,
    bmcs: SlowBmcs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power_sync, "_WRITE_EVERY_S", 3600)
    bmcs.hanging = {"kvm-6"}
    task = asyncio.create_task(sweep(activities, await begin(activities)))
    while [*(await states(inventory)).values()].count(PowerState.ON) < 5:
        await asyncio.sleep(0.02)
    bmcs.go.set()
    assert (await task).answered == 6


async def test_who_takes_much_longer_than_the_others_is_silent(
    activities: PowerSyncActivities,
    inventory: Inventory,
    bmcs: SlowBmcs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power_sync, "_PROMPT_S", 3600)
    await inventory.settings.set("outofbandmanagement.sync.poolsize", 2, actor="test")
    bmcs.hanging = {"kvm-3", "kvm-4"}
    task = asyncio.create_task(sweep(activities, await begin(activities)))
    while [*(await states(inventory)).values()].count(PowerState.ON) < 4:
        await asyncio.sleep(0.02)
    assert {*bmcs.answered} == {"kvm-1", "kvm-2", "kvm-5", "kvm-6"}
    bmcs.go.set()
    assert (await task).answered == 6


async def test_a_retry_goes_on_where_the_first_attempt_ended(
    activities: PowerSyncActivities, inventory: Inventory, bmcs: SlowBmcs
) -> None:
    bmcs.hanging = {"kvm-1"}
    begun = await begin(activities)
    task = asyncio.create_task(sweep(activities, begun))
    while [*(await states(inventory)).values()].count(PowerState.ON) < 5:
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])
    bmcs.go.set()
    assert (await sweep(activities, begun)).asked == 1
    assert [bmcs.of[f"kvm-{number}"].asked for number in range(1, 7)] == [1] * 6


async def test_one_that_raises_anything_is_unknown_and_the_others_are_not(
    activities: PowerSyncActivities, inventory: Inventory, bmcs: SlowBmcs
) -> None:
    bmcs.of["kvm-1"].fails = mute()
    bmcs.of["kvm-2"].password = "another"
    bmcs.of["kvm-3"].fails = ZeroDivisionError("a driver's own")
    await sweep(activities, await begin(activities))
    problems = {
        host.name: host.power.problem
        for host in await inventory.hosts.list()
        if host.power is not None and host.power.state is PowerState.UNKNOWN
    }
    assert problems == {
        "kvm-1": PowerProblem.UNREACHABLE,
        "kvm-2": PowerProblem.LOGIN_REFUSED,
        "kvm-3": PowerProblem.FAILED,
    }


async def test_the_guid_is_kept_and_asked_for_from_then_on(
    activities: PowerSyncActivities, inventory: Inventory, bmcs: SlowBmcs
) -> None:
    await sweep(activities, await begin(activities))
    assert (await inventory.oobm.get("kvm-1")).guid == "guid-1"
    bmcs.of["kvm-1"].guid = "guid-2"
    bmcs.of["kvm-1"].state = PowerState.OFF
    await sweep(activities, await begin(activities))
    power = (await inventory.oobm.get("kvm-1")).power
    assert (power.state, power.problem) == (PowerState.UNKNOWN, PowerProblem.ANOTHER_BMC)


async def test_one_without_a_guid_takes_a_new_login_only_when_it_has_to_prove_itself(
    activities: PowerSyncActivities, inventory: Inventory, bmcs: SlowBmcs
) -> None:
    bmc = bmcs.of["kvm-1"]
    bmc.guid = None

    async def examined() -> int:
        await sweep(activities, await begin(activities))
        return bmc.examined

    assert [await examined() for _ in range(3)] == [1, 1, 1]
    await inventory.oobm.configure(
        "kvm-1", {"address": "127.0.1.77"}, secret_id=None, replace=False, actor="test"
    )
    assert [await examined() for _ in range(2)] == [2, 2]
    assert (await inventory.oobm.get("kvm-1")).power.state is PowerState.ON
    # By now another host's BMC has its address.
    bmc.guid = "guid-2"
    await examined()
    assert (await inventory.oobm.get("kvm-1")).power.problem is PowerProblem.ANOTHER_BMC


class Measured:
    """MetricMeter, as far as it is used: the last value of each instrument, by its attributes."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def _instrument(self, name: str, *_: Any) -> Any:
        def measure(value: float, attributes: dict[str, str] | None = None) -> None:
            self.values[name, ",".join((attributes or {}).values())] = value

        return SimpleNamespace(add=measure, record=measure, set=measure)

    create_counter = create_gauge = create_gauge_float = create_histogram_float = _instrument

    def with_additional_attributes(self, _attributes: Any) -> "Measured":
        return self


async def test_a_round_is_measured(activities: PowerSyncActivities, bmcs: SlowBmcs) -> None:
    measured, environment = Measured(), ActivityEnvironment()
    environment.metric_meter = cast(MetricMeter, measured)
    bmcs.of["kvm-1"].fails = mute()
    bmcs.of["kvm-2"].state = PowerState.OFF
    begun = await begin(activities)
    (shard,) = begun.shards
    request = SweepPowerInput(plan=begun.plan, shard=shard)
    await environment.run(activities.sweep_power, request)
    finish = FinishPowerRoundInput(plan=begun.plan, asked=6, answered=5, changed=6)
    await environment.run(activities.finish_power_sync, finish)
    values = measured.values
    assert values["hostler_bmc_errors", "unreachable"] == 1
    states = {state: values["hostler_bmcs", state] for state in ("On", "Off", "Unknown")}
    assert states == {"On": 4, "Off": 1, "Unknown": 1}
    assert values["hostler_power_sweep_seconds", ""] > 0
    oldest = values["hostler_power_oldest_timestamp_seconds", ""]
    assert begun.plan.started_at.timestamp() <= oldest <= datetime.now(UTC).timestamp()
    # Nothing of it moves when a round was asked nothing: the age goes on.
    finish = FinishPowerRoundInput(plan=begun.plan, asked=0, answered=0, changed=0)
    await environment.run(activities.finish_power_sync, finish)
    assert values["hostler_power_oldest_timestamp_seconds", ""] == oldest


async def test_silent_ones_are_asked_apart_and_a_round_says_how_all_stand(
    activities: PowerSyncActivities, inventory: Inventory, bmcs: SlowBmcs
) -> None:
    bmcs.of["kvm-1"].fails = mute()
    await sweep(activities, await begin(activities))
    begun = await begin(activities)
    assert not begun.silent_due
    assert (await sweep(activities, begun)).asked == 5
    silent: PowerSwept = await run(activities.try_silent_bmcs, begun.plan)
    assert silent.asked == 0  # its time has not come
    done: PowerSyncResult = await run(
        activities.finish_power_sync,
        FinishPowerRoundInput(plan=begun.plan, asked=5, answered=5, changed=0),
    )
    assert (done.asked, done.waiting) == (5, 1)
    assert [(count.state, count.hosts) for count in done.counts] == [
        (PowerState.ON, 5),
        (PowerState.UNKNOWN, 1),
    ]
    later = begun.plan.model_copy(update={"started_at": datetime.now(UTC).replace(year=2100)})
    bmcs.of["kvm-1"].fails = None
    silent = await run(activities.try_silent_bmcs, later)
    assert (silent.asked, silent.answered, silent.changed) == (1, 1, 1)
