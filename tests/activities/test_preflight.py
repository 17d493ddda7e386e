"""preflight_host: whatever stands in the way of one look, all other findings come with it."""

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from temporalio.testing import ActivityEnvironment

from activities.directory import HostDirectory
from activities.preflight import PreflightActivities
from contracts.errors import NotFound
from contracts.host_status import Reach
from contracts.hosts import HostFacts
from contracts.preflight import HostReport
from contracts.states import HostStatus, ResourceState
from contracts.steps import HostKeyResult, PreflightInput, PreflightResult
from drivers.errors import (
    CommandFailed,
    HostKeyChanged,
    HostUnreachable,
    HypervisorFailed,
    LoginRefused,
    SudoRefused,
)
from drivers.protocols import HostAccess, HostCpu
from inventory import Inventory, SecretBox
from inventory.models import RemovedHostRow
from tests.databases import sqlite_database
from tests.samples import FACTS, FINGERPRINT
from tests.simulation.cluster import Cluster, SimulatedHypervisor, SimulatedInspector

SECRET = "canary-password-5d1f"
KEY = HostKeyResult(line="ssh-ed25519 AAAA", sha256=FINGERPRINT)


@dataclass
class Sight:
    """What is seen of sim-1, which is to be added, and of sim-2, which is in service.

    Attributes:
        report: what sim-1's own report says otherwise.
        login: what the login raises; `inspection`, `libvirt` and `peer` likewise.
        lacks: host to what its CPU lacks of another's.
        forgotten: hosts whose connections were closed.
        accesses: every access that was logged in with; `inspected`: the last that was used to look.
    """

    report: dict[str, Any] = field(default_factory=dict)
    login: Exception | None = None
    inspection: Exception | None = None
    libvirt: Exception | None = None
    peer: Exception | None = None
    uuid: str = FACTS.uuid
    virt_type: str = "kvm"
    lacks: dict[str, str] = field(default_factory=dict)
    to_new: Reach = Reach.CONNECTED
    from_new: Reach = Reach.CONNECTED
    forgotten: list[str] = field(default_factory=list)
    accesses: list[HostAccess] = field(default_factory=list)
    inspected: HostAccess | None = None


class Inspector(SimulatedInspector):
    def __init__(self, cluster: Cluster, sight: Sight) -> None:
        super().__init__(cluster)
        self._sight = sight

    async def log_in(self, access: HostAccess) -> None:
        self._sight.accesses.append(access)
        if self._sight.login is not None and not access.unprivileged:
            raise self._sight.login

    async def inspect(self, access: HostAccess) -> HostReport:
        self._sight.inspected = access
        if self._sight.inspection is not None:
            raise self._sight.inspection
        report = await super().inspect(access)
        return report.model_copy(update=self._sight.report)

    async def forget(self, host: str) -> None:
        self._sight.forgotten.append(host)


class Between:
    """Neighbours sim-1, the new one, and sim-2."""

    def __init__(self, sight: Sight) -> None:
        self._sight = sight

    async def reach(self, peer: HostAccess, address: str, port: int, seconds: int) -> Reach:
        if self._sight.peer is not None:
            raise self._sight.peer
        addresses = {"sim-1": "198.19.0.2", "sim-2": "198.19.0.1"}
        assert (address, port) == (addresses[peer.name], 22)
        return self._sight.from_new if peer.name == "sim-1" else self._sight.to_new


