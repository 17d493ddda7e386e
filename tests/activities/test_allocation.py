"""Enabling, disabling and telling hosts: the real inventory and the real scripts, on hosts that are
directories."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import CancelledError
from temporalio.testing import ActivityEnvironment

from activities.allocation import AllocationActivities
from activities.directory import HostDirectory
from activities.fencing import FencingActivities
from contracts.allocation import (
    AllocationLevel,
    HostsBelow,
    SetAllocationInput,
    TellHostsInput,
    TellHostsResult,
)
from contracts.errors import Conflict, NotFound, Unavailable
from contracts.leases import LeaseRef, LeaseScope
from contracts.states import AllocationState, HostStatus, ResourceState
from contracts.steps import FenceInput
from drivers.errors import FenceFailed, HostUnreachable
from drivers.fence import HookFence
from inventory import Inventory, SecretBox
from inventory.closings import Closing
from tests.activities.conftest import OWNER, change_state, ref, run
from tests.databases import sqlite_database
from tests.hooks.fleet import Fleet, FleetLibvirt
from tests.inventory.conftest import register

ENABLED, DISABLED = AllocationState.ENABLED, AllocationState.DISABLED
OPERATION = "cluster-allocation/cluster-1"
BECAUSE = "cluster cluster-1 is Disabled"
OLD = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


@dataclass
class World:
    """Hosts kvm-1, ... of cluster-1, `Enabled` and `Up`."""

    inventory: Inventory
    fleet: Fleet
    libvirt: FleetLibvirt
    activities: AllocationActivities
    fencing: FencingActivities

    async def add(self, *numbers: int) -> tuple[str, ...]:
        for number in numbers:
            name = f"kvm-{number}"
            secret = await self.inventory.secrets.store("password", "pw", actor="test")
            await self.inventory.hosts.register(
                name=name,
                cluster="cluster-1",
                address=f"198.18.0.{number}",
                ssh_port=22,
                user="root",
                secret_id=secret,
                host_key_line="ssh-ed25519 AAAA",
                host_key_sha256="SHA256:abc",
                capacity_memory_mib=None,
                capacity_cpus=None,
                reserved_memory_mib=0,
                operation="addition",
                actor="test",
            )
            await self.inventory.hosts.set_status(name, HostStatus.UP, actor="test", reason="added")
            await change_state(self.inventory, name, ResourceState.ENABLED)
            self.fleet.host(name).write("epoch", "0\n")
        return tuple(f"kvm-{number}" for number in numbers)

    async def set(
        self,
        state: AllocationState,
        level: AllocationLevel = AllocationLevel.CLUSTER,
        name: str = "cluster-1",
        step: str = "run-1/set",
    ) -> HostsBelow:
        return await run(
            self.activities.set_allocation,
            SetAllocationInput(
                level=level,
                name=name,
                allocation_state=state,
                reason="new switch",
                operation=OPERATION,
                step=step,
            ),
        )

    async def tell(self, hosts: Iterable[str]) -> TellHostsResult:
        return await run(self.activities.tell_hosts, TellHostsInput(hosts=tuple(hosts)))

    async def closed(self, host: str) -> tuple[bool | None, str | None]:
        """By the inventory, and on the host."""
        said = self.fleet.host(host).read("closed")
        return (await self.inventory.hosts.get(host)).closed, said and said.strip()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    topology = inventory.topology
    await topology.create_zone("zone-1", actor="test")
    await topology.set_zone_state("zone-1", ENABLED, actor="test")
    await topology.create_pod("pod-1", "zone-1", actor="test")
    await topology.set_pod_state("pod-1", ENABLED, actor="test")
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    await topology.set_cluster_state("cluster-1", ENABLED, actor="test")
    fleet = Fleet(tmp_path)
    libvirt, fence, directory = FleetLibvirt(fleet), HookFence(fleet), HostDirectory(inventory)
    hypervisor = libvirt.as_hypervisor()
    yield World(
        inventory,
        fleet,
        libvirt,
        AllocationActivities(inventory, directory, fence, hypervisor, at_a_time=2),
        FencingActivities(inventory, directory, fence, hypervisor),
    )
    await database.close()


# --- set_allocation ---------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["zone", "pod", "cluster"])
async def test_a_place_is_set_once_with_one_event(world: World, level: str) -> None:
    hosts = await world.add(1, 2)
    for _ in range(2):
        below = await world.set(DISABLED, AllocationLevel(level), f"{level}-1")
        assert below.hosts == hosts
    (event,) = await world.inventory.events.list(operation=OPERATION)
    assert (event.subject, event.message) == (
        f"{level}/{level}-1",
        "Enabled -> Disabled: new switch",
    )
    with pytest.raises(NotFound, match="no "):
        await world.set(DISABLED, AllocationLevel(level), "none")


async def test_a_host_is_set_once_with_one_event(world: World) -> None:
    await world.add(1, 2)
    for _ in range(2):
        assert (await world.set(DISABLED, AllocationLevel.HOST, "kvm-1")).hosts == ("kvm-1",)
    host = await world.inventory.hosts.get("kvm-1")
    assert host.resource_state is ResourceState.DISABLED
    (event,) = await world.inventory.events.list(operation=OPERATION)
    assert event.message == "Enabled -> Disabled: new switch"
    # Nothing repeats itself: another run is another step.
    await world.set(ENABLED, AllocationLevel.HOST, "kvm-1", step="run-2/set")
    assert (await world.inventory.hosts.get("kvm-1")).resource_state is ResourceState.ENABLED
    with pytest.raises(NotFound):
        await world.set(DISABLED, AllocationLevel.HOST, "kvm-9")


async def test_a_host_in_maintenance_is_left_as_it_is(world: World) -> None:
    await world.add(1)
    states = (ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE)
    await change_state(world.inventory, "kvm-1", *states)
    before = await world.inventory.hosts.get("kvm-1")
    with pytest.raises(Conflict, match="hostler maintenance leave kvm-1"):
        await world.set(DISABLED, AllocationLevel.HOST, "kvm-1")
    assert await world.inventory.hosts.get("kvm-1") == before


# --- tell_hosts -------------------------------------------------------------------------------


async def test_hosts_close_and_reopen_as_the_inventory_wants_it(world: World) -> None:
    hosts = await world.add(1, 2, 3)
    for host in hosts:
        world.fleet.host(host).domains(OLD)
    await world.set(DISABLED)
    for _ in range(2):
        assert await world.tell(hosts) == TellHostsResult(told=hosts, untold=())
        for host in hosts:
            assert await world.closed(host) == (True, BECAUSE)
            assert world.fleet.host(host).belongs() == {OLD}
    await world.set(ENABLED)
    for _ in range(2):
        assert await world.tell(hosts) == TellHostsResult(told=hosts, untold=())
        assert [await world.closed(host) for host in hosts] == [(False, None)] * 3


async def test_a_host_that_is_away_is_told_when_it_is_back(world: World) -> None:
    hosts = await world.add(1, 2, 3)
    world.fleet.away = {"kvm-2"}
    await world.set(DISABLED)
    result = await world.tell(hosts)
    assert result.told == ("kvm-1", "kvm-3")
    assert [(one.host, one.reason) for one in result.untold] == [
        ("kvm-2", "kvm-2 does not answer.")
    ]
    assert await world.closed("kvm-2") == (None, None)
    assert await world.inventory.hosts.untold() == ["kvm-2"]
    world.fleet.away = set()
    assert (await world.tell(await world.inventory.hosts.untold())).told == ("kvm-2",)
    assert await world.closed("kvm-2") == (True, BECAUSE)
    assert await world.inventory.hosts.untold() == []


async def test_a_libvirtd_that_does_not_call_the_hook_is_no_success(world: World) -> None:
    await world.add(1)
    world.libvirt.deaf = {"kvm-1"}
    await world.set(DISABLED)
    (untold,) = (await world.tell(["kvm-1"])).untold
    assert "libvirt started a new VM" in untold.reason
    assert await world.inventory.hosts.untold() == ["kvm-1"]


async def test_what_one_host_has_broken_is_its_own(world: World) -> None:
    hosts = await world.add(1, 2, 3)
    world.fleet.host("kvm-1").write("told", "999999\n")
    world.fleet.host("kvm-2").break_libvirt()
    await world.set(DISABLED)
    result = await world.tell(hosts)
    assert result.told == ("kvm-3",)
    reasons = {one.host: one.reason for one in result.untold}
    assert "rm /etc/hostler/told" in reasons["kvm-1"]
    assert "failed to connect" in reasons["kvm-2"]


async def test_a_host_half_told_is_told_again_when_the_opposite_is_wanted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host closes, its answer is lost, and its cluster is enabled again while it is away."""
    await world.add(1)
    await world.tell(["kvm-1"])
    probe = world.libvirt.start_probe

    async def lost(access: Any) -> str | None:
        raise HostUnreachable("the connection broke")

    monkeypatch.setattr(world.libvirt, "start_probe", lost)
    await world.set(DISABLED)
    await world.tell(["kvm-1"])
    assert await world.closed("kvm-1") == (None, BECAUSE)
    await world.set(ENABLED)
    monkeypatch.setattr(world.libvirt, "start_probe", probe)
    assert await world.inventory.hosts.untold() == ["kvm-1"]
    await world.tell(await world.inventory.hosts.untold())
    assert await world.closed("kvm-1") == (False, None)
    assert await world.inventory.hosts.untold() == []


