"""The cleanup thread of the pacer's process: runs the steps of retention in small batches, and rests between them."""

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
# A step with a longer backlog goes on in the next pass, which follows at once, so that no table waits for another.
STEP_MAX_S = 60.0
# After each batch a rest of three times its duration: cleanup takes a quarter of one connection, less of a busy Postgres.
REST = 3.0
# Batches are halved above this duration and doubled below a quarter of it: rows with large bodies take longer.
BATCH_S = 0.1
SMALLEST, FIRST, LARGEST = 10, 200, 500


class Cleanup:
    """`run` may run in any number of processes at once: a locked row is passed over. clock: monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits: dict[str, int] = {}

    def run(self, stop: threading.Event) -> None:
        """Until `stop`: a pass each minute, or one after the other while one leaves a backlog."""
        while not stop.is_set():
            is_drained = True
            try:
                is_drained = self.run_pass(stop)
            except Unavailable as error:
                log.warning("cleanup waits", extra={"why": str(error.__cause__ or error)})
            except Exception:
                # A border: the next pass must come whatever this one found.
                log.exception("a cleanup pass failed")
            stop.wait(EVERY_S if is_drained else 0)

    def run_pass(self, stop: threading.Event, *, at: datetime | None = None) -> bool:
        """Runs every step until its batch is not full; False when a backlog is left or `stop` is set.

        at: the time against which ages are counted; None: Postgres's. Raises Unavailable when Postgres is away.
        """
        with db.autocommit() as session:
            at = at or retention.now(session)
        is_drained = True
        for name, step in retention.steps(at, days=settings().retention_days, idempotency_hours=settings().idempotency_hours).items():
            is_drained = self._drain(name, step, stop) and is_drained
        return is_drained

    def _drain(self, name: str, step: Step, stop: threading.Event) -> bool:
        until = self._clock() + STEP_MAX_S
        while not stop.is_set():
            began, limit = self._clock(), self._limits.get(name, FIRST)
            try:
                with db.begin() as session:
                    removed = step(session, limit)
            except Unavailable:
                # A batch that is too large for one statement's time looks the same as an absent server.
                if limit <= SMALLEST:
                    raise
                self._limits[name] = max(SMALLEST, limit // 4)
                return False
            took_s = self._clock() - began
            metrics.removed.labels(name).inc(removed)
            if removed < limit:
                return True
            self._limits[name] = _next_limit(limit, took_s)
            if stop.wait(took_s * REST) or self._clock() >= until:
                return False
        return False


def _next_limit(limit: int, took_s: float) -> int:
    if took_s > BATCH_S:
        return max(SMALLEST, limit // 2)
    return min(LARGEST, limit * 2) if took_s < BATCH_S / 4 else limit
