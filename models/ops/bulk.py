"""Bulk cancel by filter, one batch per transaction, and the jobs that a bulk retry may resubmit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.access import audit_log
from models.access.audit_log import Act
from models.database.db import Transaction
from models.jobs import cancellation
from models.keys.keys import Key
from models.platform.errors import Invalid

BATCH_SIZE = 100
STATUSES = ("queued", "running")


@dataclass(frozen=True)
class JobFilter:
    """Filter of jobs; None matches any. user: name of a flow, as callers send it. older_than_s: age since the submit."""

    pool_id: int | None = None
    lane_id: int | None = None
    key_id: int | None = None
    user: str | None = None
    older_than_s: float | None = None

    def conditions(self) -> dict[str, Any]:
        """Returns the conditions that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_MATCHES = """
    (CAST(:pool_id AS bigint) IS NULL OR job.key_id IN (SELECT id FROM key WHERE pool_id = :pool_id))
    AND (CAST(:lane_id AS bigint) IS NULL OR job.lane_id = :lane_id) AND (CAST(:key_id AS bigint) IS NULL OR job.key_id = :key_id)
    AND (CAST(:user AS text) IS NULL OR job.flow = :user)
    AND (CAST(:older_than_s AS float8) IS NULL OR job.created_at < now() - make_interval(secs => :older_than_s))
"""
_OPEN = f"SELECT id, key_id FROM job WHERE status = ANY(:statuses) AND NOT cancel_requested AND {_MATCHES}"
_INDEPENDENT = text(f"{_OPEN} AND (conversation_id IS NULL OR held) ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED")
_TURNS = text(f"{_OPEN} AND conversation_id IS NOT NULL AND NOT held ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED")


def cancel_batch(session: Transaction, act: Act, which: JobFilter, *, status: str = "queued") -> list[Any]:
    """Cancels up to BATCH_SIZE matching jobs; an empty list means that none are left. Rows: of cancellation.cancel.

    Cancelling a turn with blocked turns behind it locks its conversation and the next turn. So such a turn is the only job of its
    transaction. Jobs without a conversation and blocked turns lock only their own rows; they are cancelled first, in batches.

    status `running`: running jobs are cancelled too. Raises Invalid without any condition, so that no request cancels every job.
    """
    if not which.conditions():
        raise Invalid("Set at least one condition: pool, lane, key, user or older_than_s.")
    if status not in STATUSES:
        raise Invalid(f"`status` is one of {', '.join(STATUSES)}.", param="status")
    params = {**asdict(which), "statuses": ["queued", "admitted"] if status == "queued" else ["queued", "admitted", "running"]}
    rows = session.execute(_INDEPENDENT, {**params, "limit": BATCH_SIZE}).all() or session.execute(_TURNS, {**params, "limit": 1}).all()
    done = [row for job_row in rows if (row := cancellation.cancel(session, job_row.id, job_row.key_id)) is not None]
    if done:
        audit_log.write(session, act, "purge", "jobs", before={**which.conditions(), "status": status}, after={"cancelled": len(done)})
    return done


_RETRYABLE = text(f"""
    SELECT job.id, job.key_id, key.pool_id, key.kind FROM job JOIN key ON key.id = job.key_id AND key.revoked_at IS NULL
    WHERE job.status IN ('failed', 'expired') AND (length(job.request) > 0 OR job.endpoint LIKE '/v1/models%') AND {_MATCHES}
    AND (CAST(:after AS uuid) IS NULL OR job.id > :after)
    AND NOT EXISTS (SELECT FROM job AS retry WHERE retry.retry_of = job.id) ORDER BY job.id LIMIT :limit
""")


def retryable(session: Transaction, which: JobFilter, *, after: UUID | None, limit: int) -> Sequence[Any]:
    """Returns failed and expired jobs that no job retries yet, oldest first, after this id. Rows: id, key_id, pool_id, kind (of its key).

    Jobs with a deleted request and jobs of revoked keys are left out.
    """
    return session.execute(_RETRYABLE, {**asdict(which), "after": after, "limit": limit}).all()


_LOCK_JOB = text("SELECT id FROM job WHERE id = :id FOR NO KEY UPDATE SKIP LOCKED")
_RETRY = text("SELECT id FROM job WHERE retry_of = :id LIMIT 1")


def may_retry(session: Transaction, job_id: UUID) -> bool:
    """Whether no job retries this one yet. Locks its row, so that of two concurrent bulk retries only one retries it."""
    if session.execute(_LOCK_JOB, {"id": job_id}).one_or_none() is None:
        return False
    # A separate statement after the lock, so that it sees the commits of earlier lock holders.
    return session.execute(_RETRY, {"id": job_id}).one_or_none() is None


def job_key(row: Any) -> Key:
    """Returns the key of a job. row: of `retryable`."""
    return Key(id=row.key_id, pool_id=row.pool_id, kind=row.kind)
