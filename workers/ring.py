"""Ringing Celery: {job id, dispatch id}, the task id is the job id."""

from __future__ import annotations

import logging
from typing import Protocol
from uuid import UUID

from kombu.exceptions import OperationalError

from workers.app import QUEUE, app

log = logging.getLogger(__name__)

NAME = "nowserving.job"


class Ring(Protocol):
    """How an admitted job's worker is called."""

    def ring(self, job_id: UUID, dispatch_id: UUID) -> None: ...


class CeleryRing:
    """Publishes over one connection. A lost doorbell is no loss: the sweep finds what nobody claimed."""

    def __init__(self) -> None:
        self._producer = None

    def ring(self, job_id: UUID, dispatch_id: UUID) -> None:
        """The message is on its way, or lost with a log line; it never raises and never waits long."""
        try:
            app.send_task(NAME, args=(str(job_id), str(dispatch_id)), task_id=str(job_id), queue=QUEUE, ignore_result=True)
        except (OperationalError, OSError) as error:
            log.warning("doorbell lost", extra={"job_id": str(job_id), "error": type(error).__name__})
