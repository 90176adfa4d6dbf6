"""How the parts of a stack share the cores of one machine."""

from __future__ import annotations

import os
from contextlib import suppress

from models.config.settings import settings


def use_batch_scheduling() -> None:
    """From now on this process, and those that it starts, wake up without pushing others off their core (SCHED_BATCH).

    A job is two dozen short messages between seven processes. Each that was sent took the core from its sender in the middle of its
    work, for a switch there and one back; now the sender goes on to its own next wait. Nobody's share of the cores changes, but who
    shares them with programs that never rest waits a few milliseconds longer for each message: NOWSERVING_BATCH_SCHEDULING=false.
    """
    if settings().batch_scheduling and hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # a sandbox may forbid it; then all is as before
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
