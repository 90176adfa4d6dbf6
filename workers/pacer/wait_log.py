"""What the pacer says of a job that it lets go: one line in the log, and the span `wait` with what its lane stood still for meanwhile.

Whoever admits a job tells of its wait, so a wait is told whatever died in it. What stood in the way is remembered here while somebody
waits in a lane; a pacer that was started later knows of the rest only what the lane's row last said.
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
from models.telemetry.tracing import Attributes
from workers.observe.attempt_log import about

log = logging.getLogger(__name__)

# Of a lane's reasons the last so many changes.
MAX_REASONS = 32
BACKOFF = "backoff"


class WaitLog:
    """Since when each lane stands still, and what for. Remembers nothing while traces are off."""

    def __init__(self) -> None:
        self._reasons: dict[int, deque[tuple[int, str | None]]] = {}

    def note(self, lane_id: int, blocked_by: str | None) -> None:
        """The lane stands still for this from now on; None: it moves."""
        if not tracing.is_on():
            return
        known = self._reasons.setdefault(lane_id, deque(maxlen=MAX_REASONS))
        if blocked_by != (known[-1][1] if known else None):
            known.append((time.time_ns(), blocked_by))

    def conclude(self, settled: Iterable[LaneOutcome]) -> None:
        """After a step: what was found of these lanes. Nothing is kept of those in which nobody waits."""
        for one in settled:
            if one.wake_in_s is None:
                self._reasons.pop(one.lane_id, None)
            else:
                self.note(one.lane_id, one.blocked_by)

    def tell(self, heads: Sequence[Any], credentials: Mapping[UUID, int], since: Mapping[UUID, datetime], *, over_ns: int) -> None:
        """These were let go. heads: rows of pacing.heads; credentials: by job; since: when those that were called before came back."""
        for head in heads:
            began_ns = min(over_ns, _ns(since.get(head.id, head.created_at)))
            waited = {"credential_id": credentials[head.id], "waited_s": round((over_ns - began_ns) / 1e9, 3)}
            log.info("admitted", extra={**_about(head), **waited})
            span = tracing.start_child("wait", head.traceparent, at_ns=began_ns)
            if span.is_recorded:
                blocks = self._between(head, began_ns)
                reasons = sorted({why for _, why in blocks if why})
                span.set({**_named(head), "nowserving.credential": credentials[head.id], "nowserving.blocked_by": reasons or None})
                for at_ns, why in blocks:
                    span.mark("blocked" if why else "free", at_ns=at_ns, attributes={"nowserving.blocked_by": why})
            span.end(at_ns=over_ns)

    def _between(self, head: Any, began_ns: int) -> list[tuple[int, str | None]]:
        """What stood in this job's way since then: what its lane stood still for already, and each change."""
        found: list[tuple[int, str | None]] = []
        for at_ns, why in self._reasons.get(head.lane_id, ()):
            if at_ns > began_ns:
                found.append((at_ns, why))
            else:
                found = [(began_ns, why)] if why else []
        is_retry = head.not_before is not None and _ns(head.not_before) > began_ns
        return [(began_ns, BACKOFF), *found] if is_retry else found


def log_left_queue(row: Any, since: datetime, *, why: str) -> None:
    """This job left the line without its turn. row: id, lane_id, key_id, calls, request_id, traceparent."""
    log.info("left the line", extra={**_about(row), "why": why})
    span = tracing.start_child("wait", row.traceparent, at_ns=_ns(since))
    span.set(_named(row))
    span.end(error=why)


def _about(row: Any) -> dict[str, object]:
    return {"job": wire.public_id(row.id), "attempt": row.calls + 1, **about(row)}


def _named(row: Any) -> Attributes:
    return {
        "nowserving.job": wire.public_id(row.id), "nowserving.lane": row.lane_id, "nowserving.key": row.key_id,
        "nowserving.attempt": row.calls + 1,
    }  # fmt: skip


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e9)
