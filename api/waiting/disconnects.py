"""The disconnect writer: one thread records in Postgres which readers have disconnected, so that no request waits for the write.

When a client can find its job again (`comes_back`), the job goes on for NOWSERVING_ABANDONED_AFTER_S. Otherwise it is cancelled at once.
"""

from __future__ import annotations

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

# More than the connections of a process: all of them may break at once.
MAX_PENDING = 20_000
RETRY_PAUSE_S = 1.0


class ServerRestarting(Unavailable):
    """This server restarts. Send the same request again: its job goes on, and is found."""


class Disconnect(NamedTuple):
    """A reader that has disconnected. for_good: its client cannot find the job again."""

    job_id: UUID
    reader: UUID
    for_good: bool = False


class DisconnectQueue:
    """Pending disconnects, in order. The queue keeps them while Postgres is unavailable; a full queue drops new ones."""

    def __init__(self) -> None:
        self._pending: queue.Queue[Disconnect] = queue.Queue(MAX_PENDING)
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def add(self, disconnect: Disconnect) -> None:
        """Enqueues the disconnect and returns at once."""
        with self._lock:
            if self._writer is None:
                # Started on first use: a thread does not survive the fork of gunicorn's workers.
                self._writer = threading.Thread(target=self._run, name="disconnects", daemon=True)
                self._writer.start()
        try:
            self._pending.put_nowait(disconnect)
        except queue.Full:
            log.warning("disconnect dropped: the job goes on", extra={"job": wire.public_id(disconnect.job_id)})

    def _run(self) -> None:
        while True:
            disconnect = self._pending.get()
            while not try_write(disconnect):
                time.sleep(RETRY_PAUSE_S)


def record_later(job_id: UUID, reader: UUID | None, *, for_good: bool = False) -> None:
    """Enqueues a disconnect for the writer thread. Returns at once and never raises. reader None: the job has no reader.

    for_good: the client cannot find the job again, so the job is cancelled.
    """
    if reader is not None:
        _disconnects.add(Disconnect(job_id, reader, for_good))


def record_now(job_id: UUID, reader: UUID | None, *, for_good: bool = False) -> None:
    """Writes a disconnect before its client can reconnect; enqueues it when Postgres is unavailable. Never raises."""
    if reader is not None and not try_write(Disconnect(job_id, reader, for_good)):
        record_later(job_id, reader, for_good=for_good)


def try_write(disconnect: Disconnect) -> bool:
    """Whether the disconnect needs no other try. False while Postgres is unavailable. Never raises."""
    try:
        _write(disconnect)
    except Unavailable:
        return False
    except Exception as error:  # the border of the writing thread: one bad disconnect must not end it
        extra = {"job": wire.public_id(disconnect.job_id), "error": type(error).__name__}
        log.error("a disconnect could not be written", extra=extra)
    return True


def _write(disconnect: Disconnect) -> None:
    cancelled = None
    with db.begin() as session:
        if disconnect.for_good and settings().cancel_abandoned:
            cancelled = waiters.cancel_left(session, disconnect.job_id, reader=disconnect.reader)
        else:
            waiters.mark_left(session, disconnect.job_id, reader=disconnect.reader)
    if cancelled is not None:
        notify_queue.job_cancelled(cancelled.id, lane_id=cancelled.lane_id, is_ended=cancelled.status == Status.CANCELLED)
        extra = {
            "job": wire.public_id(cancelled.id), "lane": cancelled.lane_id, "key": cancelled.key_id, "status": cancelled.status,
        }  # fmt: skip
        log.info("job cancelled: its client disconnected", extra=extra)


_disconnects = DisconnectQueue()
