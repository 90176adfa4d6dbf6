"""The one Celery task, and what a worker process starts and stops with."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any
from uuid import UUID

from celery.signals import setup_logging, worker_ready, worker_shutdown, worker_shutting_down

from models import logs
from models.errors import Unavailable
from models.settings import settings
from workers import registry, wake
from workers.app import NAME, app
from workers.leases import Leases, listen_for_cancels
from workers.limiter import Limiter
from workers.process import Processor

log = logging.getLogger(__name__)

EVENTS_EVERY_S = 0.25

limiter = Limiter(wake.client())
leases = Leases(limiter)
processor = Processor(limiter, leases)
_stop = threading.Event()


@app.task(name=NAME)  # type: ignore[untyped-decorator]  # celery ships no types
def run(job_id: str, dispatch_id: str) -> None:
    """Serve one doorbell; the Celery task id is the job id that callers see."""
    try:
        processor.serve(UUID(job_id), UUID(dispatch_id))
    except Exception:
        raise
    except BaseException as error:
        # Celery's thread pool never frees the slot of a task that ends with anything but an Exception.
        raise RuntimeError(f"a job ended with {type(error).__name__}") from error


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    logs.configure(settings().log_level)


@worker_ready.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    beat = registry.Beat(name=sender.hostname, slots=settings().worker_threads, leases=leases)
    for work in (lambda: beat.run(_stop), lambda: listen_for_cancels(leases, _stop), lambda: _tell_flower(sender)):
        threading.Thread(target=work, daemon=True).start()


def _tell_flower(consumer: Any) -> None:
    """Until the process stops: events go out together, a few times a second. Each for itself they take a fifth of our CPU."""
    consumer.on_send_event_buffered = lambda: None  # of the dispatchers that will be made after a reconnect
    consumer.event_dispatcher.on_send_buffered = None
    while not _stop.wait(EVENTS_EVERY_S):
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    # Signal handlers run in the main loop: only a flag here, the beat tells the pacer.
    registry.draining.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(sender: Any, **_: Any) -> None:
    _stop.set()
    try:
        registry.leave(sender.hostname)
    except Unavailable:
        log.warning("could not sign off: Postgres is away", extra={"pid": os.getpid()})
