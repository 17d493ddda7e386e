"""libvirt's XML and numbers, read: pure functions.

The XML comes from hosts, which are trusted to run VMs, not to crash us: the standard library's
parser fetches nothing from outside, and a document with a DTD (entities) is refused.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from contracts.vms import Vm, VmState
from drivers.errors import HypervisorFailed
from drivers.protocols import MigrationProgress

# virDomainState and virDomainPausedReason, numbers of libvirt's stable ABI.
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

# The attribute of a disk's <source> that names it, for the kinds that are looked at.
_LOCAL_SOURCES = {"file": "file", "block": "dev", "dir": "dir", "vhostuser": "path"}


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
    return Vm(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        state=_STATES.get(state, VmState.NO_STATE),
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
        local_disks=tuple(dict.fromkeys(_local_disks(domain))),
    )


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
    """From virDomainGetJobStats' fields (bytes, bytes per second)."""
    total = _number(stats, "memory_total") + _number(stats, "disk_total")
    remaining = _number(stats, "memory_remaining") + _number(stats, "disk_remaining")
    done = 100 * (total - remaining) / total if total else 0
    rate = _number(stats, "memory_bps") + _number(stats, "disk_bps")
    return MigrationProgress(
        percent=min(100, max(0, int(done))),
        rate_mib_s=round(rate / _MIB, 2),
        remaining_mib=round(remaining / _MIB, 2),
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


def _local_disks(domain: ET.Element) -> Iterator[str]:
    """Until storage can be declared shared, whatever has a path on the host counts as local, also
    as a backing file of something else."""
    for disk in domain.iterfind("devices/disk"):
        layer: ET.Element | None = disk
        while layer is not None:
            source = layer.find("source")
            kind = layer.get("type", "")
            if source is not None and kind in _LOCAL_SOURCES:
                path = source.get(_LOCAL_SOURCES[kind])
                if path:
                    yield path
            elif source is not None and kind == "volume":
                yield f"{source.get('pool')}/{source.get('volume')}"
            layer = layer.find("backingStore")


def _serialized(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode").strip()
