"""The tracing span `submit`: from the arrival of a request until its job is stored or refused. Its parent is the caller's span, if any."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

from flask import g, request

from models.platform import wire
from models.platform.errors import ServingError
from models.queue.submission import Submission
from models.telemetry import tracing
from models.telemetry.span import Span


class SubmitSpan:
    """submission: with the request id and the traceparent that are stored with the job."""

    def __init__(self, submission: Submission, span: Span) -> None:
        self.submission = replace(submission, request_id=g.request_number, traceparent=span.traceparent)
        self._span = span

    def set_job(self, job_id: UUID, *, lane_id: int, is_replayed: bool) -> None:
        """Adds the job to the attributes of the span."""
        if self._span.is_recording:
            self._span.set_attributes(
                {"nowserving.job": wire.public_id(job_id), "nowserving.lane": lane_id, "nowserving.replayed": is_replayed or None}
            )

    def end(self, status: int | None = None, error: str | None = None) -> None:
        """Ends the span. error: the code of a refusal, or the type of an exception."""
        if self._span.is_recording:
            rule, submission = request.url_rule, self.submission
            self._span.set_attributes({
                "http.request.method": request.method, "http.route": rule.rule if rule else None, "http.response.status_code": status,
                "gen_ai.request.model": submission.model, "nowserving.endpoint": submission.endpoint, "nowserving.key": submission.key.id,
                "nowserving.priority": submission.priority, "nowserving.tokens": submission.tokens,
                "nowserving.images": submission.images or None, "nowserving.request_id": g.request_id,
            })  # fmt: skip
        self._span.end(error=error)


@contextmanager
def start(submission: Submission) -> Iterator[SubmitSpan]:
    """A span around the block that stores this submission. An exception ends the span with its code or type."""
    headers = {name: value for name in ("traceparent", "tracestate") if (value := request.headers.get(name))} if tracing.is_on() else {}
    span = SubmitSpan(submission, tracing.start_root("submit", headers, at_ns=g.get("began_ns") or time.time_ns()))
    try:
        yield span
    except ServingError as error:
        span.end(error.status, error.code)
        raise
    except BaseException as error:
        span.end(500, type(error).__name__)
        raise
    span.end()
