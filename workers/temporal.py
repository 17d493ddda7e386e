"""The connection to Temporal."""

import asyncio

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
)
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from contracts.errors import Failed, NotFound, Unavailable
from workers.converter import HOSTLER_DATA_CONVERTER
from workers.settings import Settings
from workers.telemetry import Telemetry

SEARCH_ATTRIBUTES = ("HostlerHost", "HostlerCluster", "HostlerPod", "HostlerZone", "HostlerPhase")

_ATTEMPTS = 20
_PAUSE_S = 0.5


async def connect(settings: Settings, telemetry: Telemetry) -> Client:
    """A client of the namespace. Raises Unavailable if nothing answers, NotFound for the
    namespace."""
    where = f"Temporal at {settings.temporal_address}"
    try:
        client = await Client.connect(
            settings.temporal_address,
            namespace=settings.temporal_namespace,
            data_converter=HOSTLER_DATA_CONVERTER,
            interceptors=telemetry.client_interceptors,
            runtime=telemetry.runtime,
            tls=_tls(settings),
        )
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=settings.temporal_namespace)
        )
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise NotFound(
                f"{where} has no namespace {settings.temporal_namespace!r}.",
                remedy="Create it, or set HOSTLER_TEMPORAL_NAMESPACE.",
            ) from error
        raise Failed(f"{where} refused: {error.message}.") from error
    except RuntimeError as error:
        # The SDK tells a refused connection from a wrong certificate in words alone.
        raise Unavailable(
            f"{where} does not answer: {error}.",
            remedy="Start it (`hostler up` brings its own), or set HOSTLER_TEMPORAL_ADDRESS"
            + (" or HOSTLER_TEMPORAL_TLS_CA_FILE and its neighbours." if _tls(settings) else "."),
        ) from error
    return client


async def ensure_search_attributes(client: Client) -> None:
    """Register the attributes that are missing in the namespace.

    Another process may be adding them at the same time: what counts is that they are there.
    """
    problem: RPCError | None = None
    missing = list(SEARCH_ATTRIBUTES)
    for _ in range(_ATTEMPTS):
        try:
            listed = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace=client.namespace)
            )
            missing = [name for name in SEARCH_ATTRIBUTES if name not in listed.custom_attributes]
            if not missing:
                return
            await client.operator_service.add_search_attributes(
                AddSearchAttributesRequest(
                    namespace=client.namespace,
                    search_attributes=dict.fromkeys(
                        missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
                    ),
                )
            )
        except RPCError as error:
            problem = error
            await asyncio.sleep(_PAUSE_S)
    raise Failed(
        f"Temporal's namespace {client.namespace!r} lacks the search attributes "
        f"{', '.join(missing)}" + (f": {problem.message}." if problem else "."),
        remedy="Add them as type Keyword: temporal operator search-attribute create.",
    ) from problem


def _tls(settings: Settings) -> TLSConfig | bool:
    ca, certificate, key = (
        path.read_bytes() if path else None
        for path in (
            settings.temporal_tls_ca_file,
            settings.temporal_tls_cert_file,
            settings.temporal_tls_key_file,
        )
    )
    if not (ca or certificate):
        return False
    return TLSConfig(server_root_ca_cert=ca, client_cert=certificate, client_private_key=key)
