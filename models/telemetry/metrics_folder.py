"""Folders through which the processes of one program share their metrics (PROMETHEUS_MULTIPROC_DIR).

The program holds a file lock on its folder and removes the folder when it ends. After a SIGKILL, the next program that starts on this
machine removes it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

# The environment variable that names the folder of the program.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
PREFIX = "nowserving-metrics-"
LOCK = ".lock"
# Open for the life of this process and of its children, which share the lock.
_locks: list[int] = []


def create() -> Path:
    """Creates an empty folder for this program, and removes folders whose program is gone."""
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
    """Removes the folder."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_own(folder: Path, pid: int) -> None:
    # Forked processes run this handler too, and must not remove the folder of their parent.
    if os.getpid() == pid:
        remove(folder)


def _remove_abandoned(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return  # the folder is only just being created, or belongs to another user
    try:
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
    except BlockingIOError:
        pass  # its program still runs
    finally:
        os.close(lock)
