"""Maintains the rows of key shares: low-water marks, counters, and the removal of idle rows. See key_shares.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.queue.key_shares import INITIAL_TIME, SETTLED_S


def virtual_times(session: Transaction, lane_id: int) -> Sequence[Any]:
    """The keys of this lane. Rows: key_id, virtual_time."""
    return session.execute(text("SELECT key_id, virtual_time FROM key_share WHERE lane_id = :id"), {"id": lane_id}).all()


_LOCK = text("SELECT key_id FROM key_share WHERE lane_id = :lane_id AND key_id = ANY(:keys) ORDER BY key_id FOR UPDATE SKIP LOCKED")
_RAISE_LOW_WATER = text("""
    UPDATE key_share AS share SET low_water = greatest(share.low_water, least(bound.ceiling, coalesce((
        SELECT min(start_tag) FROM job
        WHERE lane_id = share.lane_id AND key_id = share.key_id AND status = 'queued' AND NOT held AND start_tag >= share.low_water
    ), bound.ceiling)))
    FROM unnest(CAST(:keys AS bigint[]), CAST(:ceilings AS float8[])) AS bound (key_id, ceiling)
    WHERE share.lane_id = :lane_id AND share.key_id = bound.key_id
""")


def raise_low_water(session: Transaction, lane_id: int, ceilings: Mapping[int, float]) -> None:
    """Raises the low-water marks of these keys: no queued job has a lower tag. ceilings: key → its virtual time SETTLED_S ago.

    A submit that has not committed read a virtual time no older than that, so its tag is at or above the ceiling. A requeued job lowers
    the mark under the share's lock, which this function acquires before it reads the jobs.
    """
    locked = [row.key_id for row in session.execute(_LOCK, {"lane_id": lane_id, "keys": sorted(ceilings)})]
    if locked:
        params = {"lane_id": lane_id, "keys": locked, "ceilings": [ceilings[key_id] for key_id in locked]}
        session.execute(_RAISE_LOW_WATER, params)


# The previous version submits jobs without a row for their key, and requeues jobs without lowering the mark. This repairs both.
_RECOUNT = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT key_id, count(*) AS jobs, min(start_tag) AS first FROM job
        WHERE lane_id = :lane_id AND status = 'queued' AND NOT held GROUP BY key_id
    ), missing AS (
        INSERT INTO key_share (lane_id, key_id, last_finish, virtual_time)
        SELECT this_lane.id, key_id, this_lane.virtual_time, {INITIAL_TIME.format(key_id="waiting.key_id")}
        FROM waiting, lane AS this_lane
        WHERE this_lane.id = :lane_id AND key_id NOT IN (SELECT key_id FROM key_share WHERE lane_id = :lane_id)
        ORDER BY key_id ON CONFLICT DO NOTHING
    ), changed AS MATERIALIZED (
        SELECT share.key_id, coalesce(waiting.jobs, 0) AS jobs, waiting.first
        FROM key_share AS share LEFT JOIN waiting ON waiting.key_id = share.key_id
        WHERE share.lane_id = :lane_id AND (waiting.first < share.low_water OR (share.queued, share.idle_since IS NULL)
            IS DISTINCT FROM (coalesce(waiting.jobs, 0), waiting.jobs IS NOT NULL))
        ORDER BY share.key_id FOR UPDATE OF share SKIP LOCKED
    )
    UPDATE key_share AS share SET queued = changed.jobs, idle_since = CASE WHEN changed.jobs = 0 THEN coalesce(share.idle_since, now()) END,
        low_water = least(share.low_water, changed.first)
    FROM changed WHERE share.lane_id = :lane_id AND share.key_id = changed.key_id
""")
_DELETE_IDLE = text("""
    DELETE FROM key_share WHERE (lane_id, key_id) IN (
        SELECT share.lane_id, share.key_id FROM key_share AS share JOIN lane ON lane.id = share.lane_id
        WHERE share.lane_id = :lane_id AND share.idle_since < now() - make_interval(secs => :settled_s)
        AND share.last_finish <= lane.virtual_time
        AND NOT EXISTS (
            SELECT FROM job WHERE job.lane_id = share.lane_id AND job.key_id = share.key_id AND status = 'queued' AND NOT held
        )
        ORDER BY share.key_id FOR UPDATE OF share SKIP LOCKED
    ) AND idle_since IS NOT NULL
""")


def recount_jobs(session: Transaction, lane_id: int) -> None:
    """Updates the queued jobs of each key in the lane, lowers marks that are too high, and deletes rows that were idle for a while."""
    session.execute(_RECOUNT, {"lane_id": lane_id})
    session.execute(_DELETE_IDLE, {"lane_id": lane_id, "settled_s": 2 * SETTLED_S})


def rebuild_shares(session: Transaction, lane_id: int) -> None:
    """Rebuilds the marks and counters of the lane's keys from their jobs."""
    recount_jobs(session, lane_id)
    session.execute(text("UPDATE key_share SET low_water = '-infinity' WHERE lane_id = :id"), {"id": lane_id})