async def test_a_host_that_is_beyond_hostler_costs_itself_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = await world.add(1, 2)
    probe = world.libvirt.start_probe

    async def odd(access: Any) -> str | None:
        if access.name == "kvm-1":
            raise ValueError("not enough values to unpack")
        return await probe(access)

    monkeypatch.setattr(world.libvirt, "start_probe", odd)
    result = await world.tell(hosts)
    assert result.told == ("kvm-2",)
    (untold,) = result.untold
    assert "does not understand: ValueError: not enough values" in untold.reason


async def test_a_host_that_was_taken_off_gets_nothing_back(world: World) -> None:
    """Its removal is at work, and has cleaned it already."""
    await world.add(1)
    await change_state(
        world.inventory, "kvm-1", ResourceState.PREPARE_FOR_MAINTENANCE, ResourceState.MAINTENANCE
    )
    (world.fleet.host("kvm-1").root / "etc/hostler/epoch").unlink()
    await world.set(DISABLED)
    (untold,) = (await world.tell(["kvm-1"])).untold
    assert "not installed here" in untold.reason
    assert await world.closed("kvm-1") == (None, None)
    assert world.fleet.host("kvm-1").installed_hook("<domain/>") is None


async def test_a_host_that_is_not_in_service_is_left_out(world: World) -> None:
    await world.add(1)
    secret = await world.inventory.secrets.store("password", "pw", actor="test")
    await register(world.inventory, 2, secret_id=secret)
    result = await world.tell(["kvm-1", "kvm-2"])
    assert result == TellHostsResult(told=("kvm-1",), untold=())
    assert world.fleet.calls["kvm-2"] == 0


