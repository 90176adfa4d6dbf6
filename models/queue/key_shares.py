"""The share of each key in a lane: hierarchical start-time fair queueing (Goyal, Vin, Cheng 1996).

A lane is shared among the keys of its pool, by their weights and in the lane's virtual time; what a key gets is shared among its users, by
the start tags of their jobs in the key's own virtual time. So a job's turn is `max(lane.virtual_time, share.last_finish)` and the cost of
the key's jobs before it, over the key's weight. The pacer charges a key for what it admits, and nobody else's users change that.

A row is there while its key has jobs in the lane, or more than its share behind it. Locks go from flows to jobs, to shares, to lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction

# Of every other key so many jobs are looked at for a place; of more, as many as their mean cost lets pass are taken to stand ahead.
MAX_READ_PER_KEY = 100
# Longer than any transaction of ours can stay open (db.SERVER_OPTIONS): what was true this long ago, every submit has seen.
SETTLED_S = 20


@dataclass(frozen=True)
class Charge:
    """What one key was given in one lane: the cost of its jobs, and how far its own time moved on."""

    lane_id: int
    key_id: int
    cost: float
    virtual_time: float


def virtual_turns(admitted: Sequence[Any]) -> list[tuple[float, float]]:
    """(turn, finish) of each of these jobs in the lane's time. What was passed over costs its key nothing. Rows: of pacing.heads.

    What an operator put first is charged to its key, and moves nobody else's time.
    """
    ends: dict[int, float] = {}
    made = []
    for head in admitted:
        at = ends.get(head.key_id, head.starts)
        ends[head.key_id] = at + head.cost / head.weight
        if head.start_tag >= 0:
            made.append((at, ends[head.key_id]))
    return made


def charges(going: Sequence[Any], looked_at: Sequence[Any], *, cut: Set[int]) -> list[Charge]:
    """What each key is charged for the jobs that go. The own time of a key with nobody left in line goes on to its last finish.

    Both: rows of pacing.heads. cut: lanes of which not all who wait were looked at.
    """
    gone = {head.id for head in going}
    waits = {(head.lane_id, head.key_id) for head in looked_at if head.id not in gone or head.lane_id in cut}
    made: dict[tuple[int, int], Charge] = {}
    for head in going:
        where = (head.lane_id, head.key_id)
        before = made.get(where, Charge(*where, cost=0.0, virtual_time=0.0))
        reached = head.start_tag + (0.0 if where in waits or head.start_tag < 0 else head.share)
        made[where] = Charge(*where, cost=before.cost + head.cost, virtual_time=max(before.virtual_time, reached))
    return list(made.values())


def ensure_share(session: Transaction, lane_id: int, key_id: int) -> None:
    """The key has a row in this lane. To be committed soon: whoever submits next with this key waits for it."""
    wanted = {"lane_id": lane_id, "key_id": key_id}
    if session.execute(_KNOWN, wanted).one_or_none() is None:
        session.execute(_OPEN, wanted)


def charge_shares(session: Transaction, charges: Sequence[Charge], *, times: Mapping[int, float]) -> None:
    """Each key's next turn is later by what it was given. times: lane → the virtual time at which it was looked at."""
    ordered = sorted(charges, key=lambda one: (one.lane_id, one.key_id))
    if ordered:
        session.execute(
            _CHARGE,
            {
                "lanes": [one.lane_id for one in ordered],
                "keys": [one.key_id for one in ordered],
                "costs": [one.cost for one in ordered],
                "times": [one.virtual_time for one in ordered],
                "lane_times": [times[one.lane_id] for one in ordered],
            },
        )


def restore_requeued(session: Transaction, rows: Iterable[tuple[int, int, float, float]]) -> None:
    """Jobs stand in line again, and what they had not used is given back.

    rows: (lane id, key id, start tag, cost to give back).
    """
    lowest: dict[tuple[int, int], tuple[float, float]] = {}
    for lane_id, key_id, tag, cost in rows:
        before = lowest.get((lane_id, key_id), (tag, 0.0))
        lowest[lane_id, key_id] = (min(tag, before[0]), cost + before[1])
    if lowest:
        ordered = sorted(lowest)
        session.execute(
            _COME_BACK,
            {
                "lanes": [lane_id for lane_id, _ in ordered],
                "keys": [key_id for _, key_id in ordered],
                "tags": [lowest[one][0] for one in ordered],
                "costs": [lowest[one][1] for one in ordered],
            },
        )


