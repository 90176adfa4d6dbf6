"""Worker processes report what they can take; the pacer never admits more than that."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import dataclass

from models.config.settings import settings
from models.database import db
from models.jobs import workers
from models.platform.errors import Unavailable
from workers.runner import finish
from workers.runner.leases import Leases
from workers.upstream import body_budget

log = logging.getLogger(__name__)

# Set when this process was told to stop: it finishes what runs and takes nothing new.
draining = threading.Event()
# How soon a change (told to stop, Postgres back) is noticed, and how often a beat that failed is tried again.
LOOK_S = 0.2
AGAIN_S = 1.0


@dataclass
class WorkerHeartbeat:
    """The pulse of one worker process: leases, slots, and answers that wait on disk for Postgres."""

    name: str
    slots: int
    leases: Leases

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Late beats are made up for at once; an error in one never stops the next."""
        due = time.monotonic()
        told = self.slots
        parent = os.getppid()
        while not stop.is_set():
            if os.getppid() != parent and not draining.is_set():
                log.error("the process that started this one is gone: finishing what runs, taking nothing new")
                os.kill(os.getpid(), signal.SIGTERM)
                draining.set()
            slots = 0 if draining.is_set() else self.slots
            if time.monotonic() >= due or slots != told:
                began, told = time.monotonic(), slots
                due = began + (settings().heartbeat_s if self._pulse(slots) else min(AGAIN_S, settings().heartbeat_s))
            stop.wait(LOOK_S)

    def _pulse(self, slots: int) -> bool:
        try:
            self.leases.renew()
            with db.begin() as session:
                workers.record_heartbeat(session, self.name, slots=slots, jobs=self.leases.jobs())
            finish.replay()
            body_budget.trim_after_peak()
        except Unavailable:
            log.warning("beat missed: Postgres is away", extra={"worker": self.name})
            return False
        except Exception:
            # A border: whatever it was, the leases of the calls in flight hang on the next beat.
            log.exception("beat failed", extra={"worker": self.name})
            return False
        return True


def sign_off(name: str) -> None:
    """The pacer counts on this process no more."""
    with db.begin() as session:
        workers.remove_worker(session, name)
