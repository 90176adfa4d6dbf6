"""The pacer's statements: claim lanes that are due, read the first jobs of each, admit them, settle the lanes.

Two short transactions around one round trip to Redis: `claim_lanes` + `heads`, then `admit` + `settle`. A lane claimed by a
pacer that dies is open to the next after CLAIM_S. No network call happens inside either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction
from models.queue import caps
from models.queue.key_shares import SETTLED_S, TURN

CLAIM_S = 3


@dataclass(frozen=True)
class Admission:
    """One job's budget is reserved with this credential under this dispatch id."""

    job_id: UUID
    dispatch_id: UUID
    credential_id: int


@dataclass(frozen=True)
class LaneOutcome:
    """What the pacer concluded of a lane: how far its time moved on, and when and why to look again (None, None: nobody waits)."""

    lane_id: int
    virtual_time: float
    wake_in_s: float | None
    blocked_by: str | None


def free_slots(session: Transaction, *, seen_within_s: float) -> int:
    """How many more jobs the workers could run now, by their own reports less what is admitted or running.

    Reports and leases older than `seen_within_s` both count for nothing: what a dead worker held blocks no living one.
    """
    return int(session.execute(_FREE_SLOTS, {"seen_within_s": seen_within_s, "lease_s": settings().lease_s}).scalar_one())


def claim_lanes(session: Transaction, *, woken: Sequence[int], most: int) -> Sequence[Any]:
    """Lanes that are woken or due, ours for CLAIM_S.

    Rows: id, pool_id, pool (its name), model, virtual_time, blocked_by (as last concluded), has_caps (of anybody).
    """
    return session.execute(_CLAIM_LANES, {"woken": list(woken), "most": most, "claim_s": CLAIM_S}).all()


def is_any_locked(session: Transaction, lane_ids: Sequence[int]) -> bool:
    """Whether one of these lanes was passed over only because somebody is writing its row: neither paused nor another pacer's."""
    return bool(session.execute(_FREE, {"ids": list(lane_ids)}).scalar_one())


def queue_heads(session: Transaction, lanes: Sequence[Any], *, most: int, rooms: Sequence[caps.Allowance] = ()) -> Sequence[Any]:
    """The first `most` jobs of each lane, in the order of their turns; those that a cap in `rooms` stops altogether are passed over.

    Rows: turn (in the lane's time; below 0: an operator put it first), starts and weight (of its key: its next turn, its part of the lane),
    id, lane_id, key_id, endpoint, start_tag, share, cost, tokens, images, flow, created_at, not_before, calls, refusals,
    failed_with (the credential of the last attempt, of a job that failed before), request_id, traceparent.
    """
    if not lanes:
        return []
    wanted = {"lanes": [lane.id for lane in lanes], "times": [lane.virtual_time for lane in lanes], "most": most}
    shut = caps.exhausted_params(rooms)
    if shut["scopes"]:
        return session.execute(_HEADS_BUT, {**wanted, **shut}).all()
    return session.execute(_HEADS, wanted).all()


def admit(session: Transaction, admissions: Sequence[Admission]) -> set[UUID]:
    """Those still waiting are admitted; returns their dispatch ids. Of the others the budget has to be given back."""
    if not admissions:
        return set()
    rows = session.execute(
        _ADMIT,
        {
            "jobs": [one.job_id for one in admissions],
            "dispatches": [one.dispatch_id for one in admissions],
            "credentials": [one.credential_id for one in admissions],
        },
    )
    return {row.dispatch_id for row in rows}


def queued_since(session: Transaction, job_ids: Sequence[UUID]) -> dict[UUID, datetime]:
    """Since when each of these jobs, which have been called before, stands in line again."""
    return {row.job_id: row.at for row in session.execute(_WAITING_SINCE, {"jobs": list(job_ids)})}


def settle_lanes(session: Transaction, lanes: Sequence[LaneOutcome]) -> None:
    """The lanes are open again, with what was concluded; a wake-up that came meanwhile stays."""
    if lanes:
        ordered = sorted(lanes, key=lambda lane: lane.lane_id)
        session.execute(
            _SETTLE,
            {
                "ids": [lane.lane_id for lane in ordered],
                "times": [lane.virtual_time for lane in ordered],
                "wakes": [lane.wake_in_s for lane in ordered],
                "reasons": [lane.blocked_by for lane in ordered],
            },
        )


def next_wake_in_s(session: Transaction, *, most_s: float) -> float:
    """Seconds until the next lane may be claimed, at most `most_s`; paused lanes and those that others have are not due."""
    return float(session.execute(_NEXT_WAKE, {"most_s": most_s}).scalar_one())


