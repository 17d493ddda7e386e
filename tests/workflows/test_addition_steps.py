"""HostAddition with all that is real but libvirt: activities, inventory, SSH, the scripts.

A worker that is killed after a step's effect, and before Temporal knows of it, leaves the step to
be done again: here that happens to each step, and to each step of the way back. A workflow that is
terminated at a step is followed by another addition of the same host.
"""

import asyncio
import socket
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import pytest_asyncio
from sqlmodel import select
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from activities.addition import AdditionActivities
from activities.allocation import AllocationActivities
from activities.directory import HostDirectory
from activities.execution import uninterrupted
from activities.fencing import FencingActivities
from activities.holders import Holders
from activities.leases import LeaseActivities
from activities.own_key import OwnKeyActivities
from activities.packages import PackageActivities
from activities.preflight import PreflightActivities
from activities.records import RecordActivities
from activities.survey import SurveyActivities
from contracts.addition import HostAdditionInput, HostAdditionResult
from contracts.hosts import HostFacts
from contracts.states import AllocationState, ResourceState
from drivers.fence import HookFence
from drivers.own_key import AuthorizedKeys
from drivers.preflight import ShellInspector
from drivers.protocols import HostAccess
from drivers.removal import ScriptCleaner
from drivers.ssh import AsyncSshShell
from drivers.systemd import Systemd
from inventory import Database, Inventory, SecretBox
from inventory.models import RemovedHostRow, SecretVersionRow
from tests.machine import PASSWORD, Machine
from tests.simulation.cluster import Cluster, SimulatedHypervisor
from workers.interceptors import HostlerInterceptor
from workers.worker import activities_of
from workflows.host_addition import HostAddition

pytestmark = pytest.mark.asyncio(loop_scope="package")

HOST = "kvm-9"
STEPS = (
    *("acquire_lease", "scan_host_key", "preflight_host", "register_host", "record_event"),
    *("read_facts", "install_fence", "stage_own_key", "install_own_key", "promote_own_key"),
    *("set_host_status", "change_host_state", "tell_hosts", "release_lease"),
)
OTHERS = "ssh-ed25519 AAAAother somebody@somewhere\n"
SYSTEMCTL = """
case "$*" in
--version) echo 'systemd 252' ;;
*virtqemud*) exit 3 ;;
*ActiveState\\ --value*) echo inactive ;;
show*) printf 'LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\n' ;;
esac
"""


class MachineHypervisor(SimulatedHypervisor):
    """libvirt on the machine: it asks the hook that lies there."""

    def __init__(self, machine: Machine) -> None:
        cluster = Cluster(hosts=1, vms=0, seed=1)
        cluster.hosts["sim-1"].address = "127.0.0.1"
        super().__init__(cluster)
        self._machine = machine

    async def start_probe(self, access: HostAccess) -> str | None:
        hook = "/etc/libvirt/hooks/qemu.d/hostler"
        if not self._machine.path(hook).exists():
            return None
        status, _, stderr = await self._machine.run(f"{hook} probe prepare begin -")
        return stderr.decode() if status else None

    async def facts(self, access: HostAccess) -> HostFacts:
        return (await super().facts(access)).model_copy(update={"uuid": "of-the-machine"})


class Fault(Interceptor):
    """What happens to activities, by name.

    Attributes:
        repeated: each is done a second time, as after a kill.
        fails: one of them is refused, before its effect.
        stops_at: one of them does not return after its effect; `stopped` says that it is there.
        delays: one of them takes a moment before its effect, whatever is cancelled meanwhile.
    """

    def __init__(
        self, *, repeated: bool = False, fails: str = "", stops_at: str = "", delays: str = ""
    ) -> None:
        self.delays = delays
        self.repeated = repeated
        self.fails = fails
        self.stops_at = stops_at
        self.stopped = asyncio.Event()
        self.done: Counter[str] = Counter()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        return _Faulty(next, self)


