"""Worker processes report what they can take; the pacer never admits more than that."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from models import db, fleet
from models.errors import Unavailable
from models.settings import settings
from workers import ending
from workers.leases import Leases

log = logging.getLogger(__name__)

# Set when this process was told to stop: it finishes what runs and takes nothing new.
draining = threading.Event()
SPOOL_EVERY_S = 2.0


@dataclass
class Beat:
    """The pulse of one worker process: leases, slots, and answers that wait on disk for Postgres."""

    name: str
    slots: int
    leases: Leases

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Late beats are made up for at once; an error in one never stops the next."""
        due = time.monotonic()
        told = -1
        while not stop.is_set():
            slots = 0 if draining.is_set() else self.slots
            if time.monotonic() >= due or slots != told:
                due = time.monotonic() + settings().heartbeat_s
                told = self._pulse(slots)
            stop.wait(min(SPOOL_EVERY_S, 0.2 if draining.is_set() else SPOOL_EVERY_S))

    def _pulse(self, slots: int) -> int:
        try:
            self.leases.renew()
            with db.begin() as session:
                fleet.report(session, self.name, slots=slots)
            ending.replay()
        except Unavailable:
            log.warning("beat missed: Postgres is away", extra={"worker": self.name})
            return -1
        except Exception:
            # A border: whatever it was, the leases of the calls in flight hang on the next beat.
            log.exception("beat failed", extra={"worker": self.name})
            return -1
        return slots


def leave(name: str) -> None:
    """The pacer counts on this process no more."""
    with db.begin() as session:
        fleet.sign_off(session, name)
