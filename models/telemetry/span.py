"""The span of a trace as this project uses it: an interface of OpenTelemetry's span, and a no-op span for when tracing is off."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

Attributes = Mapping[str, str | int | float | bool | list[str] | None]


class SpanKind(StrEnum):
    """OpenTelemetry's span kinds, as far as they are used here."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


class Span:
    """A span that records nothing. Times are nanoseconds since 1970.

    traceparent: the W3C header with which another process continues the trace; None: the span belongs to no trace.
    """

    traceparent: str | None = None
    is_recording = False

    def set_attributes(self, attributes: Attributes) -> None:
        """Adds attributes. Attributes with the value None are left out."""

    def add_event(self, event: str, *, at_ns: int, attributes: Attributes) -> None:
        """Adds an event within the span."""

    def end(self, *, at_ns: int | None = None, error: str | None = None) -> None:
        """Ends the span, now if at_ns is None. error: the kind of error, where the operation failed."""


# Used when tracing is off, and for jobs that were submitted while it was off.
NOOP_SPAN = Span()
