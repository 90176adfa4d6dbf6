"""The Celery app. A message carries {job id, dispatch id} or {delivery id, ticket} and no state.

There is no result backend, no late ack, no ETA, no countdown and no retry(): time, order and retries are Postgres columns, and the
reaper recovers jobs whose messages Redis lost. docs/reliability.md says what happens to a job whose message is lost.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Queue  # type: ignore[attr-defined]  # kombu loads its names lazily

from models.config.setting_errors import settings_or_exit
from workers.broker import redis_transport
from workers.broker.queues import JOB_QUEUE, WEBHOOK_QUEUE


class IdOnlyCelery(Celery):  # type: ignore[misc]  # celery ships no types
    """Refuses tasks with a delay, which would wait in Redis. A signal handler cannot refuse them: Celery logs its errors and sends."""

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if any(options.get(delay) for delay in ("countdown", "eta", "expires", "retries")):
            raise RuntimeError("Celery messages have no delay: requeue the job in Postgres instead (models/jobs/requeue.py)")
        return super().send_task(name, args, kwargs, **options)


redis_transport.register()
# The module that a process imports defines its task: workers.tasks or workers.webhook_tasks.
_url, _options = redis_transport.broker_address(settings_or_exit().redis_url)
app = IdOnlyCelery("nowserving", broker=_url)
app.conf.update(
    result_backend=None,
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    task_serializer="json",
    accept_content=["json"],
    event_serializer="json",
    # No acks (see task_queues): with Redis they protect nothing, because kill -9 loses messages either way, and their two transactions
    # per message took a sixth of a worker's CPU.
    task_acks_late=False,
    task_reject_on_worker_lost=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    task_queues=[Queue(name, no_ack=True) for name in (JOB_QUEUE, WEBHOOK_QUEUE)],  # type: ignore[no-untyped-call]
    task_default_queue=JOB_QUEUE,
    task_create_missing_queues=False,
    task_publish_retry=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # A worker survives a Redis that is out of memory or read-only for a moment.
    broker_channel_error_retry=True,
    broker_connection_timeout=2,
    broker_pool_limit=10,
    broker_transport_options={
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "max_connections": 100,
        **_options,
    },
    # A paid call in flight must finish even if the broker is gone.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_send_task_events=True,
    task_send_sent_event=False,
    event_queue_ttl=5,
    event_queue_expires=60,
    control_queue_ttl=60,
    control_queue_expires=60,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)
