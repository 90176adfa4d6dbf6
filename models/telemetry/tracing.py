"""Tracing: one OpenTelemetry trace per job, across processes and hours. The traceparent of the first span is stored with the job.

    submit ─┬─ wait ─ attempt ─ wait ─ attempt ─ webhook        one after another, all of them children of the first span

Tracing is off, and no OpenTelemetry module is loaded, unless OpenTelemetry's own variables name an endpoint (Settings.has_traces).
Recording never fails and never blocks: spans wait in a bounded queue until a thread of the process has exported them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from models.config.settings import settings
from models.telemetry.span import NOOP_SPAN, Attributes, Span, SpanKind

log = logging.getLogger(__name__)

# How long an ending process waits for the export of its last spans.
FLUSH_TIMEOUT_S = 3.0


class SpanSink(Protocol):
    """Creates and exports spans. models/telemetry/otlp.py implements it, and is loaded only when tracing is on."""

    def start_span(self, name: str, *, under: Mapping[str, str], kind: SpanKind, at_ns: int | None) -> Span: ...

    def close(self, *, within_s: float) -> None: ...


_sink: SpanSink | None = None


def start(service: str) -> None:
    """Starts tracing in this process, if it is configured. A second call changes nothing.

    Call it in the process that records spans: threads do not survive a fork. service: the service name if OTEL_SERVICE_NAME is not set.
    """
    global _sink
    if _sink is not None or not settings().has_traces:
        return
    try:
        _sink = importlib.import_module("models.telemetry.otlp").SpanSender(service)
    except ModuleNotFoundError as error:
        log.error(
            "tracing is configured, and OpenTelemetry is not installed: pip install 'nowserving[otel]'", extra={"missing": error.name}
        )
    except Exception:
        # An error border: whatever is wrong with the OTEL_… variables, jobs are served.
        log.exception("tracing is configured, and cannot be started")


def is_on() -> bool:
    """Whether this process exports spans."""
    return _sink is not None


def stop() -> None:
    """Exports the recorded spans, waiting at most FLUSH_TIMEOUT_S. For a process that ends."""
    global _sink
    sink, _sink = _sink, None
    if sink is not None:
        sink.close(within_s=FLUSH_TIMEOUT_S)


def start_root(name: str, headers: Mapping[str, str], *, at_ns: int) -> Span:
    """Starts the first span of a job: a child of the caller's span if the headers (traceparent, tracestate) name one, else a new trace."""
    return NOOP_SPAN if _sink is None else _sink.start_span(name, under=headers, kind=SpanKind.SERVER, at_ns=at_ns)


def start_child(name: str, traceparent: str | None, *, kind: SpanKind = SpanKind.INTERNAL, at_ns: int | None = None) -> Span:
    """Starts a later span of the job that was stored with this traceparent; NOOP_SPAN if it is None."""
    if _sink is None or traceparent is None:
        return NOOP_SPAN
    return _sink.start_span(name, under={"traceparent": traceparent}, kind=kind, at_ns=at_ns)


def server_attributes(url: str) -> Attributes:
    """The attributes server.address and server.port of a URL; never its path."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return {"server.address": parts.hostname, "server.port": port}


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id in this traceparent header, 32 hex digits; None while tracing is off."""
    return traceparent[3:35] if traceparent is not None and _sink is not None else None
