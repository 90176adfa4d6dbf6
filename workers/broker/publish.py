"""Ringing Celery: {job id, dispatch id} or {delivery id, ticket}; the task id is the id as callers see it, to be found in Flower."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from kombu.exceptions import BatchPublishError, OperationalError

from models.platform import ids
from models.platform.wire import public_id
from models.webhooks.delivery_log import PREFIX
from workers.broker.celery_app import app
from workers.broker.queues import JOB_QUEUE, JOB_TASK, WEBHOOK_QUEUE, WEBHOOK_TASK

log = logging.getLogger(__name__)


class TaskMessage(NamedTuple):
    """Somebody to be rung for: a job and its dispatch id, or a delivery and its ticket. title: what Flower calls it."""

    number: UUID
    ticket: UUID
    title: str | None = None


class Publisher(Protocol):
    """How workers are called for what may go out now. False: some of it was not rung for, and the next would not be either."""

    def publish(self, messages: Sequence[TaskMessage]) -> bool: ...


class JobPublisher:
    """Publishes over one connection, all at once. A lost doorbell is no loss: the sweep finds what nobody claimed."""

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        """Whether the messages are on their way; lost ones get a log line, it never raises and never waits long."""
        return _send(JOB_TASK, JOB_QUEUE, [(public_id(one.number), one) for one in messages])


class WebhookPublisher:
    """The same for deliveries that are due."""

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        return _send(WEBHOOK_TASK, WEBHOOK_QUEUE, [(ids.format_id(PREFIX, one.number), one._replace(title="webhook")) for one in messages])


def _send(name: str, queue: str, calls: Sequence[tuple[str, TaskMessage]]) -> bool:
    if not calls:
        return True
    try:
        # One round trip for all: publishing is three quarters of the pacer's work (measured).
        with app.producer_or_acquire() as producer, producer.batch():
            for task_id, one in calls:
                said = (str(one.number), str(one.ticket))
                app.send_task(name, args=said, task_id=task_id, queue=queue, ignore_result=True, shadow=one.title, producer=producer)
    except (OperationalError, BatchPublishError, OSError, *app.connection_for_write().connection_errors) as error:
        log.warning("doorbells lost", extra={"ids": [task_id for task_id, _ in calls], "error": type(error).__name__})
        return False
    return True
