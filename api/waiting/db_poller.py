"""The poller of job status: one thread reads the rows of all jobs that this process waits for, many jobs in one statement."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from api.waiting.coalescing_queue import CoalescingQueue
from api.waiting.waiters import Waiters
from models.database import db
from models.jobs import job_rows, job_view
from models.platform.errors import Unavailable
from models.queue import position

log = logging.getLogger(__name__)

# Notifications may be lost, so the poller reads every job of a waiter this often.
POLL_INTERVAL_S = 5.0
# The poller reads positions in the queue this often, and less often when there are more than POSITIONS_PER_S.
POSITION_INTERVAL_S = 1.0
POSITIONS_PER_S = 1_000
# Jobs in one statement: gevent runs other greenlets between two statements.
BATCH_SIZE = 500
RETRY_PAUSE_S = 1.0


class DbPoller:
    """Updates waiters from the rows of their jobs: soon after `poll_soon`, and every few seconds in any case."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._requested: CoalescingQueue[UUID] = CoalescingQueue()
        self._is_closing = False
        self._next_poll_at = self._next_positions_at = 0.0

    def poll_soon(self, job_ids: Iterable[UUID]) -> None:
        """Requests a poll of these jobs and returns at once."""
        self._requested.put(job_ids)

    def close(self) -> None:
        """Makes `run` return soon."""
        self._is_closing = True
        self._requested.put(())

    def run(self) -> None:
        """Polls until `close` is called."""
        while not self._is_closing:
            requested = self._requested.take(max(0.0, min(self._next_poll_at, self._next_positions_at) - time.monotonic()))
            try:
                self._step(requested, time.monotonic())
            except Unavailable:
                self._retry("Postgres is unavailable: waiters get no updates", "Unavailable")
            except Exception as error:  # the border of this thread: one bad row must not end it
                self._retry("polling of waiters failed", type(error).__name__)

    def _step(self, requested: set[UUID], now: float) -> None:
        if now >= self._next_poll_at:
            requested.update(self._waiters.job_ids())
            self._next_poll_at = now + POLL_INTERVAL_S
        position_due = set()
        if now >= self._next_positions_at:
            position_due = {waiter.job_id for waiter in self._waiters.all() if waiter.wants_place and waiter.status in job_view.WAITING}
            self._next_positions_at = now + max(POSITION_INTERVAL_S, len(position_due) / POSITIONS_PER_S)
        job_ids = [job_id for job_id in requested | position_due if self._waiters.of_job(job_id)]
        for start in range(0, len(job_ids), BATCH_SIZE):
            self._poll(job_ids[start : start + BATCH_SIZE], position_due)

    def _poll(self, job_ids: Sequence[UUID], position_due: set[UUID]) -> None:
        with db.autocommit() as session:
            rows = job_rows.status_of(session, job_ids)
            queued = [row for row in rows if row.status in job_view.WAITING and self._needs_place(row, position_due)]
            places = position.positions_of(session, queued)
        for row in rows:
            for waiter in self._waiters.of_job(row.id):
                waiter.update(row, places.get(row.id) if waiter.wants_place else None)

    def _needs_place(self, row: Any, position_due: set[UUID]) -> bool:
        """Whether the position is due, or a waiter has none yet, or the job's status changed."""
        if row.id in position_due:
            return True
        return any(waiter.wants_place and (waiter.place is None or waiter.status != row.status) for waiter in self._waiters.of_job(row.id))

    def _retry(self, event: str, error: str) -> None:
        log.warning(event, extra={"error": error})
        self._next_poll_at = 0.0
        time.sleep(RETRY_PAUSE_S)
