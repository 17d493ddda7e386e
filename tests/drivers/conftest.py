"""The real lab, and drivers on it."""

from collections.abc import AsyncIterator

import pytest

from drivers.fence import HookFence
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess
from drivers.ssh import AsyncSshShell
from tests.lab import Lab

SOURCE, DESTINATION = "kvm-2", "kvm-3"


@pytest.fixture
async def shell() -> AsyncIterator[AsyncSshShell]:
    shell = AsyncSshShell(keepalive_interval=1, keepalive_count=2)
    yield shell
    await shell.close()


@pytest.fixture
async def hypervisor(shell: AsyncSshShell) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(shell)
    yield hypervisor
    await hypervisor.close()


@pytest.fixture
async def impatient(shell: AsyncSshShell) -> AsyncIterator[LibvirtHypervisor]:
    """Gives up on a host soon."""
    hypervisor = LibvirtHypervisor(
        shell, call_timeout=3, abort_timeout=3, keepalive_interval=1, keepalive_count=2
    )
    yield hypervisor
    await hypervisor.close()


@pytest.fixture
def fence(shell: AsyncSshShell) -> HookFence:
    return HookFence(shell)


@pytest.fixture
async def source(lab: Lab) -> HostAccess:
    return await lab.access(SOURCE)


@pytest.fixture
async def destination(lab: Lab) -> HostAccess:
    return await lab.access(DESTINATION)


@pytest.fixture
async def vm(lab: Lab) -> AsyncIterator[str]:
    """The UUID of the guest drv-vm, running at SOURCE."""
    await lab.remove_guest("drv-vm")
    yield await lab.start_guest("drv-vm", on=SOURCE)
    await lab.remove_guest("drv-vm")


@pytest.fixture
async def stopped_libvirtd(lab: Lab) -> AsyncIterator[HostAccess]:
    """DESTINATION, with a libvirtd that hangs."""
    kill = ("systemctl", "kill", "--kill-who=main")
    access = await lab.access(DESTINATION)
    await lab.exec(DESTINATION, *kill, "--signal=STOP", "libvirtd")
    yield access
    await lab.exec(DESTINATION, *kill, "--signal=CONT", "libvirtd")
