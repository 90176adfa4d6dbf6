"""Celery events that show every job in Flower from its submit on: `task-sent` when it is enqueued, `task-revoked` when cancelled.

Flower's page is a view: an event that is lost (Redis away, a flood of submits) is missing on the page and nowhere else.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from kombu.exceptions import OperationalError

from models.database import db
from models.jobs import task_names
from models.platform.errors import Unavailable
from models.platform.wire import parse_id, public_id
from workers.broker.celery_app import app
from workers.broker.queues import JOB_QUEUE, JOB_TASK

log = logging.getLogger(__name__)

# New events are dropped beyond this backlog: admitting jobs comes first.
MAX_BACKLOG = 2_000
# Events of this time are sent as one message: each message costs as much as half an admission.
BATCH_S = 0.1


class FlowerEvents:
    """Sends events from a thread of its own."""

    def __init__(self) -> None:
        self._backlog: queue.Queue[tuple[str, str]] = queue.Queue(MAX_BACKLOG)

    def job_enqueued(self, job_id: UUID) -> None:
        """Queues the event `task-sent`; drops it if the backlog is full."""
        self._put("task-sent", public_id(job_id))

    def job_cancelled(self, job_id: UUID) -> None:
        """Queues the event `task-revoked`; drops it if the backlog is full."""
        self._put("task-revoked", public_id(job_id))

    def run(self, stop: threading.Event) -> None:
        """Sends events until `stop`; reconnects after an outage of the broker."""
        while not stop.is_set():
            try:
                with (
                    app.connection_for_write() as connection,
                    app.events.Dispatcher(connection, hostname="line", buffer_group=["task"]) as dispatcher,
                ):
                    self._send_all(dispatcher, stop)
            except (OperationalError, OSError, *app.connection_for_write().connection_errors) as error:
                log.info("no events for Flower: the broker is away", extra={"error": type(error).__name__})
                stop.wait(1.0)

    def _put(self, event: str, job_id: str) -> None:
        try:
            self._backlog.put_nowait((event, job_id))
        except queue.Full:
            return

    def _send_all(self, dispatcher: Any, stop: threading.Event) -> None:
        while not stop.wait(BATCH_S):
            try:
                first = self._backlog.get(timeout=0.5)
            except queue.Empty:
                continue
            batch = [first, *(self._backlog.get_nowait() for _ in range(self._backlog.qsize()))]
            names = _task_names([job_id for event, job_id in batch if event == "task-sent"])
            for event, job_id in batch:
                dispatcher.send(event, **_fields(event, job_id, names.get(job_id, JOB_TASK)))
            dispatcher.flush()


def _task_names(job_ids: Sequence[str]) -> dict[str, str]:
    """Returns the names of these jobs; none without Postgres, and Flower then shows the name of the Celery task."""
    if not job_ids:
        return {}
    try:
        with db.begin() as session:
            names = task_names.names_by_job(session, [parse_id(job_id) for job_id in job_ids])
    except Unavailable:
        return {}
    return {public_id(job_id): name for job_id, name in names.items()}


def _fields(event: str, job_id: str, name: str) -> dict[str, object]:
    if event == "task-revoked":
        return {"uuid": job_id, "terminated": False, "signum": None, "expired": False}
    return {
        "uuid": job_id, "name": name, "args": f"('{job_id}',)", "kwargs": "{}", "retries": 0, "eta": None, "expires": None,
        "root_id": job_id, "parent_id": None, "queue": JOB_QUEUE, "exchange": "", "routing_key": JOB_QUEUE,
    }  # fmt: skip
