"""What is looked at before a host is added, and what is said of it."""

from enum import StrEnum

from pydantic import Field

from contracts.base import Contract, Name, VmName
from contracts.host_status import Reach
from contracts.hosts import Host, HostFacts, RemovedHost
from contracts.states import TlsState


class Severity(StrEnum):
    """What a finding means for the addition."""

    ERROR = "error"
    """The host can't be added like this."""
    WARNING = "warning"
    """The addition goes on; somebody should know."""


class Finding(Contract):
    """One thing that was found.

    Attributes:
        code: its stable name, in kebab case.
        found: what is so, in one sentence.
        remedy: what the operator does about it, in one sentence or command.
    """

    code: str
    severity: Severity
    found: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity} [{self.code}] {self.found} {self.remedy}"


class Findings(Contract):
    """Why an addition was refused: the details of PreflightFailed. `remains`: what it has left on
    the host."""

    findings: tuple[Finding, ...]
    remains: tuple[str, ...] = ()


def errors_among(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Those that stand in the way."""
    return tuple(finding for finding in findings if finding.severity is Severity.ERROR)


def summary(findings: tuple[Finding, ...]) -> str:
    """How many of which: "2 errors, 1 warning"."""
    errors = len(errors_among(findings))
    warnings = len(findings) - errors
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


class PackageManager(StrEnum):
    """How packages are installed on a host."""

    APT = "apt"
    DNF = "dnf"


class ServiceState(Contract):
    """A unit of systemd in its own words: `load` loaded, masked, not-found; `active` active,
    inactive, failed; `enabled` enabled, disabled, static."""

    load: str
    active: str
    enabled: str


class DiskSpace(Contract):
    """Room below a directory; `mount` is where its file system hangs."""

    path: str
    mount: str
    free_mib: int


class HostReport(Contract):
    """What a host says of itself, measured on the host by one script.

    Attributes:
        skew_s: how far its clock is off ours at the least: positive, it is ahead.
        uid: whom commands run as there, after sudo.
        systemd: its version, or None: something else has booted the host.
        operating_system: as /etc/os-release names it.
        package_manager: what installs packages there, or None: not known.
        daemon: libvirtd.service; `socket`: libvirtd.socket.
        modular: one of libvirt's modular daemons (virtqemud) serves QEMU there.
        listening: libvirtd's UNIX socket is there.
        uuid: what libvirt's host UUID will be by its configuration; libvirt's own word counts more.
        libvirt_version: None: there is no libvirtd.
        qemu_version: None: there is no QEMU for the host's own architecture.
        kvm: /dev/kvm can be used.
        epoch: the highest that an operation of some Hostler has left there; 0: none.
        told: the highest generation of what some Hostler has told it of new VMs; 0: nothing.
        closed: why it refuses new VMs, as it was told; None: it does not.
        damaged: names of files in /etc/hostler that should have a number in them ("epoch").
        missing_programs: those that Hostler's scripts need and the host lacks.
    """

    skew_s: float
    uid: int
    systemd: str | None
    operating_system: str
    package_manager: PackageManager | None
    daemon: ServiceState
    socket: ServiceState
    modular: bool
    listening: bool
    uuid: str | None = None
    libvirt_version: str | None
    qemu_version: str | None
    kvm: bool
    epoch: int = 0
    told: int = 0
    closed: str | None = None
    damaged: tuple[str, ...] = ()
    missing_programs: tuple[str, ...] = ()
    disks: tuple[DiskSpace, ...] = ()

    @property
    def installable(self) -> bool:
        """Whether packages of libvirt or QEMU are wanting."""
        lacks = self.libvirt_version is None or self.qemu_version is None
        return lacks or "virsh" in self.missing_programs

    @property
    def running(self) -> bool:
        """Whether libvirtd can be asked, by itself or by its socket."""
        return self.listening and "active" in (self.daemon.active, self.socket.active)


class PeerReport(Contract):
    """What one host of the cluster has to do with the new one.

    Attributes:
        problem: why it could not be asked; the rest is not known then.
        new_lacks: why the new host's CPU can't run what runs on this one's; None: it can.
        peer_lacks: the same the other way round.
        to_new: what came of a TCP connection from it to the new host's SSH port; only one host of
            the cluster is asked to try.
        from_new: the same the other way round.
    """

    host: Name
    problem: str | None = None
    new_lacks: str | None = None
    peer_lacks: str | None = None
    to_new: Reach = Reach.UNKNOWN
    from_new: Reach = Reach.UNKNOWN


class Bounds(Contract):
    """Settings that the preflight goes by."""

    clock_skew_max: int = Field(description="seconds")
    disk_free_min: int = Field(description="MiB")


class Candidacy(Contract):
    """A host that asks to be added, and what the inventory has to say of it.

    Attributes:
        epoch: of the addition's lease; None: a dry run has none.
        generation: the highest that what a host was told of new VMs can have so far; what it is
            told next has a higher one.
        wants_packages: what is missing of libvirt and QEMU will be installed.
        same_name: a host of that name is in the inventory, other than as a left addition.
        same_address: name of the host that has that address and port.
        same_uuid: name of the host that has its libvirt UUID.
        removed: its tombstone, by libvirt UUID or host key.
        returning: it is added again on purpose.
        known: it is the host of that name itself, re-installed.
        tls: what it gets before it is put into service, as others of its cluster have it.
        must_be_secured: it is to be put into service, where only secured hosts are, and can't be
            secured.
        peers: hosts of the cluster that are in service.
    """

    name: Name
    cluster: Name
    address: str
    ssh_port: int
    bounds: Bounds
    epoch: int | None = None
    generation: int = 0
    wants_packages: bool = False
    returning: bool = False
    known: bool = False
    tls: TlsState = TlsState.NONE
    must_be_secured: bool = False
    same_name: bool = False
    same_address: Name | None = None
    same_uuid: Name | None = None
    removed: RemovedHost | None = None
    peers: tuple[Host, ...] = ()


class LibvirtReport(Contract):
    """What libvirt says of the host, or why it says nothing; `cpu_problem`: why it does not
    describe the CPU. Without facts and without a problem nobody has asked it."""

    facts: HostFacts | None = None
    vms: tuple[VmName, ...] = ()
    problem: str | None = None
    cpu_problem: str | None = None
