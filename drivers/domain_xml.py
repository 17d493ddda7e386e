"""libvirt's XML and numbers, and what else hosts print, read: pure functions.

The XML comes from hosts, which are trusted to run VMs, not to crash us: the standard library's
parser fetches nothing from outside, and a document with a DTD (entities) is refused.
"""

import ipaddress
import itertools
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from contracts.vms import GIVEN_BACK, Vm, VmState
from drivers.errors import HypervisorFailed
from drivers.protocols import MigrationProgress

# virDomainState and the reasons of each, numbers of libvirt's stable ABI.
_STATES = {
    0: VmState.NO_STATE,
    1: VmState.RUNNING,
    2: VmState.IDLE,
    3: VmState.PAUSED,
    4: VmState.IN_SHUTDOWN,
    5: VmState.SHUT_OFF,
    6: VmState.CRASHED,
    7: VmState.SUSPENDED,
}
_PAUSED_BY_MIGRATION = frozenset(
    {
        2,  # migration
        11,  # starting up
        12,  # post-copy
        13,  # post-copy failed
    }
)
# In virsh's words. What runs or is shut off in good order needs none.
_REASONS = {
    VmState.RUNNING: {6: GIVEN_BACK, 10: "post-copy", 11: "post-copy failed"},
    VmState.PAUSED: {
        1: "user",
        2: "migrating",
        3: "saving",
        4: "dumping",
        5: "I/O error",
        6: "watchdog",
        7: "from snapshot",
        8: "shutting down",
        9: "creating snapshot",
        10: "crashed",
        11: "starting up",
        12: "post-copy",
        13: "post-copy failed",
        14: "API error",
    },
    VmState.SHUT_OFF: {
        2: "destroyed",
        3: "crashed",
        4: "migrated",
        5: "saved",
        6: "failed",
        7: "from snapshot",
        8: "daemon",
    },
    VmState.CRASHED: {1: "panicked"},
}
_UNITS = {
    "b": 1,
    "bytes": 1,
    "KB": 1000,
    "k": 1024,
    "KiB": 1024,
    "MB": 1000**2,
    "M": 1024**2,
    "MiB": 1024**2,
    "GB": 1000**3,
    "G": 1024**3,
    "GiB": 1024**3,
    "TB": 1000**4,
    "T": 1024**4,
    "TiB": 1024**4,
}
_MIB = 1024**2

# The attribute of a disk's <source> that names it, for the kinds that have a path on the host.
_LOCAL_SOURCES = {"file": "file", "block": "dev", "dir": "dir"}

_COPYABLE_FORMATS = ("raw", "qcow2")
_COPY_OBSTACLES = {
    "encryption": "it is encrypted",
    "source/encryption": "it is encrypted",
    "source/slices": "it is a part of a file",
    "source/dataStore": "its data is in another file",
    "shareable": "other VMs may write to it",
    "transient": "it is transient",
    "mirror": "it is being copied already",
}

# Devices of the host beside <hostdev>: where they are, the attribute that names them, their label.
_HOST_PATHS = (
    ("disk[@type='vhostuser']/source", "path", "vhost-user"),
    ("disk[@type='vhostvdpa']/source", "dev", "vdpa"),
    ("interface[@type='vhostuser']/source", "path", "vhost-user"),
    ("interface[@type='vdpa']/source", "dev", "vdpa"),
    ("tpm/backend[@type='passthrough']/device", "path", "tpm"),
    ("input[@type='passthrough']/source", "evdev", "input"),
    ("input[@type='evdev']/source", "dev", "input"),
    ("serial[@type='dev']/source", "path", "serial"),
    ("parallel[@type='dev']/source", "path", "parallel"),
    ("smartcard[@mode='host']", "mode", "smartcard"),
    ("shmem", "name", "shared memory"),
)

# What Linux takes for "huge page" without a size on x86_64, and on aarch64 with pages of 4 KiB.
_DEFAULT_HUGE_PAGE_KIB = 2048


class _Builder(ET.TreeBuilder):
    """Refuses a DTD where it begins: the same words in a VM's metadata are only text."""

    def doctype(self, _name: str, _public: str | None, _system: str | None) -> None:
        """Called by the parser before it reads any entity."""
        raise HypervisorFailed("libvirt sent XML with a document type, which it never does.")


def parse(xml: str) -> ET.Element:
    """A document of libvirt's. Raises HypervisorFailed if it is none."""
    try:
        return ET.fromstring(xml, ET.XMLParser(target=_Builder()))  # noqa: S314 - no DTD, see the top
    except ET.ParseError as error:
        raise HypervisorFailed(f"libvirt sent XML that can't be read: {error}.") from error


