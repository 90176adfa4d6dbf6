"""Callers that wait for a job: one Redis subscription a process tells them when to look again; without it they look every five seconds.

While somebody waits nothing is held but its own greenlet (or thread) and connection: no transaction, no Redis connection.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import redis

from models.errors import LineFull, Unavailable
from workers import wake

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 5.0
STREAMS_MOST = 400
STREAMS_OF_A_KEY_MOST = 100
# Of gunicorn's 1000 connections the rest is kept free for those who do not wait.
WAITERS_MOST = 900
RECONNECT_MOST_S = 5.0


class Hall:
    """Everybody in this process who waits for a job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._waiting = 0
        self._streams: Counter[int] = Counter()
        self._listener: threading.Thread | None = None
        self.is_closing = False

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._streams.total()

    @contextmanager
    def wait_for(self, job_id: UUID) -> Iterator[threading.Event]:
        """An event that is set whenever something happened to this job. Raises Unavailable when too many wait here."""
        woken, name = threading.Event(), str(job_id)
        with self._lock:
            if self._waiting >= WAITERS_MOST:
                raise Unavailable("Too many callers wait here. Ask again in a few seconds, without ?wait=.", retry_after_s=5)
            self._waiting += 1
            self._waiters[name].add(woken)
            self._listen()
        try:
            yield woken
        finally:
            with self._lock:
                self._waiting -= 1
                self._waiters[name].discard(woken)
                if not self._waiters[name]:
                    del self._waiters[name]

    def open_stream(self, key_id: int) -> None:
        """One more stream of this key; `close_stream` must follow. Raises Unavailable or LineFull when there are too many."""
        with self._lock:
            if self.is_closing or self.streams >= STREAMS_MOST:
                raise Unavailable("This server has as many streams open as it can bear. Try again in a few seconds.", retry_after_s=5)
            if self._streams[key_id] >= STREAMS_OF_A_KEY_MOST:
                raise LineFull(
                    f"This key has {STREAMS_OF_A_KEY_MOST} streams open, as many as it may.", code="too_many_streams", retry_after_s=10
                )
            self._streams[key_id] += 1

    def close_stream(self, key_id: int) -> None:
        """The stream is over."""
        with self._lock:
            self._streams[key_id] -= 1
            if self._streams[key_id] <= 0:
                del self._streams[key_id]

    def close(self) -> None:
        """The process ends: whoever waits is let go now, and comes back elsewhere."""
        self.is_closing = True
        with self._lock:
            for woken in [one for waiters in self._waiters.values() for one in waiters]:
                woken.set()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = threading.Thread(target=self._run, name="waiting", daemon=True)
            self._listener.start()

    def _run(self) -> None:
        pause_s = 0.1
        while not self.is_closing:
            began = time.monotonic()
            try:
                for message in wake.listen(wake.JOBS, until=lambda: self.is_closing):
                    self._tell(str(message.get("job")))
            except redis.RedisError as error:
                log.warning("wake-ups are lost until Redis is back", extra={"error": type(error).__name__})
            except Exception as error:  # the border of this thread: a strange message must not end it
                log.error("a wake-up could not be read", extra={"error": type(error).__name__})
            pause_s = 0.1 if time.monotonic() - began > RECONNECT_MOST_S else min(RECONNECT_MOST_S, pause_s * 2)
            time.sleep(pause_s)

    def _tell(self, name: str) -> None:
        with self._lock:
            for woken in self._waiters.get(name, ()):
                woken.set()


hall = Hall()
