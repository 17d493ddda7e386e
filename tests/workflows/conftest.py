"""One Temporal dev server for the workflow tests, on which each workflow's clock skips time."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from workers.converter import HOSTLER_DATA_CONVERTER
from workflows.search_attributes import SEARCH_ATTRIBUTES


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
