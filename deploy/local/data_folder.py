"""The data folder of one stack: locked by one `up` at a time; it holds the encryption keys of stored secrets."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from models.config.settings import CONNECTION, KEY_BYTES, Settings
from models.platform import atomic_file

STOPPING_S = 15
RUNNING_WAIT_S = 1


class FolderInUse(Exception):
    """Another stack runs on this data folder. Stop it, or choose another folder with NOWSERVING_DATA_DIR."""


class Damaged(Exception):
    """A file of the data folder that cannot be recreated is empty. The message names the fix."""


def lock(folder: Path, *, stopping_s: float = STOPPING_S) -> int:
    """Creates and locks the folder; returns the descriptor. The lock lasts until every copy of the descriptor is closed.

    A killed stack holds it until its orphan reaper is done, which this waits for. It does not wait for a running stack.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode=0o600)
    began = time.monotonic()
    while not _try_lock(descriptor):
        pid = os.pread(descriptor, 20, 0).decode().strip()
        if time.monotonic() > began + (RUNNING_WAIT_S if _is_running(pid) else stopping_s):
            os.close(descriptor)
            raise FolderInUse(f"another stack (process {pid}) runs on {folder}: stop it, or choose another folder with NOWSERVING_DATA_DIR")
        time.sleep(0.05)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def secret_keys(folder: Path) -> str:
    """Returns NOWSERVING_SECRET_KEYS of this folder, created on first use with mode 600. Without the keys stored secrets are unreadable.

    Raises OSError when the file cannot be written, and Damaged when it is empty.
    """
    file = folder / "secret_keys"
    if not file.exists():
        atomic_file.write(file, base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
    keys = ",".join(file.read_text().split())
    if not keys:
        raise Damaged(
            f"{file} is empty: put your copy of it back. Only if no API key was stored yet (the disk was full at the first start): "
            f"remove the file, then start again"
        )
    return keys


def write_connection(folder: Path, settings: Settings) -> None:
    """Writes the connection file by which commands find this stack (models.config.settings.use_running_stack), with mode 600."""
    connection = {
        "database_url": settings.database_url, "redis_url": settings.redis_url, "port": settings.port,
        "secret_keys": ",".join(key.get_secret_value() for key in settings.secret_keys),
    }  # fmt: skip
    atomic_file.write(folder / CONNECTION, json.dumps(connection).encode())


def delete_connection(folder: Path) -> None:
    """Deletes the connection file."""
    (folder / CONNECTION).unlink(missing_ok=True)


def _try_lock(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_running(pid: str) -> bool:
    """Returns whether this process runs; a zombie does not."""
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ValueError, ProcessLookupError):
        return False
    except (PermissionError, FileNotFoundError):  # another user's process, or a system without /proc
        return True
