"""Clients that wait on a connection while every API process is away for a minute, and come back every second as an SDK does."""

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
from tests.chaos.client import held, streamed
from tests.chaos.fault import Fault
from tests.chaos.stack import MODEL
from tests.support.queue_tools import query
from tests.upstream.chat import echo

CLIENTS = 8
AGAIN_S = 1.0
TIMEOUT_S = 30
# From when the line moves to the last answer; from the return of the API processes to when it moves.
SERVED_S = 90
BACK_S = 5


class Waiter:
    """One call of an SDK, with as many retries as it takes. A thread of its own, until it has an answer or `over`.

    answer: what was said; None: nothing yet. An error that the SDK would raise is an answer too, and is empty.
    """

    def __init__(self, ports: Sequence[int], token: str, said: str, *, is_stream: bool, over: threading.Event) -> None:
        self.said, self.tries = said, 0
        self.answer: str | None = None
        self._ports, self._token, self._is_stream, self._over = ports, token, is_stream, over
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self.answer is None and not self._over.is_set():
            with suppress(http.client.HTTPException, OSError, ValueError):  # away, or cut off in the middle
                self.answer = self._ask()
            self.tries += 1
            self._over.wait(AGAIN_S)

    def _ask(self) -> str | None:
        messages = [{"role": "user", "content": self.said}]
        body = {"model": MODEL, "max_completion_tokens": 64, "messages": messages, "stream": self._is_stream}
        headers = {
            "Authorization": f"Bearer {self._token}", "Content-Type": "application/json", "x-stainless-lang": "python",
            "x-stainless-retry-count": str(self.tries),
        }  # fmt: skip
        port = self._ports[self.tries % len(self._ports)]
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()  # IncompleteRead when it was cut
        if answer.status != 200:
            return "" if answer.headers.get("x-should-retry") == "false" else None
        return (streamed(content) if self._is_stream else held(content)) or ""


class ApisAway(Fault):
    """Clients wait in a line that stands still; then both API processes are gone for a minute; then the line moves."""

    on = frozenset({"apis"})
    lasts_s = 60

    def begin(self) -> None:
        self.number = self.chance.randrange(2**32)
        self.over, self.waiters = threading.Event(), list[Waiter]()
        self.away_at = self.back_at = self.moved_at = 0.0
        self.found: list[str] | None = None

    def step(self) -> None:
        """One look at what is to be done next. Postgres may be away because of another fault: then the next look does it."""
        with suppress(ServingError):
            if not self.waiters:
                self._come()
            elif not self.away_at:
                self._go_away()
            elif not self.back_at:
                self._come_back()
            elif not self.moved_at:
                self._move()
            elif all(waiter.answer is not None for waiter in self.waiters) or time.monotonic() - self.moved_at > SERVED_S:
                self.found = self._breaches()

    def is_over(self) -> bool:
        return self.found is not None

    def end(self) -> None:
        self.over.set()
        self.plant.surprises += self.found or []

    def _come(self) -> None:
        token = f"sk-waiting-{self.number}"
        with db.begin() as session:
            self.pool_id = keys.authenticate(session, token).pool_id
        query("UPDATE credential SET paused_at = now() WHERE pool_id = :id", id=self.pool_id)
        self.waiters = [
            Waiter(self.plant.ports, token, f"waits {self.number}-{n}", is_stream=n % 2 == 0, over=self.over) for n in range(CLIENTS)
        ]

    def _go_away(self) -> None:
        if len(self._jobs()) >= CLIENTS:
            self.away_at = time.monotonic()
            self._want(False)
            for part in self.plant.named("api"):
                part.ask_to_stop()

    def _come_back(self) -> None:
        if time.monotonic() - self.away_at >= self.lasts_s:
            self.back_at = time.monotonic()
            self._want(True)

    def _move(self) -> None:
        # After so long that a sweep that counts wrongly has cancelled them.
        if time.monotonic() - self.back_at >= BACK_S and self.plant.is_ready():
            query("UPDATE credential SET paused_at = NULL WHERE pool_id = :id", id=self.pool_id)
            query("UPDATE lane SET wake_at = now() WHERE pool_id = :id", id=self.pool_id)
            self.moved_at = time.monotonic()

    def _want(self, want: bool) -> None:
        for part in self.plant.named("api"):
            part.want = want

    def _breaches(self) -> list[str]:
        jobs, said = self._jobs(), {waiter.said for waiter in self.waiters}
        answered = sum(call.text in said and call.outcome == "200" for call in self.plant.upstream.calls())
        doubles = sum(row.possible_duplicate_calls for row in jobs)
        found = [f"{one.said!r} got {one.answer!r} in {one.tries} tries" for one in self.waiters if one.answer not in ("", echo(one.said))]
        found += [f"{CLIENTS} waiting clients were answered {answered} times"] if answered > CLIENTS + doubles else []
        found += [f"job {row.id} of a waiting client was {row.status}" for row in jobs if row.status not in ("succeeded", "failed")]
        # Only what another fault did to a call may fail a job.
        found += [f"job {row.id} of a waiting client failed, uncalled" for row in jobs if row.status == "failed" and not row.calls]
        return found + ([f"{CLIENTS} waiting clients have {len(jobs)} jobs"] if len(jobs) != CLIENTS else [])

    def _jobs(self) -> Sequence[Any]:
        return query("SELECT job.* FROM job JOIN lane ON lane.id = job.lane_id WHERE lane.pool_id = :id", id=self.pool_id)
