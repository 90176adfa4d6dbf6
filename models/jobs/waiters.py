"""Readers of jobs: the open connections that wait for an answer. They come, leave, and come back.

A reader is one HTTP connection. A job whose last reader left is cancelled after a while (`abandon`), unless the same client asks
again: the retry of an SDK is recognised by its fingerprint (key, route and body) and takes the place of the reader before it. Only time
in which an API process could have taken that retry counts (models/jobs/api_processes.py). A client that cannot be recognised when it
asks again
has its job cancelled as soon as it hangs up (`leave_for_good`).
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.jobs import api_processes, cancellation

# An SDK's own retry comes within 8 s; one that has not come after this long starts anew.
ANSWER_KEPT_S = 120
# Retries without x-stainless-retry-count come at once (LiteLLM), after 2 and 6 s (AI SDK), or after 1, 4 and 9 s (LangChain.js).
# A longer time would answer new requests of a user with an old failure.
FAILURE_REPLAY_S = 15


def adopt(session: Transaction, key_id: int, fingerprint: bytes, *, reader: UUID) -> UUID | None:
    """The job that this reader's client asked for before, now this reader's; None when there is none to come back to.

    One that still waits or runs, or one that ended at most ANSWER_KEPT_S ago and whose answer was never read: its reader has left.
    A cancelled one only if its reader left afterwards, for then it was not cancelled because of that. Those that somebody left
    come first, then the oldest.
    """
    wanted = {"key_id": key_id, "fingerprint": fingerprint, "reader": reader, "kept_s": ANSWER_KEPT_S}
    # Several who come back at once each take another job; one that is only locked because it ends right now is waited for.
    found = session.execute(_ADOPT, wanted).scalar_one_or_none()
    return found or session.execute(_ADOPT_BUSY, wanted).scalar_one_or_none()


def find_undelivered_failure(session: Transaction, key_id: int, fingerprint: bytes) -> UUID | None:
    """Returns the newest job of this fingerprint that failed and whose connection closed before the failure was sent, or None.

    For retries without x-stainless-retry-count, up to FAILURE_REPLAY_S after the connection closed. The job is not adopted: every retry
    in that time receives the same failure, and none makes a call. Answers are never replayed this way: a second identical request may be
    intended.
    """
    params = {"key_id": key_id, "fingerprint": fingerprint, "replay_s": FAILURE_REPLAY_S}
    return session.execute(_FIND_UNDELIVERED_FAILURE, params).scalar_one_or_none()


def take_over(session: Transaction, job_id: UUID, *, reader: UUID | None) -> bool:
    """The request that came again by Idempotency-Key is the job's reader now; None: the job has none, and nobody's leaving cancels it.

    A job that has none already stays so. False when the job was cancelled a moment ago because its reader had left: it takes no other.
    """
    is_abandoned = session.execute(_TAKE_OVER, {"id": job_id, "reader": reader}).scalar_one_or_none()
    return not is_abandoned


def mark_left(session: Transaction, job_id: UUID, *, reader: UUID) -> None:
    """This reader is gone; nothing happens when another has come since."""
    session.execute(_LEAVE, {"id": job_id, "reader": reader})


def cancel_left(session: Transaction, job_id: UUID, *, reader: UUID) -> Any | None:
    """This reader is gone and cannot come back: its job is cancelled at once. The row is job.cancel's.

    None: another reader has come since, or the job has ended.
    """
    key_id = session.execute(_LEAVE, {"id": job_id, "reader": reader}).scalar_one_or_none()
    return None if key_id is None else cancellation.cancel(session, job_id, key_id, abandoned=True)


def cancel_abandoned(session: Transaction, *, longer_than_s: float) -> Any | None:
    """Cancels the job that was left first, if its reader could have come back all that time and did not; None: there is no such job.

    longer_than_s: how long it must have been left, and an API process must have been there for its client. The row is job.cancel's.
    """
    row = session.execute(_LEFT, {"longer_than_s": longer_than_s}).one_or_none()
    return None if row is None else cancellation.cancel(session, row.id, row.key_id, abandoned=True)


_FIND_LEFT = """
    SELECT id FROM job
    WHERE key_id = :key_id AND fingerprint = :fingerprint AND (
        (status IN ('queued', 'admitted', 'running') AND NOT cancel_requested)
        OR (ended_at > clock_timestamp() - make_interval(secs => :kept_s)
            AND ((status IN ('succeeded', 'failed', 'expired') AND left_at IS NOT NULL) OR (status = 'cancelled' AND left_at > ended_at)))
    )
    ORDER BY left_at IS NULL, id LIMIT 1 FOR UPDATE
"""
_ADOPT = text(f"UPDATE job SET reader = :reader, left_at = NULL WHERE id = ({_FIND_LEFT} SKIP LOCKED) RETURNING id")
_ADOPT_BUSY = text(f"UPDATE job SET reader = :reader, left_at = NULL WHERE id = ({_FIND_LEFT}) RETURNING id")
# left_at before ended_at: the reader left first, and the sweep may have cancelled the job because of that.
_FIND_UNDELIVERED_FAILURE = text("""
    SELECT id FROM job WHERE key_id = :key_id AND fingerprint = :fingerprint AND status IN ('failed', 'cancelled', 'expired')
    AND left_at >= ended_at AND left_at > clock_timestamp() - make_interval(secs => :replay_s) ORDER BY left_at DESC LIMIT 1
""")
# Abandoned, and not answered all the same before the cancellation arrived.
IS_ABANDONED = "(job.abandoned AND job.status IN ('running', 'cancelled'))"
_TAKE_OVER = text(f"""
    UPDATE job SET reader = CASE WHEN {IS_ABANDONED} THEN reader ELSE :reader END,
                   left_at = CASE WHEN {IS_ABANDONED} THEN left_at END
    WHERE id = :id AND reader IS NOT NULL RETURNING {IS_ABANDONED}
""")
_LEAVE = text("UPDATE job SET left_at = clock_timestamp() WHERE id = :id AND reader = :reader RETURNING key_id")
# Locked: nobody comes back to it in this transaction.
_LEFT = text(f"""
    SELECT id, key_id FROM job
    WHERE left_at < clock_timestamp() - make_interval(secs => :longer_than_s) AND status IN ('queued', 'admitted', 'running')
    AND NOT cancel_requested AND {api_processes.REACHABLE} ORDER BY left_at LIMIT 1 FOR UPDATE SKIP LOCKED
""")
