"""The `x-ratelimit-*` response headers: the lane's headroom, read at most once a second for each lane."""

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
MAX_LANES = 10_000
NOTHING: Mapping[str, str] = MappingProxyType({})


class HeaderCache:
    """Per-process cache of the headers of each lane."""

    def __init__(self, read: Callable[[int], LaneHeadroom], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._cached: dict[int, tuple[Mapping[str, str], float]] = {}

    def headers(self, lane_id: int) -> Mapping[str, str]:
        """Returns the headers for jobs of this lane. While one request reads them again, others get the cached ones."""
        with self._lock:
            cached, until = self._cached.get(lane_id, (NOTHING, 0.0))
            if self._clock() < until:
                return cached
            if len(self._cached) >= MAX_LANES:
                self._cached.clear()
            self._cached[lane_id] = (cached, self._clock() + FRESH_S)
        headers: Mapping[str, str]
        try:
            headers = render_headers(self._read(lane_id))
        except Unavailable:
            headers = NOTHING
        self._cached[lane_id] = (headers, self._clock() + FRESH_S)
        return headers


def of_lane(lane_id: int) -> Mapping[str, str]:
    """Returns the lane's headers from this process's cache; none without known limits or while Postgres is unavailable."""
    return _cache.headers(lane_id)


def render_headers(lane: LaneHeadroom) -> dict[str, str]:
    """Returns the headers in OpenAI's format."""
    headers: dict[str, str] = {}
    for name, limit in (("requests", lane.requests), ("tokens", lane.tokens)):
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(limit.remaining)
            if limit.reset_s is not None:
                headers[f"x-ratelimit-reset-{name}"] = go_duration(limit.reset_s)
    return headers


def go_duration(seconds: float) -> str:
    """Formats a duration as Go does, rounded up to the millisecond: 12ms, 1.5s, 6m0s."""
    ms = math.ceil(round(seconds * 1000, 3))
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{hours}h{minutes}m{rest}" if hours else f"{minutes}m{rest}" if minutes else rest


def _read(lane_id: int) -> LaneHeadroom:
    with db.autocommit() as session:
        return headroom.read_headroom(session, lane_id)


_cache = HeaderCache(_read)
