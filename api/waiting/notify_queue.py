"""The queue of outbound Redis notifications: one thread of this process publishes them, so that a submit never waits for Redis."""

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

# Every subscriber also polls, so the queue may drop notifications when it is full.
MAX_PENDING = 1_000


class _Enqueued(NamedTuple):
    lane_id: int
    job_id: UUID


class NotifyQueue:
    """Publishes notifications in the order of `put`; drops new ones when it is full. Consecutive enqueued jobs share one message."""

    def __init__(self) -> None:
        self._pending: queue.Queue[Callable[[], None] | _Enqueued] = queue.Queue(MAX_PENDING)
        self._lock = threading.Lock()
        self._publisher: threading.Thread | None = None

    def put(self, notification: Callable[[], None] | _Enqueued) -> None:
        """Enqueues a notification and returns at once. A callable publishes it."""
        with self._lock:
            if self._publisher is None:
                # Started on first use: a thread does not survive the fork of gunicorn's workers.
                self._publisher = threading.Thread(target=self._run, name="notify", daemon=True)
                self._publisher.start()
        try:
            self._pending.put_nowait(notification)
        except queue.Full:
            log.warning("notification dropped")

    def put_enqueued(self, lane_id: int, job_id: UUID) -> None:
        """Enqueues the notification of an enqueued job and returns at once."""
        self.put(_Enqueued(lane_id, job_id))

    def flush(self, *, within_s: float) -> None:
        """Waits until all pending notifications are published, at most this long."""
        flushed = threading.Event()
        self.put(flushed.set)
        flushed.wait(within_s)

    def _run(self) -> None:
        while True:
            pending = [self._pending.get()]
            pending += [self._pending.get_nowait() for _ in range(self._pending.qsize())]
            for publish in _coalesce(pending):
                try:
                    publish()
                except Exception as error:  # the border of this thread: one bad notification must not end it
                    log.error("notification failed", extra={"error": type(error).__name__})


def _coalesce(pending: Sequence[Callable[[], None] | _Enqueued]) -> Iterator[Callable[[], None]]:
    jobs: dict[int, list[UUID]] = {}
    for item in pending:
        if isinstance(item, _Enqueued):
            jobs.setdefault(item.lane_id, []).append(item.job_id)
            continue
        if jobs:
            yield partial(notify.jobs_enqueued, jobs)
            jobs = {}
        yield item
    if jobs:
        yield partial(notify.jobs_enqueued, jobs)


_queue = NotifyQueue()


def job_enqueued(job_id: UUID, *, lane_id: int) -> None:
    """Notifies the pacer of a new job in this lane."""
    _queue.put_enqueued(lane_id, job_id)


def job_cancelled(job_id: UUID, *, lane_id: int, is_ended: bool) -> None:
    """Notifies the job's waiters, its worker and the pacer."""
    _queue.put(partial(notify.job_changed, job_id, "cancelled" if is_ended else "cancelling"))
    if is_ended:
        _queue.put(partial(notify.lane_changed, lane_id, cancelled=job_id))


def deliveries_due(receivers: Sequence[str]) -> None:
    """Notifies the webhook scheduler that deliveries to these receivers are due."""
    _queue.put(partial(notify.deliveries_due, receivers))


def lane_changed(lane_id: int) -> None:
    """Notifies the pacer that an operator changed this lane."""
    _queue.put(partial(notify.lane_changed, lane_id))


def limits_changed(lane_ids: Sequence[int], *, forget: bool = False) -> None:
    """Notifies the limiter that limits of these lanes changed. forget: the limiter discards the state of these lanes."""
    _queue.put(partial(notify.limits_changed, lane_ids, forget=forget))


def refresh_model_lists() -> None:
    """Notifies the workers to refresh the requested lists of models."""
    _queue.put(notify.refresh_model_lists)


def flush(*, within_s: float = 3.0) -> None:
    """Publishes all pending notifications before the process ends."""
    _queue.flush(within_s=within_s)
