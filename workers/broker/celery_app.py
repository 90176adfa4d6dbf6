"""Celery as a doorbell: it carries {job id, dispatch id} or {delivery id, ticket}, and nothing waits in it.

Every setting here was chosen for that.

No result backend, no late acks, no ETA, no countdown, no retry(): time, order and retries live in Postgres columns, and
messages that Redis loses are found by the sweep. docs/reliability.md says what happens to a job whose message is lost.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Queue  # type: ignore[attr-defined]  # kombu loads its names lazily

from models.config.setting_errors import settings_or_exit
from workers.broker import redis_transport
from workers.broker.queues import JOB_QUEUE, WEBHOOK_QUEUE


class IdOnlyCelery(Celery):  # type: ignore[misc]  # celery ships no types
    """Sends nothing that would wait in Redis. A signal could not refuse it: Celery logs what its handlers raise, and sends."""

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if any(options.get(delay) for delay in ("countdown", "eta", "expires", "retries")):
            raise RuntimeError("nothing waits in Celery: requeue the job with requeue.requeue_job()")
        return super().send_task(name, args, kwargs, **options)


redis_transport.register()
# Which tasks a process has, its --app says: workers.tasks or workers.webhook_tasks.
_url, _options = redis_transport.broker_address(settings_or_exit().redis_url)
app = IdOnlyCelery("nowserving", broker=_url)
app.conf.update(
    result_backend=None,
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    task_serializer="json",
    accept_content=["json"],
    event_serializer="json",
    # No acks (of the queue, below): with Redis they protect nothing, messages vanish on kill -9 either way, and two transactions for
    # each doorbell were a sixth of a worker's CPU.
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
    # Redis that is out of memory, or read-only for a moment, is no reason to end either.
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
    # A paid call in flight must finish even when the broker is gone.
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
