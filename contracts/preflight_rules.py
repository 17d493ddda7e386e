"""What was measured before an addition, turned into findings. Pure: the same in, the same out.

Each rule looks at one thing, so that all are told at once. What can't be known, because something
it rests on is missing, is left out: that has a finding of its own.
"""

from collections.abc import Iterable, Iterator

from contracts.host_status import Reach
from contracts.hosts import Host, HostFacts
from contracts.preflight import (
    Candidacy,
    Finding,
    HostReport,
    LibvirtReport,
    PeerReport,
    Severity,
)

# The first release that reads hooks from a directory: the fence is one of them.
_LIBVIRT_MIN = (6, 5, 0)
_SHOWN_VMS = 5
_PACKAGES = "Add it with --install-packages, or install libvirt's daemon and QEMU there."
_UNREACHED = frozenset({Reach.REFUSED, Reach.NO_ANSWER})
_LET_REACH = "Let the hosts of a cluster reach each other: SSH, and TCP 49152 to 49215 for VMs."
_FORGET = (
    "rm -f /etc/hostler/epoch /etc/hostler/told /etc/hostler/closed /etc/hostler/password-epoch "
    "/etc/hostler/tls/epoch"
)
_NEW_MACHINE = (
    "If it is back on purpose, say so: --returning. If not, somebody has started a machine that "
    "was taken out of service."
)


def error(code: str, found: str, remedy: str) -> Finding:
    """What stands in the way."""
    return Finding(code=code, severity=Severity.ERROR, found=found, remedy=remedy)


def warning(code: str, found: str, remedy: str) -> Finding:
    """What does not."""
    return Finding(code=code, severity=Severity.WARNING, found=found, remedy=remedy)


def from_inventory(asked: Candidacy) -> Iterator[Finding]:
    """What is known without asking the host anything."""
    if asked.same_name:
        yield error("name-taken", f"There is a host {asked.name} already.", "Choose another name.")
    if asked.same_address is not None:
        yield error(
            "address-taken",
            f"{asked.same_address} is at {asked.address} port {asked.ssh_port} already.",
            "Check the address; if the machine is meant to be replaced, remove that host first.",
        )
    if asked.same_uuid is not None:
        yield error(
            "uuid-taken",
            f"{asked.same_uuid} has the same libvirt UUID.",
            "Is it the same machine? If it was cloned, set host_uuid in its "
            "/etc/libvirt/libvirtd.conf and restart libvirtd.",
        )
    if asked.removed is not None and not asked.returning:
        yield error(
            "removed-before",
            f"This machine was removed as {asked.removed.name} on "
            f"{asked.removed.removed_at:%Y-%m-%d} by {asked.removed.operation}"
            + (f" ({asked.removed.reason})." if asked.removed.reason else "."),
            _NEW_MACHINE,
        )
    if asked.must_be_secured:
        yield error(
            "must-be-secured",
            "ca.plugin.root.auth.strictness lets only secured hosts into service, and other hosts "
            f"of {asked.cluster} have no certificates: secured, it could not exchange VMs with "
            "them.",
            f"hostler cert secure {asked.cluster}, then add it.",
        )


def from_host(asked: Candidacy, report: HostReport) -> Iterator[Finding]:
    """What the host itself has, as its operating system says."""
    yield from _account(report)
    yield from _clock(asked, report)
    yield from _services(asked, report)
    yield from _programs(asked, report)
    yield from _disks(asked, report)
    yield from _former(asked, report)


def from_libvirt(asked: Candidacy, report: LibvirtReport) -> Iterator[Finding]:
    """What libvirt says of the host and of what runs there."""
    if report.problem is not None:
        yield error(
            "libvirt-silent",
            f"libvirtd does not answer: {report.problem}",
            "Look at systemctl status libvirtd.socket libvirtd there.",
        )
    elif report.facts is None and not asked.wants_packages:
        yield warning(
            "not-looked-at",
            "Its CPU and its VMs could not be looked at while libvirtd does not run.",
            "There may be more findings when it does.",
        )
    if report.vms:
        shown = ", ".join(report.vms[:_SHOWN_VMS])
        more = len(report.vms) - _SHOWN_VMS
        yield warning(
            "has-vms",
            f"{len(report.vms)} VMs run there already: {shown}{f' and {more} more' * (more > 0)}.",
            "They run on, and belong to the host from now on.",
        )
    if report.cpu_problem is not None and asked.peers:
        yield warning(
            "cpu-not-compared",
            f"libvirt does not describe its CPU: {report.cpu_problem}",
            f"Make sure by hand that it can run the VMs of {asked.cluster}.",
        )
    if report.facts is not None:
        yield from _facts(report.facts, asked.peers)


