"""drivers/domain_xml.py: what is read from libvirt's XML and numbers."""

import json

import pytest

from contracts.vms import Vm, VmState
from drivers import domain_xml
from drivers.domain_xml import Capabilities, Disk
from drivers.errors import HypervisorFailed
from drivers.protocols import MigrationProgress

RUNNING, PAUSED, SHUT_OFF, CRASHED = 1, 3, 5, 6

PCI = """
<hostdev mode='subsystem' type='pci' managed='yes'>
  <driver name='vfio'/>
  <source><address domain='0x0000' bus='0x3b' slot='0x10' function='0x2'/></source>
  <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>
</hostdev>"""
USB_BY_ID = """
<hostdev mode='subsystem' type='usb'>
  <source><vendor id='0x46d'/><product id='0xc52b'/><address bus='1' device='4'/></source>
</hostdev>"""
USB_BY_PLACE = """
<hostdev mode='subsystem' type='usb'>
  <source><address bus='2' device='7'/></source>
</hostdev>"""
MDEV = """
<hostdev mode='subsystem' type='mdev' model='vfio-pci'>
  <source><address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source>
</hostdev>"""
SCSI = """
<hostdev mode='subsystem' type='scsi'>
  <source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source>
</hostdev>"""
CHARACTER_DEVICE = """
<hostdev mode='capabilities' type='misc'>
  <source><char>/dev/input/event3</char></source>
</hostdev>"""
NVME = """
<disk type='nvme' device='disk'>
  <source type='pci' managed='yes' namespace='1'>
    <address domain='0x0001' bus='0x01' slot='0x00' function='0x0'/>
  </source>
  <target dev='vde' bus='virtio'/>
</disk>"""
HOSTDEV_INTERFACE = """
<interface type='hostdev' managed='yes'>
  <mac address='52:54:00:6d:90:02'/>
  <source><address type='pci' domain='0x0000' bus='0x04' slot='0x10' function='0x7'/></source>
</interface>"""
BRIDGE_INTERFACE = """
<interface type='bridge'>
  <source bridge='br0'/>
  <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/>
</interface>"""

FILE = """
<disk type='file' device='disk'>
  <source file='/var/lib/libvirt/images/a.qcow2' index='1'/><backingStore/><target dev='vda'/>
</disk>"""
BLOCK = "<disk type='block' device='disk'><source dev='/dev/vg0/a'/><target dev='vdb'/></disk>"
DIRECTORY = "<disk type='dir' device='disk'><source dir='/srv/fat'/><target dev='vdc'/></disk>"
VHOST_USER = """
<disk type='vhostuser' device='disk'>
  <source type='unix' path='/run/spdk/vhost.0'/><target dev='vdd'/>
</disk>"""
VHOST_VDPA = """
<disk type='vhostvdpa' device='disk'>
  <source dev='/dev/vhost-vdpa-0'/><target dev='vdd'/>
</disk>"""
VOLUME = """
<disk type='volume' device='disk'><source pool='fast' volume='a.raw'/><target dev='vdd'/></disk>"""
NBD = """
<disk type='network' device='disk'>
  <source protocol='nbd' name='a'><host name='198.18.0.1' port='10809'/></source>
  <target dev='vda'/>
</disk>"""
CD_ROM = """
<disk type='file' device='cdrom'>
  <source file='/images/install.iso'/><target dev='sda' bus='sata'/><readonly/>
</disk>"""
VOLUME_CD_ROM = """
<disk type='volume' device='cdrom'>
  <source pool='isos' volume='b.iso'/><target dev='sdb'/><readonly/>
</disk>"""
READ_ONLY_FLOPPY = """
<disk type='file' device='floppy'>
  <source file='/images/drivers.img'/><target dev='fda'/><readonly/>
</disk>"""
FLOPPY = """
<disk type='file' device='floppy'><source file='/images/notes.img'/><target dev='fda'/></disk>"""
READ_ONLY_DISK = """
<disk type='block' device='disk'>
  <source dev='/dev/vg0/tools'/><target dev='vdf'/><readonly/>
</disk>"""
NBD_CD_ROM = """
<disk type='network' device='cdrom'>
  <source protocol='nbd' name='a'><host name='198.18.0.1' port='10809'/></source>
  <target dev='sda'/><readonly/>
</disk>"""
EMPTY_CD_ROM = "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"
CHAIN = """
<disk type='file' device='disk'>
  <source file='/images/top.qcow2'/>
  <backingStore type='file'>
    <source file='/images/middle.qcow2'/>
    <backingStore type='block'><source dev='/dev/base'/><backingStore/></backingStore>
  </backingStore>
  <target dev='vda'/>
</disk>"""
LOCAL_BASE_OF_NBD = """
<disk type='network' device='disk'>
  <source protocol='nbd' name='a'><host name='198.18.0.1' port='10809'/></source>
  <backingStore type='file'><source file='/images/base.raw'/><backingStore/></backingStore>
  <target dev='vda'/>
</disk>"""
NBD_BASE_OF_LOCAL = """
<disk type='file' device='disk'>
  <source file='/images/top.qcow2'/>
  <backingStore type='network'>
    <source protocol='nbd' name='b'><host name='198.18.0.1' port='10809'/></source>
  </backingStore>
  <target dev='vda'/>
</disk>"""

