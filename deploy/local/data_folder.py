"""The data folder of one stack: in use by one `up` at a time, and home of the keys that encrypt what is stored."""

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

LEAVING_S = 15
DYING_S = 1


class FolderInUse(Exception):
    """Another stack runs on this data folder. Stop it, or choose another folder with NOWSERVING_DATA_DIR."""


class Damaged(Exception):
    """A file of the data folder that cannot be made again is empty. The message says what to do."""


def lock(folder: Path, *, leaving_s: float = LEAVING_S) -> int:
    """A descriptor that means: this folder is ours until the descriptor is closed everywhere. Makes the folder, for us alone.

    A stack that was killed holds it until its guardian has ended what it left: that is waited for. A living one is not.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode=0o600)
    began = time.monotonic()
    while not _is_ours(descriptor):
        pid = os.pread(descriptor, 20, 0).decode().strip()
        if time.monotonic() > began + (DYING_S if _lives(pid) else leaving_s):
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
    """The value of NOWSERVING_SECRET_KEYS kept in this folder; made on first use, mode 600. Lost keys make stored secrets unreadable.

    Raises OSError when it cannot be written, and Damaged when it is there and empty.
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


def tell_connection(folder: Path, settings: Settings) -> None:
    """Commands beside this stack find its servers (models.config.settings.use_running_stack). For its owner alone: mode 600."""
    told = {
        "database_url": settings.database_url, "redis_url": settings.redis_url, "port": settings.port,
        "secret_keys": ",".join(one.get_secret_value() for one in settings.secret_keys),
    }  # fmt: skip
    atomic_file.write(folder / CONNECTION, json.dumps(told).encode())


def forget_connection(folder: Path) -> None:
    """No command finds a stack here any more."""
    (folder / CONNECTION).unlink(missing_ok=True)


def _is_ours(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _lives(pid: str) -> bool:
    """Whether this process runs; one that has ended and that nobody has collected does not."""
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ValueError, ProcessLookupError):
        return False
    except (PermissionError, FileNotFoundError):  # somebody else's; or a system without /proc
        return True