def from_peers(asked: Candidacy, reports: Iterable[PeerReport]) -> Iterator[Finding]:
    """What the new host and the hosts of its cluster are to each other."""
    for report in reports:
        if report.problem is not None:
            yield warning(
                "peer-silent",
                f"{report.host} could not be asked: {report.problem}",
                f"What the new host and {report.host} are to each other was not looked at.",
            )
        if report.new_lacks is not None:
            yield error(
                "cpu-incompatible",
                f"Its CPU can't run all that runs on {report.host}: {report.new_lacks}",
                "Put it into a cluster of its own kind.",
            )
        elif report.peer_lacks is not None:
            yield warning(
                "cpu-exceeds",
                f"{report.host} has not all features of its CPU: {report.peer_lacks}",
                f"VMs that use them can't go to {report.host}: give VMs a CPU model that all "
                f"hosts of {asked.cluster} have.",
            )
        if report.from_new in _UNREACHED:
            yield error(
                "peer-port-closed",
                f"It can't open an SSH connection to {report.host}: {report.from_new}.",
                _LET_REACH,
            )
        if report.to_new in _UNREACHED:
            yield error(
                "port-closed-to-peer",
                f"{report.host} can't open a connection to {asked.address} port {asked.ssh_port}: "
                f"{report.to_new}.",
                _LET_REACH,
            )


def _account(report: HostReport) -> Iterator[Finding]:
    if report.uid != 0:
        yield error(
            "not-root",
            f"Commands run there with the user id {report.uid}.",
            "Give a credential of root, or of a user who becomes root by sudo.",
        )
    if report.systemd is None:
        yield error(
            "no-systemd",
            "systemd is not what has booted it.",
            "Hostler needs systemd on its hosts: for libvirtd, and for work that outlives it.",
        )


def _clock(asked: Candidacy, report: HostReport) -> Iterator[Finding]:
    if abs(report.skew_s) > asked.bounds.clock_skew_max:
        direction = "ahead of" if report.skew_s > 0 else "behind"
        yield error(
            "clock-skew",
            f"Its clock is {abs(report.skew_s):.0f} s {direction} Hostler's; "
            f"{asked.bounds.clock_skew_max} s are allowed.",
            "Set it (timedatectl set-ntp true there), or raise host.clock.skew.max.",
        )


def _services(asked: Candidacy, report: HostReport) -> Iterator[Finding]:
    if report.libvirt_version is None:
        yield _wanting(asked, report, "libvirt-missing", "There is no libvirtd.")
    if report.qemu_version is None:
        yield _wanting(asked, report, "qemu-missing", "There is no QEMU for its own architecture.")
    if asked.wants_packages and report.installable and report.package_manager is None:
        yield error(
            "distribution-unknown",
            f"Hostler does not know how packages are installed on {report.operating_system}.",
            "Install libvirt's daemon and QEMU there, then add it without --install-packages.",
        )
    if report.modular:
        yield error(
            "libvirt-modular",
            "libvirt's modular daemons (virtqemud) serve QEMU there.",
            "Hostler needs the one daemon: systemctl disable --now virtqemud.socket virtqemud "
            "virtproxyd.socket virtproxyd, then systemctl enable --now libvirtd.",
        )
    if report.libvirt_version is not None:
        if not report.modular:
            yield from _daemon(asked, report)
        if _number(report.libvirt_version) < _LIBVIRT_MIN:
            yield error(
                "libvirt-too-old",
                f"Its libvirt {report.libvirt_version} does not know hooks in directories.",
                f"Hostler needs libvirt {'.'.join(map(str, _LIBVIRT_MIN))} or newer.",
            )
    if not report.kvm:
        yield warning(
            "no-kvm",
            "It has no /dev/kvm: QEMU will emulate CPUs (TCG), which is slow.",
            "Turn on virtualization in its firmware, and load the module kvm_intel or kvm_amd.",
        )


def _wanting(asked: Candidacy, report: HostReport, code: str, found: str) -> Finding:
    if asked.wants_packages and report.package_manager is not None:
        return warning(code, found, "It will be installed.")
    return error(code, found, _PACKAGES)


