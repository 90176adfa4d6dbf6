"""A failed turn stops those that wait behind it, in conversations that want it so (`on_failed_turn: stop`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import text

from models.database.db import Transaction
from models.queue import key_shares
from models.webhooks import outbox

STOPPED = {
    "message": "An earlier turn of this conversation failed, and its on_failed_turn is `stop`: the turns that waited behind it were "
    "cancelled. Send this one again to go on.",
    "type": "invalid_request_error",
    "param": "conversation",
    "code": "earlier_turn_failed",
}


def cancel_held_turns(session: Transaction, conversation_ids: Sequence[int]) -> None:
    """The held turns of those conversations are cancelled whose last turn in line has failed or expired. Holds their rows.

    Their conversations have to be locked. Turns submitted later go on: their caller has seen how the failed one ended.
    """
    key_shares.refund_flows(session, session.execute(_STOP, {"ids": list(conversation_ids), "error": json.dumps(STOPPED)}).all())


_STOP = text(f"""
    WITH failed AS (
        SELECT talk.id FROM conversation AS talk CROSS JOIN LATERAL (
            SELECT status FROM job WHERE conversation_id = talk.id AND since_turn IS NOT NULL ORDER BY turn DESC LIMIT 1
        ) AS last
        WHERE talk.id = ANY(:ids) AND talk.on_failed_turn = 'stop' AND last.status IN ('failed', 'expired')
    ), held AS (
        SELECT job.id FROM failed JOIN job ON job.conversation_id = failed.id
        WHERE job.status = 'queued' AND job.held ORDER BY job.conversation_id, job.turn FOR UPDATE OF job
    ), stopped AS (
        UPDATE job SET status = 'cancelled', ended_at = clock_timestamp(), error = CAST(:error AS jsonb), seq = seq + 1
        FROM held WHERE job.id = held.id AND job.status = 'queued'
        RETURNING job.id, job.key_id, job.lane_id, job.flow, job.share, job.webhook_url, job.status, job.seq, job.ended_at
    ), told AS (
        INSERT INTO job_event (job_id, seq, type, at) SELECT id, seq, 'job.cancelled', ended_at FROM stopped
    ), {outbox.cte("stopped")}
    SELECT id, lane_id, key_id, flow, share FROM stopped
""")