CAPABILITIES = """
<capabilities>
  <host>
    <uuid>9b1c2d7e-0000-4000-8000-000000000001</uuid>
    <cpu><arch>x86_64</arch><model>Skylake-Server-IBRS</model></cpu>
  </host>
  <guest><os_type>hvm</os_type><arch name='aarch64'>
    <emulator>/usr/bin/qemu-system-aarch64</emulator><domain type='qemu'/>
  </arch></guest>
  <guest><os_type>hvm</os_type><arch name='x86_64'>
    <emulator>/usr/bin/qemu-system-x86_64</emulator><domain type='qemu'/>{kvm}
  </arch></guest>
</capabilities>"""


def domain(devices: str = "", *, more: str = "", head: str = "<domain type='kvm' id='3'>") -> str:
    return f"""{head}
  <name>vm-1</name>
  <uuid>11dde744-49d1-5cf4-9f31-9509a763ca83</uuid>
  <memory unit='KiB'>98304</memory>
  <currentMemory unit='KiB'>65536</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  {more}
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices>
</domain>"""


def read(xml: str, state: int = RUNNING, reason: int = 1, *, persistent: bool = True) -> Vm:
    return domain_xml.read_vm(xml, state, reason, persistent=persistent)


def test_a_domain() -> None:
    vm = read(domain(more="<cpu mode='custom'><model>qemu64</model></cpu>"), persistent=False)
    assert vm == Vm(
        name="vm-1",
        uuid="11dde744-49d1-5cf4-9f31-9509a763ca83",
        state=VmState.RUNNING,
        memory_mib=96,
        vcpus=4,
        persistent=False,
        architecture="x86_64",
        machine="pc-q35-7.2",
        emulator="/usr/bin/qemu-system-x86_64",
        virt_type="kvm",
        cpu_xml='<cpu mode="custom"><model>qemu64</model></cpu>',
    )
    assert read(domain()).cpu_xml is None
    assert read(domain(head="<domain type='qemu'>")).virt_type == "qemu"


@pytest.mark.parametrize(
    ("device", "label"),
    [
        (PCI, "pci 0000:3b:10.2"),
        (USB_BY_ID, "usb 046d:c52b"),
        (USB_BY_PLACE, "usb bus 2 device 7"),
        (MDEV, "mdev c2177883-f1bb-47f0-914d-32a22e3a8804"),
        (SCSI, "scsi"),
        (CHARACTER_DEVICE, "misc"),
        (NVME, "pci 0001:01:00.0"),
        (HOSTDEV_INTERFACE, "pci 0000:04:10.7"),
        (VHOST_USER, "vhost-user /run/spdk/vhost.0"),
        (VHOST_VDPA, "vdpa /dev/vhost-vdpa-0"),
        (
            "<interface type='vhostuser'><source type='unix' path='/run/ovs/1'/></interface>",
            "vhost-user /run/ovs/1",
        ),
        (
            "<interface type='vdpa'><source dev='/dev/vhost-vdpa-1'/></interface>",
            "vdpa /dev/vhost-vdpa-1",
        ),
        (
            "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
            "tpm /dev/tpm0",
        ),
        (
            "<input type='passthrough'><source evdev='/dev/input/e1'/></input>",
            "input /dev/input/e1",
        ),
        ("<input type='evdev'><source dev='/dev/input/e2'/></input>", "input /dev/input/e2"),
        ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", "serial /dev/ttyS0"),
        (
            "<parallel type='dev'><source path='/dev/parport0'/></parallel>",
            "parallel /dev/parport0",
        ),
        ("<smartcard mode='host'/>", "smartcard host"),
        ("<shmem name='ring'><model type='ivshmem-plain'/></shmem>", "shared memory ring"),
        (
            "<memory model='nvdimm'><source><path>/srv/nvdimm</path></source></memory>",
            "nvdimm /srv/nvdimm",
        ),
    ],
)
def test_a_device_of_the_host(device: str, label: str) -> None:
    vm = read(domain(BRIDGE_INTERFACE + device + NBD))
    assert vm.host_devices == (label,)
    assert vm.local_disks == ()


