"""ShellTraces: what an addition has put on a host goes, and nothing else."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from drivers.errors import EpochRefused
from drivers.fence import HookFence
from drivers.ssh import AsyncSshShell
from drivers.traces import ShellTraces
from tests.machine import Machine

IDLE = 'case "$1" in show) echo inactive ;; esac'


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / "machine")
    machine.program("systemctl", IDLE)
    machine.path("/etc/libvirt").mkdir(parents=True)
    machine.path("/var/lib").mkdir(parents=True)
    async with machine.serving():
        yield machine


@pytest.fixture
async def ssh() -> AsyncIterator[AsyncSshShell]:
    shell = AsyncSshShell()
    yield shell
    await shell.close()


@pytest.fixture
def traces(ssh: AsyncSshShell) -> ShellTraces:
    return ShellTraces(ssh)


def tree(machine: Machine) -> list[str]:
    places = (machine.path("/etc"), machine.path("/var/lib"))
    return sorted(
        str(path.relative_to(machine.root)) for place in places for path in place.rglob("*")
    )


async def test_nothing_is_left_of_fence_and_job(
    machine: Machine, traces: ShellTraces, ssh: AsyncSshShell
) -> None:
    before = tree(machine)
    fence = HookFence(ssh)
    await fence.install(machine.access(), 3)
    await fence.put_up(machine.access(), "addition/kvm-9", 3)
    for name in ("closed", "belongs", "new", "hook"):
        machine.file(f"/etc/hostler/{name}", "x")
    machine.file("/var/lib/hostler/jobs/packages-1/output", "x")
    machine.file("/var/lib/hostler/jobs/lock")
    for _ in range(2):
        assert await traces.remove(machine.access(), 4, ["packages-1"]) == []
        assert tree(machine) == before


async def test_what_is_not_hostlers_stays(machine: Machine, traces: ShellTraces) -> None:
    theirs = [
        machine.file("/etc/libvirt/hooks/qemu.d/theirs", "x"),
        machine.file("/etc/libvirt/hooks/qemu", "x"),
        machine.file("/etc/hostler/hooks/before", "x"),
        machine.file("/var/lib/hostler/jobs/before-1/output", "x"),
    ]
    machine.file("/etc/libvirt/hooks/qemu.d/hostler", "x")
    machine.file("/etc/hostler/fence", "x")
    await traces.remove(machine.access(), 4, ["packages-1"])
    assert all(path.exists() for path in theirs)
    assert not machine.path("/etc/libvirt/hooks/qemu.d/hostler").exists()
    assert not machine.path("/etc/hostler/fence").exists()


async def test_a_job_that_runs_stays_and_is_named(machine: Machine, traces: ShellTraces) -> None:
    machine.program("systemctl", 'case "$1" in show) echo active ;; esac')
    output = machine.file("/var/lib/hostler/jobs/packages-1/output", "x")
    assert await traces.remove(machine.access(), 4, ["packages-1"]) == ["packages-1"]
    assert output.exists()


async def test_an_operation_that_was_taken_over_takes_nothing_away(
    machine: Machine, traces: ShellTraces
) -> None:
    machine.file("/etc/hostler/epoch", "9\n")
    hook = machine.file("/etc/libvirt/hooks/qemu.d/hostler", "x")
    with pytest.raises(EpochRefused):
        await traces.remove(machine.access(), 4)
    assert hook.exists()
