"""Live migrations by TLS between two lab hosts with certificates, and how they end otherwise."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator

import pytest

from contracts.vms import VmState
from drivers.disks import ShellDisks
from drivers.errors import MigrationAborted, MigrationRefused
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess, MigrationOptions
from drivers.ssh import AsyncSshShell
from drivers.tls import ScriptCertificates
from tests.authorities.samples import ca
from tests.capture import Capture
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.drivers.test_migration import Watched, assert_runs_only_at, place, until
from tests.drivers.test_tls import ALLOWED, issued, provision
from tests.lab import BRIDGE, ROOT, Lab

# Of the guest's own /init, which is in its memory as it is.
IN_MEMORY = b"A guest that proves it is alive"
# What it writes to its disk, at its very beginning.
ON_DISK = b"tick "


@pytest.fixture
async def certified(
    lab: Lab, shell: AsyncSshShell, source: HostAccess, destination: HostAccess
) -> AsyncIterator[ScriptCertificates]:
    """Both hosts have certificates."""
    certificates = ScriptCertificates(shell)
    for host in (source, destination):
        await lab.make_bare(host.name)
        await provision(certificates, host, "set-1", 2)
    yield certificates
    for host in (source, destination):
        await lab.make_bare(host.name)


def by_tls(destination: HostAccess, **more: object) -> MigrationOptions:
    options = MigrationOptions(destination.address, tls=True)
    return dataclasses.replace(options, **more)  # type: ignore[arg-type]


@pytest.mark.usefixtures("certified")
async def test_there_and_back_and_nobody_reads_along(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    for _ in range(2):
        with Capture(BRIDGE, IN_MEMORY) as secret:
            await hypervisor.migrate(source, destination, vm, by_tls(destination), print)
        assert secret.found == {IN_MEMORY: 0}
        assert secret.bytes > 10 << 20
        await assert_runs_only_at(lab, destination.name)
        moved = await hypervisor.find_vm(destination, vm)
        assert moved is not None
        assert (moved.state, moved.persistent) == (VmState.RUNNING, True)
        source, destination = destination, source
    with Capture(BRIDGE, IN_MEMORY) as plain:
        options = MigrationOptions(destination.address)
        await hypervisor.migrate(source, destination, vm, options, print)
    assert plain.found[IN_MEMORY] > 0


@pytest.mark.usefixtures("certified")
@pytest.mark.parametrize("tls", [True, False])
async def test_disks_go_by_tls_too(
    shell: AsyncSshShell,
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    lab: Lab,
    tls: bool,
) -> None:
    await lab.remove_guest("drv-vm")
    vm = await lab.start_guest("drv-vm", on=SOURCE, disk_local=True)
    try:
        found = await hypervisor.find_vm(source, vm)
        assert found is not None
        disks, copied = ShellDisks(shell), []
        for image in await hypervisor.disks(source, vm, found.local_disks):
            await disks.prepare(destination, image, "test")
            copied.append(image.target)
        options = by_tls(destination, tls=tls, copy_disks=tuple(copied), trust_shared_storage=True)
        with Capture(BRIDGE, ON_DISK) as capture:
            await hypervisor.migrate(source, destination, vm, options, print)
        assert (capture.found[ON_DISK] == 0) is tls
        await assert_runs_only_at(lab, DESTINATION)
    finally:
        await lab.remove_guest("drv-vm")


@pytest.mark.usefixtures("certified")
async def test_a_cancel_leaves_the_vm_at_its_source(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    watched = Watched()
    slowly = by_tls(destination, bandwidth_mib_s=1)
    migration = asyncio.create_task(hypervisor.migrate(source, destination, vm, slowly, watched))
    for _ in range(3):
        await watched.more()
    migration.cancel()
    with pytest.raises(asyncio.CancelledError):
        await migration
    assert await hypervisor.migration_progress(source, vm) is None
    await assert_runs_only_at(lab, SOURCE)
    await hypervisor.migrate(source, destination, vm, by_tls(destination), watched)
    await assert_runs_only_at(lab, DESTINATION)


@pytest.mark.usefixtures("certified")
async def test_a_cancel_at_any_moment_leaves_it_running_once(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    for tenths in range(0, 22, 4):
        migration = asyncio.create_task(
            hypervisor.migrate(source, destination, vm, by_tls(destination), print)
        )
        await asyncio.sleep(tenths / 10)
        migration.cancel()
        await asyncio.wait([migration])
        here, there = await place(hypervisor, vm, source, destination)
        assert (here is None) is not (there is None)
        if there is not None:
            await hypervisor.migrate(destination, source, vm, by_tls(source), print)
        await assert_runs_only_at(lab, SOURCE)


@pytest.mark.usefixtures("certified")
@pytest.mark.parametrize("aborted", [False, True])
async def test_it_goes_on_without_its_client_and_can_be_followed(
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    vm: str,
    lab: Lab,
    aborted: bool,
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
    order = {name: dataclasses.asdict(access) for name, access in hosts.items()}
    client.stdin.write(json.dumps(order | {"uuid": vm, "tls": True}).encode())
    client.stdin.close()
    for _ in range(2):
        assert (await client.stdout.readline()).strip().isdigit()
    client.kill()
    await client.wait()

    watched = Watched()
    following = asyncio.create_task(hypervisor.follow_migration(source, vm, watched))
    for _ in range(3):
        await watched.more()
    if aborted:
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await assert_runs_only_at(lab, SOURCE)
        return
    await lab.virsh(SOURCE, "migrate-setspeed", "drv-vm", "1000")
    await following
    await assert_runs_only_at(lab, DESTINATION)


@pytest.mark.usefixtures("certified")
async def test_our_own_connection_may_break(
    shell: AsyncSshShell,
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    vm: str,
    lab: Lab,
) -> None:
    """The error says that it is not certain how it ended; it has ended by then."""
    watched = Watched()
    other = LibvirtHypervisor(shell)
    migration = asyncio.create_task(
        other.migrate(source, destination, vm, by_tls(destination, bandwidth_mib_s=4), watched)
    )
    await watched.more()
    await other.forget(SOURCE)
    await asyncio.wait([migration])
    assert migration.exception() is not None
    await other.close()
    assert await hypervisor.migration_progress(source, vm) is None
    await assert_runs_only_at(lab, DESTINATION)


@pytest.mark.usefixtures("certified")
async def test_an_abort_by_somebody_else_is_told_as_such(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    watched = Watched()
    slowly = by_tls(destination, bandwidth_mib_s=1)
    migration = asyncio.create_task(hypervisor.migrate(source, destination, vm, slowly, watched))
    await watched.more()
    assert await hypervisor.abort_migration(source, vm)
    with pytest.raises(MigrationAborted):
        await migration
    await assert_runs_only_at(lab, SOURCE)


async def test_certificates_that_do_not_fit_are_a_refusal(
    hypervisor: LibvirtHypervisor,
    certified: ScriptCertificates,
    source: HostAccess,
    destination: HostAccess,
    vm: str,
    lab: Lab,
) -> None:
    """The destination's are of another CA; and none are there any more."""
    other = ca("other")
    libvirt, qemu = issued(
        await certified.prepare(destination, "set-2", 4, key_bits=256), destination, by=other
    )
    await certified.place(destination, "set-2", 4, libvirt=libvirt, qemu=qemu)
    await certified.switch(destination, "set-2", 4, allowed=ALLOWED)
    with pytest.raises(MigrationRefused):
        await hypervisor.migrate(source, destination, vm, by_tls(destination), print)
    await assert_runs_only_at(lab, SOURCE)
    await certified.remove(destination)
    with pytest.raises(MigrationRefused):
        await hypervisor.migrate(source, destination, vm, by_tls(destination), print)
    await assert_runs_only_at(lab, SOURCE)


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("certified")
async def test_a_destination_that_is_cut_off_is_given_up(
    impatient: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    """By the source's libvirtd."""
    watched = Watched()
    slowly = by_tls(destination, bandwidth_mib_s=1)
    migration = asyncio.create_task(impatient.migrate(source, destination, vm, slowly, watched))
    await watched.more()
    await lab.cut(DESTINATION)
    try:
        with pytest.raises(MigrationRefused):
            await migration
        assert (await lab.virsh(SOURCE, "domstate", "drv-vm")).stdout.strip() == "running"
    finally:
        await lab.heal(DESTINATION)

    async def cleaned() -> bool:
        names = (await lab.virsh(DESTINATION, "list", "--all", "--name")).stdout.split()
        return "drv-vm" not in names

    await until(cleaned)
    await assert_runs_only_at(lab, SOURCE)


@pytest.mark.usefixtures("certified")
async def test_a_libvirtd_that_is_restarted_keeps_the_vm(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    for host in (SOURCE, DESTINATION):
        watched = Watched()
        slowly = by_tls(destination, bandwidth_mib_s=1)
        migration = asyncio.create_task(
            hypervisor.migrate(source, destination, vm, slowly, watched)
        )
        await watched.more()
        await lab.exec(host, "systemctl", "restart", "libvirtd")
        await asyncio.wait([migration])
        assert migration.exception() is not None

        async def cleaned() -> bool:
            names = (await lab.virsh(DESTINATION, "list", "--all", "--name")).stdout.split()
            return "drv-vm" not in names

        await until(cleaned)
        await assert_runs_only_at(lab, SOURCE)
