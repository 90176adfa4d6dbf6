"""Holds back the status and headers of a stream until its first event, so that an early failure keeps its real status."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from api.openai import replies
from api.waiting.disconnects import ServerRestarting
from api.waiting.registry import waiter_registry
from api.waiting.waiter import Waiter
from models.jobs.states import TERMINAL
from models.platform.errors import Unauthorised

# Retry interval while Postgres is unavailable and the end must be read.
RETRY_READ_S = 0.2


def wait_for_failure(waiter: Waiter, read_end: Callable[[], tuple[Any, Sequence[bytes]] | None], *, timeout_s: float) -> Any | None:
    """Returns the row of a job that failed before its first event; None after the first event, a disconnect or the timeout.

    read_end: returns the ended job and the events of its transcript; None while Postgres is unavailable.
    Raises Unauthorised when the key was revoked, and ServerRestarting when this process stops.
    """
    until = time.monotonic() + timeout_s
    while not (waiter.has_chunks or waiter.is_disconnected):
        if waiter.is_revoked:
            raise Unauthorised
        is_over = waiter.status in TERMINAL
        if is_over and (ended := read_end()) is not None:
            row, events = ended
            return None if events or replies.has_answer(row) else row
        if waiter_registry.is_closing:
            raise ServerRestarting(retry_after_s=1)
        if (left_s := until - time.monotonic()) <= 0:
            break
        waiter.wait(min(left_s, RETRY_READ_S) if is_over else left_s)
    return None
