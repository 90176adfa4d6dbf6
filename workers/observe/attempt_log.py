"""Log line and span `attempt` of each attempt of a job.

The span has the attributes of OpenTelemetry's conventions for GenAI clients, except content: never a prompt, an answer or a key.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from models.billing.usage import Usage
from models.config.settings import settings
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS
from models.jobs.states import AttemptResult, Outcome
from models.platform import ids
from models.telemetry import logs, tracing
from models.telemetry.span import Attributes, Span, SpanKind

log = logging.getLogger(__name__)

REQUEST_PREFIX = "req_"
# The conventions define names for the first two.
_OPERATIONS = {CHAT: "chat", EMBEDDINGS: "embeddings", IMAGES: "image_generation", EDITS: "image_edit", MODERATIONS: "moderation"}


class AttemptLog:
    """Records one attempt, from its claim on. row: of claims.claim."""

    def __init__(self, row: Any) -> None:
        self._row = row
        self._began_ns = time.time_ns()
        self._ended_ns: int | None = None
        self._result: AttemptResult | None = None
        self._why = ""
        logs.extend(attempt=row.calls, **log_fields(row))
        self._span = tracing.start_child("attempt", row.traceparent, kind=SpanKind.CLIENT, at_ns=self._began_ns)

    def record_result(self, result: AttemptResult, *, why: str = "") -> None:
        """Records the end of the call and its result. The database writes after it do not count as part of the call."""
        self._ended_ns, self._result, self._why = time.time_ns(), result, why

    def record_usage(self, usage: Usage | None) -> None:
        """Records the usage that the answer reports."""
        if usage is not None and usage.is_known and self._span.is_recording:
            self._span.set_attributes({
                "gen_ai.usage.input_tokens": usage.input_tokens, "gen_ai.usage.output_tokens": usage.output_tokens,
                "nowserving.images": usage.images or None, "nowserving.usage_estimated": usage.estimated or None,
            })  # fmt: skip

    def end(self) -> None:
        """Writes the log line and ends the span. Never raises."""
        ended_ns, result = self._ended_ns or time.time_ns(), self._result or AttemptResult(Outcome.UNKNOWN)
        log.info(
            "attempt over",
            extra={
                "outcome": result.outcome, "http_status": result.http_status, "ms": round((ended_ns - self._began_ns) / 1e6, 1),
                "upstream_request_id": result.upstream_request_id, "why": self._why or None,
            },
        )  # fmt: skip
        end_span(self._span, self._row, result, at_ns=ended_ns)


def log_lost_attempt(row: Any) -> None:
    """Logs an attempt of a lost worker: the lease expired and the outcome of the call is unknown. row: of the reaper."""
    result = AttemptResult(Outcome.UNKNOWN)
    log.warning(
        "lease expired", extra={"job": ids.format_id("job_", row.id), "attempt": row.calls, **log_fields(row), "status": row.status}
    )  # fmt: skip
    if row.started_at is not None:
        began_ns = int(row.started_at.timestamp() * 1e9)
        span = tracing.start_child("attempt", row.traceparent, kind=SpanKind.CLIENT, at_ns=began_ns)
        end_span(span, row, result, at_ns=time.time_ns())


def log_fields(row: Any) -> dict[str, object]:
    """Returns the log fields of a job's row, besides its id and its attempt."""
    return {"lane": row.lane_id, "key": row.key_id, "request_id": request_id(row), "trace_id": tracing.trace_id_of(row.traceparent)}


def request_id(row: Any) -> str | None:
    """Returns the X-Request-Id of the request that submitted this job."""
    return ids.format_id(REQUEST_PREFIX, row.request_id) if row.request_id is not None else None


def end_span(span: Span, row: Any, result: AttemptResult, *, at_ns: int) -> None:
    """Ends the span of an attempt. row: lane_id, key_id, credential_id, calls, endpoint, model, and base_url if known."""
    if span.is_recording:
        span.set_attributes(_attributes(row, result))
    error = None if result.outcome == Outcome.SUCCEEDED else str(result.http_status or result.outcome)
    span.end(at_ns=at_ns, error=error)


def _attributes(row: Any, result: AttemptResult) -> Attributes:
    return {
        "gen_ai.operation.name": _OPERATIONS.get(row.endpoint, "list_models"), "gen_ai.provider.name": "openai",
        "gen_ai.request.model": row.model, **tracing.server_attributes(getattr(row, "base_url", None) or settings().openai_base_url),
        "http.response.status_code": result.http_status, "nowserving.outcome": str(result.outcome),
        "nowserving.job": ids.format_id("job_", row.id), "nowserving.lane": row.lane_id, "nowserving.key": row.key_id,
        "nowserving.attempt": row.calls, "nowserving.credential": row.credential_id,
        "nowserving.dispatch_id": str(row.dispatch_id), "nowserving.upstream_request_id": result.upstream_request_id,
    }  # fmt: skip
