"""Webhook sender, run for each message of the queue `webhooks`: claims a delivery, signs it, sends it and records the attempt.

It then goes on with the next due delivery of the same receiver, for up to CHAIN_S.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from datetime import UTC, datetime
from uuid import UUID, uuid4

from ssrfguard import Resolver
from standardwebhooks import Webhook

from models.config.settings import settings
from models.database import db, retrying
from models.jobs import webhook_payload
from models.platform import crash_points, ids, wire
from models.platform.errors import Unavailable
from models.telemetry import logs, tracing
from models.telemetry.span import Span, SpanKind
from models.webhooks import attempts, deliveries, retry_schedule
from models.webhooks.attempts import FinishedAttempt, SendResult
from models.webhooks.deliveries import ClaimedDelivery
from models.webhooks.delivery_log import PREFIX
from workers.answers import rate_limit_headers
from workers.channels import notify
from workers.observe import attempt_log, counters
from workers.webhooks import safe_http
from workers.webhooks.safe_http import Blocked, Response, Unreachable

log = logging.getLogger(__name__)

USER_AGENT = "nowserving/1.0 (+https://www.standardwebhooks.com)"
# After this time the slot is free for the delivery that is due next, of any receiver.
CHAIN_S = 5.0
# For this long an outcome is retried while Postgres is away; then the lease runs out and the delivery is sent again.
TRY_S = 5.0
# Answers whose Retry-After pauses the whole receiver, not only the delivery.
PAUSING = frozenset({429, 503})


class Sender:
    """Body of the Celery task. stop: once set, no further delivery is claimed; resolver: replaces the system's."""

    def __init__(self, *, stop: threading.Event, rng: random.Random | None = None, resolver: Resolver | None = None) -> None:
        self._stop = stop
        self._rng = rng or random.Random()
        self._resolver = resolver

    def serve(self, delivery_id: UUID, ticket: UUID) -> None:
        """Sends this delivery once, unless its ticket is stale, and then further ones of its receiver. Safe to call twice."""
        crash_points.hit("webhook.before_claim")
        try:
            with db.begin() as session:
                delivery = deliveries.claim(session, delivery_id, ticket, lease_s=_lease_s(), render=webhook_payload.render)
        except Unavailable:
            fields = {"delivery": ids.format_id(PREFIX, delivery_id)}
            log.warning("claim failed: Postgres is away; the delivery becomes pending again", extra=fields)
            return
        chain_until = time.monotonic() + CHAIN_S
        while delivery is not None:
            with logs.bound(**_log_fields(delivery)):
                crash_points.hit("webhook.after_claim")
                span = tracing.start_child("webhook", delivery.traceparent, kind=SpanKind.CLIENT)
                attempt, retry_after_s = self._send(delivery, traceparent=span.traceparent)
                _end_span(span, delivery, attempt)
                crash_points.hit("webhook.after_send")
                delivery = self._finish(delivery, attempt, retry_after_s=retry_after_s, may_chain=time.monotonic() < chain_until)

    def _send(self, delivery: ClaimedDelivery, *, traceparent: str | None) -> tuple[SendResult, float | None]:
        """Sends the delivery once; returns the result, and the seconds that the receiver asked to wait."""
        started = time.monotonic()
        try:
            response = safe_http.post(
                delivery.url, headers=_headers(delivery, traceparent), body=delivery.payload, timeout_s=settings().webhook_timeout_s,
                resolver=self._resolver,
            )  # fmt: skip
        except Unreachable as error:
            if isinstance(error, Blocked):
                log.warning("webhook blocked by the URL policy", extra={"why": error.detail})
            return SendResult(has_arrived=False, duration_ms=_since_ms(started), error=str(error)), None
        wait_ms = rate_limit_headers.retry_after_ms(response.headers, max_ms=int(retry_schedule.MAX_RETRY_AFTER_S * 1000))
        return _result(response, duration_ms=_since_ms(started)), None if wait_ms is None else wait_ms / 1000

    def _finish(
        self, delivery: ClaimedDelivery, attempt: SendResult, *, retry_after_s: float | None, may_chain: bool
    ) -> ClaimedDelivery | None:  # fmt: skip
        """Records the attempt and, in the same transaction, claims the next delivery unless the receiver is failing."""
        chains = may_chain and not self._stop.is_set()
        left = delivery.retries_left
        retry_in_s = retry_schedule.delay_s(left, rng=self._rng, retry_after_s=retry_after_s) if left else 0.0
        pause_s = retry_after_s if retry_after_s is not None and attempt.http_status in PAUSING else 0.0

        def commit() -> tuple[FinishedAttempt | None, ClaimedDelivery | None]:
            with db.begin() as session:
                finished = attempts.finish(session, delivery.id, delivery.ticket, attempt, retry_in_s=retry_in_s, pause_s=pause_s)
                if not chains or finished is None or finished.is_failing:
                    return finished, None
                receiver, render = delivery.receiver, webhook_payload.render
                return finished, deliveries.claim_next(session, receiver, uuid4(), lease_s=_lease_s(), render=render)

        try:
            finished, following = retrying.while_unavailable(commit, for_s=TRY_S)
        except Unavailable:
            log.warning("outcome lost: Postgres is away; the delivery is sent again")
            return None
        crash_points.hit("webhook.after_finish")
        _report(delivery, attempt, finished)
        # A failing receiver is polled once a second; any other one gets its next delivery at once, in another slot.
        if following is None and not chains and finished is not None and not finished.is_failing:
            notify.deliveries_due([delivery.receiver])
        return following


