"""Helpers that create webhook endpoints, cause job events and advance deliveries, for tests of the webhook sender."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from models.database import db
from models.jobs import webhook_payload
from models.keys.keys import Key
from models.webhooks import attempts, dispatch, endpoints
from models.webhooks import deliveries as delivery
from models.webhooks.attempts import FinishedAttempt, SendResult
from models.webhooks.deliveries import ClaimedDelivery
from tests.support.queue_tools import query

ENDED = ["job.succeeded", "job.failed", "job.cancelled", "job.expired"]
ARRIVED = SendResult(has_arrived=True, duration_ms=12, http_status=200, answer=b"ok")
REFUSED = SendResult(has_arrived=False, duration_ms=12, http_status=500, answer=b"no", error="HTTP 500")


def endpoint(caller: Key, url: str = "https://example.com/hook", *, kinds: Sequence[str] = ENDED, **more: Any) -> Any:
    """Creates an endpoint; returns its row."""
    return endpoint_and_secret(caller, url, kinds=kinds, **more)[0]


def endpoint_and_secret(
    caller: Key, url: str = "https://example.com/hook", *, kinds: Sequence[str] = ENDED, **more: Any
) -> tuple[Any, str]:
    """Creates an endpoint; returns its row and its secret."""
    with db.begin() as session:
        return endpoints.create(session, caller.id, name="mine", url=url, event_types=kinds, **more)


def deliveries() -> Sequence[Any]:
    """Returns all deliveries, oldest first."""
    return query("SELECT * FROM delivery ORDER BY id")


def payloads() -> list[Any]:
    """Returns the payloads of all deliveries."""
    return [json.loads(bytes(row.payload)) for row in deliveries()]


def pick(receivers: Sequence[str] | None = None, *, per_receiver: int = 4, per_host: int = 16, limit: int = 100) -> list[Any]:
    """Takes the due deliveries, as the pacer does."""
    with db.begin() as session:
        return list(dispatch.take_due(session, receivers=receivers, per_receiver=per_receiver, per_host=per_host, limit=limit))


def claim(picked: Any, *, lease_s: float = 30) -> ClaimedDelivery | None:
    """Claims a taken delivery, as the sender does."""
    with db.begin() as session:
        return delivery.claim(session, picked.id, picked.ticket, lease_s=lease_s, render=webhook_payload.render)


def claim_one() -> ClaimedDelivery:
    """Takes and claims the only due delivery."""
    (picked,) = pick()
    claimed = claim(picked)
    assert claimed is not None
    return claimed


def settle(one: ClaimedDelivery, attempt: SendResult = ARRIVED, **how: Any) -> FinishedAttempt | None:
    """Records the result of an attempt."""
    with db.begin() as session:
        return attempts.finish(session, one.id, one.ticket, attempt, **how)


def put_right() -> int:
    """Recovers lost deliveries; returns their number."""
    with db.begin() as session:
        return dispatch.recover(session)


def make_due(delivery_id: UUID | None = None) -> None:
    """Makes this delivery due now; None: all of them."""
    query("UPDATE delivery SET next_at = now() - interval '1 s' WHERE CAST(:id AS uuid) IS NULL OR id = :id", id=delivery_id)
