"""Hundreds of rounds over real BMCs, by the real driver and its process, in a real inventory."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlmodel import SQLModel, func, select

from activities.bmcs import BmcDirectory
from activities.power_sync import PowerSyncActivities
from contracts.oobm import PowerCount, PowerProblem
from contracts.power import PowerState
from contracts.power_actions import FinishPowerRoundInput, PowerSyncResult, SweepPowerInput
from drivers.power.registry import PowerDrivers
from inventory import Inventory, SecretBox
from tests.activities.conftest import run
from tests.databases import sqlite_database
from tests.inventory.test_oobm import configured
from tests.simulation.bmcs import PASSWORD, USER, Bmcs, address_of, simulated_bmcs

_BMCS = 12
_ROUNDS = 500
_KEPT_ROUNDS = 100


@dataclass(frozen=True)
class Held:
    """What this process has, the driver's, and the BMCs'. `memory_kib`: what is theirs alone."""

    processes: int
    descriptors: int
    memory_kib: int


def held() -> Held:
    processes = descriptors = memory = 0
    left = [os.getpid()]
    while left:
        place = Path(f"/proc/{left.pop()}")
        left += [
            int(child)
            for task in (place / "task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        processes += 1
        descriptors += len(list((place / "fd").iterdir()))
        status = (place / "status").read_text().splitlines()
        memory += sum(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
    return Held(processes, descriptors, memory)


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[tuple[Inventory, Bmcs, PowerSyncActivities]]:
    """kvm-1 and up, each with its BMC, and what asks them."""
    database, drivers = sqlite_database(directory), PowerDrivers()
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    await inventory.settings.set("outofbandmanagement.sync.timeout", 2, actor="test")
    with simulated_bmcs(directory, _BMCS) as bmcs:
        for number in range(1, _BMCS + 1):
            await configured(
                inventory, number, address=address_of(number), port=bmcs.port, user=USER
            )
            secret = await inventory.secrets.store("bmc_password", PASSWORD, actor="test")
            await inventory.oobm.configure(
                f"kvm-{number}", {}, secret_id=secret, replace=False, actor="test"
            )
        yield inventory, bmcs, PowerSyncActivities(inventory, BmcDirectory(inventory, drivers))
        await drivers.close()
    await database.close()


async def rows(inventory: Inventory) -> dict[str, int]:
    """How many each table has."""
    async with inventory.database.reading() as session:
        return {
            name: (await session.exec(select(func.count()).select_from(table))).one()
            for name, table in SQLModel.metadata.tables.items()
        }


async def go_round(activities: PowerSyncActivities) -> PowerSyncResult:
    """PowerSync's and PowerProbe's activities, in their order."""
    begun = await run(activities.plan_power_sync)
    if begun.silent_due:
        await run(activities.try_silent_bmcs, begun.plan)
    asked = answered = changed = 0
    for shard in begun.shards:
        swept = await run(activities.sweep_power, SweepPowerInput(plan=begun.plan, shard=shard))
        asked, answered = asked + swept.asked, answered + swept.answered
        changed += swept.changed
    result: PowerSyncResult = await run(
        activities.finish_power_sync,
        FinishPowerRoundInput(plan=begun.plan, asked=asked, answered=answered, changed=changed),
    )
    return result


@pytest.mark.timeout(300)
async def test_500_rounds_leave_nothing_behind(tmp_path: Path) -> None:
    async with site(tmp_path) as (inventory, bmcs, activities):
        bmcs.set("sim-2", mute=True)
        bmcs.set("sim-3", reject_login=True)
        bmcs.set("sim-4", reject_guid=0xC1)
        early = late = held()
        for number in range(_ROUNDS):
            done = await go_round(activities)
            # By then all is there that stays.
            if number == _KEPT_ROUNDS + 20:
                early, kept = held(), await rows(inventory)
        late = held()
        assert await rows(inventory) == kept
        assert kept["power_round"] == _KEPT_ROUNDS
        assert late.processes == early.processes
        assert late.descriptors - early.descriptors < 5, (early, late)
        assert late.memory_kib - early.memory_kib < 4 * 1024, (early, late)
        # Nobody was forgotten, and nobody logged in to again.
        assert (done.asked, done.answered, done.waiting) == (_BMCS - 2, _BMCS - 2, 2)
        assert done.counts == (
            PowerCount(state=PowerState.ON, problem=None, hosts=_BMCS - 2),
            PowerCount(state=PowerState.UNKNOWN, problem=PowerProblem.ACCOUNT_REFUSED, hosts=1),
            PowerCount(state=PowerState.UNKNOWN, problem=PowerProblem.UNREACHABLE, hosts=1),
        )
        assert {state["logins"] for host, state in bmcs.states().items() if host != "sim-2"} == {1}
