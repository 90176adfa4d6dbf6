"""Caps of keys and flows: how much of the line one tenant or user may have, and whether its jobs may go at all.

A cap is for a key or for a flow, and there for one class of requests (an endpoint) or for all. Whoever has none pays nothing: one look
at an empty table in a statement that runs anyway. Rooms are counted when the pacer looks and again, under the lock of the cap's row,
in the transaction that admits: several pacers together never exceed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.errors import Draining, LineFull

MINUTE_S = 60
# Slots of a cap are freed in other lanes too, whose end wakes this one no sooner.
POLL_S = 0.5
PAUSED_POLL_S = 2.0
NAMES = ("max_queued", "max_in_flight", "rpm")


@dataclass
class Allowance:
    """What one cap lets through now; left None: anything. why: what it says to those it stops. wake_in_s: when to look again.

    flow: as the column has it, `<key>:<user>`. key_id 0: of a key itself, or set before 0016 for a user of any key.
    """

    scope: str
    owner_id: int
    flow: str
    endpoint: str
    key_id: int
    left: int | None
    why: str
    wake_in_s: float

    def holds(self, job: Any) -> bool:
        """Whether this job is one of those it counts. job: a row with key_id, lane_id, flow and endpoint."""
        if self.endpoint not in ("", job.endpoint):
            return False
        if self.scope == "key":
            return bool(self.owner_id == job.key_id)
        user = f"{job.key_id}:{job.flow}" if self.key_id else job.flow
        return (self.owner_id, self.flow) == (job.lane_id, user) and self.key_id in (0, job.key_id)


def read_allowances(session: Transaction, *, lanes: Sequence[int], pools: Sequence[int], lock: bool = False) -> list[Allowance]:
    """The caps that concern these lanes, in one order for everybody. lock: nobody else admits by them until this transaction ends."""
    wanted = {"lanes": list(lanes), "pools": list(pools)}
    if lock:
        # Counted by a statement of its own: one that waits for a lock does not see what was admitted meanwhile.
        session.execute(_LOCK, wanted)
    return [_room(row) for row in session.execute(_ROOMS, wanted)]


def filter_allowed(jobs: Iterable[Any], within: Sequence[Allowance]) -> list[Any]:
    """Those of the jobs that may go, in their order. What they take is gone from the rooms."""
    going = []
    for one in jobs:
        held = [room for room in within if room.left is not None and room.holds(one)]
        if all(room.left for room in held):
            going.append(one)
            for room in held:
                room.left = (room.left or 0) - 1
    return going


def record_admissions(session: Transaction, admitted: Mapping[UUID, Any], within: Sequence[Allowance]) -> None:
    """These admissions (dispatch id → job) count against the rates of their caps."""
    used = [(number, room) for number, one in admitted.items() for room in within if room.holds(one)]
    if used:
        session.execute(
            _NOTE,
            {"dispatches": [number for number, _ in used], "scopes": [room.scope for _, room in used],
             "owners": [room.owner_id for _, room in used], "flows": [room.flow for _, room in used],
             "endpoints": [room.endpoint for _, room in used]},
        )  # fmt: skip


def exhausted_params(within: Sequence[Allowance]) -> dict[str, list[Any]]:
    """Those without room, as `SHUT` takes them."""
    none = [room for room in within if room.left is not None and room.left <= 0]
    return {
        "scopes": [room.scope for room in none], "owners": [room.owner_id for room in none], "flows": [room.flow for room in none],
        "endpoints": [room.endpoint for room in none], "capped_keys": [room.key_id for room in none],
    }  # fmt: skip


def blocked_lanes(session: Transaction, lanes: Sequence[int], within: Sequence[Allowance]) -> dict[int, float]:
    """Of these lanes those in which somebody waits whom a cap holds up: seconds until it is worth looking again."""
    none = exhausted_params(within)
    if not none["scopes"] or not lanes:
        return {}
    look_s = min(room.wake_in_s for room in within if room.left is not None and room.left <= 0)
    return {row.id: look_s for row in session.execute(_WAITING, {"lanes": list(lanes), **none})}


def block_reasons(session: Transaction, jobs: Sequence[Any]) -> dict[UUID, str]:
    """Of these waiting jobs those that a cap holds up, and what it says. jobs: rows with id and lane_id."""
    rows = session.execute(_JOBS, {"ids": [one.id for one in jobs]}).all()
    found = read_allowances(session, lanes=sorted({row.lane_id for row in rows}), pools=sorted({row.pool_id for row in rows}))
    none = [room for room in found if room.left is not None and room.left <= 0]
    return {row.id: next(room.why for room in none if room.holds(row)) for row in rows if any(room.holds(row) for room in none)}


def check_caps(session: Transaction, *, key_id: int, lane_id: int, flow: str, endpoint: str) -> None:
    """Raises Draining, or LineFull when more wait than a cap allows; the job that asks is counted already."""
    for row in session.execute(_ALLOWED, {"key_id": key_id, "lane_id": lane_id, "flow": flow, "endpoint": endpoint}):
        whose = "key" if row.scope == "key" else "user"
        if row.draining_at is not None:
            raise Draining(f"This {whose} sends nothing new just now: the operator lets its line run empty.", retry_after_s=60)
        if row.max_queued is not None and row.queued > row.max_queued:
            raise LineFull(
                f"This {whose} already has {row.max_queued} jobs waiting, as many as it may. Wait for some to go.",
                retry_after_s=60, code=f"{row.scope}_max_queued",
            )  # fmt: skip


def split_legacy_caps(session: Transaction, *, lane_id: int, user: str) -> None:
    """Caps set before 0016 for this user of any key become caps of this user of each key that has one there: nobody could lift them else.

    user: empty: of no user, and nothing happens.
    """
    if user:
        session.execute(_SPLIT, {"lane_id": lane_id, "flow": user})


def _room(row: Any) -> Allowance:
    where = (row.scope, row.owner_id, row.flow, row.endpoint, row.key_id)
    if row.paused_at is not None:
        return Allowance(*where, left=0, why="paused", wake_in_s=PAUSED_POLL_S)
    flying = None if row.max_in_flight is None else max(0, row.max_in_flight - row.live)
    minute = None if row.rpm is None else max(0, row.rpm - row.used)
    if minute is not None and (flying is None or minute < flying):
        return Allowance(*where, left=minute, why=f"{row.scope}_rpm", wake_in_s=max(0.01, row.wake_in_s or POLL_S))
    return Allowance(*where, left=flying, why=f"{row.scope}_max_in_flight", wake_in_s=POLL_S)


_MINE = """
    CASE WHEN cap.scope = 'key' THEN job.key_id = cap.owner_id
         WHEN cap.key_id = 0 THEN job.lane_id = cap.owner_id AND job.flow = cap.flow
         ELSE job.lane_id = cap.owner_id AND job.key_id = cap.key_id AND job.key_id || ':' || job.flow = cap.flow END
    AND (cap.endpoint = '' OR job.endpoint = cap.endpoint)
