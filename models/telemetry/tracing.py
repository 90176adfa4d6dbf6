"""One trace for each job, though processes and hours lie between its spans: the context of the first is stored with the job.

    submit ─┬─ wait ─ attempt ─ wait ─ attempt ─ webhook        one after another, and all of them children of the first

Off, and nothing of OpenTelemetry loaded, unless its own variables say where spans go (Settings.has_traces). Telling never fails and
never waits: spans lie in a bounded queue until a thread of the process has sent them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol
from urllib.parse import urlsplit

from models.config.settings import settings

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | bool | list[str] | None]
# How long a process that ends waits for its last spans to be taken.
LAST_WORDS_S = 3.0


class Kind(StrEnum):
    """Which side of what a span tells of."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


class Span:
    """What is told of something that takes time. This one is told to nobody: traces are off, or the job came when they were.

    traceparent: the W3C header by which others go on with it. Times are nanoseconds since 1970.
    """

    traceparent: str | None = None
    is_recorded = False

    @property
    def trace_id(self) -> str | None:
        """32 hex digits."""
        return trace_id(self.traceparent)

    def set(self, attributes: Attributes) -> None:
        """Known of it too; None says nothing."""

    def mark(self, event: str, *, at_ns: int, attributes: Attributes) -> None:
        """This happened meanwhile."""

    def end(self, *, at_ns: int | None = None, error: str | None = None) -> None:
        """It is over, now where nothing else is said. error: a kind, where it went wrong."""


NOOP_SPAN = Span()


class Sink(Protocol):
    """Where spans go: models/telemetry/otlp.py, which is loaded only where they go somewhere."""

    def begin(self, name: str, *, under: Mapping[str, str], kind: Kind, at_ns: int | None) -> Span: ...

    def close(self, *, within_s: float) -> None: ...


_sink: Sink | None = None


def start(service: str) -> None:
    """Spans of this process are told from now on, where somebody wants them. service: where OTEL_SERVICE_NAME says nothing else.

    In the process that tells them, for threads do not survive a fork. A second time changes nothing.
    """
    global _sink
    if _sink is not None or not settings().has_traces:
        return
    try:
        _sink = importlib.import_module("models.telemetry.otlp").Sender(service)
    except ModuleNotFoundError as error:
        log.error("traces are wanted, and OpenTelemetry is not installed: pip install 'nowserving[otel]'", extra={"missing": error.name})
    except Exception:
        # A border: whatever is wrong with those variables, jobs are served.
        log.exception("traces are wanted, and cannot be told")


def is_on() -> bool:
    """Whether spans of this process go anywhere."""
    return _sink is not None


def stop() -> None:
    """What was told has been sent, or LAST_WORDS_S waited for it. For a process that ends."""
    global _sink
    sink, _sink = _sink, None
    if sink is not None:
        sink.close(within_s=LAST_WORDS_S)


def start_root(name: str, headers: Mapping[str, str], *, at_ns: int) -> Span:
    """The first span of a job: under that of its caller where the headers name one (traceparent, tracestate), else of a new trace."""
    return NOOP_SPAN if _sink is None else _sink.begin(name, under=headers, kind=Kind.SERVER, at_ns=at_ns)


def start_child(name: str, traceparent: str | None, *, kind: Kind = Kind.INTERNAL, at_ns: int | None = None) -> Span:
    """A later span of the job that was stored with this traceparent; NOOP_SPAN where there is none."""
    if _sink is None or traceparent is None:
        return NOOP_SPAN
    return _sink.begin(name, under={"traceparent": traceparent}, kind=kind, at_ns=at_ns)


def address(url: str) -> Attributes:
    """The attributes that say where this leads; never its path."""
    found = urlsplit(url)
    try:
        port = found.port
    except ValueError:
        port = None
    return {"server.address": found.hostname, "server.port": port}


def trace_id(traceparent: str | None) -> str | None:
    """The trace that this names, while traces are told."""
    return traceparent[3:35] if traceparent is not None and _sink is not None else None
