"""LibvirtHypervisor on lab hosts: looking, probing, hanging."""

import asyncio
import threading

import pytest

from contracts.errors import Unavailable
from contracts.vms import Vm, VmState
from drivers.errors import CallTimedOut, HypervisorFailed, VmNotFound
from drivers.fence import HookFence
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess
from tests.drivers.conftest import DESTINATION, SOURCE
from tests.lab import Lab

NOBODY = "00000000-0000-4000-8000-000000000000"


async def found(hypervisor: LibvirtHypervisor, access: HostAccess, uuid: str) -> Vm:
    vm = await hypervisor.find_vm(access, uuid)
    assert vm is not None
    return vm


async def test_facts(hypervisor: LibvirtHypervisor, source: HostAccess, lab: Lab) -> None:
    facts = await hypervisor.facts(source)
    capabilities = (await lab.virsh(SOURCE, "capabilities")).stdout
    assert f"<uuid>{facts.uuid}</uuid>" in capabilities
    assert (facts.architecture, facts.libvirt_version) == ("x86_64", "9.0.0")
    assert facts.qemu_version.startswith("7.2.")
    assert facts.operating_system == "Debian GNU/Linux 12 (bookworm)"
    assert facts.cpu_model
    assert facts.cpus >= 1
    assert facts.memory_mib > 1000


async def test_list_find_and_capacity(
    hypervisor: LibvirtHypervisor, source: HostAccess, vm: str, lab: Lab
) -> None:
    vms = await hypervisor.list_vms(source)
    assert [each.name for each in vms] == sorted(each.name for each in vms)
    own = next(each for each in vms if each.uuid == vm)
    assert own == await hypervisor.find_vm(source, vm)
    assert (own.name, own.state, own.memory_mib, own.vcpus) == ("drv-vm", VmState.RUNNING, 96, 1)
    assert (own.virt_type, own.machine, own.persistent) == ("qemu", "pc-i440fx-7.2", True)
    assert (own.host_devices, own.local_disks) == ((), ())
    assert "qemu64" in (own.cpu_xml or "")
    capacity = await hypervisor.capacity(source)
    assert capacity.memory_used_mib == sum(each.memory_mib for each in vms)
    assert capacity.cpus_used == sum(each.vcpus for each in vms)
    await lab.virsh(SOURCE, "suspend", "drv-vm")
    paused = await found(hypervisor, source, vm)
    assert (paused.state, paused.paused_by_migration) == (VmState.PAUSED, False)
    await hypervisor.resume(source, vm)
    await lab.ticks_on("drv-vm")
    await hypervisor.resume(source, vm)  # again: nothing to do
    await lab.virsh(SOURCE, "destroy", "drv-vm")
    assert vm not in [each.uuid for each in await hypervisor.list_vms(source)]
    assert (await found(hypervisor, source, vm)).state is VmState.SHUT_OFF


async def test_a_vm_that_is_not_there(hypervisor: LibvirtHypervisor, source: HostAccess) -> None:
    assert await hypervisor.find_vm(source, NOBODY) is None
    assert await hypervisor.migration_progress(source, NOBODY) is None
    assert not await hypervisor.abort_migration(source, NOBODY)
    await hypervisor.discard_migrated(source, NOBODY)
    with pytest.raises(VmNotFound):
        await hypervisor.resume(source, NOBODY)
    with pytest.raises(VmNotFound):
        await hypervisor.shut_down(source, NOBODY)


async def test_the_power_button_ends_a_vm(
    hypervisor: LibvirtHypervisor, source: HostAccess, vm: str
) -> None:
    while (await found(hypervisor, source, vm)).state is not VmState.SHUT_OFF:
        await hypervisor.shut_down(source, vm)
        await asyncio.sleep(0.5)
    await hypervisor.shut_down(source, vm)