"""
_USED = "cap_use.scope = cap.scope AND cap_use.owner_id = cap.owner_id AND cap_use.flow = cap.flow AND cap_use.endpoint = cap.endpoint"
_CONCERNED = """
    (scope = 'flow' AND owner_id = ANY(:lanes)) OR (scope = 'key' AND owner_id IN (SELECT id FROM key WHERE pool_id = ANY(:pools)))
"""
_LOCK = text(f"SELECT FROM cap WHERE {_CONCERNED} ORDER BY scope, owner_id, flow, endpoint FOR UPDATE")
_ROOMS = text(f"""
    SELECT cap.*,
           CASE WHEN max_in_flight IS NOT NULL THEN (
               SELECT count(*) FROM job WHERE status IN ('admitted', 'running') AND {_MINE}
           ) END AS live,
           recent.used, recent.wake_in_s
    FROM cap LEFT JOIN LATERAL (
        SELECT count(*) AS used, {MINUTE_S} - extract(epoch FROM clock_timestamp() - min(at))::float8 AS wake_in_s FROM cap_use
        WHERE cap.rpm IS NOT NULL AND {_USED} AND at > clock_timestamp() - interval '{MINUTE_S} s'
    ) AS recent ON true
    WHERE {_CONCERNED} ORDER BY scope, owner_id, flow, endpoint
