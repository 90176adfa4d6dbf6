"""Caps of keys and flows: how much of the queue one tenant or user may use, and whether its jobs are admitted at all.

A cap belongs to a key or to a flow, for one endpoint or for all. Without caps, statements that run anyway look once at an empty table.
Allowances are counted when the pacer reads a lane and again, under the lock of the cap's row, in the transaction that admits: several
pacers together never exceed one. max_queued is soft: the check counts after the insert and takes no lock, so concurrent submits may
exceed it by their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction

MINUTE_S = 60
# Slots of a cap may become free in other lanes, and that does not wake this one: the pacer polls.
POLL_S = 0.5
PAUSED_POLL_S = 2.0
NAMES = ("max_queued", "max_in_flight", "rpm")


@dataclass
class Allowance:
    """The number of jobs that one cap admits now. left None: any. reason: why it blocks jobs. wake_in_s: when to count again.

    flow: as in the column, `<key>:<user>`. key_id 0: the cap of a key, or set before 0016 for a user of any key.
    """

    scope: str
    owner_id: int
    flow: str
    endpoint: str
    key_id: int
    left: int | None
    reason: str
    wake_in_s: float

    @property
    def is_exhausted(self) -> bool:
        """Whether it admits no job."""
        return self.left is not None and self.left <= 0

    def applies_to(self, job: Any) -> bool:
        """Whether the cap counts this job. job: a row with key_id, lane_id, flow and endpoint."""
        if self.endpoint not in ("", job.endpoint):
            return False
        if self.scope == "key":
            return bool(self.owner_id == job.key_id)
        user = f"{job.key_id}:{job.flow}" if self.key_id else job.flow
        return (self.owner_id, self.flow) == (job.lane_id, user) and self.key_id in (0, job.key_id)


#: SQL condition: the cap applies to the job.
APPLIES = """
    CASE WHEN cap.scope = 'key' THEN job.key_id = cap.owner_id
         WHEN cap.key_id = 0 THEN job.lane_id = cap.owner_id AND job.flow = cap.flow
         ELSE job.lane_id = cap.owner_id AND job.key_id = cap.key_id AND job.key_id || ':' || job.flow = cap.flow END
    AND (cap.endpoint = '' OR job.endpoint = cap.endpoint)
"""
_USED = "cap_use.scope = cap.scope AND cap_use.owner_id = cap.owner_id AND cap_use.flow = cap.flow AND cap_use.endpoint = cap.endpoint"
_RELEVANT = """
    (scope = 'flow' AND owner_id = ANY(:lanes)) OR (scope = 'key' AND owner_id IN (SELECT id FROM key WHERE pool_id = ANY(:pools)))
"""
_LOCK = text(f"SELECT FROM cap WHERE {_RELEVANT} ORDER BY scope, owner_id, flow, endpoint FOR UPDATE")
_ALLOWANCES = text(f"""
    SELECT cap.*,
           CASE WHEN max_in_flight IS NOT NULL THEN (
               SELECT count(*) FROM job WHERE status IN ('admitted', 'running') AND {APPLIES}
           ) END AS live,
           recent.used, recent.wake_in_s
    FROM cap LEFT JOIN LATERAL (
        SELECT count(*) AS used, {MINUTE_S} - extract(epoch FROM clock_timestamp() - min(at))::float8 AS wake_in_s FROM cap_use
        WHERE cap.rpm IS NOT NULL AND {_USED} AND at > clock_timestamp() - interval '{MINUTE_S} s'
    ) AS recent ON true
    WHERE {_RELEVANT} ORDER BY scope, owner_id, flow, endpoint