class _Faulty(ActivityInboundInterceptor):
    def __init__(self, following: ActivityInboundInterceptor, fault: Fault) -> None:
        super().__init__(following)
        self._fault = fault

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's name
        name, fault = activity.info().activity_type, self._fault
        if name == fault.fails:
            raise ApplicationError("refused", {}, type="Refused", non_retryable=True)
        if name == fault.delays:
            fault.stopped.set()
            result = await uninterrupted(self._late(input))
        else:
            result = await self.next.execute_activity(input)
        fault.done[name] += 1
        if name == fault.stops_at:
            fault.stops_at = ""
            fault.stopped.set()
            await asyncio.Event().wait()
        if fault.repeated and activity.info().attempt == 1:
            raise ApplicationError("the worker was killed", type="Killed")
        return result

    async def _late(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's name
        await asyncio.sleep(2)
        return await self.next.execute_activity(input)


class Site:
    """Hostler's side: inventory, drivers, a worker with a fault."""

    def __init__(self, client: Client, machine: Machine, inventory: Inventory) -> None:
        self.client = client
        self.machine = machine
        self.inventory = inventory
        self.queue = f"test-{uuid.uuid4()}"
        self.shell = AsyncSshShell()

    def worker(self, fault: Fault) -> Worker:
        inventory, shell = self.inventory, self.shell
        directory = HostDirectory(inventory)
        hypervisor = MachineHypervisor(self.machine)
        holders = Holders(inventory, self.client)
        keys = AuthorizedKeys(shell)
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=[HostAddition],
            activities=activities_of(
                AdditionActivities(inventory, directory, shell, ScriptCleaner(shell)),
                AllocationActivities(inventory, directory, HookFence(shell), hypervisor),
                FencingActivities(inventory, directory, HookFence(shell), hypervisor),
                LeaseActivities(inventory, holders),
                OwnKeyActivities(inventory, directory, keys),
                PackageActivities(inventory, directory, Systemd(shell)),
                PreflightActivities(inventory, directory, hypervisor, ShellInspector(shell)),
                RecordActivities(inventory),
                SurveyActivities(inventory, directory, hypervisor, holders),
            ),
            interceptors=[HostlerInterceptor(), fault],
            # A cancel reaches an activity by its heartbeat.
            max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        )

    async def begin(self, private_key: str | None = None, **more: object) -> Any:
        """Start an addition, as the API does it."""
        access = self.machine.access(HOST)
        kind = "password" if private_key is None else "private_key"
        secret = await self.inventory.secrets.store(kind, private_key or PASSWORD, actor="test")
        key = await self.shell.scan_host_key(access.address, access.port)
        return await self.client.start_workflow(
            HostAddition.run,
            HostAdditionInput.model_validate(
                {
                    "name": HOST,
                    "cluster": "cluster-1",
                    "address": access.address,
                    "ssh_port": access.port,
                    "secret": secret,
                    "host_key_sha256": key.sha256,
                    **more,
                }
            ),
            id=f"addition/{HOST}-{uuid.uuid4()}",
            task_queue=self.queue,
        )

    async def secrets(self) -> list[str]:
        """Kinds of all that are stored."""
        async with self.inventory.database.reading() as session:
            return sorted(await session.exec(select(SecretVersionRow.kind)))

    async def messages(self, kind: str) -> list[str]:
        """Of the host's events."""
        events = await self.inventory.events.list(subject=f"host/{HOST}")
        return [event.message for event in reversed(events) if event.kind == kind]


def tree(machine: Machine) -> dict[str, str]:
    """All files of the machine, and what is in them; sockets and programs apart."""
    places = ("etc", "root", "var")
    files = [path for place in places for path in (machine.root / place).rglob("*")]
    return {
        str(path.relative_to(machine.root)): path.read_text() if path.is_file() else ""
        for path in files
    }


@pytest_asyncio.fixture(loop_scope="package")
async def machine() -> AsyncIterator[Machine]:
    # Not in pytest's directory: a path of a socket has a hundred letters at the most.
    with tempfile.TemporaryDirectory(prefix="hostler-") as directory:
        machine = Machine(Path(directory))
        machine.file("/etc/os-release", "ID=debian\n")
        machine.path("/run/systemd/system").mkdir(parents=True)
        machine.path("/run/libvirt").mkdir()
        machine.path("/var/lib").mkdir(parents=True)
        machine.path("/etc/libvirt").mkdir(parents=True)
        machine.program("systemctl", SYSTEMCTL)
        machine.program("id", "echo 0")
        machine.program("uname", "echo x86_64")
        machine.program("libvirtd", "echo 'libvirtd (libvirt) 9.0.0'")
        machine.program("qemu-system-x86_64", "echo 'QEMU emulator version 7.2.19'")
        for program in ("apt-get", "virsh", "qemu-img", "systemd-run"):
            machine.program(program)
        machine.keys.parent.mkdir()
        machine.keys.write_text(OTHERS)
        with socket.socket(socket.AF_UNIX) as libvirtd:
            libvirtd.bind(str(machine.path("/run/libvirt/libvirt-sock")))
            async with machine.serving():
                yield machine


