"""SQL that counts the jobs ahead of a place in a lane: prefix sums at checkpoints, and the jobs after the last checkpoint.

A key with a long queue has a checkpoint every 250 jobs; models/queue/lane_maintenance.py rebuilds them every few seconds. A short queue has
none: its count is complete and exact.
"""

from __future__ import annotations

from sqlalchemy import text

from models.database.db import Transaction
from models.queue.key_shares import TURN

# Jobs between checkpoints: the most that one count reads. Positions before the first checkpoint are exact.
CHECKPOINT_EVERY = 250
# No position is counted beyond this; jobs behind it get this position plus one.
MAX_COUNTED = 10_000
# For a position, this many jobs of every other key are read. Beyond that, their mean cost gives the number of jobs ahead.
MAX_READ_PER_KEY = 100
# SQL: the id before every job with the same tag, and the tag behind every job.
MIN_ID = "CAST('00000000-0000-0000-0000-000000000000' AS uuid)"
MAX_TAG = "CAST('infinity' AS float8)"
# Older checkpoints are ignored: their pacer is behind or has stopped.
FRESH_S = 6

_REBUILD = text("""
    WITH checkpoints AS (
        SELECT share.key_id, summed.*
        FROM key_share AS share CROSS JOIN LATERAL (
            SELECT start_tag, id, row_number() OVER before - 1 AS jobs, sum(tokens) OVER before - tokens AS tokens,
                   sum(images) OVER before - images AS images, sum(cost) OVER before - cost AS cost
            FROM (
                SELECT start_tag, id, tokens, images, cost FROM job
                WHERE lane_id = share.lane_id AND key_id = share.key_id AND status = 'queued' AND NOT held
                AND start_tag >= share.low_water ORDER BY start_tag, id LIMIT :max_counted
            ) AS first WINDOW before AS (ORDER BY start_tag, id ROWS UNBOUNDED PRECEDING)
        ) AS summed
        WHERE share.lane_id = :lane_id AND summed.jobs > 0 AND summed.jobs % :every = 0
    ), removed AS (
        DELETE FROM key_milestones WHERE lane_id = :lane_id AND key_id NOT IN (SELECT key_id FROM checkpoints)
    )
    INSERT INTO key_milestones (lane_id, key_id, set_at, start_tags, ids, jobs, tokens, images, costs)
    SELECT :lane_id, key_id, now(), array_agg(start_tag ORDER BY jobs), array_agg(id ORDER BY jobs), array_agg(jobs ORDER BY jobs),
           array_agg(tokens ORDER BY jobs), array_agg(images ORDER BY jobs), array_agg(cost ORDER BY jobs)
    FROM checkpoints GROUP BY key_id ORDER BY key_id
    ON CONFLICT (lane_id, key_id) DO UPDATE SET set_at = excluded.set_at, start_tags = excluded.start_tags, ids = excluded.ids,
        jobs = excluded.jobs, tokens = excluded.tokens, images = excluded.images, costs = excluded.costs
""")


def rebuild_checkpoints(session: Transaction, lane_id: int) -> None:
    """Rebuilds the checkpoints of all keys with jobs in this lane."""
    session.execute(_REBUILD, {"lane_id": lane_id, "every": CHECKPOINT_EVERY, "max_counted": MAX_COUNTED})


