"""Replays the spool: commits spooled attempt records once Postgres is available again, and deletes their files."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from models.database import db
from models.platform.errors import Unavailable
from models.telemetry import metrics
from workers.results import finish, spool

log = logging.getLogger(__name__)

FIRST_DELAY_S, MAX_DELAY_S = 60.0, 3_600.0


class SpoolBackoff:
    """Exponential backoff of one process for each file that could not be stored, by file name. `now` is in monotonic seconds."""

    def __init__(self) -> None:
        #: When each file is retried, and its delay after one more failure.
        self._waiting: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def is_due(self, name: str, *, now: float) -> bool:
        """Whether the file may be tried now."""
        return name not in self._waiting or now >= self._waiting[name][0]

    def note_failure(self, name: str, *, now: float) -> float:
        """Delays the file; returns the seconds until it is retried."""
        delay_s = self._waiting[name][1] if name in self._waiting else FIRST_DELAY_S
        self._waiting[name] = (now + delay_s, min(MAX_DELAY_S, delay_s * 2))
        return delay_s

    def keep_only(self, names: set[str]) -> None:
        """Drops files that no longer exist: stored, or removed by the operator."""
        self._waiting = {name: times for name, times in self._waiting.items() if name in names}


_backoff = SpoolBackoff()


def replay_spool(*, now: float | None = None) -> int:
    """Commits spooled records; returns their number. Stops when Postgres is unavailable. now: monotonic seconds.

    A file that cannot be read or stored stays, and is retried with backoff; the others are not held up.
    """
    now = time.monotonic() if now is None else now
    stored = 0
    for file in spool.files():
        if not _backoff.is_due(file.name, now=now):
            continue
        try:
            stored += _replay(file)
        except Unavailable as error:
            if not _is_postgres_available():
                break
            _back_off(file, error, now=now)
        except Exception as error:
            # A border: one bad file must not hold up the others.
            _back_off(file, error, now=now)
    left = {file.name for file in spool.files()}
    _backoff.keep_only(left)
    metrics.spooled.labels("refused").set(len(_backoff))
    metrics.spooled.labels("waiting").set(len(left) - len(_backoff))
    return stored


def _replay(file: Path) -> bool:
    record = spool.load(file)
    if record is None:
        return False
    finish.commit(record)
    file.unlink(missing_ok=True)
    return True


def _back_off(file: Path, error: Exception, *, now: float) -> None:
    retry_in_s = _backoff.note_failure(file.name, now=now)
    # Without the error's message, which may quote the answer.
    fields = {"file": file.name, "error": type(error).__name__, "again_s": retry_in_s}
    log.error("a spooled answer cannot be stored; it stays on disk and is tried again later", extra=fields)


def _is_postgres_available() -> bool:
    try:
        db.ping()
    except Unavailable:
        return False
    return True
