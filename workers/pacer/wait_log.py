"""Logs each job that leaves the queue, and records its `wait` span with the reasons that blocked its lane meanwhile.

The pacer that admits a job records its whole wait, so a process that died in between loses nothing of it. A pacer keeps the reasons while
jobs wait in a lane. One that started later knows of earlier reasons only the last one, from the lane's row.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from models.platform import wire
from models.queue.admission import LaneOutcome
from models.telemetry import tracing
from models.telemetry.span import Attributes
from workers.observe.attempt_log import log_fields

log = logging.getLogger(__name__)

# Changes kept of each lane's reasons; older ones are dropped.
MAX_REASONS = 32
BACKOFF = "backoff"


class WaitLog:
    """Since when each lane is blocked, and by what. Keeps nothing while tracing is off."""

    def __init__(self) -> None:
        self._reasons: dict[int, deque[tuple[int, str | None]]] = {}

    def note(self, lane_id: int, blocked_by: str | None) -> None:
        """Records that this reason blocks the lane from now on; None: the lane moves."""
        if not tracing.is_on():
            return
        reasons = self._reasons.setdefault(lane_id, deque(maxlen=MAX_REASONS))
        if blocked_by != (reasons[-1][1] if reasons else None):
            reasons.append((time.time_ns(), blocked_by))

    def update(self, lanes: Iterable[LaneOutcome]) -> None:
        """Records the result of a step. Lanes without waiting jobs are dropped."""
        for lane in lanes:
            if lane.wake_in_s is None:
                self._reasons.pop(lane.lane_id, None)
            else:
                self.note(lane.lane_id, lane.blocked_by)

    def log_admitted(
        self, heads: Sequence[Any], credentials: Mapping[UUID, int], queued_since: Mapping[UUID, datetime], *, at_ns: int
    ) -> None:
        """Logs admitted jobs. heads: rows of admission.queue_heads; credentials: by job; queued_since: of jobs that were called before."""
        for head in heads:
            began_ns = min(at_ns, _ns(queued_since.get(head.id, head.created_at)))
            waited = {"credential_id": credentials[head.id], "waited_s": round((at_ns - began_ns) / 1e9, 3)}
            log.info("admitted", extra={**_log_fields(head), **waited})
            span = tracing.start_child("wait", head.traceparent, at_ns=began_ns)
            if span.is_recording:
                blocks = self._blocks_since(head, began_ns)
                reasons = sorted({reason for _, reason in blocks if reason})
                span.set_attributes(
                    {**_attributes(head), "nowserving.credential": credentials[head.id], "nowserving.blocked_by": reasons or None}
                )
                for block_ns, reason in blocks:
                    span.add_event("blocked" if reason else "free", at_ns=block_ns, attributes={"nowserving.blocked_by": reason})
            span.end(at_ns=at_ns)

    def _blocks_since(self, head: Any, began_ns: int) -> list[tuple[int, str | None]]:
        """The reason that blocked the job's lane when the wait began, and each later change."""
        blocks: list[tuple[int, str | None]] = []
        for at_ns, reason in self._reasons.get(head.lane_id, ()):
            if at_ns > began_ns:
                blocks.append((at_ns, reason))
            else:
                blocks = [(began_ns, reason)] if reason else []
        is_retry = head.not_before is not None and _ns(head.not_before) > began_ns
        return [(began_ns, BACKOFF), *blocks] if is_retry else blocks


def log_left_queue(row: Any, since: datetime, *, why: str) -> None:
    """Logs a job that left the queue without being admitted. row: id, lane_id, key_id, calls, request_id, traceparent."""
    log.info("left the queue", extra={**_log_fields(row), "why": why})
    span = tracing.start_child("wait", row.traceparent, at_ns=_ns(since))
    span.set_attributes(_attributes(row))
    span.end(error=why)


def _log_fields(row: Any) -> dict[str, object]:
    return {"job": wire.public_id(row.id), "attempt": row.calls + 1, **log_fields(row)}


def _attributes(row: Any) -> Attributes:
    return {
        "nowserving.job": wire.public_id(row.id), "nowserving.lane": row.lane_id, "nowserving.key": row.key_id,
        "nowserving.attempt": row.calls + 1,
    }  # fmt: skip


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e9)
