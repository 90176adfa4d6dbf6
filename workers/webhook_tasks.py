"""The Celery task of the queue `webhooks`, in a process of its own: a slow webhook server never takes a slot of a paid call."""

from __future__ import annotations

import logging
import threading
from typing import Any
from uuid import UUID

from celery.signals import setup_logging, worker_ready, worker_shutdown, worker_shutting_down

from models.config.settings import settings
from models.platform import allocator
from models.telemetry import logs, tracing
from models.webhooks import url_policy
from workers.broker import lifecycle
from workers.broker.celery_app import app
from workers.broker.queues import WEBHOOK_TASK
from workers.webhooks.sender import Sender

log = logging.getLogger(__name__)

_draining = threading.Event()
_stop = threading.Event()
sender = Sender(stop=_draining)
url_policy.current_policy()  # invalid settings stop the process here instead of failing each delivery


@app.task(name=WEBHOOK_TASK)  # type: ignore[untyped-decorator]  # celery ships no types
def run(delivery_id: str, ticket: str) -> None:
    """Sends one delivery; the Celery task id is the webhook-id that receivers see."""
    try:
        sender.serve(UUID(delivery_id), UUID(ticket))
    except Exception:
        raise
    except BaseException as error:
        # Celery's thread pool never frees the slot of a task that ends with anything but an Exception.
        raise RuntimeError(f"a delivery ended with {type(error).__name__}") from error


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    allocator.return_large_blocks()
    logs.configure(settings().log_level)
    tracing.start("nowserving-webhooks")


@worker_ready.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    for loop in (lambda: lifecycle.flush_events(sender, _stop), lambda: lifecycle.end_with_parent(_stop)):
        threading.Thread(target=loop, daemon=True).start()
    log.info("sending webhooks")


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    _draining.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(**_: Any) -> None:
    _stop.set()
    tracing.stop()
