"""What is said over Redis of everything that is waited for in this process, and streams read for those who follow them.

One thread hears; the other says what to listen to, and fetches what has come. Redis may be away or forget everything: whatever was
missed is looked for again once it is back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from uuid import UUID

import redis

from api.waiting.coalescing_queue import Inbox
from api.waiting.subscription import PING_S, Subscription
from api.waiting.waiter import Seat, Seats
from workers.channels import notify, token_stream

log = logging.getLogger(__name__)

RECONNECT_MOST_S = 5.0
# Streams in one round trip: the process serves others between two.
AT_ONCE = 500


class Listener:
    """Feeds seats with their chunks. woken: called with the jobs of which something was said."""

    def __init__(self, seats: Seats, *, woken: Callable[[Iterable[UUID]], None]) -> None:
        self._seats, self._woken = seats, woken
        self._news: Inbox[UUID] = Inbox()
        self._subscription: Subscription | None = None
        self._is_closing = False

    def attend(self, job_id: UUID) -> None:
        """There may be more of this job's stream, or others who read it than before. Returns at once."""
        self._news.put([job_id])

    def close(self) -> None:
        """`listen` and `run` return soon."""
        self._is_closing = True
        self._news.put(())

    def listen(self) -> None:
        """Hears until closed."""
        pause_s = 0.1
        while not self._is_closing:
            began = time.monotonic()
            try:
                self._hear()
            except redis.RedisError as error:
                log.warning("wake-ups are lost until Redis is back", extra={"error": type(error).__name__})
            except Exception as error:  # the border of this thread: a strange message must not end it
                log.error("a wake-up could not be read", extra={"error": type(error).__name__})
            pause_s = 0.1 if time.monotonic() - began > RECONNECT_MOST_S else min(RECONNECT_MOST_S, pause_s * 2)
            if not self._is_closing:
                time.sleep(pause_s)

    def run(self) -> None:
        """Says what to listen to, and fetches, until closed."""
        while not self._is_closing:
            news = self._news.take(PING_S)
            try:
                self._subscribe(news)
                wanted = [job_id for job_id in news if self._readers(job_id)]
                for start in range(0, len(wanted), AT_ONCE):
                    self._fetch(wanted[start : start + AT_ONCE])
            except redis.RedisError as error:
                log.warning("streams stand still until Redis is back", extra={"error": type(error).__name__})
                self._news.put(news)
                time.sleep(notify.TIMEOUT_S)
            except Exception as error:  # the border of this thread: one bad entry must not end it
                log.error("a stream could not be read", extra={"error": type(error).__name__})

    def _hear(self) -> None:
        subscription = Subscription()
        try:
            self._subscription = subscription
            # What was said before was not heard.
            jobs = self._seats.jobs()
            self._woken(jobs)
            self._news.put(jobs)
            while not self._is_closing:
                grown, said = subscription.hear()
                if grown is not None:
                    self._news.put([grown])
                elif said:
                    notify.pass_on(notify.JOBS, said, self._heard)
        finally:
            self._subscription = None
            subscription.close()

    def _heard(self, said: dict[str, str]) -> None:
        job_id = UUID(said["job"])
        seats = self._seats.of(job_id)
        # Of what has ended those who are to be told look for the answer at once; to look whether it is there would be one look more.
        themselves = [seat for seat in seats if seat.looks_itself] if said["event"] == "ended" else []
        for seat in themselves:
            seat.say_ended()
        if len(themselves) < len(seats):
            self._woken([job_id])

    def _subscribe(self, job_ids: Collection[UUID]) -> None:
        subscription = self._subscription
        if subscription is None:
            return
        try:
            subscription.follow({one: any(seat.wants_chunks for seat in self._seats.of(one)) for one in job_ids})
        except redis.RedisError:
            subscription.break_off()

    def _fetch(self, job_ids: Iterable[UUID]) -> None:
        """What has come of these streams is at their seats. Those who sat down at different times are at different places."""
        places = {job_id: {seat.read_to for seat in self._readers(job_id)} for job_id in job_ids}
        while after := {job_id: left.pop() for job_id, left in places.items() if left}:
            for job_id, (read_to, came) in token_stream.read(after).items():
                for seat in self._readers(job_id):
                    if seat.read_to == after[job_id]:
                        seat.feed(came, read_to=read_to)

    def _readers(self, job_id: UUID) -> list[Seat]:
        return [seat for seat in self._seats.of(job_id) if seat.wants_chunks and not seat.is_full]
