"""A pacer and workers as real processes against the run's servers: started, frozen, killed, and what came of it checked."""

from __future__ import annotations

import atexit
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from sqlalchemy import text

from deploy.local.server_process import die_with_parent, last_lines
from models.database import db
from models.jobs import cancellation, workers
from models.jobs.states import TERMINAL
from models.keys import keys
from models.keys.keys import Key, Limits
from models.platform.errors import Unavailable
from models.queue import lanes
from tests.support import tables
from tests.support.programs.forks import ROOT, PreforkServer
from tests.support.queue_tools import submit
from tests.upstream.chat import echo
from tests.upstream.client import FakeUpstream
from tests.upstream.journal import Call
from workers.broker.queues import JOB_QUEUE, WEBHOOK_QUEUE
from workers.channels import notify

PATIENCE_S = 40.0
TRIES = 5


def until(is_so: Callable[[], Any], *, what: str, within_s: float = PATIENCE_S, every_s: float = 0.03) -> Any:
    """What `is_so` answered when it was first true. Raises TimeoutError."""
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

    def said(self) -> str:
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
        until(lambda: words in self.said(), what=f"{words!r} in the log of {self.name}:\n{last_lines(self.log)}")

    def children(self) -> list[int]:
        """The programs it started, by pid, without the prefork server that is their parent."""
        (forker,) = psutil.Process(self.pid).children()
        return sorted((child.pid for child in forker.children()), key=lambda pid: psutil.Process(pid).create_time())

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _state(self) -> str:
        found = subprocess.run(["ps", "-o", "state=", "-p", str(self.pid)], capture_output=True, text=True, check=False)
        return found.stdout.strip()[:1]


@cache
def prefork_server() -> PreforkServer:
    """The one forker of this test run. Ask for it in the main thread first."""
    started = PreforkServer()
    atexit.register(started.stop)
    return started


@dataclass
class Stack:
    """Processes that share settings, one upstream, and the servers of the run. settings: as models.config.settings names them."""

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
        """Paces from now on."""
        started = self._start("pacer", ["workers.pacer"], crash=crash)
        started.wait_says("pacing")
        return started

    def worker(self, *, threads: int = 8, crash: str = "", **settings: object) -> Process:
        """One Celery worker process that takes jobs from now on."""
        started = self.coming_worker(threads=threads, crash=crash, **settings)
        self.wait_reports(started.name, of=started)
        return started

    def coming_worker(self, *, threads: int = 8, crash: str = "", **settings: object) -> Process:
        """One Celery worker process that has only been started."""
        name = f"worker-{os.getpid()}-{next(self._numbers)}"
        argv = ["workers.consumer", JOB_QUEUE, "--name", name, "--threads", str(threads)]
        return self._start(name, argv, crash=crash, worker_threads=threads, **settings)

    def sender(self, *, threads: int = 16, crash: str = "", **settings: object) -> Process:
        """One Celery process that sends webhooks from now on."""
        name = f"webhooks-{os.getpid()}-{next(self._numbers)}"
        argv = ["workers.consumer", WEBHOOK_QUEUE, "--name", name, "--threads", str(threads)]
        started = self._start(name, argv, crash=crash, **settings)
        started.wait_says("sending webhooks")
        return started

    def workers(self, *, processes: int, threads: int, **settings: object) -> Process:
        """`workers.main`, with children that it starts again when they die; without webhooks unless settings say so."""
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
        """So many worker processes of this name have said that they take jobs."""
        # Since this one was started, and not of late: with seven seconds from beat to beat two may never be of late together.
        wanted = text("SELECT count(*) FROM worker WHERE name LIKE :name AND slots > 0 AND started_at > to_timestamp(:began)")
        began = psutil.Process(of.pid).create_time() - 1

        def have() -> bool:
            with db.begin() as session:
                return bool(session.execute(wanted, {"name": f"{name}%", "began": began}).scalar_one() >= processes)

        until(have, what=f"{processes} of {name} at work:\n{last_lines(of.log)}", within_s=3 * PATIENCE_S)

    def stop(self) -> None:
        """Nothing runs any more."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait_gone()
        self.processes.clear()

    def logs(self) -> str:
        return "\n".join(f"== {process.name}\n{last_lines(process.log, most=25)}" for process in self.processes)

    def _start(self, name: str, argv: Sequence[str], **settings: object) -> Process:
        log = self.folder / f"{name}-{next(self._numbers)}.log"
        started = Process(name, prefork_server().start(argv, env=self.environment(**settings), log=log), log)
        self.processes.append(started)
        return started


def caller(token: str, *, model: str = "m", **limits: int) -> Key:
    """The own key of this token, with these limits for every model."""
    with db.begin() as session:
        found = keys.authenticate(session, token)
        if limits:
            credential_id = session.execute(text("SELECT id FROM credential WHERE pool_id = :id"), {"id": found.pool_id}).scalar_one()
            keys.set_limits(session, credential_id, Limits(**limits))
    return found


def ask(who: Key, result: str, *, model: str = "m", **wanted: Any) -> UUID:
    """A chat job that says this, submitted as the API does it; returns its id."""
    body = {"model": model, "messages": [{"role": "user", "content": result}], **wanted.pop("body", {})}
    job_id = submit(who, model=model, request=json.dumps(body).encode(), **wanted)
    wake_lane(who, model=model)
    return job_id


def cancel(job_id: UUID) -> None:
    """As the API does it."""
    with db.begin() as session:
        stopped = cancellation.cancel(session, job_id, row(job_id).key_id)
    if stopped is not None:
        notify.job_changed(job_id, "cancelling" if stopped.status == "running" else "cancelled")


def wake_lane(who: Key, *, model: str = "m") -> None:
    notify.lane_changed(lanes.id_of(who.pool_id, model))


def row(job_id: UUID) -> Any:
    return rows([job_id])[0]


def rows(job_ids: Iterable[UUID]) -> Sequence[Any]:
    """The jobs, in the order asked for."""
    with db.begin() as session:
        found = {one.id: one for one in session.execute(text("SELECT * FROM job WHERE id = ANY(:ids)"), {"ids": list(job_ids)})}
    return [found[number] for number in job_ids]


def attempts(job_id: UUID) -> list[str]:
    """The outcome of each of the job's attempts, in order."""
    with db.begin() as session:
        found = session.execute(text("SELECT outcome FROM attempt WHERE job_id = :id ORDER BY n"), {"id": job_id})
        return [one.outcome for one in found]


