"""One thread that looks into Postgres for everybody in this process who waits: many jobs in one statement, never one for each."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from api.waiting.coalescing_queue import Inbox
from api.waiting.waiter import Seats
from models.database import db
from models.jobs import job_view
from models.platform.errors import Unavailable
from models.queue import enqueue

log = logging.getLogger(__name__)

# Wake-ups may be lost: everything that is waited for is looked at this often.
LOOK_AGAIN_S = 5.0
# Places are looked up this often, and less often the more of them there are.
PLACES_EVERY_S = 1.0
PLACES_PER_S = 1_000
# Jobs in one statement: the process serves others between two.
AT_ONCE = 500
PAUSE_S = 1.0


class Looker:
    """Tells seats how their jobs stand: soon after `look`, and every few seconds anyway."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._woken: Inbox[UUID] = Inbox()
        self._is_closing = False
        self._look_at = self._place_at = 0.0

    def look(self, job_ids: Iterable[UUID]) -> None:
        """These jobs are looked at now. Returns at once."""
        self._woken.put(job_ids)

    def close(self) -> None:
        """`run` returns soon."""
        self._is_closing = True
        self._woken.put(())

    def run(self) -> None:
        """Looks until closed."""
        while not self._is_closing:
            woken = self._woken.take(max(0.0, min(self._look_at, self._place_at) - time.monotonic()))
            try:
                self._round(woken, time.monotonic())
            except Unavailable:
                self._again("callers wait blindly until Postgres is back", "Unavailable")
            except Exception as error:  # the border of this thread: one bad row must not end it
                self._again("those who wait could not be looked after", type(error).__name__)

    def _round(self, woken: set[UUID], now: float) -> None:
        if now >= self._look_at:
            woken.update(self._seats.jobs())
            self._look_at = now + LOOK_AGAIN_S
        placed = set()
        if now >= self._place_at:
            placed = {seat.job_id for seat in self._seats.everybody() if seat.wants_place and seat.status in job_view.WAITING}
            self._place_at = now + max(PLACES_EVERY_S, len(placed) / PLACES_PER_S)
        wanted = [job_id for job_id in woken | placed if self._seats.of(job_id)]
        for start in range(0, len(wanted), AT_ONCE):
            self._see(wanted[start : start + AT_ONCE], placed)

    def _see(self, job_ids: Sequence[UUID], placed: set[UUID]) -> None:
        with db.autocommit() as session:
            rows = job_view.glance(session, job_ids)
            places = enqueue.places(session, [row for row in rows if row.status in job_view.WAITING and self._has_to_place(row, placed)])
        for row in rows:
            for seat in self._seats.of(row.id):
                seat.see(row, places.get(row.id) if seat.wants_place else None)

    def _has_to_place(self, row: Any, placed: set[UUID]) -> bool:
        """In its turn, or because somebody who has just come asks for the first time, or it is on its way now."""
        if row.id in placed:
            return True
        return any(seat.wants_place and (seat.place is None or seat.status != row.status) for seat in self._seats.of(row.id))

    def _again(self, said: str, kind: str) -> None:
        log.warning(said, extra={"error": kind})
        self._look_at = 0.0
        time.sleep(PAUSE_S)
