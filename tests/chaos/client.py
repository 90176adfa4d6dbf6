"""A program that uses nowserving and is not put off: it sends, repeats with the same Idempotency-Key, and asks until it knows."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from tests.chaos.journal import Journal, Note
from tests.chaos.stack import MODEL

ENDED = ("succeeded", "failed", "cancelled", "expired")
TIMEOUT_S = 30
AGAIN_S = 0.4
EXPECTED = (http.client.HTTPException, OSError, ValueError)
# What any client must be ready for while things break; anything else of 5xx is a broken promise.
LATER = (429, 503)


class Client:
    """Threads that send until `quiet` is set, and stay until they know how everything ended or `over` is set."""

    def __init__(self, apis: Sequence[tuple[str, int]], tokens: Sequence[str], journal: Journal, *, hook: str, seed: int) -> None:
        self._apis, self._tokens, self.journal, self._hook = apis, tokens, journal, hook
        self._seed = seed
        self.quiet, self.over = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, *, rate: float) -> None:
        """rate: requests a second, all threads together, as long as nothing is slow."""
        jobs = 4
        works: list[Callable[[random.Random], None]] = [self._submits(jobs / (rate * 0.6))] * jobs + [self._talks(5 / (rate * 0.2))]
        works += [self._opens("stream")] * 2 + [self._opens("held")]
        works += [self._follows(n, of=3) for n in range(3)]
        for n, work in enumerate(works):
            thread = threading.Thread(target=work, args=(random.Random(self._seed * 1000 + n),), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """No thread is left."""
        self.quiet.set()
        self.over.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S + 5)
        self._threads.clear()

    def _submits(self, every_s: float) -> Callable[[random.Random], None]:
        def run(chance: random.Random) -> None:
            while not self.quiet.wait(chance.uniform(0.5, 1.5) * every_s):
                how = chance.choice(("poll", "poll", "wait", "hook"))
                note = self.journal.begin(chance.choice(self._tokens), f"{how} job", how=how)
                self._submit(note, chance, on_lost="fail" if chance.random() < 0.1 else "retry")

        return run

    def _talks(self, every_s: float) -> Callable[[random.Random], None]:
        """Conversations: five turns sent one after another, without waiting for the answers."""

        def run(chance: random.Random) -> None:
            for round_ in range(1_000_000):
                if self.quiet.wait(chance.uniform(0.5, 1.5) * every_s):
                    return
                token, name = chance.choice(self._tokens), f"talk-{self._seed}-{round_}"
                for turn in range(1, 6):
                    note = self.journal.begin(token, f"{name} turn {turn}", how="poll", conversation=name, turn=turn)
                    self._submit(note, chance)

        return run

    def _opens(self, how: str) -> Callable[[random.Random], None]:
        def run(chance: random.Random) -> None:
            while not self.quiet.wait(chance.uniform(0.2, 0.8)):
                note = self.journal.begin(chance.choice(self._tokens), f"{how} call", how=how)
                while note.status is None and not self.over.is_set():
                    try:
                        self._read(note, chance)
                    except EXPECTED:
                        self.over.wait(AGAIN_S)

        return run

    def _follows(self, share: int, *, of: int) -> Callable[[random.Random], None]:
        """Asks for the jobs whose number falls to this thread: now and then, or with a long poll."""

        def run(chance: random.Random) -> None:
            seen, mine = 0, []  # type: tuple[int, list[Note]]
            while not self.over.is_set():
                fresh = self.journal.since(seen)
                seen += len(fresh)
                mine = [note for note in [*mine, *(one for one in fresh if one.n % of == share)] if note.status is None]
                asked = [note for note in mine if note.job_id and note.how in ("poll", "wait")]
                for note in asked[:20]:
                    self._look(note, chance)
                mine = mine[20:] + mine[:20]  # nobody waits behind those that take long
                self.over.wait(AGAIN_S)

        return run

    def _submit(self, note: Note, chance: random.Random, *, on_lost: str = "retry") -> None:
        """Accepted, however often it takes; now and then sent once more for nothing."""
        body = {"endpoint": "/v1/chat/completions", "body": _chat(note), "on_lost": on_lost, "conversation": note.conversation}
        if chance.random() < 0.5:
            body["on_unreadable"] = "retry"
        if note.how == "hook":
            body["webhook_url"] = self._hook
        left = 2 if chance.random() < 0.1 else 1
        while left and not self.over.is_set():
            try:
                status, answer, _ = self._call(note, "POST", "/v1/jobs", body, chance)
            except EXPECTED:
                self.over.wait(AGAIN_S)
                continue
            if status == 202:
                self.journal.accept(note, answer["id"])
                left -= 1
            elif status in LATER:
                self.over.wait(AGAIN_S)
            else:
                self.journal.wonder(f"a submit was answered with {status}: {answer}")
                return

    def _look(self, note: Note, chance: random.Random) -> None:
        wait = "?wait=2" if note.how == "wait" else ""
        try:
            status, answer, _ = self._call(note, "GET", f"/v1/jobs/{note.job_id}{wait}", None, chance)
        except EXPECTED:
            return
        if status == 200 and answer["status"] in ENDED:
            self.journal.end(note, answer["status"], said=_said(answer["result"]) if answer["status"] == "succeeded" else None)
        elif status != 200 and status not in LATER:
            self.journal.wonder(f"{note.job_id} was asked for and answered with {status}: {answer}")

    def _read(self, note: Note, chance: random.Random) -> None:
        """One open connection, held or streamed, from the request to the last byte. Raises EXPECTED when it breaks."""
        is_stream = note.how == "stream"
        with closing(http.client.HTTPConnection(*chance.choice(self._apis), timeout=TIMEOUT_S)) as connection:
            body = json.dumps(_chat(note) | ({"stream": True} if is_stream else {}))
            connection.request("POST", "/v1/chat/completions", body, _headers(note))
            answer = connection.getresponse()
            if job_id := answer.headers.get("X-Nowserving-Job-Id"):
                self.journal.accept(note, job_id)
            content = answer.read()  # IncompleteRead when it was cut
        if answer.status == 200:
            said = streamed(content) if is_stream else held(content)
            if said is not None:
                return self.journal.end(note, "succeeded", said=said)
        elif answer.status not in LATER and not note.job_id:
            self.journal.wonder(f"a call was answered with {answer.status}: {content[:200]!r}")
        if note.job_id:
            status, shown, _ = self._call(note, "GET", f"/v1/jobs/{note.job_id}", None, chance)
            if status == 200 and shown["status"] in ENDED and shown["status"] != "succeeded":
                return self.journal.end(note, shown["status"])
        self.over.wait(AGAIN_S)

    def _call(self, note: Note, method: str, path: str, body: Any, chance: random.Random) -> tuple[int, Any, Any]:
        with closing(http.client.HTTPConnection(*chance.choice(self._apis), timeout=TIMEOUT_S)) as connection:
            connection.request(method, path, json.dumps(body) if body else None, _headers(note))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), answer.headers


def _chat(note: Note) -> dict[str, Any]:
    return {"model": MODEL, "max_completion_tokens": 64, "messages": [{"role": "user", "content": note.text}]}


def _headers(note: Note) -> dict[str, str]:
    return {"Authorization": f"Bearer {note.token}", "Content-Type": "application/json", "Idempotency-Key": note.idempotency_key}


def _said(result: Any) -> str:
    """What the result of a job says; one with NaN in it is no JSON, and comes as text."""
    whole = json.loads(result) if isinstance(result, str) else result
    return str(whole["choices"][0]["message"]["content"])


def held(content: bytes) -> str | None:
    """What a completion says; None for an error under a status of 200."""
    answer = json.loads(content)
    return str(answer["choices"][0]["message"]["content"]) if "choices" in answer else None


def streamed(content: bytes) -> str | None:
    """What a whole stream says; None when it ended in an error or not at all."""
    data = [line[6:] for line in content.decode().split("\n") if line.startswith("data: ")]
    if not data or data[-1] != "[DONE]":
        return None
    events = [json.loads(one) for one in data[:-1]]
    if any("error" in event for event in events):
        return None
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
