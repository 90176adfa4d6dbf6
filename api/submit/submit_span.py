"""The span `submit`: from the arrival of a request until its job is on disk, or refused; under the caller's own where it says which."""

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
    """order: with the request and the span that it comes with, as they are stored with the job."""

    def __init__(self, order: Submission, span: Span) -> None:
        self.order = replace(order, request_id=g.request_number, traceparent=span.traceparent)
        self._span = span

    def made(self, job_id: UUID, *, lane_id: int, is_replayed: bool) -> None:
        """It is this job."""
        if self._span.is_recording:
            self._span.set_attributes(
                {"nowserving.job": wire.public_id(job_id), "nowserving.lane": lane_id, "nowserving.replayed": is_replayed or None}
            )

    def over(self, status: int | None = None, error: str | None = None) -> None:
        if self._span.is_recording:
            rule, order = request.url_rule, self.order
            self._span.set_attributes({
                "http.request.method": request.method, "http.route": rule.rule if rule else None, "http.response.status_code": status,
                "gen_ai.request.model": order.model, "nowserving.endpoint": order.endpoint, "nowserving.key": order.key.id,
                "nowserving.priority": order.priority, "nowserving.tokens": order.tokens, "nowserving.images": order.images or None,
                "nowserving.request_id": g.request_id,
            })  # fmt: skip
        self._span.end(error=error)


@contextmanager
def start(order: Submission) -> Iterator[SubmitSpan]:
    """Inside, the order is put in line; what is raised ends the span with its kind."""
    headers = {name: said for name in ("traceparent", "tracestate") if (said := request.headers.get(name))} if tracing.is_on() else {}
    told = SubmitSpan(order, tracing.start_root("submit", headers, at_ns=g.get("began_ns") or time.time_ns()))
    try:
        yield told
    except ServingError as error:
        told.over(error.status, error.code)
        raise
    except BaseException as error:
        told.over(500, type(error).__name__)
        raise
    told.over()
