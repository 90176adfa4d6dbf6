"""Flower sees a job from the moment it stands in line: a `task-sent` event when it was submitted, `task-revoked` when cancelled.

A view, not a truth: what is lost here (Redis away, a flood of submits) is only missing on Flower's page.
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

# Beyond this many unsent announcements new ones are dropped: the line comes first.
MAX_BACKLOG = 2_000
# What comes within this time goes out as one message: each costs as much as half an admission.
BATCH_S = 0.1


class FlowerEvents:
    """Sends events from a thread of its own."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[str, str]] = queue.Queue(MAX_BACKLOG)

    def job_enqueued(self, job_id: UUID) -> None:
        self._put("task-sent", public_id(job_id))

    def job_cancelled(self, job_id: UUID) -> None:
        self._put("task-revoked", public_id(job_id))

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; reconnects by itself."""
        while not stop.is_set():
            try:
                with (
                    app.connection_for_write() as connection,
                    app.events.Dispatcher(connection, hostname="line", buffer_group=["task"]) as dispatcher,
                ):
                    self._send_all(dispatcher, stop)
            except (OperationalError, OSError, *app.connection_for_write().connection_errors) as error:
                log.info("Flower is not told: broker away", extra={"error": type(error).__name__})
                stop.wait(1.0)

    def _put(self, event: str, job_id: str) -> None:
        try:
            self._waiting.put_nowait((event, job_id))
        except queue.Full:
            return

    def _send_all(self, dispatcher: Any, stop: threading.Event) -> None:
        while not stop.wait(BATCH_S):
            try:
                first = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            more = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
            titles = _titles([job_id for event, job_id in [first, *more] if event == "task-sent"])
            for event, job_id in [first, *more]:
                dispatcher.send(event, **_fields(event, job_id, titles.get(job_id, JOB_TASK)))
            dispatcher.flush()


def _titles(job_ids: Sequence[str]) -> dict[str, str]:
    """What these jobs are called; without Postgres nothing, and Flower shows the task's name."""
    if not job_ids:
        return {}
    try:
        with db.begin() as session:
            return {
                public_id(number): said for number, said in task_names.names_by_job(session, [parse_id(one) for one in job_ids]).items()
            }
    except Unavailable:
        return {}


def _fields(event: str, job_id: str, name: str) -> dict[str, object]:
    if event == "task-revoked":
        return {"uuid": job_id, "terminated": False, "signum": None, "expired": False}
    return {
        "uuid": job_id, "name": name, "args": f"('{job_id}',)", "kwargs": "{}", "retries": 0, "eta": None, "expires": None,
        "root_id": job_id, "parent_id": None, "queue": JOB_QUEUE, "exchange": "", "routing_key": JOB_QUEUE,
    }  # fmt: skip
