"""Background threads of a Celery process: flushing its events, and shutting down when its parent process is gone."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 0.25
POLL_S = 0.2


def flush_events(consumer: Any, stop: threading.Event) -> None:
    """Sends Celery's events in batches, a few times a second, until `stop`. One by one they take a fifth of a worker's CPU."""
    consumer.on_send_event_buffered = lambda: None  # for the dispatchers that Celery creates after a reconnect
    consumer.event_dispatcher.on_send_buffered = None
    while not stop.wait(FLUSH_INTERVAL_S):
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()


def end_with_parent(stop: threading.Event, *, draining: threading.Event | None = None) -> None:
    """Watches the parent process until `stop`. When it is gone, sets `draining` and sends SIGTERM to this process.

    SIGTERM lets running tasks finish and takes no new ones.
    """
    parent = os.getppid()
    while not stop.wait(POLL_S):
        if os.getppid() != parent:
            if draining is not None and draining.is_set():
                return
            log.error("the parent process is gone: this process finishes its tasks and ends")
            os.kill(os.getpid(), signal.SIGTERM)
            if draining is not None:
                draining.set()
            return
