"""Milestones along a long line: every so many jobs, how many stand before. What stands ahead of a job is counted from the last one on.

The sweep sets them anew every few seconds (models/lane_care.py). A short line has none, and is counted whole, exactly.
"""

from __future__ import annotations

from sqlalchemy import text

from models.db import Session

# Jobs from one to the next: so many a count reads at most, and the places before the first are exact.
EVERY = 250
# As far as anybody counts. Who stands behind that is told this and one.
COUNTED_MOST = 10_000
# SQL: before everybody with the same tag, and behind every tag.
FIRST = "CAST('00000000-0000-0000-0000-000000000000' AS uuid)"
END = "CAST('infinity' AS float8)"
# Older ones are not believed: whoever sets them is behind, or away.
GOOD_S = 6


def set_anew(session: Session, lane_id: int) -> None:
    """The lane's milestones are those of now."""
    session.execute(_SET, {"lane_id": lane_id, "every": EVERY, "most": COUNTED_MOST})


def ahead(*, lane_id: str, low_water: str, start_tag: str, job_id: str) -> str:
    """SQL of one row: jobs, tokens and images ahead of this place. The arguments are SQL; `:most` is to be bound to COUNTED_MOST."""
    return f"""
        SELECT coalesce(last.jobs, 0) + near.jobs AS jobs, coalesce(last.tokens, 0) + near.tokens AS tokens,
               coalesce(last.images, 0) + near.images AS images
        FROM (SELECT) AS this LEFT JOIN LATERAL (
            SELECT one.* FROM milestones, unnest(start_tags, ids, jobs, tokens, images) AS one (start_tag, id, jobs, tokens, images)
            WHERE milestones.lane_id = {lane_id} AND set_at > now() - interval '{GOOD_S} s'
            AND (one.start_tag, one.id) <= ({start_tag}, {job_id}) ORDER BY one.start_tag DESC, one.id DESC LIMIT 1
        ) AS last ON true CROSS JOIN LATERAL (
            SELECT count(*) AS jobs, coalesce(sum(tokens), 0)::bigint AS tokens, coalesce(sum(images), 0)::bigint AS images FROM (
                SELECT tokens, images FROM job WHERE lane_id = {lane_id} AND status = 'queued' AND NOT held
                AND (start_tag, id) >= (coalesce(last.start_tag, {low_water}), coalesce(last.id, {FIRST}))
                AND (start_tag, id) < ({start_tag}, {job_id}) LIMIT :most - coalesce(last.jobs, 0)
            ) AS counted
        ) AS near
    """


_SET = text("""
    WITH summed AS (
        SELECT start_tag, id, row_number() OVER line - 1 AS jobs, sum(tokens) OVER line - tokens AS tokens,
               sum(images) OVER line - images AS images
        FROM (
            SELECT job.start_tag, job.id, job.tokens, job.images FROM job JOIN lane ON lane.id = job.lane_id
            WHERE job.lane_id = :lane_id AND status = 'queued' AND NOT held AND start_tag >= lane.low_water
            ORDER BY start_tag, job.id LIMIT :most
        ) AS first WINDOW line AS (ORDER BY start_tag, id ROWS UNBOUNDED PRECEDING)
    ), kept AS (SELECT * FROM summed WHERE jobs > 0 AND jobs % :every = 0)
    INSERT INTO milestones (lane_id, set_at, start_tags, ids, jobs, tokens, images)
    SELECT :lane_id, now(), coalesce(array_agg(start_tag), '{}'), coalesce(array_agg(id), '{}'), coalesce(array_agg(jobs), '{}'),
           coalesce(array_agg(tokens), '{}'), coalesce(array_agg(images), '{}')
    FROM kept
    ON CONFLICT (lane_id) DO UPDATE SET set_at = excluded.set_at, start_tags = excluded.start_tags, ids = excluded.ids,
        jobs = excluded.jobs, tokens = excluded.tokens, images = excluded.images
""")
