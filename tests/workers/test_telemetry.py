"""What leaves the process: nothing by default, one trace per request when it is turned on."""

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from contracts.maintenance import HostMaintenanceInput
from tests.ports import free_port
from tests.workers.samples import ACTIVITIES, SampleMaintenance
from workers.interceptors import HostlerInterceptor
from workers.settings import Settings, WrongSettings
from workers.telemetry import Telemetry, set_up_telemetry
from workers.temporal import connect

pytestmark = pytest.mark.asyncio(loop_scope="package")


class Collector(
    trace_service_pb2_grpc.TraceServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
):
    """An OpenTelemetry collector's gRPC side."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: set[str] = set()
        self.services: set[str] = set()

    def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 - gRPC's name
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics.update(metric.name for metric in scope.metrics)
            return metrics_service_pb2.ExportMetricsServiceResponse()
        for resource in request.resource_spans:
            self.services.update(
                item.value.string_value
                for item in resource.resource.attributes
                if item.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


# The SDK's own exporter goes on as long as the process: its collectors do too.
_SERVERS: list[grpc.Server] = []


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    server = grpc.server(ThreadPoolExecutor(1))
    _SERVERS.append(server)
    port = server.add_insecure_port("127.0.0.1:0")
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        collector, server
    )
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(  # type: ignore[no-untyped-call]
        collector, server
    )
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    return collector


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


async def request_one_maintenance(temporal: WorkflowEnvironment, telemetry: Telemetry) -> None:
    """One HTTP request that runs a workflow with one activity."""
    settings = Settings(temporal_address=temporal.client.service_client.config.target_host)
    client = await connect(settings, telemetry)
    queue = str(uuid.uuid4())
    app = FastAPI()

    @app.post("/v1/hosts/{name}/maintenance")
    async def enter(name: str) -> str:
        answer: str = await client.execute_workflow(
            "HostMaintenance",
            HostMaintenanceInput(host=name),
            id=queue,
            task_queue=queue,
            result_type=str,
        )
        return answer

    telemetry.instrument(app)
    async with (
        worker_of(client, queue),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as api,
    ):
        assert (await api.post("/v1/hosts/kvm-1/maintenance")).json() == "hello from kvm-1"


def worker_of(client: Client, queue: str) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        workflows=[SampleMaintenance],
        activities=ACTIVITIES,
        interceptors=[HostlerInterceptor()],
    )


async def test_a_request_is_one_trace_through_api_workflow_and_activity(
    temporal: WorkflowEnvironment, collector: Collector
) -> None:
    telemetry = set_up_telemetry()
    await request_one_maintenance(temporal, telemetry)
    await eventually(
        lambda: (
            {
                "hostler_operations_ended",
                "temporal_workflow_completed",
                "http.server.duration",
            }
            <= collector.metrics
        )
    )
    await asyncio.to_thread(telemetry.shut_down)
    assert {span.name for span in collector.spans} == {
        "POST /v1/hosts/{name}/maintenance",
        "StartWorkflow:HostMaintenance",
        "RunWorkflow:HostMaintenance",
        "StartActivity:greet",
        "RunActivity:greet",
        "CompleteWorkflow:HostMaintenance",
    }
    assert len({span.trace_id for span in collector.spans}) == 1
    assert collector.services == {"hostler"}


async def test_nothing_is_exported_by_default(
    temporal: WorkflowEnvironment, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    telemetry = set_up_telemetry()
    assert telemetry.tracer_provider is None
    assert telemetry.meter_provider is None
    assert telemetry.client_interceptors == []
    await request_one_maintenance(temporal, telemetry)
    assert collector.spans == []
    assert collector.metrics == set()


async def test_prometheus_reads_the_metrics_of_the_sdk_and_ours(
    temporal: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(port))
    telemetry = set_up_telemetry()
    await request_one_maintenance(temporal, telemetry)
    async with httpx.AsyncClient() as scraper:
        text = (await scraper.get(f"http://127.0.0.1:{port}/metrics")).text
    assert "temporal_workflow_completed" in text
    assert 'kind="maintenance"' in text
    assert 'outcome="completed"' in text


async def test_spans_go_to_the_console(
    temporal: WorkflowEnvironment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    telemetry = set_up_telemetry()
    await request_one_maintenance(temporal, telemetry)
    telemetry.shut_down()
    assert "RunActivity:greet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER: there is no exporter 'zipkin'"),
        ("OTEL_METRICS_EXPORTER", "graphite", "one of: console, none, otlp, prometheus"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "Set it to grpc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often", "OTEL_METRIC_EXPORT_INTERVAL: 'often' is not"),
    ],
)
async def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(WrongSettings, match=says):
        set_up_telemetry()


async def test_the_standard_switch_turns_all_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert set_up_telemetry().tracer_provider is None
