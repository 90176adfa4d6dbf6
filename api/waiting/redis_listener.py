"""Redis pub/sub for the jobs that clients of this process wait for; also reads their token streams.

One thread receives messages. The other subscribes to channels and reads streams. Redis may be unavailable or lose its data: after each
reconnect the listener reads everything again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from uuid import UUID

import redis

from api.waiting.coalescing_queue import CoalescingQueue
from api.waiting.subscription import PING_S, Subscription
from api.waiting.waiter import Waiter
from api.waiting.waiters import Waiters
from workers.channels import notify, token_stream

log = logging.getLogger(__name__)

MIN_RECONNECT_S, MAX_RECONNECT_S = 0.1, 5.0
# Streams in one round trip: gevent runs other greenlets between two round trips.
BATCH_SIZE = 500


class RedisListener:
    """Pushes chunks to waiters. poll_soon: called with the jobs for which a notification came."""

    def __init__(self, waiters: Waiters, *, poll_soon: Callable[[Iterable[UUID]], None]) -> None:
        self._waiters, self._poll_soon = waiters, poll_soon
        self._changed: CoalescingQueue[UUID] = CoalescingQueue()
        self._subscription: Subscription | None = None
        self._is_closing = False

    def update_stream(self, job_id: UUID) -> None:
        """Requests a read of this job's stream, which may have grown or changed its readers. Returns at once."""
        self._changed.put([job_id])

    def close(self) -> None:
        """Makes `listen` and `run` return soon."""
        self._is_closing = True
        self._changed.put(())

    def listen(self) -> None:
        """Receives messages until `close` is called."""
        pause_s = MIN_RECONNECT_S
        while not self._is_closing:
            began = time.monotonic()
            try:
                self._receive()
            except redis.RedisError as error:
                log.warning("notifications are lost until Redis is available", extra={"error": type(error).__name__})
            except Exception as error:  # the border of this thread: a malformed message must not end it
                log.error("a notification could not be handled", extra={"error": type(error).__name__})
            pause_s = MIN_RECONNECT_S if time.monotonic() - began > MAX_RECONNECT_S else min(MAX_RECONNECT_S, pause_s * 2)
            if not self._is_closing:
                time.sleep(pause_s)

    def run(self) -> None:
        """Subscribes to channels and reads streams until `close` is called."""
        while not self._is_closing:
            changed = self._changed.take(PING_S)
            try:
                self._subscribe(changed)
                job_ids = [job_id for job_id in changed if self._readers(job_id)]
                for start in range(0, len(job_ids), BATCH_SIZE):
                    self._read_streams(job_ids[start : start + BATCH_SIZE])
            except redis.RedisError as error:
                log.warning("token streams stall until Redis is available", extra={"error": type(error).__name__})
                self._changed.put(changed)
                time.sleep(notify.TIMEOUT_S)
            except Exception as error:  # the border of this thread: one bad entry must not end it
                log.error("a token stream could not be read", extra={"error": type(error).__name__})

    def _receive(self) -> None:
        subscription = Subscription()
        try:
            self._subscription = subscription
            # Messages before the subscription were missed.
            job_ids = self._waiters.job_ids()
            self._poll_soon(job_ids)
            self._changed.put(job_ids)
            while not self._is_closing:
                changed, notification = subscription.receive()
                if changed is not None:
                    self._changed.put([changed])
                elif notification:
                    notify.handle_message(notify.JOBS_CHANNEL, notification, self._handle)
        finally:
            self._subscription = None
            subscription.close()

    def _handle(self, message: dict[str, str]) -> None:
        job_id = UUID(message["job"])
        waiters = self._waiters.of_job(job_id)
        # At the end of a job these waiters read its row themselves: a poll before that would be one more statement.
        own_pollers = [waiter for waiter in waiters if waiter.polls_itself] if message["event"] == "ended" else []
        for waiter in own_pollers:
            waiter.notify_end()
        if len(own_pollers) < len(waiters):
            self._poll_soon([job_id])

    def _subscribe(self, job_ids: Collection[UUID]) -> None:
        subscription = self._subscription
        if subscription is None:
            return
        try:
            subscription.update({job_id: any(waiter.wants_chunks for waiter in self._waiters.of_job(job_id)) for job_id in job_ids})
        except redis.RedisError:
            subscription.mark_broken()

    def _read_streams(self, job_ids: Iterable[UUID]) -> None:
        """Pushes the new chunks of these streams. Waiters that came at different times have read up to different entries."""
        positions = {job_id: {waiter.read_to for waiter in self._readers(job_id)} for job_id in job_ids}
        while after := {job_id: left.pop() for job_id, left in positions.items() if left}:
            for job_id, (read_to, chunks) in token_stream.read_after(after).items():
                for waiter in self._readers(job_id):
                    if waiter.read_to == after[job_id]:
                        waiter.push(chunks, read_to=read_to)

    def _readers(self, job_id: UUID) -> list[Waiter]:
        return [waiter for waiter in self._waiters.of_job(job_id) if waiter.wants_chunks and not waiter.is_full]
