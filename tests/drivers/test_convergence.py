"""Live migrations of a guest that writes to its memory faster than it is copied."""

import asyncio
from collections.abc import AsyncIterator

import libvirt
import pytest

from contracts.vms import GIVEN_BACK, VmState
from drivers.errors import HypervisorFailed, MigrationAborted
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess, MigrationOptions, MigrationProgress
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.lab import Lab

# The guest rewrites these MiB in less than the time that copying them takes at this rate.
DIRTY_MIB, BANDWIDTH_MIB_S = 32, 16
# After so many passes over its memory nobody expects an end any more.
PASSES = 8


class Migration:
    """One that runs, and what it has told so far."""

    def __init__(
        self,
        hypervisor: LibvirtHypervisor,
        uuid: str,
        source: HostAccess,
        destination: HostAccess,
        options: MigrationOptions,
    ) -> None:
        self.told: list[MigrationProgress] = []
        self.task = asyncio.create_task(
            hypervisor.migrate(source, destination, uuid, options, self.told.append)
        )

    async def until_pass(self, number: int) -> MigrationProgress:
        """Wait for that pass over the memory. Fails if the migration ends before."""
        while not self.told or self.told[-1].iteration < number:
            assert not self.task.done()
            await asyncio.sleep(0.1)
        return self.told[-1]


@pytest.fixture
async def dirty_vm(lab: Lab) -> AsyncIterator[str]:
    """The UUID of the guest drv-vm, running at SOURCE."""
    await lab.remove_guest("drv-vm")
    yield await lab.start_guest("drv-vm", on=SOURCE, dirty=DIRTY_MIB)
    await lab.remove_guest("drv-vm")


async def assert_runs_only_at(
    hypervisor: LibvirtHypervisor,
    lab: Lab,
    uuid: str,
    here: HostAccess,
    away: HostAccess,
    reason: str = "",
) -> None:
    """Running and counting on, no number left out or counted twice."""
    await lab.ticks_on("drv-vm")
    assert await hypervisor.find_vm(away, uuid) is None
    vm = await hypervisor.find_vm(here, uuid)
    assert vm is not None
    assert (vm.state, vm.state_reason) == (VmState.RUNNING, reason)
    ticks = lab.ticks("drv-vm")
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


async def test_without_help_there_is_no_end_in_sight(
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    dirty_vm: str,
    lab: Lab,
) -> None:
    options = MigrationOptions(destination.address, bandwidth_mib_s=BANDWIDTH_MIB_S)
    migration = Migration(hypervisor, dirty_vm, source, destination, options)
    last = await migration.until_pass(PASSES)
    assert last.remaining_mib > 0
    assert last.dirty_rate_mib_s > BANDWIDTH_MIB_S / 2
    assert last.elapsed_s > migration.told[0].elapsed_s
    assert all(each.throttle_percent == 0 for each in migration.told)
    migration.task.cancel()
    await asyncio.wait([migration.task])
    await assert_runs_only_at(hypervisor, lab, dirty_vm, source, destination)


async def test_auto_converge_slows_the_guest_down_until_it_ends(
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    dirty_vm: str,
    lab: Lab,
) -> None:
    options = MigrationOptions(
        destination.address, bandwidth_mib_s=BANDWIDTH_MIB_S, auto_converge=True
    )
    migration = Migration(hypervisor, dirty_vm, source, destination, options)
    await migration.task
    assert 0 < max(each.throttle_percent for each in migration.told) < 100
    await assert_runs_only_at(hypervisor, lab, dirty_vm, destination, source)


async def test_a_pause_lets_it_end_and_the_vm_runs_at_the_destination(
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    dirty_vm: str,
    lab: Lab,
) -> None:
    # The rest of a pass takes seconds then: enough to look at the pause.
    options = MigrationOptions(destination.address, bandwidth_mib_s=BANDWIDTH_MIB_S // 2)
    migration = Migration(hypervisor, dirty_vm, source, destination, options)
    await migration.until_pass(3)
    for _ in range(2):
        await hypervisor.suspend(source, dirty_vm)
        vm = await hypervisor.find_vm(source, dirty_vm)
        assert vm is not None
        assert (vm.state, vm.state_reason) == (VmState.PAUSED, "migrating")
        assert vm.paused_by_migration
        assert not vm.incoming
    await migration.task
    assert max(each.iteration for each in migration.told) < PASSES
    await assert_runs_only_at(hypervisor, lab, dirty_vm, destination, source)


@pytest.mark.parametrize("end", ["abort", "libvirtd restarts", "client gone", "destination's QEMU"])
async def test_paused_for_a_migration_that_fails_it_runs_on_at_the_source(
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    dirty_vm: str,
    lab: Lab,
    end: str,
) -> None:
    slowly = MigrationOptions(destination.address, bandwidth_mib_s=1)
    migration = Migration(hypervisor, dirty_vm, source, destination, slowly)
    await migration.until_pass(1)
    await hypervisor.suspend(source, dirty_vm)
    vm = await hypervisor.find_vm(source, dirty_vm)
    assert vm is not None
    assert vm.paused_by_migration
    if end == "abort":
        assert await hypervisor.abort_migration(source, dirty_vm)
        with pytest.raises(MigrationAborted):
            await migration.task
    elif end == "libvirtd restarts":
        await lab.exec(SOURCE, "systemctl", "restart", "libvirtd")
    elif end == "client gone":
        await hypervisor.forget(SOURCE)
        await hypervisor.forget(DESTINATION)
    else:
        await lab.exec(DESTINATION, "pkill", "-KILL", "-f", "guest=drv-vm")
    await asyncio.wait([migration.task])
    assert migration.task.exception() is not None
    while await hypervisor.find_vm(destination, dirty_vm) is not None:
        await asyncio.sleep(0.1)
    await assert_runs_only_at(hypervisor, lab, dirty_vm, source, destination, GIVEN_BACK)


async def test_only_a_vm_that_migrates_is_paused(
    hypervisor: LibvirtHypervisor, source: HostAccess, vm: str, lab: Lab
) -> None:
    with pytest.raises(HypervisorFailed, match="drv-vm on kvm-2 is in no migration"):
        await hypervisor.suspend(source, vm)
    assert (await lab.virsh(SOURCE, "domstate", "drv-vm")).stdout.strip() == "running"


async def test_forgotten_a_migration_keeps_its_connections_until_its_call_has_returned(
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    dirty_vm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []
    migrate3, close = libvirt.virDomain.migrate3, libvirt.virConnect.close

    def watched_migrate3(*args: object) -> object:
        try:
            return migrate3(*args)
        finally:
            happened.append("returned")

    def watched_close(connection: libvirt.virConnect) -> object:
        happened.append("closed")
        return close(connection)

    slowly = MigrationOptions(destination.address, bandwidth_mib_s=1)
    monkeypatch.setattr(libvirt.virDomain, "migrate3", watched_migrate3)
    migration = Migration(hypervisor, dirty_vm, source, destination, slowly)
    await migration.until_pass(1)
    monkeypatch.setattr(libvirt.virConnect, "close", watched_close)
    # The destination's alone: at the source the domain holds the connection too.
    await hypervisor.forget(DESTINATION)
    await asyncio.wait([migration.task])
    while happened.count("closed") < 2:
        await asyncio.sleep(0.1)
    assert happened.index("returned") < happened.index("closed")
