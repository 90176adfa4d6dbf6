"""What each Celery process of ours does besides its tasks."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

log = logging.getLogger(__name__)

EVENTS_EVERY_S = 0.25
LOOK_S = 0.5


def flush_events(consumer: Any, stop: threading.Event) -> None:
    """Until `stop`: events go out together, a few times a second. Each for itself they take a fifth of our CPU."""
    consumer.on_send_event_buffered = lambda: None  # of the dispatchers that will be made after a reconnect
    consumer.event_dispatcher.on_send_buffered = None
    while not stop.wait(EVENTS_EVERY_S):
        if consumer.event_dispatcher:
            consumer.event_dispatcher.flush()


def end_with_parent(stop: threading.Event) -> None:
    """Until `stop`: when the process that started this one is gone, it finishes what runs and ends."""
    parent = os.getppid()
    while not stop.wait(LOOK_S):
        if os.getppid() != parent:
            log.error("the process that started this one is gone: finishing what runs, taking nothing new")
            os.kill(os.getpid(), signal.SIGTERM)
            return