def test_every_device_of_the_host_is_named() -> None:
    vm = read(domain(PCI + NVME + HOSTDEV_INTERFACE + MDEV))
    assert sorted(vm.host_devices) == [
        "mdev c2177883-f1bb-47f0-914d-32a22e3a8804",
        "pci 0000:04:10.7",
        "pci 0000:3b:10.2",
        "pci 0001:01:00.0",
    ]


def test_encrypted_memory_is_bound_to_the_host() -> None:
    vm = read(domain(more="<launchSecurity type='sev'><policy>0x1</policy></launchSecurity>"))
    assert vm.host_devices == ("memory encryption sev",)


def test_devices_of_the_guests_own_are_none_of_the_host() -> None:
    own = """<tpm><backend type='emulator' version='2.0'/></tpm><input type='tablet'/>
      <serial type='file'><source path='/shared/consoles/vm-1.log'/></serial>
      <serial type='pty'><source path='/dev/pts/1'/></serial><smartcard mode='passthrough'/>
      <memory model='dimm'><target><size unit='KiB'>524288</size></target></memory>"""
    assert read(domain(BRIDGE_INTERFACE + NBD + FILE + own)).host_devices == ()


def test_directories_of_the_host() -> None:
    vm = read(
        domain(
            """<filesystem type='mount'><source dir='/srv/a'/><target dir='a'/></filesystem>
            <filesystem type='mount'>
              <driver type='virtiofs'/><source dir='/srv/b'/><target dir='b'/>
            </filesystem>
            <filesystem type='mount'>
              <driver type='virtiofs'/><source socket='/run/c.sock'/><target dir='c'/>
            </filesystem>
            <filesystem type='mount'><source dir='/srv/a'/><target dir='again'/></filesystem>"""
        )
    )
    assert vm.host_directories == ("/srv/a", "/srv/b", "/run/c.sock")
    assert vm.local_disks == vm.host_devices == ()


def test_interfaces() -> None:
    vm = read(
        domain(
            """<interface type='network'>
              <source network='default' portid='c2177883' bridge='virbr0'/>
            </interface>
            <interface type='direct'><source dev='eth1' mode='bridge'/></interface>
            <interface type='bridge'><source bridge='br1'/></interface>
            <interface type='network'><source network='default'/></interface>
            <interface type='user'/><interface type='ethernet'><target dev='tap0'/></interface>"""
            + BRIDGE_INTERFACE
            + HOSTDEV_INTERFACE
        )
    )
    assert vm.networks == ("default",)
    assert vm.interfaces == ("br1", "br0", "eth1")


@pytest.mark.parametrize(
    ("xml", "cpus"),
    [
        ("", ()),
        ("<cputune><shares>512</shares><vcpusched vcpus='0' scheduler='fifo'/></cputune>", ()),
        ("<cputune><vcpupin vcpu='0' cpuset='3'/><vcpupin vcpu='1' cpuset='1'/></cputune>", (1, 3)),
        ("<cputune><emulatorpin cpuset='0-3,^1,12'/></cputune>", (0, 2, 3, 12)),
        ("<cputune><iothreadpin iothread='1' cpuset='5, 7'/></cputune>", (5, 7)),
        ("<cputune><vcpupin vcpu='0' cpuset='0-3,^1-2'/></cputune>", (0, 3)),
    ],
)
def test_pinned_cpus(xml: str, cpus: tuple[int, ...]) -> None:
    assert read(domain(more=xml)).pinned_cpus == cpus
    both = domain(more=xml).replace("<vcpu ", "<vcpu cpuset='1,9' ")
    assert read(both).pinned_cpus == tuple(sorted({1, 9, *cpus}))


