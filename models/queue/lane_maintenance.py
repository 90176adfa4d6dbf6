"""Maintains lanes with work: the figures that estimates use, low-water marks, counters and checkpoints. The reaper runs it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.keys import limits
from models.keys.keys import Limits
from models.queue import position_index, share_maintenance
from models.queue.key_shares import SETTLED_S

BATCH_LANES = 50
# Queued jobs, as last counted, from which a lane has checkpoints.
LONG_LANE = 2 * position_index.CHECKPOINT_EVERY
# Maximum part of one core for counting one long lane.
COUNTING_SHARE = 1 / 20


@dataclass
class LaneState:
    """The state of a lane between passes.

    times: virtual times of its keys over the last SETTLED_S, as (monotonic seconds, time). resume_at: when each slow task may run again.
    """

    times: dict[int, deque[tuple[float, float]]] = field(default_factory=dict)
    resume_at: dict[str, float] = field(default_factory=dict)

    def rate_limited(self, task: str, run: Callable[[], object], *, now: float) -> None:
        """Runs the task, unless its last run was so slow that it would exceed COUNTING_SHARE. now: monotonic seconds."""
        if now < self.resume_at.get(task, now):
            return
        started = time.monotonic()
        run()
        self.resume_at[task] = now + (time.monotonic() - started) / COUNTING_SHARE


# The mark is for versions before 0016, which read the queue from it: after a downgrade it must be below every queued job.
_COUNT = text("""
    UPDATE lane SET queued = counted.jobs, oldest_at = counted.oldest_at, low_water = least(lane.low_water, counted.first)
    FROM (
        -- An id contains its job's creation time, so an index-only scan suffices. (There is no min() of a uuid.)
        SELECT count(*) AS jobs, min(start_tag) AS first,
               to_timestamp(('x' || left(replace(min(id::text COLLATE "C"), '-', ''), 12))::bit(48)::bigint / 1000.0) AS oldest_at
        FROM job WHERE lane_id = :id AND status = 'queued' AND NOT held
    ) AS counted
    WHERE lane.id = :id AND (lane.low_water > counted.first
                             OR (lane.queued, lane.oldest_at) IS DISTINCT FROM (counted.jobs, counted.oldest_at))
""")
_ACTIVE = text("""
    SELECT id, pool_id, model, virtual_time, queued,
           EXISTS (SELECT FROM key_milestones WHERE key_milestones.lane_id = lane.id) AS has_milestones
    FROM lane
    WHERE id > :after AND (wake_at IS NOT NULL OR idle_since > now() - interval '30 s') ORDER BY id LIMIT :limit
