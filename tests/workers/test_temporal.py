import asyncio

import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.testing import WorkflowEnvironment

from contracts.errors import NotFound, Unavailable
from tests.ports import free_port
from workers.settings import Settings
from workers.telemetry import set_up_telemetry
from workers.temporal import SEARCH_ATTRIBUTES, connect, ensure_search_attributes

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_missing_search_attributes_are_added_by_several_at_once(
    temporal: WorkflowEnvironment,
) -> None:
    client = temporal.client
    await asyncio.gather(*(ensure_search_attributes(client) for _ in range(4)))
    await ensure_search_attributes(client)
    listed = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    assert {name: listed.custom_attributes[name] for name in SEARCH_ATTRIBUTES} == dict.fromkeys(
        SEARCH_ATTRIBUTES, keyword
    )


async def test_an_address_where_nothing_answers_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        Unavailable, match=rf"^Temporal at {address} does not answer: .*\. Start it"
    ):
        await connect(Settings(temporal_address=address), set_up_telemetry())


async def test_an_unknown_namespace_is_named(temporal: WorkflowEnvironment) -> None:
    settings = Settings(
        temporal_address=temporal.client.service_client.config.target_host,
        temporal_namespace="nowhere",
    )
    with pytest.raises(NotFound, match="has no namespace 'nowhere'"):
        await connect(settings, set_up_telemetry())