@pytest.mark.parametrize(
    ("xml", "size"),
    [
        ("", None),
        ("<memoryBacking><nosharepages/></memoryBacking>", None),
        ("<memoryBacking><hugepages/></memoryBacking>", 2048),
        ("<memoryBacking><hugepages><page size='2048'/></hugepages></memoryBacking>", 2048),
        (
            "<memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking>",
            1 << 20,
        ),
        (
            """<memoryBacking><hugepages>
              <page size='2' unit='M' nodeset='1'/><page size='1' unit='GiB' nodeset='0,2-3'/>
            </hugepages></memoryBacking>""",
            1 << 20,
        ),
    ],
)
def test_huge_pages(xml: str, size: int | None) -> None:
    assert read(domain(more=xml)).huge_page_kib == size


def test_sizes_of_huge_pages_of_a_host() -> None:
    pages = "<pages unit='KiB' size='{}'/>"
    cpu = "".join(pages.format(size) for size in (4, 1048576, 2048))
    own = f"<capabilities><host><cpu>{cpu}</cpu></host></capabilities>"
    assert domain_xml.huge_page_sizes(own) == [2048, 1048576]
    assert domain_xml.huge_page_sizes("<capabilities><host><cpu/></host></capabilities>") == []


@pytest.mark.parametrize(
    ("disk", "paths"),
    [
        (FILE, ("/var/lib/libvirt/images/a.qcow2",)),
        (BLOCK, ("/dev/vg0/a",)),
        (DIRECTORY, ("/srv/fat",)),
        (VHOST_USER, ()),
        (FLOPPY, ("/images/notes.img",)),
        (CD_ROM + READ_ONLY_FLOPPY + READ_ONLY_DISK, ()),
        (VOLUME, ("fast/a.raw",)),
        (CHAIN, ("/images/top.qcow2", "/images/middle.qcow2", "/dev/base")),
        (LOCAL_BASE_OF_NBD, ("/images/base.raw",)),
        (NBD_BASE_OF_LOCAL, ("/images/top.qcow2",)),
        (
            CHAIN + CHAIN + FILE + FILE,
            (
                "/images/top.qcow2",
                "/images/middle.qcow2",
                "/dev/base",
                "/var/lib/libvirt/images/a.qcow2",
            ),
        ),
        (NBD, ()),
        (EMPTY_CD_ROM, ()),
        ("", ()),
    ],
)
def test_local_disks(disk: str, paths: tuple[str, ...]) -> None:
    assert read(domain(disk)).local_disks == paths


@pytest.mark.parametrize(
    ("disk", "paths"),
    [
        (CD_ROM, ("/images/install.iso",)),
        (VOLUME_CD_ROM, ("isos/b.iso",)),
        (READ_ONLY_FLOPPY, ("/images/drivers.img",)),
        (READ_ONLY_DISK, ("/dev/vg0/tools",)),
        (
            CD_ROM + CHAIN.replace("<target", "<readonly/><target") + CD_ROM,
            ("/images/install.iso", "/images/top.qcow2", "/images/middle.qcow2", "/dev/base"),
        ),
        (NBD_CD_ROM + EMPTY_CD_ROM + FILE + FLOPPY, ()),
    ],
)
def test_media(disk: str, paths: tuple[str, ...]) -> None:
    assert read(domain(disk)).media == paths


QCOW2 = """
<disk type='file' device='disk'>
  <driver name='qemu' type='qcow2'/><source file='/images/b.qcow2'{}/><backingStore/>
  <target dev='vdb'/>{}
</disk>"""


def test_disks_that_can_be_copied() -> None:
    paths = ("/var/lib/libvirt/images/a.qcow2", "/images/b.qcow2")
    xml = domain(CHAIN.replace("vda", "vdz") + FILE + NBD + BLOCK + QCOW2.format("", "") + CD_ROM)
    assert domain_xml.read_copyable_disks(xml, paths) == [
        Disk("vda", paths[0], "raw"),
        Disk("vdb", paths[1], "qcow2"),
    ]
    assert domain_xml.read_copyable_disks(xml, ()) == []


