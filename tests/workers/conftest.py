"""A Temporal dev server for the tests of the wiring."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from tests.workers.samples import ACTIVITIES, SampleMaintenance
from workers.converter import HOSTLER_DATA_CONVERTER
from workers.interceptors import HostlerInterceptor
from workers.unknown import UnknownWorkflow

TEMPORAL = Path(sys.executable).with_name("temporal")
TASK_QUEUE = "samples"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("HOSTLER_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    async with await WorkflowEnvironment.start_local(
        data_converter=HOSTLER_DATA_CONVERTER,
        dev_server_existing_path=str(TEMPORAL),
        dev_server_log_level="error",
    ) as environment:
        yield environment


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def client(temporal: WorkflowEnvironment) -> AsyncIterator[Client]:
    """A client, with a worker that runs the samples on TASK_QUEUE."""
    async with Worker(
        temporal.client,
        task_queue=TASK_QUEUE,
        workflows=[SampleMaintenance, UnknownWorkflow],
        activities=ACTIVITIES,
        interceptors=[HostlerInterceptor()],
    ):
        yield temporal.client
