"""One doorbell of the queue `webhooks`: claim, sign, send, put on record; then the next for the same receiver, for a while."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID, uuid4

from ssrfguard import Resolver
from standardwebhooks import Webhook

from models.config.settings import settings
from models.database import db
from models.jobs import webhook_payload
from models.platform import crash_points, ids, wire
from models.platform.errors import Unavailable
from models.telemetry import logs, tracing
from models.telemetry.span import Span, SpanKind
from models.webhooks import deliveries, retry_schedule
from models.webhooks.deliveries import AttemptResult, ClaimedDelivery
from models.webhooks.delivery_log import PREFIX
from workers.answers import rate_limit_headers
from workers.channels import notify
from workers.observe import attempt_log, counters
from workers.webhooks import safe_http
from workers.webhooks.safe_http import Blocked, Response, Unreachable

log = logging.getLogger(__name__)
T = TypeVar("T")

USER_AGENT = "nowserving/1.0 (+https://www.standardwebhooks.com)"
# Then the slot goes to whoever is due next, not only to this receiver.
CHAIN_S = 5.0
# How long an outcome is kept for Postgres to come back; then the delivery is sent again when its lease runs out.
TRY_S = 5.0
PAUSE_S = 0.25
PAUSING = frozenset({429, 503})


class Sender:
    """What the Celery task runs. stop: no further delivery is taken once it is set; resolver: in place of the system's."""

    def __init__(self, *, stop: threading.Event, rng: random.Random | None = None, resolver: Resolver | None = None) -> None:
        self._stop = stop
        self._rng = rng or random.Random()
        self._resolver = resolver

    def serve(self, delivery_id: UUID, ticket: UUID) -> None:
        """The delivery was sent once, or is somebody else's; and others of its receiver while there are some. Safe to call twice."""
        crash_points.hit("webhook.before_claim")
        try:
            with db.begin() as session:
                one = deliveries.claim(session, delivery_id, ticket, lease_s=_lease_s(), render=webhook_payload.render)
        except Unavailable:
            about = {"delivery": ids.format_id(PREFIX, delivery_id)}
            log.warning("claim failed: Postgres is away; the delivery waits again by itself", extra=about)
            return
        until = time.monotonic() + CHAIN_S
        while one is not None:
            with logs.bound(**_about(one)):
                crash_points.hit("webhook.after_claim")
                span = tracing.start_child("webhook", one.traceparent, kind=SpanKind.CLIENT)
                attempt, wait_s = self._send(one, traceparent=span.traceparent)
                _end(span, one, attempt)
                crash_points.hit("webhook.after_send")
                one = self._settle(one, attempt, wait_s=wait_s, may_go_on=time.monotonic() < until)

    def _send(self, one: ClaimedDelivery, *, traceparent: str | None) -> tuple[AttemptResult, float | None]:
        """What came of sending it once, and how long the receiver asked to wait."""
        began = time.monotonic()
        try:
            reply = safe_http.post(
                one.url, headers=_headers(one, traceparent), body=one.payload, timeout_s=settings().webhook_timeout_s,
                resolver=self._resolver,
            )  # fmt: skip
        except Unreachable as error:
            if isinstance(error, Blocked):
                log.warning("webhook refused", extra={"why": error.detail})
            return AttemptResult(has_arrived=False, duration_ms=_since_ms(began), error=str(error)), None
        wait_ms = rate_limit_headers.retry_after_ms(reply.headers, max_ms=int(retry_schedule.MAX_RETRY_AFTER_S * 1000))
        return _judge(reply, duration_ms=_since_ms(began)), None if wait_ms is None else wait_ms / 1000

    def _settle(self, one: ClaimedDelivery, attempt: AttemptResult, *, wait_s: float | None, may_go_on: bool) -> ClaimedDelivery | None:
        """The attempt is on record; the next to send, in the same transaction, unless the receiver fails all the time."""
        goes_on = may_go_on and not self._stop.is_set()
        retry_in_s = retry_schedule.delay_s(one.retries_left, rng=self._rng, retry_after_s=wait_s) if one.retries_left else 0.0
        pause_s = wait_s if wait_s is not None and attempt.http_status in PAUSING else 0.0

        def commit() -> tuple[deliveries.FinishedAttempt | None, ClaimedDelivery | None]:
            with db.begin() as session:
                settled = deliveries.finish(session, one.id, one.ticket, attempt, retry_in_s=retry_in_s, pause_s=pause_s)
                if not goes_on or settled is None or settled.is_failing:
                    return settled, None
                return settled, deliveries.claim_next(session, one.receiver, uuid4(), lease_s=_lease_s(), render=webhook_payload.render)

        try:
            settled, following = _patiently(commit)
        except Unavailable:
            log.warning("outcome lost: Postgres is away; the delivery is sent again")
            return None
        crash_points.hit("webhook.after_finish")
        _report(one, attempt, settled)
        # What fails all the time is tried once a second; others go on at once, in another slot.
        if following is None and not goes_on and settled is not None and not settled.is_failing:
            notify.deliveries_due([one.receiver])
        return following


