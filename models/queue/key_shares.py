"""The share of each key in a lane: hierarchical start-time fair queueing (Goyal, Vin, Cheng 1996).

The keys of a pool share a lane by their weights, in the lane's virtual time. The users of a key share its part by the start tags of their
jobs, in the key's own virtual time. So a job's turn is `max(lane.virtual_time, share.last_finish)` plus the cost of the key's jobs before
it, divided by the key's weight. The pacer charges a key for each admitted job; users of other keys cannot change that.

A row exists while its key has jobs in the lane, or has used more than its share. Lock order: flows, jobs, shares, lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction

# Longer than any transaction of ours can stay open (db.SERVER_OPTIONS): every open submit has seen a state at most this old.
SETTLED_S = 20
#: SQL, of the first jobs of a key in order: the turn of each in the lane. share: an alias with `starts` and `weight`.
TURN = """
    CASE WHEN start_tag < 0 THEN start_tag ELSE {share}.starts + (
        sum(cost) OVER (PARTITION BY key_id ORDER BY start_tag, id) - cost
    ) / {share}.weight END
"""


@dataclass(frozen=True)
class Charge:
    """The charge of one key in one lane: the cost of its admitted jobs, and the virtual time that the key reached."""

    lane_id: int
    key_id: int
    cost: float
    virtual_time: float


def virtual_turns(admitted: Sequence[Any]) -> list[tuple[float, float]]:
    """(turn, finish) of each of these jobs in the lane's virtual time. admitted: rows of admission.queue_heads.

    Jobs that were passed over cost their key nothing. A boosted job (negative tag) is charged to its key, but does not advance the lane.
    """
    finishes: dict[int, float] = {}
    turns = []
    for head in admitted:
        turn = finishes.get(head.key_id, head.starts)
        finishes[head.key_id] = turn + head.cost / head.weight
        if head.start_tag >= 0:
            turns.append((turn, finishes[head.key_id]))
    return turns


def charges(admitted: Sequence[Any], looked_at: Sequence[Any], *, cut: Set[int]) -> list[Charge]:
    """The charge of each key for its admitted jobs. The virtual time of a key without queued jobs advances to its last finish.

    admitted, looked_at: rows of admission.queue_heads. cut: lanes of which not all queued jobs were read.
    """
    admitted_ids = {head.id for head in admitted}
    still_queued = {(head.lane_id, head.key_id) for head in looked_at if head.id not in admitted_ids or head.lane_id in cut}
    by_share: dict[tuple[int, int], Charge] = {}
    for head in admitted:
        share = (head.lane_id, head.key_id)
        before = by_share.get(share, Charge(*share, cost=0.0, virtual_time=0.0))
        reached = head.start_tag + (0.0 if share in still_queued or head.start_tag < 0 else head.share)
        by_share[share] = Charge(*share, cost=before.cost + head.cost, virtual_time=max(before.virtual_time, reached))
    return list(by_share.values())


_CHARGE = text("""
    UPDATE key_share SET last_finish = greatest(key_share.last_finish, charge.lane_time) + charge.cost / key.weight,
           virtual_time = greatest(key_share.virtual_time, charge.virtual_time)
    FROM unnest(
        CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:costs AS float8[]), CAST(:times AS float8[]), CAST(:lane_times AS float8[])
    ) AS charge (lane_id, key_id, cost, virtual_time, lane_time) JOIN key ON key.id = charge.key_id
    WHERE key_share.lane_id = charge.lane_id AND key_share.key_id = charge.key_id
""")


def charge_shares(session: Transaction, charges: Sequence[Charge], *, times: Mapping[int, float]) -> None:
    """Moves each key's next turn back by its charge. times: lane → the virtual time at which its jobs were read."""
    ordered = sorted(charges, key=lambda charge: (charge.lane_id, charge.key_id))
    if ordered:
        params = {
            "lanes": [charge.lane_id for charge in ordered], "keys": [charge.key_id for charge in ordered],
            "costs": [charge.cost for charge in ordered], "times": [charge.virtual_time for charge in ordered],
            "lane_times": [times[charge.lane_id] for charge in ordered],
        }  # fmt: skip
        session.execute(_CHARGE, params)


