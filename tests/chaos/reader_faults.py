"""Clients that wait on a connection while every API process is away for a minute, and come back every second as an SDK does."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

from models import db, key
from tests.chaos.fault import Fault
from tests.chaos.plant import MODEL, Part
from tests.line_tools import query
from tests.upstream.chat import echo

CLIENTS = 8
AGAIN_S = 1.0
TIMEOUT_S = 30
# From the return of the API processes to the last answer.
SERVED_S = 90


class Waiter:
    """One call of an SDK, with as many retries as it takes. A thread of its own, until it is served or `over`."""

    def __init__(self, ports: Sequence[int], token: str, said: str, *, is_stream: bool, over: threading.Event) -> None:
        self.said, self.is_served, self.tries = said, False, 0
        self._ports, self._token, self._is_stream, self._over = ports, token, is_stream, over
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.is_served and not self._over.is_set():
            with suppress(http.client.HTTPException, OSError, ValueError):  # away, or cut off in the middle
                self.is_served = self._ask()
            self.tries += 1
            self._over.wait(AGAIN_S)

    def _ask(self) -> bool:
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
            content = answer.read().decode()  # IncompleteRead when it was cut
        if self._is_stream:
            return content.rstrip().endswith("data: [DONE]") and '"error"' not in content
        return answer.status == 200 and json.loads(content)["choices"][0]["message"]["content"] == echo(self.said)


class ApisAway(Fault):
    """Clients wait in a line that stands still; then both API processes are gone for a minute; then the line moves."""

    on = frozenset({"apis"})
    lasts_s = 60

    def begin(self) -> None:
        number = self.chance.randrange(2**32)
        token = f"sk-waiting-{number}"
        with db.begin() as session:
            self.pool_id = key.recognise(session, token).pool_id
        query("UPDATE credential SET paused_at = now() WHERE pool_id = :id", id=self.pool_id)
        self.over = threading.Event()
        self.waiters = [
            Waiter(self.plant.ports, token, f"waits {number}-{n}", is_stream=n % 2 == 0, over=self.over) for n in range(CLIENTS)
        ]
        self.away_at = self.back_at = self.moved_at = 0.0

    def step(self) -> None:
        now = time.monotonic()
        if not self.away_at:
            if len(self._jobs()) == CLIENTS:
                self.away_at = now
                for part in self._apis():
                    part.want = False
                    part.ask_to_stop()
        elif not self.back_at and now - self.away_at >= self.lasts_s:
            self.back_at = now
            for part in self._apis():
                part.want = True
        elif self.back_at and not self.moved_at and self.plant.is_ready():
            self.moved_at = now
            query("UPDATE credential SET paused_at = NULL WHERE pool_id = :id", id=self.pool_id)
            query("UPDATE lane SET wake_at = now() WHERE pool_id = :id", id=self.pool_id)

    def is_over(self) -> bool:
        is_late = bool(self.back_at) and time.monotonic() - self.back_at > SERVED_S
        return is_late or (bool(self.moved_at) and all(waiter.is_served for waiter in self.waiters))

    def end(self) -> None:
        self.over.set()
        jobs = self._jobs()
        calls = [call.text for call in self.plant.upstream.calls()]
        found = [f"{waiter.said!r} was not served in {waiter.tries} tries" for waiter in self.waiters if not waiter.is_served]
        found += [f"{waiter.said!r} was called {n} times" for waiter in self.waiters if (n := calls.count(waiter.said)) != 1]
        found += [f"job {row.id} of a waiting client is {row.status}" for row in jobs if row.status != "succeeded"]
        found += [f"{CLIENTS} waiting clients have {len(jobs)} jobs"] if len(jobs) != CLIENTS else []
        self.plant.surprises += found

    def _apis(self) -> list[Part]:
        return self.plant.named("api")

    def _jobs(self) -> Sequence[Any]:
        return query("SELECT job.id, job.status FROM job JOIN lane ON lane.id = job.lane_id WHERE lane.pool_id = :id", id=self.pool_id)
