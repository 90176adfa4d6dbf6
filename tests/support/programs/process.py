"""One of our programs as a real process: signals, logs, and waiting for a condition."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.local.server_process import last_lines

PATIENCE_S = 40.0


def until(is_so: Callable[[], Any], *, what: str, within_s: float = PATIENCE_S, every_s: float = 0.03) -> Any:
    """Polls `is_so`; returns its first true result. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not (found := is_so()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not {what} after {within_s} s")
        time.sleep(every_s)
    return found


@dataclass
class Process:
    """One of our programs. `kill`, `freeze` and `go_on` act on it and on the processes it started."""

    name: str
    pid: int
    log: Path

    def is_alive(self) -> bool:
        return self._state() not in ("", "Z")

    def is_frozen(self) -> bool:
        return self._state() == "T"

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.wait_gone()

    def ask_to_stop(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def stop(self) -> None:
        self.ask_to_stop()
        self.wait_gone()

    def wait_gone(self, within_s: float = PATIENCE_S) -> None:
        until(lambda: not self.is_alive(), what=f"{self.name} gone:\n{last_lines(self.log)}", within_s=within_s)

    def wait_says(self, words: str) -> None:
        until(lambda: words in self.log_text(), what=f"{words!r} in the log of {self.name}:\n{last_lines(self.log)}")

    def children(self) -> list[int]:
        """The pids of the programs it started, without the prefork server that is their parent."""
        (forker,) = psutil.Process(self.pid).children()
        return sorted((child.pid for child in forker.children()), key=lambda pid: psutil.Process(pid).create_time())

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _state(self) -> str:
        found = subprocess.run(["ps", "-o", "state=", "-p", str(self.pid)], capture_output=True, text=True, check=False)
        return found.stdout.strip()[:1]
