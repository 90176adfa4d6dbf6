"""The cleanup thread of the pacer's process: runs the steps of retention in small batches, with rests between them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from models.config.settings import settings
from models.database import db
from models.ops import retention
from models.ops.retention import Step
from models.platform.errors import Unavailable
from models.telemetry import metrics

log = logging.getLogger(__name__)

EVERY_S = 60.0
# A step with a longer backlog continues in the next pass, which follows at once, so that no table waits for another.
MAX_STEP_S = 60.0
# Each batch is followed by a rest of three times its duration: cleanup uses a quarter of one connection, and less of a busy Postgres.
REST_FACTOR = 3.0
# The batch size is halved above this duration and doubled below a quarter of it: rows with large bodies take longer.
TARGET_BATCH_S = 0.1
MIN_BATCH, FIRST_BATCH, MAX_BATCH = 10, 200, 500


class Cleanup:
    """Any number of processes may run it at once, because batches skip locked rows. clock: monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits: dict[str, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Runs a pass each minute until `stop`; passes follow each other while a backlog is left."""
        while not stop.is_set():
            is_drained = True
            try:
                is_drained = self.run_pass(stop)
            except Unavailable as error:
                log.warning("cleanup waits", extra={"why": str(error.__cause__ or error)})
            except Exception:
                # A border: a failed pass must not stop the next one.
                log.exception("a cleanup pass failed")
            stop.wait(EVERY_S if is_drained else 0)

    def run_pass(self, stop: threading.Event, *, at: datetime | None = None) -> bool:
        """Runs every step until its batch is not full; returns False when a backlog is left or `stop` is set.

        at: the time that ages are measured against; None: Postgres's clock. Raises Unavailable.
        """
        with db.autocommit() as session:
            at = at or retention.database_now(session)
        is_drained = True
        for name, step in retention.steps(at, days=settings().retention_days, idempotency_hours=settings().idempotency_hours).items():
            is_drained = self._drain(name, step, stop) and is_drained
        return is_drained

    def _drain(self, name: str, step: Step, stop: threading.Event) -> bool:
        until = self._clock() + MAX_STEP_S
        while not stop.is_set():
            began, limit = self._clock(), self._limits.get(name, FIRST_BATCH)
            try:
                with db.begin() as session:
                    removed = step(session, limit)
            except Unavailable:
                # A batch that exceeds the statement timeout raises the same error as an unavailable server.
                if limit <= MIN_BATCH:
                    raise
                self._limits[name] = max(MIN_BATCH, limit // 4)
                return False
            took_s = self._clock() - began
            metrics.removed.labels(name).inc(removed)
            if removed < limit:
                return True
            self._limits[name] = _next_limit(limit, took_s)
            if stop.wait(took_s * REST_FACTOR) or self._clock() >= until:
                return False
        return False


def _next_limit(limit: int, took_s: float) -> int:
    if took_s > TARGET_BATCH_S:
        return max(MIN_BATCH, limit // 2)
    return min(MAX_BATCH, limit * 2) if took_s < TARGET_BATCH_S / 4 else limit