@pytest.mark.parametrize(
    ("disk", "path", "words"),
    [
        (BLOCK, "/dev/vg0/a", "vdb of vm-1 (/dev/vg0/a) .* type block"),
        (VOLUME, "fast/a.raw", "type volume"),
        (DIRECTORY, "/srv/fat", "type dir"),
        (CHAIN, "/images/top.qcow2", "backing file"),
        (CHAIN, "/dev/base", "backing file"),
        (NBD_BASE_OF_LOCAL, "/images/top.qcow2", "backing file"),
        (LOCAL_BASE_OF_NBD, "/images/base.raw", "type network"),
        (QCOW2.format("", "").replace("'qcow2'/", "'vmdk'/"), "/images/b.qcow2", "format is vmdk"),
        (QCOW2.format("", "<shareable/>"), "/images/b.qcow2", "other VMs"),
        (QCOW2.format("", "<transient/>"), "/images/b.qcow2", "transient"),
        (QCOW2.format("", "<mirror type='file'/>"), "/images/b.qcow2", "being copied already"),
        (QCOW2.format("", "<encryption format='luks'/>"), "/images/b.qcow2", "encrypted"),
        (QCOW2.format("><encryption/></source><x", ""), "/images/b.qcow2", "encrypted"),
        (QCOW2.format("><slices/></source><x", ""), "/images/b.qcow2", "part of a file"),
        (QCOW2.format("><dataStore/></source><x", ""), "/images/b.qcow2", "another file"),
    ],
)
def test_disks_that_cannot_be_copied(disk: str, path: str, words: str) -> None:
    words = words.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(HypervisorFailed, match=rf"{words}.*storage\.shared\.paths"):
        domain_xml.read_copyable_disks(domain(disk), [path])
    assert domain_xml.read_copyable_disks(domain(disk), ["/another.raw"]) == []


@pytest.mark.parametrize(
    ("memory", "mib"),
    [
        ("<memory unit='KiB'>1048576</memory>", 1024),
        ("<memory>1048576</memory>", 1024),  # without a unit it is KiB
        ("<memory unit='b'>1048576</memory>", 1),
        ("<memory unit='bytes'>1048577</memory>", 2),  # rounded up
        ("<memory unit='KiB'>1</memory>", 1),
        ("<memory unit='KB'>1049</memory>", 2),
        ("<memory unit='MiB'>96</memory>", 96),
        ("<memory unit='M'>96</memory>", 96),
        ("<memory unit='MB'>100</memory>", 96),
        ("<memory unit='GiB'>2</memory>", 2048),
        ("<memory unit='GB'>1</memory>", 954),
        ("<memory unit='TiB'>1</memory>", 1048576),
        ("", 0),
    ],
)
def test_memory_is_in_mebibytes(memory: str, mib: int) -> None:
    assert read(f"<domain><name>vm-1</name>{memory}</domain>").memory_mib == mib


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (0, VmState.NO_STATE),
        (1, VmState.RUNNING),
        (2, VmState.IDLE),
        (3, VmState.PAUSED),
        (4, VmState.IN_SHUTDOWN),
        (5, VmState.SHUT_OFF),
        (6, VmState.CRASHED),
        (7, VmState.SUSPENDED),
        (99, VmState.NO_STATE),
    ],
)
def test_states(number: int, state: VmState) -> None:
    assert read(domain(), number).state is state


# virDomainPausedReason: 2 migration, 11 starting up, 12 post-copy, 13 post-copy failed.
@pytest.mark.parametrize("reason", range(15))
def test_only_some_pauses_come_from_a_migration(reason: int) -> None:
    assert read(domain(), PAUSED, reason).paused_by_migration is (reason in (2, 11, 12, 13))
    # The same number means something else with another state.
    assert not read(domain(), RUNNING, reason).paused_by_migration


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (PAUSED, 0, ""),
        (PAUSED, 1, "user"),
        (PAUSED, 2, "migrating"),
        (PAUSED, 5, "I/O error"),
        (PAUSED, 12, "post-copy"),
        (PAUSED, 99, ""),
        (RUNNING, 1, ""),
        (RUNNING, 5, ""),
        (RUNNING, 6, "migration canceled"),
        (RUNNING, 11, "post-copy failed"),
        (SHUT_OFF, 1, ""),
        (SHUT_OFF, 3, "crashed"),
        (SHUT_OFF, 4, "migrated"),
        (CRASHED, 1, "panicked"),
        (99, 1, ""),
    ],
)
def test_reasons_of_states(state: int, reason: int, words: str) -> None:
    assert read(domain(), state, reason).state_reason == words


