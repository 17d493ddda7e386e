"""ShellDisks: files here, killed at every step; and disks that move between lab hosts."""

import asyncio
import functools
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path

import pytest

from contracts.vms import VmState
from drivers import disks
from drivers.disks import ShellDisks
from drivers.errors import CommandFailed, DiskInTheWay, DiskInUse, HypervisorFailed
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import (
    CommandResult,
    DiskImage,
    HostAccess,
    HostKey,
    MigrationOptions,
    MigrationProgress,
)
from drivers.ssh import AsyncSshShell
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.lab import Lab

HERE = HostAccess("here", "127.0.0.1", 22, "root", "")
FOLDER = "/var/lib/libvirt/images"
DISK = f"{FOLDER}/drv-vm.raw"
MIB = 1 << 20
SCRIPT = Path(disks.__file__).with_name("hooks") / "local-disk"


class LocalShell:
    """A RemoteShell whose host is this machine."""

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the protocol's
    ) -> CommandResult:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        stdout, stderr = await asyncio.wait_for(process.communicate(), timeout)
        return CommandResult(process.returncode or 0, stdout.decode(), stderr.decode())

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        raise NotImplementedError

    async def forget(self, host: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def local() -> ShellDisks:
    return ShellDisks(LocalShell())


def image(path: Path, size: int = MIB) -> DiskImage:
    return DiskImage("vda", str(path), "raw", size)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def test_a_disk_is_prepared_once_and_kept(local: ShellDisks, tmp_path: Path) -> None:
    disk = tmp_path / "a 'b' $(c)\n.raw"
    await local.prepare(HERE, image(disk), "op-1")
    assert names(tmp_path) == [disk.name, f"{disk.name}.hostler"]
    assert (disk.stat().st_size, disk.stat().st_blocks) == (MIB, 0)
    assert disk.with_name(f"{disk.name}.hostler").read_text() == "op-1"
    disk.write_bytes(b"half a copy")
    await local.prepare(HERE, image(disk), "op-1")
    assert disk.read_bytes() == b"half a copy"  # a migration may be writing there
    for _ in range(2):
        await local.keep(HERE, str(disk))
        await local.discard(HERE, str(disk), "op-1")
        assert names(tmp_path) == [disk.name]


async def test_a_file_in_the_way_stays(local: ShellDisks, tmp_path: Path) -> None:
    disk = tmp_path / "vm.raw"
    disk.write_bytes(b"whose?")
    with pytest.raises(DiskInTheWay, match=r"not a copy.*storage\.shared\.paths") as caught:
        await local.prepare(HERE, image(disk), "op-1")
    assert caught.value.details == {"path": str(disk), "owner": None}
    await local.discard(HERE, str(disk), "op-1")
    assert (names(tmp_path), disk.read_bytes()) == (["vm.raw"], b"whose?")
    disk.unlink()
    disk.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DiskInTheWay):
        await local.prepare(HERE, image(disk), "op-1")
    assert names(tmp_path) == ["vm.raw"]


async def test_a_copy_of_another_operation_stays(local: ShellDisks, tmp_path: Path) -> None:
    disk = tmp_path / "vm.raw"
    await local.prepare(HERE, image(disk), "op-1")
    with pytest.raises(DiskInTheWay, match="was left by op-1") as caught:
        await local.prepare(HERE, image(disk), "op-2")
    assert caught.value.details["owner"] == "op-1"
    await local.discard(HERE, str(disk), "op-2")
    assert names(tmp_path) == ["vm.raw", "vm.raw.hostler"]
    for _ in range(2):
        await local.discard(HERE, str(disk), "op-1")
        assert names(tmp_path) == []


async def test_a_mark_without_a_disk_is_taken_over(local: ShellDisks, tmp_path: Path) -> None:
    disk = tmp_path / "vm.raw"
    (tmp_path / "vm.raw.hostler").write_text("op-1")
    await local.prepare(HERE, image(disk), "op-2")
    await local.discard(HERE, str(disk), "op-1")
    assert names(tmp_path) == ["vm.raw", "vm.raw.hostler"]
    await local.discard(HERE, str(disk), "op-2")
    assert names(tmp_path) == []


