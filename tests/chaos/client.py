"""Load generator: clients that send requests, retry with the same Idempotency-Key, and poll until every end is known."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from tests.chaos.journal import Journal, RequestRecord
from tests.chaos.stack import MODEL

ENDED = ("succeeded", "failed", "cancelled", "expired")
TIMEOUT_S = 30
RETRY_S = 0.4
EXPECTED = (http.client.HTTPException, OSError, ValueError)
# Statuses that any client must expect during faults; any other 5xx is a violation.
RETRYABLE = (429, 503)


class Client:
    """Threads that send until `stop_sending` is set, and poll until every end is known or `stop_polling` is set."""

    def __init__(self, apis: Sequence[tuple[str, int]], tokens: Sequence[str], journal: Journal, *, hook: str, seed: int) -> None:
        self._apis, self._tokens, self.journal, self._hook = apis, tokens, journal, hook
        self._seed = seed
        self.stop_sending, self.stop_polling = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, *, rate: float) -> None:
        """Start all threads. rate: requests a second over all threads, as long as nothing is slow."""
        jobs = 4
        loops: list[Callable[[random.Random], None]] = [self._submit_loop(jobs / (rate * 0.6))] * jobs + [
            self._conversation_loop(5 / (rate * 0.2))
        ]
        loops += [self._open_loop("stream")] * 2 + [self._open_loop("held")]
        loops += [self._poll_loop(n, of=3) for n in range(3)]
        for n, loop in enumerate(loops):
            thread = threading.Thread(target=loop, args=(random.Random(self._seed * 1000 + n),), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop and join all threads."""
        self.stop_sending.set()
        self.stop_polling.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 5)
        self._threads.clear()

    def _submit_loop(self, every_s: float) -> Callable[[random.Random], None]:
        def run(rng: random.Random) -> None:
            while not self.stop_sending.wait(rng.uniform(0.5, 1.5) * every_s):
                how = rng.choice(("poll", "poll", "wait", "hook"))
                record = self.journal.begin(rng.choice(self._tokens), f"{how} job", how=how)
                self._submit(record, rng, on_lost="fail" if rng.random() < 0.1 else "retry")

        return run

    def _conversation_loop(self, every_s: float) -> Callable[[random.Random], None]:
        """Conversations: five turns sent one after another, without waiting for the answers."""

        def run(rng: random.Random) -> None:
            for round_ in range(1_000_000):
                if self.stop_sending.wait(rng.uniform(0.5, 1.5) * every_s):
                    return
                token, name = rng.choice(self._tokens), f"talk-{self._seed}-{round_}"
                for turn in range(1, 6):
                    record = self.journal.begin(token, f"{name} turn {turn}", how="poll", conversation=name, turn=turn)
                    self._submit(record, rng)

        return run

    def _open_loop(self, how: str) -> Callable[[random.Random], None]:
        def run(rng: random.Random) -> None:
            while not self.stop_sending.wait(rng.uniform(0.2, 0.8)):
                record = self.journal.begin(rng.choice(self._tokens), f"{how} call", how=how)
                while record.status is None and not self.stop_polling.is_set():
                    try:
                        self._read_response(record, rng)
                    except EXPECTED:
                        self.stop_polling.wait(RETRY_S)

        return run

    def _poll_loop(self, share: int, *, of: int) -> Callable[[random.Random], None]:
        """Poll this thread's share of the jobs, by short or long polling."""

        def run(rng: random.Random) -> None:
            seen, own = 0, []  # type: tuple[int, list[RequestRecord]]
            while not self.stop_polling.is_set():
                fresh = self.journal.since(seen)
                seen += len(fresh)
                own = [record for record in [*own, *(record for record in fresh if record.n % of == share)] if record.status is None]
                polled = [record for record in own if record.job_id and record.how in ("poll", "wait")]
                for record in polled[:20]:
                    self._poll_job(record, rng)
                own = own[20:] + own[:20]  # rotate, so that slow jobs do not starve the others
                self.stop_polling.wait(RETRY_S)

        return run

    def _submit(self, record: RequestRecord, rng: random.Random, *, on_lost: str = "retry") -> None:
        """Submit until the API accepts; sometimes submit once more to test idempotency."""
        body = {"endpoint": "/v1/chat/completions", "body": _chat(record), "on_lost": on_lost, "conversation": record.conversation}
        if rng.random() < 0.5:
            body["on_unreadable"] = "retry"
        if record.how == "hook":
            body["webhook_url"] = self._hook
        left = 2 if rng.random() < 0.1 else 1
        while left and not self.stop_polling.is_set():
            try:
                status, response, _ = self._call(record, "POST", "/v1/jobs", body, rng)
            except EXPECTED:
                self.stop_polling.wait(RETRY_S)
                continue
            if status == 202:
                self.journal.accept(record, response["id"])
                left -= 1
            elif status in RETRYABLE:
                self.stop_polling.wait(RETRY_S)
            else:
                self.journal.report_unexpected(f"a submit was answered with {status}: {response}")
                return

    def _poll_job(self, record: RequestRecord, rng: random.Random) -> None:
        wait = "?wait=2" if record.how == "wait" else ""
        try:
            status, response, _ = self._call(record, "GET", f"/v1/jobs/{record.job_id}{wait}", None, rng)
        except EXPECTED:
            return
        if status == 200 and response["status"] in ENDED:
            self.journal.end(
                record, response["status"], content=_result_text(response["result"]) if response["status"] == "succeeded" else None
            )
        elif status != 200 and status not in RETRYABLE:
            self.journal.report_unexpected(f"{record.job_id} was asked for and answered with {status}: {response}")

    def _read_response(self, record: RequestRecord, rng: random.Random) -> None:
        """Hold one connection, blocking or streamed, from the request to the last byte. Raises EXPECTED when it breaks."""
        is_stream = record.how == "stream"
        with closing(http.client.HTTPConnection(*rng.choice(self._apis), timeout=TIMEOUT_S)) as connection:
            body = json.dumps(_chat(record) | ({"stream": True} if is_stream else {}))
            connection.request("POST", "/v1/chat/completions", body, _headers(record))
            response = connection.getresponse()
            if job_id := response.headers.get("X-Nowserving-Job-Id"):
                self.journal.accept(record, job_id)
            content = response.read()  # IncompleteRead when it was cut off
        if response.status == 200:
            text = stream_text(content) if is_stream else completion_text(content)
            if text is not None:
                return self.journal.end(record, "succeeded", content=text)
        elif response.status not in RETRYABLE and not record.job_id:
            self.journal.report_unexpected(f"a call was answered with {response.status}: {content[:200]!r}")
        if record.job_id:
            status, shown, _ = self._call(record, "GET", f"/v1/jobs/{record.job_id}", None, rng)
            if status == 200 and shown["status"] in ENDED and shown["status"] != "succeeded":
                return self.journal.end(record, shown["status"])
        self.stop_polling.wait(RETRY_S)

    def _call(self, record: RequestRecord, method: str, path: str, body: Any, rng: random.Random) -> tuple[int, Any, Any]:
        with closing(http.client.HTTPConnection(*rng.choice(self._apis), timeout=TIMEOUT_S)) as connection:
            connection.request(method, path, json.dumps(body) if body else None, _headers(record))
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers


def _chat(record: RequestRecord) -> dict[str, Any]:
    return {"model": MODEL, "max_completion_tokens": 64, "messages": [{"role": "user", "content": record.text}]}


def _headers(record: RequestRecord) -> dict[str, str]:
    return {"Authorization": f"Bearer {record.token}", "Content-Type": "application/json", "Idempotency-Key": record.idempotency_key}


def _result_text(result: Any) -> str:
    """The text of a job's result; a result with NaN is no JSON and arrives as a string."""
    completion = json.loads(result) if isinstance(result, str) else result
    return str(completion["choices"][0]["message"]["content"])


def completion_text(content: bytes) -> str | None:
    """The text of a completion; None for an error with status 200."""
    response = json.loads(content)
    return str(response["choices"][0]["message"]["content"]) if "choices" in response else None


def stream_text(content: bytes) -> str | None:
    """The text of a whole stream; None when it ended in an error or without [DONE]."""
    data = [line[6:] for line in content.decode().split("\n") if line.startswith("data: ")]
    if not data or data[-1] != "[DONE]":
        return None
    events = [json.loads(line) for line in data[:-1]]
    if any("error" in event for event in events):
        return None
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
