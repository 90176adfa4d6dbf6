"""Ringing Celery: {job id, dispatch id}; the task id is the job id as callers see it, so that operators find it in Flower."""

from __future__ import annotations

import logging
from typing import Protocol
from uuid import UUID

from kombu.exceptions import OperationalError

from models.view import public_id
from workers.app import NAME, QUEUE, app

log = logging.getLogger(__name__)


class Ring(Protocol):
    """How an admitted job's worker is called. False: it was not, and the next would not be either."""

    def ring(self, job_id: UUID, dispatch_id: UUID) -> bool: ...


class CeleryRing:
    """Publishes over one connection. A lost doorbell is no loss: the sweep finds what nobody claimed."""

    def ring(self, job_id: UUID, dispatch_id: UUID) -> bool:
        """Whether the message is on its way; a lost one gets a log line, it never raises and never waits long."""
        try:
            app.send_task(NAME, args=(str(job_id), str(dispatch_id)), task_id=public_id(job_id), queue=QUEUE, ignore_result=True)
        except (OperationalError, OSError) as error:
            log.warning("doorbell lost", extra={"job_id": str(job_id), "error": type(error).__name__})
            return False
        return True
