"""Live migrations between two lab hosts, and how they end otherwise."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Awaitable, Callable

import pytest

from contracts.vms import Vm, VmState
from drivers.errors import MigrationAborted, MigrationRefused
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess, MigrationOptions, MigrationProgress
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.lab import ROOT, Lab


class Watched:
    """Progress as it was told, and a way to wait for the next."""

    def __init__(self) -> None:
        self.seen: list[MigrationProgress] = []
        self._more = asyncio.Event()

    def __call__(self, progress: MigrationProgress) -> None:
        self.seen.append(progress)
        self._more.set()

    async def more(self) -> None:
        self._more.clear()
        await self._more.wait()


def slowly(destination: HostAccess) -> MigrationOptions:
    return MigrationOptions(destination.address, bandwidth_mib_s=1)


async def place(hypervisor: LibvirtHypervisor, uuid: str, *hosts: HostAccess) -> list[Vm | None]:
    return [await hypervisor.find_vm(host, uuid) for host in hosts]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.05)


async def assert_runs_only_at(lab: Lab, running: str) -> None:
    """Active once, defined once, counting on, and no number counted twice."""
    for host in (SOURCE, DESTINATION):
        names = (await lab.virsh(host, "list", "--all", "--name")).stdout.split()
        assert ("drv-vm" in names) is (host == running)
    await lab.ticks_on("drv-vm")
    state = await lab.virsh(running, "domstate", "drv-vm")
    assert state.stdout.strip() == "running"
    ticks = lab.ticks("drv-vm")
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


async def test_there_and_back(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    for _ in range(2):
        options = MigrationOptions(destination.address)
        await hypervisor.migrate(source, destination, vm, options, print)
        await assert_runs_only_at(lab, destination.name)
        moved = await hypervisor.find_vm(destination, vm)
        assert moved is not None
        assert (moved.state, moved.persistent) == (VmState.RUNNING, True)
        source, destination = destination, source


async def test_progress_is_told_and_a_cancel_leaves_the_vm_at_its_source(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    watched = Watched()
    migration = asyncio.create_task(
        hypervisor.migrate(source, destination, vm, slowly(destination), watched)
    )
    for _ in range(3):
        await watched.more()
    assert await hypervisor.migration_progress(source, vm) is not None
    # A look while QEMU is setting up finds nothing that remains.
    assert all(0 <= each.percent <= 100 and each.remaining_mib >= 0 for each in watched.seen)
    assert watched.seen[-1].remaining_mib > 0
    assert watched.seen[-1].rate_mib_s > 0
    arriving = (await place(hypervisor, vm, destination))[0]
    assert arriving is not None
    assert arriving.paused_by_migration
    migration.cancel()
    await asyncio.sleep(0)
    migration.cancel()  # an impatient caller changes nothing
    with pytest.raises(asyncio.CancelledError):
        await migration
    assert await hypervisor.migration_progress(source, vm) is None
    assert await hypervisor.migration_progress(destination, vm) is None
    await assert_runs_only_at(lab, SOURCE)
    await hypervisor.migrate(
        source, destination, vm, MigrationOptions(destination.address), watched
    )
    await assert_runs_only_at(lab, DESTINATION)


async def test_a_cancel_at_any_moment_leaves_it_running_once(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    options = MigrationOptions(destination.address)
    for tenths in range(0, 16, 3):
        migration = asyncio.create_task(hypervisor.migrate(source, destination, vm, options, print))
        await asyncio.sleep(tenths / 10)
        migration.cancel()
        await asyncio.wait([migration])
        here, there = await place(hypervisor, vm, source, destination)
        assert (here is None) is not (there is None)
        if there is not None:
            await hypervisor.migrate(
                destination, source, vm, MigrationOptions(source.address), print
            )
        await assert_runs_only_at(lab, SOURCE)


async def test_an_abort_by_somebody_else_is_told_as_such(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    watched = Watched()
    migration = asyncio.create_task(
        hypervisor.migrate(source, destination, vm, slowly(destination), watched)
    )
    await watched.more()
    assert await hypervisor.abort_migration(source, vm)
    with pytest.raises(MigrationAborted):
        await migration
    assert not await hypervisor.abort_migration(source, vm)
    await assert_runs_only_at(lab, SOURCE)


async def test_a_client_killed_in_the_middle_leaves_the_vm_at_its_source(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.drivers.killed_client"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    hosts = {"source": source, "destination": destination}
    order = {name: dataclasses.asdict(access) for name, access in hosts.items()} | {"uuid": vm}
    client.stdin.write(json.dumps(order).encode())
    client.stdin.close()
    for _ in range(2):
        assert (await client.stdout.readline()).strip().isdigit()
    client.kill()
    await client.wait()

    async def ended() -> bool:
        progress = await hypervisor.migration_progress(source, vm)
        return progress is None and await hypervisor.find_vm(destination, vm) is None

    await until(ended)
    await assert_runs_only_at(lab, SOURCE)
    await hypervisor.migrate(source, destination, vm, MigrationOptions(destination.address), print)
    await assert_runs_only_at(lab, DESTINATION)


async def test_storage_is_taken_as_shared_only_when_told(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    path = "/shared/consoles/drv-shared.raw"  # a bind mount, at the destination too
    attach = ("attach-disk", "drv-vm", path, "vdb", "--persistent", "--cache", "none")
    await lab.exec(SOURCE, "truncate", "-s", "1M", path)
    try:
        await lab.virsh(SOURCE, *attach, "--driver", "qemu", "--subdriver", "raw")
        options = MigrationOptions(destination.address)
        with pytest.raises(MigrationRefused, match="Unsafe migration"):
            await hypervisor.migrate(source, destination, vm, options, print)
        await assert_runs_only_at(lab, SOURCE)
        told = dataclasses.replace(options, trust_shared_storage=True)
        await hypervisor.migrate(source, destination, vm, told, print)
        await assert_runs_only_at(lab, DESTINATION)
    finally:
        await lab.remove_guest("drv-vm")
        await lab.exec(SOURCE, "rm", "-f", path)


async def test_two_vms_at_the_same_time(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    await lab.remove_guest("drv-other")
    other = await lab.start_guest("drv-other", on=SOURCE)
    try:
        options = MigrationOptions(destination.address)
        await asyncio.gather(
            *(hypervisor.migrate(source, destination, uuid, options, print) for uuid in (vm, other))
        )
        names = [each.name for each in await hypervisor.list_vms(destination)]
        assert {"drv-vm", "drv-other"} <= set(names)
    finally:
        await lab.remove_guest("drv-other")


async def test_a_destination_that_is_away_or_hangs_is_a_refusal(
    impatient: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    vm: str,
    stopped_libvirtd: HostAccess,
    lab: Lab,
) -> None:
    options = MigrationOptions(destination.address)
    for bad in (stopped_libvirtd, dataclasses.replace(destination, port=1)):
        with pytest.raises(MigrationRefused, match=DESTINATION):
            await impatient.migrate(source, bad, vm, options, print)
    await assert_ticks(lab)


async def test_a_destination_that_begins_to_hang_is_cut_off(
    impatient: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    kill = ("systemctl", "kill", "--kill-who=main", "libvirtd", "--signal")
    watched = Watched()
    migration = asyncio.create_task(
        impatient.migrate(source, destination, vm, slowly(destination), watched)
    )
    await watched.more()
    await lab.exec(DESTINATION, *kill, "STOP")
    try:
        with pytest.raises(MigrationRefused):
            await migration
        await assert_ticks(lab)
    finally:
        await lab.exec(DESTINATION, *kill, "CONT")

    async def cleaned() -> bool:
        names = (await lab.virsh(DESTINATION, "list", "--all", "--name")).stdout.split()
        return "drv-vm" not in names

    await until(cleaned)
    await assert_runs_only_at(lab, SOURCE)


async def test_a_source_that_restarts_its_libvirtd_keeps_the_vm(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    watched = Watched()
    migration = asyncio.create_task(
        hypervisor.migrate(source, destination, vm, slowly(destination), watched)
    )
    await watched.more()
    await lab.exec(SOURCE, "systemctl", "restart", "libvirtd")
    await asyncio.wait([migration])
    assert migration.exception() is not None

    async def cleaned() -> bool:
        names = (await lab.virsh(DESTINATION, "list", "--all", "--name")).stdout.split()
        return "drv-vm" not in names

    await until(cleaned)
    await assert_runs_only_at(lab, SOURCE)


async def assert_ticks(lab: Lab) -> None:
    await lab.ticks_on("drv-vm")
    assert (await lab.virsh(SOURCE, "domstate", "drv-vm")).stdout.strip() == "running"