def sign(secrets: list[str], *, message_id: str, at: datetime, payload: bytes) -> str:
    """The webhook-signature header: one signature for each secret. at: aware, UTC (standardwebhooks takes any zone for UTC)."""
    return " ".join(Webhook(secret).sign(message_id, at, payload.decode()) for secret in secrets)


def _headers(one: ClaimedDelivery, traceparent: str | None) -> dict[str, str]:
    now, message_id = datetime.now(UTC), ids.format_id(PREFIX, one.id)
    traced = {"traceparent": traceparent} if traceparent else {}
    return {
        **traced,
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": sign(one.secrets, message_id=message_id, at=now, payload=one.payload),
    }


def _judge(reply: Response, *, duration_ms: int) -> AttemptResult:
    has_arrived = 200 <= reply.status < 300
    redirected = " (redirects are not followed)" if 300 <= reply.status < 400 else ""
    return AttemptResult(
        has_arrived=has_arrived,
        duration_ms=duration_ms,
        http_status=reply.status,
        answer=reply.body,
        error=None if has_arrived else f"it answered {reply.status}{redirected}",
        is_gone=reply.status == 410,
    )


def _report(one: ClaimedDelivery, attempt: AttemptResult, settled: deliveries.FinishedAttempt | None) -> None:
    counters.sent(has_arrived=attempt.has_arrived, http_status=attempt.http_status)
    about = {"receiver": one.receiver, "key": one.key_id}
    if settled is None:
        log.warning("too late: the delivery went on without this attempt", extra=about)
    else:
        went = {"http_status": attempt.http_status, "ms": attempt.duration_ms, "why": attempt.error, "status": settled.status}
        log.info("webhook arrived" if attempt.has_arrived else "webhook did not arrive", extra={**about, **went})
    if settled is not None and settled.disabled:
        log.error("webhook endpoint disabled", extra={**about, "reason": settled.disabled})


def _about(one: ClaimedDelivery) -> dict[str, object]:
    """What log lines say of it: of the job too, where it tells of one. attempt: of sending."""
    job_id = wire.public_id(one.job_id) if one.job_id else None
    return {"job": job_id, "attempt": one.attempts, **attempt_log.log_fields(one), "delivery": ids.format_id(PREFIX, one.id)}


def _end(span: Span, one: ClaimedDelivery, attempt: AttemptResult) -> None:
    """The span `webhook` is over: where it went to and what came back, not what was sent."""
    if span.is_recording:
        span.set_attributes({
            "http.request.method": "POST", "http.response.status_code": attempt.http_status, **tracing.server_attributes(one.url),
            "nowserving.job": wire.public_id(one.job_id) if one.job_id else None, "nowserving.lane": one.lane_id,
            "nowserving.key": one.key_id, "nowserving.delivery": ids.format_id(PREFIX, one.id), "nowserving.event": one.event_type,
            "nowserving.attempt": one.attempts,
        })  # fmt: skip
    span.end(error=None if attempt.has_arrived else str(attempt.http_status or "unreachable"))


def _patiently(step: Callable[[], T]) -> T:
    """What the step answers, tried again for TRY_S while Postgres is away. Raises Unavailable."""
    deadline = time.monotonic() + TRY_S
    while True:
        try:
            return step()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)


def _since_ms(began: float) -> int:
    return int((time.monotonic() - began) * 1000)


def _lease_s() -> float:
    return settings().webhook_timeout_s + safe_http.BODY_S + TRY_S + 8
