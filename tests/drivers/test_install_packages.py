"""The script install-packages, with package managers that say what they were asked for."""

import importlib.resources
from pathlib import Path

import pytest

from tests.machine import Machine

SCRIPT = importlib.resources.files("drivers.hooks").joinpath("install-packages").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "machine")
    machine.program("uname", "echo x86_64")
    machine.program("systemctl", f'echo "systemctl $*" >>{tmp_path}/log')
    machine.program("dpkg", f'echo "dpkg $*" >>{tmp_path}/log')
    return machine


async def install(machine: Machine) -> tuple[int, str, str]:
    status, _, stderr = await machine.run(SCRIPT)
    log = machine.root.parent / "log"
    return status, log.read_text() if log.exists() else "", stderr.decode()


def manager(machine: Machine, name: str, status: int = 0) -> None:
    machine.program(name, f'echo "{name} $*" >>{machine.root.parent}/log; exit {status}')


async def test_apt(machine: Machine) -> None:
    manager(machine, "apt-get")
    for _ in range(2):
        status, log, _ = await install(machine)
        assert status == 0
    lines = log.splitlines()[:5]
    assert lines[0].startswith("dpkg --force-confdef")
    assert lines[1].endswith(" update")
    assert lines[2].endswith(
        "install libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils"
    )
    assert lines[3:] == ["systemctl enable libvirtd", "systemctl start libvirtd"]


@pytest.mark.parametrize(
    ("machine_type", "package"), [("aarch64", "arm"), ("ppc64le", "ppc"), ("riscv64", "misc")]
)
async def test_the_emulator_is_that_of_the_architecture(
    machine: Machine, machine_type: str, package: str
) -> None:
    manager(machine, "apt-get")
    machine.program("uname", f"echo {machine_type}")
    _, log, _ = await install(machine)
    assert f" qemu-system-{package} " in log


async def test_dnf_leaves_the_one_daemon(machine: Machine) -> None:
    manager(machine, "dnf")
    status, log, _ = await install(machine)
    assert status == 0
    assert "qemu-kvm" in log
    for unit in (
        "virtqemud.socket",
        "virtqemud.service",
        "virtproxyd.socket",
        "virtproxyd.service",
    ):
        assert f"systemctl disable --now {unit}\n" in log
    assert log.splitlines()[-1] == "systemctl start libvirtd"


@pytest.mark.parametrize("name", ["apt-get", "dnf"])
async def test_a_failure_starts_nothing(machine: Machine, name: str) -> None:
    manager(machine, name, status=7)
    status, log, _ = await install(machine)
    assert status == 7
    assert "systemctl" not in log


async def test_a_host_with_neither(machine: Machine) -> None:
    status, _, stderr = await install(machine)
    assert status == 69
    assert "knows apt-get and dnf" in stderr
