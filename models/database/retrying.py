"""Retries a step while Postgres is unavailable."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from models.platform.errors import Unavailable

T = TypeVar("T")
PAUSE_S = 0.25


def while_unavailable(step: Callable[[], T], *, for_s: float) -> T:
    """The result of the step, which is retried for this long. Raises the last Unavailable."""
    deadline = time.monotonic() + for_s
    while True:
        try:
            return step()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)
