"""Hostler's rounds over all BMCs, as the power bench runs them: a process of its own, as a worker
is one.

Activities, inventory and drivers are the real ones; Temporal is not there: the activities are
called as the workflow PowerSync calls them. Standard input has lines of JSON: first where the
inventory is and its key, then one per round, which is answered by one with what it came to.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from _cost import cpu_seconds  # noqa: E402
from temporalio.testing import ActivityEnvironment  # noqa: E402

from activities.bmcs import BmcDirectory  # noqa: E402
from activities.power_sync import PowerSyncActivities  # noqa: E402
from contracts.power import PowerState  # noqa: E402
from contracts.power_actions import (  # noqa: E402
    FinishPowerRoundInput,
    PowerSighting,
    SweepPowerInput,
)
from drivers.power.registry import PowerDrivers  # noqa: E402
from inventory import Database, Inventory, SecretBox  # noqa: E402
from inventory.power import Power, PowerChange  # noqa: E402


class NotingPower(Power):
    """Notes when it was written what a BMC has said: `seen_at`, by time.monotonic()."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.seen_at: dict[str, float] = {}

    async def record(self, sightings: Sequence[PowerSighting], **more: Any) -> list[PowerChange]:
        changes = await super().record(sightings, **more)
        now = time.monotonic()
        self.seen_at |= {one.host: now for one in sightings if one.state is not PowerState.UNKNOWN}
        return changes


async def one_round(activities: PowerSyncActivities, power: NotingPower) -> dict[str, Any]:
    """`seconds` that it took, `cpu` seconds of this process and the driver's, and `seen`: after how
    many seconds the inventory had what each host's BMC has said."""
    power.seen_at.clear()
    cpu, began = cpu_seconds(os.getpid()), time.monotonic()
    begun = await ActivityEnvironment().run(activities.plan_power_sync)
    swept = await asyncio.gather(
        ActivityEnvironment().run(activities.try_silent_bmcs, begun.plan),
        *(
            ActivityEnvironment().run(
                activities.sweep_power, SweepPowerInput(plan=begun.plan, shard=shard)
            )
            for shard in begun.shards
        ),
    )
    await ActivityEnvironment().run(
        activities.finish_power_sync,
        FinishPowerRoundInput(
            plan=begun.plan,
            asked=sum(one.asked for one in swept),
            answered=sum(one.answered for one in swept),
            changed=sum(one.changed for one in swept),
        ),
    )
    return {
        "seconds": time.monotonic() - began,
        "cpu": cpu_seconds(os.getpid()) - cpu,
        "seen": {host: at - began for host, at in power.seen_at.items()},
    }


async def main() -> None:
    """A round per line."""
    given = json.loads(await asyncio.to_thread(sys.stdin.readline))
    database = Database(given["database"])
    inventory = Inventory(database, SecretBox(given["key"]))
    inventory.power = power = NotingPower(database)
    drivers = PowerDrivers()
    activities = PowerSyncActivities(inventory, BmcDirectory(inventory, drivers))
    gc.collect()
    gc.freeze()  # as workers do when they have started (workers.processes)
    while await asyncio.to_thread(sys.stdin.readline):
        done = await one_round(activities, power)
        hosts = await inventory.hosts.list()
        done["states"] = {host.name: host.power.state for host in hosts if host.power is not None}
        print(json.dumps(done), flush=True)
    await drivers.close()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
