"""An import of many hosts: SSH servers and a simulated libvirt; all else is real."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.ssh_hosts import most_at_once, read_journal
from tests.simulation.ssh_system import SshSystem

pytestmark = pytest.mark.timeout(300)

_HOSTS, _PARALLEL = 30, 8


@pytest.fixture
def simulation(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SshSystem]:
    record = bool(request.config.getoption("--record-histories"))
    simulation = SshSystem(tmp_path, hosts=_HOSTS, record_histories=record, forked=True)
    yield simulation
    simulation.system.stop()


async def test_a_worker_killed_in_the_middle_of_an_import(simulation: SshSystem) -> None:
    system = simulation.system
    hosts = await simulation.start_hosts()
    await simulation.up()
    worker = await simulation.worker()
    path = str(simulation.write_list(hosts))
    command = ("host", "import", path, "--parallel", str(_PARALLEL))

    first = asyncio.create_task(system.hostler(*command))
    while len((await simulation.ask("GET", "/v1/hosts"))["items"]) < _HOSTS // 3:
        await asyncio.sleep(0.1)
    system.kill(worker)
    assert not first.done()
    await simulation.worker()
    said = await first

    assert said.status == 0, said.stdout + said.stderr
    assert f"{_HOSTS} hosts: {_HOSTS} added." in said.stdout
    listed = (await simulation.ask("GET", "/v1/hosts"))["items"]
    assert {host["name"] for host in listed} == {host.name for host in hosts}
    assert {host["resource_state"] for host in listed} == {"Enabled"}
    assert 1 < most_at_once(simulation.directory) <= _PARALLEL
    client = await system.client()
    runs = [run.id async for run in client.list_workflows("WorkflowType = 'HostAddition'")]
    assert Counter(runs) == Counter(f"addition/{host.name}" for host in hosts)
    for host in hosts:
        messages = await system.events(f"host/{host.name}")
        assert sum(message.startswith("Creating -> Enabled") for message in messages) == 1
    await system.record("import/hosts", "host_import")

    before = len(read_journal(simulation.directory))
    again = await system.hostler(*command)
    assert (again.status, again.stderr) == (0, "")
    assert f"{_HOSTS} hosts: {_HOSTS} there already." in again.stdout
    assert len(read_journal(simulation.directory)) == before