""")


def read_allowances(session: Transaction, *, lanes: Sequence[int], pools: Sequence[int], lock: bool = False) -> list[Allowance]:
    """The allowances that concern these lanes, always in the same order. lock: no other pacer admits by them in the meantime."""
    params = {"lanes": list(lanes), "pools": list(pools)}
    if lock:
        # A statement of its own: one that waits for a lock does not see jobs admitted meanwhile.
        session.execute(_LOCK, params)
    return [_allowance(row) for row in session.execute(_ALLOWANCES, params)]


def _allowance(row: Any) -> Allowance:
    owner = (row.scope, row.owner_id, row.flow, row.endpoint, row.key_id)
    if row.paused_at is not None:
        return Allowance(*owner, left=0, reason="paused", wake_in_s=PAUSED_POLL_S)
    slots = None if row.max_in_flight is None else max(0, row.max_in_flight - row.live)
    requests = None if row.rpm is None else max(0, row.rpm - row.used)
    if requests is not None and (slots is None or requests < slots):
        return Allowance(*owner, left=requests, reason=f"{row.scope}_rpm", wake_in_s=max(0.01, row.wake_in_s or POLL_S))
    return Allowance(*owner, left=slots, reason=f"{row.scope}_max_in_flight", wake_in_s=POLL_S)


def filter_allowed(jobs: Iterable[Any], allowances: Sequence[Allowance]) -> list[Any]:
    """Those of the jobs that the allowances admit, in order. Subtracts them from the allowances."""
    allowed = []
    for job in jobs:
        applicable = [allowance for allowance in allowances if allowance.left is not None and allowance.applies_to(job)]
        if all(allowance.left for allowance in applicable):
            allowed.append(job)
            for allowance in applicable:
                allowance.left = (allowance.left or 0) - 1
    return allowed


# Recorded for every cap of the job: a rate that is set later also counts the minute before.
_RECORD = text(f"""
    WITH outdated AS (
        DELETE FROM cap_use WHERE at < clock_timestamp() - interval '{2 * MINUTE_S} s' AND (scope, owner_id) IN (
            SELECT * FROM unnest(CAST(:scopes AS text[]), CAST(:owners AS bigint[]))
        )
    )
    INSERT INTO cap_use (dispatch_id, scope, owner_id, flow, endpoint, at)
    SELECT admitted.*, clock_timestamp() FROM unnest(
        CAST(:dispatches AS uuid[]), CAST(:scopes AS text[]), CAST(:owners AS bigint[]), CAST(:flows AS text[]), CAST(:endpoints AS text[])
    ) AS admitted
""")


def record_admissions(session: Transaction, admitted: Mapping[UUID, Any], allowances: Sequence[Allowance]) -> None:
    """Records these admissions (dispatch id → job) for the rates of their caps."""
    used = [(dispatch_id, each) for dispatch_id, job in admitted.items() for each in allowances if each.applies_to(job)]
    if used:
        dispatch_ids = [dispatch_id for dispatch_id, _ in used]
        session.execute(_RECORD, {"dispatches": dispatch_ids, **_owner_params([allowance for _, allowance in used])})


def _owner_params(allowances: Sequence[Allowance]) -> dict[str, list[Any]]:
    return {
        "scopes": [each.scope for each in allowances], "owners": [each.owner_id for each in allowances],
        "flows": [each.flow for each in allowances], "endpoints": [each.endpoint for each in allowances],
    }  # fmt: skip


#: SQL condition on a job: an exhausted cap applies to it. Parameters: of `exhausted_params`.
IS_CAPPED = f"""
    EXISTS (
        SELECT FROM unnest(
            CAST(:scopes AS text[]), CAST(:owners AS bigint[]), CAST(:flows AS text[]), CAST(:endpoints AS text[]),
            CAST(:capped_keys AS bigint[])
        ) AS cap (scope, owner_id, flow, endpoint, key_id) WHERE {APPLIES}
    )
"""


def exhausted_params(allowances: Sequence[Allowance]) -> dict[str, list[Any]]:
    """The exhausted allowances as parameters of IS_CAPPED."""
    exhausted = [each for each in allowances if each.is_exhausted]
    return {**_owner_params(exhausted), "capped_keys": [each.key_id for each in exhausted]}


_BLOCKED = text(f"""
    SELECT id FROM lane WHERE id = ANY(:lanes) AND EXISTS (
        SELECT FROM job WHERE job.lane_id = lane.id AND status = 'queued' AND NOT held AND {IS_CAPPED}
    )
""")


def blocked_lanes(session: Transaction, lanes: Sequence[int], allowances: Sequence[Allowance]) -> dict[int, float]:
    """Seconds until it is useful to read the lane again, for those of these lanes with queued jobs that a cap blocks."""
    exhausted = [each for each in allowances if each.is_exhausted]
    if not exhausted or not lanes:
        return {}
    wake_in_s = min(each.wake_in_s for each in exhausted)
    return {row.id: wake_in_s for row in session.execute(_BLOCKED, {"lanes": list(lanes), **exhausted_params(exhausted)})}


_JOBS = text("""
    SELECT job.id, job.key_id, job.lane_id, job.flow, job.endpoint, lane.pool_id
    FROM job JOIN lane ON lane.id = job.lane_id WHERE job.id = ANY(:ids)
""")


def block_reasons(session: Transaction, jobs: Sequence[Any]) -> dict[UUID, str]:
    """The reason for each of these queued jobs that a cap blocks. jobs: rows with id."""
    rows = session.execute(_JOBS, {"ids": [job.id for job in jobs]}).all()
    allowances = read_allowances(session, lanes=sorted({row.lane_id for row in rows}), pools=sorted({row.pool_id for row in rows}))
    reasons = {row.id: [each.reason for each in allowances if each.is_exhausted and each.applies_to(row)] for row in rows}
    return {job_id: first[0] for job_id, first in reasons.items() if first}
