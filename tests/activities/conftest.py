"""Activities with the real drivers on the lab, and an inventory that knows its hosts."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment

from activities.directory import HostDirectory
from activities.holders import Holders
from activities.survey import SurveyActivities
from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
from contracts.settings import Setting
from contracts.states import AllocationState, HostStatus, ResourceState
from drivers.libvirt import LibvirtHypervisor
from drivers.ssh import AsyncSshShell
from inventory import Inventory, SecretBox
from tests.databases import sqlite_database
from tests.lab import Lab

GUEST = "act-vm"
SOURCE = "kvm-1"
HOSTS = ("kvm-1", "kvm-2", "kvm-3")
OWNER = Owner(workflow_id="maintenance/kvm-1", first_run_id="run-1")

T = TypeVar("T")


@pytest.fixture
async def shell() -> AsyncIterator[AsyncSshShell]:
    shell = AsyncSshShell()
    yield shell
    await shell.close()


@pytest.fixture
async def hypervisor(shell: AsyncSshShell) -> AsyncIterator[LibvirtHypervisor]:
    hypervisor = LibvirtHypervisor(shell)
    yield hypervisor
    await hypervisor.close()


@pytest.fixture
async def inventory(tmp_path: Path, lab: Lab) -> AsyncIterator[Inventory]:
    """The lab's hosts, `Enabled` and `Up`, 512 MiB each."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    topology, enabled = inventory.topology, AllocationState.ENABLED
    await topology.create_zone("zone-1", actor="test")
    await topology.set_zone_state("zone-1", enabled, actor="test")
    await topology.create_pod("pod-1", "zone-1", actor="test")
    await topology.set_pod_state("pod-1", enabled, actor="test")
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    await topology.set_cluster_state("cluster-1", enabled, actor="test")
    for name in HOSTS:
        access = await lab.access(name)
        await inventory.hosts.register(
            name=name,
            cluster="cluster-1",
            address=access.address,
            ssh_port=access.port,
            user=access.user,
            secret_id=await inventory.secrets.store(
                "password", access.password or "", actor="test"
            ),
            host_key_line=access.host_key,
            host_key_sha256="SHA256:" + "A" * 43,
            capacity_memory_mib=512,
            capacity_cpus=None,
            reserved_memory_mib=0,
            operation="addition",
            actor="test",
        )
        await inventory.hosts.set_status(name, HostStatus.UP, actor="test", reason="added")
        await inventory.hosts.change_state(
            name,
            expected=frozenset({ResourceState.CREATING}),
            target=ResourceState.ENABLED,
            operation="addition",
            step="1",
            actor="test",
            reason="added",
        )
    yield inventory
    await database.close()


async def start_server() -> WorkflowEnvironment:
    return await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(Path(sys.executable).with_name("temporal")),
        dev_server_log_level="error",
    )


@pytest.fixture(scope="session")
def temporal_address() -> Iterator[str]:
    environment = asyncio.run(start_server())
    yield environment.client.service_client.config.target_host
    asyncio.run(environment.shutdown())


@pytest.fixture
async def client(temporal_address: str) -> Client:
    return await Client.connect(temporal_address)


@pytest.fixture
def holders(inventory: Inventory, client: Client) -> Holders:
    return Holders(inventory, client)


@pytest.fixture
def directory(inventory: Inventory) -> HostDirectory:
    return HostDirectory(inventory)


@pytest.fixture
def survey_activities(
    inventory: Inventory,
    directory: HostDirectory,
    hypervisor: LibvirtHypervisor,
    holders: Holders,
) -> SurveyActivities:
    return SurveyActivities(inventory, directory, hypervisor, holders)


@pytest.fixture
async def lease(inventory: Inventory) -> LeaseRef:
    """Of SOURCE, held by OWNER."""
    return ref(await inventory.leases.acquire(SOURCE, LeaseScope.PLACEMENT, OWNER, "test"))


@pytest.fixture
async def vm(lab: Lab) -> AsyncIterator[str]:
    """The UUID of GUEST, running at SOURCE."""
    await asyncio.gather(*(lab.exec(host, "rm", "-rf", "/etc/hostler") for host in HOSTS))
    await lab.remove_guest(GUEST)
    yield await lab.start_guest(GUEST, on=SOURCE)
    await lab.remove_guest(GUEST)


def ref(lease: Lease) -> LeaseRef:
    return LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)


async def take_over(inventory: Inventory) -> LeaseRef:
    """Another operation takes the lease of SOURCE from OWNER."""
    other = Owner(workflow_id="maintenance/other", first_run_id="run-2")
    return ref(
        await inventory.leases.acquire(
            SOURCE, LeaseScope.PLACEMENT, other, "test", takeover_from=OWNER
        )
    )


async def reserve(inventory: Inventory, lease: LeaseRef, destination: str, vm_uuid: str) -> None:
    """Room for GUEST's 96 MiB, and a slot of two at each end."""
    await inventory.reservations.reserve(
        destination,
        vm_uuid=vm_uuid,
        vm=GUEST,
        memory_mib=96,
        vcpus=1,
        source=lease.host,
        lease=lease,
        memory_free_mib=512,
        cpus_free=8,
        max_parallel_per_host=2,
    )


async def change_state(inventory: Inventory, host: str, *targets: ResourceState) -> None:
    """One after another, whatever it was."""
    for target in targets:
        await inventory.hosts.change_state(
            host,
            expected=frozenset(ResourceState),
            target=target,
            operation="test",
            step=str(uuid.uuid4()),
            actor="test",
            reason="test",
        )


async def put(inventory: Inventory, setting: Setting[Any], value: object) -> None:
    """Change a setting of the cluster."""
    await inventory.settings.set(setting.name, value, cluster="cluster-1", actor="test")


async def open_workflow(client: Client) -> tuple[WorkflowHandle[object, object], Owner]:
    """A workflow that is open: no worker ever takes it."""
    handle = await client.start_workflow("Any", id=str(uuid.uuid4()), task_queue="nobody")
    return handle, Owner(workflow_id=handle.id, first_run_id=handle.first_execution_run_id or "")


async def run(activity: Callable[..., Awaitable[T]], *inputs: object) -> T:
    """As a worker runs it, without a server."""
    return await ActivityEnvironment().run(activity, *inputs)
