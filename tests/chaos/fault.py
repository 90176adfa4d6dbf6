"""What every fault is: something that begins, goes on for a while and ends, and says how many calls it may have made unknown."""

from __future__ import annotations

import random
import time
from typing import ClassVar

from sqlalchemy import text

from models.database import db
from models.platform.errors import ServingError
from tests.chaos import requests as chaos_requests
from tests.chaos.stack import Plant

SETTLED_S = 0.6


class Fault:
    """One occurrence of it. on: what it needs for itself while it lasts; two faults on the same thing never overlap.

    lost: calls of unknown outcome that it accounts for.
    """

    on: ClassVar[frozenset[str]] = frozenset()
    lasts_s: float = 0.0

    def __init__(self, plant: Plant, chance: random.Random) -> None:
        self.plant, self.chance = plant, chance
        self.lost = 0

    def begin(self) -> None:
        """It is on."""

    def step(self) -> None:
        """Called again and again while it lasts."""

    def end(self) -> None:
        """All is as before, or will be as soon as the parts have started again."""

    def is_over(self) -> bool:
        """Whether it may end, once its time is up."""
        return True


def in_flight(*, most: int) -> int:
    """How many calls are on record as begun and not ended, `most` at most; `most` too when Postgres does not say."""

    def ask() -> int:
        with db.begin() as session:
            return int(session.execute(text("SELECT count(*) FROM job WHERE status = 'running'")).scalar_one())

    try:
        # Twice: what was being written when its sender was stopped is there a moment later.
        first = chaos_requests.within(ask, s=2)
        time.sleep(SETTLED_S)
        return min(most, max(first, chaos_requests.within(ask, s=2)))
    except (TimeoutError, ServingError):
        return most
