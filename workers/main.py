"""`python -m workers.main --processes N --threads M`: N Celery processes of M slots each for jobs, and one for webhooks.

--processes 0 and NOWSERVING_WEBHOOK_THREADS=0 omit them. A process that dies is restarted. All are forked from one process that has
imported their libraries, so they share its memory and start at once.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click

from models.config.setting_errors import settings_or_exit
from models.config.settings import settings
from models.platform.fork_client import Forked, Forker
from models.platform.preloads import PRELOADS
from models.telemetry import logs, metrics_folder
from workers.broker.queues import JOB_QUEUE, WEBHOOK_QUEUE

log = logging.getLogger(__name__)

RESTART_S = 1.0


@click.command()
@click.option("--processes", type=click.IntRange(0), default=lambda: settings().worker_processes)
@click.option("--threads", type=click.IntRange(1), default=lambda: settings().worker_threads)
def main(processes: int, threads: int) -> None:
    """Runs until SIGTERM or SIGINT; running calls may then finish within NOWSERVING_SHUTDOWN_GRACE_S."""
    kinds = [Kind("worker", JOB_QUEUE, threads)] * processes
    if settings().webhook_threads:
        kinds.append(Kind("webhooks", WEBHOOK_QUEUE, settings().webhook_threads))
    if not kinds:
        raise click.UsageError("--processes 0 and NOWSERVING_WEBHOOK_THREADS=0 leave no process to run: set one of them")
    logs.configure(settings().log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # Fork before this process has a second thread.
    births, folder, forker = itertools.count(), metrics_folder.create(), Forker.fork(PRELOADS)
    children = {n: _start(forker, kind, next(births), folder) for n, kind in enumerate(kinds)}
    if settings().worker_metrics_port:
        # Imported here: prometheus_client reads its environment at import, and a forked process could not change it.
        importlib.import_module("workers.observe.metrics_server").serve(
            settings().worker_metrics_port, counts=folder, is_healthy=lambda: not any(child.has_ended() for child in children.values())
        )
    while not stop.wait(0.2):
        for n, child in children.items():
            if child.poll() is not None:
                log.error("worker process died; it is restarted", extra={"worker": n, "exit": child.returncode})
                stop.wait(RESTART_S)
                # Raises ForkerGone if the fork server died: this process ends too, and its supervisor restarts it.
                children[n] = _start(forker, kinds[n], next(births), folder, is_restart=True)
    _terminate(list(children.values()))
    metrics_folder.remove(folder)


@dataclass(frozen=True)
class Kind:
    """Kind of Celery process: its name, the queue that it consumes and its slots."""

    name: str
    queue: str
    threads: int


def _start(forker: Forker, kind: Kind, birth: int, folder: Path, *, is_restart: bool = False) -> Forked:
    # A new name for each process: the pacer stops counting the slots of a dead process together with its calls.
    argv = ["workers.consumer", kind.queue, "--name", f"{kind.name}{birth}-{os.getpid()}", "--threads", str(kind.threads)]
    environment = {**os.environ, "NOWSERVING_WORKER_THREADS": str(kind.threads), "NOWSERVING_DATABASE_POOL": str(min(kind.threads, 8))}
    environment[metrics_folder.VARIABLE] = str(folder)
    if is_restart:
        environment.pop("NOWSERVING_CRASH", None)  # an injected crash happens once
    return forker.start(argv, env=environment, is_apart=False)


def _terminate(children: list[Forked]) -> None:
    for child in children:
        child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + settings().shutdown_grace_s
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("grace time is over; the outcome of running calls is unknown", extra={"pid": child.pid})
            child.kill()
            child.wait()


if __name__ == "__main__":
    settings_or_exit()
    main()