async def test_an_older_hook_is_replaced_first(world: World) -> None:
    await world.add(1)
    hook = world.fleet.host("kvm-1").root / "etc/libvirt/hooks/qemu.d/hostler"
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    await world.set(DISABLED)
    assert (await world.tell(["kvm-1"])).told == ("kvm-1",)


async def test_a_host_that_was_removed_is_neither(world: World) -> None:
    await world.add(1)
    await world.set(DISABLED)
    assert await world.tell(["kvm-9", "kvm-1"]) == TellHostsResult(told=("kvm-1",), untold=())


async def test_a_change_of_mind_in_the_middle_wins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the word, and between the word and its record."""
    await world.add(1)
    record, minds = world.inventory.closings.record, [ENABLED, DISABLED]

    async def change_mind_first(host: str, closing: Closing, **more: Any) -> bool:
        if minds:
            await world.set(minds.pop(0))
            await world.inventory.closings.decide(host, operation="another")
        return await record(host, closing, **more)

    monkeypatch.setattr(world.inventory.closings, "record", change_mind_first)
    await world.set(DISABLED)
    assert (await world.tell(["kvm-1"])).told == ("kvm-1",)
    assert await world.closed("kvm-1") == (True, BECAUSE)


async def test_a_late_word_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that looked, was stopped, and goes on when the host has been told otherwise."""
    await world.add(1)
    await world.set(DISABLED)
    decide = world.inventory.closings.decide
    late = await decide("kvm-1", operation="late")
    await world.set(ENABLED)
    assert (await world.tell(["kvm-1"])).told == ("kvm-1",)
    answers = [late]

    async def as_it_was(host: str, **more: Any) -> Closing:
        return answers.pop() if answers else await decide(host, **more)

    monkeypatch.setattr(world.inventory.closings, "decide", as_it_was)
    world.fleet.calls.clear()
    assert (await world.tell(["kvm-1"])).told == ("kvm-1",)
    assert world.fleet.calls["kvm-1"] > 0
    assert await world.closed("kvm-1") == (False, None)


async def test_a_host_in_maintenance_is_told_behind_its_fence(world: World) -> None:
    await world.add(1)
    lease = ref(await world.inventory.leases.acquire("kvm-1", LeaseScope.PLACEMENT, OWNER, "test"))
    await run(world.fencing.install_fence, FenceInput(lease=lease, operation="maintenance/kvm-1"))
    await run(world.fencing.put_up_fence, FenceInput(lease=lease, operation="maintenance/kvm-1"))
    await world.set(DISABLED)
    assert (await world.tell(["kvm-1"])).told == ("kvm-1",)
    assert await world.closed("kvm-1") == (True, BECAUSE)
    assert world.fleet.host("kvm-1").read("fence") == "maintenance/kvm-1\n"
    # The maintenance is left, proven by a probe that is refused for another reason.
    await run(world.fencing.take_down_fence, lease)
    assert world.fleet.host("kvm-1").read("fence") is None
    assert await world.closed("kvm-1") == (True, BECAUSE)


