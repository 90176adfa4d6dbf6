"""Base class of faults. A fault begins, lasts and ends, and counts the calls whose outcome it may have made unknown."""

from __future__ import annotations

import random
import time
from typing import ClassVar

from sqlalchemy import text

from models.database import db
from models.platform.errors import ServingError
from tests.chaos import timeouts
from tests.chaos.stack import Stack

SETTLED_S = 0.6


class Fault:
    """One occurrence of a fault.

    on: the resources that it uses exclusively; two faults on the same resource never overlap. lost: calls of unknown
    outcome that it explains.
    """

    on: ClassVar[frozenset[str]] = frozenset()
    lasts_s: float = 0.0

    def __init__(self, stack: Stack, rng: random.Random) -> None:
        self.stack, self.rng = stack, rng
        self.lost = 0

    def begin(self) -> None:
        """Activate the fault."""

    def step(self) -> None:
        """Called every 0.1 s while the fault is active."""

    def end(self) -> None:
        """Undo the fault; services may still be restarting afterwards."""

    def is_over(self) -> bool:
        """Whether the fault can end once its time is up."""
        return True


def running_jobs(*, limit: int) -> int:
    """Number of running jobs, at most `limit`; `limit` when Postgres does not answer."""

    def count_running() -> int:
        with db.begin() as session:
            return int(session.execute(text("SELECT count(*) FROM job WHERE status = 'running'")).scalar_one())

    try:
        # Count twice: rows that a stopped worker was writing are visible a moment later.
        first = timeouts.call_with_timeout(count_running, timeout_s=2)
        time.sleep(SETTLED_S)
        return min(limit, max(first, timeouts.call_with_timeout(count_running, timeout_s=2)))
    except (TimeoutError, ServingError):
        return limit
