"""The Celery task of the queue `jobs`, and the start-up and shutdown of its process."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any
from uuid import UUID

from celery.signals import setup_logging, worker_ready, worker_shutdown, worker_shutting_down

from models.config.settings import settings
from models.platform import allocator
from models.platform.errors import Unavailable
from models.telemetry import logs, tracing
from workers.broker import lifecycle
from workers.broker.celery_app import app
from workers.broker.consumer_watchdog import ConsumerWatchdog, QueueHead, exit_when_stalled
from workers.broker.queues import JOB_QUEUE, JOB_TASK
from workers.channels import notify
from workers.flower import worker_info
from workers.limiter.limiter import Limiter
from workers.runner import heartbeat
from workers.runner.leases import Leases, listen_for_cancels
from workers.runner.model_list_refresh import ModelListRefresher
from workers.runner.run_job import JobRunner

log = logging.getLogger(__name__)

limiter = Limiter(notify.client())
leases = Leases(limiter)
processor = JobRunner(limiter, leases)
worker_info.register(leases.jobs)
_stop = threading.Event()
watchdog = ConsumerWatchdog(QueueHead(notify.connect(), JOB_QUEUE), slots=settings().worker_threads, running=leases.__len__)


@app.task(name=JOB_TASK)  # type: ignore[untyped-decorator]  # celery ships no types
def run(job_id: str, dispatch_id: str) -> None:
    """Runs one dispatched job; the Celery task id is the public job id."""
    watchdog.message_received()
    try:
        processor.run(UUID(job_id), UUID(dispatch_id))
    except Exception:
        raise
    except BaseException as error:
        # Celery's thread pool never frees the slot of a task that ends with anything but an Exception.
        raise RuntimeError(f"a job ended with {type(error).__name__}") from error


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    allocator.return_large_blocks()
    logs.configure(settings().log_level)
    tracing.start("nowserving-worker")


@worker_ready.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    beats = heartbeat.WorkerHeartbeat(name=sender.hostname, slots=settings().worker_threads, leases=leases)
    for loop in (
        lambda: beats.run(_stop),
        lambda: listen_for_cancels(leases, _stop),
        lambda: ModelListRefresher().listen(_stop),
        lambda: lifecycle.flush_events(sender, _stop),
        lambda: lifecycle.end_with_parent(_stop, draining=heartbeat.draining),
        lambda: exit_when_stalled(watchdog, _stop, draining=heartbeat.draining, running=leases.__len__),
    ):
        threading.Thread(target=loop, daemon=True).start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    # Signal handlers run in the main loop: only set a flag here; the heartbeat reports it to the pacer.
    heartbeat.draining.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(sender: Any, **_: Any) -> None:
    _stop.set()
    try:
        heartbeat.sign_off(sender.hostname)
    except Unavailable:
        log.warning("worker not signed off: Postgres is away", extra={"pid": os.getpid()})
    tracing.stop()
