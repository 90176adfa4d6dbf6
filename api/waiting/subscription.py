"""A Redis pub/sub connection for job notifications. One thread may read from it while one other thread writes to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from uuid import UUID

import redis

from workers.channels import notify, token_stream

# A connection without any message for MAX_SILENCE_S, not even a pong, counts as broken.
PING_S = 3.0
MAX_SILENCE_S = 10.0
# Channels in one command.
BATCH_SIZE = 500


class Subscription:
    """An open connection, subscribed to the notifications of all jobs. All methods raise redis.RedisError; then it is broken."""

    def __init__(self) -> None:
        # Only the writing thread sends pings: the health checks of redis-py would be sent by the reading thread.
        self._pubsub = notify.connect(timeout_s=5, health_check_s=0).pubsub()  # type: ignore[no-untyped-call]
        self._streams: dict[bytes, UUID] = {}
        self._is_broken = threading.Event()
        self._received_at = self._pinged_at = time.monotonic()
        self._pubsub.subscribe(notify.JOBS_CHANNEL)

    def receive(self) -> tuple[UUID | None, bytes]:
        """The next message, within a second: the id of a job whose stream may have grown, or the bytes of a notification, or neither."""
        message = self._pubsub.get_message(timeout=1.0)
        now = time.monotonic()
        if message is not None:
            self._received_at = now
        if self._is_broken.is_set() or now - self._received_at > MAX_SILENCE_S:
            raise redis.ConnectionError("broken")
        if message is None or message["type"] not in ("message", "subscribe"):
            return None, b""
        if message["channel"] == notify.JOBS_CHANNEL.encode():
            return None, message["data"] if message["type"] == "message" else b""
        # Also on SUBSCRIBE's confirmation: messages before it were missed.
        return self._streams.get(message["channel"]), b""

    def update(self, wanted: Mapping[UUID, bool]) -> None:
        """Subscribes to the streams of these jobs, or unsubscribes. The writing thread calls it at least once every PING_S."""
        channels = {token_stream.channel(job_id).encode(): job_id for job_id in wanted}
        self._subscribe({name: job_id for name, job_id in channels.items() if wanted[job_id] and name not in self._streams})
        self._unsubscribe([name for name, job_id in channels.items() if not wanted[job_id] and name in self._streams])
        if time.monotonic() - self._pinged_at >= PING_S:
            self._pinged_at = time.monotonic()
            self._pubsub.ping()

    def mark_broken(self) -> None:
        """Makes the next `receive` raise."""
        self._is_broken.set()

    def close(self) -> None:
        """Closes the connection. The reading thread calls it when it has finished."""
        self._pubsub.close()

    def _subscribe(self, channels: Mapping[bytes, UUID]) -> None:
        self._streams.update(channels)
        for start in range(0, len(channels), BATCH_SIZE):
            self._pubsub.subscribe(*list(channels)[start : start + BATCH_SIZE])

    def _unsubscribe(self, channels: list[bytes]) -> None:
        for start in range(0, len(channels), BATCH_SIZE):
            self._pubsub.unsubscribe(*channels[start : start + BATCH_SIZE])
        for name in channels:
            del self._streams[name]
