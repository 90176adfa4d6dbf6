"""Fault for waiting clients: every API process is down for a minute, and the clients reconnect every second, as an SDK does."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

from models.database import db
from models.keys import keys
from models.platform.errors import ServingError
from tests.chaos.client import completion_text, stream_text
from tests.chaos.fault import Fault
from tests.chaos.stack import MODEL
from tests.support.queue_tools import query
from tests.upstream.chat import echo

CLIENTS = 8
RETRY_S = 1.0
TIMEOUT_S = 30
# SERVED_S: from the start of the queue to the last answer. BACK_S: from the restart of the API to the start of the queue.
SERVED_S = 90
BACK_S = 5


class WaitingClient:
    """One call of an SDK in its own thread, with retries until it has an answer or `stop` is set.

    answer: the text; None: nothing yet. An error that the SDK would raise counts as an answer and is empty.
    """

    def __init__(self, apis: Sequence[tuple[str, int]], token: str, prompt: str, *, is_stream: bool, stop: threading.Event) -> None:
        self.prompt, self.tries = prompt, 0
        self.answer: str | None = None
        self._apis, self._token, self._is_stream, self._stop = apis, token, is_stream, stop
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self.answer is None and not self._stop.is_set():
            with suppress(http.client.HTTPException, OSError, ValueError):  # refused, or cut off in the middle
                self.answer = self._call()
            self.tries += 1
            self._stop.wait(RETRY_S)

    def _call(self) -> str | None:
        messages = [{"role": "user", "content": self.prompt}]
        body = {"model": MODEL, "max_completion_tokens": 64, "messages": messages, "stream": self._is_stream}
        headers = {
            "Authorization": f"Bearer {self._token}", "Content-Type": "application/json", "x-stainless-lang": "python",
            "x-stainless-retry-count": str(self.tries),
        }  # fmt: skip
        host, port = self._apis[self.tries % len(self._apis)]
        with closing(http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()  # IncompleteRead when it was cut off
        if answer.status != 200:
            return "" if answer.headers.get("x-should-retry") == "false" else None
        return (stream_text(content) if self._is_stream else completion_text(content)) or ""


class ApisDown(Fault):
    """Clients wait in a paused lane; then both API processes are down for a minute; then the lane resumes."""

    on = frozenset({"apis"})
    lasts_s = 60

    def begin(self) -> None:
        self.number = self.rng.randrange(2**32)
        self.stop, self.clients = threading.Event(), list[WaitingClient]()
        self.stopped_at = self.started_at = self.resumed_at = 0.0
        self.violations: list[str] | None = None

    def step(self) -> None:
        """Take the next step. When another fault keeps Postgres down, the next call takes it."""
        with suppress(ServingError):
            if not self.clients:
                self._connect_clients()
            elif not self.stopped_at:
                self._stop_apis()
            elif not self.started_at:
                self._start_apis()
            elif not self.resumed_at:
                self._resume_lane()
            elif all(client.answer is not None for client in self.clients) or time.monotonic() - self.resumed_at > SERVED_S:
                self.violations = self._violations()

    def is_over(self) -> bool:
        return self.violations is not None

    def end(self) -> None:
        self.stop.set()
        self.stack.surprises += self.violations or []

    def _connect_clients(self) -> None:
        token = f"sk-waiting-{self.number}"
        with db.begin() as session:
            self.pool_id = keys.authenticate(session, token).pool_id
        query("UPDATE credential SET paused_at = now() WHERE pool_id = :id", id=self.pool_id)
        self.clients = [
            WaitingClient(self.stack.apis, token, f"waits {self.number}-{n}", is_stream=n % 2 == 0, stop=self.stop) for n in range(CLIENTS)
        ]

    def _stop_apis(self) -> None:
        if len(self._jobs()) >= CLIENTS:
            self.stopped_at = time.monotonic()
            self._set_should_run(False)
            for service in self.stack.services_of("api"):
                service.ask_to_stop()

    def _start_apis(self) -> None:
        if time.monotonic() - self.stopped_at >= self.lasts_s:
            self.started_at = time.monotonic()
            self._set_should_run(True)

    def _resume_lane(self) -> None:
        # Late enough that a reaper that counts the clients wrongly has cancelled the jobs.
        if time.monotonic() - self.started_at >= BACK_S and self.stack.is_ready():
            query("UPDATE credential SET paused_at = NULL WHERE pool_id = :id", id=self.pool_id)
            query("UPDATE lane SET wake_at = now() WHERE pool_id = :id", id=self.pool_id)
            self.resumed_at = time.monotonic()

    def _set_should_run(self, should_run: bool) -> None:
        for service in self.stack.services_of("api"):
            service.should_run = should_run

    def _violations(self) -> list[str]:
        jobs, prompts = self._jobs(), {client.prompt for client in self.clients}
        answered = sum(call.text in prompts and call.outcome == "200" for call in self.stack.upstream.calls())
        doubles = sum(row.possible_duplicate_calls for row in jobs)
        violations = [
            f"{client.prompt!r} got {client.answer!r} in {client.tries} tries"
            for client in self.clients
            if client.answer not in ("", echo(client.prompt))
        ]
        violations += [f"{CLIENTS} waiting clients were answered {answered} times"] if answered > CLIENTS + doubles else []
        violations += [f"job {row.id} of a waiting client was {row.status}" for row in jobs if row.status not in ("succeeded", "failed")]
        # A job may fail only because of a call that another fault affected.
        violations += [f"job {row.id} of a waiting client failed, uncalled" for row in jobs if row.status == "failed" and not row.calls]
        return violations + ([f"{CLIENTS} waiting clients have {len(jobs)} jobs"] if len(jobs) != CLIENTS else [])

    def _jobs(self) -> Sequence[Any]:
        return query("SELECT job.* FROM job JOIN lane ON lane.id = job.lane_id WHERE lane.pool_id = :id", id=self.pool_id)
