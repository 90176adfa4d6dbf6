"""Handles one call: parse, charge, record in the journal, and answer or misbehave."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from tests.upstream import chat, control, images, texts
from tests.upstream.answer import Answer, error, fresh, plain
from tests.upstream.ask import Ask, BadAsk
from tests.upstream.behaviour import Behaviour, label
from tests.upstream.control import State
from tests.upstream.errors import BY_STATUS, refused
from tests.upstream.faults import Turn, perform
from tests.upstream.journal import GONE, TEXT_CHARS, Call, fingerprint
from tests.upstream.limits import Refusal
from tests.upstream.wire import Connection, Request

ROUTES: dict[tuple[str, str], Callable[[Request], Ask]] = {
    ("POST", "/v1/chat/completions"): chat.ask,
    ("POST", "/v1/images/generations"): images.generate,
    ("POST", "/v1/images/edits"): images.edit,
    ("POST", "/v1/embeddings"): texts.embed,
    ("POST", "/v1/moderations"): texts.moderate,
    ("GET", "/v1/models"): texts.models,
    ("POST", "/elsewhere"): texts.elsewhere,
    ("GET", "/elsewhere"): texts.elsewhere,
}
KEPT_HEADERS = ("x-nowserving-", "x-client-request-id", "openai-", "idempotency-key", "http-referer", "x-title", "cookie")
# Azure's paths: of a deployment, of the v1 API, or without a deployment.
AZURE = re.compile(r"/openai(?:/deployments/[^/]+|/v1)?(?=/)")
ALWAYS = "openai-version: 2020-10-01\r\nopenai-organization: org-fake\r\n"


class Upstream:
    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self._state = State()

    def serve(self, connection: Connection, request: Request) -> Coroutine[Any, Any, None] | None:
        if request.path.startswith("/_fake/"):
            connection.write(self._control(connection, request).whole())
            return None
        arrived = time.perf_counter()
        state, request_id = self._state, fresh("req_")
        is_azure = request.path.startswith("/openai/")
        given = request.headers.get("api-key" if is_azure else "authorization", "")
        key = given.removeprefix("Bearer ").strip()
        ask = _ask(request, key)
        now = time.monotonic()
        limits = state.limits_of(key, ask.model) if ask.is_metered and not ask.is_fixed else None
        refusal = limits.admit(now, tokens=ask.tokens, images=ask.images) if limits else None
        try:
            how = None if refusal or ask.is_fixed else state.scripts.next(key, ask.text)
        except ValueError as error:
            how, ask.answer = None, partial(_wrong, str(error))
        call = _call(state, request, ask, key=key, request_id=request_id, refusal=refusal, how=how)
        call.connection = connection.number
        state.journal.begin(call, now=now)
        rate_lines = limits.headers(now) if limits else ""

        def end(outcome: str) -> None:
            if state.journal.end(call, outcome) and limits and not refusal:
                limits.in_flight -= 1

        def head_lines() -> str:
            spent_ms = int((time.perf_counter() - arrived) * 1000)
            return f"x-request-id: {request_id}\r\nopenai-processing-ms: {spent_ms}\r\n{ALWAYS}{rate_lines}"

        if how is not None:
            answer_as = ask.plain if how.plain and ask.plain else ask.answer
            turn = Turn(connection, state.held, end, partial(setattr, call, "outcome"), head_lines, answer_as)
            return _perform(how, turn, delay_s=state.scripts.delay_s(how.delay) if how.delay else 0.0)
        answer = refused(refusal, ask.model) if refusal else ask.answer()
        sent = answer.whole(head_lines())
        end(str(answer.status))
        connection.write(sent)
        return None

    def _control(self, connection: Connection, request: Request) -> Answer:
        if (request.method, request.path) != ("POST", "/_fake/reset"):
            return control.answer(self._state, request)
        for other in list(self.connections):
            if other.task is not None and other is not connection:  # a call of an earlier test
                other.abort()
        self._state = State()
        return plain({})


async def _perform(how: Behaviour, turn: Turn, *, delay_s: float) -> None:
    try:
        await perform(how, turn, delay_s=delay_s)
    except asyncio.CancelledError:
        turn.end(GONE)
        raise


def _ask(request: Request, key: str) -> Ask:
    """Parse the call. An invalid call is answered with its error, independent of limits."""
    path = AZURE.sub("/v1", request.path.rstrip("/"), count=1)
    route = ROUTES.get((request.method, "/v1/models" if path.startswith("/v1/models/") else path))
    if route is None:
        answer = error(404, f"Invalid URL ({request.method} {request.path})", type="invalid_request_error")
    elif not key and route is not texts.elsewhere:
        kind, code, message = BY_STATUS[401]
        answer = error(401, message, type=kind, code=code)
    else:
        try:
            return route(request)
        except BadAsk as bad:
            answer = _wrong(str(bad), param=bad.param)
        except (AttributeError, TypeError, ValueError) as bad:
            answer = _wrong(f"Invalid type for a parameter: {bad}")
    return Ask("", "", lambda: answer, is_fixed=True)


def _wrong(message: str, *, param: str | None = None) -> Answer:
    return error(400, message, type="invalid_request_error", param=param)


def _call(state: State, request: Request, ask: Ask, *, key: str, request_id: str, refusal: Refusal | None, how: Behaviour | None) -> Call:
    kept = {name: value for name, value in request.headers.items() if name.startswith(KEPT_HEADERS)}
    who = fingerprint(key)
    return Call(
        n=len(state.journal.calls), at=time.time(), key=who, model=ask.model, path=request.path, query=request.query,
        text=ask.text[:TEXT_CHARS], headers=kept,
        tokens=ask.tokens, images=ask.images, is_stream=ask.stream, in_flight_at_start=state.journal.tally(who).in_flight,
        request_id=request_id, is_refused=refusal is not None, behaviour=label(how) if how else "", before=ask.before,
    )  # fmt: skip
