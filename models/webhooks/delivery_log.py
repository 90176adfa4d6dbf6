"""What became of an endpoint's deliveries, as its owner sees it; and sending them once more."""

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
# Of one call of redeliver_since.
MAX_REDELIVERIES = 10_000


@dataclass(frozen=True, kw_only=True)
class DeliveryScope:
    """Whose deliveries: an endpoint's, or those to the webhook_url of a job."""

    endpoint_id: UUID | None = None
    job_id: UUID | None = None

    def holds(self, row: Any) -> bool:
        """Whether this delivery is in it."""
        return row.endpoint_id == self.endpoint_id and (self.job_id is None or row.job_id == self.job_id)


def parse_id(said: str) -> UUID:
    """The id behind `wh_…`. Raises NotFound."""
    return ids.parse_id(PREFIX, said, otherwise="No such delivery.")


def find(session: Transaction, key_id: int, delivery_id: UUID) -> Any:
    """The delivery's row, without its payload; `is_over` when nothing more happens to it. Raises NotFound."""
    row = session.execute(_FIND, {"id": delivery_id, "key_id": key_id}).one_or_none()
    if row is None:
        raise NotFound("No such delivery.")
    return row


def list_deliveries(session: Transaction, key_id: int, log: DeliveryScope, *, limit: int, after: UUID | None = None) -> Sequence[Any]:
    """Up to limit + 1 deliveries, newest first, older than `after`. Raises NotFound when the key has no such endpoint or job."""
    _expect(session, key_id, log)
    statement = _PAGE_OF_ENDPOINT if log.endpoint_id else _PAGE_OF_JOB
    return session.execute(statement, {"of": log.endpoint_id or log.job_id, "after": after, "most": limit + 1}).all()


def redeliver(session: Transaction, key_id: int, log: DeliveryScope, delivery_id: UUID) -> Any:
    """The delivery is due now, whatever came of it, with all its retries again and under its old id. Row: as `find`.

    The sender has to be told after the commit (wake.receivers). Raises NotFound; WrongState while its endpoint is disabled, and while
    it is being sent.
    """
    endpoint = _expect(session, key_id, log)
    if endpoint is not None:
        _refuse_disabled(endpoint)
    if not log.holds(find(session, key_id, delivery_id)):
        raise NotFound("No such delivery.")
    if session.execute(_AGAIN, {"id": delivery_id, "retries": RETRIES}).one_or_none() is None:
        raise WrongState("The delivery is being sent right now. Look again in a few seconds.")
    return find(session, key_id, delivery_id)


def redeliver_since(session: Transaction, key_id: int, endpoint_id: UUID, *, since: datetime, most: int = MAX_REDELIVERIES) -> int:
    """What failed of this endpoint's events since then is due now; how many: when it is `most`, ask again for the rest.

    The sender has to be told after the commit (wake.receivers). Raises NotFound; WrongState while the endpoint is disabled.
    """
    _refuse_disabled(endpoints.get(session, key_id, endpoint_id))
    wanted = {"endpoint_id": endpoint_id, "since": since, "retries": RETRIES, "most": most}
    return len(session.execute(_AGAIN_SINCE, wanted).all())


def to_json(row: Any) -> JsonObject:
    """The delivery as a caller sees it; `answer` is the first kilobyte of what the receiver last said."""
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


def _expect(session: Transaction, key_id: int, log: DeliveryScope) -> Any | None:
    """The endpoint whose log this is; None: it is a job's. Raises NotFound when the key has no such endpoint or job."""
    if log.endpoint_id:
        return endpoints.get(session, key_id, log.endpoint_id)
    if session.execute(_IS_JOB, {"id": log.job_id, "key_id": key_id}).one_or_none() is None:
        raise NotFound("No such job.")
    return None


def _refuse_disabled(endpoint: Any) -> None:
    if endpoint.disabled_at is not None:
        raise WrongState("The endpoint is disabled. Enable it first, then deliver again.")


def _epoch(at: datetime | None) -> float | None:
    return None if at is None else round(at.timestamp(), 3)


_COLUMNS = """
    id, endpoint_id, receiver, job_id, event_id, event_type, is_test, status, next_at, attempts, retries_left, sent_at, duration_ms,
    http_status, answer, error, ended_at, created_at, status IN ('delivered', 'failed') AS is_over
"""
_FIND = text(f"SELECT {_COLUMNS} FROM delivery WHERE id = :id AND key_id = :key_id")
_IS_JOB = text("SELECT 1 FROM job WHERE id = :id AND key_id = :key_id")
_OLDER = "(CAST(:after AS uuid) IS NULL OR id < :after) ORDER BY id DESC LIMIT :most"
_PAGE_OF_ENDPOINT = text(f"SELECT {_COLUMNS} FROM delivery WHERE endpoint_id = :of AND {_OLDER}")
_PAGE_OF_JOB = text(f"SELECT {_COLUMNS} FROM delivery WHERE job_id = :of AND endpoint_id IS NULL AND {_OLDER}")
_DUE = """
    status = 'pending', next_at = now(), retries_left = CASE WHEN is_test THEN 0 ELSE :retries END, ended_at = NULL, ticket = NULL
"""
_AGAIN = text(f"""
    UPDATE delivery SET {_DUE} WHERE id = :id AND status IN ('pending', 'delivered', 'failed') RETURNING id
""")
_AGAIN_SINCE = text(f"""
    UPDATE delivery SET {_DUE} WHERE id = ANY(ARRAY(
        SELECT id FROM delivery WHERE endpoint_id = :endpoint_id AND event_at >= :since AND status = 'failed' AND NOT is_test
        ORDER BY id LIMIT :most
    )) AND status = 'failed' RETURNING id
""")
