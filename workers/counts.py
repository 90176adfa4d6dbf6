"""The folder in which the processes of one program count together (prometheus_client's multiprocess mode)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

FOLDER = "PROMETHEUS_MULTIPROC_DIR"


def folder() -> Path:
    """A new, empty folder for the counts of this program's processes. `forget` takes it away."""
    return Path(tempfile.mkdtemp(prefix="nowserving-metrics-"))


def forget(counts: Path) -> None:
    """The folder is gone."""
    shutil.rmtree(counts, ignore_errors=True)
