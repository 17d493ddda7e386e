"""Host rows: states by compare-and-set, also with writers in other processes."""

import asyncio
import sys
from pathlib import Path

import pytest

from contracts.errors import AlreadyExists, Conflict, LeaseLost, NotFound
from contracts.hosts import Host
from contracts.states import (
    MAINTENANCE_STATES,
    RESOURCE_STATE_TRANSITIONS,
    HostStatus,
    ResourceState,
    may_change_to,
)
from inventory import Inventory
from tests.inventory.conftest import acquire, enabled, ref, register
from tests.samples import FACTS

ROOT = Path(__file__).parents[2]
R = ResourceState


async def change(
    inventory: Inventory,
    target: R,
    *,
    expected: frozenset[R] | None = None,
    operation: str = "maintenance/kvm-1",
    step: str = "1",
) -> Host:
    return await inventory.hosts.change_state(
        "kvm-1",
        expected=frozenset(R) if expected is None else expected,
        target=target,
        operation=operation,
        step=step,
        actor=operation,
        reason="a reason",
    )


async def state_events(inventory: Inventory, operation: str) -> list[str]:
    events = await inventory.events.list(operation=operation)
    return [event.message for event in reversed(events) if event.kind == "host.state"]


async def test_a_registered_host_is_creating_and_holds_no_secret(inventory: Inventory) -> None:
    host = await register(inventory, 1, capacity_memory_mib=512, reserved_memory_mib=64)
    assert (host.zone, host.pod, host.cluster) == ("zone-1", "pod-1", "cluster-1")
    assert host.resource_state is R.CREATING
    assert host.status is HostStatus.DISCONNECTED
    assert host.capacity_memory_mib == 512
    assert host.facts is None
    assert host.created_at.tzinfo is not None
    assert (await inventory.hosts.login("kvm-1")).host_key_line == "ssh-ed25519 AAAA"
    secret = await inventory.secrets.reveal((await inventory.hosts.login("kvm-1")).secret_id)
    assert secret.plaintext == "pw"
    assert "pw" not in host.model_dump_json()


async def test_registering_again_while_creating_takes_the_new_values(inventory: Inventory) -> None:
    await register(inventory, 1)
    host = await register(inventory, 1, reserved_memory_mib=512)
    assert host.reserved_memory_mib == 512


@pytest.mark.parametrize("other", [{"address": "198.18.0.99"}, {"host_key_sha256": "SHA256:new"}])
async def test_one_that_was_left_half_way_is_not_taken_for_another_machine(
    inventory: Inventory, other: dict[str, str]
) -> None:
    await register(inventory, 1)
    with pytest.raises(Conflict, match=r"at 198\.18\.0\.11 port 22, host key SHA256:abc"):
        await register(inventory, 1, **other)


