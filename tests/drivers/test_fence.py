"""HookFence on a lab host: what libvirt does with it."""

from collections.abc import AsyncIterator

import pytest

from drivers.errors import CommandFailed, EpochRefused, HypervisorFailed, MigrationRefused
from drivers.fence import HookFence
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import FenceState, HostAccess, MigrationOptions
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.lab import Lab

OPERATION = "maintenance/kvm-3"
HOOK = "/etc/libvirt/hooks/qemu.d/hostler"


async def _bare(lab: Lab, host: str) -> None:
    await lab.exec(host, "rm", "-rf", "/etc/hostler", HOOK)


@pytest.fixture
async def bare(lab: Lab, destination: HostAccess) -> AsyncIterator[HostAccess]:
    """DESTINATION without fence, hook or epoch."""
    await _bare(lab, DESTINATION)
    yield destination
    await _bare(lab, DESTINATION)


@pytest.fixture
async def fenced(bare: HostAccess, fence: HookFence, hypervisor: LibvirtHypervisor) -> HostAccess:
    """DESTINATION with the fence up, and a libvirtd that has seen the hook."""
    await fence.install(bare, 1)
    await fence.put_up(bare, OPERATION, 1)
    if await hypervisor.start_probe(bare) is None:
        await fence.restart_libvirtd(bare)
        await hypervisor.forget(DESTINATION)
    return bare


async def test_install_says_whether_there_was_something_to_do(
    fence: HookFence, bare: HostAccess, lab: Lab
) -> None:
    assert await fence.install(bare, 1)
    assert not await fence.install(bare, 1)
    mode = await lab.exec(DESTINATION, "stat", "-c", "%a %U", HOOK)
    assert mode.stdout == "755 root\n"
    await lab.exec(DESTINATION, "sh", "-c", f"echo exit 0 >>{HOOK}")
    assert await fence.install(bare, 1)
    await lab.exec(DESTINATION, "chmod", "-x", HOOK)
    assert await fence.install(bare, 1)
    assert not await fence.install(bare, 1)
    # No half-written file stays where libvirt looks for hooks.
    assert (await lab.exec(DESTINATION, "ls", "-A", HOOK.rpartition("/")[0])).stdout == "hostler\n"


async def test_up_and_down_are_what_read_tells(fence: HookFence, bare: HostAccess) -> None:
    assert await fence.read(bare) == FenceState(operation=None, epoch=0)
    for _ in range(2):
        await fence.put_up(bare, OPERATION, 3)
        assert await fence.read(bare) == FenceState(operation=OPERATION, epoch=3)
    for _ in range(2):
        await fence.take_down(bare, 4)
        assert await fence.read(bare) == FenceState(operation=None, epoch=4)


async def test_a_lower_epoch_is_refused_and_changes_nothing(
    fence: HookFence, bare: HostAccess
) -> None:
    await fence.put_up(bare, OPERATION, 10)
    for attempt in (
        fence.take_down(bare, 9),
        fence.put_up(bare, "maintenance/late", 9),
        fence.install(bare, 9),
    ):
        with pytest.raises(EpochRefused) as refusal:
            await attempt
        assert refusal.value.details == {"held": 10, "own": 9}
    assert await fence.read(bare) == FenceState(operation=OPERATION, epoch=10)
    assert await fence.install(bare, 10)


async def test_a_refused_epoch_tells_the_way_out_by_hand(
    fence: HookFence, bare: HostAccess, lab: Lab
) -> None:
    await fence.put_up(bare, OPERATION, 10)
    with pytest.raises(EpochRefused, match="rm /etc/hostler/epoch on the host"):
        await fence.take_down(bare, 1)
    await lab.exec(DESTINATION, "rm", "/etc/hostler/epoch")
    assert await fence.read(bare) == FenceState(operation=OPERATION, epoch=0)
    await fence.take_down(bare, 1)
    assert await fence.read(bare) == FenceState(operation=None, epoch=1)


@pytest.mark.parametrize("text", ["x", "", "-1"])
async def test_a_damaged_epoch_is_not_taken_for_none(
    fence: HookFence, bare: HostAccess, lab: Lab, text: str
) -> None:
    await fence.put_up(bare, OPERATION, 10)
    await lab.exec(DESTINATION, "sh", "-c", 'echo "$0" >/etc/hostler/epoch', text)
    for attempt in (fence.take_down(bare, 11), fence.read(bare)):
        with pytest.raises(CommandFailed, match="damaged"):
            await attempt


