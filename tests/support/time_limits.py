"""Time limits that hold on a loaded machine too: the least of several measurements is compared, never a single one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TRIES = 5


def least(measure: Callable[[], float], *, below: float, tries: int = TRIES) -> float:
    """The smallest of up to `tries` measurements; the first one below the limit ends the search.

    Other programs on the machine make a measurement larger, never smaller: a limit that the code itself exceeds is exceeded by all of them.
    """
    smallest = measure()
    while smallest >= below and (tries := tries - 1) > 0:
        smallest = min(smallest, measure())
    return smallest


def seconds(act: Callable[[], Any], *, clock: Callable[[], float] = time.monotonic) -> float:
    """Seconds of this call by `clock`: `time.thread_time` counts the processor time of this thread alone."""
    began = clock()
    act()
    return clock() - began