def _daemon(asked: Candidacy, report: HostReport) -> Iterator[Finding]:
    masked = [
        name
        for name, unit in (("libvirtd", report.daemon), ("libvirtd.socket", report.socket))
        if unit.load == "masked"
    ]
    if masked:
        yield error(
            "libvirtd-masked",
            f"{' and '.join(masked)} {'are' if len(masked) > 1 else 'is'} masked.",
            f"systemctl unmask {' '.join(masked)} there, then systemctl enable --now libvirtd.",
        )
    elif not report.running:
        found = "libvirtd does not run."
        if asked.wants_packages:
            yield warning("libvirtd-stopped", found, "It will be enabled and started.")
        else:
            yield error("libvirtd-stopped", found, "systemctl enable --now libvirtd there.")
    elif "enabled" not in (report.daemon.enabled, report.socket.enabled):
        yield warning(
            "libvirtd-not-enabled",
            "libvirtd runs, and will not after a reboot.",
            "systemctl enable libvirtd there.",
        )


def _programs(asked: Candidacy, report: HostReport) -> Iterator[Finding]:
    """virsh and qemu-img come with what is missing with them."""
    missing = set(report.missing_programs)
    if "virsh" in missing and report.libvirt_version is not None:
        yield _wanting(asked, report, "virsh-missing", "There is no virsh.")
    if "qemu-img" in missing and report.qemu_version is not None:
        yield warning(
            "qemu-img-missing",
            "There is no qemu-img: VMs that take local qcow2 disks along can't come to it.",
            "Install it, if there are such VMs (Debian: qemu-utils).",
        )
    if needed := ", ".join(sorted(missing - {"virsh", "qemu-img"})):
        yield error(
            "programs-missing", f"It lacks {needed}, which Hostler calls there.", "Install them."
        )


def _former(asked: Candidacy, report: HostReport) -> Iterator[Finding]:
    """What a Hostler has left on it."""
    for name in report.damaged:
        yield error(
            "counter-damaged",
            f"/etc/hostler/{name} has no number in it: no change of Hostler's is taken there.",
            f"If no operation works on it: rm /etc/hostler/{name} there.",
        )
    if report.epoch > 0 and asked.epoch is None:
        yield warning(
            "managed-before",
            f"A Hostler has worked on it before: it holds the epoch {report.epoch}.",
            f"If the addition is refused for that, and no operation works on it: {_FORGET} there.",
        )
    elif asked.epoch is not None and report.epoch > asked.epoch:
        yield error(
            "epoch-ahead",
            "It was left to another Hostler, or had another name: it holds the epoch "
            f"{report.epoch}, and this addition has {asked.epoch}.",
            f"If no operation works on it: {_FORGET} there.",
        )
    if report.told > asked.generation:
        yield error(
            "told-ahead",
            "Another Hostler has told it whether it takes new VMs, with the generation "
            f"{report.told}; this one is at {asked.generation}, and would not be heard.",
            f"If it is no host of another Hostler's: {_FORGET} there.",
        )
    elif report.closed is not None and not asked.known:
        yield warning(
            "closed-before",
            f"It refuses new VMs, as a Hostler has told it: {report.closed}.",
            "It is told anew when it goes into service. If that fails, and no operation works on "
            f"it: {_FORGET} there.",
        )


def _disks(asked: Candidacy, report: HostReport) -> Iterator[Finding]:
    """Each file system once, whatever lies on it."""
    for mount in dict.fromkeys(disk.mount for disk in report.disks):
        disks = [disk for disk in report.disks if disk.mount == mount]
        free = min(disk.free_mib for disk in disks)
        if free < asked.bounds.disk_free_min:
            yield error(
                "disk-full",
                f"{free} MiB are free for {', '.join(disk.path for disk in disks)} (on {mount}); "
                f"{asked.bounds.disk_free_min} MiB are wanted.",
                "Make room, or lower host.disk.free.min.",
            )


def _facts(facts: HostFacts, peers: Iterable[Host]) -> Iterator[Finding]:
    for peer in peers:
        if peer.facts is None:
            continue
        if peer.facts.architecture != facts.architecture:
            yield error(
                "architecture-differs",
                f"It is {facts.architecture}, and {peer.name} is {peer.facts.architecture}.",
                "Put it into a cluster of its own kind.",
            )
        elif _number(facts.qemu_version) < _number(peer.facts.qemu_version):
            yield warning(
                "qemu-older",
                f"Its QEMU is {facts.qemu_version}, that of {peer.name} {peer.facts.qemu_version}.",
                f"VMs with the newest machine types of {peer.name} can't come to it.",
            )


def _number(version: str) -> tuple[int, ...]:
    """Of "9.0.0": (9, 0, 0)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
