"""Each test of the inventory runs on SQLite and on PostgreSQL, on the tables of the migrations."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contracts.hosts import Host
from contracts.leases import Lease, LeaseRef, LeaseScope, Owner
from contracts.states import AllocationState, HostStatus, ResourceState
from inventory import Database, Inventory, SecretBox
from tests.databases import create_postgresql, postgresql_url, sqlite_url

_numbers = itertools.count(1)

OWNER = Owner(workflow_id="maintenance/kvm-1", first_run_id="run-1")
OTHER = Owner(workflow_id="maintenance/other", first_run_id="run-2")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database, with all tables."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    server: str = request.getfixturevalue("postgresql_server")
    return postgresql_url(server, f"test_{next(_numbers)}")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database, without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'inventory.db'}"
    server: str = request.getfixturevalue("postgresql_server")
    name = f"test_{next(_numbers)}"
    create_postgresql(server, name)
    return f"{server}/{name}"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    yield database
    await database.close()


@pytest.fixture
async def inventory(database: Database) -> Inventory:
    """With zone-1, pod-1 and cluster-1, all enabled."""
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    topology = inventory.topology
    await topology.create_zone("zone-1", actor="test")
    await topology.create_pod("pod-1", "zone-1", actor="test")
    await topology.create_cluster("cluster-1", "pod-1", actor="test")
    await topology.set_zone_state("zone-1", AllocationState.ENABLED, actor="test")
    await topology.set_pod_state("pod-1", AllocationState.ENABLED, actor="test")
    await topology.set_cluster_state("cluster-1", AllocationState.ENABLED, actor="test")
    return inventory


async def register(inventory: Inventory, number: int, **more: object) -> Host:
    """kvm-<number>, `Creating`."""
    values: dict[str, object] = {
        "name": f"kvm-{number}",
        "cluster": "cluster-1",
        "address": f"198.18.0.{10 + number}",
        "ssh_port": 22,
        "user": "root",
        "host_key_line": "ssh-ed25519 AAAA",
        "host_key_sha256": "SHA256:abc",
        "capacity_memory_mib": None,
        "capacity_cpus": None,
        "reserved_memory_mib": 0,
        "operation": "addition/x",
        "actor": "test",
        **more,
    }
    if "secret_id" not in values:
        values["secret_id"] = await inventory.secrets.store("password", "pw", actor="test")
    return await inventory.hosts.register(**values)  # type: ignore[arg-type] # a table of values


async def enabled(inventory: Inventory, number: int) -> Host:
    """kvm-<number>, `Enabled` and `Up`."""
    await register(inventory, number)
    return await into_service(inventory, number)


async def into_service(inventory: Inventory, number: int) -> Host:
    """The end of its addition."""
    name = f"kvm-{number}"
    await inventory.hosts.set_status(name, HostStatus.UP, actor="test", reason="added")
    return await inventory.hosts.change_state(
        name,
        expected=frozenset({ResourceState.CREATING}),
        target=ResourceState.ENABLED,
        operation="addition/x",
        step="into-service",
        actor="test",
        reason="added",
    )


async def acquire(
    inventory: Inventory,
    owner: Owner = OWNER,
    host: str = "kvm-1",
    takeover_from: Owner | None = None,
) -> Lease:
    return await inventory.leases.acquire(
        host, LeaseScope.PLACEMENT, owner, "maintenance", takeover_from=takeover_from
    )


def ref(lease: Lease) -> LeaseRef:
    return LeaseRef(host=lease.host, scope=lease.scope, owner=lease.owner, epoch=lease.epoch)
