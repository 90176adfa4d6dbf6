"""Spans on their way to an OTLP endpoint, by OpenTelemetry's own SDK and variables. Loaded only where they go somewhere
(models/telemetry/tracing.py).

The SDK queues OTEL_BSP_MAX_QUEUE_SIZE spans, sends them in a thread of its own, and drops the oldest when nobody takes them. What of
that it would log by the line is one warning here, and one line when they arrive again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from models.telemetry.tracing import Attributes, Kind, Span

log = logging.getLogger(__name__)

_KINDS = {Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT, Kind.INTERNAL: SpanKind.INTERNAL}
_W3C = TraceContextTextMapPropagator()
# They would say at every batch what Watched says once.
_TALKATIVE = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal")


class Sender:
    """The spans of one process. Sampled, limited, labelled and sent as the OTEL_… variables say."""

    def __init__(self, service: str) -> None:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        found = Resource.create()
        if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            found = found.merge(Resource({SERVICE_NAME: service}))
        # Not at exit: that waits half a minute for an endpoint that is away.
        self._provider = TracerProvider(resource=found, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(Watched(OTLPSpanExporter())))
        self._tracer = self._provider.get_tracer("nowserving")

    def begin(self, name: str, *, under: Mapping[str, str], kind: Kind, at_ns: int | None) -> Span:
        """A span under that of the W3C headers; of a new trace where they name none."""
        return Told(self._tracer.start_span(name, context=_W3C.extract(under), kind=_KINDS[kind], start_time=at_ns))

    def close(self, *, within_s: float) -> None:
        """What was told has been sent, or that long was waited for it."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(within_s)


class Told(Span):
    """A span that is sent when it has ended, if it was sampled."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        self.is_recorded = span.is_recording()

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_known(attributes))

    def mark(self, event: str, *, at_ns: int, attributes: Attributes) -> None:
        self._span.add_event(event, _known(attributes), timestamp=at_ns)

    def end(self, *, at_ns: int | None = None, error: str | None = None) -> None:
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(end_time=at_ns)


class Watched(SpanExporter):
    """An exporter of which is said once that it fails, and once that it works again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        done = self._exporter.export(spans)
        if done is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("spans arrive again", extra={"lost": self._lost})
            self._lost = 0
            return done
        if not self._lost:
            log.warning("spans do not arrive, and are dropped: is the OTLP endpoint up, and does it speak HTTP?")
        self._lost += len(spans)
        return done

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _known(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