async def test_the_old_copy_is_renamed_and_never_lost(local: ShellDisks, tmp_path: Path) -> None:
    disk = tmp_path / "vm.raw"
    for content in (b"first", b"second"):
        disk.write_bytes(content)
        for _ in range(2):
            await local.retire(HERE, str(disk))
            assert names(tmp_path) == ["vm.raw.moved"]
            assert (tmp_path / "vm.raw.moved").read_bytes() == content
    await local.prepare(HERE, image(disk), "op-1")
    await local.retire(HERE, str(disk))  # late: the VM is on its way back
    assert names(tmp_path) == ["vm.raw", "vm.raw.hostler", "vm.raw.moved"]


async def test_a_disk_that_is_open_is_not_touched(local: ShellDisks, tmp_path: Path) -> None:
    disk = tmp_path / "vm.raw"
    await local.prepare(HERE, image(disk), "op-1")
    with disk.open("rb"):
        with pytest.raises(DiskInUse, match="is in use") as caught:
            await local.discard(HERE, str(disk), "op-1")
        await local.keep(HERE, str(disk))
        with pytest.raises(DiskInUse):
            await local.retire(HERE, str(disk))
    assert caught.value.retryable
    assert names(tmp_path) == ["vm.raw"]


async def test_what_the_host_lacks_is_told(local: ShellDisks, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="no directory"):
        await local.prepare(HERE, image(tmp_path / "none/vm.raw"), "op-1")
    with pytest.raises(CommandFailed, match="local-disk prepare"):
        await local.prepare(HERE, DiskImage("vda", str(tmp_path / "a"), "none-such", MIB), "op-1")
    await local.discard(HERE, str(tmp_path / "a"), "op-1")
    assert names(tmp_path) == []