def sign(secrets: list[str], *, message_id: str, at: datetime, payload: bytes) -> str:
    """Returns the header webhook-signature: one signature for each secret. at: aware, UTC (standardwebhooks takes any zone for UTC)."""
    return " ".join(Webhook(secret).sign(message_id, at, payload.decode()) for secret in secrets)


def _headers(delivery: ClaimedDelivery, traceparent: str | None) -> dict[str, str]:
    now, message_id = datetime.now(UTC), ids.format_id(PREFIX, delivery.id)
    return {
        **({"traceparent": traceparent} if traceparent else {}),
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": sign(delivery.secrets, message_id=message_id, at=now, payload=delivery.payload),
    }


def _result(response: Response, *, duration_ms: int) -> SendResult:
    status, has_arrived = response.status, 200 <= response.status < 300
    redirected = " (redirects are not followed)" if 300 <= status < 400 else ""
    return SendResult(
        has_arrived=has_arrived, duration_ms=duration_ms, http_status=status, answer=response.body,
        error=None if has_arrived else f"it answered {status}{redirected}", is_gone=status == 410,
    )  # fmt: skip


def _report(delivery: ClaimedDelivery, attempt: SendResult, finished: FinishedAttempt | None) -> None:
    counters.sent(has_arrived=attempt.has_arrived, http_status=attempt.http_status)
    fields = {"receiver": delivery.receiver, "key": delivery.key_id}
    if finished is None:
        log.warning("attempt discarded: the delivery has another ticket", extra=fields)
        return
    result = {"http_status": attempt.http_status, "ms": attempt.duration_ms, "why": attempt.error, "status": finished.status}
    log.info("webhook arrived" if attempt.has_arrived else "webhook did not arrive", extra={**fields, **result})
    if finished.disabled:
        log.error("webhook endpoint disabled", extra={**fields, "reason": finished.disabled})


def _log_fields(delivery: ClaimedDelivery) -> dict[str, object]:
    """Fields of the delivery's log lines; with those of its job, if it has one. attempt: number of the delivery's attempt."""
    job_id = wire.public_id(delivery.job_id) if delivery.job_id else None
    return {
        "job": job_id, "attempt": delivery.attempts, **attempt_log.log_fields(delivery), "delivery": ids.format_id(PREFIX, delivery.id)
    }  # fmt: skip


def _end_span(span: Span, delivery: ClaimedDelivery, attempt: SendResult) -> None:
    """Ends the span `webhook` with its target and its result, without the payload."""
    if span.is_recording:
        span.set_attributes({
            "http.request.method": "POST", "http.response.status_code": attempt.http_status, **tracing.server_attributes(delivery.url),
            "nowserving.job": wire.public_id(delivery.job_id) if delivery.job_id else None, "nowserving.lane": delivery.lane_id,
            "nowserving.key": delivery.key_id, "nowserving.delivery": ids.format_id(PREFIX, delivery.id),
            "nowserving.event": delivery.event_type, "nowserving.attempt": delivery.attempts,
        })  # fmt: skip
    span.end(error=None if attempt.has_arrived else str(attempt.http_status or "unreachable"))


def _since_ms(started: float) -> int:
    return int((time.monotonic() - started) * 1000)


def _lease_s() -> float:
    return settings().webhook_timeout_s + safe_http.BODY_S + TRY_S + 8
