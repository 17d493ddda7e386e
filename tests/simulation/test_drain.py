"""A whole maintenance of a host with many VMs, on simulated hosts; all else is real."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.system import SOURCE, SimulatedSystem

_VMS, _HOSTS = 60, 6
_EVENTS_PER_VM = 12


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[SimulatedSystem]:
    simulation = SimulatedSystem(tmp_path, hosts=_HOSTS, vms=_VMS, seed=4, forked=True)
    yield simulation
    simulation.system.stop()


async def test_every_vm_moves_once_and_costs_few_events(simulation: SimulatedSystem) -> None:
    await simulation.up()
    await simulation.add_hosts()

    await simulation.enter(max_parallel=20)
    view = await simulation.system.until_phase(SOURCE, "Ready", "Question")

    assert view["phase"] == "Ready", view["message"]
    moved = simulation.moved()
    assert sorted(one.vm for one in moved) == sorted(f"vm-{n}" for n in range(1, _VMS + 1))
    assert {one.source for one in moved} == {SOURCE}
    # The plan spreads VMs of one size over hosts of one size.
    counts = [
        sum(1 for one in moved if one.destination == f"sim-{n}") for n in range(2, _HOSTS + 1)
    ]
    assert counts == [_VMS // (_HOSTS - 1)] * (_HOSTS - 1)
    client = await simulation.system.client()
    handle = client.get_workflow_handle(view["workflow_id"])
    first = (await handle.describe()).raw_info.first_run_id
    history = await client.get_workflow_handle(view["workflow_id"], run_id=first).fetch_history()
    assert len(history.events) <= _EVENTS_PER_VM * _VMS

    await simulation.leave()
    assert (await simulation.system.host(SOURCE))["resource_state"] == "Enabled"
