"""Atomic file writes: a file is complete or unchanged, also after a full disk or a power failure."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write(file: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Writes the content to disk. Raises OSError; the file then has its old content.

    Writes and fsyncs a temporary file in the same folder, renames it, then fsyncs the folder, which stores the name.
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
    """Fsyncs a folder, which stores the names of its files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