@pytest.mark.parametrize(
    ("cpu", "verdict"),
    [
        ("<cpu mode='host-passthrough' check='none' migratable='on'/>", True),
        ("<cpu mode='maximum'/>", True),
        ("<cpu mode='host-model'/>", False),
        ("<cpu mode='custom'><model>qemu64</model></cpu>", False),
        (None, False),
    ],
)
def test_host_passthrough(cpu: str | None, verdict: bool) -> None:
    assert domain_xml.is_host_passthrough(cpu) is verdict


def test_the_cpu_of_a_host_is_what_host_model_expands_to() -> None:
    mode = """<model fallback='forbid'>Cascadelake</model><vendor>Intel</vendor>
      <maxphysaddr mode='passthrough' limit='46'/><feature policy='require' name='ss'/>"""
    capabilities = """<domainCapabilities><cpu>
      <mode name='host-passthrough' supported='yes'/>
      <mode name='host-model' supported='{}'>{}</mode>
    </cpu></domainCapabilities>"""
    cpu = domain_xml.parse(domain_xml.host_cpu(capabilities.format("yes", mode)) or "")
    assert cpu.attrib == {"mode": "custom", "match": "exact"}
    assert [child.tag for child in cpu] == ["model", "vendor", "feature"]
    for unknown in (capabilities.format("no", mode), capabilities.format("yes", "")):
        assert domain_xml.host_cpu(unknown) is None


def test_capabilities_are_those_of_the_hosts_own_architecture() -> None:
    kvm = "<domain type='kvm'><emulator>/usr/bin/kvm</emulator></domain>"
    assert domain_xml.read_capabilities(CAPABILITIES.format(kvm=kvm)) == Capabilities(
        uuid="9b1c2d7e-0000-4000-8000-000000000001",
        architecture="x86_64",
        cpu_model="Skylake-Server-IBRS",
        emulator="/usr/bin/kvm",
        virt_type="kvm",
    )
    without = domain_xml.read_capabilities(CAPABILITIES.format(kvm=""))
    assert (without.virt_type, without.emulator) == ("qemu", "/usr/bin/qemu-system-x86_64")
    foreign = CAPABILITIES.format(kvm="").replace("<arch>x86_64<", "<arch>riscv64<")
    with pytest.raises(HypervisorFailed, match=r"riscv64.*Install QEMU"):
        domain_xml.read_capabilities(foreign)


def test_a_probe_is_a_domain_of_the_hosts_kind() -> None:
    host = Capabilities("u", "x86_64", "m", "/usr/bin/kvm", "kvm")
    probe = read(domain_xml.probe_xml("probe-<1>", host).replace("probe-&lt;1&gt;", "probe-1"))
    assert (probe.name, probe.virt_type, probe.memory_mib) == ("probe-1", "kvm", 16)
    assert (probe.emulator, probe.architecture) == ("/usr/bin/kvm", "x86_64")


@pytest.mark.parametrize(
    ("stats", "progress"),
    [
        ({}, MigrationProgress(0, 0, 0)),
        (
            {"memory_total": 400 << 20, "memory_remaining": 100 << 20, "memory_bps": 5 << 19},
            MigrationProgress(75, 2.5, 100, expected_s=40),
        ),
        (
            {
                "memory_total": 100,
                "memory_remaining": 0,
                "memory_bps": 1 << 20,
                "disk_total": 300,
                "disk_remaining": 200,
                "disk_bps": 1 << 20,
            },
            MigrationProgress(50, 2, 0, expected_s=0),
        ),
        (
            {
                "memory_total": 400 << 20,
                "memory_remaining": 100 << 20,
                "memory_bps": 50 << 20,
                "memory_dirty_rate": 7680,
                "memory_page_size": 4096,
                "memory_iteration": 4,
                "auto_converge_throttle": 30,
                "time_elapsed": 12345,
            },
            MigrationProgress(75, 50, 100, 30, 4, 30, 12.3, 5),
        ),
        # The guest writes as fast as is copied.
        (
            {
                "memory_total": 400 << 20,
                "memory_remaining": 100 << 20,
                "memory_bps": 30 << 20,
                "memory_dirty_rate": 7680,
                "memory_page_size": 4096,
            },
            MigrationProgress(75, 30, 100, 30, expected_s=None),
        ),
        # What the guest rewrites can be more than it was at first.
        ({"memory_total": 1 << 20, "memory_remaining": 2 << 20}, MigrationProgress(0, 0, 2)),
        ({"memory_total": "much", "memory_remaining": None}, MigrationProgress(0, 0, 0)),
    ],
)
def test_progress(stats: dict[str, object], progress: MigrationProgress) -> None:
    assert domain_xml.read_progress(stats) == progress


