"""LibvirtHypervisor on lab hosts: looking, probing, hanging."""

import asyncio
import dataclasses
import threading

import pytest

from contracts.errors import Unavailable
from contracts.vms import Vm, VmState
from drivers.errors import CallTimedOut, HypervisorFailed, MigrationRefused, VmNotFound
from drivers.fence import HookFence
from drivers.libvirt import LibvirtHypervisor
from drivers.protocols import HostAccess, MigrationOptions
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
    assert source.address in facts.addresses
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


async def test_environment(hypervisor: LibvirtHypervisor, source: HostAccess, lab: Lab) -> None:
    network = """<network>
      <name>drv-net</name><forward mode='bridge'/><bridge name='drv-br0'/>
    </network>"""
    await lab.exec(SOURCE, "ip", "link", "add", "drv-br0", "type", "bridge")
    await lab.exec(SOURCE, "ip", "address", "add", "198.18.9.1/24", "dev", "drv-br0")
    await lab.virsh(SOURCE, "net-define", "/dev/stdin", stdin=network)
    try:
        before = await hypervisor.environment(source)
        await lab.exec(SOURCE, "ip", "link", "set", "drv-br0", "up")
        await lab.virsh(SOURCE, "net-start", "drv-net")
        after = await hypervisor.environment(source)
        await lab.virsh(SOURCE, "net-destroy", "drv-net")
        assert (await hypervisor.environment(source)).networks == before.networks
    finally:
        await lab.virsh(SOURCE, "net-undefine", "drv-net")
        await lab.exec(SOURCE, "ip", "link", "delete", "drv-br0")
    assert {"lo", "eth0"} <= before.interfaces
    assert after.interfaces - before.interfaces == {"drv-br0"}
    assert after.networks - before.networks == {"drv-net"}
    assert source.address in before.addresses
    assert set(after.addresses) - set(before.addresses) == {"198.18.9.1"}
    assert "default" in before.pools
    online = (await lab.exec(SOURCE, "cat", "/sys/devices/system/cpu/online")).stdout.strip()
    assert before.cpus == set(range(int(online.removeprefix("0-")) + 1))
    sizes = (await lab.exec(SOURCE, "ls", "/sys/kernel/mm/hugepages")).stdout.split()
    for size in sizes:
        free = await lab.exec(SOURCE, "cat", f"/sys/kernel/mm/hugepages/{size}/free_hugepages")
        kib = int(size.removeprefix("hugepages-").removesuffix("kB"))
        assert before.free_pages[kib] == int(free.stdout)
    assert len(before.free_pages) == len(sizes)


async def test_missing_files(hypervisor: LibvirtHypervisor, source: HostAccess, lab: Lab) -> None:
    odd = "/var/lib/libvirt/images/drv \"$(touch x)\" '*'\n.iso"
    there = {"/etc/passwd", "/var/lib/libvirt/images", odd, "default/drv-volume.iso"}
    gone = {"/nowhere", f"{odd}.gone", "/etc/passwd/x", "default/none", "no-pool/x"}
    await lab.exec(SOURCE, "touch", odd, "/var/lib/libvirt/images/drv-volume.iso")
    try:
        await lab.virsh(SOURCE, "pool-refresh", "default")
        assert await hypervisor.missing_files(source, there | gone) == gone
        assert await hypervisor.missing_files(source, there) == frozenset()
        assert await hypervisor.missing_files(source, ()) == frozenset()
    finally:
        await lab.exec(SOURCE, "rm", "-f", odd, "/var/lib/libvirt/images/drv-volume.iso")


async def test_what_the_host_knows_of_a_vm_beside_its_xml(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess, vm: str, lab: Lab
) -> None:
    await lab.virsh(SOURCE, "suspend", "drv-vm")
    assert (await found(hypervisor, source, vm)).state_reason == "user"
    await lab.virsh(SOURCE, "resume", "drv-vm")
    own = await found(hypervisor, source, vm)
    assert (own.state_reason, own.snapshots) == ("", 0)
    snapshot = "<domainsnapshot><name>s</name><state>running</state>{}</domainsnapshot>"
    xml = (await lab.virsh(SOURCE, "dumpxml", "drv-vm")).stdout
    create = ("snapshot-create", "drv-vm", "--redefine", "/dev/stdin")
    await lab.virsh(SOURCE, *create, stdin=snapshot.format(f"<creationTime>1</creationTime>{xml}"))
    assert (await found(hypervisor, source, vm)).snapshots == 1
    options = MigrationOptions(destination.address)
    with pytest.raises(MigrationRefused, match="snapshot"):
        await hypervisor.migrate(source, destination, vm, options, print)


async def test_a_vm_that_is_not_there(hypervisor: LibvirtHypervisor, source: HostAccess) -> None:
    assert await hypervisor.find_vm(source, NOBODY) is None
    assert await hypervisor.migration_progress(source, NOBODY) is None
    assert not await hypervisor.abort_migration(source, NOBODY)
    await hypervisor.discard_migrated(source, NOBODY)
    with pytest.raises(VmNotFound):
        await hypervisor.resume(source, NOBODY)
    with pytest.raises(VmNotFound):
        await hypervisor.shut_down(source, NOBODY)
    with pytest.raises(VmNotFound):
        await hypervisor.start(source, NOBODY)
    with pytest.raises(VmNotFound):
        await hypervisor.suspend(source, NOBODY)
    with pytest.raises(VmNotFound):
        await hypervisor.disks(source, NOBODY, ())


async def test_the_power_button_ends_a_vm_and_it_can_be_started_again(
    hypervisor: LibvirtHypervisor, source: HostAccess, vm: str, lab: Lab
) -> None:
    while (await found(hypervisor, source, vm)).state is not VmState.SHUT_OFF:
        await hypervisor.shut_down(source, vm)
        await asyncio.sleep(0.5)
    await hypervisor.shut_down(source, vm)
    await hypervisor.start(source, vm)
    started = len(lab.ticks("drv-vm"))
    while len(lab.ticks("drv-vm")) == started:
        await asyncio.sleep(0.1)
    await hypervisor.start(source, vm)  # again: nothing to do
    await lab.ticks_on("drv-vm")
    assert lab.ticks("drv-vm").count(1) == 2


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


async def test_cpus_of_hosts_are_compared(
    hypervisor: LibvirtHypervisor, source: HostAccess, destination: HostAccess
) -> None:
    cpu = await hypervisor.host_cpu(source)
    assert cpu is not None
    assert (cpu.architecture, cpu.virt_type) == ("x86_64", "qemu")
    # They are one machine.
    assert await hypervisor.cpu_shortfall(destination, cpu) is None
    asked = cpu.xml.replace("</cpu>", "<feature policy='require' name='amx-tile'/></cpu>")
    more = dataclasses.replace(cpu, xml=asked)
    assert "amx-tile" in (await hypervisor.cpu_shortfall(destination, more) or "")


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