@pytest_asyncio.fixture(loop_scope="package")
async def site(client: Client, machine: Machine, tmp_path: Path) -> AsyncIterator[Site]:
    database = Database(f"sqlite:///{tmp_path / 'inventory.db'}")
    await database.upgrade()
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    topology, enabled = inventory.topology, AllocationState.ENABLED
    await topology.create_zone("zone-1", actor="test")
    await topology.create_pod("pod-1", "zone-1", actor="test")
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    await topology.set_zone_state("zone-1", enabled, actor="test")
    await topology.set_pod_state("pod-1", enabled, actor="test")
    await topology.set_cluster_state("cluster-1", enabled, actor="test")
    site = Site(client, machine, inventory)
    yield site
    await site.shell.close()
    await database.close()


async def assert_added(site: Site, result: HostAdditionResult) -> None:
    """Once, with one key, and nothing half-made."""
    assert result.resource_state is ResourceState.ENABLED
    assert [finding.code for finding in result.findings] == ["no-kvm"]
    (host,) = await site.inventory.hosts.list()
    assert (host.name, host.resource_state, host.fence) == (HOST, ResourceState.ENABLED, None)
    assert await site.inventory.leases.find(HOST) is None
    ids = await site.inventory.own_keys.find(HOST)
    assert ids.staged_key is None
    assert ids.password is not None
    access = await HostDirectory(site.inventory).access(HOST)
    assert access.password is None
    assert access.private_key is not None
    others, own = site.machine.keys.read_text().splitlines()
    assert f"{others}\n" == OTHERS
    assert own.endswith(f" hostler:{HOST}")
    await site.shell.forget(HOST)
    before = len(site.machine.logins)
    assert (await site.shell.run(access, ["true"])).exit_status == 0
    assert site.machine.logins[before:] == ["publickey"]
    assert "etc/libvirt/hooks/qemu.d/hostler" in tree(site.machine)
    assert "etc/hostler/fence" not in tree(site.machine)


async def test_each_step_is_done_twice_and_has_one_effect(site: Site) -> None:
    fault = Fault(repeated=True)
    async with site.worker(fault):
        result = await (await site.begin()).result()
    await assert_added(site, result)
    assert set(fault.done) == set(STEPS)
    assert all(count >= 2 for count in fault.done.values()), fault.done
    assert await site.secrets() == ["own_key", "password"]
    states = await site.messages("host.state")
    assert states[-1] == "Creating -> Enabled: added"
    assert len([message for message in states if "->" in message]) == 1
    assert len(await site.messages("host.key")) == 1
    assert len(await site.messages("host.status")) == 1


@pytest.mark.parametrize("step", ["read_facts", "stage_own_key", "promote_own_key"])
async def test_each_step_of_the_way_back_is_done_twice(site: Site, step: str) -> None:
    await assert_taken_back(site, Fault(repeated=True, fails=step))


async def test_the_last_step_fails_with_the_key_in_use(site: Site) -> None:
    await assert_taken_back(site, Fault(repeated=True, fails="change_host_state"))


async def assert_taken_back(site: Site, fault: Fault) -> None:
    before = tree(site.machine)
    async with site.worker(fault):
        with pytest.raises(WorkflowFailureError) as failed:
            await (await site.begin()).result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.type == "Refused"
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []
    assert await site.inventory.leases.find(HOST) is None
    assert await site.secrets() == []


@pytest.mark.parametrize("step", STEPS)
async def test_another_addition_goes_on_from_one_that_was_terminated(site: Site, step: str) -> None:
    fault = Fault(stops_at=step)
    async with site.worker(fault):
        terminated = await site.begin()
        await fault.stopped.wait()
        await terminated.terminate()
        if step in ("change_host_state", "tell_hosts", "release_lease"):
            # It was added already.
            await assert_known(site)
            return
        result = await (await site.begin()).result()
    await assert_added(site, result)


async def assert_known(site: Site) -> None:
    with pytest.raises(WorkflowFailureError) as failed:
        await (await site.begin()).result()
    assert "[name-taken]" in str(failed.value.cause)
    (host,) = await site.inventory.hosts.list()
    assert host.resource_state is ResourceState.ENABLED


async def test_one_that_goes_on_takes_back_what_the_other_has_begun(site: Site) -> None:
    before = tree(site.machine)
    fault = Fault(stops_at="promote_own_key")
    async with site.worker(fault):
        terminated = await site.begin()
        await fault.stopped.wait()
        await terminated.terminate()
    assert tree(site.machine) != before
    async with site.worker(Fault(fails="read_facts")):
        with pytest.raises(WorkflowFailureError):
            await (await site.begin()).result()
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []


async def test_keys_that_can_not_be_written_are_a_warning(site: Site) -> None:
    site.machine.program("mv", 'case $* in */authorized_keys) exit 1 ;; esac; exec /bin/mv "$@"')
    async with site.worker(Fault()):
        result = await (await site.begin()).result()
    assert result.resource_state is ResourceState.ENABLED
    assert "own-key-refused" in [finding.code for finding in result.findings]
    assert await site.secrets() == ["password"]


