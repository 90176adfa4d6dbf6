"""What a worker says of an attempt: one line in the log when it is over, and the span `attempt`.

The span has what OpenTelemetry's conventions for GenAI clients ask for, except content: never a prompt, an answer or a key.
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
# The conventions have names for the first two.
_OPERATIONS = {CHAT: "chat", EMBEDDINGS: "embeddings", IMAGES: "image_generation", EDITS: "image_edit", MODERATIONS: "moderation"}


class AttemptLog:
    """Of one attempt, from its claim on. row: of job.claim."""

    def __init__(self, row: Any) -> None:
        self._row = row
        self._began_ns = time.time_ns()
        self._over_ns: int | None = None
        self._finding: AttemptResult | None = None
        self._why = ""
        logs.extend(attempt=row.calls, **log_fields(row))
        self._span = tracing.start_child("attempt", row.traceparent, kind=SpanKind.CLIENT, at_ns=self._began_ns)

    def found(self, finding: AttemptResult, *, why: str = "") -> None:
        """The call is over, and this is what is known of it; what is still to be written belongs to no call."""
        self._over_ns, self._finding, self._why = time.time_ns(), finding, why

    def used(self, used: Usage | None) -> None:
        """What the answer used."""
        if used is not None and used.is_told and self._span.is_recording:
            self._span.set_attributes({
                "gen_ai.usage.input_tokens": used.input_tokens, "gen_ai.usage.output_tokens": used.output_tokens,
                "nowserving.images": used.images or None, "nowserving.usage_estimated": used.estimated or None,
            })  # fmt: skip

    def end(self) -> None:
        """Said, whatever was found. Never raises."""
        over_ns, found = self._over_ns or time.time_ns(), self._finding or AttemptResult(Outcome.UNKNOWN)
        log.info(
            "attempt over",
            extra={
                "outcome": found.outcome, "http_status": found.http_status, "ms": round((over_ns - self._began_ns) / 1e6, 1),
                "upstream_request_id": found.upstream_request_id, "why": self._why or None,
            },
        )  # fmt: skip
        end_span(self._span, self._row, found, at_ns=over_ns)


def log_lost_attempt(row: Any) -> None:
    """Said for the worker that is gone: its lease ran out, and nobody knows what became of the call. row: of job.reap."""
    found = AttemptResult(Outcome.UNKNOWN)
    log.warning(
        "lease ran out", extra={"job": ids.format_id("job_", row.id), "attempt": row.calls, **log_fields(row), "status": row.status}
    )  # fmt: skip
    if row.started_at is not None:
        began_ns = int(row.started_at.timestamp() * 1e9)
        span = tracing.start_child("attempt", row.traceparent, kind=SpanKind.CLIENT, at_ns=began_ns)
        end_span(span, row, found, at_ns=time.time_ns())


def log_fields(row: Any) -> dict[str, object]:
    """What log lines say of a job's row, besides its id and its attempt."""
    return {"lane": row.lane_id, "key": row.key_id, "request_id": request_id(row), "trace_id": tracing.trace_id_of(row.traceparent)}


def request_id(row: Any) -> str | None:
    """The X-Request-Id of the request that brought this job."""
    return ids.format_id(REQUEST_PREFIX, row.request_id) if row.request_id is not None else None


def end_span(span: Span, row: Any, found: AttemptResult, *, at_ns: int) -> None:
    """The span of this attempt is over. row: lane_id, key_id, credential_id, calls, endpoint, model, and base_url where it is known."""
    if span.is_recording:
        span.set_attributes(_attributes(row, found))
    failed = None if found.outcome == Outcome.SUCCEEDED else str(found.http_status or found.outcome)
    span.end(at_ns=at_ns, error=failed)


def _attributes(row: Any, found: AttemptResult) -> Attributes:
    return {
        "gen_ai.operation.name": _OPERATIONS.get(row.endpoint, "list_models"), "gen_ai.provider.name": "openai",
        "gen_ai.request.model": row.model, **tracing.server_attributes(getattr(row, "base_url", None) or settings().openai_base_url),
        "http.response.status_code": found.http_status, "nowserving.outcome": str(found.outcome),
        "nowserving.job": ids.format_id("job_", row.id), "nowserving.lane": row.lane_id, "nowserving.key": row.key_id,
        "nowserving.attempt": row.calls, "nowserving.credential": row.credential_id,
        "nowserving.dispatch_id": str(row.dispatch_id), "nowserving.upstream_request_id": found.upstream_request_id,
    }  # fmt: skip
