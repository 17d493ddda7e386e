"""OpenTelemetry, set up once per process and off unless the standard `OTEL_*` variables turn it on.

    OTEL_TRACES_EXPORTER    otlp | console | none
    OTEL_METRICS_EXPORTER   otlp | prometheus | console | none

Without them, setting `OTEL_EXPORTER_OTLP_ENDPOINT` turns both on. Endpoints, headers, sampling,
intervals and the resource follow their own standard variables; OTLP goes over gRPC. With
`prometheus` the metrics (Temporal's SDK and Hostler's own) are served at
`OTEL_EXPORTER_PROMETHEUS_HOST`:`_PORT` (localhost:9464). `console` writes spans and the API's
metrics to stdout.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import unquote

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from temporalio.client import Interceptor
from temporalio.contrib.opentelemetry import TracingInterceptor
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    OpenTelemetryConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)

from workers.settings import WrongSettings

_SPAN_EXPORTERS: dict[str, Callable[[], SpanExporter]] = {
    "otlp": OTLPSpanExporter,
    "console": lambda: ConsoleSpanExporter(out=sys.stdout),
}
_METRIC_EXPORTERS: dict[str, Callable[[], MetricExporter]] = {
    "otlp": OTLPMetricExporter,
    "console": lambda: ConsoleMetricExporter(out=sys.stdout),
}

# The SDK's native part writes to the process's own logs, not straight to stderr.
_SDK_LOGS = LoggingConfig(
    TelemetryFilter(core_level="WARN", other_level="ERROR"),
    forwarding=LogForwardingConfig(
        logging.getLogger("temporalio.core"),
        append_target_to_name=False,
        prepend_target_on_message=False,
    ),
)


@dataclass(frozen=True)
class Telemetry:
    """What the process exports. `runtime` goes into each Temporal client of the process."""

    runtime: Runtime
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    client_interceptors: list[Interceptor] = field(default_factory=list)

    def instrument(self, app: FastAPI) -> None:
        """Give each request a span, and measure it, if anybody wants to see that."""
        if self.tracer_provider or self.meter_provider:
            FastAPIInstrumentor.instrument_app(
                app,
                tracer_provider=self.tracer_provider,
                meter_provider=self.meter_provider,
                exclude_spans=["receive", "send"],
            )

    def shut_down(self) -> None:
        """Export what is left. Blocks, at most as long as the exporters' own time-out."""
        if self.tracer_provider:
            self.tracer_provider.shutdown()
        if self.meter_provider:
            self.meter_provider.shutdown()


@asynccontextmanager
async def running_telemetry() -> AsyncIterator[Telemetry]:
    """Export during the block, and what is left at its end."""
    telemetry = set_up_telemetry()
    try:
        yield telemetry
    finally:
        await asyncio.to_thread(telemetry.shut_down)


def set_up_telemetry() -> Telemetry:
    """Read the `OTEL_*` variables. Raises WrongSettings."""
    traces = _exporter("TRACES", {*_SPAN_EXPORTERS})
    metrics = _exporter("METRICS", {*_METRIC_EXPORTERS, "prometheus"})
    resource = Resource.create(_default_service_name())
    tracer_provider = None
    if traces:
        tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        tracer_provider.add_span_processor(BatchSpanProcessor(_SPAN_EXPORTERS[traces]()))
    meter_provider = None
    if metrics in _METRIC_EXPORTERS:
        reader = PeriodicExportingMetricReader(_METRIC_EXPORTERS[metrics]())
        meter_provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    return Telemetry(
        runtime=Runtime(
            telemetry=TelemetryConfig(
                logging=_SDK_LOGS,
                metrics=_sdk_metrics(metrics),
                global_tags={"service_name": str(resource.attributes["service.name"])},
                attach_service_name=False,
            )
        ),
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        client_interceptors=(
            [TracingInterceptor(tracer_provider.get_tracer("hostler"))] if tracer_provider else []
        ),
    )


def _exporter(signal: str, known: set[str]) -> str:
    """The exporter of "TRACES" or "METRICS" by the standard variables; "" for none."""
    variable = f"OTEL_{signal}_EXPORTER"
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    implied = "otlp" if _endpoint(signal) else ""
    name = os.environ.get(variable, "").strip().lower() or implied
    if name in ("", "none"):
        return ""
    if name not in known:
        raise WrongSettings(
            f"{variable}: there is no exporter {name!r}.",
            remedy=f"Set it to one of: {', '.join(sorted({*known, 'none'}))}.",
        )
    if name == "otlp":
        _require_grpc(signal)
    return name


def _require_grpc(signal: str) -> None:
    for variable in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(variable, "")
        if protocol not in ("", "grpc"):
            raise WrongSettings(
                f"{variable}: {protocol!r} is not possible.",
                remedy="Set it to grpc, and the endpoint to the collector's gRPC port (4317).",
            )


def _endpoint(signal: str) -> str | None:
    return _of_signal(signal, "ENDPOINT")


def _of_signal(signal: str, name: str) -> str | None:
    """`OTEL_EXPORTER_OTLP_<signal>_<name>`, or the one for all signals."""
    specific = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_{name}")
    return specific or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") or None


def _sdk_metrics(exporter: str) -> OpenTelemetryConfig | PrometheusConfig | None:
    """Temporal's SDK exports by itself; the same variables lead it to the same place."""
    if exporter == "prometheus":
        host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost"
        port = _number("OTEL_EXPORTER_PROMETHEUS_PORT", 9464)
        # The SDK takes an address, not a name.
        address = {"localhost": "127.0.0.1"}.get(host, host)
        return PrometheusConfig(f"{address}:{port}", durations_as_seconds=True)
    if exporter == "otlp":
        return OpenTelemetryConfig(
            url=_endpoint("METRICS") or "http://localhost:4317",
            headers=_headers(_of_signal("METRICS", "HEADERS") or ""),
            metric_periodicity=timedelta(
                milliseconds=_number("OTEL_METRIC_EXPORT_INTERVAL", 60_000)
            ),
            durations_as_seconds=True,
        )
    return None


def _number(variable: str, default: int) -> int:
    value = os.environ.get(variable) or str(default)
    if not value.isdecimal():
        raise WrongSettings(
            f"{variable}: {value!r} is not a number.", remedy="Correct or unset it."
        )
    return int(value)


def _headers(text: str) -> dict[str, str]:
    pairs = (item.partition("=") for item in text.split(",") if "=" in item)
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}


def _default_service_name() -> dict[str, str]:
    """`hostler`, unless the standard variables name the service."""
    named = OTELResourceDetector().detect().attributes
    return {} if "service.name" in named else {"service.name": "hostler"}
