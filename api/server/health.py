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

PROBE_TIMEOUT_S = 1.0


class Probe:
    """A health check of one dependency. Only one thread runs it at a time, so that a hanging server does not collect threads."""

    def __init__(self, check: Callable[[], object]) -> None:
        self._check = check
        self._thread: threading.Thread | None = None
        self._is_healthy = False

    def start(self) -> None:
        """Starts the check, unless one still runs."""
        if self._thread is None or not self._thread.is_alive():
            self._is_healthy = False
            self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
            self._thread.start()

    def is_healthy(self, *, until: float) -> bool:
        """Whether the check succeeded by then, on the monotonic clock."""
        if self._thread:
            self._thread.join(max(0.0, until - time.monotonic()))
        return self._is_healthy

    def _run(self) -> None:
        try:
            self._check()
            self._is_healthy = True
        except (ServingError, redis.RedisError, OSError, ValueError):
            self._is_healthy = False


# Longer than three heartbeats of a worker, short enough for operators.
WORKER_TIMEOUT_S = 25.0
MAX_UNCONSUMED_S = 10.0
# Longer than `up` waits for its services (deploy/local/service.py): after it a process takes submits also without workers.
ALONE_AFTER_S = 150.0


def _check_pacer() -> None:
    if notify.pacer_heartbeat() is None:
        raise Unavailable


def _check_consumption() -> None:
    if (notify.pacer_heartbeat() or 0.0) >= MAX_UNCONSUMED_S:
        raise Unavailable


def _check_workers() -> None:
    with db.autocommit() as session:
        if not workers.is_any_alive(session, within_s=WORKER_TIMEOUT_S):
            raise Unavailable


class Latch:
    """The services that must report once before this process counts as ready. now: monotonic seconds."""

    def __init__(self, probes: Mapping[str, Probe], *, now: float) -> None:
        self._probes, self._opens_at, self._is_open = probes, now + ALONE_AFTER_S, False

    def missing(self, *, now: float) -> list[str]:
        """The services that have not reported since this process started; none once all have, or after ALONE_AFTER_S."""
        if self._is_open:
            return []
        missing = _gone(self._probes)
        self._is_open = not missing or now >= self._opens_at
        return [] if self._is_open else missing


PROBES = {"postgres": Probe(db.ping), "redis": Probe(lambda: notify.client().ping())}
PARTS = {"workers": Probe(_check_workers), "pacer": Probe(_check_pacer)}
# These probes run only while their server answers.
DEEP = {"postgres": {"workers": PARTS["workers"]}, "redis": {"pacer": PARTS["pacer"], "consumption": Probe(_check_consumption)}}


@routes.get("/healthz")
def live() -> Response:
    """200: this process answers. It checks no dependency."""
    return render.json_response({"status": "ok", "gone": []})


@routes.get("/readyz")
def ready() -> Response:
    """200 when Postgres and Redis answer within a second and a pacer and a worker have reported once, else 503 with what is missing."""
    return _response(missing(current_app.extensions["first_reports"]))


def missing(latch: Latch) -> list[str]:
    """The services that /readyz reports as missing, for a process with this latch."""
    return _gone(PROBES) or latch.missing(now=time.monotonic())


@routes.get("/healthz/deep")
def deep() -> Response:
    """200 when jobs are served: the pacer and workers report, and admitted jobs are consumed. Else 503 with the failed checks."""
    gone = _gone(PROBES)
    probes = {name: probe for server, checks in DEEP.items() if server not in gone for name, probe in checks.items()}
    return _response([*gone, *_gone(probes)])


def _gone(probes: Mapping[str, Probe]) -> list[str]:
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    for probe in probes.values():
        probe.start()
    return [name for name, probe in probes.items() if not probe.is_healthy(until=deadline)]


def _response(gone: list[str]) -> Response:
    return render.json_response({"status": "unavailable" if gone else "ok", "gone": gone}, 503 if gone else 200)
