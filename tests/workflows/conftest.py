"""One time-skipping server for the workflow tests."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from workers.converter import HOSTLER_DATA_CONVERTER
from workflows.search_attributes import SEARCH_ATTRIBUTES


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client of a time-skipping server with Hostler's converter and search attributes."""
    binary = Path(sys.executable).parent / "temporal-test-server"
    async with await WorkflowEnvironment.start_time_skipping(
        data_converter=HOSTLER_DATA_CONVERTER, test_server_existing_path=str(binary)
    ) as environment:
        await environment.client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(
                namespace=environment.client.namespace,
                search_attributes={
                    key.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
                    for key in SEARCH_ATTRIBUTES
                },
            )
        )
        yield environment.client
