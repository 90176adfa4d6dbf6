"""The log file of a service: private, appended to by the service, rotated by the supervisor."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

MAX_LOG_BYTES = 10 * 1024 * 1024


def open_append(log_file: Path) -> IO[bytes]:
    """Opens the log for appending; creates it with mode 600."""
    return open(log_file, "ab", opener=lambda path, flags: os.open(path, flags, mode=0o600))


def rotate(log_file: Path) -> bool:
    """Copies a log above MAX_LOG_BYTES to .log.1 and truncates it while the service writes; returns whether it did.

    A line written at that moment may be lost.
    """
    with suppress(OSError):
        if log_file.stat().st_size > MAX_LOG_BYTES:
            rotated = log_file.with_suffix(".log.1")
            rotated.touch(mode=0o600)
            shutil.copyfile(log_file, rotated)
            # The service appends, so it continues at the beginning.
            os.truncate(log_file, 0)
            return True
    return False
