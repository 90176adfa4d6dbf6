"""A connection to Redis on which it is heard what is said of jobs. One thread may read from it while another writes, and no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from uuid import UUID

import redis

from workers.channels import notify, token_stream

# One that says nothing for so long, not even an answer to a ping, is dead.
PING_S = 3.0
SILENT_MOST_S = 10.0
# Channels in one command.
AT_ONCE = 500


class Subscription:
    """Open, and told of every job's wake-ups. Raises redis.RedisError, as all of its methods do: then it is of no more use."""

    def __init__(self) -> None:
        # Nothing but what the writing thread sends: redis-py's own checks would be sent by the one that reads.
        self._subscription = notify.connect(timeout_s=5, health_check_s=0).pubsub()  # type: ignore[no-untyped-call]
        self._followed: dict[bytes, UUID] = {}
        self._is_broken = threading.Event()
        self._heard_at = self._pinged_at = time.monotonic()
        self._subscription.subscribe(notify.JOBS)

    def hear(self) -> tuple[UUID | None, bytes]:
        """What is said next, within a second. A job's id: there may be more of its stream. Bytes: a wake-up. Neither: nothing."""
        message = self._subscription.get_message(timeout=1.0)
        now = time.monotonic()
        if message is not None:
            self._heard_at = now
        if self._is_broken.is_set() or now - self._heard_at > SILENT_MOST_S:
            raise redis.ConnectionError("broken")
        if message is None or message["type"] not in ("message", "subscribe"):
            return None, b""
        if message["channel"] == notify.JOBS.encode():
            return None, message["data"] if message["type"] == "message" else b""
        # Also when the subscription has come to hold: what came before that was not heard.
        return self._followed.get(message["channel"]), b""

    def follow(self, wanted: Mapping[UUID, bool]) -> None:
        """Of these jobs' streams is heard from now on, or no more. For the writing thread, once every PING_S at least."""
        channels = {token_stream.channel(job_id).encode(): job_id for job_id in wanted}
        self._keep({name: job_id for name, job_id in channels.items() if wanted[job_id] and name not in self._followed})
        self._drop([name for name, job_id in channels.items() if not wanted[job_id] and name in self._followed])
        if time.monotonic() - self._pinged_at >= PING_S:
            self._pinged_at = time.monotonic()
            self._subscription.ping()

    def break_off(self) -> None:
        """It is of no more use; whoever hears, hears so."""
        self._is_broken.set()

    def close(self) -> None:
        """For the reading thread, when it has done."""
        self._subscription.close()

    def _keep(self, new: Mapping[bytes, UUID]) -> None:
        self._followed.update(new)
        for start in range(0, len(new), AT_ONCE):
            self._subscription.subscribe(*list(new)[start : start + AT_ONCE])

    def _drop(self, old: list[bytes]) -> None:
        for start in range(0, len(old), AT_ONCE):
            self._subscription.unsubscribe(*old[start : start + AT_ONCE])
        for name in old:
            del self._followed[name]
