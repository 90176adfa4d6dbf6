"""Folders in which the processes of one program count together (PROMETHEUS_MULTIPROC_DIR): they go with their program.

Each is locked by its program. It is removed when the program ends, and after a SIGKILL when the next program starts on this machine.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

#: Where a process finds the folder of its program.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "nowserving-metrics-"
LOCK = ".lock"
# Open for the life of this process and of its children: the lock is theirs together.
_locks: list[int] = []


def make() -> Path:
    """A new, empty folder of this program; abandoned ones of others are removed."""
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{PREFIX}*"):
        _remove_abandoned(folder)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    _locks.append(lock)
    atexit.register(_remove_own, folder, os.getpid())
    return folder


def remove(folder: Path) -> None:
    """The folder is gone."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_own(folder: Path, pid: int) -> None:
    # Forked processes run this as well, and the folder is not theirs alone.
    if os.getpid() == pid:
        remove(folder)


def _remove_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return  # another program has just made it, or it is another user's
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
    except BlockingIOError:
        pass  # its program runs
    finally:
        os.close(lock)
