"""The heartbeat of an API process: it reports in Postgres every two seconds while it is ready for callers (as /readyz says)."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import uuid4

from models.database import db
from models.jobs import api_processes
from models.platform.errors import Unavailable

log = logging.getLogger(__name__)

# How soon the end of the process is noticed.
LOOK_S = 0.2


class Heartbeat:
    """missing: what /readyz misses. A process that is not ready reports nothing, for load balancers send no caller to it."""

    def __init__(self, *, missing: Callable[[], Sequence[str]]) -> None:
        self._missing = missing
        self._name = f"{socket.gethostname()}-{uuid4().hex[:12]}"

    def run(self, is_up: Callable[[], bool]) -> None:
        """Reports until the process was asked to stop, then signs off. An error in one heartbeat never stops the next."""
        due = time.monotonic()
        while is_up():
            if time.monotonic() >= due:
                due = time.monotonic() + api_processes.HEARTBEAT_S
                self.step()
            time.sleep(LOOK_S)
        with suppress(Unavailable), db.autocommit() as session:
            api_processes.remove_process(session, self._name)

    def step(self) -> None:
        """One heartbeat, if the process is ready."""
        try:
            if not self._missing():
                with db.autocommit() as session:
                    api_processes.record_heartbeat(session, self._name)
        except Unavailable:
            pass  # the silence is what the sweep has to see
        except Exception as error:  # the border of this thread: whatever it was, the next heartbeat must come
            log.error("heartbeat failed", extra={"error": type(error).__name__})
