"""Waiters of jobs: the HTTP connections on which clients wait for an answer.

The columns call a waiter `reader`. A job whose waiter disconnected is cancelled after a while (`cancel_abandoned`), unless the same client
sends the request again: the retry of an SDK is recognised by its fingerprint (key, route and body) and becomes the job's waiter. Only time
counts in which an API process could have received that retry (models/jobs/api_processes.py). The job of a client whose retry cannot be
recognised is cancelled as soon as the client disconnects (`cancel_left`).
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.jobs import api_processes, cancellation

# An SDK retries within 8 s. A request after a longer time than this makes a new job.
ANSWER_KEPT_S = 120
# Retries without x-stainless-retry-count come at once (LiteLLM), after 2 and 6 s (AI SDK), or after 1, 4 and 9 s (LangChain.js).
# A longer time would answer new requests of a user with an old failure.
FAILURE_REPLAY_S = 15

_FIND_ADOPTABLE = """
    SELECT id FROM job
    WHERE key_id = :key_id AND fingerprint = :fingerprint AND (
        (status IN ('queued', 'admitted', 'running') AND NOT cancel_requested)
        OR (ended_at > clock_timestamp() - make_interval(secs => :kept_s)
            AND ((status IN ('succeeded', 'failed', 'expired') AND left_at IS NOT NULL) OR (status = 'cancelled' AND left_at > ended_at)))
    )
    ORDER BY left_at IS NULL, id LIMIT 1 FOR UPDATE
"""
_ADOPT = text(f"UPDATE job SET reader = :reader, left_at = NULL WHERE id = ({_FIND_ADOPTABLE} SKIP LOCKED) RETURNING id")
_ADOPT_LOCKED = text(f"UPDATE job SET reader = :reader, left_at = NULL WHERE id = ({_FIND_ADOPTABLE}) RETURNING id")


def adopt(session: Transaction, key_id: int, fingerprint: bytes, *, reader: UUID) -> UUID | None:
    """Makes this connection the waiter of the job that its client requested before. Returns the job's id; None without such a job.

    Such a job is open, or it ended at most ANSWER_KEPT_S ago and its answer was not delivered. A cancelled job counts only if its waiter
    disconnected after the cancellation: then that was not the reason for it. Jobs without a waiter come first, then the oldest.
    """
    params = {"key_id": key_id, "fingerprint": fingerprint, "reader": reader, "kept_s": ANSWER_KEPT_S}
    # Concurrent retries adopt different jobs. A job that is locked only because it is ending is waited for.
    adopted = session.execute(_ADOPT, params).scalar_one_or_none()
    return adopted or session.execute(_ADOPT_LOCKED, params).scalar_one_or_none()


# left_at before ended_at: the waiter disconnected first, and the reaper may have cancelled the job for that reason.
_FIND_UNDELIVERED_FAILURE = text("""
    SELECT id FROM job WHERE key_id = :key_id AND fingerprint = :fingerprint AND status IN ('failed', 'cancelled', 'expired')
    AND left_at >= ended_at AND left_at > clock_timestamp() - make_interval(secs => :replay_s) ORDER BY left_at DESC LIMIT 1
""")


def find_undelivered_failure(session: Transaction, key_id: int, fingerprint: bytes) -> UUID | None:
    """Returns the newest job of this fingerprint that failed and whose connection closed before the failure was sent, or None.

    For retries without x-stainless-retry-count, up to FAILURE_REPLAY_S after the connection closed. The job is not adopted: every retry
    in that time receives the same failure, and none makes a call. Answers are never replayed this way: a second identical request may be
    intended.
    """
    params = {"key_id": key_id, "fingerprint": fingerprint, "replay_s": FAILURE_REPLAY_S}
    return session.execute(_FIND_UNDELIVERED_FAILURE, params).scalar_one_or_none()


#: SQL condition: the job was abandoned, and not answered before the cancellation arrived.
IS_ABANDONED = "(job.abandoned AND job.status IN ('running', 'cancelled'))"
_TAKE_OVER = text(f"""
    UPDATE job SET reader = CASE WHEN {IS_ABANDONED} THEN reader ELSE :reader END,
                   left_at = CASE WHEN {IS_ABANDONED} THEN left_at END
    WHERE id = :id AND reader IS NOT NULL RETURNING {IS_ABANDONED}
""")


def take_over(session: Transaction, job_id: UUID, *, reader: UUID | None) -> bool:
    """Makes the connection of a request with the same Idempotency-Key the job's waiter. False: the job is abandoned and stays so.

    reader None: the job has no waiter from now on, so a disconnect does not cancel it. A job without a waiter stays without one.
    """
    is_abandoned = session.execute(_TAKE_OVER, {"id": job_id, "reader": reader}).scalar_one_or_none()
    return not is_abandoned


_MARK_LEFT = text("UPDATE job SET left_at = clock_timestamp() WHERE id = :id AND reader = :reader RETURNING key_id")


def mark_left(session: Transaction, job_id: UUID, *, reader: UUID) -> None:
    """Records that this waiter disconnected, unless the job has another waiter since."""
    session.execute(_MARK_LEFT, {"id": job_id, "reader": reader})


def cancel_left(session: Transaction, job_id: UUID, *, reader: UUID) -> Any | None:
    """Cancels the job of a waiter that disconnected and cannot return. Returns the row of cancellation.cancel.

    None: the job has another waiter since, or it has ended.
    """
    key_id = session.execute(_MARK_LEFT, {"id": job_id, "reader": reader}).scalar_one_or_none()
    return None if key_id is None else cancellation.cancel(session, job_id, key_id, abandoned=True)


# The lock keeps a retry from adopting the job in the meantime.
_FIND_ABANDONED = text(f"""
    SELECT id, key_id FROM job
    WHERE left_at < clock_timestamp() - make_interval(secs => :longer_than_s) AND status IN ('queued', 'admitted', 'running')
    AND NOT cancel_requested AND {api_processes.REACHABLE} ORDER BY left_at LIMIT 1 FOR UPDATE SKIP LOCKED
""")


def cancel_abandoned(session: Transaction, *, longer_than_s: float) -> Any | None:
    """Cancels the job that has been without its waiter for the longest time. Returns the row of cancellation.cancel; None: no such job.

    longer_than_s: minimum time since the disconnect, during all of which an API process could have received the retry.
    """
    row = session.execute(_FIND_ABANDONED, {"longer_than_s": longer_than_s}).one_or_none()
    return None if row is None else cancellation.cancel(session, row.id, row.key_id, abandoned=True)
