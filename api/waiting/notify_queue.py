"""Wake-ups on their way out, said by one thread of this process: a submit never waits for Redis, whatever has become of it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID

from workers.channels import notify

log = logging.getLogger(__name__)

# Who waits looks again by itself, so what does not fit in here may be lost.
PENDING_MOST = 1_000


class _Joined(NamedTuple):
    lane_id: int
    job_id: UUID


class Doorbell:
    """Rings in the order it was told to; drops what comes while too many wait. Jobs that joined one after the other are said at once."""

    def __init__(self) -> None:
        self._pending: queue.Queue[Callable[[], None] | _Joined] = queue.Queue(PENDING_MOST)
        self._lock = threading.Lock()
        self._ringer: threading.Thread | None = None

    def ring(self, say: Callable[[], None]) -> None:
        """Said soon, or never. Returns at once."""
        self._put(say)

    def joined(self, lane_id: int, job_id: UUID) -> None:
        """The pacer hears of it soon, or never. Returns at once."""
        self._put(_Joined(lane_id, job_id))

    def _put(self, one: Callable[[], None] | _Joined) -> None:
        with self._lock:
            if self._ringer is None:
                # Begun on first use: a thread does not survive the fork of gunicorn's workers.
                self._ringer = threading.Thread(target=self._run, name="doorbell", daemon=True)
                self._ringer.start()
        try:
            self._pending.put_nowait(one)
        except queue.Full:
            log.warning("wake-up dropped")

    def flush(self, *, within_s: float) -> None:
        """What was to be said has been, or that long was waited for it."""
        said = threading.Event()
        self.ring(said.set)
        said.wait(within_s)

    def _run(self) -> None:
        while True:
            waiting = [self._pending.get()]
            waiting += [self._pending.get_nowait() for _ in range(self._pending.qsize())]
            for say in _together(waiting):
                try:
                    say()
                except Exception as error:  # the border of this thread: one bad wake-up must not end it
                    log.error("wake-up failed", extra={"error": type(error).__name__})


def _together(waiting: Sequence[Callable[[], None] | _Joined]) -> Iterator[Callable[[], None]]:
    jobs: dict[int, list[UUID]] = {}
    for one in waiting:
        if isinstance(one, _Joined):
            jobs.setdefault(one.lane_id, []).append(one.job_id)
            continue
        if jobs:
            yield partial(notify.joined, jobs)
            jobs = {}
        yield one
    if jobs:
        yield partial(notify.joined, jobs)


_doorbell = Doorbell()


def joined(job_id: UUID, *, lane_id: int) -> None:
    """The pacer hears that somebody waits in this lane."""
    _doorbell.joined(lane_id, job_id)


def cancelled(job_id: UUID, *, lane_id: int, is_ended: bool) -> None:
    """Whoever waits for the job, its worker and the pacer hear of it."""
    _doorbell.ring(partial(notify.job, job_id, "cancelled" if is_ended else "cancelling"))
    if is_ended:
        _doorbell.ring(partial(notify.line, lane_id, cancelled=job_id))


def deliver(receivers: Sequence[str]) -> None:
    """The sender of webhooks hears that something is due for these (wake.receivers says who)."""
    _doorbell.ring(partial(notify.receivers, receivers))


def moved(lane_id: int) -> None:
    """The pacer looks at this lane: an operator changed something."""
    _doorbell.ring(partial(notify.line, lane_id))


def limits(lane_ids: Sequence[int], *, forget: bool = False) -> None:
    """The limiter hears that limits of these lanes were changed; forget: that it has to begin anew."""
    _doorbell.ring(partial(notify.limits, lane_ids, forget=forget))


def model_lists() -> None:
    """The workers refresh the lists of models that are wanted."""
    _doorbell.ring(notify.model_lists)


def flush(*, within_s: float = 3.0) -> None:
    """For a process that ends now: what was to be said has been."""
    _doorbell.flush(within_s=within_s)
