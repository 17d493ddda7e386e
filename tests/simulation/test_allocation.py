"""500 hosts are told that their cluster is Disabled while Hostler dies; only they are simulated."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.simulation.cluster import address_of
from tests.simulation.system import SimulatedSystem

pytestmark = pytest.mark.timeout(240)

_HOSTS, _AWAY = 500, 20
_ID = "cluster-allocation/cluster-1"


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[SimulatedSystem]:
    simulation = SimulatedSystem(tmp_path, hosts=_HOSTS - _AWAY, vms=1, seed=4, forked=True)
    yield simulation
    simulation.system.stop()


class Rows:
    """The inventory's table of hosts."""

    def __init__(self, simulation: SimulatedSystem) -> None:
        self._path = simulation.system.home / "inventory.db"

    def copy(self, name: str, address: str) -> None:
        """A host like sim-1."""
        with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            names = [row[1] for row in database.execute("PRAGMA table_info(host)")]
            values = {"id": "NULL", "uuid": "NULL", "name": ":name", "address": ":address"}
            database.execute(
                f"INSERT INTO host ({', '.join(names)})"  # noqa: S608 - its own columns
                f" SELECT {', '.join(values.get(one, one) for one in names)} FROM host"
                " WHERE name = 'sim-1'",
                {"name": name, "address": address},
            )

    def closed(self) -> int:
        """Hosts that were: what is simulated forgets it with its process, and is told again."""
        query = "SELECT count(DISTINCT subject) FROM event WHERE kind = 'host.closed'"
        with closing(sqlite3.connect(self._path, timeout=10)) as database:
            (number,) = database.execute(query).fetchone()
            return int(number)


async def test_500_hosts_of_which_20_are_away_and_a_crash_in_the_middle(
    simulation: SimulatedSystem,
) -> None:
    everything = await simulation.up()
    await simulation.add_topology()
    await simulation.add_host(1)
    rows = Rows(simulation)
    for number in range(2, _HOSTS + 1):
        rows.copy(f"sim-{number}", address_of(number))

    system = simulation.system
    disabling = asyncio.create_task(system.hostler("cluster", "disable", "cluster-1"))
    while rows.closed() < _HOSTS // 3:
        await asyncio.sleep(0.05)
    system.kill(everything)
    assert rows.closed() < _HOSTS - _AWAY
    await simulation.up()
    said = await disabling

    assert said.status == 0, said
    assert said.stdout == f"cluster cluster-1 is Disabled. {_HOSTS - _AWAY} hosts were told.\n"
    away = {f"sim-{number}" for number in range(_HOSTS - _AWAY + 1, _HOSTS + 1)}
    told_of = [line.split()[0] for line in said.stderr.splitlines() if "could not be told" in line]
    assert away <= set(told_of)
    assert rows.closed() == _HOSTS - _AWAY
    handle = await system.workflow(_ID)
    history = await handle.fetch_history()
    assert len(history.events) < 80
    assert len(history.to_json()) < 100_000
