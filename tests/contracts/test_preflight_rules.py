"""Each rule of the preflight: what is measured, and which finding that is."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from activities.preflight import _CODES
from contracts.host_status import Reach
from contracts.hosts import RemovedHost
from contracts.preflight import (
    Bounds,
    Candidacy,
    DiskSpace,
    Finding,
    HostReport,
    LibvirtReport,
    PackageManager,
    PeerReport,
    ServiceState,
    Severity,
    errors_among,
    summary,
)
from contracts.preflight_rules import from_host, from_inventory, from_libvirt, from_peers
from tests.samples import FACTS, FINGERPRINT, WHEN, host

ROOT = Path(__file__).parents[2]
RUNNING = ServiceState(load="loaded", active="active", enabled="enabled")
STOPPED = ServiceState(load="loaded", active="inactive", enabled="disabled")
STARTED_BY_HAND = ServiceState(load="loaded", active="active", enabled="disabled")
MASKED = ServiceState(load="masked", active="inactive", enabled="masked")
NOTHING = ServiceState(load="not-found", active="inactive", enabled="disabled")
BARE: dict[str, Any] = {
    "libvirt_version": None,
    "qemu_version": None,
    "daemon": NOTHING,
    "socket": NOTHING,
    "listening": False,
    "missing_programs": ("qemu-img", "virsh"),
}
REMOVED = RemovedHost(
    id=1,
    name="kvm-7",
    cluster="cluster-1",
    address="198.18.0.17",
    ssh_port=22,
    uuid=FACTS.uuid,
    host_key_sha256=FINGERPRINT,
    forced=True,
    reason="it burned",
    vms=(),
    operation="removal/kvm-7",
    removed_at=WHEN,
    cleaned_at=None,
    cleaning_problem="",
)


def candidacy(**more: Any) -> Candidacy:
    return Candidacy(
        name="kvm-4",
        cluster="cluster-1",
        address="198.18.0.14",
        ssh_port=22,
        bounds=Bounds(clock_skew_max=10, disk_free_min=64),
        **{"peers": (host("kvm-1"),), **more},
    )


def report(**more: Any) -> HostReport:
    """All is well."""
    well: dict[str, Any] = {
        "skew_s": 0,
        "uid": 0,
        "systemd": "252",
        "operating_system": "Debian GNU/Linux 12",
        "package_manager": PackageManager.APT,
        "daemon": RUNNING,
        "socket": RUNNING,
        "modular": False,
        "listening": True,
        "libvirt_version": "9.0.0",
        "qemu_version": "7.2.19",
        "kvm": True,
        "disks": (DiskSpace(path="/etc", mount="/", free_mib=64),),
    }
    return HostReport(**well | more)


def told(findings: Iterable[Finding]) -> list[str]:
    """`+` marks a warning. Each says in sentences what is so, and what to do."""
    codes = []
    for finding in findings:
        assert finding.found.endswith(".")
        assert finding.remedy.endswith(".")
        codes.append(finding.code + "+" * (finding.severity is Severity.WARNING))
    return codes


def test_a_host_that_is_as_it_should_be() -> None:
    assert told(from_inventory(candidacy())) == []
    assert told(from_host(candidacy(), report())) == []
    assert told(from_libvirt(candidacy(), LibvirtReport(facts=FACTS))) == []
    reached = PeerReport(host="kvm-1", to_new=Reach.CONNECTED, from_new=Reach.CONNECTED)
    assert told(from_peers(candidacy(), [reached])) == []


@pytest.mark.parametrize(
    ("known", "codes"),
    [
        ({"same_name": True}, ["name-taken"]),
        ({"same_address": "kvm-3"}, ["address-taken"]),
        ({"same_uuid": "kvm-3"}, ["uuid-taken"]),
        ({"removed": REMOVED}, ["removed-before"]),
        ({"removed": REMOVED, "returning": True}, []),
        ({"must_be_secured": True}, ["must-be-secured"]),
        (
            {"same_name": True, "same_address": "a", "same_uuid": "a", "removed": REMOVED},
            ["name-taken", "address-taken", "uuid-taken", "removed-before"],
        ),
    ],
)
def test_what_the_inventory_knows(known: dict[str, Any], codes: list[str]) -> None:
    assert told(from_inventory(candidacy(**known))) == codes


@pytest.mark.parametrize(
    ("measured", "codes"),
    [
        ({"uid": 1000}, ["not-root"]),
        ({"systemd": None}, ["no-systemd"]),
        ({"skew_s": 10}, []),
        ({"skew_s": 10.5}, ["clock-skew"]),
        ({"skew_s": -3600}, ["clock-skew"]),
        ({"daemon": MASKED}, ["libvirtd-masked"]),
        ({"daemon": MASKED, "socket": MASKED, "listening": False}, ["libvirtd-masked"]),
        # Started by its socket when somebody comes.
        ({"daemon": STOPPED}, []),
        ({"daemon": STOPPED, "socket": STOPPED}, ["libvirtd-stopped"]),
        ({"listening": False}, ["libvirtd-stopped"]),
        (
            {"daemon": STOPPED, "socket": STARTED_BY_HAND},
            ["libvirtd-not-enabled+"],
        ),
        ({"modular": True, "daemon": STOPPED, "socket": STOPPED}, ["libvirt-modular"]),
        (
            {"modular": True, **BARE, "qemu_version": "8.2.0"},
            ["libvirt-missing", "libvirt-modular", "qemu-img-missing+"],
        ),
        ({"libvirt_version": "6.4.9"}, ["libvirt-too-old"]),
        ({"libvirt_version": "6.5.0"}, []),
        ({"libvirt_version": "10.0.0"}, []),
        ({"kvm": False}, ["no-kvm+"]),
        ({"missing_programs": ("flock", "virsh")}, ["virsh-missing", "programs-missing"]),
        ({"epoch": 5}, ["managed-before+"]),
        ({"missing_programs": ("qemu-img",)}, ["qemu-img-missing+"]),
        (BARE, ["libvirt-missing", "qemu-missing"]),
        ({"disks": (DiskSpace(path="/etc", mount="/", free_mib=63),)}, ["disk-full"]),
        (
            {
                "disks": (
                    DiskSpace(path="/etc", mount="/", free_mib=1),
                    DiskSpace(path="/root", mount="/", free_mib=1),
                    DiskSpace(path="/var/lib", mount="/var", free_mib=1),
                )
            },
            ["disk-full", "disk-full"],
        ),
        ({"damaged": ("epoch",)}, ["counter-damaged"]),
        ({"told": 1}, ["told-ahead"]),
        ({"told": 1, "closed": "zone z is Disabled"}, ["told-ahead"]),
        ({"closed": "zone z is Disabled"}, ["closed-before+"]),
    ],
)
def test_what_the_host_has(measured: dict[str, Any], codes: list[str]) -> None:
    assert told(from_host(candidacy(), report(**measured))) == codes


@pytest.mark.parametrize(
    ("measured", "codes"),
    [
        (BARE, ["libvirt-missing+", "qemu-missing+"]),
        (
            {**BARE, "package_manager": None},
            ["libvirt-missing", "qemu-missing", "distribution-unknown"],
        ),
        ({"daemon": STOPPED, "socket": STOPPED}, ["libvirtd-stopped+"]),
        ({"missing_programs": ("virsh",)}, ["virsh-missing+"]),
        # What was turned off on purpose is not turned on.
        ({"daemon": MASKED}, ["libvirtd-masked"]),
        ({"package_manager": None}, []),
    ],
)
def test_what_packages_will_bring(measured: dict[str, Any], codes: list[str]) -> None:
    assert told(from_host(candidacy(wants_packages=True), report(**measured))) == codes


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        ({"problem": "Connection refused."}, ["libvirt-silent"]),
        ({}, ["not-looked-at+"]),
        ({"facts": FACTS, "vms": ("vm-1",)}, ["has-vms+"]),
        ({"facts": FACTS, "cpu_problem": "no."}, ["cpu-not-compared+"]),
        (
            {"facts": FACTS.model_copy(update={"architecture": "aarch64"})},
            ["architecture-differs"],
        ),
        ({"facts": FACTS.model_copy(update={"qemu_version": "7.1.0"})}, ["qemu-older+"]),
        ({"facts": FACTS.model_copy(update={"qemu_version": "10.0.2"})}, []),
    ],
)
def test_what_libvirt_says(said: dict[str, Any], codes: list[str]) -> None:
    assert told(from_libvirt(candidacy(), LibvirtReport(**said))) == codes


def test_many_vms_are_not_all_named() -> None:
    vms = tuple(f"vm-{number}" for number in range(7))
    (finding,) = from_libvirt(candidacy(), LibvirtReport(facts=FACTS, vms=vms))
    assert "7 VMs run there already: vm-0, vm-1, vm-2, vm-3, vm-4 and 2 more." in finding.found


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        ({"problem": "does not answer."}, ["peer-silent+"]),
        ({"new_lacks": "avx512f.", "peer_lacks": "amx."}, ["cpu-incompatible"]),
        ({"peer_lacks": "amx."}, ["cpu-exceeds+"]),
        ({"to_new": Reach.REFUSED}, ["port-closed-to-peer"]),
        ({"from_new": Reach.NO_ANSWER}, ["peer-port-closed"]),
        ({"to_new": Reach.UNKNOWN, "from_new": Reach.UNKNOWN}, []),
    ],
)
def test_what_the_cluster_says(said: dict[str, Any], codes: list[str]) -> None:
    assert told(from_peers(candidacy(), [PeerReport(host="kvm-1", **said)])) == codes


@pytest.mark.parametrize(("epoch", "codes"), [(4, ["epoch-ahead"]), (5, []), (6, [])])
def test_the_epoch_that_the_host_holds(epoch: int, codes: list[str]) -> None:
    assert told(from_host(candidacy(epoch=epoch), report(epoch=5))) == codes


def test_what_a_former_owner_has_left_names_all_of_its_files() -> None:
    left = report(epoch=5, told=9, closed="zone z is Disabled")
    for asked in (candidacy(epoch=4, generation=8), candidacy(generation=9)):
        for finding in from_host(asked, left):
            for name in ("epoch", "told", "closed"):
                assert f"/etc/hostler/{name}" in finding.remedy


@pytest.mark.parametrize(("generation", "codes"), [(8, ["told-ahead"]), (9, []), (10, [])])
def test_what_a_host_was_told(generation: int, codes: list[str]) -> None:
    asked = candidacy(generation=generation, known=True)
    assert told(from_host(asked, report(told=9, closed="zone z is Disabled"))) == codes


def test_everything_that_is_wrong_is_told_at_once() -> None:
    found = tuple(
        from_host(
            candidacy(),
            report(
                uid=5,
                systemd=None,
                skew_s=99,
                daemon=MASKED,
                kvm=False,
                missing_programs=("flock",),
                disks=(DiskSpace(path="/etc", mount="/", free_mib=0),),
                damaged=("told",),
            ),
        )
    )
    assert told(found) == [
        *("not-root", "no-systemd", "clock-skew", "libvirtd-masked", "no-kvm+"),
        *("programs-missing", "disk-full", "counter-damaged"),
    ]
    assert len(errors_among(found)) == 7
    assert summary(found) == "7 errors, 1 warning"


def test_every_finding_is_documented_and_the_other_way_round() -> None:
    sources = (
        "contracts/preflight_rules.py",
        "activities/preflight.py",
        "workflows/host_addition.py",
        "workflows/provisioning.py",
    )
    text = "".join((ROOT / source).read_text() for source in sources)
    made = re.findall(r'(?:error|warning)\(\s*"([a-z-]+)"', text)
    made += re.findall(r'_wanting\(\s*asked, report, "([a-z-]+)"', text)
    made += [*_CODES.values(), "credential-unreadable"]
    document = (ROOT / "docs" / "preflight.md").read_text()
    rows = [line.split("|")[1] for line in document.splitlines() if line.startswith("| `")]
    told = [code for row in rows for code in re.findall(r"`([a-z-]+)`", row)]
    assert sorted(told) == sorted(set(made))