async def test_an_addition_after_one_that_failed(site: Site) -> None:
    async with site.worker(Fault(fails="promote_own_key")):
        with pytest.raises(WorkflowFailureError):
            await (await site.begin()).result()
    async with site.worker(Fault()):
        result = await (await site.begin()).result()
    await assert_added(site, result)


async def test_a_key_that_was_given_is_not_kept(site: Site) -> None:
    given = asyncssh.generate_private_key("ssh-ed25519")
    public = given.export_public_key("openssh").decode()
    site.machine.keys.write_text(public)
    async with site.worker(Fault()):
        await (await site.begin(given.export_private_key("openssh").decode())).result()
    assert await site.secrets() == ["own_key"]
    theirs, own = site.machine.keys.read_text().splitlines()
    assert (f"{theirs}\n", own.split()[-1]) == (public, f"hostler:{HOST}")
    assert "password" not in site.machine.logins
    await site.shell.forget(HOST)
    site.machine.keys.write_text(f"{own}\n")
    access = await HostDirectory(site.inventory).access(HOST)
    assert (await site.shell.run(access, ["true"])).exit_status == 0


async def test_a_server_that_takes_no_keys(site: Site) -> None:
    site.machine.lets_keys_in = False
    async with site.worker(Fault(repeated=True)):
        result = await (await site.begin()).result()
    assert result.resource_state is ResourceState.ENABLED
    assert [finding.code for finding in result.findings] == ["no-kvm", "own-key-refused"]
    assert site.machine.keys.read_text() == OTHERS
    assert await site.secrets() == ["password"]
    access = await HostDirectory(site.inventory).access(HOST)
    assert access.password == PASSWORD
    assert (await site.shell.run(access, ["true"])).exit_status == 0


async def test_a_machine_that_was_removed_comes_back_on_purpose_alone(site: Site) -> None:
    key = await site.shell.scan_host_key("127.0.0.1", site.machine.access().port)
    async with site.inventory.database.writing() as session:
        session.add(
            RemovedHostRow(
                name="kvm-7",
                cluster="cluster-1",
                address="198.18.0.17",
                ssh_port=22,
                user="root",
                host_key_line=key.line,
                host_key_sha256=key.sha256,
                operation="removal/kvm-7",
            )
        )
    before = tree(site.machine)
    async with site.worker(Fault(repeated=True)):
        with pytest.raises(WorkflowFailureError) as failed:
            await (await site.begin()).result()
        assert "[removed-before] This machine was removed as kvm-7" in str(failed.value.cause)
        assert tree(site.machine) == before
        assert await site.secrets() == []
        await assert_added(site, await (await site.begin(returning=True)).result())
    (tombstone,) = await site.inventory.removed_hosts.list()
    assert tombstone.cleaned_at is not None


async def test_a_dry_run_writes_nothing_anywhere(site: Site) -> None:
    before = tree(site.machine)
    async with site.worker(Fault(repeated=True)):
        result = await (await site.begin(dry_run=True)).result()
    assert [finding.code for finding in result.findings] == ["no-kvm"]
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []
    assert await site.secrets() == []


async def test_a_cancel_in_the_middle_takes_everything_back(site: Site) -> None:
    before = tree(site.machine)
    fault = Fault(stops_at="install_own_key")
    async with site.worker(fault):
        handle = await site.begin()
        await fault.stopped.wait()
        assert tree(site.machine) != before
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
    assert isinstance(failed.value.cause, CancelledError)
    assert tree(site.machine) == before
    assert await site.inventory.hosts.list() == []
    assert await site.secrets() == []


@pytest.mark.parametrize("step", ["change_host_state", "tell_hosts"])
async def test_a_cancel_that_comes_too_late_leaves_the_host_in_service(
    site: Site, step: str
) -> None:
    fault = Fault(delays=step)
    async with site.worker(fault):
        handle = await site.begin()
        await fault.stopped.wait()
        await handle.cancel()
        result = await handle.result()
    await assert_added(site, result)


async def test_no_private_key_and_no_password_is_in_the_history(site: Site) -> None:
    async with site.worker(Fault()):
        handle = await site.begin()
        await handle.result()
    access = await HostDirectory(site.inventory).access(HOST)
    assert access.private_key is not None
    events = (await handle.fetch_history()).events
    history = b"".join(event.SerializeToString() for event in events)
    assert b"ssh-ed25519" in history
    for secret in (PASSWORD, access.private_key.splitlines()[3], "PRIVATE KEY"):
        assert secret.encode() not in history
        assert not any(secret in line for line in site.machine.lines)