def read_vm(xml: str, state: int, reason: int, *, persistent: bool) -> Vm:
    """A domain from its XML and libvirt's numbers for its state and the reason of it."""
    domain = parse(xml)
    kind = domain.find("os/type")
    cpu = domain.find("cpu")
    vm_state = _STATES.get(state, VmState.NO_STATE)
    return Vm(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        state=vm_state,
        state_reason=_REASONS.get(vm_state, {}).get(reason, ""),
        memory_mib=_mebibytes(domain.find("memory")),
        vcpus=int(domain.findtext("vcpu", "1")),
        persistent=persistent,
        paused_by_migration=state == 3 and reason in _PAUSED_BY_MIGRATION,
        architecture=kind.get("arch", "x86_64") if kind is not None else "x86_64",
        machine=kind.get("machine", "") if kind is not None else "",
        emulator=domain.findtext("devices/emulator", ""),
        virt_type=domain.get("type", "kvm"),
        cpu_xml=_serialized(cpu) if cpu is not None else None,
        host_devices=tuple(_host_devices(domain)),
        host_directories=_unique(_host_directories(domain)),
        local_disks=_unique(_paths(domain, media=False)),
        media=_unique(_paths(domain, media=True)),
        networks=_unique(_sources(domain, "network", "network")),
        interfaces=_unique(
            *(
                _sources(domain, kind, name)
                for kind, name in (("bridge", "bridge"), ("direct", "dev"))
            )
        ),
        pinned_cpus=tuple(sorted(_pinned_cpus(domain))),
        huge_page_kib=_huge_page_kib(domain),
    )


@dataclass(frozen=True)
class Disk:
    """A disk that can be copied: see DiskImage."""

    target: str
    path: str
    format: str


def read_copyable_disks(xml: str, paths: Collection[str]) -> list[Disk]:
    """The domain's disks that have any of `paths` in them. Raises HypervisorFailed, naming the
    disk, if one of them can't be copied."""
    domain = parse(xml)
    disks = []
    for element in domain.iterfind("devices/disk"):
        if not any(_path(layer) in paths for layer in _layers(element)):
            continue
        target = _attribute(element, "target", "dev")
        path, obstacle = _path(element) or "", _copy_obstacle(element)
        if obstacle is not None:
            raise HypervisorFailed(
                f"The disk {target} of {domain.findtext('name')} ({path}) can't be copied to "
                f"another host: {obstacle}.",
                remedy="If the hosts share its storage, declare that with the setting "
                "storage.shared.paths; otherwise shut the VM down, or keep it where it is.",
            )
        disks.append(Disk(target, path, _attribute(element, "driver", "type") or "raw"))
    return disks


def is_host_passthrough(cpu_xml: str | None) -> bool:
    """Whether the guest's CPU is the host's own, with no model that could be compared."""
    return cpu_xml is not None and parse(cpu_xml).get("mode") in ("host-passthrough", "maximum")


def host_cpu(domain_capabilities: str) -> str | None:
    """The host's CPU as a guest's `<cpu>` would be expanded from it, or None if not known."""
    mode = parse(domain_capabilities).find("cpu/mode[@name='host-model']")
    if mode is None or mode.get("supported") != "yes" or mode.find("model") is None:
        return None
    cpu = ET.Element("cpu", {"mode": "custom", "match": "exact"})
    cpu.extend(child for child in mode if child.tag in ("model", "vendor", "feature"))
    return _serialized(cpu)


@dataclass(frozen=True)
class Capabilities:
    """What the host's capabilities say of it; `emulator` and `virt_type` are for its own
    architecture, `virt_type` is "kvm" where the host can do that."""

    uuid: str
    architecture: str
    cpu_model: str
    emulator: str
    virt_type: str


def read_capabilities(xml: str) -> Capabilities:
    """Raises HypervisorFailed if the host has no emulator for its own architecture."""
    root = parse(xml)
    architecture = root.findtext("host/cpu/arch", "")
    for arch in root.iterfind("guest/arch"):
        if arch.get("name") != architecture:
            continue
        kinds = {domain.get("type", ""): domain for domain in arch.iterfind("domain")}
        virt_type = "kvm" if "kvm" in kinds else "qemu"
        emulator = arch.findtext("emulator", "")
        if virt_type in kinds:
            emulator = kinds[virt_type].findtext("emulator", emulator)
        return Capabilities(
            uuid=root.findtext("host/uuid", ""),
            architecture=architecture,
            cpu_model=root.findtext("host/cpu/model", ""),
            emulator=emulator,
            virt_type=virt_type,
        )
    raise HypervisorFailed(
        f"libvirt knows no emulator for the host's own architecture ({architecture or 'unknown'}).",
        remedy="Install QEMU for it on the host.",
    )


