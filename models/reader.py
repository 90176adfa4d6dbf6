"""Who waits for a job on an open connection: readers come, leave, and come back.

A reader is one HTTP connection. A job whose last reader left is cancelled after a while (`left`), unless the same client asks
again: the retry of an SDK is recognised by its fingerprint (key, route and body) and takes the place of the reader before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.db import Session

# An SDK's own retry comes within 8 s; one that has not come after this long starts anew.
ANSWER_KEPT_S = 120
# Retries without x-stainless-retry-count come at once (LiteLLM), after 2 and 6 s (AI SDK), or after 1, 4 and 9 s (LangChain.js).
# A longer time would answer new requests of a user with an old failure.
FAILURE_REPLAY_S = 15


def adopt(session: Session, key_id: int, fingerprint: bytes, *, reader: UUID) -> UUID | None:
    """The job that this reader's client asked for before, now this reader's; None when there is none to come back to.

    One that still waits or runs, or one that ended at most ANSWER_KEPT_S ago and whose answer was never read: its reader has left.
    A cancelled one only if its reader left afterwards, for then it was not cancelled because of that. Those that somebody left
    come first, then the oldest.
    """
    wanted = {"key_id": key_id, "fingerprint": fingerprint, "reader": reader, "kept_s": ANSWER_KEPT_S}
    # Several who come back at once each take another job; one that is only locked because it ends right now is waited for.
    found = session.execute(_ADOPT, wanted).scalar_one_or_none()
    return found or session.execute(_ADOPT_BUSY, wanted).scalar_one_or_none()


def find_undelivered_failure(session: Session, key_id: int, fingerprint: bytes) -> UUID | None:
    """Returns the newest job of this fingerprint that failed and whose connection closed before the failure was sent, or None.

    For retries without x-stainless-retry-count, up to FAILURE_REPLAY_S after the connection closed. The job is not adopted: every retry
    in that time receives the same failure, and none makes a call. Answers are never replayed this way: a second identical request may be
    intended.
    """
    params = {"key_id": key_id, "fingerprint": fingerprint, "replay_s": FAILURE_REPLAY_S}
    return session.execute(_FIND_UNDELIVERED_FAILURE, params).scalar_one_or_none()


def take_over(session: Session, job_id: UUID, *, reader: UUID | None) -> None:
    """Whoever asked again by Idempotency-Key is the job's reader now; None: it is nobody's, and nobody's leaving cancels it.

    A job that is nobody's already stays so.
    """
    session.execute(_TAKE_OVER, {"id": job_id, "reader": reader})


def leave(session: Session, job_id: UUID, *, reader: UUID) -> None:
    """This reader is gone; nothing happens when another has come since."""
    session.execute(_LEAVE, {"id": job_id, "reader": reader})


def left(session: Session, *, longer_than_s: float, most: int = 200) -> Sequence[Any]:
    """Open jobs that nobody has waited for since so long, locked: nobody comes back to them in this transaction. Rows: id, key_id."""
    return session.execute(_LEFT, {"longer_than_s": longer_than_s, "most": most}).all()


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
_TAKE_OVER = text("UPDATE job SET reader = :reader, left_at = NULL WHERE id = :id AND reader IS NOT NULL")
_LEAVE = text("UPDATE job SET left_at = clock_timestamp() WHERE id = :id AND reader = :reader")
_LEFT = text("""
    SELECT id, key_id FROM job
    WHERE left_at < clock_timestamp() - make_interval(secs => :longer_than_s) AND status IN ('queued', 'admitted', 'running')
    AND NOT cancel_requested ORDER BY left_at LIMIT :most FOR UPDATE SKIP LOCKED
""")
