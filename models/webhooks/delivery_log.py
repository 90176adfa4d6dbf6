"""Delivery log: the deliveries of an endpoint or job as their owner sees them, and redelivery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform import ids, wire
from models.platform.errors import NotFound, WrongState
from models.webhooks import endpoints, outbox
from models.webhooks.retry_schedule import RETRIES

JsonObject = dict[str, Any]
PREFIX = "wh_"
# Limit of one call of redeliver_since.
MAX_REDELIVERIES = 10_000


@dataclass(frozen=True, kw_only=True)
class DeliveryScope:
    """Selects the deliveries of an endpoint, or those to the webhook_url of a job."""

    endpoint_id: UUID | None = None
    job_id: UUID | None = None

    def contains(self, row: Any) -> bool:
        """Whether this delivery belongs to the endpoint or job."""
        return row.endpoint_id == self.endpoint_id and (self.job_id is None or row.job_id == self.job_id)


def parse_id(public_id: str) -> UUID:
    """Returns the UUID of `wh_…`. Raises NotFound."""
    return ids.parse_id(PREFIX, public_id, otherwise="No such delivery.")


_COLUMNS = """
    id, endpoint_id, receiver, job_id, event_id, event_type, is_test, status, next_at, attempts, retries_left, sent_at, duration_ms,
    http_status, answer, error, ended_at, created_at, status IN ('delivered', 'failed') AS is_over
"""
_FIND = text(f"SELECT {_COLUMNS} FROM delivery WHERE id = :id AND key_id = :key_id")


def find(session: Transaction, key_id: int, delivery_id: UUID) -> Any:
    """Returns the delivery's row without its payload; `is_over` if it is delivered or failed. Raises NotFound."""
    row = session.execute(_FIND, {"id": delivery_id, "key_id": key_id}).one_or_none()
    if row is None:
        raise NotFound("No such delivery.")
    return row


_OLDER = "(CAST(:after AS uuid) IS NULL OR id < :after) ORDER BY id DESC LIMIT :limit"
_PAGE_OF_ENDPOINT = text(f"SELECT {_COLUMNS} FROM delivery WHERE endpoint_id = :owner_id AND {_OLDER}")
_PAGE_OF_JOB = text(f"SELECT {_COLUMNS} FROM delivery WHERE job_id = :owner_id AND endpoint_id IS NULL AND {_OLDER}")


def list_deliveries(session: Transaction, key_id: int, scope: DeliveryScope, *, limit: int, after: UUID | None = None) -> Sequence[Any]:
    """Returns up to limit + 1 deliveries, newest first, older than `after`. Raises NotFound if the key has no such endpoint or job."""
    _expect_owner(session, key_id, scope)
    statement = _PAGE_OF_ENDPOINT if scope.endpoint_id else _PAGE_OF_JOB
    return session.execute(statement, {"owner_id": scope.endpoint_id or scope.job_id, "after": after, "limit": limit + 1}).all()


_DUE = """
    status = 'pending', next_at = now(), retries_left = CASE WHEN is_test THEN 0 ELSE :retries END, ended_at = NULL, ticket = NULL
"""
_REDELIVER = text(f"""
    UPDATE delivery SET {_DUE} WHERE id = :id AND status IN ('pending', 'delivered', 'failed') RETURNING id
""")


def redeliver(session: Transaction, key_id: int, scope: DeliveryScope, delivery_id: UUID) -> Any:
    """Makes the delivery due now, whatever its state, with all its retries and under its old id. Row: as `find`.

    After the commit the caller wakes the sender (notify.deliveries_due). Raises NotFound; WrongState while the endpoint is disabled or
    the delivery is being sent.
    """
    endpoint = _expect_owner(session, key_id, scope)
    if endpoint is not None:
        _refuse_disabled(endpoint)
    if not scope.contains(find(session, key_id, delivery_id)):
        raise NotFound("No such delivery.")
    if session.execute(_REDELIVER, {"id": delivery_id, "retries": RETRIES}).one_or_none() is None:
        raise WrongState("The delivery is being sent now. Try again in a few seconds.")
    return find(session, key_id, delivery_id)


_REDELIVER_SINCE = text(f"""
    UPDATE delivery SET {_DUE} WHERE id = ANY(ARRAY(
        SELECT id FROM delivery WHERE endpoint_id = :endpoint_id AND event_at >= :since AND status = 'failed' AND NOT is_test
        ORDER BY id LIMIT :limit
    )) AND status = 'failed' RETURNING id
""")


def redeliver_since(session: Transaction, key_id: int, endpoint_id: UUID, *, since: datetime, limit: int = MAX_REDELIVERIES) -> int:
    """Makes up to `limit` failed deliveries of events since then due now; returns their number. If it is `limit`, call again.

    After the commit the caller wakes the sender (notify.deliveries_due). Raises NotFound; WrongState while the endpoint is disabled.
    """
    _refuse_disabled(endpoints.get(session, key_id, endpoint_id))
    params = {"endpoint_id": endpoint_id, "since": since, "retries": RETRIES, "limit": limit}
    return len(session.execute(_REDELIVER_SINCE, params).all())


def to_json(row: Any) -> JsonObject:
    """Returns the delivery as JSON for its owner; `response_body` is the first kilobyte of the last answer."""
    return {
        "id": ids.format_id(PREFIX, row.id),
        "object": "webhook_delivery",
        "webhook_endpoint_id": ids.format_id(endpoints.PREFIX, row.endpoint_id) if row.endpoint_id else None,
        "event_id": ids.format_id(outbox.EVENT_PREFIX, row.event_id),
        "event_type": row.event_type,
        "job_id": wire.public_id(row.job_id) if row.job_id else None,
        "is_test": row.is_test,
        "status": "pending" if row.status in ("rung", "sending") else row.status,
        "attempts": row.attempts,
        "next_attempt_at": _epoch(row.next_at) if row.status == "pending" else None,
        "last_attempt_at": _epoch(row.sent_at),
        "duration_ms": row.duration_ms,
        "response_code": row.http_status,
        "response_body": None if row.answer is None else bytes(row.answer).decode("utf-8", "replace"),
        "error": row.error,
        "created_at": _epoch(row.created_at),
        "ended_at": _epoch(row.ended_at),
    }


_IS_JOB = text("SELECT 1 FROM job WHERE id = :id AND key_id = :key_id")


def _expect_owner(session: Transaction, key_id: int, scope: DeliveryScope) -> Any | None:
    """Returns the endpoint of this scope; None for a job. Raises NotFound if the key has no such endpoint or job."""
    if scope.endpoint_id:
        return endpoints.get(session, key_id, scope.endpoint_id)
    if session.execute(_IS_JOB, {"id": scope.job_id, "key_id": key_id}).one_or_none() is None:
        raise NotFound("No such job.")
    return None


def _refuse_disabled(endpoint: Any) -> None:
    if endpoint.disabled_at is not None:
        raise WrongState("The endpoint is disabled. Enable it first, then deliver again.")


def _epoch(at: datetime | None) -> float | None:
    return None if at is None else round(at.timestamp(), 3)