@pytest.mark.parametrize(
    ("number", "text"), [(9_000_000, "9.0.0"), (9_000_002, "9.0.2"), (7_002_019, "7.2.19")]
)
def test_versions(number: int, text: str) -> None:
    assert domain_xml.version(number) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n', None),
        ("PRETTY_NAME='Debian GNU/Linux 12 (bookworm)'", None),
        ("PRETTY_NAME=Alpine", "Alpine"),
        ('PRETTY_NAME="a=b"', "a=b"),
        ("# PRETTY_NAME=no\nNAME=x\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_os_release(text: str, name: str | None) -> None:
    assert domain_xml.pretty_name(text) == (name or "Debian GNU/Linux 12 (bookworm)")


@pytest.mark.parametrize(
    "xml",
    [
        "<!DOCTYPE domain [<!ENTITY a 'lol'><!ENTITY b '&a;&a;&a;'>]><domain>&b;</domain>",
        "<!-- first --><!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>",
    ],
)
def test_a_document_with_a_dtd_is_refused(xml: str) -> None:
    with pytest.raises(HypervisorFailed, match="document type"):
        domain_xml.parse(xml)


def test_words_in_a_vms_metadata_are_only_text() -> None:
    html = "<metadata><x:page xmlns:x='urn:x'><![CDATA[<!DOCTYPE html>]]></x:page></metadata>"
    assert read(domain(more=html)).name == "vm-1"


@pytest.mark.parametrize("xml", ["", "<domain>", "no XML", "<a>&unknown;</a>"])
def test_what_is_no_xml_is_an_error_of_the_hypervisor(xml: str) -> None:
    with pytest.raises(HypervisorFailed, match="can't be read"):
        domain_xml.parse(xml)


def link(
    name: str, *flags: str, kind: str | None = None, addresses: tuple[str, ...] = ()
) -> object:
    linkinfo = {} if kind is None else {"linkinfo": {"info_kind": kind}}
    told = [{"local": address, "prefixlen": 24, "scope": "global"} for address in addresses]
    return {"ifname": name, "flags": flags, "addr_info": told, **linkinfo}


def test_links() -> None:
    printed = [
        link("lo", "LOOPBACK", "UP", "LOWER_UP", addresses=("127.0.0.1", "::1")),
        link("eth0", "UP", "LOWER_UP", addresses=("198.18.0.11", "fe80::1", "fd00::b")),
        link("eth1", "NO-CARRIER", "UP", addresses=("198.18.1.11",)),
        link("eth2", "BROADCAST", addresses=("198.18.2.11",)),
        link("br0", "NO-CARRIER", "UP", kind="bridge", addresses=("169.254.7.1",)),
        link("br1", "BROADCAST", kind="bridge"),
        link("ovs0", "BROADCAST", kind="openvswitch"),
        link("veth0", "UP", "LOWER_UP", kind="veth"),
    ]
    links = domain_xml.read_links(json.dumps(printed))
    assert links.devices == {"lo", "eth0", "br0", "ovs0", "veth0"}
    assert links.addresses == ("198.18.0.11", "fd00::b", "169.254.7.1")


@pytest.mark.parametrize(
    "printed",
    [
        "",
        "1: lo",
        "[1]",
        "7",
        '[{"ifname": "lo"}]',
        json.dumps([link("e", "UP", addresses=("x",))]),
    ],
)
def test_links_that_cannot_be_read(printed: str) -> None:
    with pytest.raises(HypervisorFailed, match="iproute2"):
        domain_xml.read_links(printed)
