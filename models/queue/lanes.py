"""Lanes: created by the first job for a model, woken when jobs are enqueued, deleted after a day without jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction, begin
from models.platform.errors import TooManyModels
from models.queue.key_shares import SETTLED_S

# A lane without jobs is deleted after a day, unless an operator has changed it.
KEPT_S = 86_400


@lru_cache(maxsize=65_536)
def id_of(pool_id: int, model: str) -> int:
    """The id of the lane for this pool and model, created if missing in a transaction of its own; cached. Raises TooManyModels."""
    with begin() as session:
        return find_or_create(session, pool_id, model)


_FIND = text("SELECT id FROM lane WHERE pool_id = :pool_id AND model = :model AND leaving_at IS NULL")
_CREATE = text("""
    INSERT INTO lane (pool_id, model)
    SELECT CAST(:pool_id AS bigint), CAST(:model AS text)
    WHERE (SELECT count(*) FROM lane WHERE pool_id = :pool_id) < :limit
    OR EXISTS (SELECT FROM lane WHERE pool_id = :pool_id AND model = :model)
    ON CONFLICT (pool_id, model) DO UPDATE SET leaving_at = NULL, idle_since = NULL RETURNING id
""")


def find_or_create(session: Transaction, pool_id: int, model: str) -> int:
    """The id of the lane for this pool and model. Raises TooManyModels if a new one would exceed NOWSERVING_MAX_LANES_PER_POOL."""
    limit = settings().max_lanes_per_pool
    params = {"pool_id": pool_id, "model": model, "limit": limit}
    lane_id = session.execute(_FIND, params).scalar_one_or_none() or session.execute(_CREATE, params).scalar_one_or_none()
    if lane_id is None:
        raise TooManyModels(
            f"This pool has lines for {limit} models, as many as it may. Check the model's name, ask for a model that is in use, or ask "
            "the operator for more (NOWSERVING_MAX_LANES_PER_POOL). A line leaves a day after its last job.",
            param="model",
            retry_after_s=3_600,
        )
    return int(lane_id)


def exists(session: Transaction, lane_id: int) -> bool:
    """Whether the lane exists and is not marked for deletion."""
    return bool(
        session.execute(text("SELECT EXISTS (SELECT FROM lane WHERE id = :id AND leaving_at IS NULL)"), {"id": lane_id}).scalar_one()
    )


_WAKE = text("""
    WITH found AS (SELECT id FROM lane WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE)
    UPDATE lane SET wake_at = now(), idle_since = NULL FROM found WHERE lane.id = found.id
""")


def wake(session: Transaction, lane_ids: Iterable[int]) -> None:
    """Makes these lanes due now.

    Call it last and once in a transaction: lanes are locked in the order of their ids, after all other rows. For requeued jobs, call
    key_shares.restore_requeued before.
    """
    ids = sorted(set(lane_ids))
    if ids:
        session.execute(_WAKE, {"ids": ids})


# One step along the index, however many lanes there are. A lane claimed by another pacer is left to that pacer.
_NEXT_WAKE = text("""
    SELECT least(:limit_s, greatest(0, coalesce(extract(epoch FROM (
        SELECT wake_at FROM lane WHERE wake_at IS NOT NULL AND (claimed_until IS NULL OR claimed_until < now()) AND paused_at IS NULL
        AND (SELECT pool.paused_at FROM pool WHERE pool.id = lane.pool_id) IS NULL ORDER BY wake_at LIMIT 1
    ) - clock_timestamp()), :limit_s)))::float8
""")


def next_wake_in_s(session: Transaction, *, limit_s: float) -> float:
    """Seconds until the next lane is due, at most `limit_s`. Paused lanes and lanes claimed by other pacers are not due."""
    return float(session.execute(_NEXT_WAKE, {"limit_s": limit_s}).scalar_one())


_WAKE_LOST = text("""
    UPDATE lane SET wake_at = now(), idle_since = NULL
    WHERE id IN (
        SELECT id FROM lane WHERE idle_since > now() - make_interval(secs => :settled_s) AND EXISTS (
            SELECT FROM job WHERE job.lane_id = lane.id AND status = 'queued' AND NOT held
        ) FOR UPDATE SKIP LOCKED
    ) RETURNING id