def refund_flows(session: Transaction, rows: Iterable[Any]) -> None:
    """Users whose jobs ended uncalled get back the share that these had in line. Rows: lane_id, key_id, flow, share.

    A user who submits or is moved at this moment is passed over: whoever holds the row may be waiting for these jobs. Last in its
    transaction: the submit of a next turn holds the conversation while it waits for this row.
    """
    sums: dict[tuple[int, int, str], float] = {}
    for row in rows:
        where = (row.lane_id, row.key_id, row.flow)
        sums[where] = sums.get(where, 0.0) + row.share
    if sums:
        ordered = sorted(sums)
        session.execute(
            _GIVE_BACK,
            {
                "lanes": [one[0] for one in ordered],
                "keys": [one[1] for one in ordered],
                "flows": [one[2] for one in ordered],
                "shares": [sums[one] for one in ordered],
            },
        )


def raise_low_water(session: Transaction, lane_id: int, ceilings: Mapping[int, float]) -> None:
    """No queued job of these keys has a lower tag than their mark. ceilings: key → its virtual time of SETTLED_S ago.

    A submit that has not committed yet read a virtual time no older than that, so its tag is at or above the ceiling; a job that
    comes back lowers the mark under the share's lock, which is taken here before looking.
    """
    locked = [row.key_id for row in session.execute(_LOCK, {"lane_id": lane_id, "keys": sorted(ceilings)})]
    if locked:
        session.execute(_RAISE_LOW_WATER, {"lane_id": lane_id, "keys": locked, "ceilings": [ceilings[one] for one in locked]})


def recount_jobs(session: Transaction, lane_id: int) -> None:
    """The lane's keys have rows with what waits of each, and no mark above it; those without jobs for a while have none any more."""
    session.execute(_COUNT, {"lane_id": lane_id})
    session.execute(_DROP_IDLE, {"lane_id": lane_id, "settled_s": 2 * SETTLED_S})


def rebuild_shares(session: Transaction, lane_id: int) -> None:
    """The marks and counters of the lane's keys are made again from their jobs."""
    recount_jobs(session, lane_id)
    session.execute(text("UPDATE key_share SET low_water = '-infinity' WHERE lane_id = :id"), {"id": lane_id})


def virtual_times(session: Transaction, lane_id: int) -> Sequence[Any]:
    """The keys of this lane. Rows: key_id, virtual_time."""
    return session.execute(text("SELECT key_id, virtual_time FROM key_share WHERE lane_id = :id"), {"id": lane_id}).all()


# A key that comes to a lane stands where the lane is. Its own time goes on from its users' last finish.
_BEGINNING = """
    greatest(line.virtual_time, (SELECT max(last_finish) FROM key_flow WHERE lane_id = line.id AND key_id = {key_id}))
"""
#: CTEs of a submit: `share`, the key's row in the lane, made where there is none; empty where another submit makes it at this moment.
#: And `kept`, which marks it as in use; to be read before the lane is locked. Before them: `line`, the lane's. Nobody locks a row that is
#: there and in use: a key's submits would stand in line for it, one commit each.
SHARE_CTES = f"""
    known AS (
        SELECT last_finish, virtual_time, low_water FROM key_share WHERE lane_id = :lane_id AND key_id = :key_id
    ), opened AS (
        INSERT INTO key_share AS share (lane_id, key_id, last_finish, virtual_time)
        SELECT line.id, :key_id, line.virtual_time, {_BEGINNING.format(key_id=":key_id")} FROM line WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT DO NOTHING RETURNING last_finish, virtual_time, low_water
    ), kept AS (
        UPDATE key_share SET idle_since = NULL
        WHERE lane_id = :lane_id AND key_id = :key_id AND idle_since < now() - make_interval(secs => :settled_s) RETURNING key_id
    ), share AS (
        SELECT one.*, (SELECT weight FROM key WHERE id = :key_id) AS weight
        FROM (SELECT * FROM known UNION ALL SELECT * FROM opened) AS one
    )
"""


def lane_ahead(own: str, *, lane_id: str, key_id: str, lane_time: str, start_tag: str, job_id: str, share: str) -> str:
    """SQL of one row: jobs, tokens and images ahead of this place in the lane. The arguments are SQL.

    own: what stands ahead of the key's own (milestone.of_key). share: an alias with last_finish and weight of the key.
    Exact while no other key has more than LOOKED_MOST jobs ahead of it.
    """
    return f"""
        SELECT least(:most, own.jobs + others.jobs)::int AS jobs, (own.tokens + others.tokens)::bigint AS tokens,
               (own.images + others.images)::bigint AS images
        FROM ({own}) AS own CROSS JOIN LATERAL (
            SELECT CASE WHEN {start_tag} < 0 THEN {start_tag}
                   ELSE greatest({lane_time}, {share}.last_finish) + own.cost / {share}.weight END AS turn
        ) AS mine CROSS JOIN LATERAL (
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
                ) AS one WHERE (one.turn, one.id) < (mine.turn, {job_id})
            ) AS near CROSS JOIN LATERAL (
                SELECT CASE WHEN near.jobs < {MAX_READ_PER_KEY} OR mine.turn < 0 THEN near.jobs ELSE greatest(near.jobs, least(
                    other.queued, floor((mine.turn - other.starts) * other.weight / near.cost * near.jobs)
                )) END AS jobs
            ) AS whole WHERE near.jobs > 0
        ) AS others
    """


