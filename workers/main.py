"""`python -m workers.main --processes N --threads M`: N Celery processes of M slots each for jobs, and one for webhooks.

Either may be left out: --processes 0, NOWSERVING_WEBHOOK_THREADS=0. One that dies is started again.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click

from models import logs
from models.settings import settings, settings_or_exit
from workers import exposition
from workers.queues import QUEUE, WEBHOOKS

log = logging.getLogger(__name__)

RESTART_S = 1.0


@click.command()
@click.option("--processes", type=click.IntRange(0), default=lambda: settings().worker_processes)
@click.option("--threads", type=click.IntRange(1), default=lambda: settings().worker_threads)
def main(processes: int, threads: int) -> None:
    """Runs until SIGTERM or SIGINT; then what runs may finish within NOWSERVING_SHUTDOWN_GRACE_S."""
    kinds = [Kind("worker", "workers.tasks", QUEUE, threads)] * processes
    if settings().webhook_threads:
        kinds.append(Kind("webhooks", "workers.webhook_tasks", WEBHOOKS, settings().webhook_threads))
    if not kinds:
        raise click.UsageError("with --processes 0 and NOWSERVING_WEBHOOK_THREADS=0 there is nothing to do: set one of them")
    logs.configure(settings().log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    births = itertools.count()
    counts = exposition.folder()
    children = {n: _start(kind, next(births), counts) for n, kind in enumerate(kinds)}
    if settings().worker_metrics_port:
        exposition.serve(
            settings().worker_metrics_port, counts=counts, is_healthy=lambda: all(child.poll() is None for child in children.values())
        )
    while not stop.wait(0.2):
        for n, child in children.items():
            if child.poll() is not None:
                log.error("worker process died, starting it again", extra={"worker": n, "exit": child.returncode})
                stop.wait(RESTART_S)
                children[n] = _start(kinds[n], next(births), counts, again=True)
    _end(list(children.values()))
    exposition.forget(counts)


@dataclass(frozen=True)
class Kind:
    """A Celery process: its name, the module of its task, the queue it listens to and its slots."""

    name: str
    module: str
    queue: str
    threads: int


def _start(kind: Kind, birth: int, counts: Path, *, again: bool = False) -> subprocess.Popen[bytes]:
    # Each a name of its own: the slots of a dead process go out of the count together with the calls that it held.
    command = [sys.executable, "-m", "celery", "--app", kind.module, "worker", "--pool", "threads", "--concurrency", str(kind.threads)]
    command += ["--queues", kind.queue, "--hostname", f"{kind.name}{birth}-{os.getpid()}@%h", "--without-gossip", "--without-mingle"]
    command += ["--loglevel", settings().log_level]
    environment = {**os.environ, "NOWSERVING_WORKER_THREADS": str(kind.threads), "NOWSERVING_DATABASE_POOL": str(min(kind.threads, 8))}
    environment[exposition.FOLDER] = str(counts)
    if again:
        environment.pop("NOWSERVING_CRASH", None)  # a crash that a test asked for happens once
    return subprocess.Popen(command, env=environment)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + settings().shutdown_grace_s
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("grace time is over; calls still running are of unknown outcome", extra={"pid": child.pid})
            child.kill()
            child.wait()


if __name__ == "__main__":
    settings_or_exit()
    main()