def wait_ended(job_ids: Sequence[UUID], *, within_s: float = PATIENCE_S, stack: Stack | None = None) -> Sequence[Any]:
    """Every one of these jobs has ended; returns their rows. Raises TimeoutError with what the processes said."""

    def ended() -> Sequence[Any] | None:
        found = rows(job_ids)
        return found if all(one.status in TERMINAL for one in found) else None

    try:
        return until(ended, what="ended", within_s=within_s, every_s=0.05)  # type: ignore[no-any-return]
    except TimeoutError as error:
        states = Counter(one.status for one in rows(job_ids))
        raise TimeoutError(f"{error}: {dict(states)}\n{stack.logs() if stack else ''}") from None


def wait_status(job_id: UUID, *statuses: str, within_s: float = PATIENCE_S) -> Any:
    found = until(lambda: one if (one := row(job_id)).status in statuses else None, what=f"{job_id} {statuses}", within_s=within_s)
    return found


def empty_tables() -> None:
    """Every table is empty; the sequences go on. Of a running stack only the reports of workers are left."""
    # Beside a stack that reads several tables at once one of the two may be picked as the victim of a deadlock.
    for _ in range(TRIES - 1):
        with suppress(Unavailable):
            return tables.empty()
    return tables.empty()


def violations(job_ids: Iterable[UUID], calls: Iterable[Call]) -> list[str]:
    """What must hold whatever happened, and does not. calls: all that the upstream saw of these jobs, others' too."""
    jobs = {one.id: one for one in rows(list(job_ids))}
    with db.begin() as session:
        job_of = {str(one.dispatch_id): one.job_id for one in session.execute(text("SELECT dispatch_id, job_id FROM attempt"))}
    found = [f"{one.id} is still {one.status}" for one in jobs.values() if one.status not in TERMINAL]
    answered: dict[UUID, int] = defaultdict(int)
    for call in calls:
        job_id = job_of.get(call.headers.get("x-client-request-id", ""))
        if job_id is None:
            found.append(f"call {call.n} ({call.text!r}) is of no attempt on record")
        elif call.outcome == "200" and job_id in jobs:
            answered[job_id] += 1
    found += [
        f"{number} was answered {n} times and is not flagged"
        for number, n in answered.items()
        if n > 1 + jobs[number].possible_duplicate_calls
    ]
    return found + [f"{one.id} has another job's answer" for one in jobs.values() if one.status == "succeeded" and not _is_own(one)]


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Stack]:
    """An empty database and a stack without processes yet, with an upstream of its own. Everything it starts ends with it."""
    prefork_server()
    empty_tables()
    with FakeUpstream() as upstream:
        stack = Stack(folder, upstream, settings)
        try:
            yield stack
        finally:
            stack.stop()


def prompt_of(one: Any) -> str:
    """What this chat job asks."""
    return str(json.loads(one.request)["messages"][-1]["content"])


def _is_own(one: Any) -> bool:
    return bool(echo(prompt_of(one)) == json.loads(one.response)["choices"][0]["message"]["content"])


@contextmanager
def pretended_slots(slots: int) -> Iterator[None]:
    """The pacer believes that a worker could take jobs."""
    with db.begin() as session:
        workers.record_heartbeat(session, "pretended", slots=slots)
    try:
        yield
    finally:
        with db.begin() as session:
            workers.remove_worker(session, "pretended")


def decoded(body: str) -> bytes:
    """What Celery packed into a message."""
    return base64.b64decode(body)
