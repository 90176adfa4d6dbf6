"""State transitions of a webhook delivery. Each is one compare-and-set statement, fenced by the ticket of the current sender.

    pending ─ take_due ─▶ rung ─ claim ─▶ sending ─ finish ─▶ delivered | failed
       ▲                    │                │
       └────────────────────┴────────────────┘  not claimed, not delivered, sender lost

This module claims; models/webhooks/attempts.py finishes; models/webhooks/dispatch.py takes due deliveries and recovers lost ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform import ids
from models.webhooks import signing
from models.webhooks.endpoints import PREFIX as ENDPOINT

# Renders the payload of a delivery from its row.
Render = Callable[[Transaction, Any], bytes]


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery that this sender may send. payload: the exact bytes of the body; secrets: one or two, each signs the payload.

    job_id, lane_id, request_id, traceparent: of the job of the event; None if the event has no job or the job was removed.
    """

    id: UUID
    ticket: UUID
    key_id: int
    endpoint_id: UUID | None
    receiver: str
    url: str
    event_type: str
    payload: bytes
    attempts: int
    retries_left: int
    secrets: list[str] = field(repr=False)
    job_id: UUID | None = None
    lane_id: int | None = None
    request_id: UUID | None = None
    traceparent: str | None = None


_START_SENDING = """
    UPDATE delivery SET status = 'sending', ticket = :ticket, attempts = attempts + 1, sent_at = clock_timestamp(),
           held_until = clock_timestamp() + make_interval(secs => :lease_s)
"""
# A disabled endpoint receives test events only; `dispatch.recover` fails its pending deliveries.
_ENDPOINT_ALLOWS = """
    NOT EXISTS (
        SELECT FROM webhook_endpoint WHERE id = delivery.endpoint_id
        AND (deleted_at IS NOT NULL OR (disabled_at IS NOT NULL AND NOT delivery.is_test))
    )
"""
_WITH_URL_AND_SECRETS = """
    SELECT claimed.*, coalesce(claimed.url, endpoint.url) AS to_url, coalesce(endpoint.secret, key_secret.secret) AS secret,
           CASE WHEN endpoint.old_secret_until > now() THEN endpoint.old_secret
                WHEN key_secret.old_secret_until > now() THEN key_secret.old_secret END AS old_secret,
           job.lane_id, job.request_id, job.traceparent
    FROM claimed LEFT JOIN job ON job.id = claimed.job_id
    LEFT JOIN webhook_endpoint AS endpoint ON endpoint.id = claimed.endpoint_id
    LEFT JOIN webhook_secret AS key_secret ON claimed.endpoint_id IS NULL AND key_secret.key_id = claimed.key_id
"""
_CLAIM = text(f"""
    WITH claimed AS ({_START_SENDING} WHERE id = :id AND status = 'rung' AND ticket = :ticket AND {_ENDPOINT_ALLOWS} RETURNING *)
    {_WITH_URL_AND_SECRETS}
""")


def claim(session: Transaction, delivery_id: UUID, ticket: UUID, *, lease_s: float, render: Render) -> ClaimedDelivery | None:
    """Claims a delivery for this sender: counts the attempt and stores the payload before the first byte goes out.

    render: renders the payload from the delivery's row, if none is stored yet (models/jobs/webhook_payload.py).
    Returns None if the ticket is stale.
    """
    row = session.execute(_CLAIM, {"id": delivery_id, "ticket": ticket, "lease_s": lease_s}).one_or_none()
    return _claimed(session, row, render)


_CLAIM_NEXT = text(f"""
    WITH claimed AS ({_START_SENDING}
        WHERE id = (
            SELECT id FROM delivery WHERE receiver = :receiver AND status = 'pending' AND next_at <= now() AND {_ENDPOINT_ALLOWS}
            AND NOT EXISTS (SELECT FROM receiver WHERE name = :receiver AND paused_until > now())
            ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AND status = 'pending' RETURNING *
    ) {_WITH_URL_AND_SECRETS}
""")


def claim_next(session: Transaction, receiver: str, ticket: UUID, *, lease_s: float, render: Render) -> ClaimedDelivery | None:
    """Claims the next due delivery of this receiver, in the slot of a finished one; None if there is none that may be sent."""
    row = session.execute(_CLAIM_NEXT, {"receiver": receiver, "ticket": ticket, "lease_s": lease_s}).one_or_none()
    return _claimed(session, row, render)


_STORE_PAYLOAD = text("UPDATE delivery SET payload = :payload WHERE id = :id")


def _claimed(session: Transaction, row: Any | None, render: Render) -> ClaimedDelivery | None:
    if row is None:
        return None
    payload = row.payload
    if payload is None:
        payload = render(session, row)
        session.execute(_STORE_PAYLOAD, {"id": row.id, "payload": payload})
    return ClaimedDelivery(
        id=row.id, ticket=row.ticket, key_id=row.key_id, endpoint_id=row.endpoint_id, receiver=row.receiver, url=row.to_url,
        event_type=row.event_type, payload=bytes(payload), attempts=row.attempts, retries_left=row.retries_left,
        secrets=_secrets(session, row), job_id=row.job_id, lane_id=row.lane_id, request_id=row.request_id, traceparent=row.traceparent,
    )  # fmt: skip


def _secrets(session: Transaction, row: Any) -> list[str]:
    owner = ids.format_id(ENDPOINT, row.endpoint_id) if row.endpoint_id else signing.key_owner(row.key_id)
    sealed = [secret for secret in (row.secret, row.old_secret) if secret is not None]
    return [signing.unseal(secret, owner=owner) for secret in sealed] or [signing.default_secret(session, row.key_id)]
