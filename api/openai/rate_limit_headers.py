"""The `x-ratelimit-*` headers: they tell how much room the line has, looked up at most once a second for each lane."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from models.database import db
from models.platform.errors import Unavailable
from models.queue import headroom
from models.queue.headroom import LaneHeadroom

log = logging.getLogger(__name__)

FRESH_S = 1.0
LANES_MOST = 10_000
NOTHING: Mapping[str, str] = MappingProxyType({})


class Told:
    """What this process told of each lane a moment ago."""

    def __init__(self, look: Callable[[int], LaneHeadroom], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[int, tuple[Mapping[str, str], float]] = {}

    def headers(self, lane_id: int) -> Mapping[str, str]:
        """The headers of an answer about this lane's jobs. While one caller looks again the others are told what was known."""
        with self._lock:
            known, until = self._known.get(lane_id, (NOTHING, 0.0))
            if self._clock() < until:
                return known
            if len(self._known) >= LANES_MOST:
                self._known.clear()
            self._known[lane_id] = (known, self._clock() + FRESH_S)
        said: Mapping[str, str]
        try:
            said = show(self._look(lane_id))
        except Unavailable:
            said = NOTHING
        self._known[lane_id] = (said, self._clock() + FRESH_S)
        return said


def headers(lane_id: int) -> Mapping[str, str]:
    """What this process tells of this lane; nothing where no limits are known, or Postgres is away."""
    return _told.headers(lane_id)


def show(rooms: LaneHeadroom) -> dict[str, str]:
    """The headers that OpenAI would send."""
    told: dict[str, str] = {}
    for name, one in (("requests", rooms.requests), ("tokens", rooms.tokens)):
        if one is not None:
            told[f"x-ratelimit-limit-{name}"] = str(one.limit)
            told[f"x-ratelimit-remaining-{name}"] = str(one.remaining)
            if one.reset_s is not None:
                told[f"x-ratelimit-reset-{name}"] = duration(one.reset_s)
    return told


def duration(seconds: float) -> str:
    """As Go writes it, to the millisecond and never too short: 12ms, 1.5s, 6m0s."""
    ms = math.ceil(round(seconds * 1000, 3))
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{hours}h{minutes}m{rest}" if hours else f"{minutes}m{rest}" if minutes else rest


def _look(lane_id: int) -> LaneHeadroom:
    with db.autocommit() as session:
        return headroom.read_headroom(session, lane_id)


_told = Told(_look)
