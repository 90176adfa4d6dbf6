"""Bulk cancel by filter, a chunk in each transaction; and the jobs that a bulk retry resubmits."""

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
    """Which jobs; None: any. user: as callers name it, a flow's name. older_than_s: since they were submitted."""

    pool_id: int | None = None
    lane_id: int | None = None
    key_id: int | None = None
    user: str | None = None
    older_than_s: float | None = None

    def said(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


_WHICH = """
    (CAST(:pool_id AS bigint) IS NULL OR job.key_id IN (SELECT id FROM key WHERE pool_id = :pool_id))
    AND (CAST(:lane_id AS bigint) IS NULL OR job.lane_id = :lane_id) AND (CAST(:key_id AS bigint) IS NULL OR job.key_id = :key_id)
    AND (CAST(:user AS text) IS NULL OR job.flow = :user)
    AND (CAST(:older_than_s AS float8) IS NULL OR job.created_at < now() - make_interval(secs => :older_than_s))
"""
_OPEN = f"SELECT id, key_id FROM job WHERE status = ANY(:statuses) AND NOT cancel_requested AND {_WHICH}"
_ALONE = text(f"{_OPEN} AND (conversation_id IS NULL OR held) ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED")
_TURNS = text(f"{_OPEN} AND conversation_id IS NOT NULL AND NOT held ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED")


def cancel_batch(session: Transaction, act: Act, which: JobFilter, *, status: str = "queued") -> list[Any]:
    """Cancels up to CHUNK of these jobs, as their callers would; an empty list: there are no more. Rows of job.cancel.

    Cancelling a turn that others wait behind locks its conversation, then the next turn. So it is the only job of its transaction, and
    those that lock nothing beside their own rows (jobs of no conversation, turns held behind another) are cancelled first, together.

    status `running`: those that run are told to stop, too. Raises Invalid without any filter: nobody means everything.
    """
    if not which.said():
        raise Invalid("Say which jobs: pool, lane, key, user or older_than_s.")
    if status not in STATUSES:
        raise Invalid(f"`status` is one of {', '.join(STATUSES)}.", param="status")
    params = {**asdict(which), "statuses": ["queued", "admitted"] if status == "queued" else ["queued", "admitted", "running"]}
    rows = session.execute(_ALONE, {**params, "limit": BATCH_SIZE}).all() or session.execute(_TURNS, {**params, "limit": 1}).all()
    done = [row for job_row in rows if (row := cancellation.cancel(session, job_row.id, job_row.key_id)) is not None]
    if done:
        audit_log.write(session, act, "purge", "jobs", before={**which.said(), "status": status}, after={"cancelled": len(done)})
    return done


_DEAD = text(f"""
    SELECT job.id, job.key_id, key.pool_id, key.kind FROM job JOIN key ON key.id = job.key_id AND key.revoked_at IS NULL
    WHERE job.status IN ('failed', 'expired') AND (length(job.request) > 0 OR job.endpoint LIKE '/v1/models%') AND {_WHICH}
    AND (CAST(:after AS uuid) IS NULL OR job.id > :after)
    AND NOT EXISTS (SELECT FROM job AS again WHERE again.retry_of = job.id) ORDER BY job.id LIMIT :most
""")


def retryable(session: Transaction, which: JobFilter, *, after: UUID | None, most: int) -> Sequence[Any]:
    """Failed and expired jobs that no job repeats, oldest first, behind this one. Rows: id, key_id, pool_id, kind (of its key).

    Jobs whose request was deleted, and jobs of revoked keys, are left out.
    """
    return session.execute(_DEAD, {**asdict(which), "after": after, "most": most}).all()


_LOCK_DEAD = text("SELECT id FROM job WHERE id = :id FOR NO KEY UPDATE SKIP LOCKED")
_REPEAT = text("SELECT id FROM job WHERE retry_of = :id LIMIT 1")


def may_retry(session: Transaction, job_id: UUID) -> bool:
    """Whether no job repeats this one. Holds its row, so that of two bulk retries at once only one repeats it."""
    if session.execute(_LOCK_DEAD, {"id": job_id}).one_or_none() is None:
        return False
    # A statement of its own, after the lock: it must see the commits of earlier holders.
    return session.execute(_REPEAT, {"id": job_id}).one_or_none() is None


def job_key(row: Any) -> Key:
    """Whose job it is. row: of `dead`."""
    return Key(id=row.key_id, pool_id=row.pool_id, kind=row.kind)