""")
# Counted for every cap of theirs: a rate that is set later holds for the minute before, too.
_NOTE = text(f"""
    WITH gone AS (
        DELETE FROM cap_use WHERE at < clock_timestamp() - interval '{2 * MINUTE_S} s' AND (scope, owner_id) IN (
            SELECT * FROM unnest(CAST(:scopes AS text[]), CAST(:owners AS bigint[]))
        )
    )
    INSERT INTO cap_use (dispatch_id, scope, owner_id, flow, endpoint, at)
    SELECT given.*, clock_timestamp() FROM unnest(
        CAST(:dispatches AS uuid[]), CAST(:scopes AS text[]), CAST(:owners AS bigint[]), CAST(:flows AS text[]), CAST(:endpoints AS text[])
    ) AS given
""")
#: of a job: that one of the caps in scopes, owners, flows, endpoints, capped_keys holds it
IS_CAPPED = f"""
    EXISTS (
        SELECT FROM unnest(
            CAST(:scopes AS text[]), CAST(:owners AS bigint[]), CAST(:flows AS text[]), CAST(:endpoints AS text[]),
            CAST(:capped_keys AS bigint[])
        ) AS cap (scope, owner_id, flow, endpoint, key_id) WHERE {_MINE}
    )
"""
_WAITING = text(f"""
    SELECT id FROM lane WHERE id = ANY(:lanes) AND EXISTS (
        SELECT FROM job WHERE job.lane_id = lane.id AND status = 'queued' AND NOT held AND {IS_CAPPED}
    )
""")
_SPLIT = text("""
    WITH old AS (
        DELETE FROM cap WHERE scope = 'flow' AND owner_id = :lane_id AND flow = :flow AND key_id = 0 RETURNING *
    )
    INSERT INTO cap (scope, owner_id, flow, endpoint, key_id, max_queued, max_in_flight, rpm, paused_at, paused_reason, draining_at)
    SELECT old.scope, old.owner_id, each.key_id || ':' || old.flow, old.endpoint, each.key_id, old.max_queued, old.max_in_flight, old.rpm,
           old.paused_at, old.paused_reason, old.draining_at
    FROM old JOIN key_flow AS each ON each.lane_id = old.owner_id AND each.name = old.flow
    ON CONFLICT (scope, owner_id, flow, endpoint) DO UPDATE SET
        max_queued = coalesce(cap.max_queued, excluded.max_queued), max_in_flight = coalesce(cap.max_in_flight, excluded.max_in_flight),
        rpm = coalesce(cap.rpm, excluded.rpm), paused_at = coalesce(cap.paused_at, excluded.paused_at),
        paused_reason = coalesce(cap.paused_reason, excluded.paused_reason), draining_at = coalesce(cap.draining_at, excluded.draining_at)
""")
_JOBS = text("""
    SELECT job.id, job.key_id, job.lane_id, job.flow, job.endpoint, lane.pool_id
    FROM job JOIN lane ON lane.id = job.lane_id WHERE job.id = ANY(:ids)
""")
_ALLOWED = text(f"""
    SELECT scope, max_queued, draining_at, CASE WHEN max_queued IS NOT NULL THEN (
        SELECT count(*) FROM job WHERE status = 'queued' AND {_MINE}
    ) END AS queued
    FROM cap WHERE ((scope = 'key' AND owner_id = :key_id) OR (
        scope = 'flow' AND owner_id = :lane_id AND cap.key_id IN (0, :key_id)
        AND flow = CASE WHEN cap.key_id = 0 THEN :flow ELSE CAST(:key_id AS bigint)::text || ':' || :flow END
    ))
    AND endpoint IN ('', :endpoint)
""")
