"""Sample events: sends one test delivery to an endpoint, so that its owner can check URL and signature."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from models.database.db import Transaction
from models.platform import ids
from models.webhooks import endpoints, outbox
from models.webhooks.outbox import EventType

_SAMPLE_JOB = "job_" + "0" * 32
_INSERT = text("""
    INSERT INTO delivery (key_id, endpoint_id, receiver, host, event_id, event_type, payload, is_test, retries_left)
    VALUES (:key_id, :endpoint_id, :receiver, :host, :event_id, :type, :payload, true, 0) RETURNING id, receiver
""")


def send_test(session: Transaction, key_id: int, endpoint_id: UUID, event_type: str) -> Any:
    """Inserts one delivery of a sample event, also for a disabled endpoint. Row: id (of the delivery), receiver.

    After the commit the caller wakes the sender (notify.deliveries_due); delivery_log.find returns the result. Raises NotFound, Invalid.
    """
    row = endpoints.get(session, key_id, endpoint_id)
    (kind,) = endpoints.known_event_types([event_type])
    event_id = uuid4()
    data = {"id": ids.format_id(endpoints.PREFIX, endpoint_id) if kind == EventType.ENDPOINT_DISABLED else _SAMPLE_JOB}
    payload = outbox.event_payload(event_id, EventType(kind), at=outbox.now_s(session), data=data)
    params = {"key_id": key_id, "endpoint_id": endpoint_id, "receiver": ids.format_id(endpoints.PREFIX, endpoint_id), "host": row.host}
    return session.execute(_INSERT, {**params, "event_id": event_id, "type": kind, "payload": payload}).one()
