"""What is to be told about a job is written down in the very statement that moves it: a delivery for each receiver, none lost, none early.

A delivery's receiver is an endpoint (its public id) or a key's jobs at one host; who shares it shares slots and health.
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
# SQL: the receivers of the deliveries that `outbox` made; null when there are none.
DUE = "(SELECT array_agg(receiver) FROM outbox) AS due"


class EventType(StrEnum):
    """What an endpoint can ask to be told of."""

    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"
    STARTED = "job.started"  #: It was claimed and the call goes out; said once for each call.
    ENDPOINT_DISABLED = "webhook_endpoint.disabled"  #: Another endpoint of the key is called no more.


def cte(arrow: str, *, kind: str = "'job.' || moved.status", at: str = "ended_at") -> str:
    """SQL: the CTE `outbox`, with the deliveries that follow from the rows of the CTE `arrow`.

    arrow must have id, key_id, webhook_url, status, seq and the time `at`. kind: the type of the event; what no endpoint asks for
    makes no delivery, and a job's own webhook_url is told only how it ended. DUE selects from it whom to wake the sender for.
    """
    return f"""
    outbox AS (
        INSERT INTO delivery (key_id, endpoint_id, url, receiver, host, job_id, event_id, event_type, event_at, payload, retries_left)
        SELECT moved.key_id, it.endpoint_id, it.url, it.receiver, it.host, moved.id, md5(moved.id::text || moved.seq)::uuid, it.type,
               moved.{at}, CASE WHEN NOT it.whole THEN convert_to(
                   '{{"object":"event","id":"{EVENT_PREFIX}' || md5(moved.id::text || moved.seq) || '","type":"' || it.type
                   || '","created_at":' || floor(extract(epoch FROM moved.{at}))::bigint
                   || ',"data":{{"id":"job_' || replace(moved.id::text, '-', '') || '"}}}}', 'UTF8') END, {RETRIES}
        FROM {arrow} AS moved CROSS JOIN LATERAL (
            SELECT id AS endpoint_id, NULL AS url, 'whe_' || replace(id::text, '-', '') AS receiver, host, include_result AS whole,
                   {kind} AS type
            FROM webhook_endpoint
            WHERE key_id = moved.key_id AND deleted_at IS NULL AND disabled_at IS NULL AND event_types @> ARRAY[{kind}]
            UNION ALL
            SELECT NULL, moved.webhook_url, 'key_' || moved.key_id || '@' || split_part(moved.webhook_url, '/', 3),
                   split_part(moved.webhook_url, '/', 3), false, {kind}
            WHERE moved.webhook_url IS NOT NULL AND moved.status IN ('succeeded', 'failed', 'cancelled', 'expired')
        ) AS it
        RETURNING receiver
    )"""


def insert_deliveries(session: Transaction, key_id: int, kind: EventType, data: dict[str, str]) -> Sequence[str]:
    """The key's endpoints that asked for it will be told of something that is not a job's; returns their receivers."""
    number = uuid4()
    wanted = {"key_id": key_id, "type": kind, "event_id": number, "retries": RETRIES}
    return [
        row.receiver for row in session.execute(_TELL, {**wanted, "payload": event_payload(number, kind, at=now_s(session), data=data)})
    ]


def event_payload(number: UUID, kind: str, *, at: int, data: Any) -> bytes:
    """What is sent. at: seconds since 1970."""
    said = {"object": "event", "id": ids.format_id(EVENT_PREFIX, number), "type": kind, "created_at": at, "data": data}
    return json.dumps(said, separators=(",", ":")).encode()


def now_s(session: Transaction) -> int:
    """Seconds since 1970, by the one clock that stamps every event."""
    return int(session.execute(text("SELECT extract(epoch FROM now())::bigint")).scalar_one())


_TELL = text("""
    INSERT INTO delivery (key_id, endpoint_id, receiver, host, event_id, event_type, payload, retries_left)
    SELECT key_id, id, 'whe_' || replace(id::text, '-', ''), host, :event_id, :type, :payload, :retries FROM webhook_endpoint
    WHERE key_id = :key_id AND deleted_at IS NULL AND disabled_at IS NULL AND event_types @> ARRAY[CAST(:type AS text)]
    RETURNING receiver
""")
