"""Readers on their way out: written to Postgres by one thread of this process, so that no request waits for it.

A reader whose client can find its job again (`comes_back`) leaves it for NOWSERVING_ABANDONED_AFTER_S; any other one cancels it at once.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from typing import NamedTuple
from uuid import UUID

from api.waiting import notify_queue
from models.config.settings import settings
from models.database import db
from models.jobs import waiters
from models.jobs.states import Status
from models.platform import wire
from models.platform.errors import Unavailable

log = logging.getLogger(__name__)

# More than a process has connections: all of them may break at once.
PENDING_MOST = 20_000
PAUSE_S = 1.0


class BrokenOff(ConnectionResetError):
    """Raised by the iterator of a response that has begun: its connection is closed without its end, so that its client sees that."""

    def __init__(self) -> None:
        # gunicorn takes it as a connection that the client reset: closed without another byte, and without a line in its log.
        super().__init__(errno.ECONNRESET, "broken off")


class Closing(Unavailable):
    """This server restarts. Send the same request again: its job goes on, and is found."""


class Leaver(NamedTuple):
    """A reader that is gone. for_good: its client cannot find the job again."""

    job_id: UUID
    reader: UUID
    for_good: bool = False


class Leavers:
    """Those who left, in order. While Postgres is away they are kept; what comes while too many are kept is dropped."""

    def __init__(self) -> None:
        self._pending: queue.Queue[Leaver] = queue.Queue(PENDING_MOST)
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def add(self, leaver: Leaver) -> None:
        """Written soon. Returns at once."""
        with self._lock:
            if self._writer is None:
                # Begun on first use: a thread does not survive the fork of gunicorn's workers.
                self._writer = threading.Thread(target=self._run, name="leaving", daemon=True)
                self._writer.start()
        try:
            self._pending.put_nowait(leaver)
        except queue.Full:
            log.warning("a reader left unseen: its job goes on", extra={"job": wire.public_id(leaver.job_id)})

    def _run(self) -> None:
        while True:
            leaver = self._pending.get()
            while not write(leaver):
                time.sleep(PAUSE_S)


def leave(job_id: UUID, who: UUID | None, *, for_good: bool = False) -> None:
    """This reader is gone; written soon, or never. Returns at once and never raises. None: the job has no reader.

    for_good: its client cannot find the job again, so the job is cancelled.
    """
    if who is not None:
        _leavers.add(Leaver(job_id, who, for_good))


def leave_now(job_id: UUID, who: UUID | None, *, for_good: bool = False) -> None:
    """This reader is gone, on record before its client can be back; soon when Postgres is away. Never raises."""
    if who is not None and not write(Leaver(job_id, who, for_good)):
        leave(job_id, who, for_good=for_good)


def write(leaver: Leaver) -> bool:
    """Whether there is nothing left to do: it is on record, or never will be. False while Postgres is away. Never raises."""
    try:
        _write(leaver)
    except Unavailable:
        return False
    except Exception as error:  # the border of the writing thread: one bad leaver must not end it
        log.error("a reader's leaving could not be written", extra={"job": wire.public_id(leaver.job_id), "error": type(error).__name__})
    return True


def _write(leaver: Leaver) -> None:
    done = None
    with db.begin() as session:
        if leaver.for_good and settings().cancel_abandoned:
            done = waiters.leave_for_good(session, leaver.job_id, reader=leaver.reader)
        else:
            waiters.leave(session, leaver.job_id, reader=leaver.reader)
    if done is not None:
        notify_queue.cancelled(done.id, lane_id=done.lane_id, is_ended=done.status == Status.CANCELLED)
        about = {"job": wire.public_id(done.id), "lane": done.lane_id, "key": done.key_id, "status": done.status}
        log.info("cancelled: its caller hung up", extra=about)


_leavers = Leavers()