def wake_lost(session: Transaction) -> list[int]:
    """Lanes that fell idle a short while ago and in which somebody waits: their wake-up was lost. Woken by this."""
    return [row.id for row in session.execute(_FORGOTTEN, {"settled_s": 2 * SETTLED_S})]


def delayed_wakes(session: Transaction, lane_ids: Sequence[int]) -> dict[int, float]:
    """Of lanes whose queued jobs all wait out a delay: seconds until the first may go."""
    return {row.lane_id: row.wake_in_s for row in session.execute(_LATER, {"lanes": list(lane_ids)})}


def write_estimates(session: Transaction, lane_id: int, *, usual_s: float | None, limits: dict[str, float | None]) -> None:
    """The lane's row has the figures that estimates are made from. limits: rpm, tpm, ipm, max_in_flight of its credentials together."""
    session.execute(_FIGURES, {"id": lane_id, "usual_s": usual_s, **limits})


_FREE_SLOTS = text("""
    SELECT coalesce((SELECT sum(slots) FROM worker WHERE seen_at > now() - make_interval(secs => :seen_within_s)), 0)
         - (SELECT count(*) FROM job WHERE status IN ('admitted', 'running') AND (
               status = 'admitted' OR lease_until > clock_timestamp() + make_interval(secs => :lease_s - :seen_within_s)))
""")
# Those that are due are found along the index first: with an OR for the woken ones every lane would be read and sorted.
_CLAIM_LANES = text("""
    WITH due AS (
        SELECT id FROM lane WHERE wake_at <= now() AND (claimed_until IS NULL OR claimed_until < now()) AND paused_at IS NULL
        AND (SELECT pool.paused_at FROM pool WHERE pool.id = lane.pool_id) IS NULL
        ORDER BY wake_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    UPDATE lane SET claimed_until = now() + make_interval(secs => :claim_s), wake_at = now() + make_interval(secs => :claim_s),
           idle_since = NULL
    WHERE id = ANY(ARRAY(
        SELECT id FROM lane AS found WHERE id = ANY(ARRAY(SELECT unnest(CAST(:woken AS bigint[])) UNION ALL SELECT id FROM due))
        AND (claimed_until IS NULL OR claimed_until < now()) AND paused_at IS NULL
        AND (SELECT pool.paused_at FROM pool WHERE pool.id = found.pool_id) IS NULL
        ORDER BY wake_at NULLS LAST LIMIT :most FOR UPDATE SKIP LOCKED
    ))
    RETURNING id, pool_id, (SELECT name FROM pool WHERE pool.id = lane.pool_id) AS pool, model, virtual_time,
              blocked_by, EXISTS (SELECT FROM cap) AS has_caps
""")
_FREE = text("""
    SELECT EXISTS (
        SELECT FROM lane JOIN pool ON pool.id = lane.pool_id WHERE lane.id = ANY(:ids)
        AND (claimed_until IS NULL OR claimed_until < now()) AND lane.paused_at IS NULL AND pool.paused_at IS NULL
    )
""")
# The first keys by their turns, then the first jobs of these: no more of either than are wanted together.
_GOES = """
    job.lane_id = wanted.lane_id AND job.key_id = share.key_id AND status = 'queued' AND NOT held AND start_tag >= share.low_water
    AND (not_before IS NULL OR not_before <= clock_timestamp()) AND (expires_at IS NULL OR expires_at > clock_timestamp()) {but}
    ORDER BY start_tag, id
"""
_HEAD = f"""
    SELECT head.* FROM unnest(CAST(:lanes AS bigint[]), CAST(:times AS float8[])) AS wanted (lane_id, virtual_time)
    CROSS JOIN LATERAL (
        SELECT one.*, {TURN.format(share="one")} AS turn
        FROM (
            SELECT first.starts, first.weight, each.* FROM (
                SELECT share.key_id, share.low_water, key.weight, greatest(wanted.virtual_time, share.last_finish) AS starts
                FROM key_share AS share JOIN key ON key.id = share.key_id
                CROSS JOIN LATERAL (SELECT id, start_tag FROM job WHERE {{goes}} LIMIT 1) AS next
                WHERE share.lane_id = wanted.lane_id
                ORDER BY CASE WHEN next.start_tag < 0 THEN next.start_tag ELSE greatest(wanted.virtual_time, share.last_finish) END, next.id
                LIMIT :most
            ) AS first CROSS JOIN LATERAL (
                SELECT id, lane_id, job.key_id, endpoint, start_tag, job.share, cost, tokens, images, flow, created_at, not_before,
                       calls, refusals,
                       CASE WHEN failures + throttles > 0 THEN credential_id END AS failed_with, request_id, traceparent
                FROM (SELECT first.key_id, first.low_water) AS share, job WHERE {{goes}} LIMIT :most
            ) AS each
        ) AS one
        ORDER BY turn, id LIMIT :most
    ) AS head
"""
_HEADS = text(_HEAD.format(goes=_GOES.format(but="")))
_HEADS_BUT = text(_HEAD.format(goes=_GOES.format(but=f"AND NOT {caps.IS_CAPPED}")))
# What is paused between the look and the admission lets nobody through.
_ADMIT = text("""
    UPDATE job SET status = 'admitted', dispatch_id = given.dispatch_id, credential_id = given.credential_id,
           admitted_at = clock_timestamp()
    FROM unnest(CAST(:jobs AS uuid[]), CAST(:dispatches AS uuid[]), CAST(:credentials AS bigint[]))
        AS given (id, dispatch_id, credential_id)
    WHERE job.id = given.id AND job.status = 'queued' AND NOT job.held AND NOT EXISTS (
        SELECT FROM lane JOIN pool ON pool.id = lane.pool_id JOIN credential ON credential.id = given.credential_id
        WHERE lane.id = job.lane_id AND coalesce(lane.paused_at, pool.paused_at, credential.paused_at, credential.retired_at) IS NOT NULL
    ) RETURNING job.dispatch_id
""")
_WAITING_SINCE = text("""
    SELECT job_id, max(at) AS at FROM job_event WHERE job_id = ANY(:jobs) AND type = 'job.queued' GROUP BY job_id
""")
_SETTLE = text("""
    WITH locked AS MATERIALIZED (SELECT id FROM lane WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE)
    UPDATE lane SET
        virtual_time = greatest(lane.virtual_time, found.virtual_time), blocked_by = found.blocked_by, claimed_until = NULL,
        wake_at = CASE WHEN lane.wake_at IS DISTINCT FROM lane.claimed_until THEN lane.wake_at
                       ELSE clock_timestamp() + make_interval(secs => found.wake_in_s) END,
        idle_since = CASE WHEN found.wake_in_s IS NULL AND lane.wake_at IS NOT DISTINCT FROM lane.claimed_until THEN now() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:times AS float8[]), CAST(:wakes AS float8[]), CAST(:reasons AS text[]))
        AS found (id, virtual_time, wake_in_s, blocked_by) JOIN locked ON locked.id = found.id
    WHERE lane.id = found.id
""")
# One step along the index, however many lanes there are. What another pacer has, that one will look at again.
_NEXT_WAKE = text("""
    SELECT least(:most_s, greatest(0, coalesce(extract(epoch FROM (
        SELECT wake_at FROM lane WHERE wake_at IS NOT NULL AND (claimed_until IS NULL OR claimed_until < now()) AND paused_at IS NULL
        AND (SELECT pool.paused_at FROM pool WHERE pool.id = lane.pool_id) IS NULL ORDER BY wake_at LIMIT 1
    ) - clock_timestamp()), :most_s)))::float8
""")
_FORGOTTEN = text("""
    UPDATE lane SET wake_at = now(), idle_since = NULL
    WHERE id IN (
        SELECT id FROM lane WHERE idle_since > now() - make_interval(secs => :settled_s) AND EXISTS (
            SELECT FROM job WHERE job.lane_id = lane.id AND status = 'queued' AND NOT held
        ) FOR UPDATE SKIP LOCKED
    ) RETURNING id
""")
_LATER = text("""
    SELECT wanted.lane_id, extract(epoch FROM later.first - clock_timestamp())::float8 AS wake_in_s
    FROM unnest(CAST(:lanes AS bigint[])) AS wanted (lane_id)
    CROSS JOIN LATERAL (
        SELECT min(not_before) AS first FROM job
        WHERE lane_id = wanted.lane_id AND status = 'queued' AND not_before IS NOT NULL AND NOT held
        AND (expires_at IS NULL OR expires_at > clock_timestamp())
    ) AS later WHERE later.first IS NOT NULL
""")
_FIGURES = text("""
    UPDATE lane SET usual_s = coalesce(:usual_s, usual_s), rpm = :rpm, tpm = :tpm, ipm = :ipm, max_in_flight = :max_in_flight
    WHERE id = :id AND (lane.usual_s, lane.rpm, lane.tpm, lane.ipm, lane.max_in_flight)
        IS DISTINCT FROM (coalesce(CAST(:usual_s AS float8), lane.usual_s), CAST(:rpm AS float8), CAST(:tpm AS float8),
                          CAST(:ipm AS float8), CAST(:max_in_flight AS float8))
""")
