"""Removal on machines in memory: what is found, the order of things, and attempts that were killed.

The script itself is proven in tests/drivers/test_removal.py.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest
from pydantic import BaseModel
from sqlmodel import update

from activities.directory import HostDirectory
from activities.fencing import FencingActivities
from activities.holders import Holders
from activities.leases import LeaseActivities
from activities.records import RecordActivities
from activities.reinstallation import ReinstallationActivities
from activities.removal import HostNotEmpty, RemovalActivities
from activities.survey import SurveyActivities
from activities.turns import TurnActivities
from activities.virtualization import VirtualizationActivities
from contracts.errors import Conflict, HostlerError, LeaseLost, NotFound, Unavailable
from contracts.hosts import RemovedHost
from contracts.leases import LeaseRef, LeaseScope, Owner
from contracts.removal import BeginRemovalInput, HostRemoved, RemoveHostInput
from contracts.states import HostStatus, ResourceState
from contracts.steps import HostRef, Ticket
from contracts.vms import Vm, VmState
from drivers.errors import (
    CommandFailed,
    FenceFailed,
    HostKeyChanged,
    HostUnreachable,
    HypervisorFailed,
    LoginRefused,
)
from drivers.protocols import CommandResult, Fence, HostAccess, HostKey, Hypervisor, LocalDisks
from inventory import Inventory, SecretBox
from inventory.models import HostRow, RemovedHostRow, SecretVersionRow
from tests.activities.conftest import ref, run
from tests.databases import sqlite_database
from tests.samples import FACTS, FINGERPRINT

HOST = "kvm-1"
OWNER = Owner(workflow_id="removal/kvm-1", first_run_id="run-1")
FILES = ["file /etc/hostler/fence"]
KEY = ["key hostler:kvm-1 in /root/.ssh/authorized_keys"]


class Killed(BaseException):
    """The worker, at that point."""


@dataclass
class Machine:
    """A host with Hostler on it: cleaner, hypervisor and shell in one.

    Attributes:
        files, key: of Hostler's, there.
        own_key: Hostler's key is the one that logs in, so that it needs `key`.
        password: what lets in too.
        dies_after: the call in which the worker is killed, after its effect.
    """

    files: bool = True
    key: bool = True
    own_key: bool = True
    password: str | None = None
    silent: bool = False
    mute: bool = False
    another: bool = False
    refusal: str | None = None
    sticky: bool = False
    active: list[str] = field(default_factory=list)
    defined: list[str] = field(default_factory=list)
    dies_after: str | None = None
    calls: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def _log_in(self, call: str, access: HostAccess) -> None:
        self.calls.append(call)
        if self.silent:
            raise HostUnreachable(f"{access.name} does not answer.")
        if self.another:
            raise HostKeyChanged(f"{access.name} shows another SSH host key.")
        by_key = access.private_key is not None and (self.key or not self.own_key)
        if not by_key and (access.password is None or access.password != self.password):
            raise LoginRefused(f"{access.name} refuses the login of root.")

    def _end(self, call: str) -> None:
        if self.dies_after == call:
            self.dies_after = None
            raise Killed(call)

    async def look(self, access: HostAccess, host: str) -> list[str]:
        self._log_in("look", access)
        return (FILES if self.files else []) + (KEY if self.key else [])

    async def remove_files(
        self, access: HostAccess, epoch: int, *, spare_jobs: bool = False
    ) -> list[str]:
        self._log_in("remove_files", access)
        removed, self.files = FILES if self.files else [], self.sticky
        self._end("remove_files")
        return removed

    async def remove_key(
        self, access: HostAccess, host: str, epoch: int, *, user: str | None = None
    ) -> list[str]:
        self._log_in("remove_key", access)
        removed, self.key = KEY if self.key else [], False
        self._end("remove_key")
        return removed

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        self._log_in("list_vms", access)
        if self.mute:
            raise HypervisorFailed(f"libvirt on {access.name}: Failed to connect socket.")
        return [
            Vm(name=name, uuid=name, state=VmState.RUNNING, memory_mib=1, vcpus=1)
            for name in self.active
        ]

    async def defined_vms(self, access: HostAccess) -> list[str]:
        return sorted({*self.active, *self.defined})

    async def start_probe(self, access: HostAccess) -> str | None:
        self._log_in("start_probe", access)
        return self.refusal

    async def run(
        self,
        access: HostAccess,
        command: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109 - the protocol's
    ) -> CommandResult:
        # The kept connection outlives the key; a new login does not.
        self._log_in("run", access)
        return CommandResult(0, "", "")

    async def scan_host_key(self, address: str, port: int) -> HostKey:
        raise AssertionError("nobody asks for a key")

    async def forget(self, host: str) -> None:
        self.forgotten.append(host)

    async def close(self) -> None: ...


@dataclass
class Connected(Machine):
    """A machine whose kept connection outlives the key, as sshd's do, until it is forgotten."""

    connected: bool = False

    def _log_in(self, call: str, access: HostAccess) -> None:
        if self.connected and not self.silent and access.private_key is not None:
            self.calls.append(call)
            return
        super()._log_in(call, access)
        self.connected = access.private_key is not None

    async def forget(self, host: str) -> None:
        await super().forget(host)
        self.connected = False


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """With kvm-1, which logs in by a key of its own, `Up` and in Maintenance."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    await register(inventory, HOST, "198.18.0.11")
    await become(inventory, ResourceState.ENABLED, ResourceState.PREPARE_FOR_MAINTENANCE)
    await become(inventory, ResourceState.MAINTENANCE)
    yield inventory
    await database.close()


async def register(inventory: Inventory, name: str, address: str) -> None:
    await inventory.hosts.register(
        name=name,
        cluster="cluster-1",
        address=address,
        ssh_port=22,
        user="root",
        secret_id=await inventory.secrets.store("own_key", f"key of {name}", actor="test"),
        host_key_line="ssh-ed25519 AAAA",
        host_key_sha256=FINGERPRINT,
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="addition",
        actor="test",
    )
    await inventory.hosts.set_status(name, HostStatus.UP, actor="test", reason="added")


async def become(inventory: Inventory, *states: ResourceState) -> None:
    for state in states:
        await inventory.hosts.change_state(
            HOST,
            expected=frozenset(ResourceState),
            target=state,
            operation="test",
            step=state,
            actor="test",
            reason="test",
        )


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    return ref(await inventory.leases.acquire(HOST, LeaseScope.PLACEMENT, OWNER, "removal"))


Make = Callable[[Machine], RemovalActivities]


@pytest.fixture
def on(inventory: Inventory) -> Make:
    """The activities on a machine."""

    def make(machine: Machine) -> RemovalActivities:
        hypervisor = cast("Hypervisor", machine)  # what a removal needs of one
        return RemovalActivities(inventory, HostDirectory(inventory), machine, hypervisor, machine)

    return make


def begin(lease: LeaseRef, *, leave_vms: bool = False) -> BeginRemovalInput:
    return BeginRemovalInput(lease=lease, leave_vms=leave_vms, step="begin", reason="old")


async def remove(
    activities: RemovalActivities, lease: LeaseRef, *, cleaned: bool = True
) -> HostRemoved:
    request = RemoveHostInput(
        lease=lease, reason="old", forced=not cleaned, vms=(), cleaned=cleaned, problem=""
    )
    removed: HostRemoved = await run(activities.remove_host, request)
    return removed


# --- survey, begin, clean, delete ---------------------------------------------------------------


async def test_a_survey_tells_all_and_changes_nothing(on: Make, inventory: Inventory) -> None:
    await inventory.placement.set_host_tags(HOST, {"ssd"}, actor="test")
    machine = Machine(active=["vm-1"], defined=["vm-1", "vm-2"])
    survey = await run(on(machine).survey_removal, HostRef(host=HOST))
    assert (survey.answers, survey.problem) == (True, "")
    assert (survey.active, survey.defined) == (("vm-1",), ("vm-2",))
    assert survey.found == (*FILES, *KEY)
    assert (survey.belongings, survey.secrets, survey.holder) == (("tags: 1",), 1, None)
    assert survey.host.resource_state is ResourceState.MAINTENANCE
    assert {*machine.calls} == {"look", "list_vms"}


@pytest.mark.parametrize("how", ["silent", "another", "key"])
async def test_a_host_that_is_lost_is_a_finding(on: Make, how: str) -> None:
    machine = Machine(silent=how == "silent", another=how == "another", key=how != "key")
    survey = await run(on(machine).survey_removal, HostRef(host=HOST))
    assert not survey.answers
    assert HOST in survey.problem


async def test_a_libvirt_that_is_dead_is_a_finding(on: Make) -> None:
    survey = await run(on(Machine(mute=True)).survey_removal, HostRef(host=HOST))
    assert survey.answers
    assert survey.found == (*FILES, *KEY)
    assert "Failed to connect" in survey.problem


async def test_a_credential_that_can_not_be_read_is_a_finding(
    on: Make, inventory: Inventory
) -> None:
    async with inventory.database.writing() as session:
        await session.exec(update(SecretVersionRow).values(ciphertext=b"no ciphertext"))
    survey = await run(on(Machine()).survey_removal, HostRef(host=HOST))
    assert not survey.answers
    assert "is damaged" in survey.problem


async def test_a_host_whose_libvirt_is_dead_is_cleaned_late(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    machine = Machine(mute=True)
    activities = on(machine)
    await lost(activities, inventory, lease)
    assert (await run(activities.clean_removed)).cleaned == (HOST,)
    (event,) = await told(inventory, "removed.cleaned")
    assert "which VMs run there is not known" in event


async def test_begin_records_that_there_is_no_way_back(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    machine = Machine()
    for found in ((*FILES, *KEY), ()):
        assert (await run(on(machine).begin_removal, begin(lease))).found == found
        assert (await inventory.hosts.get(HOST)).resource_state is ResourceState.REMOVED
    events = await inventory.events.list(subject=f"host/{HOST}", operation="removal/kvm-1")
    assert [event.message for event in events] == ["Maintenance -> Removed: old"]
    assert "remove_files" not in machine.calls


@pytest.mark.parametrize(
    ("machine", "leave_vms", "said"),
    [
        (Machine(active=["vm-1"]), False, "VMs run on kvm-1: vm-1"),
        (Machine(active=["vm-1"]), True, "VMs run on kvm-1: vm-1"),
        (Machine(defined=["vm-2"]), False, "VMs are defined on kvm-1, shut off: vm-2"),
    ],
)
async def test_vms_keep_it_from_beginning(
    on: Make, inventory: Inventory, lease: LeaseRef, machine: Machine, leave_vms: bool, said: str
) -> None:
    with pytest.raises(HostNotEmpty, match=said):
        await run(on(machine).begin_removal, begin(lease, leave_vms=leave_vms))
    assert (await inventory.hosts.get(HOST)).resource_state is ResourceState.MAINTENANCE


async def test_defined_vms_may_be_left(on: Make, inventory: Inventory, lease: LeaseRef) -> None:
    await run(on(Machine(defined=["vm-2"])).begin_removal, begin(lease, leave_vms=True))
    assert (await inventory.hosts.get(HOST)).resource_state is ResourceState.REMOVED


async def test_a_login_that_is_refused_begins_nothing(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    with pytest.raises(LoginRefused):
        await run(on(Machine(key=False)).begin_removal, begin(lease))
    assert (await inventory.hosts.get(HOST)).resource_state is ResourceState.MAINTENANCE


@pytest.mark.parametrize("kind", [Machine, Connected])
async def test_cleaning_takes_the_key_last_and_proves_it(
    on: Make, lease: LeaseRef, kind: type[Machine]
) -> None:
    machine = Connected() if kind is Connected else Machine(own_key=False)
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    machine.calls.clear()
    proof = (await run(activities.clean_host, lease)).proof
    assert machine.calls == ["remove_files", "start_probe", "look", "remove_key", "run"]
    assert not machine.files
    assert not machine.key
    assert "found nothing but the key, and libvirt starts VMs" in proof
    wanted = "key is refused" if kind is Connected else "still logs in"
    assert wanted in proof
    assert machine.forgotten[-1] == HOST


@pytest.mark.parametrize("after", ["remove_files", "remove_key"])
@pytest.mark.parametrize("password", [None, "secret"])
async def test_cleaning_that_was_killed_is_brought_to_its_end(
    on: Make, inventory: Inventory, lease: LeaseRef, after: str, password: str | None
) -> None:
    machine = Machine(dies_after=after, password=password)
    if password is not None:
        await set_secret(inventory, "password_secret_id", password)
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    with pytest.raises(Killed):
        await run(activities.clean_host, lease)
    for _ in range(2):
        proof = (await run(activities.clean_host, lease)).proof
        assert not machine.files
        assert not machine.key
    assert proof == (
        "Hostler's key is refused, and it is taken away last"
        if password is None
        else "looked again and found nothing but the key, and libvirt starts VMs"
    )


async def set_secret(
    inventory: Inventory, column: str, plaintext: str, *, kind: str = "password"
) -> None:
    secret = await inventory.secrets.store(kind, plaintext, actor="test")
    async with inventory.database.writing() as session:
        await session.exec(update(HostRow).values({column: secret}))


async def test_a_password_that_is_refused_too_proves_as_much(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    await set_secret(inventory, "password_secret_id", "former")
    machine = Machine(files=False, key=False, password="changed")
    await become(inventory, ResourceState.REMOVED)
    await inventory.own_keys.record_leaving(HOST, lease=lease)
    assert "key is refused" in (await run(on(machine).clean_host, lease)).proof


async def test_a_refused_password_alone_proves_nothing(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    await set_secret(inventory, "secret_id", "former")
    await become(inventory, ResourceState.REMOVED)
    with pytest.raises(LoginRefused):
        await run(on(Machine(password="changed")).clean_host, lease)


async def test_nothing_is_cleaned_before_it_has_begun(on: Make, lease: LeaseRef) -> None:
    machine = Machine()
    with pytest.raises(Conflict, match="has not begun"):
        await run(on(machine).clean_host, lease)
    assert machine.calls == []


async def test_a_host_that_still_refuses_vms_is_not_clean(on: Make, lease: LeaseRef) -> None:
    machine = Machine(refusal="another hook says no")
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    with pytest.raises(FenceFailed, match="another hook says no"):
        await run(activities.clean_host, lease)
    assert machine.key


async def test_what_comes_back_is_named(on: Make, lease: LeaseRef) -> None:
    machine = Connected(sticky=True)
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    for _ in range(2):
        with pytest.raises(CommandFailed, match=r"still on kvm-1: file /etc/hostler/fence"):
            await run(activities.clean_host, lease)
    assert machine.key


@pytest.mark.parametrize("kind", ["own_key", "private_key"])
async def test_a_refused_key_proves_nothing_unless_it_was_taken_away(
    on: Make, inventory: Inventory, lease: LeaseRef, kind: str
) -> None:
    """Hostler's own key before it goes, and an operator's at any time."""
    await set_secret(inventory, "secret_id", "key", kind=kind)
    machine = Machine(dies_after="remove_files" if kind == "own_key" else "remove_key")
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    with pytest.raises(Killed):
        await run(activities.clean_host, lease)
    machine.key = False
    with pytest.raises(LoginRefused):
        await run(activities.clean_host, lease)


async def test_that_its_key_went_is_told_of_no_later_host_of_that_name(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    activities = on(Machine())
    await run(activities.begin_removal, begin(lease))
    await run(activities.clean_host, lease)
    assert await inventory.own_keys.is_leaving(HOST)
    await remove(activities, lease)
    await register(inventory, HOST, "198.18.0.11")
    assert not await inventory.own_keys.is_leaving(HOST)


async def test_a_connection_that_is_kept_begins_nothing(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    with pytest.raises(LoginRefused):
        await run(on(Connected(connected=True, key=False)).begin_removal, begin(lease))
    assert (await inventory.hosts.get(HOST)).resource_state is ResourceState.MAINTENANCE


async def test_whoever_lost_the_lease_does_nothing(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    other = Owner(workflow_id="removal/other", first_run_id="run-2")
    await inventory.leases.acquire(HOST, LeaseScope.PLACEMENT, other, "", takeover_from=OWNER)
    machine = Machine()
    for work in (
        run(on(machine).begin_removal, begin(lease)),
        run(on(machine).clean_host, lease),
        remove(on(machine), lease),
    ):
        with pytest.raises(LeaseLost):
            await work
    assert machine.calls == []


async def test_removed_twice_is_removed_once(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    machine = Machine()
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    await run(activities.clean_host, lease)
    tombstones = [(await remove(activities, lease)).tombstone for _ in range(2)]
    assert len({*tombstones}) == 1
    assert await inventory.hosts.find(HOST) is None
    assert machine.forgotten[-1] == HOST


# --- removed hosts that answer again ------------------------------------------------------------


async def lost(activities: RemovalActivities, inventory: Inventory, lease: LeaseRef) -> RemovedHost:
    """kvm-1 is removed while it does not answer."""
    await inventory.hosts.set_facts(HOST, FACTS)
    await inventory.hosts.set_status(HOST, HostStatus.DOWN, actor="test", reason="is off")
    await remove(activities, lease, cleaned=False)
    await inventory.leases.release(lease)
    return await tombstone(inventory)


async def tombstone(inventory: Inventory) -> RemovedHost:
    (removed,) = await inventory.removed_hosts.list()
    return removed


async def told(inventory: Inventory, kind: str) -> list[str]:
    events = await inventory.events.list(subject=f"host/{HOST}")
    return [event.message for event in events if event.kind == kind]


async def test_a_lost_host_that_answers_is_cleaned_and_not_taken_back(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    machine = Machine(silent=True, active=["vm-1"])
    activities = on(machine)
    await lost(activities, inventory, lease)
    assert (await run(activities.clean_removed)).waiting == (HOST,)
    assert (await tombstone(inventory)).cleaned_at is None
    assert machine.files

    machine.silent = False
    machine.own_key = False
    assert (await run(activities.clean_removed)).cleaned == (HOST,)
    assert not machine.files
    assert not machine.key
    assert machine.active == ["vm-1"]
    assert (await tombstone(inventory)).cleaned_at is not None
    (event,) = await told(inventory, "removed.cleaned")
    assert "VMs run there, and were not touched: vm-1" in event
    assert "start_probe" not in machine.calls
    assert await inventory.hosts.list() == []

    machine.calls.clear()
    assert (await run(activities.clean_removed)).cleaned == ()
    assert machine.calls == []


@pytest.mark.parametrize("after", ["remove_files", "remove_key"])
async def test_late_cleaning_that_was_killed_is_brought_to_its_end(
    on: Make, inventory: Inventory, lease: LeaseRef, after: str
) -> None:
    machine = Connected(dies_after=after)
    activities = on(machine)
    await lost(activities, inventory, lease)
    with pytest.raises(Killed):
        await run(activities.clean_removed)
    machine.connected = False
    assert (await run(activities.clean_removed)).cleaned == (HOST,)
    assert not machine.files
    assert not machine.key


@pytest.mark.parametrize("dies_after", [None, "remove_files"])
async def test_a_refused_key_proves_nothing_before_it_goes(
    on: Make, inventory: Inventory, lease: LeaseRef, dies_after: str | None
) -> None:
    machine = Machine(key=dies_after is not None, dies_after=dies_after)
    activities = on(machine)
    await lost(activities, inventory, lease)
    if dies_after is not None:
        with pytest.raises(Killed):
            await run(activities.clean_removed)
        machine.key = False
    for _ in range(2):
        assert (await run(activities.clean_removed)).waiting == (HOST,)
    removed = await tombstone(inventory)
    assert removed.cleaned_at is None
    assert "refuses the login" in removed.cleaning_problem
    assert len(await told(inventory, "removed.not_cleaned")) == 1


async def test_what_comes_back_on_a_removed_host_keeps_its_key(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    machine = Machine(sticky=True)
    activities = on(machine)
    await lost(activities, inventory, lease)
    for _ in range(2):
        assert (await run(activities.clean_removed)).waiting == (HOST,)
    assert machine.key
    assert "still on kvm-1" in (await tombstone(inventory)).cleaning_problem


async def test_a_host_whose_key_went_before_it_was_left_is_clean(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    machine = Machine(dies_after="remove_key")
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    with pytest.raises(Killed):
        await run(activities.clean_host, lease)
    await remove(activities, lease, cleaned=False)
    assert (await run(activities.clean_removed)).cleaned == (HOST,)


@pytest.mark.parametrize(
    ("gone", "tried", "looks"),
    [
        (timedelta(minutes=59), timedelta(seconds=1), True),
        (timedelta(hours=12), timedelta(minutes=29), False),
        (timedelta(hours=12), timedelta(minutes=31), True),
        (timedelta(days=300), timedelta(minutes=59), False),
        (timedelta(days=300), timedelta(minutes=61), True),
    ],
)
async def test_the_longer_a_host_is_gone_the_less_often_it_is_looked_for(
    on: Make,
    inventory: Inventory,
    lease: LeaseRef,
    gone: timedelta,
    tried: timedelta,
    looks: bool,
) -> None:
    machine = Machine(silent=True)
    activities = on(machine)
    await lost(activities, inventory, lease)
    at = datetime.now(UTC)
    async with inventory.database.writing() as session:
        await session.exec(update(RemovedHostRow).values(removed_at=at - gone, tried_at=at - tried))
    machine.calls.clear()
    assert (await run(activities.clean_removed)).waiting == (HOST,)
    assert machine.calls == (["look"] if looks else [])
    tried_at = (await tombstone(inventory)).tried_at
    assert tried_at is not None
    assert (tried_at >= at) is looks


async def test_another_machine_at_that_address_is_not_touched(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    machine = Machine(another=True)
    activities = on(machine)
    await lost(activities, inventory, lease)
    assert (await run(activities.clean_removed)).waiting == (HOST,)
    assert {*machine.calls} == {"look"}
    assert "another SSH host key" in (await tombstone(inventory)).cleaning_problem


async def test_a_removed_host_that_is_beyond_hostler_costs_itself_alone(
    on: Make, inventory: Inventory, lease: LeaseRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def odd(access: HostAccess, host: str) -> list[str]:
        raise ValueError("not enough values to unpack")

    machine = Machine()
    activities = on(machine)
    await lost(activities, inventory, lease)
    monkeypatch.setattr(machine, "look", odd)
    assert (await run(activities.clean_removed)).waiting == (HOST,)
    assert "ValueError: not enough values" in (await tombstone(inventory)).cleaning_problem


@pytest.mark.parametrize("address", ["198.18.0.11", "198.18.0.99"])
async def test_a_machine_that_is_a_host_again_is_not_touched(
    on: Make, inventory: Inventory, lease: LeaseRef, address: str
) -> None:
    machine = Machine()
    activities = on(machine)
    await lost(activities, inventory, lease)
    await register(inventory, "kvm-9", address)
    assert (await run(activities.clean_removed)).waiting == (HOST,)
    assert machine.calls == []


async def test_connections_to_removed_hosts_are_closed_everywhere(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    await lost(on(Machine()), inventory, lease)
    elsewhere = Machine(silent=True)
    await run(on(elsewhere).clean_removed)
    assert HOST in elsewhere.forgotten


# --- a removed host gets no further command -----------------------------------------------------


class Untouchable:
    """A driver that must not be used."""

    def __getattr__(self, name: str) -> Any:
        def call(*_: object, **__: object) -> None:
            raise AssertionError(f"{name} was called for a host that is gone")

        return call


ADDED: dict[str, Any] = {
    "cluster": "cluster-1",
    "address": "198.18.0.11",
    "ssh_port": 22,
    "user": "root",
    "secret": "secret-1",
    "host_key_line": "ssh-ed25519 AAAA",
    "host_key_sha256": FINGERPRINT,
    "capacity_memory_mib": None,
    "capacity_cpus": None,
    "reserved_memory_mib": 0,
}


def queued_work(lease: LeaseRef, objects: Sequence[object]) -> list[Any]:
    """Every activity of these objects that is about one host, with an input for the gone one."""
    values: dict[str, Any] = {
        "lease": lease,
        "host": HOST,
        "operation": "maintenance/kvm-1",
        "vm": "vm-1",
        "uuid": "uuid-1",
        "destination": HOST,
        "memory_mib": 1,
        "vcpus": 1,
        "max_parallel": 1,
        "vms": (),
        "moves": (),
        "seen": Ticket(granted=False, most=1),
        "within_s": 60.0,
        "expected": frozenset(ResourceState),
        "target": ResourceState.ENABLED,
        "status": HostStatus.DOWN,
        "step": "late",
        "reason": "late",
        "kind": "late",
        "message": "late",
        "environment": None,
        "forced": False,
        "cleaned": True,
        "leave_vms": False,
        "owner": OWNER,
        "purpose": "late",
        **ADDED,
    }
    work = []
    for one in objects:
        for name in dir(type(one)):
            method = getattr(one, name)
            definition = getattr(method, "__temporal_activity_definition", None)
            if definition is None or len(inspect.signature(method).parameters) != 1:
                continue
            (model,) = (hint for key, hint in get_type_hints(method).items() if key != "return")
            if model is LeaseRef:
                work.append(pytest.param(method, lease, id=name))
            elif model in (HostRef,) or {"lease", "host"} & model.model_fields.keys():
                fields = {key: values.get(key) for key in model.model_fields if key in values}
                work.append(pytest.param(method, model.model_construct(**fields), id=name))
    return work


async def test_whatever_is_still_queued_for_it_fails_for_good(
    on: Make, inventory: Inventory, lease: LeaseRef
) -> None:
    """Late retries, queued activities, schedules: each finds neither the host nor its lease."""
    machine = Machine()
    activities = on(machine)
    await run(activities.begin_removal, begin(lease))
    await run(activities.clean_host, lease)
    await remove(activities, lease)
    await inventory.leases.release(lease)
    gone: Any = Untouchable()
    directory, holders = HostDirectory(inventory), Holders(inventory, gone)
    objects = (
        FencingActivities(inventory, directory, cast("Fence", gone), gone),
        RecordActivities(inventory),
        RemovalActivities(inventory, directory, gone, gone, gone),
        SurveyActivities(inventory, directory, gone, holders),
        TurnActivities(inventory, holders),
        VirtualizationActivities(inventory, directory, gone, cast("LocalDisks", gone), holders),
        LeaseActivities(inventory, holders),
    )
    work = queued_work(lease, objects)
    tried = {param.id for param in work}
    assert {"put_up_fence", "take_down_fence", "migrate_vm", "survey_host", "get_host"} <= tried
    for param in work:
        method, request = cast("tuple[Callable[..., Any], BaseModel]", param.values)
        if param.id in NO_COMMAND:
            continue
        with pytest.raises((NotFound, LeaseLost)) as refused:
            await run(method, request)
        assert isinstance(refused.value, HostlerError)
        assert not refused.value.retryable, param.id


# These change nothing on a host, and end well or say otherwise that there is none.
NO_COMMAND = frozenset({"list_moved_vms", "release_lease", "forget_host"})


class HalfMigrated(Untouchable):
    """kvm-1 with vm-1 paused by a migration whose end nobody saw."""

    def __init__(self) -> None:
        self.resumed = False

    async def list_vms(self, access: HostAccess) -> list[Vm]:
        return [await self.find_vm(access, "uuid-1")]

    async def find_vm(self, access: HostAccess, uuid: str) -> Vm:
        return Vm(
            name="vm-1",
            uuid="uuid-1",
            state=VmState.PAUSED,
            memory_mib=1,
            vcpus=1,
            paused_by_migration=True,
        )

    async def migration_progress(self, access: HostAccess, uuid: str) -> None:
        return None

    async def resume(self, access: HostAccess, uuid: str) -> None:
        self.resumed = True


@pytest.mark.parametrize("forced", [True, False])
async def test_a_vm_that_may_run_on_a_lost_host_is_not_resumed(
    on: Make, inventory: Inventory, forced: bool
) -> None:
    await register(inventory, "kvm-2", "198.18.0.12")
    gone = ref(await inventory.leases.acquire("kvm-2", LeaseScope.PLACEMENT, OWNER, "removal"))
    await inventory.hosts.set_status("kvm-2", HostStatus.DOWN, actor="test", reason="is off")
    await inventory.vm_migrations.start("maintenance/kvm-1#run-9", "vm-1", HOST, "kvm-2", 1)
    request = RemoveHostInput(lease=gone, reason="lost", forced=forced, vms=(), cleaned=False)
    await run(on(Machine(silent=True)).remove_host, request)
    own = Owner(workflow_id="maintenance/kvm-1", first_run_id="run-9")
    lease = ref(await inventory.leases.acquire(HOST, LeaseScope.PLACEMENT, own, "maintenance"))
    hypervisor, nothing = HalfMigrated(), cast("Any", Untouchable())
    activities = VirtualizationActivities(
        inventory,
        HostDirectory(inventory),
        cast("Hypervisor", hypervisor),
        nothing,
        Holders(inventory, nothing),
    )
    if forced:
        with pytest.raises(Unavailable, match=r"kvm-2 \(removed while it did not answer"):
            await run(activities.settle_migrations, lease)
    else:
        await run(activities.settle_migrations, lease)
    assert hypervisor.resumed is not forced


@pytest.mark.parametrize("kind", ["own_key", "private_key"])
async def test_a_re_installation_takes_away_its_own_key_alone(
    inventory: Inventory, lease: LeaseRef, kind: str
) -> None:
    """One of an operator's that is refused tells nothing of Hostler's."""
    await set_secret(inventory, "secret_id", "key", kind=kind)
    await inventory.reinstallations.withdraw(lease, reason="disk broken")
    machine = Machine(dies_after="remove_key")
    unused = cast("Any", Untouchable())
    activities = ReinstallationActivities(
        inventory, HostDirectory(inventory), machine, cast("Hypervisor", machine), machine, unused
    )
    with pytest.raises(Killed):
        await run(activities.take_away_key, lease)
    if kind == "own_key":
        assert (await run(activities.take_away_key, lease)).proof == "Hostler's key is refused"
    else:
        with pytest.raises(LoginRefused):
            await run(activities.take_away_key, lease)


async def test_a_host_that_is_re_installed_can_only_be_lost(
    inventory: Inventory, lease: LeaseRef, on: Make
) -> None:
    await inventory.reinstallations.withdraw(lease, reason="disk broken")
    machine = Machine()
    survey = await run(on(machine).survey_removal, HostRef(host=HOST))
    assert not survey.answers
    assert "is being re-installed" in survey.problem
    # Nobody has tried to log in.
    assert machine.calls == []
    await run(
        on(machine).remove_host,
        RemoveHostInput(
            lease=lease, reason="lost", forced=True, vms=(), cleaned=False, problem=survey.problem
        ),
    )
    assert await inventory.hosts.find(HOST) is None
    # The old installation is cleaned, should it ever answer.
    done = await run(on(machine).clean_removed)
    assert done.cleaned == (HOST,)
