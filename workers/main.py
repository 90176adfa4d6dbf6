"""`python -m workers.main --processes N --threads M`: N Celery worker processes of M slots each; one that dies is started again."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import click

from models import logs
from models.settings import settings
from workers.app import QUEUE

log = logging.getLogger(__name__)

RESTART_S = 1.0


@click.command()
@click.option("--processes", type=click.IntRange(1), default=lambda: settings().worker_processes)
@click.option("--threads", type=click.IntRange(1), default=lambda: settings().worker_threads)
def main(processes: int, threads: int) -> None:
    """Runs until SIGTERM or SIGINT; then what runs may finish within NOWSERVING_SHUTDOWN_GRACE_S."""
    logs.configure(settings().log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    births = itertools.count()
    children = {n: _start(next(births), threads) for n in range(processes)}
    while not stop.wait(0.2):
        for n, child in children.items():
            if child.poll() is not None:
                log.error("worker process died, starting it again", extra={"worker": n, "exit": child.returncode})
                stop.wait(RESTART_S)
                children[n] = _start(next(births), threads, again=True)
    _end(list(children.values()))


def _start(birth: int, threads: int, *, again: bool = False) -> subprocess.Popen[bytes]:
    # Each a name of its own: the slots of a dead process go out of the count together with the calls that it held.
    command = [sys.executable, "-m", "celery", "--app", "workers.tasks", "worker", "--pool", "threads", "--concurrency", str(threads)]
    command += ["--queues", QUEUE, "--hostname", f"worker{birth}-{os.getpid()}@%h", "--without-gossip", "--without-mingle"]
    command += ["--loglevel", settings().log_level]
    environment = {**os.environ, "NOWSERVING_WORKER_THREADS": str(threads), "NOWSERVING_DATABASE_POOL": str(min(threads, 8))}
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
    main()
