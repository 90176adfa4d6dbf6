"""The figures on a lane's row that estimates are made from, and its low-water mark: kept by the sweep, read by everybody."""

from __future__ import annotations

import time
from collections import deque

from sqlalchemy import text

from models import meter, pacing
from models.db import Session
from models.line import SETTLED_S

LANES_MOST = 200


class Care:
    """Remembers each lane's virtual time for SETTLED_S, as raising its low-water mark needs."""

    def __init__(self) -> None:
        self._times: dict[int, deque[tuple[float, float]]] = {}
        self._counted_until = 0.0

    def refresh(self, session: Session, *, now: float) -> None:
        """Lanes with work have fresh figures. now: monotonic seconds."""
        rows = session.execute(_ACTIVE, {"most": LANES_MOST}).all()
        credentials = meter.credentials_of(session, sorted({row.pool_id for row in rows}))
        for row in rows:
            self._raise(session, row.id, row.virtual_time, now=now)
            states = [meter.read(session, number, row.model) for number in credentials[row.pool_id]]
            pacing.write_figures(
                session, row.id, usual_s=_usual_s(session, credentials[row.pool_id], row.model), limits=meter.together(states)
            )
        self._times = {row.id: self._times[row.id] for row in rows}
        self._count(session, [row.id for row in rows], now=now)

    def _raise(self, session: Session, lane_id: int, virtual_time: float, *, now: float) -> None:
        seen = self._times.setdefault(lane_id, deque())
        seen.append((now, virtual_time))
        ceiling = None
        while seen and now - seen[0][0] >= SETTLED_S:
            ceiling = seen.popleft()[1]
        if ceiling is not None:
            pacing.raise_low_water(session, lane_id, ceiling=ceiling)

    def _count(self, session: Session, lane_ids: list[int], *, now: float) -> None:
        """How many wait in each lane, at a price of at most a twentieth of one core."""
        if now < self._counted_until:
            return
        began = time.monotonic()
        session.execute(_COUNT, {"ids": lane_ids})
        self._counted_until = now + 20 * (time.monotonic() - began)


def postmaster_started(session: Session) -> str:
    """When this Postgres was started: another answer means that it went down in between."""
    return str(session.execute(text("SELECT pg_postmaster_start_time()")).scalar_one())


def _usual_s(session: Session, credential_ids: list[int], model: str) -> float | None:
    if not credential_ids:
        return None
    found = session.execute(_USUAL, {"credentials": credential_ids, "model": model}).scalar_one()
    return None if found is None else float(found)


_ACTIVE = text(
    "SELECT id, pool_id, model, virtual_time FROM lane WHERE wake_at IS NOT NULL OR idle_since > now() - interval '30 s' LIMIT :most"
)
_USUAL = text("""
    SELECT avg(extract(epoch FROM ended_at - started_at))::float8 FROM unnest(CAST(:credentials AS bigint[])) AS used (id)
    CROSS JOIN LATERAL (
        SELECT started_at, ended_at FROM attempt
        WHERE credential_id = used.id AND model = :model AND outcome = 'succeeded' ORDER BY started_at DESC LIMIT 30
    ) AS last
""")
_COUNT = text("""
    UPDATE lane SET queued = counted.jobs FROM (
        SELECT wanted.id, count(job.lane_id) AS jobs FROM unnest(CAST(:ids AS bigint[])) AS wanted (id)
        LEFT JOIN job ON job.lane_id = wanted.id AND job.status = 'queued' AND NOT job.held GROUP BY wanted.id
    ) AS counted WHERE lane.id = counted.id AND lane.queued <> counted.jobs
""")
