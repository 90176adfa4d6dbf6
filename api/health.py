"""Whether the process is alive, and whether it can serve."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis
from flask import Blueprint, Response

from api import render
from models import db
from models.errors import ServingError
from workers import wake

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


PROBES = {"postgres": Probe(db.ping), "redis": Probe(lambda: wake.client().ping())}


@routes.get("/healthz")
def live() -> Response:
    """200: this process answers. It asks nobody else."""
    return render.answer({"status": "ok", "gone": []})


@routes.get("/readyz")
def ready() -> Response:
    """200 when Postgres and Redis answer within a second, else 503 with those that are gone."""
    until = time.monotonic() + PATIENCE_S
    for probe in PROBES.values():
        probe.begin()
    gone = [name for name, probe in PROBES.items() if not probe.has_answered(until=until)]
    return render.answer({"status": "unavailable" if gone else "ok", "gone": gone}, 503 if gone else 200)
