"""Starts the textbook recipe with a broker of its own, and asks it as its callers do."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import redis

from bench.measure import load
from bench.measure.load import JOBS, OK, Line, Wanted
from bench.peers import process
from bench.peers.peer import PROMPT, Peer, Terms, Work
from deploy.local.embedded_servers import Valkey, free_port

START_S = 300
# Connections stay open between requests, as behind a proxy.
WEB_SERVER = ("--preload", "--workers", "2", "--worker-class", "gthread", "--threads", "8", "--keep-alive", "75")
LOOK_EVERY_S = 0.02


class Recipe(Peer):
    """gunicorn, and one Celery worker with as many prefork processes as calls may run at once; broker and results in their own Valkey."""

    name = "Flask + Celery recipe"
    settings = (
        "gunicorn 2 processes of 8 threads; 1 prefork worker with a process a call, rate_limit, autoretry_for with "
        "back-off and 5 retries, acks_late, prefetch 1; broker and results in a Valkey without persistence"
    )
    upstream_key = "sk-recipe"

    def __init__(self, folder: Path, *, base_url: str) -> None:
        self._folder = folder
        self._base_url = base_url
        self._valkey = Valkey(folder / "recipe-valkey")
        self._web: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._terms: Terms | None = None
        self._port = self._handed_in = 0

    @property
    def title(self) -> str:
        return f"{self.name} (celery {version('celery')}, flask {version('flask')})"

    def serve(self, terms: Terms) -> None:
        if terms == self._terms and self._has_all():
            self._forget()
            return
        self.halt()
        self._valkey.start()
        self._port, self._handed_in, self._terms = free_port(), 0, terms
        environment = os.environ | {
            "RECIPE_BROKER": self._valkey.url, "RECIPE_RESULTS": self._results_url, "RECIPE_UPSTREAM": self._base_url,
            "RECIPE_KEY": self.upstream_key, "RECIPE_RATE_LIMIT": f"{terms.rpm}/m" if terms.rpm else "",
        }  # fmt: skip
        python, app = (sys.executable, "-m"), "bench.peers.recipe_app"
        self._worker = process.start(
            [*python, "celery", "-A", f"{app}:queue", "worker", "--pool", "prefork", "--concurrency", str(terms.at_once), "-l", "WARNING"],
            log=self._log("worker"), environment=environment,
        )  # fmt: skip
        self._web = process.start(
            [*python, "gunicorn", *WEB_SERVER, "--bind", f"127.0.0.1:{self._port}", f"{app}:web"],
            log=self._log("web"), environment=environment,
        )  # fmt: skip
        process.wait_until(self._is_up, self._web, log=self._log("web"), within_s=START_S)
        process.wait_until(self._has_worker, self._worker, log=self._log("worker"), within_s=START_S)

    def hand_in(self, work: Work) -> None:
        load.submit(
            Wanted(
                self._port, "", jobs=work.jobs, users=work.users, prefix=work.prefix, prompt=PROMPT, max_tokens=work.max_tokens
            )
        )  # fmt: skip
        self._handed_in += work.jobs

    def wait_done(self, *, within_s: float) -> None:
        until = time.monotonic() + within_s
        while not self._has_all():
            if time.monotonic() > until:
                raise TimeoutError(f"not {self._handed_in} results of the recipe after {within_s:.0f} s")
            time.sleep(0.2)

    def ask(self) -> float:
        line = Line(self._port)
        began = time.perf_counter()
        line.ask(next(Wanted(self._port, "", jobs=1, prompt=PROMPT).requests()))
        look = load.request("GET", f"{JOBS}/{json.loads(line.body)['id']}", token="")
        while True:
            line.ask(look, expected=OK)
            if json.loads(line.body)["status"] == "SUCCESS":
                break
            time.sleep(LOOK_EVERY_S)
        took_s = time.perf_counter() - began
        self._handed_in += 1
        line.socket.close()
        return took_s

    def pids(self) -> dict[str, int]:
        assert self._web and self._worker and self._valkey.process
        return {"Flask": self._web.pid, "Celery": self._worker.pid, "Valkey": self._valkey.process.pid}

    def halt(self) -> None:
        process.stop(self._web)
        if self._worker is not None:
            # Asked twice it does not wait for what it still has, which may be a retry in a minute.
            self._worker.terminate()
            time.sleep(0.5)
            process.stop(self._worker)
        self._web = self._worker = self._terms = None
        self._valkey.stop()

    def given_up(self) -> int:
        with self._results() as client:
            return _statuses(client)["FAILURE"]

    def _has_all(self) -> bool:
        # A retry has an entry too: what they say is read only once there may be enough of them.
        with self._results() as client:
            if int(client.dbsize()) < self._handed_in:
                return False
            result = _statuses(client)
        return result["SUCCESS"] + result["FAILURE"] >= self._handed_in

    def _forget(self) -> None:
        with self._results() as client:
            client.flushdb()
        self._handed_in = 0

    def _results(self) -> redis.Redis:
        return redis.Redis.from_url(self._results_url)

    @property
    def _results_url(self) -> str:
        """Beside the broker's, in a database of their own, so that they can be counted."""
        return self._valkey.url.removesuffix("/0") + "/1"

    def _is_up(self) -> bool:
        return self._ready() is not None

    def _has_worker(self) -> bool:
        return bool(self._ready())

    def _ready(self) -> list[object] | None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/readyz")
            result = json.loads(connection.getresponse().read())
            connection.close()
        except (OSError, ValueError, http.client.HTTPException):
            return None
        return list(result["workers"])

    def _log(self, part: str) -> Path:
        return self._folder / f"recipe-{part}.log"


def _statuses(client: redis.Redis) -> Counter[str]:
    keys = list(client.scan_iter(count=5_000))
    return Counter(json.loads(result)["status"] for result in (client.mget(keys) if keys else []) if result)
