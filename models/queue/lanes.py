"""Lanes come with the first job for a model, are woken when somebody comes back to them, and leave after a day without any."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction
from models.platform.errors import TooManyModels
from models.queue.key_shares import SETTLED_S

# A day without jobs: then a lane leaves, unless an operator has said something of it.
KEPT_S = 86_400


def find_or_create(session: Transaction, pool_id: int, model: str) -> int:
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


def exists(session: Transaction, lane_id: int) -> bool:
    """False: it has left since its id was looked up, or is about to."""
    return bool(
        session.execute(text("SELECT EXISTS (SELECT FROM lane WHERE id = :id AND leaving_at IS NULL)"), {"id": lane_id}).scalar_one()
    )


def delete_idle(session: Transaction, *, limit: int) -> int:
    """Up to `limit` lanes that nobody has used for KEPT_S leave, with what was kept of their keys and users; returns how many.

    First a lane is marked, and no submit joins it any more: find_or_make takes the mark away again. It is deleted 2 SETTLED_S later, when
    every submit that had not seen the mark has ended. A lane stays while it is paused or drains, or a user has a cap or a weight there.
    """
    session.execute(_MARK, {"kept_s": KEPT_S})
    ids = [row.id for row in session.execute(_DROP_MARKED, {"settled_s": 2 * SETTLED_S, "limit": limit})]
    for statement in _BELONGINGS if ids else ():
        session.execute(statement, {"ids": ids})
    return len(ids)


def wake(session: Transaction, lane_ids: Iterable[int]) -> None:
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
_FIND = text("SELECT id FROM lane WHERE pool_id = :pool_id AND model = :model AND leaving_at IS NULL")
_MAKE = text("""
    INSERT INTO lane (pool_id, model)
    SELECT CAST(:pool_id AS bigint), CAST(:model AS text)
    WHERE (SELECT count(*) FROM lane WHERE pool_id = :pool_id) < :most
    OR EXISTS (SELECT FROM lane WHERE pool_id = :pool_id AND model = :model)
    ON CONFLICT (pool_id, model) DO UPDATE SET leaving_at = NULL, idle_since = NULL RETURNING id
""")
_UNUSED = """
    wake_at IS NULL AND coalesce(paused_at, draining_at) IS NULL
    AND NOT EXISTS (SELECT FROM job WHERE job.lane_id = old.id AND status = 'queued')
    AND NOT EXISTS (SELECT FROM job WHERE job.lane_id = old.id AND status IN ('admitted', 'running'))
    AND NOT EXISTS (SELECT FROM cap WHERE scope = 'flow' AND owner_id = old.id)
    AND NOT EXISTS (SELECT FROM key_flow WHERE key_flow.lane_id = old.id AND weight <> 1)
"""
# The day of one that was made and never used begins now.
_MARK = text(f"""
    WITH begun AS (
        UPDATE lane SET idle_since = now() WHERE id IN (
            SELECT id FROM lane WHERE wake_at IS NULL AND idle_since IS NULL LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
    )
    UPDATE lane SET leaving_at = now() WHERE id IN (
        SELECT id FROM lane AS old WHERE leaving_at IS NULL AND idle_since < now() - make_interval(secs => :kept_s) AND {_UNUSED}
        ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
    ) AND wake_at IS NULL
""")
_DROP_MARKED = text(f"""
    DELETE FROM lane WHERE id IN (
        SELECT id FROM lane AS old WHERE leaving_at < now() - make_interval(secs => :settled_s) AND {_UNUSED}
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
    ) AND wake_at IS NULL AND leaving_at IS NOT NULL RETURNING id
""")
_BELONGINGS = [text(f"DELETE FROM {table} WHERE lane_id = ANY(:ids)") for table in ("key_flow", "key_share", "key_milestones", "flow")]
