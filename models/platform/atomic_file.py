"""Files that are there as a whole or not at all, also after a full disk or a power cut."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write(file: Path, content: bytes, *, mode: int = 0o600) -> None:
    """The file has this content, on disk. Raises OSError; then what was there before is there still, and nothing of this.

    A temporary file beside it is written and fsynced, then renamed; last the folder is fsynced, which is where the name is stored.
    """
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(descriptor)
        unfinished.rename(file)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """The names in this folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
