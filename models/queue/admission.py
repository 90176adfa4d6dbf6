"""The pacer's statements: claim due lanes, read the first jobs of each, admit jobs, settle the lanes.

Two short transactions surround one round trip to Redis: `claim_lanes` + `queue_heads`, then `admit` + `settle_lanes`. Neither contains a
network call. After CLAIM_S, another pacer may claim the lanes of a pacer that died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.queue import caps
from models.queue.key_shares import TURN

CLAIM_S = 3


@dataclass(frozen=True)
class Admission:
    """One job whose budget is reserved with this credential under this dispatch id."""

    job_id: UUID
    dispatch_id: UUID
    credential_id: int


@dataclass(frozen=True)
class LaneOutcome:
    """The result of a pacer step for a lane: its virtual time, and when and why to look again (None, None: no queued jobs)."""

    lane_id: int
    virtual_time: float
    wake_in_s: float | None
    blocked_by: str | None


# Due lanes are found along the index first: with an OR for the woken ones, Postgres would read and sort every lane.
_CLAIM_LANES = text("""
    WITH due AS (
        SELECT id FROM lane WHERE wake_at <= now() AND (claimed_until IS NULL OR claimed_until < now()) AND paused_at IS NULL
        AND (SELECT pool.paused_at FROM pool WHERE pool.id = lane.pool_id) IS NULL
        ORDER BY wake_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE lane SET claimed_until = now() + make_interval(secs => :claim_s), wake_at = now() + make_interval(secs => :claim_s),
           idle_since = NULL
    WHERE id = ANY(ARRAY(
        SELECT id FROM lane AS found WHERE id = ANY(ARRAY(SELECT unnest(CAST(:woken AS bigint[])) UNION ALL SELECT id FROM due))
        AND (claimed_until IS NULL OR claimed_until < now()) AND paused_at IS NULL
        AND (SELECT pool.paused_at FROM pool WHERE pool.id = found.pool_id) IS NULL
        ORDER BY wake_at NULLS LAST LIMIT :limit FOR UPDATE SKIP LOCKED
    ))
    RETURNING id, pool_id, (SELECT name FROM pool WHERE pool.id = lane.pool_id) AS pool, model, virtual_time,
              blocked_by, EXISTS (SELECT FROM cap) AS has_caps
""")


def claim_lanes(session: Transaction, *, woken: Sequence[int], limit: int) -> Sequence[Any]:
    """Claims woken or due lanes for CLAIM_S.

    Rows: id, pool_id, pool (its name), model, virtual_time, blocked_by (of the last step), has_caps (whether any cap exists).
    """
    return session.execute(_CLAIM_LANES, {"woken": list(woken), "limit": limit, "claim_s": CLAIM_S}).all()


_CLAIMABLE = text("""
    SELECT EXISTS (
        SELECT FROM lane JOIN pool ON pool.id = lane.pool_id WHERE lane.id = ANY(:ids)
        AND (claimed_until IS NULL OR claimed_until < now()) AND lane.paused_at IS NULL AND pool.paused_at IS NULL
    )
""")


def is_any_locked(session: Transaction, lane_ids: Sequence[int]) -> bool:
    """Whether `claim_lanes` skipped one of these lanes only because its row was locked: it is neither paused nor claimed."""
    return bool(session.execute(_CLAIMABLE, {"ids": list(lane_ids)}).scalar_one())


# The first keys by their turns, then the first jobs of these keys: at most :limit of either.
_ADMISSIBLE = """
    job.lane_id = asked.lane_id AND job.key_id = share.key_id AND status = 'queued' AND NOT held AND start_tag >= share.low_water
    AND (not_before IS NULL OR not_before <= clock_timestamp()) AND (expires_at IS NULL OR expires_at > clock_timestamp()) {and_not}
    ORDER BY start_tag, id
"""
_HEADS = f"""
    SELECT head.* FROM unnest(CAST(:lanes AS bigint[]), CAST(:times AS float8[])) AS asked (lane_id, virtual_time)
    CROSS JOIN LATERAL (
        SELECT candidate.*, {TURN.format(share="candidate")} AS turn
        FROM (
            SELECT first.starts, first.weight, queued.* FROM (
                SELECT share.key_id, share.low_water, key.weight, greatest(asked.virtual_time, share.last_finish) AS starts
                FROM key_share AS share JOIN key ON key.id = share.key_id
                CROSS JOIN LATERAL (SELECT id, start_tag FROM job WHERE {{admissible}} LIMIT 1) AS next
                WHERE share.lane_id = asked.lane_id
                ORDER BY CASE WHEN next.start_tag < 0 THEN next.start_tag ELSE greatest(asked.virtual_time, share.last_finish) END, next.id
                LIMIT :limit
            ) AS first CROSS JOIN LATERAL (
                SELECT id, lane_id, job.key_id, endpoint, start_tag, job.share, cost, tokens, images, flow, created_at, not_before,
                       calls, refusals,
                       CASE WHEN failures + throttles > 0 THEN credential_id END AS failed_with, request_id, traceparent
                FROM (SELECT first.key_id, first.low_water) AS share, job WHERE {{admissible}} LIMIT :limit
            ) AS queued
        ) AS candidate
        ORDER BY turn, id LIMIT :limit
    ) AS head
"""
_QUEUE_HEADS = text(_HEADS.format(admissible=_ADMISSIBLE.format(and_not="")))
_QUEUE_HEADS_UNCAPPED = text(_HEADS.format(admissible=_ADMISSIBLE.format(and_not=f"AND NOT {caps.IS_CAPPED}")))


def queue_heads(session: Transaction, lanes: Sequence[Any], *, limit: int, allowances: Sequence[caps.Allowance] = ()) -> Sequence[Any]:
    """The first `limit` jobs of each lane in the order of their turns, without the jobs that an exhausted allowance blocks.

    Rows: turn (in the lane's virtual time; negative: boosted by an operator), starts and weight (of the key: its next turn, its part of
    the lane), id, lane_id, key_id, endpoint, start_tag, share, cost, tokens, images, flow, created_at, not_before, calls, refusals,
    failed_with (the credential of the last attempt of a job that failed before), request_id, traceparent.
    """
    if not lanes:
        return []
    params = {"lanes": [lane.id for lane in lanes], "times": [lane.virtual_time for lane in lanes], "limit": limit}
    exhausted = caps.exhausted_params(allowances)
    if exhausted["scopes"]:
        return session.execute(_QUEUE_HEADS_UNCAPPED, {**params, **exhausted}).all()
    return session.execute(_QUEUE_HEADS, params).all()


# A lane, pool or credential that is paused between the two transactions admits no job.
_ADMIT = text("""
    UPDATE job SET status = 'admitted', dispatch_id = admission.dispatch_id, credential_id = admission.credential_id,
           admitted_at = clock_timestamp()
    FROM unnest(CAST(:jobs AS uuid[]), CAST(:dispatches AS uuid[]), CAST(:credentials AS bigint[]))
        AS admission (id, dispatch_id, credential_id)
    WHERE job.id = admission.id AND job.status = 'queued' AND NOT job.held AND NOT EXISTS (
        SELECT FROM lane JOIN pool ON pool.id = lane.pool_id JOIN credential ON credential.id = admission.credential_id
        WHERE lane.id = job.lane_id AND coalesce(lane.paused_at, pool.paused_at, credential.paused_at, credential.retired_at) IS NOT NULL
    ) RETURNING job.dispatch_id
""")


def admit(session: Transaction, admissions: Sequence[Admission]) -> set[UUID]:
    """Admits those jobs that are still queued. Returns their dispatch ids; release the budget of the others."""
    if not admissions:
        return set()
    params = {
        "jobs": [admission.job_id for admission in admissions], "dispatches": [admission.dispatch_id for admission in admissions],
        "credentials": [admission.credential_id for admission in admissions],
    }  # fmt: skip
    return {row.dispatch_id for row in session.execute(_ADMIT, params)}


_QUEUED_SINCE = text("""
    SELECT job_id, max(at) AS at FROM job_event WHERE job_id = ANY(:jobs) AND type = 'job.queued' GROUP BY job_id
""")


def queued_since(session: Transaction, job_ids: Sequence[UUID]) -> dict[UUID, datetime]:
    """When each of these jobs was queued last."""
    return {row.job_id: row.at for row in session.execute(_QUEUED_SINCE, {"jobs": list(job_ids)})}


_SETTLE = text("""
    WITH locked AS MATERIALIZED (SELECT id FROM lane WHERE id = ANY(CAST(:ids AS bigint[])) ORDER BY id FOR UPDATE)
    UPDATE lane SET
        virtual_time = greatest(lane.virtual_time, outcome.virtual_time), blocked_by = outcome.blocked_by, claimed_until = NULL,
        wake_at = CASE WHEN lane.wake_at IS DISTINCT FROM lane.claimed_until THEN lane.wake_at
                       ELSE clock_timestamp() + make_interval(secs => outcome.wake_in_s) END,
        idle_since = CASE WHEN outcome.wake_in_s IS NULL AND lane.wake_at IS NOT DISTINCT FROM lane.claimed_until THEN now() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:times AS float8[]), CAST(:wakes AS float8[]), CAST(:reasons AS text[]))
        AS outcome (id, virtual_time, wake_in_s, blocked_by) JOIN locked ON locked.id = outcome.id
    WHERE lane.id = outcome.id
""")


def settle_lanes(session: Transaction, outcomes: Sequence[LaneOutcome]) -> None:
    """Releases the claimed lanes with these outcomes. A wake-up since the claim is kept."""
    if outcomes:
        ordered = sorted(outcomes, key=lambda outcome: outcome.lane_id)
        params = {
            "ids": [outcome.lane_id for outcome in ordered], "times": [outcome.virtual_time for outcome in ordered],
            "wakes": [outcome.wake_in_s for outcome in ordered], "reasons": [outcome.blocked_by for outcome in ordered],
        }  # fmt: skip
        session.execute(_SETTLE, params)