class Hypervisor(SimulatedHypervisor):
    def __init__(self, cluster: Cluster, sight: Sight) -> None:
        super().__init__(cluster)
        self._sight = sight

    async def facts(self, access: HostAccess) -> HostFacts:
        if self._sight.libvirt is not None:
            raise self._sight.libvirt
        return FACTS.model_copy(update={"uuid": self._sight.uuid})

    async def host_cpu(self, access: HostAccess) -> HostCpu | None:
        virt_type = self._sight.virt_type if access.name == "sim-1" else "kvm"
        return HostCpu(architecture="x86_64", virt_type=virt_type, xml=f"of {access.name}")

    async def cpu_shortfall(self, access: HostAccess, cpu: HostCpu) -> str | None:
        assert cpu.xml != f"of {access.name}"
        return self._sight.lacks.get(access.name)


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """sim-2 is in cluster-1, and Up."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    await known(inventory, "sim-2", "198.19.0.2", FACTS.model_copy(update={"uuid": "of sim-2"}))
    yield inventory
    await database.close()


async def known(inventory: Inventory, name: str, address: str, facts: HostFacts) -> None:
    await inventory.hosts.register(
        name=name,
        cluster="cluster-1",
        address=address,
        ssh_port=22,
        user="root",
        secret_id=await inventory.secrets.store("password", "pw", actor="test"),
        host_key_line="ssh-ed25519 BBBB",
        host_key_sha256="SHA256:" + "B" * 43,
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="addition",
        actor="test",
    )
    await inventory.hosts.set_facts(name, facts)
    await inventory.hosts.set_status(name, HostStatus.UP, actor="test", reason="added")


async def in_service(inventory: Inventory, name: str) -> None:
    await inventory.hosts.change_state(
        name,
        expected=frozenset({ResourceState.CREATING}),
        target=ResourceState.ENABLED,
        operation="addition",
        step="1",
        actor="test",
        reason="added",
    )


async def removed(inventory: Inventory, **marks: Any) -> None:
    async with inventory.database.writing() as session:
        session.add(
            RemovedHostRow(
                name="kvm-7",
                cluster="cluster-1",
                address="198.19.0.7",
                ssh_port=22,
                user="root",
                host_key_line="ssh-ed25519 CCCC",
                operation="removal/kvm-7",
                **{"uuid": "x", "host_key_sha256": "y", **marks},
            )
        )


async def look(
    inventory: Inventory, sight: Sight | None = None, *, attempt: int = 1, **asked: Any
) -> PreflightResult:
    sight = sight or Sight()
    cluster = Cluster(hosts=2, vms=0, seed=1)
    activities = PreflightActivities(
        inventory,
        HostDirectory(inventory),
        Hypervisor(cluster, sight),
        Inspector(cluster, sight),
        Between(sight),
    )
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, attempt=attempt)
    if "secret" not in asked:
        asked["secret"] = await inventory.secrets.store("password", SECRET, actor="test")
    request = PreflightInput.model_validate(
        {
            "host": "sim-1",
            "cluster": "cluster-1",
            "address": "198.19.0.1",
            "ssh_port": 22,
            "user": "root",
            "host_key": KEY,
            "log_in": True,
            **asked,
        }
    )
    result: PreflightResult = await environment.run(activities.preflight_host, request)
    return result


def codes(result: PreflightResult) -> list[str]:
    return [finding.code for finding in result.findings]


async def test_a_host_that_can_be_added(inventory: Inventory) -> None:
    sight = Sight()
    result = await look(inventory, sight)
    assert (codes(result), result.lacks_packages) == ([], False)
    access = sight.accesses[0]
    assert (access.address, access.host_key, access.password) == (
        "198.19.0.1",
        "ssh-ed25519 AAAA",
        SECRET,
    )
    assert sight.forgotten == ["sim-1"]


async def test_nothing_is_written(inventory: Inventory) -> None:
    secret = await inventory.secrets.store("password", SECRET, actor="test")
    before = await inventory.hosts.list(), await inventory.events.list()
    await look(inventory, secret=secret)
    assert (await inventory.hosts.list(), await inventory.events.list()) == before


async def test_a_wrong_password_hides_nothing_that_can_be_found_without(
    inventory: Inventory,
) -> None:
    await known(inventory, "sim-1", "198.19.0.9", FACTS)
    await in_service(inventory, "sim-1")
    await removed(inventory, host_key_sha256=FINGERPRINT)
    sight = Sight(login=LoginRefused("sim-1 refuses the login of root.", remedy="Check it."))
    result = await look(inventory, sight, address="198.19.0.2")
    assert codes(result) == ["name-taken", "address-taken", "removed-before", "login-refused"]
    assert SECRET not in result.model_dump_json()
    # Its connections are those of the known host.
    assert sight.forgotten == []


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ({"login": LoginRefused("It refuses.")}, "login-refused"),
        ({"login": HostKeyChanged("It shows another.")}, "host-key-changed"),
        ({"inspection": CommandFailed("'preflight' ended with 127.")}, "not-inspectable"),
    ],
)
async def test_what_ends_the_look_at_the_host(
    inventory: Inventory, failure: dict[str, Exception], code: str
) -> None:
    result = await look(inventory, Sight(**failure), address="198.19.0.2")  # type: ignore[arg-type] # by name
    assert codes(result) == ["address-taken", code]


async def test_a_user_who_is_not_root_sees_what_he_can(inventory: Inventory) -> None:
    sight = Sight(login=SudoRefused("It wants a password.", remedy="Let him."))
    sight.report = {"uid": 1000, "kvm": False, "skew_s": 3600.0, "uuid": "of sim-2"}
    sight.libvirt = AssertionError("it was asked")
    result = await look(inventory, sight)
    assert codes(result) == ["uuid-taken", "no-sudo", "clock-skew"]
    assert sight.inspected is not None
    assert sight.inspected.unprivileged
    # Nor is anything hidden if his shell lets him do nothing.
    sight.inspection = CommandFailed("'preflight' ended with 1.")
    assert codes(await look(inventory, sight)) == ["no-sudo"]


async def test_a_host_that_is_only_slow_is_asked_again(inventory: Inventory) -> None:
    sight = Sight(login=HostUnreachable("It does not answer."))
    for attempt in (1, 2):
        with pytest.raises(HostUnreachable):
            await look(inventory, sight, attempt=attempt)
    assert codes(await look(inventory, sight, attempt=3)) == ["unreachable"]


async def test_a_secret_that_is_gone(inventory: Inventory) -> None:
    result = await look(inventory, secret="none", address="198.19.0.2")
    assert codes(result) == ["address-taken", "credential-unreadable"]


@pytest.mark.parametrize("asked", [{"log_in": False}, {"log_in": False, "host_key": None}])
async def test_without_an_accepted_key_nobody_logs_in(
    inventory: Inventory, asked: dict[str, Any]
) -> None:
    await removed(inventory, host_key_sha256=FINGERPRINT)
    sight = Sight()
    result = await look(inventory, sight, **asked)
    assert codes(result) == (["removed-before"] if "host_key" not in asked else [])
    assert sight.accesses == []


async def test_a_machine_is_known_by_its_uuid(inventory: Inventory) -> None:
    assert codes(await look(inventory, Sight(uuid="of sim-2"))) == ["uuid-taken"]
    await removed(inventory, uuid="of kvm-7")
    assert codes(await look(inventory, Sight(uuid="of kvm-7"))) == ["removed-before"]
    assert codes(await look(inventory, Sight(uuid="of kvm-7"), returning=True)) == []


async def test_a_uuid_is_known_without_libvirtd_too(inventory: Inventory) -> None:
    sight = Sight(report={"listening": False, "uuid": "of sim-2"})
    assert codes(await look(inventory, sight)) == [
        "uuid-taken",
        "libvirtd-stopped",
        "not-looked-at",
    ]


async def test_what_an_addition_has_left_is_no_other_host(inventory: Inventory) -> None:
    await known(inventory, "sim-1", "198.19.0.1", FACTS)
    assert codes(await look(inventory)) == []


async def test_a_host_that_is_re_installed_is_no_other_host(inventory: Inventory) -> None:
    await known(inventory, "sim-1", "198.19.0.1", FACTS)
    await in_service(inventory, "sim-1")
    sight = Sight()
    assert codes(await look(inventory, sight, known=True)) == []
    # What was open to its old installation is closed.
    assert sight.forgotten == ["sim-1"]
    assert codes(await look(inventory, Sight(uuid="of sim-2"), known=True)) == ["uuid-taken"]


async def test_its_own_tombstone_is_no_news_and_that_of_another_machine_is(
    inventory: Inventory,
) -> None:
    await known(inventory, "sim-1", "198.19.0.1", FACTS)
    await in_service(inventory, "sim-1")
    await removed(inventory, uuid=FACTS.uuid)
    assert codes(await look(inventory, known=True)) == []
    await removed(inventory, uuid="of kvm-7")
    another = await look(inventory, Sight(uuid="of kvm-7"), known=True)
    assert codes(another) == ["removed-before"]


async def test_libvirt_is_not_asked_where_there_is_none(inventory: Inventory) -> None:
    sight = Sight(report={"libvirt_version": None}, libvirt=AssertionError("it was asked"))
    result = await look(inventory, sight)
    assert (codes(result), result.lacks_packages) == (["libvirt-missing", "not-looked-at"], True)
    sight.report = {"listening": False}
    result = await look(inventory, sight, install_packages=True)
    assert (codes(result), result.lacks_packages) == (["libvirtd-stopped"], True)


async def test_a_libvirt_that_does_not_answer_hides_nothing(inventory: Inventory) -> None:
    sight = Sight(report={"skew_s": 3600.0}, libvirt=HypervisorFailed("No."), to_new=Reach.REFUSED)
    assert codes(await look(inventory, sight)) == [
        *("clock-skew", "libvirt-silent", "port-closed-to-peer"),
    ]


@pytest.mark.parametrize(
    ("lacks", "expected"),
    [
        ({"sim-1": "avx512f."}, ["cpu-incompatible"]),
        ({"sim-2": "avx512f."}, ["cpu-exceeds"]),
    ],
)
async def test_cpus_are_compared_both_ways(
    inventory: Inventory, lacks: dict[str, str], expected: list[str]
) -> None:
    assert codes(await look(inventory, Sight(lacks=lacks))) == expected
    assert codes(await look(inventory, Sight(lacks=lacks, virt_type="qemu"))) == []


async def test_a_silent_host_of_the_cluster_is_a_warning(inventory: Inventory) -> None:
    result = await look(inventory, Sight(peer=HostUnreachable("It does not answer.")))
    assert codes(result) == ["peer-silent"]


async def test_the_settings_of_the_cluster_are_the_bounds(inventory: Inventory) -> None:
    sight = Sight(report={"skew_s": 20.0})
    assert codes(await look(inventory, sight)) == ["clock-skew"]
    await inventory.settings.set("host.clock.skew.max", 30, cluster="cluster-1", actor="test")
    assert codes(await look(inventory, sight)) == []


async def test_an_unknown_cluster(inventory: Inventory) -> None:
    with pytest.raises(NotFound, match="cluster-9"):
        await look(inventory, cluster="cluster-9")