#: SQL, of the first jobs of a key in order: when it is each one's turn in the lane. share: an alias with `starts` and `weight`.
TURN = """
    CASE WHEN start_tag < 0 THEN start_tag ELSE {share}.starts + (
        sum(cost) OVER (PARTITION BY key_id ORDER BY start_tag, id) - cost
    ) / {share}.weight END
"""
_KNOWN = text("SELECT FROM key_share WHERE lane_id = :lane_id AND key_id = :key_id")
_OPEN = text(f"""
    INSERT INTO key_share (lane_id, key_id, last_finish, virtual_time)
    SELECT line.id, :key_id, line.virtual_time, {_BEGINNING.format(key_id=":key_id")} FROM lane AS line WHERE line.id = :lane_id
    ON CONFLICT DO NOTHING
""")
_CHARGE = text("""
    UPDATE key_share SET last_finish = greatest(key_share.last_finish, given.lane_time) + given.cost / key.weight,
           virtual_time = greatest(key_share.virtual_time, given.virtual_time)
    FROM unnest(
        CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:costs AS float8[]), CAST(:times AS float8[]), CAST(:lane_times AS float8[])
    ) AS given (lane_id, key_id, cost, virtual_time, lane_time) JOIN key ON key.id = given.key_id
    WHERE key_share.lane_id = given.lane_id AND key_share.key_id = given.key_id
""")
_COME_BACK = text(f"""
    INSERT INTO key_share AS share (lane_id, key_id, last_finish, virtual_time, low_water)
    SELECT line.id, given.key_id, line.virtual_time, {_BEGINNING.format(key_id="given.key_id")}, given.tag
    FROM unnest(CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:tags AS float8[])) AS given (lane_id, key_id, tag)
    JOIN lane AS line ON line.id = given.lane_id ORDER BY line.id, given.key_id
    ON CONFLICT (lane_id, key_id) DO UPDATE SET low_water = least(share.low_water, excluded.low_water), idle_since = NULL,
        last_finish = share.last_finish - (
            SELECT given.cost / key.weight
            FROM unnest(CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:costs AS float8[])) AS given (lane_id, key_id, cost)
            JOIN key ON key.id = given.key_id WHERE given.lane_id = share.lane_id AND given.key_id = share.key_id
        )
""")
_GIVE_BACK = text("""
    WITH given AS MATERIALIZED (
        SELECT one.* FROM unnest(
            CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:flows AS text[]), CAST(:shares AS float8[])
        ) AS one (lane_id, key_id, name, share)
        JOIN key_flow ON key_flow.lane_id = one.lane_id AND key_flow.key_id = one.key_id AND key_flow.name = one.name
        ORDER BY one.lane_id, one.key_id, one.name FOR UPDATE OF key_flow SKIP LOCKED
    )
    UPDATE key_flow SET last_finish = key_flow.last_finish - given.share FROM given
    WHERE key_flow.lane_id = given.lane_id AND key_flow.key_id = given.key_id AND key_flow.name = given.name
""")
_LOCK = text("SELECT key_id FROM key_share WHERE lane_id = :lane_id AND key_id = ANY(:keys) ORDER BY key_id FOR UPDATE SKIP LOCKED")
_RAISE_LOW_WATER = text("""
    UPDATE key_share AS share SET low_water = greatest(share.low_water, least(given.ceiling, coalesce((
        SELECT min(start_tag) FROM job
        WHERE lane_id = share.lane_id AND key_id = share.key_id AND status = 'queued' AND NOT held AND start_tag >= share.low_water
    ), given.ceiling)))
    FROM unnest(CAST(:keys AS bigint[]), CAST(:ceilings AS float8[])) AS given (key_id, ceiling)
    WHERE share.lane_id = :lane_id AND share.key_id = given.key_id
""")
# The version before submits jobs without their key's row, and puts jobs back without lowering the mark: both are put right here.
_COUNT = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT key_id, count(*) AS jobs, min(start_tag) AS first FROM job
        WHERE lane_id = :lane_id AND status = 'queued' AND NOT held GROUP BY key_id
    ), missing AS (
        INSERT INTO key_share (lane_id, key_id, last_finish, virtual_time)
        SELECT line.id, key_id, line.virtual_time, {_BEGINNING.format(key_id="waiting.key_id")} FROM waiting, lane AS line
        WHERE line.id = :lane_id AND key_id NOT IN (SELECT key_id FROM key_share WHERE lane_id = :lane_id)
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
_DROP_IDLE = text("""
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
