"""Exports spans to an OTLP endpoint with OpenTelemetry's SDK and its OTEL_… variables. Loaded only when tracing is on
(models/telemetry/tracing.py).

The SDK queues OTEL_BSP_MAX_QUEUE_SIZE spans, exports them in its own thread, and drops the oldest spans when the endpoint does not
answer. The SDK logs that for every batch; here it becomes one warning, and one line when exports succeed again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from models.telemetry.span import Attributes, Span, SpanKind

log = logging.getLogger(__name__)

_KINDS = {SpanKind.SERVER: otel.SpanKind.SERVER, SpanKind.CLIENT: otel.SpanKind.CLIENT, SpanKind.INTERNAL: otel.SpanKind.INTERNAL}
_W3C = TraceContextTextMapPropagator()
# These loggers report every failed batch; LoggingExporter reports the first one.
_VERBOSE_LOGGERS = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")


class SpanSender:
    """The span pipeline of one process. The OTEL_… variables set its sampling, limits, labels and endpoint."""

    def __init__(self, service: str) -> None:
        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        # No shutdown at exit: it would wait half a minute for an endpoint that does not answer.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(LoggingExporter(OTLPSpanExporter())))
        self._tracer = self._provider.get_tracer("nowserving")

    def start_span(self, name: str, *, under: Mapping[str, str], kind: SpanKind, at_ns: int | None) -> Span:
        """Starts a child of the span in these W3C headers, or a new trace if they name none."""
        return OtelSpan(self._tracer.start_span(name, context=_W3C.extract(under), kind=_KINDS[kind], start_time=at_ns))

    def close(self, *, within_s: float) -> None:
        """Exports the queued spans, waiting at most within_s."""
        shutdown = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        shutdown.start()
        shutdown.join(within_s)


class OtelSpan(Span):
    """A span of OpenTelemetry's SDK, which exports it when it has ended, if it was sampled."""

    def __init__(self, span: otel.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        self.is_recording = span.is_recording()

    def set_attributes(self, attributes: Attributes) -> None:
        self._span.set_attributes(_without_none(attributes))

    def add_event(self, event: str, *, at_ns: int, attributes: Attributes) -> None:
        self._span.add_event(event, _without_none(attributes), timestamp=at_ns)

    def end(self, *, at_ns: int | None = None, error: str | None = None) -> None:
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(otel.Status(otel.StatusCode.ERROR))
        self._span.end(end_time=at_ns)


class LoggingExporter(SpanExporter):
    """Logs the first failure of the wrapped exporter, and its next success."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("span export works again", extra={"lost": self._lost})
            self._lost = 0
            return result
        if not self._lost:
            log.warning("span export fails, spans are dropped: is the OTLP endpoint up, and does it accept HTTP?")
        self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _without_none(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
