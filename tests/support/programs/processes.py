"""A stack of pacers and workers as real processes against the run's servers."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path

import psutil
from sqlalchemy import text

from deploy.local.server_process import die_with_parent, last_lines
from models.database import db
from models.jobs import workers
from models.platform.errors import Unavailable
from tests.support import tables
from tests.support.programs.forks import ROOT, PreforkServer
from tests.support.programs.process import PATIENCE_S, Process, until
from tests.upstream.client import FakeUpstream
from workers.broker.queues import JOB_QUEUE, WEBHOOK_QUEUE

TRIES = 5


@cache
def prefork_server() -> PreforkServer:
    """The prefork server of this test run. Call it in the main thread first."""
    started = PreforkServer()
    atexit.register(started.stop)
    return started


@dataclass
class Stack:
    """Processes that share settings, one upstream, and the servers of the run. settings: by their names in models.config.settings."""

    folder: Path
    upstream: FakeUpstream
    settings: Mapping[str, object] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def environment(self, **more: object) -> dict[str, str]:
        ours = {f"NOWSERVING_{name.upper()}": str(value) for name, value in {**self.settings, **more}.items() if value != ""}
        plain = {name: value for name, value in os.environ.items() if name != "NOWSERVING_CRASH"}
        return {**plain, "OPENAI_BASE_URL": self.upstream.base_url, "NOWSERVING_DATA_DIR": str(self.folder / "data"), **ours}

    def pacer(self, *, crash: str = "") -> Process:
        """Starts a pacer, and waits until it runs."""
        started = self._start("pacer", ["workers.pacer"], crash=crash)
        started.wait_says("pacing")
        return started

    def worker(self, *, threads: int = 8, crash: str = "", **settings: object) -> Process:
        """Starts a Celery worker process, and waits until it takes jobs."""
        started = self.coming_worker(threads=threads, crash=crash, **settings)
        self.wait_reports(started.name, of=started)
        return started

    def coming_worker(self, *, threads: int = 8, crash: str = "", **settings: object) -> Process:
        """Starts a Celery worker process without waiting for it."""
        name = f"worker-{os.getpid()}-{next(self._numbers)}"
        argv = ["workers.consumer", JOB_QUEUE, "--name", name, "--threads", str(threads)]
        return self._start(name, argv, crash=crash, worker_threads=threads, **settings)

    def sender(self, *, threads: int = 16, crash: str = "", **settings: object) -> Process:
        """Starts a Celery process that sends webhooks, and waits until it runs."""
        name = f"webhooks-{os.getpid()}-{next(self._numbers)}"
        argv = ["workers.consumer", WEBHOOK_QUEUE, "--name", name, "--threads", str(threads)]
        started = self._start(name, argv, crash=crash, **settings)
        started.wait_says("sending webhooks")
        return started

    def workers(self, *, processes: int, threads: int, **settings: object) -> Process:
        """Starts `workers.main`, which restarts its children when they die; without webhook senders unless settings ask for them."""
        log = self.folder / f"main-{next(self._numbers)}.log"
        argv = [sys.executable, "-m", "workers.main", "--processes", str(processes), "--threads", str(threads)]
        with log.open("ab") as output:
            made = subprocess.Popen(
                argv, cwd=ROOT, env=self.environment(**{"webhook_threads": 0, **settings}), stdout=output, stderr=output,
                stdin=subprocess.DEVNULL, preexec_fn=die_with_parent, start_new_session=True,
            )  # fmt: skip
        started = Process("workers.main", made.pid, log)
        self.processes.append(started)
        self.wait_reports("worker", processes=processes, of=started)
        return started

    def wait_reports(self, name: str, *, of: Process, processes: int = 1) -> None:
        """Waits until this many worker processes of this name have reported free slots."""
        # All reports since its start count, not only recent ones: with heartbeats seven seconds apart, two may never be recent at once.
        wanted = text("SELECT count(*) FROM worker WHERE name LIKE :name AND slots > 0 AND started_at > to_timestamp(:began)")
        began = psutil.Process(of.pid).create_time() - 1

        def have() -> bool:
            with db.begin() as session:
                return bool(session.execute(wanted, {"name": f"{name}%", "began": began}).scalar_one() >= processes)

        until(have, what=f"{processes} of {name} at work:\n{last_lines(of.log)}", within_s=3 * PATIENCE_S)

    def stop(self) -> None:
        """Kills all processes."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait_gone()
        self.processes.clear()

    def logs(self) -> str:
        return "\n".join(f"== {process.name}\n{last_lines(process.log, limit=25)}" for process in self.processes)

    def _start(self, name: str, argv: Sequence[str], **settings: object) -> Process:
        log = self.folder / f"{name}-{next(self._numbers)}.log"
        started = Process(name, prefork_server().start(argv, env=self.environment(**settings), log=log), log)
        self.processes.append(started)
        return started


def empty_tables() -> None:
    """Empties every table; the sequences go on."""
    # A stack that reads several tables at once may deadlock with this; Postgres then cancels one of the two.
    for _ in range(TRIES - 1):
        with suppress(Unavailable):
            return tables.empty()
    return tables.empty()


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Stack]:
    """Empties the database and yields a stack without processes, with its own upstream. All its processes end with it."""
    prefork_server()
    empty_tables()
    with FakeUpstream() as upstream:
        stack = Stack(folder, upstream, settings)
        try:
            yield stack
        finally:
            stack.stop()


@contextmanager
def pretended_slots(slots: int) -> Iterator[None]:
    """Reports slots of a worker that does not exist, so that the pacer admits jobs."""
    with db.begin() as session:
        workers.record_heartbeat(session, "pretended", slots=slots)
    try:
        yield
    finally:
        with db.begin() as session:
            workers.remove_worker(session, "pretended")
