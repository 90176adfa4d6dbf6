"""Parsing of requests on OpenAI routes: body bytes, lane, reserved tokens and money, idempotency."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from flask import request
from werkzeug.test import TestResponse

from api.http.body_budget import budget
from api.submit import openai_parse
from api.submit.openai_parse import ParsedRequest
from api.waiting.registry import waiter_registry
from models.content.endpoints import CHAT, EMBEDDINGS, IMAGES, MODERATIONS
from models.keys.keys import Key
from models.platform.errors import Invalid, UnsupportedMedia
from tests.support.http_tools import Caller, end, new_app
from tests.support.programs.process import until

CALLER = Key(id=1, pool_id=1, kind="own")
MESSAGES = [{"role": "user", "content": "hi there"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": MESSAGES},
    IMAGES: {"prompt": "a cat", "n": 2},
    EMBEDDINGS: {"model": "e", "input": "hi there"},
    MODERATIONS: {"input": "hi there"},
}

pytestmark = pytest.mark.usefixtures("environment")


def read(endpoint: str, body: object = None, **more: Any) -> ParsedRequest:
    """Parses this body (bytes as they are, anything else as JSON)."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"path": endpoint, "method": "POST", "data": content, "content_type": "application/json", **more}
    with new_app().test_request_context(**sent):
        return openai_parse.parse(request, CALLER, endpoint)


def refusal(endpoint: str, body: object = None, **more: Any) -> Invalid:
    with pytest.raises(Invalid) as refused:
        read(endpoint, body, **more)
    return refused.value


@pytest.mark.parametrize("endpoint", BODIES)
def test_the_clients_own_bytes_go_to_the_upstream(endpoint: str) -> None:
    sent = json.dumps({"x_new": [1.50, 1e2, "é"], **BODIES[endpoint]}, indent=1, ensure_ascii=False).encode()

    submission = read(endpoint, b"\xef\xbb\xbf" + sent).submission

    assert (sent, None, endpoint) == (submission.request, submission.content_type, submission.endpoint)


@pytest.mark.parametrize(
    ("endpoint", "body", "lane"),
    [
        (CHAT, BODIES[CHAT], "m"),
        (IMAGES, BODIES[IMAGES], "default"),
        (IMAGES, {"prompt": "a cat", "model": None}, "default"),
        (IMAGES, {"prompt": "a cat", "model": "p"}, "p"),
        (EMBEDDINGS, BODIES[EMBEDDINGS], "e"),
        (MODERATIONS, BODIES[MODERATIONS], "omni-moderation-latest"),
        (MODERATIONS, {"input": "x", "model": "mod"}, "mod"),
    ],
)
def test_each_model_has_its_line(endpoint: str, body: dict[str, Any], lane: str) -> None:
    assert lane == read(endpoint, body).submission.model