def huge_page_sizes(capabilities: str) -> list[int]:
    """Sizes of pages that the host's CPU has beside the ordinary (the smallest) one, in KiB."""
    pages = parse(capabilities).iterfind("host/cpu/pages")
    return sorted(_kibibytes(page.get("size", "0"), page.get("unit", "KiB")) for page in pages)[1:]


def probe_xml(name: str, host: Capabilities) -> str:
    """The smallest domain that libvirt would start."""
    domain = ET.Element("domain", {"type": host.virt_type})
    ET.SubElement(domain, "name").text = name
    ET.SubElement(domain, "memory", {"unit": "MiB"}).text = "16"
    ET.SubElement(domain, "vcpu").text = "1"
    kind = ET.SubElement(ET.SubElement(domain, "os"), "type", {"arch": host.architecture})
    kind.text = "hvm"
    devices = ET.SubElement(domain, "devices")
    ET.SubElement(devices, "emulator").text = host.emulator
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    return _serialized(domain)


def read_progress(stats: Mapping[str, object]) -> MigrationProgress:
    """From virDomainGetJobStats' fields (bytes, bytes and pages per second, milliseconds)."""
    total = _number(stats, "memory_total") + _number(stats, "disk_total")
    remaining = _number(stats, "memory_remaining") + _number(stats, "disk_remaining")
    done = 100 * (total - remaining) / total if total else 0
    rate = _number(stats, "memory_bps") + _number(stats, "disk_bps")
    dirty_rate = _number(stats, "memory_dirty_rate") * _number(stats, "memory_page_size")
    gain = rate - dirty_rate
    return MigrationProgress(
        percent=min(100, max(0, int(done))),
        rate_mib_s=round(rate / _MIB, 2),
        remaining_mib=round(remaining / _MIB, 2),
        dirty_rate_mib_s=round(dirty_rate / _MIB, 2),
        iteration=_number(stats, "memory_iteration"),
        throttle_percent=_number(stats, "auto_converge_throttle"),
        elapsed_s=round(_number(stats, "time_elapsed") / 1000, 1),
        expected_s=round(remaining / gain, 1) if gain > 0 else None,
    )


def version(number: int) -> str:
    """libvirt's 9000002 is "9.0.2"."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def pretty_name(os_release: str) -> str:
    """PRETTY_NAME of an os-release file."""
    for line in os_release.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "PRETTY_NAME":
            return value.strip().strip("\"'")
    return "unknown"


@dataclass(frozen=True)
class Links:
    """A host's network devices that are of use to a VM, and its IP addresses."""

    devices: frozenset[str]
    addresses: tuple[str, ...]


