"""Calibration: the speed of this machine now. Two cores of a shared host may do half today of what they did yesterday."""

from __future__ import annotations

import time

STEPS = 5_000_000


def mops() -> float:
    """Millions of additions and multiplications a second in one thread of plain Python."""
    began, total = time.perf_counter(), 0
    for n in range(STEPS):
        total += n * n
    return STEPS / (time.perf_counter() - began) / 1e6
