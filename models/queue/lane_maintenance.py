"""The figures on a lane's row that estimates are made from, and its low-water mark: kept by the sweep, read by everybody."""

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
from models.queue import admission, key_shares, position_index
from models.queue.key_shares import SETTLED_S

BATCH_LANES = 50
# Jobs waiting, as last counted, from which on a lane has milestones.
LONG_LANE = 2 * position_index.CHECKPOINT_EVERY
# Of one core, at most, for counting one long lane.
COUNTING_SHARE = 1 / 20


@dataclass
class LaneState:
    """What is remembered of a lane.

    times: its keys' virtual times at moments of the last SETTLED_S; rests_until: until when what takes long has to rest.
    """

    times: dict[int, deque[tuple[float, float]]] = field(default_factory=dict)
    rests_until: dict[str, float] = field(default_factory=dict)

    def at_leisure(self, what: str, work: Callable[[], object], *, now: float) -> None:
        """It is done, unless it took so long last time that it would take more than COUNTING_SHARE. now: monotonic seconds."""
        if now < self.rests_until.get(what, now):
            return
        began = time.monotonic()
        work()
        self.rests_until[what] = now + (time.monotonic() - began) / COUNTING_SHARE


class LaneMaintenance:
    """Goes round the lanes with work, LANES_MOST at a time; one short transaction a lane."""

    def __init__(self) -> None:
        self._seen: dict[int, LaneState] = {}
        self._round: set[int] = set()
        self._last_id = 0

    def choose(self, session: Transaction) -> Sequence[Any]:
        """The next lanes in turn, at most LANES_MOST. Rows for `refresh`."""
        rows = session.execute(_ACTIVE, {"after": self._last_id, "most": BATCH_LANES}).all()
        self._last_id = rows[-1].id if len(rows) == BATCH_LANES else 0
        self._round |= {row.id for row in rows}
        if self._last_id == 0:  # once round: what is not remembered anew has fallen idle
            self._seen = {number: seen for number, seen in self._seen.items() if number in self._round}
            self._round = set()
        return rows

    def refresh(self, session: Transaction, lane: Any, *, now: float) -> dict[int, Limits]:
        """The lane's figures are fresh and its low-water mark is as high as it may be. now: monotonic seconds.

        Returns the operator's limits of each credential that serves it, as they are now.
        """
        seen = self._seen.setdefault(lane.id, LaneState())
        # Shares before the lane's row, as everybody locks them.
        self._raise_low_water(session, lane.id, seen, now=now)
        seen.at_leisure("shares", lambda: key_shares.recount_jobs(session, lane.id), now=now)
        credentials = limits.credentials_of(session, [lane.pool_id])[lane.pool_id]
        states = [limits.read(session, number, lane.model) for number in credentials]
        usual_s = _usual_s(session, credentials, lane.model)
        admission.write_estimates(session, lane.id, usual_s=usual_s, limits=limits.together(states))
        seen.at_leisure("count", lambda: session.execute(_COUNT, {"id": lane.id}), now=now)
        if lane.queued >= LONG_LANE or lane.has_milestones:
            seen.at_leisure("milestones", lambda: position_index.rebuild_checkpoints(session, lane.id), now=now)
        return {number: state.limits for number, state in zip(credentials, states, strict=True)}

    def _raise_low_water(self, session: Transaction, lane_id: int, seen: LaneState, *, now: float) -> None:
        rows = {row.key_id: row.virtual_time for row in key_shares.virtual_times(session, lane_id)}
        seen.times = {number: seen.times.get(number, deque()) for number in rows}
        ceilings = {number: _settled(seen.times[number], virtual_time, now=now) for number, virtual_time in rows.items()}
        key_shares.raise_low_water(session, lane_id, {number: one for number, one in ceilings.items() if one is not None})


def _settled(times: deque[tuple[float, float]], virtual_time: float, *, now: float) -> float | None:
    """The virtual time that was true at least SETTLED_S ago; None while nobody has looked for that long.

    One that is lower than before is of a row that was dropped and made again in between: what was seen of the old row is forgotten.
    """
    if times and virtual_time < times[-1][1]:
        times.clear()
    times.append((now, virtual_time))
    ceiling = None
    while now - times[0][0] >= SETTLED_S:
        ceiling = times.popleft()[1]
    return ceiling


def postmaster_started(session: Transaction) -> str:
    """When this Postgres was started: another answer means that it went down in between."""
    return str(session.execute(text("SELECT pg_postmaster_start_time()")).scalar_one())


def _usual_s(session: Transaction, credential_ids: list[int], model: str) -> float | None:
    if not credential_ids:
        return None
    found = session.execute(_USUAL, {"credentials": credential_ids, "model": model}).scalar_one()
    return None if found is None else float(found)


_ACTIVE = text("""
    SELECT id, pool_id, model, virtual_time, queued,
           EXISTS (SELECT FROM key_milestones WHERE key_milestones.lane_id = lane.id) AS has_milestones
    FROM lane
    WHERE id > :after AND (wake_at IS NOT NULL OR idle_since > now() - interval '30 s') ORDER BY id LIMIT :most
""")
_USUAL = text("""
    SELECT avg(extract(epoch FROM ended_at - started_at))::float8 FROM unnest(CAST(:credentials AS bigint[])) AS used (id)
    CROSS JOIN LATERAL (
        SELECT started_at, ended_at FROM attempt
        WHERE credential_id = used.id AND model = :model AND outcome = 'succeeded' ORDER BY started_at DESC LIMIT 30
    ) AS last
""")
# The mark is of versions before 0016, which read the line from there: one that comes back must find those who wait.
_COUNT = text("""
    UPDATE lane SET queued = counted.jobs, oldest_at = counted.oldest_at, low_water = least(lane.low_water, counted.first)
    FROM (
        -- An id says when its job was submitted: the index alone is read. (There is no min() of a uuid.)
        SELECT count(*) AS jobs, min(start_tag) AS first,
               to_timestamp(('x' || left(replace(min(id::text COLLATE "C"), '-', ''), 12))::bit(48)::bigint / 1000.0) AS oldest_at
        FROM job WHERE lane_id = :id AND status = 'queued' AND NOT held
    ) AS counted
    WHERE lane.id = :id AND (lane.low_water > counted.first
                             OR (lane.queued, lane.oldest_at) IS DISTINCT FROM (counted.jobs, counted.oldest_at))
""")
