"""Lanes come with the first job for a model, are woken when somebody comes back to them, and leave after a day without any."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text

from models.db import Session
from models.errors import TooManyModels
from models.settings import settings

# A day without jobs: then a lane leaves, unless an operator has said something of it.
KEPT_S = 86_400


def find_or_make(session: Session, pool_id: int, model: str) -> int:
    """The id of the lane for this pool and model. Raises TooManyModels where it would be one more than NOWSERVING_MAX_LANES_PER_POOL."""
    wanted = {"pool_id": pool_id, "model": model, "most": settings().max_lanes_per_pool}
    found = session.execute(_FIND, wanted).scalar_one_or_none() or session.execute(_MAKE, wanted).scalar_one_or_none()
    if found is None:
        most = settings().max_lanes_per_pool
        raise TooManyModels(
            f"This pool has lines for {most} models, as many as it may. Check the model's name, ask for a model that is in use, or ask the "
            "operator for more (NOWSERVING_MAX_LANES_PER_POOL). A line leaves a day after its last job.",
            param="model",
            retry_after_s=3_600,
        )
    return int(found)


def exists(session: Session, lane_id: int) -> bool:
    """False: it has left since its id was looked up."""
    return bool(session.execute(text("SELECT EXISTS (SELECT FROM lane WHERE id = :id)"), {"id": lane_id}).scalar_one())


def drop_idle(session: Session, *, limit: int) -> int:
    """Up to `limit` lanes that nobody has used for KEPT_S leave, with what was kept of their keys and users; returns how many.

    A lane stays while it is paused or drains, or while a user has a cap or a weight there. A submit that finds it at the same moment
    either keeps it or fails as a whole (line.join).
    """
    ids = [row.id for row in session.execute(_DROP_IDLE, {"kept_s": KEPT_S, "limit": limit})]
    for statement in _BELONGINGS if ids else ():
        session.execute(statement, {"ids": ids})
    return len(ids)


def wake(session: Session, lane_ids: Iterable[int]) -> None:
    """These lanes are due now.

    The last thing to lock in a transaction, and once in it: who needs several lanes takes them in the order of their ids. Jobs that come
    back to them have to be told of before (key_share.come_back).
    """
    wanted = sorted(set(lane_ids))
    if wanted:
        session.execute(_WAKE, {"ids": wanted})


_WAKE = text("""
    WITH found AS (SELECT id FROM lane WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE)
    UPDATE lane SET wake_at = now(), idle_since = NULL FROM found WHERE lane.id = found.id
""")
_FIND = text("SELECT id FROM lane WHERE pool_id = :pool_id AND model = :model")
_MAKE = text("""
    INSERT INTO lane (pool_id, model)
    SELECT CAST(:pool_id AS bigint), :model WHERE (SELECT count(*) FROM lane WHERE pool_id = :pool_id) < :most
    ON CONFLICT (pool_id, model) DO UPDATE SET model = excluded.model RETURNING id
""")
# One that was made and never used begins its day now.
_DROP_IDLE = text("""
    WITH unused AS (
        UPDATE lane SET idle_since = now() WHERE id IN (
            SELECT id FROM lane WHERE wake_at IS NULL AND idle_since IS NULL LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
    )
    DELETE FROM lane WHERE id IN (
        SELECT id FROM lane AS old
        WHERE idle_since < now() - make_interval(secs => :kept_s) AND wake_at IS NULL AND coalesce(paused_at, draining_at) IS NULL
        AND NOT EXISTS (SELECT FROM job WHERE job.lane_id = old.id AND status = 'queued')
        AND NOT EXISTS (SELECT FROM job WHERE job.lane_id = old.id AND status IN ('admitted', 'running'))
        AND NOT EXISTS (SELECT FROM cap WHERE scope = 'flow' AND owner_id = old.id)
        AND NOT EXISTS (SELECT FROM key_flow WHERE key_flow.lane_id = old.id AND weight <> 1)
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
    ) AND wake_at IS NULL RETURNING id
""")
_BELONGINGS = [text(f"DELETE FROM {table} WHERE lane_id = ANY(:ids)") for table in ("key_flow", "key_share", "key_milestones", "flow")]
