"""VMs move, and what an attempt that died half-way has left is put right by the next one."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from sqlmodel import col, update
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.directory import HostDirectory
from activities.holders import Holders
from activities.survey import SurveyActivities
from activities.virtualization import (
    DestinationUnreachable,
    HasLocalDisks,
    MigratedByOthers,
    NotConverging,
    ShutdownTimedOut,
    VirtualizationActivities,
)
from contracts.errors import Failed, LeaseLost
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.maintenance import MigrationMode
from contracts.settings import (
    MIGRATION_BANDWIDTH,
    MIGRATION_CONVERGENCE_TIMEOUT,
    MIGRATION_FOREIGN_TIMEOUT,
)
from contracts.steps import (
    HostRef,
    MigrateVmInput,
    ShutDownVmInput,
    StartVmInput,
    SurveyInput,
    VmFate,
)
from contracts.vms import MigrationState
from drivers.disks import ShellDisks
from drivers.errors import DiskInTheWay
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import Hypervisor, MigrationOptions
from drivers.ssh import AsyncSshShell
from inventory import Inventory
from inventory.errors import DestinationFull
from inventory.models import HostRow
from tests.activities.conftest import (
    GUEST,
    HOSTS,
    OWNER,
    SOURCE,
    open_workflow,
    put,
    ref,
    reserve,
    run,
    take_over,
)
from tests.drivers.tap import CONFIRM, FINISH, PERFORM, Cut, TappedShell
from tests.lab import Lab

DESTINATION = "kvm-2"
OPERATION = f"{OWNER.workflow_id}#{OWNER.first_run_id}"


Make = Callable[..., VirtualizationActivities]


@pytest.fixture
def make(
    inventory: Inventory, directory: HostDirectory, shell: AsyncSshShell, holders: Holders
) -> Make:
    """The activities with a hypervisor."""

    def build(hypervisor: Hypervisor) -> VirtualizationActivities:
        return VirtualizationActivities(
            inventory, directory, hypervisor, ShellDisks(shell), holders
        )

    return build


@pytest.fixture
def activities(make: Make, hypervisor: LibvirtHypervisor) -> VirtualizationActivities:
    return make(hypervisor)


@pytest.fixture
async def slow(inventory: Inventory) -> None:
    """Migrations take long enough to do something meanwhile."""
    await put(inventory, MIGRATION_BANDWIDTH, 2)


@pytest.fixture
async def tapped(shell: AsyncSshShell) -> AsyncIterator[TappedShell]:
    tapped = TappedShell(shell)
    yield tapped
    await tapped.close()


def request(lease: LeaseRef, uuid: str, **more: object) -> MigrateVmInput:
    values = {
        "lease": lease,
        "vm": GUEST,
        "uuid": uuid,
        "destination": DESTINATION,
        "memory_mib": 96,
        "vcpus": 1,
        "max_parallel": 2,
        **more,
    }
    return MigrateVmInput.model_validate(values)


async def assert_runs_only_at(lab: Lab, host: str) -> None:
    for other in HOSTS:
        active = (await lab.virsh(other, "list", "--name")).stdout.split()
        assert (GUEST in active) == (other == host), (other, active)
        defined = (await lab.virsh(other, "list", "--all", "--name")).stdout.split()
        assert (GUEST in defined) == (other == host), (other, defined)
    await lab.ticks_on(GUEST)
    ticks = lab.ticks(GUEST)
    assert ticks == list(range(1, len(ticks) + 1))


async def assert_nothing_reserved(inventory: Inventory) -> None:
    for host in HOSTS:
        assert await inventory.reservations.pointing_at(host) == []


async def test_a_vm_moves_and_a_repetition_finds_it_there(
    activities: VirtualizationActivities, inventory: Inventory, lease: LeaseRef, vm: str, lab: Lab
) -> None:
    moved = await run(activities.migrate_vm, request(lease, vm))
    assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)
    assert moved.seconds is not None
    await assert_runs_only_at(lab, DESTINATION)
    again = await run(activities.migrate_vm, request(lease, vm))
    assert (again.fate, again.host, again.seconds) == (VmFate.MOVED, DESTINATION, None)
    (row,) = await inventory.vm_migrations.list(OPERATION)
    assert (row.state, row.percent) == (MigrationState.MOVED, 100)
    await assert_nothing_reserved(inventory)


@pytest.mark.parametrize(
    ("end", "procedure", "reply", "delivered"),
    [
        (SOURCE, PERFORM, True, False),  # runs nowhere: resumed, then moved
        (DESTINATION, FINISH, True, False),  # runs there, paused here: discarded
        (SOURCE, CONFIRM, False, False),
        (SOURCE, CONFIRM, True, False),
    ],
)
async def test_the_next_attempt_puts_right_what_a_dead_client_left(
    activities: VirtualizationActivities,
    make: Make,
    inventory: Inventory,
    tapped: TappedShell,
    lease: LeaseRef,
    vm: str,
    lab: Lab,
    *,
    end: str,
    procedure: int,
    reply: bool,
    delivered: bool,
) -> None:
    dying = LibvirtHypervisor(tapped, call_timeout=5, abort_timeout=5)
    tapped.cut_at = Cut(end, procedure, reply, delivered)
    await asyncio.gather(run(make(dying).migrate_vm, request(lease, vm)), return_exceptions=True)
    assert tapped.cut_at is None, "the cut was made"
    await dying.close()
    moved = await run(activities.migrate_vm, request(lease, vm))
    assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)
    await assert_runs_only_at(lab, DESTINATION)
    await assert_nothing_reserved(inventory)


async def test_memory_that_may_be_out_of_date_is_never_gone_on_from(
    make: Make,
    activities: VirtualizationActivities,
    inventory: Inventory,
    tapped: TappedShell,
    lease: LeaseRef,
    vm: str,
    lab: Lab,
) -> None:
    """It ran at the destination, and was shut down there before anybody looked again."""
    dying = LibvirtHypervisor(tapped, call_timeout=5, abort_timeout=5)
    tapped.cut_at = Cut(DESTINATION, FINISH, True, False)
    await asyncio.gather(run(make(dying).migrate_vm, request(lease, vm)), return_exceptions=True)
    await dying.close()
    await lab.ticks_on(GUEST)
    await lab.virsh(DESTINATION, "destroy", GUEST)
    for work in (
        run(activities.settle_migrations, lease),
        run(activities.migrate_vm, request(lease, vm)),
    ):
        with pytest.raises(Failed, match=f"paused on {SOURCE} .* not running on {DESTINATION}"):
            await work
    assert (await lab.virsh(SOURCE, "domstate", GUEST)).stdout.strip() == "paused"
    # Until somebody has decided, the record says where it may be.
    assert await inventory.vm_migrations.unfinished(SOURCE, GUEST) == {OPERATION: DESTINATION}


@pytest.mark.usefixtures("slow")
async def test_a_vm_on_its_way_in_is_not_the_hosts_own(
    activities: VirtualizationActivities,
    survey_activities: SurveyActivities,
    inventory: Inventory,
    lease: LeaseRef,
    vm: str,
    lab: Lab,
) -> None:
    free = {
        one.host: one.memory_free_mib
        for one in (await run(survey_activities.survey_host, SurveyInput(host=SOURCE))).candidates
    }
    environment = ActivityEnvironment()
    migration = asyncio.create_task(environment.run(activities.migrate_vm, request(lease, vm)))
    while GUEST not in (await lab.virsh(DESTINATION, "list", "--name")).stdout.split():
        await asyncio.sleep(0.1)

    there = await run(survey_activities.list_remaining_vms, HostRef(host=DESTINATION))
    assert there.arriving == (GUEST,)
    assert GUEST not in [one.name for one in there.vms]
    survey = await run(survey_activities.survey_host, SurveyInput(host=DESTINATION))
    assert vm not in [one.uuid for one in survey.vms]
    # Its memory is counted once, although it is both there and reserved.
    survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE))
    (room,) = [one for one in survey.candidates if one.host == DESTINATION]
    assert room.memory_free_mib == free[DESTINATION] - 96
    # The destination's own operation, when it rolls back, leaves it alone.
    other = Owner(workflow_id=f"maintenance/{DESTINATION}", first_run_id="run-2")
    theirs = await inventory.leases.acquire(DESTINATION, LeaseScope.PLACEMENT, other, "test")
    await run(activities.settle_migrations, ref(theirs))
    assert not migration.done()
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await migration
    await assert_runs_only_at(lab, SOURCE)


async def test_a_host_that_has_nothing_to_do_with_it_does_not_spoil_it(
    activities: VirtualizationActivities, inventory: Inventory, lease: LeaseRef, vm: str, lab: Lab
) -> None:
    async with inventory.database.writing() as session:
        await session.exec(
            update(HostRow)
            .where(col(HostRow.name) == "kvm-3")
            .values(host_key_line=(await lab.access(SOURCE)).host_key)
        )
    moved = await run(activities.migrate_vm, request(lease, vm))
    assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)
    await assert_runs_only_at(lab, DESTINATION)


async def test_a_terminated_operation_blocks_nobody(
    activities: VirtualizationActivities,
    inventory: Inventory,
    client: Client,
    lease: LeaseRef,
    vm: str,
) -> None:
    handle, ended = await open_workflow(client)
    theirs = ref(await inventory.leases.acquire("kvm-3", LeaseScope.PLACEMENT, ended, "test"))
    for name in ("one", "two"):
        await reserve(inventory, theirs, DESTINATION, name)
    migration = asyncio.create_task(run(activities.migrate_vm, request(lease, vm)))
    while not migration.done() and not await inventory.reservations.pointing_at(DESTINATION):
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)  # longer than a migration takes
    assert not migration.done()
    await handle.terminate()
    assert (await migration).fate is VmFate.MOVED


async def test_settling_leaves_no_migration_half_done(
    activities: VirtualizationActivities,
    make: Make,
    inventory: Inventory,
    tapped: TappedShell,
    lease: LeaseRef,
    vm: str,
    lab: Lab,
) -> None:
    dying = LibvirtHypervisor(tapped, call_timeout=5, abort_timeout=5)
    tapped.cut_at = Cut(SOURCE, PERFORM, True, False)
    await asyncio.gather(run(make(dying).migrate_vm, request(lease, vm)), return_exceptions=True)
    await dying.close()
    await run(activities.settle_migrations, lease)
    await assert_runs_only_at(lab, SOURCE)
    await assert_nothing_reserved(inventory)


@pytest.mark.usefixtures("slow")
async def test_a_cancel_in_the_middle_leaves_it_at_its_source(
    activities: VirtualizationActivities, inventory: Inventory, lease: LeaseRef, vm: str, lab: Lab
) -> None:
    environment = ActivityEnvironment()
    migration = asyncio.create_task(environment.run(activities.migrate_vm, request(lease, vm)))
    while (await lab.virsh(SOURCE, "domjobinfo", GUEST)).stdout.count("Memory processed") == 0:
        await asyncio.sleep(0.1)
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await migration
    await assert_runs_only_at(lab, SOURCE)
    (row,) = await inventory.vm_migrations.list(OPERATION)
    assert row.state is MigrationState.CANCELED
    await assert_nothing_reserved(inventory)


async def test_whoever_lost_the_lease_touches_nothing(
    activities: VirtualizationActivities,
    survey_activities: SurveyActivities,
    inventory: Inventory,
    lease: LeaseRef,
    vm: str,
    lab: Lab,
) -> None:
    await take_over(inventory)
    for work in (
        run(activities.migrate_vm, request(lease, vm)),
        run(activities.settle_migrations, lease),
        run(activities.shut_down_vm, ShutDownVmInput(lease=lease, vm=GUEST, uuid=vm)),
        run(survey_activities.read_facts, lease),
    ):
        with pytest.raises(LeaseLost):
            await work
    await assert_runs_only_at(lab, SOURCE)
    await assert_nothing_reserved(inventory)


async def test_no_room_and_no_host(
    activities: VirtualizationActivities, inventory: Inventory, lease: LeaseRef, vm: str, lab: Lab
) -> None:
    with pytest.raises(DestinationFull, match="MiB of memory free, act-vm needs 600"):
        await run(activities.migrate_vm, request(lease, vm, memory_mib=600))
    await lab.cut(DESTINATION)
    try:
        with pytest.raises(DestinationUnreachable, match=f"{DESTINATION} does not answer"):
            await run(activities.migrate_vm, request(lease, vm))
    finally:
        await lab.heal(DESTINATION)
    await assert_runs_only_at(lab, SOURCE)
    await assert_nothing_reserved(inventory)


async def test_a_guest_that_does_not_heed_the_button_is_not_stopped(
    activities: VirtualizationActivities, lease: LeaseRef, vm: str, lab: Lab
) -> None:
    order = ShutDownVmInput(lease=lease, vm=GUEST, uuid=vm, timeout_s=100)
    assert (await run(activities.shut_down_vm, order)).fate is VmFate.SHUT_OFF
    heeding = (await lab.virsh(SOURCE, "dumpxml", GUEST)).stdout
    deaf = heeding.replace("console=ttyS0", "console=ttyS0 acpi=off")
    await lab.virsh(SOURCE, "define", "/dev/stdin", stdin=deaf)
    await lab.virsh(SOURCE, "start", GUEST)
    await lab.ticks_on(GUEST)
    impatient = order.model_copy(update={"timeout_s": 6})
    with pytest.raises(ShutdownTimedOut, match="did not power off within 6 s"):
        await run(activities.shut_down_vm, impatient)
    await lab.ticks_on(GUEST)
    await lab.virsh(SOURCE, "destroy", GUEST)
    await lab.virsh(SOURCE, "undefine", GUEST)
    assert (await run(activities.shut_down_vm, order)).fate is VmFate.GONE


@pytest.fixture
async def busy_vm(lab: Lab) -> AsyncIterator[str]:
    """The UUID of GUEST, which rewrites its memory faster than 8 MiB/s carry it over."""
    await lab.remove_guest(GUEST)
    yield await lab.start_guest(GUEST, on=SOURCE, dirty=32)
    await lab.remove_guest(GUEST)


async def test_what_does_not_converge_in_its_budget_stays_and_can_be_helped(
    activities: VirtualizationActivities,
    inventory: Inventory,
    lease: LeaseRef,
    busy_vm: str,
    lab: Lab,
) -> None:
    await put(inventory, MIGRATION_BANDWIDTH, 8)
    await put(inventory, MIGRATION_CONVERGENCE_TIMEOUT, 5)
    busy = request(lease, busy_vm, memory_mib=128)
    with pytest.raises(NotConverging, match=r"writes .* MiB/s of its memory"):
        await run(activities.migrate_vm, busy)
    await assert_runs_only_at(lab, SOURCE)
    (row,) = await inventory.vm_migrations.list(OPERATION)
    assert row.state is MigrationState.FAILED
    assert row.iteration > 1
    assert row.dirty_rate_mib_s > 0
    moved = await run(activities.migrate_vm, busy.model_copy(update={"mode": MigrationMode.PAUSED}))
    assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)
    await assert_runs_only_at(lab, DESTINATION)
    await assert_nothing_reserved(inventory)


@pytest.mark.usefixtures("slow")
async def test_a_migration_of_somebody_else_is_waited_for(
    activities: VirtualizationActivities,
    inventory: Inventory,
    hypervisor: LibvirtHypervisor,
    lease: LeaseRef,
    vm: str,
    lab: Lab,
) -> None:
    theirs = asyncio.create_task(
        hypervisor.migrate(
            await lab.access(SOURCE),
            await lab.access("kvm-3"),
            vm,
            MigrationOptions(uri_address=(await lab.access("kvm-3")).address, bandwidth_mib_s=8),
            lambda _: None,
        )
    )
    while await hypervisor.migration_progress(await lab.access(SOURCE), vm) is None:
        await asyncio.sleep(0.1)
    await put(inventory, MIGRATION_FOREIGN_TIMEOUT, 1)
    with pytest.raises(MigratedByOthers, match=f"virsh domjobabort {GUEST}"):
        await run(activities.migrate_vm, request(lease, vm))
    await run(activities.settle_migrations, lease)
    assert not theirs.done()
    await put(inventory, MIGRATION_FOREIGN_TIMEOUT, 100)
    moved = await run(activities.migrate_vm, request(lease, vm))
    await theirs
    assert (moved.fate, moved.host) == (VmFate.MOVED, "kvm-3")
    await assert_runs_only_at(lab, "kvm-3")


async def test_local_disks_move_along_and_leave_an_old_copy(
    activities: VirtualizationActivities,
    survey_activities: SurveyActivities,
    inventory: Inventory,
    lease: LeaseRef,
    lab: Lab,
) -> None:
    await lab.remove_guest(GUEST)
    uuid = await lab.start_guest(GUEST, on=SOURCE, disk_local=True)
    path = f"/var/lib/libvirt/images/{GUEST}.raw"
    try:
        survey = await run(survey_activities.survey_host, SurveyInput(host=SOURCE, only=uuid))
        assert survey.vms[0].local_disks == (path,)
        with pytest.raises(HasLocalDisks, match=path):
            await run(activities.migrate_vm, request(lease, uuid))
        await lab.exec(DESTINATION, "touch", path)
        with pytest.raises(DiskInTheWay, match=path):
            await run(activities.migrate_vm, request(lease, uuid, copy_storage=True))
        await assert_runs_only_at(lab, SOURCE)
        await lab.exec(DESTINATION, "rm", path)
        moved = await run(activities.migrate_vm, request(lease, uuid, copy_storage=True))
        assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)
        await assert_runs_only_at(lab, DESTINATION)
        files = (await lab.exec(SOURCE, "ls", "/var/lib/libvirt/images")).stdout.split()
        assert [name for name in files if GUEST in name] == [f"{GUEST}.raw.moved"]
        there = (await lab.exec(DESTINATION, "ls", "/var/lib/libvirt/images")).stdout.split()
        assert [name for name in there if GUEST in name] == [f"{GUEST}.raw"]
    finally:
        await lab.remove_guest(GUEST)
        await lab.exec(SOURCE, "rm", "-f", f"{path}.moved")


async def test_what_was_shut_down_starts_again_where_it_is(
    activities: VirtualizationActivities, lease: LeaseRef, vm: str, lab: Lab
) -> None:
    order = StartVmInput(lease=lease, vm=GUEST, uuid=vm)
    assert (await run(activities.start_vm, order)).fate is VmFate.AT_SOURCE
    await run(activities.shut_down_vm, ShutDownVmInput(lease=lease, vm=GUEST, uuid=vm))
    assert (await run(activities.start_vm, order)).host == SOURCE
    assert (await lab.virsh(SOURCE, "domstate", GUEST)).stdout.strip() == "running"
    await lab.virsh(SOURCE, "destroy", GUEST)
    await lab.virsh(SOURCE, "undefine", GUEST)
    with pytest.raises(Failed, match=f"{SOURCE} does not have it any more"):
        await run(activities.start_vm, order)


async def test_disks_that_hostler_has_not_copied_are_nobodys_old_copies(
    activities: VirtualizationActivities,
    hypervisor: LibvirtHypervisor,
    shell: AsyncSshShell,
    lease: LeaseRef,
    lab: Lab,
) -> None:
    """Somebody else has moved the VM, with its disk, before Hostler came to it."""
    await lab.remove_guest(GUEST)
    uuid = await lab.start_guest(GUEST, on=SOURCE, disk_local=True)
    path = f"/var/lib/libvirt/images/{GUEST}.raw"
    source, there = await lab.access(SOURCE), await lab.access(DESTINATION)
    try:
        (image,) = await hypervisor.disks(source, uuid, [path])
        await ShellDisks(shell).prepare(there, image, "somebody")
        await hypervisor.migrate(
            source,
            there,
            uuid,
            MigrationOptions(there.address, copy_disks=(image.target,)),
            lambda _: None,
        )
        moved = await run(activities.migrate_vm, request(lease, uuid, copy_storage=True))
        assert (moved.fate, moved.host) == (VmFate.MOVED, DESTINATION)
        await lab.exec(SOURCE, "test", "-e", path)
        await assert_runs_only_at(lab, DESTINATION)
    finally:
        await lab.remove_guest(GUEST)
        await lab.exec(DESTINATION, "rm", "-f", f"{path}.hostler")
