"""Starts our programs as real processes in a tenth of the usual time: forked from one process that has imported their libraries.

Each runs the same `python -m …` entry as in production, in a session of its own, and dies with the test run.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.server import die_with_parent

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "celery.__main__", "celery.app.events", "celery.apps.worker", "celery.bin.celery", "celery.bin.worker", "celery.concurrency.thread",
    "celery.events", "celery.worker.autoscale", "celery.worker.components", "celery.worker.consumer", "celery.worker.strategy",
    "kombu.transport.redis", "openai", "openai.resources", "models.lane_care", "models.pricing", "models.retention", "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg", "ssrfguard", "standardwebhooks", "workers.limiter", "workers.openai_client",
    "workers.retry", "workers.wake",
)  # fmt: skip


class Forks:
    """The process that forks. Safe to use from any thread, once it was started in the main one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=die_with_parent, start_new_session=True,
        )  # fmt: skip

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> int:
        """`python -m argv` runs with exactly this environment and writes to the log; returns its pid."""
        assert self._process.stdin and self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps({"argv": list(argv), "env": dict(env), "log": str(log)}) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def stop(self) -> None:
        """It is gone, and what it started with it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def serve() -> None:
    """One line in, one process started, its pid out; ends with its input."""
    for name in LIBRARIES:
        importlib.import_module(name)
    # Nobody asks how they ended, so nothing is kept for it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(wanted)
        print(pid, flush=True)


def _become(wanted: dict[str, Any]) -> None:
    die_with_parent(signal.SIGKILL)
    os.setsid()
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = [*wanted["argv"]]
    status = 1
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # Threads that are still there are no reason to stay, and the forker's own end is not ours.
        os._exit(status)


if __name__ == "__main__":
    serve()