async def test_only_leftovers_are_discarded(
    hypervisor: LibvirtHypervisor, source: HostAccess, vm: str, lab: Lab
) -> None:
    for prepare in ("resume", "suspend"):
        await lab.virsh(SOURCE, prepare, "drv-vm", check=False)
        with pytest.raises(HypervisorFailed, match="no leftover"):
            await hypervisor.discard_migrated(source, vm)
    await lab.virsh(SOURCE, "resume", "drv-vm")
    await lab.ticks_on("drv-vm")
    await lab.virsh(SOURCE, "destroy", "drv-vm")
    await hypervisor.discard_migrated(source, vm)
    assert await hypervisor.find_vm(source, vm) is None


async def test_cpus_are_compared(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str
) -> None:
    own = await found(hypervisor, source, vm)
    assert await hypervisor.cpu_incompatibility(destination, own) is None
    demanding = "<cpu match='exact'><model>qemu64</model><feature name='sse4a' policy='require'/>"
    asked = own.model_copy(update={"cpu_xml": f"{demanding}<feature name='amx-tile'/></cpu>"})
    assert "amx-tile" in (await hypervisor.cpu_incompatibility(destination, asked) or "")
    with pytest.raises(HypervisorFailed):
        await hypervisor.cpu_incompatibility(
            destination, own.model_copy(update={"cpu_xml": "<cpu><model>none-such</model></cpu>"})
        )


async def test_a_probe_leaves_nothing(
    hypervisor: LibvirtHypervisor, fence: HookFence, destination: HostAccess, lab: Lab
) -> None:
    if (await fence.read(destination)).operation is None:
        assert await hypervisor.start_probe(destination) is None
    names = (await lab.virsh(DESTINATION, "list", "--all", "--name")).stdout
    assert "hostler-fence-probe" not in names


async def test_a_restarted_libvirtd_is_found_again(
    hypervisor: LibvirtHypervisor, fence: HookFence, destination: HostAccess
) -> None:
    await hypervisor.list_vms(destination)
    await fence.restart_libvirtd(destination)
    while True:
        try:
            await hypervisor.list_vms(destination)
        except Unavailable:
            continue
        break


async def test_a_hung_libvirtd_holds_up_nobody_else(
    impatient: LibvirtHypervisor,
    source: HostAccess,
    destination: HostAccess,
    stopped_libvirtd: HostAccess,
    lab: Lab,
) -> None:
    hung = [asyncio.create_task(impatient.list_vms(stopped_libvirtd)) for _ in range(3)]
    for _ in range(3):
        await impatient.list_vms(source)
    assert not any(task.done() for task in hung)
    for task in hung:
        with pytest.raises(CallTimedOut, match=DESTINATION):
            await task
    await lab.exec(DESTINATION, "systemctl", "kill", "--kill-who=main", "-s", "CONT", "libvirtd")
    await impatient.list_vms(destination)


async def test_a_libvirtd_that_hangs_later_is_noticed_and_found_again(
    impatient: LibvirtHypervisor, destination: HostAccess, lab: Lab
) -> None:
    kill = ("systemctl", "kill", "--kill-who=main", "libvirtd", "--signal")
    await impatient.list_vms(destination)
    await lab.exec(DESTINATION, *kill, "STOP")
    try:
        cancelled = asyncio.create_task(impatient.list_vms(destination))
        await asyncio.sleep(0.1)
        cancelled.cancel()  # its thread must come free nevertheless
        with pytest.raises(Unavailable):
            await impatient.list_vms(destination)
    finally:
        await lab.exec(DESTINATION, *kill, "CONT")
    while True:
        try:
            await impatient.list_vms(destination)
        except Unavailable:
            continue
        break


async def test_forget_and_close_free_what_they_opened(
    hypervisor: LibvirtHypervisor, source: HostAccess
) -> None:
    await hypervisor.list_vms(source)
    await hypervisor.forget(SOURCE)
    await hypervisor.list_vms(source)
    await hypervisor.close()
    while any(thread.name.startswith(f"libvirt-{SOURCE}") for thread in threading.enumerate()):
        await asyncio.sleep(0.05)
