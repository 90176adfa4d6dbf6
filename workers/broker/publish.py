"""Publishes Celery messages: {job id, dispatch id} or {delivery id, ticket}. The task id is the public id, so that Flower finds it."""

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
    """Message of a job and its dispatch id, or of a delivery and its ticket. title: the task's name in Flower."""

    number: UUID
    ticket: UUID
    title: str | None = None


class Publisher(Protocol):
    """Sends messages to the workers. Returns False if some were not sent; then the next ones would fail too."""

    def publish(self, messages: Sequence[TaskMessage]) -> bool: ...


class JobPublisher:
    """Publishes jobs in one pipeline. A lost message is no lost job: the reaper recovers unclaimed admissions."""

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        """Returns whether the messages were sent. Logs lost ones, never raises and never blocks for long."""
        return _send(JOB_TASK, JOB_QUEUE, [(public_id(message.number), message) for message in messages])


class WebhookPublisher:
    """Publishes webhook deliveries in one pipeline; the webhook scheduler recovers unclaimed ones."""

    def publish(self, messages: Sequence[TaskMessage]) -> bool:
        """As JobPublisher.publish."""
        titled = [(ids.format_id(PREFIX, message.number), message._replace(title="webhook")) for message in messages]
        return _send(WEBHOOK_TASK, WEBHOOK_QUEUE, titled)


def _send(task: str, queue: str, messages: Sequence[tuple[str, TaskMessage]]) -> bool:
    if not messages:
        return True
    try:
        # One round trip for all: publishing is three quarters of the pacer's work (measured).
        with app.producer_or_acquire() as producer, producer.batch():
            for task_id, message in messages:
                args = (str(message.number), str(message.ticket))
                app.send_task(task, args=args, task_id=task_id, queue=queue, ignore_result=True, shadow=message.title, producer=producer)
    except (OperationalError, BatchPublishError, OSError, *app.connection_for_write().connection_errors) as error:
        log.warning("messages not published", extra={"ids": [task_id for task_id, _ in messages], "error": type(error).__name__})
        return False
    return True
