"""The heartbeat of an API process: a row in Postgres that it updates every two seconds while /readyz reports it as ready."""

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

# How often the loop checks whether the process ends.
POLL_INTERVAL_S = 0.2


class Heartbeat:
    """missing: returns what /readyz reports as missing. An unready process sends no heartbeat: load balancers send no caller to it."""

    def __init__(self, *, missing: Callable[[], Sequence[str]]) -> None:
        self._missing = missing
        self._name = f"{socket.gethostname()}-{uuid4().hex[:12]}"

    def run(self, is_up: Callable[[], bool]) -> None:
        """Sends heartbeats until the process stops, then signs off. An error in one heartbeat never stops the next."""
        due_at = time.monotonic()
        while is_up():
            if time.monotonic() >= due_at:
                due_at = time.monotonic() + api_processes.HEARTBEAT_S
                self.step()
            time.sleep(POLL_INTERVAL_S)
        with suppress(Unavailable), db.autocommit() as session:
            api_processes.remove_process(session, self._name)

    def step(self) -> None:
        """One heartbeat, if the process is ready."""
        try:
            if not self._missing():
                with db.autocommit() as session:
                    api_processes.record_heartbeat(session, self._name)
        except Unavailable:
            pass  # the reaper sees the missing heartbeat
        except Exception as error:  # the border of this thread: the next heartbeat must follow after any error
            log.error("heartbeat failed", extra={"error": type(error).__name__})
