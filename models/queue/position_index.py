"""Milestones along a key's long line, every 250 jobs: what stands before a job is counted from the last one on.

The sweep sets them anew every few seconds (models/queue/lane_maintenance.py). A short line has none, and is counted whole, exactly.
"""

from __future__ import annotations

from sqlalchemy import text

from models.database.db import Transaction

# Jobs from one to the next: so many a count reads at most, and the places before the first are exact.
CHECKPOINT_EVERY = 250
# As far as anybody counts. Who stands behind that is told this and one.
MAX_COUNTED = 10_000
# SQL: before everybody with the same tag, and behind every tag.
MIN_ID = "CAST('00000000-0000-0000-0000-000000000000' AS uuid)"
MAX_TAG = "CAST('infinity' AS float8)"
# Older ones are not believed: whoever sets them is behind, or away.
FRESH_S = 6


def rebuild_checkpoints(session: Transaction, lane_id: int) -> None:
    """The milestones of all keys with jobs in this lane are those of now."""
    session.execute(_SET, {"lane_id": lane_id, "every": CHECKPOINT_EVERY, "most": MAX_COUNTED})


def key_ahead(*, lane_id: str, key_id: str, low_water: str, start_tag: str, job_id: str) -> str:
    """SQL of one row: jobs, tokens, images and cost of this key ahead of this place. The arguments are SQL.

    `:most` is to be bound to COUNTED_MOST.
    """
    return f"""
        SELECT coalesce(last.jobs, 0) + near.jobs AS jobs, coalesce(last.tokens, 0) + near.tokens AS tokens,
               coalesce(last.images, 0) + near.images AS images, coalesce(last.cost, 0) + near.cost AS cost
        FROM (SELECT) AS this LEFT JOIN LATERAL (
            SELECT one.* FROM key_milestones, unnest(start_tags, ids, jobs, tokens, images, costs)
                AS one (start_tag, id, jobs, tokens, images, cost)
            WHERE key_milestones.lane_id = {lane_id} AND key_milestones.key_id = {key_id} AND set_at > now() - interval '{FRESH_S} s'
            AND (one.start_tag, one.id) <= ({start_tag}, {job_id}) ORDER BY one.start_tag DESC, one.id DESC LIMIT 1
        ) AS last ON true CROSS JOIN LATERAL (
            SELECT count(*) AS jobs, coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(images), 0)::bigint AS images,
                   coalesce(sum(cost), 0) AS cost
            FROM (
                SELECT tokens, images, cost FROM job
                WHERE lane_id = {lane_id} AND key_id = {key_id} AND status = 'queued' AND NOT held
                AND (start_tag, id) >= (coalesce(last.start_tag, {low_water}), coalesce(last.id, {MIN_ID}))
                AND (start_tag, id) < ({start_tag}, {job_id}) LIMIT :most - coalesce(last.jobs, 0)
            ) AS counted
        ) AS near
    """


_SET = text("""
    WITH summed AS (
        SELECT share.key_id, one.*
        FROM key_share AS share CROSS JOIN LATERAL (
            SELECT start_tag, id, row_number() OVER line - 1 AS jobs, sum(tokens) OVER line - tokens AS tokens,
                   sum(images) OVER line - images AS images, sum(cost) OVER line - cost AS cost
            FROM (
                SELECT start_tag, id, tokens, images, cost FROM job
                WHERE lane_id = share.lane_id AND key_id = share.key_id AND status = 'queued' AND NOT held
                AND start_tag >= share.low_water ORDER BY start_tag, id LIMIT :most
            ) AS first WINDOW line AS (ORDER BY start_tag, id ROWS UNBOUNDED PRECEDING)
        ) AS one
        WHERE share.lane_id = :lane_id AND one.jobs > 0 AND one.jobs % :every = 0
    ), gone AS (
        DELETE FROM key_milestones WHERE lane_id = :lane_id AND key_id NOT IN (SELECT key_id FROM summed)
    )
    INSERT INTO key_milestones (lane_id, key_id, set_at, start_tags, ids, jobs, tokens, images, costs)
    SELECT :lane_id, key_id, now(), array_agg(start_tag ORDER BY jobs), array_agg(id ORDER BY jobs), array_agg(jobs ORDER BY jobs),
           array_agg(tokens ORDER BY jobs), array_agg(images ORDER BY jobs), array_agg(cost ORDER BY jobs)
    FROM summed GROUP BY key_id ORDER BY key_id
    ON CONFLICT (lane_id, key_id) DO UPDATE SET set_at = excluded.set_at, start_tags = excluded.start_tags, ids = excluded.ids,
        jobs = excluded.jobs, tokens = excluded.tokens, images = excluded.images, costs = excluded.costs
""")
