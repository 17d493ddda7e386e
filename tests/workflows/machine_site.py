"""One machine and Hostler's side, with all that is real but libvirt: activities, inventory, SSH,
the scripts; and a worker to whose activities something happens."""

import asyncio
import socket
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest_asyncio
from sqlmodel import select
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from activities.addition import AdditionActivities
from activities.allocation import AllocationActivities
from activities.controller import ControllerCertificates
from activities.crl_delivery import CrlDeliveryActivities
from activities.directory import HostDirectory
from activities.execution import uninterrupted
from activities.fencing import FencingActivities
from activities.holders import Holders
from activities.host_accounts import HostAccountDirectory
from activities.leases import LeaseActivities
from activities.operations import OperationActivities
from activities.own_key import OwnKeyActivities
from activities.packages import PackageActivities
from activities.passwords import PasswordActivities
from activities.preflight import PreflightActivities
from activities.provisioning import ProvisioningActivities
from activities.records import RecordActivities
from activities.reinstallation import ReinstallationActivities
from activities.removal import RemovalActivities
from activities.restarts import Restarts
from activities.securing import SecuringActivities
from activities.survey import SurveyActivities
from contracts.addition import HostAdditionInput
from contracts.hosts import HostFacts
from contracts.states import AllocationState
from drivers.authorities.profiles import new_request
from drivers.fence import HookFence
from drivers.neighbours import ShellNeighbours
from drivers.own_key import AuthorizedKeys
from drivers.passwords import ScriptAccounts
from drivers.preflight import ShellInspector
from drivers.protocols import HostAccess
from drivers.removal import ScriptCleaner
from drivers.ssh import AsyncSshShell
from drivers.systemd import Systemd
from inventory import Inventory, SecretBox
from inventory.models import SecretVersionRow
from tests.authorities.certified_host import CertifiedHost
from tests.authorities.issuing import activities
from tests.databases import sqlite_database
from tests.machine import Machine
from tests.simulation.cluster import Cluster, SimulatedHypervisor
from workers.interceptors import HostlerInterceptor
from workers.worker import activities_of
from workflows.certificate_provisioning import CertificateProvisioning
from workflows.certificate_revocation import CertificateRevocation
from workflows.host_addition import HostAddition
from workflows.host_reinstallation import HostReinstallation

HOST = "kvm-9"
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
        stops_at: one of them does not return after its effect; `stopped` says that it is there,
            and it does when it `goes_on`.
        delays: one of them takes a moment before its effect, whatever is cancelled meanwhile.
    """

    def __init__(
        self, *, repeated: bool = False, fails: str = "", stops_at: str = "", delays: str = ""
    ) -> None:
        self.delays = delays
        self.repeated = repeated
        self.fails = fails
        self.stops_at = stops_at
        self.stopped, self.goes_on = asyncio.Event(), asyncio.Event()
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
            await fault.goes_on.wait()
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
        self.certified = CertifiedHost()

    def worker(self, fault: Fault) -> Worker:
        inventory, shell = self.inventory, self.shell
        directory = HostDirectory(inventory)
        hypervisor = MachineHypervisor(self.machine)
        holders = Holders(inventory, self.client)
        restarts = Restarts(inventory, holders)
        keys = AuthorizedKeys(shell)
        cleaner = ScriptCleaner(shell, self.certified)
        certificates, leases = activities(inventory), LeaseActivities(inventory, holders)
        return Worker(
            self.client,
            task_queue=self.queue,
            workflows=[
                *(HostAddition, HostReinstallation),
                *(CertificateProvisioning, CertificateRevocation),
            ],
            activities=activities_of(
                AdditionActivities(inventory, directory, shell, cleaner),
                AllocationActivities(inventory, directory, HookFence(shell), hypervisor),
                certificates,
                CrlDeliveryActivities(inventory, directory, self.certified, leases),
                FencingActivities(inventory, directory, HookFence(shell), hypervisor),
                leases,
                OperationActivities(self.client),
                OwnKeyActivities(inventory, directory, keys),
                PackageActivities(inventory, directory, Systemd(shell)),
                PasswordActivities(
                    inventory,
                    HostAccountDirectory(inventory, directory, ScriptAccounts(shell)),
                    leases,
                ),
                PreflightActivities(
                    *(inventory, directory, hypervisor),
                    *(ShellInspector(shell), ShellNeighbours(shell)),
                ),
                ProvisioningActivities(inventory, directory, self.certified, restarts),
                RecordActivities(inventory),
                ReinstallationActivities(
                    *(
                        inventory,
                        directory,
                        cleaner,
                        hypervisor,
                        shell,
                    ),
                    Systemd(shell),
                    look_again=0.05,
                ),
                RemovalActivities(inventory, directory, cleaner, hypervisor, shell),
                SecuringActivities(
                    *(inventory, directory, self.certified),
                    ControllerCertificates(inventory, certificates, new_request),
                    restarts,
                ),
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
        secret = await self.inventory.secrets.store(
            kind, private_key or self.machine.password, actor="test"
        )
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
    database = sqlite_database(tmp_path)
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
