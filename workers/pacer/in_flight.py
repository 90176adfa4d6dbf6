"""The places in flight of all calls that run, kept by the pacer beside the workers: one that is cut off from Redis cannot keep its own.

A worker says in Postgres that its call runs, and whoever admits reads that row: while it says so, its place is taken.
"""

from __future__ import annotations

import logging

from models.config.settings import settings
from models.database import db
from models.keys import limits
from workers.limiter.limiter import Limiter, Meter

log = logging.getLogger(__name__)


class InFlightLeases:
    """What one pacer has kept, and when."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._kept_at = float("-inf")

    def renew(self, *, now: float) -> None:
        """No call that runs has lost its place unnoticed; where one has, nothing is admitted before the limiter's state was made again.

        Looks every NOWSERVING_HEARTBEAT_S. now: monotonic seconds. Raises Unavailable, LineUnavailable: then nobody may be admitted.
        """
        gap_s = now - self._kept_at
        if gap_s < settings().heartbeat_s:
            return
        with db.autocommit() as session:
            rows = limits.running(session)
        wanted: dict[Meter, set[str]] = {}
        for row in rows:
            wanted.setdefault(Meter(row.credential_id, row.model), set()).add(str(row.dispatch_id))
        held = self._limiter.renew_many([(one, sorted(ids)) for one, ids in wanted.items()], lease_ms=int(settings().lease_s * 1000))
        # What was kept less than a lease ago cannot have run out: a place that is missing then was freed by its answer, a moment
        # before the answer is in the row. After a longer gap, as in a new process, it may as well have run out.
        if gap_s > settings().lease_s - settings().heartbeat_s:
            self._expect(wanted, dict(zip(wanted, held, strict=True)))
        self._kept_at = now

    def _expect(self, wanted: dict[Meter, set[str]], held: dict[Meter, set[str]]) -> None:
        for one, ids in wanted.items():
            if lost := ids - held[one]:
                log.warning(
                    "places in flight ran out: the limiter is rebuilt",
                    extra={"credential_id": one.credential_id, "model": one.model, "lost": len(lost)},
                )
                self._limiter.forget(one)
