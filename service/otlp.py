"""The Tracer that sends OpenTelemetry traces to a collector, by OTLP over HTTP: the optional `attachd[otel]`.

Spans wait in memory, 2048 of a worker at most; what comes while nobody takes them is dropped, so a
collector that is down costs no request anything. The SDK's own variables (`OTEL_EXPORTER_OTLP_HEADERS`,
`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` …) count, but for the address, which is a setting.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.metrics import METHODS

#: for one try to send, and for the last one when the process ends
_SEND_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 1.0
#: as OpenTelemetry's conventions call a method that is none of HTTP's
_OTHER_METHOD: Final = "_OTHER"


class OtlpTracer:
    """See Tracer.

    Args:
        endpoint: URL of the collector, to which `/v1/traces` is added.
        version: of this service.
    """

    def __init__(self, endpoint: str, version: str) -> None:
        own = {
            SERVICE_NAME: "attachd",
            SERVICE_VERSION: version,
            SERVICE_INSTANCE_ID: f"{os.uname().nodename}-{os.getpid()}",
        }
        # an operator's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
        resource = Resource(own).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=_SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("attachd", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> OtlpSpan:
        """See Tracer."""
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        method = method if method in METHODS else _OTHER_METHOD
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        return OtlpSpan(span)

    async def close(self) -> None:
        """What waits has been sent, if the collector takes it within a second."""
        # on a thread that does not keep the process: a collector may hang
        closing = threading.Thread(target=self._provider.shutdown, name="otlp-close", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _CLOSE_SECONDS)


class OtlpSpan:
    """See Span."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        """See Span."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def end(self, status: int, fields: Mapping[str, str | int]) -> None:
        """See Span."""
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attributes({f"attachd.{name}": value for name, value in fields.items()})
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()