def read_links(ip_json: str) -> Links:
    """What `ip -json -details address` prints. Raises HypervisorFailed if it is something else.

    Addresses that mean this host only, or nothing without naming a device (loopback, fe80::), stay
    out.
    """
    try:
        links = [link for link in json.loads(ip_json) if _is_up(link)]
        found = [
            ipaddress.ip_address(each["local"]) for link in links for each in link["addr_info"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise HypervisorFailed(
            f"What `ip -json -details address` printed can't be read: {error!r}.",
            remedy="Install iproute2 on the host.",
        ) from error
    return Links(
        devices=frozenset(link["ifname"] for link in links),
        addresses=tuple(
            str(address)
            for address in found
            if not address.is_loopback and not (address.version == 6 and address.is_link_local)
        ),
    )


def _is_up(link: Mapping[str, Any]) -> bool:
    """A bridge gets its carrier with its first port; Open vSwitch works with its device down."""
    kind = link.get("linkinfo", {}).get("info_kind")
    if kind == "openvswitch":
        return True
    flags = link["flags"]
    return "UP" in flags and (kind == "bridge" or "NO-CARRIER" not in flags)


def _unique(*parts: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(itertools.chain(*parts)))


def _kibibytes(number: str, unit: str) -> int:
    return int(number) * _UNITS.get(unit, 1024) // 1024


def _mebibytes(element: ET.Element | None) -> int:
    """Rounded up: a destination must have all of it."""
    if element is None:
        return 0
    unit = _UNITS.get(element.get("unit", "KiB"), 1024)
    return math.ceil(int(element.text or 0) * unit / _MIB)


def _number(stats: Mapping[str, object], key: str) -> int:
    value = stats.get(key, 0)
    return value if isinstance(value, int) else 0


def _host_devices(domain: ET.Element) -> Iterator[str]:
    for device in domain.iterfind("devices/hostdev"):
        yield _host_device(device)
    for interface in domain.iterfind("devices/interface"):
        address = interface.find("source/address[@type='pci']")
        if address is not None:
            yield _pci(address)
    for source in domain.iterfind("devices/disk[@type='nvme']/source"):
        address = source.find("address")
        if address is not None:
            yield _pci(address)
    for where, attribute, label in _HOST_PATHS:
        for element in domain.iterfind(f"devices/{where}"):
            yield f"{label} {element.get(attribute, '')}".strip()
    for path in domain.iterfind("devices/memory/source/path"):
        yield f"nvdimm {path.text}"
    for security in domain.iterfind("launchSecurity"):
        yield f"memory encryption {security.get('type', '')}".strip()


def _host_device(device: ET.Element) -> str:
    kind = device.get("type", "device")
    address = device.find("source/address")
    vendor, product = device.find("source/vendor"), device.find("source/product")
    if kind == "usb" and vendor is not None and product is not None:
        return f"usb {_hex(vendor, 'id', 4)}:{_hex(product, 'id', 4)}"
    if address is None:
        return kind
    if kind == "pci":
        return _pci(address)
    if kind == "usb":
        return f"usb bus {address.get('bus')} device {address.get('device')}"
    if kind == "mdev":
        return f"mdev {address.get('uuid')}"
    return kind


def _pci(address: ET.Element) -> str:
    place = [_hex(address, *part) for part in (("domain", 4), ("bus", 2), ("slot", 2))]
    return f"pci {':'.join(place)}.{_hex(address, 'function', 1)}"


def _hex(element: ET.Element, attribute: str, digits: int) -> str:
    return f"{int(element.get(attribute, '0'), 16):0{digits}x}"


def _host_directories(domain: ET.Element) -> Iterator[str]:
    for source in domain.iterfind("devices/filesystem/source"):
        # virtiofs may be given the socket of a daemon that somebody else has started.
        path = source.get("dir") or source.get("socket")
        if path:
            yield path


def _paths(domain: ET.Element, *, media: bool) -> Iterator[str]:
    """Whatever has a path on the host, also as a backing file of something else."""
    for disk in domain.iterfind("devices/disk"):
        if _is_media(disk) is media:
            for layer in _layers(disk):
                path = _path(layer)
                if path is not None:
                    yield path


def _is_media(disk: ET.Element) -> bool:
    """A floppy that can be written to is a disk: what is on it would be lost."""
    return disk.get("device") == "cdrom" or disk.find("readonly") is not None


def _layers(disk: ET.Element) -> Iterator[ET.Element]:
    """The disk, its backing file, the backing file of that, ..."""
    layer: ET.Element | None = disk
    while layer is not None:
        yield layer
        layer = layer.find("backingStore[@type]")  # without a type it only ends the chain


def _path(layer: ET.Element) -> str | None:
    """Of a volume: POOL/VOLUME."""
    source, kind = layer.find("source"), layer.get("type", "")
    if source is None:
        return None
    if kind == "volume":
        return f"{source.get('pool')}/{source.get('volume')}"
    return source.get(_LOCAL_SOURCES[kind]) if kind in _LOCAL_SOURCES else None


def _copy_obstacle(disk: ET.Element) -> str | None:
    kind = disk.get("type", "")
    if kind != "file":
        return f"it is of type {kind}, no file"
    if len(list(_layers(disk))) > 1:
        return "it has a backing file"
    image_format = _attribute(disk, "driver", "type") or "raw"
    if image_format not in _COPYABLE_FORMATS:
        return f"its format is {image_format}"
    for where, obstacle in _COPY_OBSTACLES.items():
        if disk.find(where) is not None:
            return obstacle
    return None


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")


def _sources(domain: ET.Element, kind: str, attribute: str) -> Iterator[str]:
    """What interfaces of a kind are connected to."""
    for source in domain.iterfind(f"devices/interface[@type='{kind}']/source"):
        name = source.get(attribute)
        if name:
            yield name


def _pinned_cpus(domain: ET.Element) -> set[int]:
    pins = itertools.chain(domain.iterfind("vcpu"), domain.iterfind("cputune/*"))
    return {cpu for pin in pins for cpu in _cpu_set(pin.get("cpuset", ""))}


def _cpu_set(text: str) -> set[int]:
    """libvirt's "0-3,^2,7" is 0, 1, 3 and 7."""
    cpus: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.removeprefix("^").partition("-")
        named = range(int(first), int(last or first) + 1)
        cpus = cpus.difference(named) if part.startswith("^") else cpus.union(named)
    return cpus


def _huge_page_kib(domain: ET.Element) -> int | None:
    """The largest size, if nodes of the guest have different ones: it is the hardest to get."""
    huge_pages = domain.find("memoryBacking/hugepages")
    if huge_pages is None:
        return None
    pages = huge_pages.findall("page")
    sizes = [_kibibytes(page.get("size", "0"), page.get("unit", "KiB")) for page in pages]
    return max(sizes, default=_DEFAULT_HUGE_PAGE_KIB)


def _serialized(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode").strip()
