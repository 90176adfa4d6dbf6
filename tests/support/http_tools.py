"""Helpers that call the API in this process and change the state of its jobs, for tests of the HTTP API."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from uuid import UUID

from flask import Flask
from sqlalchemy import text
from werkzeug.test import TestResponse

from api.app import create_app, reset_caches
from models.database import db
from models.jobs import completion, states
from models.keys import keys
from models.keys.keys import Key
from models.platform import wire
from tests.support.queue_tools import at_once, start

CHAT: dict[str, Any] = {"endpoint": "/v1/chat/completions", "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}
IMAGE: dict[str, Any] = {"endpoint": "/v1/images/generations", "body": {"model": "p", "prompt": "a cat", "n": 2}}
ANSWER = b'{"id":"chatcmpl-1","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}'


@cache
def _first_app() -> Flask:
    return create_app()


def new_app() -> Flask:
    """An application with caches of its own. All share their routes, because compiling them takes 20 ms and more."""
    app = copy.copy(_first_app())
    app.extensions = dict(app.extensions)
    reset_caches(app)
    rewriter = copy.copy(app.wsgi_app)
    rewriter._application = Flask.wsgi_app.__get__(app)  # type: ignore[attr-defined]  # not the first app's
    app.wsgi_app = rewriter  # type: ignore[method-assign]
    return app


@dataclass
class Caller:
    """A client with a key. `app` may be shared by several callers."""

    token: str = "sk-one"
    app: Flask = field(default_factory=new_app)

    def get(self, path: str, **more: Any) -> TestResponse:
        return self.send("GET", path, **more)

    def post(self, path: str, payload: object = None, **more: Any) -> TestResponse:
        if payload is not None:
            more = {"data": json.dumps(payload), "content_type": "application/json", **more}
        return self.send("POST", path, **more)

    def send(self, method: str, path: str, *, headers: dict[str, str] | None = None, **more: Any) -> TestResponse:
        wanted = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        return self.app.test_client().open(path, method=method, headers=wanted, buffered=True, **more)

    def submit(self, **more: Any) -> str:
        """A new job's id. more: fields of the submit."""
        made = self.post("/v1/jobs", {**CHAT, **more})
        assert 202 == made.status_code, made.text
        return str(made.json["id"])

    @property
    def key(self) -> Key:
        with db.begin() as session:
            return keys.authenticate(session, self.token)


def run(caller: Caller, name: str) -> UUID:
    """The job is running; returns its dispatch id."""
    return start(caller.key, wire.parse_id(name))


def finish(
    name: str,
    dispatch_id: UUID,
    *,
    status: states.Status = states.Status.SUCCEEDED,
    answer: bytes | None = ANSWER,
    answer_type: str | None = None,
) -> None:
    """The running job has ended."""
    result = states.JobResult(status, http_status=200, response=answer, response_type=answer_type)
    with db.begin() as session:
        assert completion.finish(
            session, wire.parse_id(name), dispatch_id, result, states.AttemptResult(states.Outcome.SUCCEEDED, 200, "req_up")
        )


def end(
    caller: Caller,
    name: str,
    *,
    status: states.Status = states.Status.SUCCEEDED,
    answer: bytes | None = ANSWER,
    answer_type: str | None = None,
) -> None:
    """The waiting job has run and ended."""
    finish(name, run(caller, name), status=status, answer=answer, answer_type=answer_type)


def stored() -> int:
    """The number of jobs."""
    with db.begin() as session:
        return int(session.execute(text("SELECT count(*) FROM job")).scalar_one())


def error_of(answer: TestResponse) -> dict[str, Any]:
    """The error object, after a check that the envelope is complete."""
    assert {"error"} == set(answer.json), answer.text
    assert {"message", "type", "param", "code"} == set(answer.json["error"])
    assert answer.headers["X-Request-Id"]
    return dict(answer.json["error"])


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of these calls, which start at the same moment in threads of their own. Raises the exception of a failed call."""
    gate = threading.Barrier(len(calls))

    def run_at_gate(call: Callable[[], Any]) -> Any:
        gate.wait()
        return call()

    return at_once(*[partial(run_at_gate, call) for call in calls])
