"""Which deliveries are due, and of them as many as may be on their way at once: to one receiver, and to one host.

What waits, waits in Postgres: a receiver that hangs or is away holds its few slots and nobody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.webhooks.deliveries import FAILING_ATTEMPTS

UNCLAIMED_S = 10
# Any number of pacers pick, one after another: what each counts must hold until it has taken.
TAKE_LOCK = 0x77686B73


def take_due(session: Transaction, *, receivers: Sequence[str] | None, per_receiver: int, per_host: int, most: int) -> Sequence[Any]:
    """The deliveries to ring the sender for, each with a new ticket. Rows: id, ticket.

    A receiver at which delivery.FAILING attempts in a row have failed gets one at a time until one arrives; one that asked for
    a pause gets none until it is over.
    receivers: whom to look at; None: everybody who has something waiting. most: upper bound on rows.
    """
    if most <= 0 or not session.execute(_ALONE, {"lock": TAKE_LOCK}).scalar_one():
        return []
    wanted = {"per_receiver": per_receiver, "per_host": per_host, "most": most, "held_s": UNCLAIMED_S, "failing": FAILING_ATTEMPTS}
    if receivers is None:
        return session.execute(_PICK_ALL, wanted).all()
    return session.execute(_PICK_NAMED, {**wanted, "receivers": list(receivers)}).all()


def recover(session: Transaction, *, most: int = 1_000) -> int:
    """What nobody claimed and what a lost sender had waits again, and what waits for an endpoint that is off has failed; how many."""
    return sum(len(session.execute(each, {"most": most}).all()) for each in (_RETURN_UNCLAIMED, _REAP, _GIVE_UP))


_ALONE = text("SELECT pg_try_advisory_xact_lock(:lock)")
_TAKE = """
    busy AS MATERIALIZED (SELECT receiver, host FROM delivery WHERE status IN ('rung', 'sending')),
    room AS (
        SELECT waiting.receiver,
               CASE WHEN health.attempts_in_row >= :failing THEN 1 ELSE :per_receiver END - coalesce(taken.slots, 0) AS slots
        FROM waiting LEFT JOIN receiver AS health ON health.name = waiting.receiver
        LEFT JOIN (SELECT receiver, count(*) AS slots FROM busy GROUP BY receiver) AS taken ON taken.receiver = waiting.receiver
        WHERE waiting.receiver IS NOT NULL AND (health.paused_until IS NULL OR health.paused_until <= now())
    ), head AS (
        SELECT found.* FROM room CROSS JOIN LATERAL (
            SELECT id, host, next_at FROM delivery WHERE receiver = room.receiver AND status = 'pending' AND next_at <= now()
            ORDER BY next_at LIMIT greatest(room.slots, 0)
        ) AS found
    ), ranked AS (
        SELECT id, next_at, row_number() OVER (PARTITION BY head.host ORDER BY next_at) + coalesce(taken.slots, 0) AS nth_at_host
        FROM head LEFT JOIN (SELECT host, count(*) AS slots FROM busy GROUP BY host) AS taken ON taken.host = head.host
    ), chosen AS (SELECT id FROM ranked WHERE nth_at_host <= :per_host ORDER BY next_at LIMIT :most)
    UPDATE delivery SET status = 'rung', ticket = gen_random_uuid(), held_until = clock_timestamp() + make_interval(secs => :held_s)
    FROM chosen WHERE delivery.id = chosen.id AND delivery.status = 'pending' RETURNING delivery.id, delivery.ticket
"""
_PICK_NAMED = text(f"WITH waiting AS (SELECT DISTINCT unnest(CAST(:receivers AS text[])) AS receiver), {_TAKE}")
# One step along the index for each receiver, however many deliveries wait for it.
_PICK_ALL = text(f"""
    WITH RECURSIVE waiting AS (
        (SELECT receiver FROM delivery WHERE status = 'pending' ORDER BY receiver LIMIT 1)
        UNION ALL
        SELECT (SELECT receiver FROM delivery WHERE status = 'pending' AND receiver > waiting.receiver ORDER BY receiver LIMIT 1)
        FROM waiting WHERE waiting.receiver IS NOT NULL
    ), {_TAKE}
""")
_RETURN_UNCLAIMED = text("""
    WITH late AS (
        SELECT id FROM delivery WHERE status = 'rung' AND held_until < clock_timestamp() LIMIT :most FOR UPDATE SKIP LOCKED
    )
    UPDATE delivery SET status = 'pending', ticket = NULL, held_until = NULL FROM late WHERE delivery.id = late.id RETURNING delivery.id
""")
# Nobody knows whether it arrived: it counts as an attempt, so that what kills its sender is not sent for ever.
_REAP = text("""
    WITH lost AS (
        SELECT id FROM delivery WHERE status = 'sending' AND held_until < clock_timestamp() LIMIT :most FOR UPDATE SKIP LOCKED
    )
    UPDATE delivery SET
        status = CASE WHEN retries_left > 0 THEN 'pending' ELSE 'failed' END, retries_left = greatest(retries_left - 1, 0),
        next_at = clock_timestamp(), ended_at = CASE WHEN retries_left = 0 THEN clock_timestamp() END, held_until = NULL,
        error = 'the sender was lost; nobody knows whether it arrived'
    FROM lost WHERE delivery.id = lost.id RETURNING delivery.id
""")
_GIVE_UP = text("""
    WITH off AS (
        SELECT waiting.id, endpoint.disabled_reason FROM webhook_endpoint AS endpoint CROSS JOIN LATERAL (
            SELECT id FROM delivery WHERE receiver = 'whe_' || replace(endpoint.id::text, '-', '') AND status = 'pending'
            AND NOT (is_test AND endpoint.deleted_at IS NULL) LIMIT :most FOR UPDATE SKIP LOCKED
        ) AS waiting WHERE endpoint.disabled_at IS NOT NULL OR endpoint.deleted_at IS NOT NULL LIMIT :most
    )
    UPDATE delivery SET status = 'failed', ended_at = clock_timestamp(),
           error = 'the endpoint is disabled: ' || coalesce(off.disabled_reason, 'deleted')
    FROM off WHERE delivery.id = off.id RETURNING delivery.id
""")