@pytest.mark.parametrize("owner", ["", " ", "a\nb"])
async def test_an_owner_is_one_line(local: ShellDisks, tmp_path: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        await local.prepare(HERE, image(tmp_path / "vm.raw"), owner)


def killed_scripts() -> list[str]:
    """The script, killed before each of the commands of its actions."""
    lines = SCRIPT.read_text().splitlines()
    first = lines.index("case $action in")
    places = [
        number
        for number, line in enumerate(lines[first:], first)
        if line.startswith("    ") and line.split()[0] not in ("fi", "raw)", "*)", "esac", ";;")
    ]
    return ["\n".join([*lines[:at], "kill -KILL $$", *lines[at:]]) for at in places]


def test_there_are_steps_to_be_killed_at() -> None:
    assert len(killed_scripts()) > 25


@pytest.mark.parametrize("script", killed_scripts())
async def test_killed_between_any_two_steps_and_done_again(
    local: ShellDisks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    real, disk = SCRIPT.read_text(), tmp_path / "vm.raw"

    async def killed_once(action: Callable[[], Coroutine[None, None, None]]) -> None:
        monkeypatch.setattr(disks, "_script", lambda: script)
        (error,) = await asyncio.gather(action(), return_exceptions=True)
        monkeypatch.setattr(disks, "_script", lambda: real)
        if error is not None:
            assert isinstance(error, CommandFailed)
            assert error.details["exit_status"] == -signal.SIGKILL

    prepare = functools.partial(local.prepare, HERE, image(disk), "op-1")
    for end in (
        functools.partial(local.discard, HERE, str(disk), "op-1"),
        functools.partial(local.keep, HERE, str(disk)),
    ):
        await killed_once(prepare)
        # Whatever is there can be told from a disk of somebody's, and is whole.
        assert not disk.exists() or (tmp_path / "vm.raw.hostler").read_text() == "op-1"
        assert not disk.exists() or disk.stat().st_size == MIB
        await prepare()
        assert disk.stat().st_size == MIB
        await killed_once(end)
        await end()
    assert names(tmp_path) == ["vm.raw"]
    disk.write_bytes(b"the VM's")
    retire = functools.partial(local.retire, HERE, str(disk))
    await killed_once(retire)
    (name,) = names(tmp_path)
    assert (tmp_path / name).read_bytes() == b"the VM's"
    await retire()
    assert names(tmp_path) == ["vm.raw.moved"]
    await prepare()
    await local.discard(HERE, str(disk), "op-1")
    assert names(tmp_path) == ["vm.raw.moved"]


@pytest.fixture
def shell_disks(shell: AsyncSshShell) -> ShellDisks:
    return ShellDisks(shell)


@pytest.fixture
async def vm_with_disk(lab: Lab) -> AsyncIterator[str]:
    """The UUID of the guest drv-vm, running at SOURCE: it writes its ticks to its disk, which has a
    pattern further on."""
    await lab.remove_guest("drv-vm")
    pattern = f"dd if=/dev/urandom of={DISK} bs=1M count=8 seek=4 status=none"
    await lab.exec(SOURCE, "sh", "-c", pattern)
    yield await lab.start_guest("drv-vm", on=SOURCE, disk_local=True)
    await lab.remove_guest("drv-vm")
    for host in (SOURCE, DESTINATION):
        await lab.exec(host, "sh", "-c", f"rm -f {FOLDER}/drv-*")


async def files(lab: Lab, host: str) -> list[str]:
    listed = (await lab.exec(host, "ls", FOLDER)).stdout.split()
    return [name for name in listed if name.startswith("drv-")]


async def pattern_of(lab: Lab, host: str, path: str) -> str:
    read = f"dd if={path} bs=1M skip=4 status=none | sha256sum"
    return (await lab.exec(host, "sh", "-c", read)).stdout


async def last_written(lab: Lab, host: str, path: str) -> int:
    """The tick that the guest has on its disk."""
    text = (await lab.exec(host, "head", "-c", "32", path)).stdout
    return int(text.split()[1])


async def until_closed(action: Callable[[], Coroutine[None, None, None]]) -> None:
    while True:
        try:
            await action()
        except DiskInUse:
            await asyncio.sleep(0.1)
            continue
        return


async def test_a_vm_moves_with_its_disk_and_back(
    hypervisor: LibvirtHypervisor,
    shell_disks: ShellDisks,
    source: HostAccess,
    destination: HostAccess,
    vm_with_disk: str,
    lab: Lab,
) -> None:
    before = await pattern_of(lab, SOURCE, DISK)
    for here, there in ((source, destination), (destination, source)):
        vm = await hypervisor.find_vm(here, vm_with_disk)
        assert vm is not None
        (disk,) = await hypervisor.disks(here, vm_with_disk, vm.local_disks)
        assert disk == DiskImage("vda", DISK, "raw", 32 * MIB)
        await shell_disks.prepare(there, disk, "op")
        with pytest.raises(DiskInUse):  # the VM has not moved yet
            await shell_disks.retire(here, DISK)
        options = MigrationOptions(there.address, copy_disks=("vda",))
        await hypervisor.migrate(here, there, vm_with_disk, options, print)
        with pytest.raises(DiskInUse):
            await shell_disks.discard(there, DISK, "op")
        await shell_disks.keep(there, DISK)
        await until_closed(functools.partial(shell_disks.retire, here, DISK))
        assert "drv-vm.raw" not in await files(lab, here.name)
        left_behind = await last_written(lab, here.name, f"{DISK}.moved")
        await lab.ticks_on("drv-vm")
        assert await last_written(lab, there.name, DISK) > left_behind
        assert await pattern_of(lab, there.name, DISK) == before
    assert await files(lab, SOURCE) == ["drv-vm.raw", "drv-vm.raw.moved"]
    assert await files(lab, DESTINATION) == ["drv-vm.raw.moved"]
    ticks = lab.ticks("drv-vm")
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


async def test_a_copy_that_ended_half_way_is_discarded_or_done_again(
    hypervisor: LibvirtHypervisor,
    shell_disks: ShellDisks,
    source: HostAccess,
    destination: HostAccess,
    vm_with_disk: str,
    lab: Lab,
) -> None:
    (disk,) = await hypervisor.disks(source, vm_with_disk, [DISK])
    discard = functools.partial(shell_disks.discard, destination, DISK, "op")
    slowly = MigrationOptions(destination.address, bandwidth_mib_s=1, copy_disks=("vda",))
    for _ in range(2):
        await shell_disks.prepare(destination, disk, "op")
        seen: asyncio.Queue[MigrationProgress] = asyncio.Queue()
        migration = asyncio.create_task(
            hypervisor.migrate(source, destination, vm_with_disk, slowly, seen.put_nowait)
        )
        while (await seen.get()).remaining_mib == 0:  # before QEMU has counted
            pass
        migration.cancel()
        await asyncio.wait([migration])
        await until_closed(discard)
        assert await files(lab, DESTINATION) == []
    # What an earlier copy wrote where the source has nothing must not be seen in the next one.
    await shell_disks.prepare(destination, disk, "op")
    garbage = f"dd if=/dev/urandom of={DISK} bs=1M count=32 conv=notrunc status=none"
    await lab.exec(DESTINATION, "sh", "-c", garbage)
    await shell_disks.prepare(destination, disk, "op")
    options = MigrationOptions(destination.address, copy_disks=("vda",))
    await hypervisor.migrate(source, destination, vm_with_disk, options, print)
    await lab.ticks_on("drv-vm")
    assert await pattern_of(lab, DESTINATION, DISK) == await pattern_of(lab, SOURCE, DISK)


async def test_a_qcow2_disk_moves_too(
    hypervisor: LibvirtHypervisor,
    shell_disks: ShellDisks,
    source: HostAccess,
    destination: HostAccess,
    vm: str,
    lab: Lab,
) -> None:
    path, read = f"{FOLDER}/drv-vm.qcow2", f"{FOLDER}/drv-read.raw"
    attach = ("attach-disk", "drv-vm", path, "vdb", "--persistent", "--cache", "none")
    qcow2 = ("--driver", "qemu", "--subdriver", "qcow2")
    try:
        await lab.exec(SOURCE, "qemu-img", "create", "-q", "-f", "qcow2", path, "24M")
        await lab.exec(SOURCE, "qemu-io", "-f", "qcow2", "-c", "write -P 0xa5 3M 5M", path)
        await lab.virsh(SOURCE, *attach, *qcow2)
        (disk,) = await hypervisor.disks(source, vm, [path])
        assert disk == DiskImage("vdb", path, "qcow2", 24 * MIB)
        await shell_disks.prepare(destination, disk, "op")
        options = MigrationOptions(destination.address, copy_disks=("vdb",))
        await hypervisor.migrate(source, destination, vm, options, print)
        await lab.ticks_on("drv-vm")
        await lab.remove_guest("drv-vm")
        for host in (SOURCE, DESTINATION):
            await lab.exec(host, "qemu-img", "convert", "-O", "raw", path, read)
        assert await pattern_of(lab, DESTINATION, read) == await pattern_of(lab, SOURCE, read)
        patterned = ("qemu-io", "-f", "qcow2", "-c", "read -P 0xa5 3M 5M", path)
        assert "verification failed" not in (await lab.exec(DESTINATION, *patterned)).stdout
    finally:
        for host in (SOURCE, DESTINATION):
            await lab.exec(host, "rm", "-f", path, f"{path}.hostler", read)


async def test_only_the_disks_that_are_asked_for_must_be_fit_to_be_copied(
    hypervisor: LibvirtHypervisor, source: HostAccess, vm: str, lab: Lab
) -> None:
    base, top = f"{FOLDER}/drv-base.qcow2", f"{FOLDER}/drv-top.qcow2"
    attach = ("attach-disk", "drv-vm", top, "vdb", "--driver", "qemu", "--subdriver", "qcow2")
    create = ("qemu-img", "create", "-q", "-f", "qcow2")
    try:
        await lab.exec(SOURCE, *create, base, "8M")
        await lab.exec(SOURCE, *create, "-F", "qcow2", "-b", base, top)
        await lab.virsh(SOURCE, *attach)
        own = await hypervisor.find_vm(source, vm)
        assert own is not None
        assert (own.state, own.local_disks) == (VmState.RUNNING, (top, base))
        assert await hypervisor.disks(source, vm, ["/elsewhere.raw"]) == []
        with pytest.raises(HypervisorFailed, match=r"vdb of drv-vm .*a backing file"):
            await hypervisor.disks(source, vm, own.local_disks)
    finally:
        await lab.remove_guest("drv-vm")
        await lab.exec(SOURCE, "rm", "-f", base, top)
