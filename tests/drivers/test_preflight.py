"""ShellInspector, and its script, on machines that lack this and that."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contracts.preflight import PackageManager, ServiceState
from drivers.errors import CommandFailed, HostUnreachable, LoginRefused
from drivers.preflight import ShellInspector
from drivers.protocols import HostAccess
from drivers.ssh import AsyncSshShell
from tests.machine import Machine

RUNNING = ServiceState(load="loaded", active="active", enabled="enabled")
ABSENT = ServiceState(load="not-found", active="inactive", enabled="disabled")
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'
SHOWS = """
case "$*" in
--version) echo 'systemd 252 (252.39-1~deb12u1)' ;;
*virtqemud*) exit 3 ;;
show*) printf 'LoadState={load}\\nActiveState={active}\\nUnitFileState=enabled\\n' ;;
esac
"""


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """All that a host needs, but for KVM."""
    machine = Machine(tmp_path / "machine")
    machine.file("/etc/os-release", DEBIAN)
    machine.path("/run/systemd/system").mkdir(parents=True)
    machine.program("systemctl", SHOWS.format(load="loaded", active="active"))
    machine.program("libvirtd", "echo 'libvirtd (libvirt) 9.0.0'")
    machine.program("qemu-system-x86_64", "echo 'QEMU emulator version 7.2.19 (Debian 1:7.2)'")
    machine.program("uname", "echo x86_64")
    for program in ("apt-get", "virsh", "qemu-img", "systemd-run"):
        machine.program(program)
    async with machine.serving():
        yield machine


@pytest.fixture
async def ssh() -> AsyncIterator[AsyncSshShell]:
    shell = AsyncSshShell()
    yield shell
    await shell.close()


async def test_a_host_that_has_everything(machine: Machine, ssh: AsyncSshShell) -> None:
    report = await ShellInspector(ssh).inspect(machine.access())
    assert report.model_dump(exclude={"disks", "uid", "uuid"}) == {
        "skew_s": 0,
        "systemd": "252",
        "operating_system": "Debian GNU/Linux 12 (bookworm)",
        "package_manager": PackageManager.APT,
        "daemon": RUNNING.model_dump(),
        "socket": RUNNING.model_dump(),
        "modular": False,
        "listening": False,
        "libvirt_version": "9.0.0",
        "qemu_version": "7.2.19",
        "kvm": False,
        "epoch": 0,
        "told": 0,
        "closed": None,
        "damaged": (),
        "missing_programs": (),
    }
    assert [disk.path for disk in report.disks] == [
        "/etc",
        str(machine.home),
        "/var/lib",
    ]
    assert all(disk.free_mib >= 0 and disk.mount.startswith("/") for disk in report.disks)


async def test_a_host_that_has_nothing(machine: Machine, ssh: AsyncSshShell) -> None:
    """It goes on to its end whatever is missing."""
    machine.path("/etc/os-release").unlink()
    machine.path("/run/systemd/system").rmdir()
    for program in ("systemctl", "libvirtd", "qemu-system-x86_64", "virsh", "flock", "df", "awk"):
        machine.without(program)
    report = await ShellInspector(ssh).inspect(machine.access())
    assert (report.systemd, report.operating_system) == (None, "unknown")
    assert (report.libvirt_version, report.qemu_version) == (None, None)
    assert (report.daemon, report.socket) == (ABSENT, ABSENT)
    assert report.package_manager is None
    assert report.missing_programs == ("awk", "flock", "systemctl", "virsh")
    assert report.disks == ()


async def test_the_uuid_is_what_libvirtd_would_take(machine: Machine, ssh: AsyncSshShell) -> None:
    uuid = "5AB1F0C4-0000-4000-8000-000000000001"
    machine.file(
        "/etc/libvirt/libvirtd.conf", f'#host_uuid = "no"\nhost_uuid = "{uuid}"\nx = "y"\n'
    )
    assert (await ShellInspector(ssh).inspect(machine.access())).uuid == uuid.lower()
    machine.file("/etc/libvirt/libvirtd.conf", 'host_uuid_source = "machine-id"\n')
    machine.file("/etc/machine-id", "5ab1f0c4000040008000000000000001\n")
    assert (await ShellInspector(ssh).inspect(machine.access())).uuid == uuid.lower()


async def test_what_a_hostler_has_left(machine: Machine, ssh: AsyncSshShell) -> None:
    machine.file("/etc/hostler/epoch", "41\n")
    machine.file("/etc/hostler/told", "7\n")
    machine.file("/etc/hostler/closed", "zone zone-9 is Disabled\n")
    report = await ShellInspector(ssh).inspect(machine.access())
    assert (report.epoch, report.told, report.closed) == (41, 7, "zone zone-9 is Disabled")
    assert report.damaged == ()


@pytest.mark.parametrize("damage", ["", "\n", "4x", "-1", "41\nclock 9"])
async def test_a_counter_without_a_number(
    machine: Machine, ssh: AsyncSshShell, damage: str
) -> None:
    machine.file("/etc/hostler/epoch", damage)
    machine.file("/etc/hostler/told", damage)
    report = await ShellInspector(ssh).inspect(machine.access())
    assert (report.epoch, report.told, report.damaged) == (0, 0, ("epoch", "told"))
    assert report.skew_s == 0


async def test_units_as_systemd_tells_them(machine: Machine, ssh: AsyncSshShell) -> None:
    machine.program("systemctl", SHOWS.format(load="masked", active="inactive"))
    masked = ServiceState(load="masked", active="inactive", enabled="enabled")
    report = await ShellInspector(ssh).inspect(machine.access())
    assert (report.daemon, report.socket, report.modular) == (masked, masked, False)
    machine.program("systemctl", "exit 0")
    assert (await ShellInspector(ssh).inspect(machine.access())).modular


@pytest.mark.parametrize(
    ("release", "manager", "wanted"),
    [
        ("ID=ubuntu\nID_LIKE=debian\n", "apt-get", PackageManager.APT),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf", PackageManager.DNF),
        ("ID=fedora\n", "dnf", PackageManager.DNF),
        ("ID=fedora\n", "yum", None),
        ("ID=arch\n", "pacman", None),
    ],
)
async def test_distributions(
    machine: Machine,
    ssh: AsyncSshShell,
    release: str,
    manager: str,
    wanted: PackageManager | None,
) -> None:
    machine.without("apt-get")
    machine.program(manager)
    machine.file("/etc/os-release", release)
    assert (await ShellInspector(ssh).inspect(machine.access())).package_manager is wanted


@pytest.mark.parametrize(
    ("offset", "at_least", "at_most"), [(3600, 3590, 3600), (-3600, -3600, -3590), (0, 0, 0)]
)
async def test_the_clock_is_compared_with_ours(
    machine: Machine, ssh: AsyncSshShell, offset: int, at_least: float, at_most: float
) -> None:
    inspector = ShellInspector(ssh, clock=lambda: time.time() - offset)
    skew = (await inspector.inspect(machine.access())).skew_s
    assert at_least <= skew <= at_most


@pytest.mark.parametrize(
    ("program", "says", "first_line"),
    [
        ("date", "echo tomorrow", "clock tomorrow"),
        ("id", "echo root", "clock "),
        ("systemctl", "echo LoadState=a word too many", "clock "),
    ],
)
async def test_an_answer_that_can_not_be_read(
    machine: Machine, ssh: AsyncSshShell, program: str, says: str, first_line: str
) -> None:
    machine.program(program, says)
    with pytest.raises(CommandFailed, match=f"can't be read .* its first line is '{first_line}"):
        await ShellInspector(ssh).inspect(machine.access())


async def test_a_shell_that_says_nothing(machine: Machine, ssh: AsyncSshShell) -> None:
    machine.without("date")
    machine.without("id")
    with pytest.raises(CommandFailed, match="can't be read"):
        await ShellInspector(ssh).inspect(machine.access())


async def test_nothing_is_changed(machine: Machine, ssh: AsyncSshShell) -> None:
    before = sorted(machine.root.rglob("*"))
    await ShellInspector(ssh).inspect(machine.access())
    assert sorted(machine.root.rglob("*")) == before


async def test_a_login_that_is_refused(machine: Machine, ssh: AsyncSshShell) -> None:
    access = machine.access()
    wrong = HostAccess(
        name=access.name,
        address=access.address,
        port=access.port,
        user="root",
        host_key=access.host_key,
        password="not-it-3141",
    )
    with pytest.raises(LoginRefused):
        await ShellInspector(ssh).log_in(wrong)
    with pytest.raises(HostUnreachable):
        await ShellInspector(ssh).log_in(
            HostAccess("kvm-9", "127.0.0.1", 1, "root", access.host_key, "x")
        )