""")


class LaneMaintenance:
    """Visits the lanes with work in rounds, BATCH_LANES at a time; one short transaction for each lane."""

    def __init__(self) -> None:
        self._states: dict[int, LaneState] = {}
        self._visited: set[int] = set()
        self._last_id = 0

    def next_batch(self, session: Transaction) -> Sequence[Any]:
        """The next lanes of the round, at most BATCH_LANES. Rows for `refresh`."""
        rows = session.execute(_ACTIVE, {"after": self._last_id, "limit": BATCH_LANES}).all()
        self._last_id = rows[-1].id if len(rows) == BATCH_LANES else 0
        self._visited |= {row.id for row in rows}
        if self._last_id == 0:  # End of the round: a lane that was not visited is idle.
            self._states = {lane_id: state for lane_id, state in self._states.items() if lane_id in self._visited}
            self._visited = set()
        return rows

    def refresh(self, session: Transaction, lane: Any, *, now: float) -> dict[int, Limits]:
        """Refreshes the lane's figures, and raises its low-water marks as far as possible. now: monotonic seconds.

        Returns the operator's current limits of each credential that serves the lane.
        """
        state = self._states.setdefault(lane.id, LaneState())
        # Locks shares before the lane's row, as everywhere.
        self._raise_low_water(session, lane.id, state, now=now)
        state.rate_limited("shares", lambda: share_maintenance.recount_jobs(session, lane.id), now=now)
        credentials = limits.active_credentials(session, [lane.pool_id])[lane.pool_id]
        credential_limits = [limits.state_of(session, credential_id, lane.model) for credential_id in credentials]
        usual_s = _usual_s(session, credentials, lane.model)
        _write_estimates(session, lane.id, usual_s=usual_s, limits=limits.sum_of(credential_limits))
        state.rate_limited("count", lambda: session.execute(_COUNT, {"id": lane.id}), now=now)
        if lane.queued >= LONG_LANE or lane.has_milestones:
            state.rate_limited("checkpoints", lambda: position_index.rebuild_checkpoints(session, lane.id), now=now)
        return {credential_id: each.limits for credential_id, each in zip(credentials, credential_limits, strict=True)}

    def _raise_low_water(self, session: Transaction, lane_id: int, state: LaneState, *, now: float) -> None:
        rows = {row.key_id: row.virtual_time for row in share_maintenance.virtual_times(session, lane_id)}
        state.times = {key_id: state.times.get(key_id, deque()) for key_id in rows}
        ceilings = {key_id: _settled(state.times[key_id], virtual_time, now=now) for key_id, virtual_time in rows.items()}
        known = {key_id: ceiling for key_id, ceiling in ceilings.items() if ceiling is not None}
        share_maintenance.raise_low_water(session, lane_id, known)


def _settled(times: deque[tuple[float, float]], virtual_time: float, *, now: float) -> float | None:
    """The virtual time at least SETTLED_S ago; None while no observation is that old.

    A lower virtual time than before belongs to a row that was deleted and inserted again: the times of the old row are dropped.
    """
    if times and virtual_time < times[-1][1]:
        times.clear()
    times.append((now, virtual_time))
    ceiling = None
    while now - times[0][0] >= SETTLED_S:
        ceiling = times.popleft()[1]
    return ceiling


def postmaster_started(session: Transaction) -> str:
    """When this Postgres was started: a different result than before means that it was down in between."""
    return str(session.execute(text("SELECT pg_postmaster_start_time()")).scalar_one())


_USUAL = text("""
    SELECT avg(extract(epoch FROM ended_at - started_at))::float8 FROM unnest(CAST(:credentials AS bigint[])) AS used (id)
    CROSS JOIN LATERAL (
        SELECT started_at, ended_at FROM attempt
        WHERE credential_id = used.id AND model = :model AND outcome = 'succeeded' ORDER BY started_at DESC LIMIT 30
    ) AS last
""")


def _usual_s(session: Transaction, credential_ids: list[int], model: str) -> float | None:
    """The mean duration of the last successful calls."""
    if not credential_ids:
        return None
    usual_s = session.execute(_USUAL, {"credentials": credential_ids, "model": model}).scalar_one()
    return None if usual_s is None else float(usual_s)


_WRITE_ESTIMATES = text("""
    UPDATE lane SET usual_s = coalesce(:usual_s, usual_s), rpm = :rpm, tpm = :tpm, ipm = :ipm, max_in_flight = :max_in_flight
    WHERE id = :id AND (lane.usual_s, lane.rpm, lane.tpm, lane.ipm, lane.max_in_flight)
        IS DISTINCT FROM (coalesce(CAST(:usual_s AS float8), lane.usual_s), CAST(:rpm AS float8), CAST(:tpm AS float8),
                          CAST(:ipm AS float8), CAST(:max_in_flight AS float8))
""")


def _write_estimates(session: Transaction, lane_id: int, *, usual_s: float | None, limits: dict[str, float | None]) -> None:
    """Stores the figures for estimates in the lane's row. limits: rpm, tpm, ipm, max_in_flight of its credentials together."""
    session.execute(_WRITE_ESTIMATES, {"id": lane_id, "usual_s": usual_s, **limits})
