"""Health checks: whether the process is alive, whether it is ready, and whether jobs are served.

Readiness is a latch in each process: it needs a pacer and a worker to have reported once. After that, and ALONE_AFTER_S after the start in
any case, a missing pacer or worker no longer makes the process unready, because a submit needs Postgres alone; /healthz/deep reports it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import redis
from flask import Blueprint, Response, current_app

from api.http import render
from models.database import db
from models.jobs import workers
from models.platform.errors import ServingError, Unavailable
from workers.channels import notify

routes = Blueprint("health", __name__)

PATIENCE_S = 1.0


class Probe:
    """One thing we depend on, asked by one thread at a time: a server that hangs must not collect them."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._asking: threading.Thread | None = None
        self._answered = False

    def begin(self) -> None:
        """The question is on its way."""
        if self._asking is None or not self._asking.is_alive():
            self._answered = False
            self._asking = threading.Thread(target=self._run, name="probe", daemon=True)
            self._asking.start()

    def has_answered(self, *, until: float) -> bool:
        """Whether the answer came by then, on the monotonic clock."""
        if self._asking:
            self._asking.join(max(0.0, until - time.monotonic()))
        return self._answered

    def _run(self) -> None:
        try:
            self._ask()
            self._answered = True
        except (ServingError, redis.RedisError, OSError, ValueError):
            self._answered = False


# Longer than a worker takes to report three times, shorter than operators are to wait for news.
HEARD_S = 25.0
UNANSWERED_S = 10.0
# Longer than `up` waits for its parts (deploy/local/service.py): a process whose workers stay away takes submits all the same.
ALONE_AFTER_S = 150.0


def _paces() -> None:
    if notify.pacer_heartbeat() is None:
        raise Unavailable


def _consumes() -> None:
    if (notify.pacer_heartbeat() or 0.0) >= UNANSWERED_S:
        raise Unavailable


def _works() -> None:
    with db.autocommit() as session:
        if not workers.is_any_alive(session, within_s=HEARD_S):
            raise Unavailable


class Latch:
    """The parts that a process waits for before it first counts as ready. now: monotonic seconds."""

    def __init__(self, probes: Mapping[str, Probe], *, now: float) -> None:
        self._probes, self._until, self._is_open = probes, now + ALONE_AFTER_S, False

    def missing(self, *, now: float) -> list[str]:
        """The parts that have not reported since this process started; none once all of them have, or after ALONE_AFTER_S."""
        if self._is_open:
            return []
        missing = _gone(self._probes)
        self._is_open = not missing or now >= self._until
        return [] if self._is_open else missing


PROBES = {"postgres": Probe(db.ping), "redis": Probe(lambda: notify.client().ping())}
PARTS = {"workers": Probe(_works), "pacer": Probe(_paces)}
# Each only says something when what it asks is there.
DEEP = {"postgres": {"workers": PARTS["workers"]}, "redis": {"pacer": PARTS["pacer"], "consumption": Probe(_consumes)}}


@routes.get("/healthz")
def live() -> Response:
    """200: this process answers. It asks nobody else."""
    return render.json_response({"status": "ok", "gone": []})


@routes.get("/readyz")
def ready() -> Response:
    """200 when Postgres and Redis answer within a second and a pacer and a worker have reported once, else 503 with what is missing."""
    return _answer(missing(current_app.extensions["first_reports"]))


def missing(latch: Latch) -> list[str]:
    """What /readyz of the process with this latch misses."""
    return _gone(PROBES) or latch.missing(now=time.monotonic())


@routes.get("/healthz/deep")
def deep() -> Response:
    """200 when work gets done: a pacer paces, workers report, and what is admitted is taken. Else 503 with what is not so."""
    gone = _gone(PROBES)
    stands = {name: probe for server, probes in DEEP.items() if server not in gone for name, probe in probes.items()}
    return _answer([*gone, *_gone(stands)])


def _gone(probes: Mapping[str, Probe]) -> list[str]:
    until = time.monotonic() + PATIENCE_S
    for probe in probes.values():
        probe.begin()
    return [name for name, probe in probes.items() if not probe.has_answered(until=until)]


def _answer(gone: list[str]) -> Response:
    return render.json_response({"status": "unavailable" if gone else "ok", "gone": gone}, 503 if gone else 200)
