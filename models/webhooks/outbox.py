"""Transactional outbox: the statement that changes a job inserts a delivery for each receiver, so that no event is lost or early.

The receiver of a delivery is an endpoint (its public id), or the webhook_url host of a key's jobs. Deliveries of one receiver share
slots and health.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from models.database.db import Transaction
from models.platform import ids
from models.webhooks.retry_schedule import RETRIES

EVENT_PREFIX = "evt_"
# SQL: the receivers of the deliveries that the CTE `outbox` inserted; null if there are none.
DUE = "(SELECT array_agg(receiver) FROM outbox) AS due"


class EventType(StrEnum):
    """Types of events that an endpoint can subscribe to."""

    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"
    STARTED = "job.started"  #: A worker claimed the job and sends its call; one event for each call.
    ENDPOINT_DISABLED = "webhook_endpoint.disabled"  #: nowserving disabled another endpoint of the key.


def cte(changed: str, *, kind: str = "'job.' || changed.status", at: str = "ended_at") -> str:
    """Returns the SQL of the CTE `outbox`: it inserts the deliveries for the rows of the CTE `changed`.

    changed must have the columns id, key_id, webhook_url, status, seq and the time `at`. kind: SQL expression for the event type. An
    event type
    without a subscribed endpoint makes no delivery; a job's own webhook_url gets only the event of its end. Append DUE to the final
    SELECT to return the receivers to wake.
    """
    return f"""
    outbox AS (
        INSERT INTO delivery (key_id, endpoint_id, url, receiver, host, job_id, event_id, event_type, event_at, payload, retries_left)
        SELECT changed.key_id, target.endpoint_id, target.url, target.receiver, target.host, changed.id,
               md5(changed.id::text || changed.seq)::uuid, target.type, changed.{at}, CASE WHEN NOT target.whole THEN convert_to(
                   '{{"object":"event","id":"{EVENT_PREFIX}' || md5(changed.id::text || changed.seq) || '","type":"' || target.type
                   || '","created_at":' || floor(extract(epoch FROM changed.{at}))::bigint
                   || ',"data":{{"id":"job_' || replace(changed.id::text, '-', '') || '"}}}}', 'UTF8') END, {RETRIES}
        FROM {changed} AS changed CROSS JOIN LATERAL (
            SELECT id AS endpoint_id, NULL AS url, 'whe_' || replace(id::text, '-', '') AS receiver, host, include_result AS whole,
                   {kind} AS type
            FROM webhook_endpoint
            WHERE key_id = changed.key_id AND deleted_at IS NULL AND disabled_at IS NULL AND event_types @> ARRAY[{kind}]
            UNION ALL
            SELECT NULL, changed.webhook_url, 'key_' || changed.key_id || '@' || split_part(changed.webhook_url, '/', 3),
                   split_part(changed.webhook_url, '/', 3), false, {kind}
            WHERE changed.webhook_url IS NOT NULL AND changed.status IN ('succeeded', 'failed', 'cancelled', 'expired')
        ) AS target
        RETURNING receiver
    )"""


_INSERT = text("""
    INSERT INTO delivery (key_id, endpoint_id, receiver, host, event_id, event_type, payload, retries_left)
    SELECT key_id, id, 'whe_' || replace(id::text, '-', ''), host, :event_id, :type, :payload, :retries FROM webhook_endpoint
    WHERE key_id = :key_id AND deleted_at IS NULL AND disabled_at IS NULL AND event_types @> ARRAY[CAST(:type AS text)]
    RETURNING receiver
""")


def insert_deliveries(session: Transaction, key_id: int, kind: EventType, data: dict[str, str]) -> Sequence[str]:
    """Inserts a delivery of an event without a job for each subscribed endpoint of the key; returns the receivers."""
    event_id = uuid4()
    params = {"key_id": key_id, "type": kind, "event_id": event_id, "retries": RETRIES}
    return [
        row.receiver for row in session.execute(_INSERT, {**params, "payload": event_payload(event_id, kind, at=now_s(session), data=data)})
    ]


def event_payload(event_id: UUID, kind: str, *, at: int, data: Any) -> bytes:
    """Returns the body of the POST as JSON. at: seconds since 1970."""
    event = {"object": "event", "id": ids.format_id(EVENT_PREFIX, event_id), "type": kind, "created_at": at, "data": data}
    return json.dumps(event, separators=(",", ":")).encode()


def now_s(session: Transaction) -> int:
    """Seconds since 1970 on the clock of Postgres, which stamps every event."""
    return int(session.execute(text("SELECT extract(epoch FROM now())::bigint")).scalar_one())