# A key that is new in a lane begins at the lane's virtual time. Its own virtual time continues from the last finish of its users.
INITIAL_TIME = """
    greatest(this_lane.virtual_time, (SELECT max(last_finish) FROM key_flow WHERE lane_id = this_lane.id AND key_id = {key_id}))
"""
#: CTEs of the enqueue statement, after its CTE `this_lane`. `share`: the key's row in the lane, inserted if missing; empty while another
#: submit inserts it. `kept`: clears idle_since; read it before locking the lane. An existing row in use is not locked: the submits of a
#: key would wait for each other, one commit each.
SHARE_CTES = f"""
    known AS (
        SELECT last_finish, virtual_time, low_water FROM key_share WHERE lane_id = :lane_id AND key_id = :key_id
    ), opened AS (
        INSERT INTO key_share AS share (lane_id, key_id, last_finish, virtual_time)
        SELECT this_lane.id, :key_id, this_lane.virtual_time, {INITIAL_TIME.format(key_id=":key_id")} FROM this_lane
        WHERE NOT EXISTS (SELECT FROM known)
        ON CONFLICT DO NOTHING RETURNING last_finish, virtual_time, low_water
    ), kept AS (
        UPDATE key_share SET idle_since = NULL
        WHERE lane_id = :lane_id AND key_id = :key_id AND idle_since < now() - make_interval(secs => :settled_s) RETURNING key_id
    ), share AS (
        SELECT found.*, (SELECT weight FROM key WHERE id = :key_id) AS weight
        FROM (SELECT * FROM known UNION ALL SELECT * FROM opened) AS found
    )
"""
_EXISTS = text("SELECT FROM key_share WHERE lane_id = :lane_id AND key_id = :key_id")
_INSERT = text(f"""
    INSERT INTO key_share (lane_id, key_id, last_finish, virtual_time)
    SELECT this_lane.id, :key_id, this_lane.virtual_time, {INITIAL_TIME.format(key_id=":key_id")}
    FROM lane AS this_lane WHERE this_lane.id = :lane_id
    ON CONFLICT DO NOTHING
""")


def ensure_share(session: Transaction, lane_id: int, key_id: int) -> None:
    """Inserts the key's row in this lane if it is missing. Commit soon: other submits of this key wait for the insert."""
    params = {"lane_id": lane_id, "key_id": key_id}
    if session.execute(_EXISTS, params).one_or_none() is None:
        session.execute(_INSERT, params)


_RESTORE = text(f"""
    INSERT INTO key_share AS share (lane_id, key_id, last_finish, virtual_time, low_water)
    SELECT this_lane.id, requeued.key_id, this_lane.virtual_time, {INITIAL_TIME.format(key_id="requeued.key_id")}, requeued.tag
    FROM unnest(CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:tags AS float8[])) AS requeued (lane_id, key_id, tag)
    JOIN lane AS this_lane ON this_lane.id = requeued.lane_id ORDER BY this_lane.id, requeued.key_id
    ON CONFLICT (lane_id, key_id) DO UPDATE SET low_water = least(share.low_water, excluded.low_water), idle_since = NULL,
        last_finish = share.last_finish - (
            SELECT refund.cost / key.weight
            FROM unnest(CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:costs AS float8[])) AS refund (lane_id, key_id, cost)
            JOIN key ON key.id = refund.key_id WHERE refund.lane_id = share.lane_id AND refund.key_id = share.key_id
        )
""")


def restore_requeued(session: Transaction, rows: Iterable[tuple[int, int, float, float]]) -> None:
    """Lowers the low-water marks to the tags of requeued jobs, and refunds their keys.

    rows: (lane id, key id, start tag, cost to refund).
    """
    by_share: dict[tuple[int, int], tuple[float, float]] = {}
    for lane_id, key_id, tag, cost in rows:
        lowest, refund = by_share.get((lane_id, key_id), (tag, 0.0))
        by_share[lane_id, key_id] = (min(tag, lowest), cost + refund)
    if by_share:
        ordered = sorted(by_share)
        params = {
            "lanes": [lane_id for lane_id, _ in ordered], "keys": [key_id for _, key_id in ordered],
            "tags": [by_share[share][0] for share in ordered], "costs": [by_share[share][1] for share in ordered],
        }  # fmt: skip
        session.execute(_RESTORE, params)


_REFUND = text("""
    WITH refund AS MATERIALIZED (
        SELECT ended.* FROM unnest(
            CAST(:lanes AS bigint[]), CAST(:keys AS bigint[]), CAST(:flows AS text[]), CAST(:shares AS float8[])
        ) AS ended (lane_id, key_id, name, share)
        JOIN key_flow ON key_flow.lane_id = ended.lane_id AND key_flow.key_id = ended.key_id AND key_flow.name = ended.name
        ORDER BY ended.lane_id, ended.key_id, ended.name FOR UPDATE OF key_flow SKIP LOCKED
    )
    UPDATE key_flow SET last_finish = key_flow.last_finish - refund.share FROM refund
    WHERE key_flow.lane_id = refund.lane_id AND key_flow.key_id = refund.key_id AND key_flow.name = refund.name
""")


def refund_flows(session: Transaction, rows: Iterable[Any]) -> None:
    """Refunds the users of jobs that ended without a call. Rows: lane_id, key_id, flow, share.

    A locked row is skipped: the transaction that holds it may be waiting for these jobs. Call this last in a transaction: the submit of a
    next turn locks the conversation while it waits for this row.
    """
    sums: dict[tuple[int, int, str], float] = {}
    for row in rows:
        flow = (row.lane_id, row.key_id, row.flow)
        sums[flow] = sums.get(flow, 0.0) + row.share
    if sums:
        ordered = sorted(sums)
        lanes, keys, flows = zip(*ordered, strict=True)
        params = {"lanes": list(lanes), "keys": list(keys), "flows": list(flows), "shares": [sums[flow] for flow in ordered]}
        session.execute(_REFUND, params)