def key_ahead(*, lane_id: str, key_id: str, low_water: str, start_tag: str, job_id: str) -> str:
    """SQL of one row: jobs, tokens, images and cost of this key ahead of this place. The arguments are SQL.

    Bind `:max_counted` to MAX_COUNTED.
    """
    return f"""
        SELECT coalesce(last.jobs, 0) + near.jobs AS jobs, coalesce(last.tokens, 0) + near.tokens AS tokens,
               coalesce(last.images, 0) + near.images AS images, coalesce(last.cost, 0) + near.cost AS cost
        FROM (SELECT) AS this LEFT JOIN LATERAL (
            SELECT checkpoint.* FROM key_milestones, unnest(start_tags, ids, jobs, tokens, images, costs)
                AS checkpoint (start_tag, id, jobs, tokens, images, cost)
            WHERE key_milestones.lane_id = {lane_id} AND key_milestones.key_id = {key_id} AND set_at > now() - interval '{FRESH_S} s'
            AND (checkpoint.start_tag, checkpoint.id) <= ({start_tag}, {job_id})
            ORDER BY checkpoint.start_tag DESC, checkpoint.id DESC LIMIT 1
        ) AS last ON true CROSS JOIN LATERAL (
            SELECT count(*) AS jobs, coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(images), 0)::bigint AS images,
                   coalesce(sum(cost), 0) AS cost
            FROM (
                SELECT tokens, images, cost FROM job
                WHERE lane_id = {lane_id} AND key_id = {key_id} AND status = 'queued' AND NOT held
                AND (start_tag, id) >= (coalesce(last.start_tag, {low_water}), coalesce(last.id, {MIN_ID}))
                AND (start_tag, id) < ({start_tag}, {job_id}) LIMIT :max_counted - coalesce(last.jobs, 0)
            ) AS counted
        ) AS near
    """


def lane_ahead(*, lane_id: str, key_id: str, lane_time: str, start_tag: str, job_id: str, share: str) -> str:
    """SQL of one row: jobs, tokens and images of all keys ahead of this place in the lane. The arguments are SQL.

    share: an alias with last_finish, low_water and weight of the key. Exact while no other key has more than MAX_READ_PER_KEY jobs ahead.
    """
    own = key_ahead(lane_id=lane_id, key_id=key_id, low_water=f"{share}.low_water", start_tag=start_tag, job_id=job_id)
    return f"""
        SELECT least(:max_counted, own.jobs + others.jobs)::int AS jobs, (own.tokens + others.tokens)::bigint AS tokens,
               (own.images + others.images)::bigint AS images
        FROM ({own}) AS own CROSS JOIN LATERAL (
            SELECT CASE WHEN {start_tag} < 0 THEN {start_tag}
                   ELSE greatest({lane_time}, {share}.last_finish) + own.cost / {share}.weight END AS turn
        ) AS place CROSS JOIN LATERAL (
            SELECT coalesce(sum(whole.jobs), 0) AS jobs, coalesce(sum(near.tokens * whole.jobs / near.jobs), 0) AS tokens,
                   coalesce(sum(near.images * whole.jobs / near.jobs), 0) AS images
            FROM (
                SELECT key_share.*, key.weight, greatest({lane_time}, key_share.last_finish) AS starts
                FROM key_share JOIN key ON key.id = key_share.key_id WHERE key_share.lane_id = {lane_id} AND key_share.key_id <> {key_id}
            ) AS other CROSS JOIN LATERAL (
                SELECT count(*) AS jobs, sum(tokens) AS tokens, sum(images) AS images, sum(cost) AS cost
                FROM (
                    SELECT id, tokens, images, cost, {TURN.format(share="other")} AS turn
                    FROM (
                        SELECT id, key_id, start_tag, tokens, images, cost FROM job
                        WHERE job.lane_id = {lane_id} AND job.key_id = other.key_id AND status = 'queued' AND NOT held
                        AND start_tag >= other.low_water ORDER BY start_tag, id LIMIT {MAX_READ_PER_KEY}
                    ) AS first
                ) AS theirs WHERE (theirs.turn, theirs.id) < (place.turn, {job_id})
            ) AS near CROSS JOIN LATERAL (
                SELECT CASE WHEN near.jobs < {MAX_READ_PER_KEY} OR place.turn < 0 THEN near.jobs ELSE greatest(near.jobs, least(
                    other.queued, floor((place.turn - other.starts) * other.weight / near.cost * near.jobs)
                )) END AS jobs
            ) AS whole WHERE near.jobs > 0
        ) AS others
    """
