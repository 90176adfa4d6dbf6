"""The heartbeat of a worker process: renews leases, reports free slots to the pacer, replays the spool."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from models.config.settings import settings
from models.database import db
from models.jobs import workers
from models.platform.errors import Unavailable
from workers.results import replay
from workers.runner.leases import Leases
from workers.upstream import body_budget

log = logging.getLogger(__name__)

# Set when this process has to stop: it finishes running jobs and takes no new ones.
draining = threading.Event()
# The interval at which changes (draining, a lost parent) are noticed.
POLL_S = 0.2
# The interval of retries after a failed heartbeat.
RETRY_S = 1.0


@dataclass
class WorkerHeartbeat:
    """name: of the worker process. slots: jobs that it can run at once."""

    name: str
    slots: int
    leases: Leases

    def run(self, stop: threading.Event) -> None:
        """Sends heartbeats until `stop`. A late one follows at once; a failed one does not stop the next."""
        due = time.monotonic()
        reported = self.slots
        while not stop.is_set():
            slots = 0 if draining.is_set() else self.slots
            if time.monotonic() >= due or slots != reported:
                began, reported = time.monotonic(), slots
                due = began + (settings().heartbeat_s if self._send(slots) else min(RETRY_S, settings().heartbeat_s))
            stop.wait(POLL_S)

    def _send(self, slots: int) -> bool:
        try:
            self.leases.renew()
            with db.begin() as session:
                workers.record_heartbeat(session, self.name, slots=slots, jobs=self.leases.jobs())
            replay.replay_spool()
            body_budget.trim_after_peak()
        except Unavailable:
            log.warning("heartbeat missed: Postgres is unavailable", extra={"worker": self.name})
            return False
        except Exception:
            # A border: the leases of running calls depend on the next heartbeat.
            log.exception("heartbeat failed", extra={"worker": self.name})
            return False
        return True


def sign_off(name: str) -> None:
    """Removes this process from the workers, so that the pacer no longer counts its slots."""
    with db.begin() as session:
        workers.remove_worker(session, name)
