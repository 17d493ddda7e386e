"""Rounds of checks over many simulated hosts, some of them in trouble; all else is real."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.client import Client, ScheduleActionExecutionStartWorkflow, ScheduleHandle

from contracts.host_checks import HOST_CHECK_SCHEDULE, HOUSEKEEPING_ID, HostCheckResult, Look
from contracts.host_status import PeerWord, Reach, Seen
from contracts.hosts import Host
from contracts.operations import DEFAULT_TASK_QUEUE
from contracts.states import AllocationState, HostStatus, ResourceState
from inventory import Inventory
from tests.e2e.system import ROOT, Process, System
from tests.simulation.cluster import SimulatedHost, Trouble, address_of, troubled
from workers.schedules import ensure_schedules
from workers.settings import Settings
from workers.stores import open_inventory

_HOSTS = 300
_TROUBLES = {Trouble.AWAY: 12, Trouble.HIDDEN: 5, Trouble.HANGING: 8}
_INTERVAL = 10
_IN_TROUBLE = troubled(_HOSTS, _TROUBLES)
_AGREES = {
    None: HostStatus.UP,
    Trouble.AWAY: HostStatus.DOWN,
    Trouble.HIDDEN: HostStatus.ALERT,
    Trouble.HANGING: HostStatus.ALERT,
}


class Fleet:
    """Temporal, an inventory with all hosts `Up`, and workers that come and go. The schedule is
    paused: rounds begin when the test says so."""

    def __init__(self, system: System, inventory: Inventory, schedule: ScheduleHandle) -> None:
        self.system = system
        self.inventory = inventory
        self.schedule = schedule
        self._began_at = datetime.now(UTC)
        self._seen = 0

    async def start_worker(self) -> Process:
        return await self.system.start(
            "Worker on queue",
            *(sys.executable, "-m", "tests.simulation.hostler", "worker"),
            PYTHONPATH=str(ROOT),
            SIMULATION_HOSTS=str(_HOSTS),
            SIMULATION_VMS="10",
            SIMULATION_SEED="4",
            SIMULATION_JOURNAL=str(self.system.home / "journal"),
            SIMULATION_TROUBLES=json.dumps(_TROUBLES),
        )

    async def begin_round(self) -> str:
        """The id of its workflow. Misses of rounds that follow each other at once count as one."""
        await asyncio.sleep(_INTERVAL / 2)
        await self.schedule.trigger()
        while True:
            info = (await self.schedule.describe()).info
            if info.num_actions > self._seen:
                break
            await asyncio.sleep(0.05)
        self._seen = info.num_actions
        action = info.recent_actions[-1].action
        assert isinstance(action, ScheduleActionExecutionStartWorkflow)
        return action.workflow_id

    async def end_round(self, workflow_id: str) -> HostCheckResult:
        handle = (await self.system.client()).get_workflow_handle(
            workflow_id, result_type=HostCheckResult
        )
        result: HostCheckResult = await handle.result()
        return result

    async def hosts(self) -> list[Host]:
        return await self.inventory.hosts.list()

    async def checked(self) -> int:
        return sum(
            host.checked_at is not None and host.checked_at > self._began_at
            for host in await self.hosts()
        )


@pytest.fixture
async def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    record = bool(request.config.getoption("--record-histories"))
    system = System(tmp_path, record_histories=record, forked=True)
    async with AsyncExitStack() as stack:
        stack.callback(system.stop)
        await system.temporal_server()
        await system.done("db", "upgrade")
        await system.done("key", "create")
        inventory = await stack.enter_async_context(open_inventory(Settings(home=system.home)))
        await _register_hosts(inventory)
        settings = (("batch", 50), ("concurrency", 4), ("timeout", 1), ("interval", _INTERVAL))
        for name, value in settings:
            await inventory.settings.set(f"host.check.{name}", value, actor="test")
        client = await _client(system)
        await ensure_schedules(client, inventory, DEFAULT_TASK_QUEUE)
        schedule = client.get_schedule_handle(HOST_CHECK_SCHEDULE)
        await schedule.pause()
        yield Fleet(system, inventory, schedule)


async def _client(system: System) -> Client:
    """As soon as Temporal answers."""
    while True:
        try:
            return await system.client()
        except RuntimeError:
            await asyncio.sleep(0.1)


async def _register_hosts(inventory: Inventory) -> None:
    topology = inventory.topology
    await topology.create_zone("zone-1", actor="test")
    await topology.create_pod("pod-1", "zone-1", actor="test")
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    for enable, name in (
        (topology.set_zone_state, "zone-1"),
        (topology.set_pod_state, "pod-1"),
        (topology.set_cluster_state, "cluster-1"),
    ):
        await enable(name, AllocationState.ENABLED, actor="test")
    secret = await inventory.secrets.store("password", "simulated", actor="test")
    for number in range(1, _HOSTS + 1):
        name = f"sim-{number}"
        key = SimulatedHost(name, address_of(number)).key
        await inventory.hosts.register(
            name=name,
            cluster="cluster-1",
            address=address_of(number),
            ssh_port=22,
            user="root",
            secret_id=secret,
            host_key_line=key.line,
            host_key_sha256=key.sha256,
            capacity_memory_mib=None,
            capacity_cpus=None,
            reserved_memory_mib=0,
            operation="test",
            actor="test",
        )
        await inventory.hosts.set_status(name, HostStatus.UP, actor="test", reason="added")
        await inventory.hosts.change_state(
            name,
            expected=frozenset({ResourceState.CREATING}),
            target=ResourceState.ENABLED,
            operation="test",
            step="into-service",
            actor="test",
            reason="added",
        )
    # Before the trouble begins: that peers do not reach a host tells nothing if they never did.
    reached = (PeerWord(peer="sim-1", reach=Reach.CONNECTED),)
    began_at = datetime.now(UTC)
    looks = [
        Look(host=f"sim-{n}", began_at=began_at, seen=Seen.ANSWERED, words=reached)
        for n in range(1, _HOSTS + 1)
    ]
    await inventory.host_checks.record(looks, operation="test")


@pytest.mark.timeout(400)
async def test_a_worker_killed_in_a_round_costs_no_host_its_status(fleet: Fleet) -> None:
    worker = await fleet.start_worker()
    first = await fleet.begin_round()
    while not 40 <= await fleet.checked() < _HOSTS - 40:
        await asyncio.sleep(0.02)
    fleet.system.kill(worker)
    done = await fleet.checked()
    assert done < _HOSTS, "it was killed too late to show anything"
    await fleet.start_worker()
    result = await fleet.end_round(first)
    assert result.hosts == _HOSTS
    # Each host has had its look, and none two: a miss counts once.
    hosts = await fleet.hosts()
    assert await fleet.checked() == _HOSTS
    assert {host.missed_checks for host in hosts if host.name not in _IN_TROUBLE} == {0}
    assert {host.missed_checks for host in hosts if host.name in _IN_TROUBLE} == {1}
    assert {host.status for host in hosts} == {HostStatus.UP}
    assert (await fleet.schedule.describe()).schedule.state.paused
    await fleet.system.record(first, "host_check_worker_killed")

    second = await fleet.begin_round()
    await fleet.end_round(second)
    for host in await fleet.hosts():
        trouble = _IN_TROUBLE.get(host.name)
        assert (
            host.status
            is {
                None: HostStatus.UP,
                Trouble.AWAY: HostStatus.DISCONNECTED,
                Trouble.HIDDEN: HostStatus.DISCONNECTED,
                Trouble.HANGING: HostStatus.ALERT,
            }[trouble]
        ), host

    third = await fleet.begin_round()
    await fleet.end_round(third)
    for host in await fleet.hosts():
        assert host.status is _AGREES[_IN_TROUBLE.get(host.name)], host
        if host.status is HostStatus.DOWN:
            (event, *_) = await fleet.inventory.events.list(subject=f"host/{host.name}")
            assert "no answer to Hostler" in event.message
            assert "and no answer to sim-" in event.message
    usage = {host.name: host.usage for host in await fleet.hosts()}["sim-1"]
    assert usage is not None
    assert usage.vms == 10
    await fleet.system.record(third, "host_check")
    # None of them had been told anything, and those that hang have held no round up.
    await (await fleet.system.client()).get_workflow_handle(HOUSEKEEPING_ID).result()
    assert await fleet.inventory.hosts.untold() == []
    await fleet.system.record(HOUSEKEEPING_ID, "housekeeping")
