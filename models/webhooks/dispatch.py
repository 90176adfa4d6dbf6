"""Webhook scheduler: takes due deliveries up to the slots of each receiver and host, and recovers lost ones.

Pending deliveries stay in Postgres: a receiver that hangs occupies its few slots and no slot of another receiver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.webhooks.attempts import FAILING_ATTEMPTS

UNCLAIMED_S = 10
# Serializes the pacers: the slots that one of them counts must stay free until it has taken its deliveries.
TAKE_LOCK = 0x77686B73

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:lock)")
_TAKE = """
    busy AS MATERIALIZED (SELECT receiver, host FROM delivery WHERE status IN ('rung', 'sending')),
    free AS (
        SELECT waiting.receiver,
               CASE WHEN health.attempts_in_row >= :failing THEN 1 ELSE :per_receiver END - coalesce(taken.slots, 0) AS slots
        FROM waiting LEFT JOIN receiver AS health ON health.name = waiting.receiver
        LEFT JOIN (SELECT receiver, count(*) AS slots FROM busy GROUP BY receiver) AS taken ON taken.receiver = waiting.receiver
        WHERE waiting.receiver IS NOT NULL AND (health.paused_until IS NULL OR health.paused_until <= now())
    ), head AS (
        SELECT due.* FROM free CROSS JOIN LATERAL (
            SELECT id, host, next_at FROM delivery WHERE receiver = free.receiver AND status = 'pending' AND next_at <= now()
            ORDER BY next_at LIMIT greatest(free.slots, 0)
        ) AS due
    ), ranked AS (
        SELECT id, next_at, row_number() OVER (PARTITION BY head.host ORDER BY next_at) + coalesce(taken.slots, 0) AS nth_at_host
        FROM head LEFT JOIN (SELECT host, count(*) AS slots FROM busy GROUP BY host) AS taken ON taken.host = head.host
    ), chosen AS (SELECT id FROM ranked WHERE nth_at_host <= :per_host ORDER BY next_at LIMIT :limit)
    UPDATE delivery SET status = 'rung', ticket = gen_random_uuid(), held_until = clock_timestamp() + make_interval(secs => :held_s)
    FROM chosen WHERE delivery.id = chosen.id AND delivery.status = 'pending' RETURNING delivery.id, delivery.ticket
"""
_TAKE_NAMED = text(f"WITH waiting AS (SELECT DISTINCT unnest(CAST(:receivers AS text[])) AS receiver), {_TAKE}")
# A loose index scan: one step along the index for each receiver, however many deliveries are pending for it.
_TAKE_ALL = text(f"""
    WITH RECURSIVE waiting AS (
        (SELECT receiver FROM delivery WHERE status = 'pending' ORDER BY receiver LIMIT 1)
        UNION ALL
        SELECT (SELECT receiver FROM delivery WHERE status = 'pending' AND receiver > waiting.receiver ORDER BY receiver LIMIT 1)
        FROM waiting WHERE waiting.receiver IS NOT NULL
    ), {_TAKE}
""")


def take_due(
    session: Transaction, *, receivers: Sequence[str] | None, per_receiver: int, per_host: int, limit: int
) -> Sequence[Any]:  # fmt: skip
    """Takes due deliveries for the sender, each with a new ticket. Rows: id, ticket.

    receivers: the receivers to check; None checks every receiver with pending deliveries. limit: upper bound on rows.
    A receiver with FAILING_ATTEMPTS failed attempts in a row gets one delivery at a time until one arrives. A receiver that asked
    for a pause gets none until the pause ends. Returns no rows while another pacer takes deliveries.
    """
    if limit <= 0 or not session.execute(_TRY_LOCK, {"lock": TAKE_LOCK}).scalar_one():
        return []
    params = {"per_receiver": per_receiver, "per_host": per_host, "limit": limit, "held_s": UNCLAIMED_S, "failing": FAILING_ATTEMPTS}
    if receivers is None:
        return session.execute(_TAKE_ALL, params).all()
    return session.execute(_TAKE_NAMED, {**params, "receivers": list(receivers)}).all()


_RETURN_UNCLAIMED = text("""
    WITH unclaimed AS (
        SELECT id FROM delivery WHERE status = 'rung' AND held_until < clock_timestamp() LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE delivery SET status = 'pending', ticket = NULL, held_until = NULL
    FROM unclaimed WHERE delivery.id = unclaimed.id RETURNING delivery.id
""")
# Whether an orphaned delivery arrived is unknown. It counts as an attempt, so that a delivery that kills its sender is not sent for ever.
_RETURN_ORPHANED = text("""
    WITH orphaned AS (
        SELECT id FROM delivery WHERE status = 'sending' AND held_until < clock_timestamp() LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE delivery SET
        status = CASE WHEN retries_left > 0 THEN 'pending' ELSE 'failed' END, retries_left = greatest(retries_left - 1, 0),
        next_at = clock_timestamp(), ended_at = CASE WHEN retries_left = 0 THEN clock_timestamp() END, held_until = NULL,
        error = 'the sender was lost; it is unknown whether the delivery arrived'
    FROM orphaned WHERE delivery.id = orphaned.id RETURNING delivery.id
""")
_FAIL_DISABLED = text("""
    WITH undeliverable AS (
        SELECT waiting.id, endpoint.disabled_reason FROM webhook_endpoint AS endpoint CROSS JOIN LATERAL (
            SELECT id FROM delivery WHERE receiver = 'whe_' || replace(endpoint.id::text, '-', '') AND status = 'pending'
            AND NOT (is_test AND endpoint.deleted_at IS NULL) LIMIT :limit FOR UPDATE SKIP LOCKED
        ) AS waiting WHERE endpoint.disabled_at IS NOT NULL OR endpoint.deleted_at IS NOT NULL LIMIT :limit
    )
    UPDATE delivery SET status = 'failed', ended_at = clock_timestamp(),
           error = 'the endpoint is disabled: ' || coalesce(undeliverable.disabled_reason, 'deleted')
    FROM undeliverable WHERE delivery.id = undeliverable.id RETURNING delivery.id
""")


def recover(session: Transaction, *, limit: int = 1_000) -> int:
    """Returns unclaimed and orphaned deliveries to pending, and fails those of disabled endpoints. Returns the number."""
    return sum(
        len(session.execute(statement, {"limit": limit}).all()) for statement in (_RETURN_UNCLAIMED, _RETURN_ORPHANED, _FAIL_DISABLED)
    )