async def test_the_fence_is_installed_and_proven_on_a_closed_host(world: World) -> None:
    await world.add(1)
    await world.set(DISABLED)
    await world.tell(["kvm-1"])
    lease: LeaseRef = ref(
        await world.inventory.leases.acquire("kvm-1", LeaseScope.PLACEMENT, OWNER, "test")
    )
    for _ in range(2):
        order = FenceInput(lease=lease, operation="addition/kvm-1")
        await run(world.fencing.install_fence, order)
    assert await world.closed("kvm-1") == (True, BECAUSE)


async def test_a_hook_of_somebody_else_is_not_taken_for_a_closed_host(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add(1)
    lease = ref(await world.inventory.leases.acquire("kvm-1", LeaseScope.PLACEMENT, OWNER, "test"))
    probe = world.libvirt.start_probe

    async def refused(access: Any) -> str | None:
        return await probe(access) or "host is fenced by another"

    monkeypatch.setattr(world.libvirt, "start_probe", refused)
    with pytest.raises(FenceFailed, match="yet libvirt refuses"):
        await run(world.fencing.install_fence, FenceInput(lease=lease, operation="addition/kvm-1"))


# --- attempts ---------------------------------------------------------------------------------


async def attempt(
    world: World, hosts: tuple[str, ...], beats: list[int], cursor: int = 0
) -> TellHostsResult:
    """With what the last heartbeat of an earlier attempt said."""
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.append(*details)
    environment.info = dataclasses.replace(
        environment.info, heartbeat_details=[cursor] if cursor else []
    )
    return await environment.run(world.activities.tell_hosts, TellHostsInput(hosts=hosts))


async def test_the_next_attempt_goes_on_and_tries_the_absent_again(world: World) -> None:
    hosts = await world.add(1, 2, 3, 4)
    await world.set(DISABLED)
    beats: list[int] = []
    world.fleet.away = {"kvm-2"}
    await attempt(world, hosts[:3], beats)
    assert sorted(beats) == beats
    assert beats[-1] == 3
    world.fleet.calls.clear()
    result = await attempt(world, hosts, [], cursor=3)
    assert result.told == ("kvm-1", "kvm-3", "kvm-4")
    assert [one.host for one in result.untold] == ["kvm-2"]
    assert set(world.fleet.calls) == {"kvm-2", "kvm-4"}


async def test_a_cursor_does_not_pass_a_host_that_takes_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = await world.add(1, 2, 3)
    go, probe = asyncio.Event(), world.libvirt.start_probe

    async def slow(access: Any) -> str | None:
        if access.name == "kvm-1":
            await go.wait()
        return await probe(access)

    monkeypatch.setattr(world.libvirt, "start_probe", slow)
    await world.set(DISABLED)
    beats: list[int] = []
    telling = asyncio.create_task(attempt(world, hosts, beats))
    while len(beats) < 2:
        await asyncio.sleep(0.01)
    assert beats == [0, 0]
    go.set()
    await telling
    assert beats[-1] == 3


async def test_an_inventory_that_is_away_is_no_hosts_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = await world.add(1, 2)

    async def away(*_: object, **__: object) -> bool:
        raise Unavailable("The inventory's database did not answer.")

    monkeypatch.setattr(world.inventory.closings, "record", away)
    with pytest.raises(Unavailable, match="database did not answer"):
        await world.tell(hosts)


async def test_a_cancel_leaves_no_host_half_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = await world.add(1, 2, 3, 4)
    await world.set(DISABLED)
    begun, go, probe = asyncio.Event(), asyncio.Event(), world.libvirt.start_probe

    async def slow(access: Any) -> str | None:
        begun.set()
        await go.wait()
        return await probe(access)

    monkeypatch.setattr(world.libvirt, "start_probe", slow)
    environment = ActivityEnvironment()
    telling = asyncio.create_task(
        environment.run(world.activities.tell_hosts, TellHostsInput(hosts=hosts))
    )
    await begun.wait()
    environment.cancel()
    await asyncio.sleep(0.05)
    go.set()
    with pytest.raises((asyncio.CancelledError, CancelledError)):
        await telling
    for host in hosts:
        recorded, there = await world.closed(host)
        assert recorded is (None if there is None else True), host
    assert not (await world.inventory.hosts.get("kvm-4")).closed
