"""The head of a stream (status and headers) waits for the first event, so that a failure at once keeps its real status."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from api.openai import replies
from api.waiting.disconnects import Closing
from api.waiting.waiter import Seat
from api.waiting.waiters import hall
from models.jobs.states import TERMINAL
from models.platform.errors import Unauthorised

# Postgres is away while the end is to be read: how soon to try again.
AGAIN_S = 0.2


def wait_for_failure(seat: Seat, read_end: Callable[[], tuple[Any, Sequence[bytes]] | None], *, most_s: float) -> Any | None:
    """The row of a job that failed before its first event; None as soon as an event is here, the client has gone or the time is up.

    read_end: the ended job and the events of its transcript; None while Postgres is away.
    Raises Unauthorised when the key was revoked, and Closing when this process ends.
    """
    until = time.monotonic() + most_s
    while not (seat.has_chunks or seat.is_gone):
        if seat.is_revoked:
            raise Unauthorised
        is_over = seat.status in TERMINAL
        if is_over and (ended := read_end()) is not None:
            row, events = ended
            return None if events or replies.has_answer(row) else row
        if hall.is_closing:
            raise Closing(retry_after_s=1)
        if (left_s := until - time.monotonic()) <= 0:
            break
        seat.wait(min(left_s, AGAIN_S) if is_over else left_s)
    return None
