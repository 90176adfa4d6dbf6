"""Ringing Celery: {job id, dispatch id} or {delivery id, ticket}; the task id is the id as callers see it, to be found in Flower."""

from __future__ import annotations

import logging
from typing import Protocol
from uuid import UUID

from kombu.exceptions import OperationalError

from models import ids
from models.delivery_log import PREFIX
from models.view import public_id
from workers.app import app
from workers.queues import NAME, QUEUE, WEBHOOK_NAME, WEBHOOKS

log = logging.getLogger(__name__)


class Ring(Protocol):
    """How a worker is called for what may go out now. False: it was not, and the next would not be either."""

    def ring(self, number: UUID, ticket: UUID, /, *, title: str | None = None) -> bool: ...


class CeleryRing:
    """Publishes over one connection. A lost doorbell is no loss: the sweep finds what nobody claimed."""

    def ring(self, job_id: UUID, dispatch_id: UUID, *, title: str | None = None) -> bool:
        """Whether the message is on its way; a lost one gets a log line, it never raises and never waits long.

        title: what Flower calls it.
        """
        return _send(NAME, job_id, dispatch_id, task_id=public_id(job_id), queue=QUEUE, title=title)


class WebhookRing:
    """The same for a delivery that is due."""

    def ring(self, delivery_id: UUID, ticket: UUID, *, title: str | None = None) -> bool:
        return _send(WEBHOOK_NAME, delivery_id, ticket, task_id=ids.show(PREFIX, delivery_id), queue=WEBHOOKS, title=title or "webhook")


def _send(name: str, number: UUID, ticket: UUID, *, task_id: str, queue: str, title: str | None) -> bool:
    try:
        app.send_task(name, args=(str(number), str(ticket)), task_id=task_id, queue=queue, ignore_result=True, shadow=title)
    except (OperationalError, OSError) as error:
        log.warning("doorbell lost", extra={"id": task_id, "error": type(error).__name__})
        return False
    return True
