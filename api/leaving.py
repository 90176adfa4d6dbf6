"""Readers on their way out: said to Postgres by one thread of this process, so that nobody who leaves waits for it."""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from uuid import UUID

from models import db, reader, view
from models.errors import Unavailable

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


class Leavers:
    """Those who left, in order. While Postgres is away they are kept; what comes while too many are kept is dropped."""

    def __init__(self) -> None:
        self._pending: queue.Queue[tuple[UUID, UUID]] = queue.Queue(PENDING_MOST)
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def add(self, job_id: UUID, who: UUID) -> None:
        """Written soon. Returns at once."""
        with self._lock:
            if self._writer is None:
                # Begun on first use: a thread does not survive the fork of gunicorn's workers.
                self._writer = threading.Thread(target=self._run, name="leaving", daemon=True)
                self._writer.start()
        try:
            self._pending.put_nowait((job_id, who))
        except queue.Full:
            log.warning("a reader left unseen: its job goes on", extra={"job": view.public_id(job_id)})

    def _run(self) -> None:
        while True:
            job_id, who = self._pending.get()
            while not write(job_id, who):
                time.sleep(PAUSE_S)


def leave(job_id: UUID, who: UUID | None) -> None:
    """This reader is gone; said soon, or never. Returns at once and never raises. None: the job has no reader."""
    if who is not None:
        _leavers.add(job_id, who)


def leave_now(job_id: UUID, who: UUID | None) -> None:
    """This reader is gone, on record before its client can come back; soon when Postgres is away. Never raises."""
    if who is not None and not write(job_id, who):
        leave(job_id, who)


def write(job_id: UUID, who: UUID) -> bool:
    """Whether there is nothing left to do: it is on record, or never will be. False while Postgres is away. Never raises."""
    try:
        with db.begin() as session:
            reader.leave(session, job_id, reader=who)
    except Unavailable:
        return False
    except Exception as error:  # the border of the writing thread: one bad leaver must not end it
        log.error("a reader's leaving could not be written", extra={"job": view.public_id(job_id), "error": type(error).__name__})
    return True


_leavers = Leavers()
