"""Starts our programs as real processes in a tenth of the usual time, forked as in `nowserving up`. All die with the test run."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.platform.fork_client import Forker
from models.platform.preloads import PRELOADS

ROOT = Path(__file__).parents[3]


class PreforkServer:
    """The prefork server of a test run. Thread-safe once it was started in the main thread."""

    def __init__(self) -> None:
        self._forker = Forker.spawn(PRELOADS, env={**os.environ, "SPT_NOENV": "1"}, cwd=ROOT)

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> int:
        """Starts `python -m argv` with exactly this environment and this log file; returns its pid."""
        return self._forker.start(argv, env=env, log=log, dies=signal.SIGKILL).pid

    def stop(self) -> None:
        """Stops the server and all programs that it started."""
        self._forker.close()
