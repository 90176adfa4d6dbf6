"""Time limits that also hold on a loaded machine: tests compare the smallest of several measurements."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TRIES = 5


def least(measure: Callable[[], float], *, below: float, tries: int = TRIES) -> float:
    """The smallest of up to `tries` measurements; the first one below `below` ends the loop.

    Load on the machine makes a measurement larger, never smaller: if the code itself exceeds the limit, all measurements do.
    """
    smallest = measure()
    while smallest >= below and (tries := tries - 1) > 0:
        smallest = min(smallest, measure())
    return smallest


def seconds(act: Callable[[], Any], *, clock: Callable[[], float] = time.monotonic) -> float:
    """The duration of this call by `clock`. `time.thread_time` measures the CPU time of this thread only."""
    began = clock()
    act()
    return clock() - began
