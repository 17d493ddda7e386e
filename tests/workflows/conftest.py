"""One Temporal dev server for the workflow tests, on which each workflow's clock skips time."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from tests.workflows.machine_site import machine as machine
from tests.workflows.machine_site import site as site
from tests.workflows.maintenance_run import Begin, Run
from tests.workflows.world import World
from workers.converter import HOSTLER_DATA_CONVERTER
from workers.interceptors import HostlerInterceptor
from workflows.host_maintenance import HostMaintenance
from workflows.power_action import PowerAction
from workflows.search_attributes import SEARCH_ATTRIBUTES
from workflows.vm_return import VmReturn


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def client() -> AsyncIterator[Client]:
    """A client with Hostler's converter; what it starts skips time wherever it only waits."""
    async with await WorkflowEnvironment.start_time_skipping_v2(
        data_converter=HOSTLER_DATA_CONVERTER,
        dev_server_existing_path=str(Path(sys.executable).with_name("temporal")),
        dev_server_log_level="error",
        dev_server_extra_args=[
            *("--dynamic-config-value", "frontend.WorkflowTimeSkippingEnabled=true"),
        ],
        search_attributes=SEARCH_ATTRIBUTES,
    ) as environment:
        yield environment.client


@pytest_asyncio.fixture(loop_scope="package")
async def serve(client: Client) -> AsyncIterator[Callable[[World, str], Awaitable[None]]]:
    """`await serve(world, queue)` starts a worker."""
    workers: list[Worker] = []

    async def start(world: World, queue: str) -> None:
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[HostMaintenance, PowerAction, VmReturn],
            activities=world.activities(),  # type: ignore[arg-type] # bound methods, as the SDK takes them
            interceptors=[HostlerInterceptor()],
            # A cancel reaches an activity by its heartbeat.
            max_heartbeat_throttle_interval=timedelta(milliseconds=200),
        )
        await worker.__aenter__()
        workers.append(worker)

    yield start
    for worker in workers:
        await worker.__aexit__(None, None, None)


@pytest.fixture
def begin(client: Client, serve: Callable[[World, str], Awaitable[None]]) -> Begin:
    """`await begin(world, **input)` starts a maintenance with a worker of its own. With
    `leave_at_once`, that update waits for it before the worker comes: `(run, update)`."""

    async def start(world: World, *, leave_at_once: bool = False, **asked: Any) -> Any:
        run = Run(client, world, f"test-{uuid.uuid4()}")
        if not leave_at_once:
            await serve(world, run.queue)
            return await run.start(**asked)
        await run.start(**asked)
        update = asyncio.create_task(run.leave())
        await asyncio.sleep(0.5)  # the update is on its way to the server
        await serve(world, run.queue)
        return run, update

    return start