""")


def wake_lost(session: Transaction) -> list[int]:
    """Wakes lanes that became idle a short while ago and have queued jobs: their wake-up was lost. Returns their ids."""
    return [row.id for row in session.execute(_WAKE_LOST, {"settled_s": 2 * SETTLED_S})]


_DELAYED = text("""
    SELECT asked.lane_id, extract(epoch FROM delayed.first - clock_timestamp())::float8 AS wake_in_s
    FROM unnest(CAST(:lanes AS bigint[])) AS asked (lane_id)
    CROSS JOIN LATERAL (
        SELECT min(not_before) AS first FROM job
        WHERE lane_id = asked.lane_id AND status = 'queued' AND not_before IS NOT NULL AND NOT held
        AND (expires_at IS NULL OR expires_at > clock_timestamp())
    ) AS delayed WHERE delayed.first IS NOT NULL
""")


def delayed_wakes(session: Transaction, lane_ids: Sequence[int]) -> dict[int, float]:
    """Seconds until the first delayed job of each lane may be admitted, for lanes whose queued jobs are all delayed."""
    return {row.lane_id: row.wake_in_s for row in session.execute(_DELAYED, {"lanes": list(lane_ids)})}


_UNUSED = """
    wake_at IS NULL AND coalesce(paused_at, draining_at) IS NULL
    AND NOT EXISTS (SELECT FROM job WHERE job.lane_id = old.id AND status = 'queued')
    AND NOT EXISTS (SELECT FROM job WHERE job.lane_id = old.id AND status IN ('admitted', 'running'))
    AND NOT EXISTS (SELECT FROM cap WHERE scope = 'flow' AND owner_id = old.id)
    AND NOT EXISTS (SELECT FROM key_flow WHERE key_flow.lane_id = old.id AND weight <> 1)
"""
# For a lane that was created and never used, the day begins now.
_MARK = text(f"""
    WITH marked_idle AS (
        UPDATE lane SET idle_since = now() WHERE id IN (
            SELECT id FROM lane WHERE wake_at IS NULL AND idle_since IS NULL LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
    )
    UPDATE lane SET leaving_at = now() WHERE id IN (
        SELECT id FROM lane AS old WHERE leaving_at IS NULL AND idle_since < now() - make_interval(secs => :kept_s) AND {_UNUSED}
        ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
    ) AND wake_at IS NULL
""")
_DELETE_MARKED = text(f"""
    DELETE FROM lane WHERE id IN (
        SELECT id FROM lane AS old WHERE leaving_at < now() - make_interval(secs => :settled_s) AND {_UNUSED}
        ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
    ) AND wake_at IS NULL AND leaving_at IS NOT NULL RETURNING id
""")
_DELETE_ROWS = [text(f"DELETE FROM {table} WHERE lane_id = ANY(:ids)") for table in ("key_flow", "key_share", "key_milestones", "flow")]


def delete_idle(session: Transaction, *, limit: int) -> int:
    """Deletes up to `limit` lanes unused for KEPT_S, with the rows of their keys and users. Returns the number.

    A lane is marked first, and then accepts no job; find_or_create removes the mark again. It is deleted 2 SETTLED_S later, when every
    submit that did not see the mark has ended. A lane stays while it is paused or drains, or a user has a cap or a weight in it.
    """
    session.execute(_MARK, {"kept_s": KEPT_S})
    ids = [row.id for row in session.execute(_DELETE_MARKED, {"settled_s": 2 * SETTLED_S, "limit": limit})]
    for statement in _DELETE_ROWS if ids else ():
        session.execute(statement, {"ids": ids})
    return len(ids)
