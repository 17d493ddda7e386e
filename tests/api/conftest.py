"""The real application on a real inventory and a real Temporal server, whose worker runs
stand-ins."""

import itertools
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio
from fastapi import FastAPI
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.bmcs import BmcDirectory
from api.app import create_app
from contracts.access import Role
from contracts.leases import Lease, LeaseScope, Owner
from contracts.maintenance import HostMaintenanceInput
from contracts.states import HostStatus, ResourceState
from drivers.power.registry import PowerDrivers
from inventory import Inventory, SecretBox
from tests.api.stand_ins import WORKFLOWS
from tests.databases import sqlite_database
from workers.converter import HOSTLER_DATA_CONVERTER
from workers.interceptors import HostlerInterceptor
from workflows.search_attributes import SEARCH_ATTRIBUTES

TASK_QUEUE = "stand-ins"
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def client() -> AsyncIterator[Client]:
    """A client of a server with a worker on TASK_QUEUE."""
    async with (
        await start_temporal() as environment,
        Worker(
            environment.client,
            task_queue=TASK_QUEUE,
            workflows=WORKFLOWS,
            interceptors=[HostlerInterceptor()],
        ),
    ):
        yield environment.client


@pytest_asyncio.fixture(loop_scope="package")
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """With zone-1, pod-1 and cluster-1."""
    database = sqlite_database(tmp_path)
    inventory = Inventory(database, SecretBox(SecretBox.new_key()))
    await inventory.topology.create_zone("zone-1", actor="test")
    await inventory.topology.create_pod("pod-1", "zone-1", actor="test")
    await inventory.topology.create_cluster("cluster-1", "pod-1", actor="test")
    yield inventory
    await database.close()


@dataclass
class Api:
    """The application, and one caller per role."""

    app: FastAPI
    client: Client
    inventory: Inventory
    database: Path
    viewer: httpx.AsyncClient
    operator: httpx.AsyncClient
    admin: httpx.AsyncClient
    nobody: httpx.AsyncClient

    @property
    def bmcs(self) -> BmcDirectory:
        return BmcDirectory(self.inventory, PowerDrivers())

    async def enter(self, host: str, **body: object) -> httpx.Response:
        """Start a maintenance, which has to succeed."""
        response = await self.operator.post(f"/v1/hosts/{host}/maintenance", json=body)
        assert response.status_code == 202, response.text
        return response

    def workflow(self, workflow_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(workflow_id)

    async def run_id(self, workflow_id: str) -> str | None:
        """Of the newest run, None if there is none."""
        try:
            return (await self.workflow(workflow_id).describe()).run_id
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            return None

    async def by_hand(self, workflow_id: str, host: str, **fields: Any) -> WorkflowHandle[Any, Any]:
        """A maintenance that a person started under an id of their own, and its lease."""
        handle = await self.client.start_workflow(
            "HostMaintenance",
            HostMaintenanceInput(host=host, **fields),
            id=workflow_id,
            task_queue=TASK_QUEUE,
        )
        await self.lease(host, workflow_id)
        return handle

    async def lease(self, host: str, workflow_id: str, run_id: str | None = None) -> Lease:
        """Let a workflow hold the host."""
        first = run_id or (await self.workflow(workflow_id).describe()).raw_info.first_run_id
        return await self.inventory.leases.acquire(
            host, LeaseScope.PLACEMENT, Owner(workflow_id=workflow_id, first_run_id=first), "test"
        )

    def rows(self) -> dict[str, list[Any]]:
        """All that is in the database."""
        with closing(sqlite3.connect(self.database)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {
                name: connection.execute(f"SELECT * FROM {name}").fetchall()  # noqa: S608 - its own names
                for (name,) in tables.fetchall()
            }


@pytest_asyncio.fixture(loop_scope="package")
async def api(client: Client, inventory: Inventory, tmp_path: Path) -> AsyncIterator[Api]:
    bmcs = BmcDirectory(inventory, PowerDrivers())
    app = create_app(client, inventory, bmcs, task_queue=TASK_QUEUE)
    async with (
        caller(app) as nobody,
        caller(app, await inventory.tokens.create("vera", Role.VIEWER)) as viewer,
        caller(app, await inventory.tokens.create("olga", Role.OPERATOR)) as operator,
        caller(app, await inventory.tokens.create("anna", Role.ADMIN)) as admin,
    ):
        yield Api(
            app, client, inventory, tmp_path / "inventory.db", viewer, operator, admin, nobody
        )


@pytest_asyncio.fixture(loop_scope="package")
async def host(inventory: Inventory) -> str:
    """The name of a host that is `Up` and `Enabled`, another one for each test."""
    name = new_name()
    await inventory.hosts.register(
        name=name,
        cluster="cluster-1",
        address="198.18.0.11",
        ssh_port=22,
        user="root",
        secret_id=await inventory.secrets.store("password", "pw", actor="test"),
        host_key_line="ssh-ed25519 AAAA",
        host_key_sha256="SHA256:abc",
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        operation="addition/x",
        actor="test",
    )
    await inventory.hosts.set_status(name, HostStatus.UP, actor="test", reason="added")
    await change_state(inventory, name, ResourceState.CREATING, ResourceState.ENABLED)
    return name


async def start_temporal() -> WorkflowEnvironment:
    return await WorkflowEnvironment.start_local(
        data_converter=HOSTLER_DATA_CONVERTER,
        search_attributes=SEARCH_ATTRIBUTES,
        dev_server_existing_path=str(Path(sys.executable).with_name("temporal")),
        dev_server_log_level="error",
    )


def new_name() -> str:
    return f"kvm-{next(_numbers)}"


async def change_state(
    inventory: Inventory, host: str, current: ResourceState, target: ResourceState
) -> None:
    await inventory.hosts.change_state(
        host,
        expected=frozenset({current}),
        target=target,
        operation="test",
        step=f"to {target}",
        actor="test",
        reason="test",
    )


def caller(app: FastAPI, token: str | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://hostler",
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def far_away(api: Api, scheme: str) -> httpx.AsyncClient:
    """The admin, on another machine."""
    transport = httpx.ASGITransport(api.app, raise_app_exceptions=False, client=("192.0.2.7", 4711))
    return httpx.AsyncClient(
        transport=transport, base_url=f"{scheme}://hostler", headers=api.admin.headers
    )


def problem(response: httpx.Response, status: int, error_type: str) -> dict[str, Any]:
    """The problem that was answered, checked in its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["title"] == error_type
    assert body["type"] == f"urn:hostler:error:{error_type}"
    assert body["detail"]
    return body


async def history(handle: WorkflowHandle[Any, Any]) -> bytes:
    """All that Temporal keeps of a workflow, as it is stored."""
    described = await handle.describe()
    events = [event async for event in handle.fetch_history_events()]
    assert events[0].event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
    return b"".join(message.SerializeToString() for message in (described.raw_description, *events))