@pytest.mark.parametrize("body", [{"prompt": "a cat"}, {"model": None, "prompt": "a cat"}])
def test_the_operators_image_model_is_filled_in(body: dict[str, Any], override: Callable[..., None]) -> None:
    override(default_image_model="gpt-image-2")

    submission = read(IMAGES, body).submission

    assert ("gpt-image-2", {**body, "model": "gpt-image-2"}) == (submission.model, json.loads(submission.request))


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens", "images"),
    [
        (CHAT, {**BODIES[CHAT], "max_tokens": 10}, 2 + 4 + 10, 0),
        (CHAT, {**BODIES[CHAT], "max_tokens": 10, "n": 3, "stream": True}, 2 + 4 + 30, 0),
        (CHAT, {**BODIES[CHAT], "max_tokens": 10, "tools": [{"type": "function", "function": {"name": "find"}}]}, 2 + 4 + 14 + 10, 0),
        (IMAGES, BODIES[IMAGES], 2, 2),
        (EMBEDDINGS, {"model": "e", "input": "hi there you"}, 3, 0),
        (EMBEDDINGS, {"model": "e", "input": ["hi there you", "two"]}, 4, 0),
        (EMBEDDINGS, {"model": "e", "input": [1, 2, 3, 4, 5]}, 5, 0),
        (EMBEDDINGS, {"model": "e", "input": [[1, 2], [3]]}, 3, 0),
        (MODERATIONS, {"input": ["hi there", "you"]}, 3, 0),
        (MODERATIONS, {"input": [{"type": "text", "text": "hi there"}, {"type": "image_url", "image_url": {"url": "u"}}]}, 1_107, 0),
    ],
)
def test_reservation_follows_the_body(endpoint: str, body: dict[str, Any], tokens: int, images: int) -> None:
    submission = read(endpoint, body).submission

    assert (tokens, images) == (submission.tokens, submission.images)


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        (CHAT, {"model": 7}, "model"),
        (CHAT, {"messages": {}}, "messages"),
        (CHAT, {"messages": [7]}, "messages"),
        (CHAT, {"stream": "true"}, "stream"),
        (IMAGES, {"prompt": ["a"]}, "prompt"),
        (EMBEDDINGS, {"input": None}, "input"),
        (EMBEDDINGS, {"input": 7}, "input"),
        (MODERATIONS, {"input": None}, "input"),
    ],
)
def test_a_wrong_field_is_named_as_the_client_named_it(endpoint: str, fields: dict[str, Any], param: str) -> None:
    assert param == refusal(endpoint, {**BODIES[endpoint], **fields}).param


@pytest.mark.parametrize("stream", [True, False, None])
def test_a_stream_is_a_stream_in_the_line(stream: bool | None) -> None:
    assert bool(stream) == read(CHAT, {**BODIES[CHAT], "stream": stream}).submission.streamed
    assert bool(stream) == read(IMAGES, {**BODIES[IMAGES], "stream": stream}).submission.streamed


def test_requests_without_a_model_share_a_lane() -> None:
    for endpoint in (CHAT, EMBEDDINGS):
        for model in (None, ""):
            assert "default" == read(endpoint, {**BODIES[endpoint], "model": model}).submission.model


def test_flow_is_independent_of_the_upstreams_user_field() -> None:
    flows = [read(CHAT, {**BODIES[CHAT], "user": user}).submission.flow for user in ("a", "a" * 300, "a" * 301, "a\0", "\ud800", "")]

    assert ["a", "key"] == [flows[0], flows[-1]]
    assert 6 == len(set(flows)) and all(flow.isprintable() and len(flow) <= 256 for flow in flows)


def test_equal_bodies_have_equal_fingerprints() -> None:
    one, same, other = (read(CHAT, body).digest for body in ({"a": 1, **BODIES[CHAT]}, {**BODIES[CHAT], "a": 1}, {**BODIES[CHAT], "a": 2}))

    assert one == same
    assert other != one
    assert read(EMBEDDINGS, {"model": "m", "input": "x"}).digest != read(MODERATIONS, {"model": "m", "input": "x"}).digest


@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data; boundary=x"])
def test_only_json_is_taken_for_json(content_type: str | None) -> None:
    assert isinstance(refusal(CHAT, BODIES[CHAT], content_type=content_type), UnsupportedMedia)


def test_json_may_name_its_charset() -> None:
    assert "m" == read(CHAT, BODIES[CHAT], content_type="application/json; charset=utf-8").submission.model


@pytest.mark.usefixtures("database")
def test_waiting_request_does_not_hold_its_body() -> None:
    caller, size = Caller(), 8 * 2**20
    content = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * size}]}).encode()
    result: list[TestResponse] = []
    thread = threading.Thread(
        target=lambda: result.append(caller.post("/v1/chat/completions", data=content, content_type="application/json"))
    )

    tracemalloc.start()
    thread.start()
    until(lambda: len(waiter_registry) == 1, what="seated")
    held, taken = tracemalloc.get_traced_memory()[0], budget.held_bytes
    tracemalloc.stop()
    end(caller, caller.get("/v1/jobs").json["data"][0]["id"])
    thread.join(20)

    assert held < size / 2  # what the test holds itself was there before
    assert 0 == taken
    assert [200] == [answer.status_code for answer in result]