async def test_a_name_or_an_address_that_is_taken(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    with pytest.raises(AlreadyExists, match="host 'kvm-1' already"):
        await register(inventory, 1)
    with pytest.raises(AlreadyExists, match=r"at 198\.18\.0\.11 port 22 already"):
        await register(inventory, 2, address="198.18.0.11")
    await register(inventory, 2, address="198.18.0.11", ssh_port=2222)


async def test_an_unknown_cluster_secret_or_host(inventory: Inventory) -> None:
    with pytest.raises(NotFound, match="no cluster 'nowhere'"):
        await register(inventory, 1, cluster="nowhere")
    with pytest.raises(NotFound, match="no secret 'none'"):
        await register(inventory, 1, secret_id="none")
    with pytest.raises(NotFound, match="no host 'kvm-9'"):
        await inventory.hosts.get("kvm-9")
    assert await inventory.hosts.find("kvm-9") is None
    assert await inventory.hosts.list() == []


async def test_forget_deletes_only_what_was_being_created(inventory: Inventory) -> None:
    await register(inventory, 1)
    secret = (await inventory.hosts.login("kvm-1")).secret_id
    await inventory.hosts.forget("kvm-1", operation="addition/kvm-1", actor="test")
    await inventory.hosts.forget("kvm-1", operation="addition/kvm-1", actor="test")
    assert await inventory.hosts.find("kvm-1") is None
    with pytest.raises(NotFound):
        await inventory.secrets.reveal(secret)
    await enabled(inventory, 2)
    await inventory.hosts.forget("kvm-2", operation="addition/kvm-2", actor="test")
    assert (await inventory.hosts.get("kvm-2")).resource_state is R.ENABLED


async def test_lists_are_filtered_and_sorted(inventory: Inventory) -> None:
    await enabled(inventory, 2)
    await register(inventory, 1)
    hosts = inventory.hosts
    assert [host.name for host in await hosts.list()] == ["kvm-1", "kvm-2"]
    assert [host.name for host in await hosts.list(status=HostStatus.UP)] == ["kvm-2"]
    assert [host.name for host in await hosts.list(resource_state=R.CREATING)] == ["kvm-1"]
    assert len(await hosts.list(cluster="cluster-1", pod="pod-1", zone="zone-1")) == 2
    assert await hosts.list(cluster="elsewhere") == []
    await inventory.placement.set_host_tags("kvm-2", {"gpu", "ssd"}, actor="test")
    assert [host.name for host in await hosts.list(tag="ssd")] == ["kvm-2"]
    assert await hosts.list(tag="ssd", resource_state=R.CREATING) == []
    assert [host.name for host in await hosts.list(limit=1)] == ["kvm-1"]
    assert [host.name for host in await hosts.list(limit=1, after="kvm-1")] == ["kvm-2"]
    assert await hosts.list(after="kvm-2") == []


async def test_a_change_writes_its_event_and_remembers_the_way_back(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    await change(inventory, R.DISABLED, step="0")
    host = await change(inventory, R.PREPARE_FOR_MAINTENANCE, step="1")
    assert host.state_before_maintenance is R.DISABLED
    assert (await change(inventory, R.MAINTENANCE, step="2")).state_before_maintenance is R.DISABLED
    assert (await change(inventory, R.DISABLED, step="3")).state_before_maintenance is None
    assert await state_events(inventory, "maintenance/kvm-1") == [
        "Enabled -> Disabled: a reason",
        "Disabled -> PrepareForMaintenance: a reason",
        "PrepareForMaintenance -> Maintenance: a reason",
        "Maintenance -> Disabled: a reason",
    ]


async def test_a_repeated_step_finds_its_work_done(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    expected = frozenset({R.ENABLED})
    for _ in range(2):
        host = await change(inventory, R.PREPARE_FOR_MAINTENANCE, expected=expected)
        assert host.resource_state is R.PREPARE_FOR_MAINTENANCE
    assert len(await state_events(inventory, "maintenance/kvm-1")) == 1
    with pytest.raises(Conflict, match="is PrepareForMaintenance; only from Enabled"):
        await change(inventory, R.PREPARE_FOR_MAINTENANCE, expected=expected, step="2")


async def test_staying_as_it_is_writes_the_reason(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    await change(inventory, R.PREPARE_FOR_MAINTENANCE, step="1")
    await change(inventory, R.PREPARE_FOR_MAINTENANCE, step="2", expected=MAINTENANCE_STATES)
    assert len(await state_events(inventory, "maintenance/kvm-1")) == 2


@pytest.mark.parametrize("target", R)
async def test_nothing_but_the_table_decides(inventory: Inventory, target: R) -> None:
    await enabled(inventory, 1)
    if may_change_to(R.ENABLED, target) or target is R.ENABLED:
        assert (await change(inventory, target)).resource_state is target
        return
    with pytest.raises(Conflict, match=f"is Enabled and can't become {target}"):
        await change(inventory, target)
    assert (await inventory.hosts.get("kvm-1")).resource_state is R.ENABLED
    assert await state_events(inventory, "maintenance/kvm-1") == []


def test_every_state_has_its_row_and_no_way_leads_nowhere() -> None:
    assert set(RESOURCE_STATE_TRANSITIONS) == set(R)
    assert all(targets for targets in RESOURCE_STATE_TRANSITIONS.values())


async def test_of_several_processes_exactly_one_wins(inventory: Inventory, url: str) -> None:
    rounds, writers = 10, 4
    for number in range(1, rounds + 1):
        await enabled(inventory, number)
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.inventory.contender", url, f"writer-{writer}"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for writer in range(writers)
    ]

    async def answer(process: asyncio.subprocess.Process) -> str:
        assert process.stdout
        return (await process.stdout.readline()).decode().strip()

    assert await asyncio.gather(*map(answer, processes)) == ["ready"] * writers
    for number in range(1, rounds + 1):
        for process in processes:
            assert process.stdin
            process.stdin.write(f"kvm-{number}\n".encode())
        answers = await asyncio.gather(*map(answer, processes))
        assert sorted(answers) == ["Conflict"] * (writers - 1) + ["won"]
        events = await inventory.events.list(subject=f"host/kvm-{number}")
        assert sum("-> PrepareForMaintenance" in event.message for event in events) == 1
    for process in processes:
        assert process.stdin
        process.stdin.close()
        assert await process.wait() == 0


async def test_status_follows_its_table(inventory: Inventory) -> None:
    await enabled(inventory, 1)

    async def see(status: HostStatus) -> Host:
        return await inventory.hosts.set_status("kvm-1", status, actor="test", reason="seen")

    assert (await see(HostStatus.DOWN)).status is HostStatus.DOWN
    await see(HostStatus.DOWN)
    with pytest.raises(Conflict, match="is Down and can't become Disconnected"):
        await see(HostStatus.DISCONNECTED)
    events = await inventory.events.list(subject="host/kvm-1")
    assert sum(event.kind == "host.status" for event in events) == 2


async def test_facts_are_kept_and_a_clone_is_refused(inventory: Inventory) -> None:
    await register(inventory, 1)
    await register(inventory, 2)
    await inventory.hosts.set_facts("kvm-1", FACTS)
    assert (await inventory.hosts.get("kvm-1")).facts == FACTS
    with pytest.raises(AlreadyExists, match=r"Another host has the libvirt UUID 5ab1\S+ of kvm-2"):
        await inventory.hosts.set_facts("kvm-2", FACTS)


async def test_a_lower_generation_does_not_move_the_fence(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    await inventory.hosts.want_fence("kvm-1", "maintenance/kvm-1", 3)
    await inventory.hosts.want_fence("kvm-1", None, 2)
    host = await inventory.hosts.get("kvm-1")
    assert (host.fence, host.fence_generation) == ("maintenance/kvm-1", 3)
    await inventory.hosts.want_fence("kvm-1", None, 3)
    assert (await inventory.hosts.get("kvm-1")).fence is None


async def test_nothing_is_written_under_a_lease_that_is_not_held(inventory: Inventory) -> None:
    await enabled(inventory, 1)
    lease = ref(await acquire(inventory))
    await inventory.leases.release(lease)
    hosts = inventory.hosts
    for write in (
        hosts.change_state(
            "kvm-1",
            expected=frozenset(R),
            target=R.PREPARE_FOR_MAINTENANCE,
            operation="late",
            step="1",
            actor="late",
            reason="late",
            lease=lease,
        ),
        hosts.set_status("kvm-1", HostStatus.DOWN, actor="late", reason="late", lease=lease),
        hosts.set_facts("kvm-1", FACTS, lease=lease),
        hosts.want_fence("kvm-1", "late", lease.epoch, lease=lease),
        hosts.forget("kvm-1", operation="late", actor="late", lease=lease),
        register(inventory, 2, lease=lease),
    ):
        with pytest.raises(LeaseLost):
            await write
    host = await hosts.get("kvm-1")
    assert (host.resource_state, host.status, host.fence) == (R.ENABLED, HostStatus.UP, None)
    assert await hosts.find("kvm-2") is None