@pytest.mark.parametrize("operation", ["a'b\"c$(id)`id`;*\\n %s", "maintenance/kvm-3 ü"])
async def test_an_operations_id_is_never_read_as_shell(
    fence: HookFence, fenced: HostAccess, hypervisor: LibvirtHypervisor, operation: str
) -> None:
    await fence.put_up(fenced, operation, 1)
    assert (await fence.read(fenced)).operation == operation
    assert f"fenced by {operation};" in (await hypervisor.start_probe(fenced) or "")


@pytest.mark.parametrize("operation", ["", " ", "two\nlines"])
async def test_an_operations_id_is_one_line(
    fence: HookFence, bare: HostAccess, operation: str
) -> None:
    with pytest.raises(ValueError, match="one line"):
        await fence.put_up(bare, operation, 1)


async def test_the_probe_tells_the_fence_from_another_failure(
    fence: HookFence, fenced: HostAccess, hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    refusal = await hypervisor.start_probe(fenced)
    assert refusal is not None
    assert OPERATION in refusal
    assert "rm /etc/hostler/fence" in refusal
    await fence.take_down(fenced, 1)
    assert await hypervisor.start_probe(fenced) is None
    other = "/etc/libvirt/hooks/qemu.d/drv-other"
    await lab.exec(
        DESTINATION,
        "sh",
        "-c",
        f"printf '#!/bin/sh\necho no >&2; exit 1' >{other}; chmod +x {other}",
    )
    try:
        with pytest.raises(HypervisorFailed, match="no"):
            await hypervisor.start_probe(fenced)
    finally:
        await lab.exec(DESTINATION, "rm", other)
    probes = (await lab.virsh(DESTINATION, "list", "--all", "--name")).stdout
    assert "hostler-fence-probe" not in probes


async def test_virsh_start_is_refused_with_the_operation(
    fence: HookFence, fenced: HostAccess, lab: Lab
) -> None:
    await fence.take_down(fenced, 1)
    await lab.remove_guest("drv-fenced")
    await lab.start_guest("drv-fenced", on=DESTINATION)
    try:
        await fence.put_up(fenced, OPERATION, 1)
        await lab.virsh(DESTINATION, "destroy", "drv-fenced")
        refused = await lab.virsh(DESTINATION, "start", "drv-fenced", check=False)
        assert refused.exit_status != 0
        assert f"host is fenced by {OPERATION}" in refused.stderr
    finally:
        await lab.remove_guest("drv-fenced")


async def test_vms_may_leave_and_none_may_come(
    fence: HookFence,
    fenced: HostAccess,
    hypervisor: LibvirtHypervisor,
    source: HostAccess,
    vm: str,
    lab: Lab,
) -> None:
    to_fenced, away = MigrationOptions(fenced.address), MigrationOptions(source.address)
    with pytest.raises(MigrationRefused, match=OPERATION):
        await hypervisor.migrate(source, fenced, vm, to_fenced, print)
    await lab.ticks_on("drv-vm")
    await fence.take_down(fenced, 1)
    await hypervisor.migrate(source, fenced, vm, to_fenced, print)
    await fence.put_up(fenced, OPERATION, 1)
    await lab.ticks_on("drv-vm")
    await fence.restart_libvirtd(fenced)  # what runs is found again, fence or not
    await hypervisor.migrate(fenced, source, vm, away, print)
    await lab.ticks_on("drv-vm")
    assert "drv-vm" in (await lab.virsh(SOURCE, "list", "--name")).stdout


async def test_the_fence_survives_a_reboot(
    fence: HookFence, fenced: HostAccess, hypervisor: LibvirtHypervisor, lab: Lab
) -> None:
    before = (await lab.status())["hosts"]
    await lab.reboot(DESTINATION)
    assert (await lab.status())["hosts"] != before
    assert await fence.read(fenced) == FenceState(operation=OPERATION, epoch=1)
    assert OPERATION in (await hypervisor.start_probe(fenced) or "")


async def test_restart_reports_a_libvirtd_that_does_not_start(
    fence: HookFence, destination: HostAccess, lab: Lab
) -> None:
    drop_in = "/run/systemd/system/libvirtd.service.d"
    broken = f"mkdir -p {drop_in}; printf '[Service]\nExecStartPre=false\n' >{drop_in}/drv.conf"
    await lab.exec(DESTINATION, "sh", "-c", f"{broken}; systemctl daemon-reload")
    try:
        with pytest.raises(CommandFailed, match="systemctl"):
            await fence.restart_libvirtd(destination)
    finally:
        mend = f"rm -r {drop_in}; systemctl daemon-reload; systemctl reset-failed libvirtd"
        await lab.exec(DESTINATION, "sh", "-c", mend)
        await fence.restart_libvirtd(destination)
