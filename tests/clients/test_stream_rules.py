"""Rules for streams that wait in the queue, each measured once with a real client and checked here byte by byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from tests.clients.conftest import System, chat
from tests.clients.raw import Raw
from tests.upstream.chat import echo

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
# A comment is one line with one newline: after an empty line some clients emit an empty message.
COMMENTS = re.compile(rb"(?::[^\n]*\n)*")
QUEUED = re.compile(rb": queued position=(\d+) eta_s=\d+(?:\.\d+)?\n")
EVENT = re.compile(rb"data: [^\n]*\n\n")
FAILURES = ("status=403", "error_after=2", "cut_after=2", "reset=body")


@pytest.fixture
def ask(system: System, key: str) -> Callable[..., Raw]:
    """Request a streamed chat on a socket of its own."""

    def make(say: str = "hello", **more: Any) -> Raw:
        return Raw(system.api.port, PATH, chat(say, stream=True, **more), key)

    return make


@pytest.fixture
def refused(system: System, key: str) -> Callable[..., Raw]:
    """A streamed call that is refused before it is enqueued, by name."""
    wrong = {
        "no key": partial(Raw, system.api.port, PATH, chat("hello", stream=True)),
        "bad key": partial(Raw, system.api.port, PATH, chat("hello", stream=True), "ns-unknown"),
        "bad body": partial(Raw, system.api.port, PATH, chat("hello", stream=True) | {"messages": 7}, key),
        "not JSON": partial(Raw, system.api.port, PATH, b'{"stream": true', key),
        "queue full": partial(Raw, system.narrow.port, PATH, chat("hello", stream=True), key),
    }

    def make(name: str) -> Raw:
        if name == "queue full":
            fill_queue(system, key)
        return wrong[name]()

    return make


def fill_queue(system: System, key: str) -> None:
    """Fill this key's queue at the narrow API."""
    system.block(key)
    while True:
        with Raw(system.narrow.port, "/v1/jobs", {"endpoint": PATH, "body": chat("filler")}, key) as response:
            if response.head().status == 429:
                return
            assert 202 == response.status, response.whole()


def test_rule_1_headers_are_sent_while_the_job_is_queued(system: System, key: str, ask: Callable[..., Raw]) -> None:
    system.block(key)
    prompt = uuid4().hex
    with ask(prompt) as stream:
        stream.until(b"\n")

        assert 200 == stream.status
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert ("no-cache", "no") == (stream.headers["cache-control"], stream.headers["x-accel-buffering"])
        assert [] == system.calls(prompt)
        system.upstream.release()
        assert DONE in stream.until(DONE)


def test_rule_2_waiting_stream_gets_its_position_in_one_line_comments(system: System, key: str, ask: Callable[..., Raw]) -> None:
    system.block(key)
    with ask() as first:
        assert QUEUED.search(first.until(b"position="))
        with ask() as second:
            assert b": queued position=2 " in second.until(b"position=")
        system.upstream.release()
        whole = first.whole()

        before, _, _ = whole.partition(b"data: ")
        assert COMMENTS.fullmatch(before), before
        assert b"\n\n:" not in before


@pytest.mark.parametrize("behaviour", ["", *FAILURES])
def test_rule_3_stream_has_no_id_event_or_retry_lines(system: System, key: str, ask: Callable[..., Raw], behaviour: str) -> None:
    system.block(key)
    with ask(f"[[fake:{behaviour}]]" if behaviour else "hello") as stream:
        stream.until(b"\n")
        system.upstream.release()
        names = {line.partition(b":")[0] for line in stream.whole().split(b"\n") if line}

        assert {b"", b"data"} == names


@pytest.mark.parametrize("behaviour", ["", *FAILURES])
def test_rule_4_every_stream_ends_with_done(ask: Callable[..., Raw], behaviour: str) -> None:
    with ask(f"[[fake:{behaviour}]]" if behaviour else "hello") as stream:
        whole = stream.whole()

        assert whole.endswith(DONE)
        assert 1 == whole.count(DONE)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*", "text/html"])
def test_rule_5_accept_header_does_not_change_a_stream(system: System, key: str, accept: str) -> None:
    with Raw(system.api.port, PATH, chat("hello", stream=True), key, more={"Accept": accept}) as stream:
        whole = stream.whole()

        assert stream.headers["content-type"].startswith("text/event-stream")
        assert whole.endswith(DONE)


@pytest.mark.parametrize(("name", "status"), [("no key", 401), ("bad key", 401), ("bad body", 400), ("not JSON", 400), ("queue full", 429)])
def test_rule_6_error_before_the_queue_has_its_status_and_four_keys(refused: Callable[..., Raw], name: str, status: int) -> None:
    with refused(name) as answer:
        error = answer.json["error"]

        assert (status, "application/json") == (answer.status, answer.headers["content-type"])
        assert {"message", "type", "param", "code"} == set(error)
        assert error["message"]


@pytest.mark.parametrize("behaviour", FAILURES)
def test_rule_7_late_error_is_a_chunk_with_text_and_error_then_a_stop(ask: Callable[..., Raw], behaviour: str) -> None:
    with ask(f"[[fake:{behaviour}]]") as stream:
        *_, failed, stopped = stream.chunks

        assert failed["error"]["message"] in failed["choices"][0]["delta"]["content"]
        assert {"message", "type", "param", "code"} <= set(failed["error"])
        assert None is failed["choices"][0]["finish_reason"]
        assert ("stop", {}) == (stopped["choices"][0]["finish_reason"], stopped["choices"][0]["delta"])
        assert {"chat.completion.chunk"} == {chunk["object"] for chunk in stream.chunks}


@pytest.mark.parametrize("prompt", ["plain", "Ü 世界 😀 \u2028 \x7f"])
def test_rule_8_each_event_is_one_write_and_ascii(system: System, key: str, ask: Callable[..., Raw], prompt: str) -> None:
    system.block(key)
    with ask(prompt) as stream:
        stream.until(b"\n")
        system.upstream.release()
        whole = stream.whole()

        assert whole.isascii()
        assert echo(prompt) == "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream.chunks)
        written = [chunk for _, chunk in stream.frames if b"data:" in chunk]
        assert [] == [chunk for chunk in written if not EVENT.fullmatch(chunk[COMMENTS.match(chunk).end() :])]  # type: ignore[union-attr]


def test_rule_9_every_answer_has_its_own_id(system: System, key: str, ask: Callable[..., Raw]) -> None:
    replay = {"Idempotency-Key": uuid4().hex}
    streams = [
        ask("hello"), ask("hello"),
        Raw(system.api.port, PATH, chat("again", stream=True), key, more=replay),
        Raw(system.api.port, PATH, chat("again", stream=True), key, more=replay),
    ]  # fmt: skip
    ids = [{chunk["id"] for chunk in stream.chunks} for stream in streams]

    assert [1] * 4 == [len(stream_ids) for stream_ids in ids]
    assert 4 == len(set.union(*ids))
    assert 1 == len(system.calls("again"))
    assert all(re.fullmatch(r"chatcmpl-\w+", stream_ids.pop()) for stream_ids in ids)


@pytest.mark.parametrize("behaviour", ["", *FAILURES])
def test_rule_10_every_choice_has_a_delta(ask: Callable[..., Raw], behaviour: str) -> None:
    with ask(f"[[fake:{behaviour}]]" if behaviour else "hello", n=2, stream_options={"include_usage": True}) as stream:
        chunks = stream.chunks

        assert all("delta" in choice for chunk in chunks for choice in chunk["choices"])
        assert behaviour or [] == chunks[-1]["choices"]
        assert behaviour or chunks[-1]["usage"]["total_tokens"]


def test_rule_11_chunked_request_body_is_accepted(system: System, key: str) -> None:
    prompt = json.dumps(chat("hello", stream=True)).encode()
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (prompt[:9], prompt[9:])) + b"0\r\n\r\n"
    with Raw(system.api.port, PATH, body, key, more={"Content-Length": "", "Transfer-Encoding": "chunked"}) as stream:
        assert stream.whole().endswith(DONE)


def test_rule_12_plain_call_gets_spaces_before_the_body_while_it_waits(system: System, key: str) -> None:
    system.block(key)
    with Raw(system.narrow.port, PATH, chat("hello"), key) as answer:
        spaces = answer.until(b" ")
        system.upstream.release()

        assert (200, "application/json") == (answer.status, answer.headers["content-type"])
        assert b"" == spaces.strip(b" ")
        assert echo("hello") == answer.json["choices"][0]["message"]["content"]


def test_rule_12_early_failure_of_a_plain_call_has_its_status(system: System, key: str) -> None:
    with Raw(system.api.port, PATH, chat("[[fake:status=404]]"), key) as answer:
        assert "model_not_found" == answer.json["error"]["code"]
        assert 404 == answer.status


@pytest.mark.parametrize("name", ["no key", "bad key", "bad body", "queue full"])
def test_rule_13_permanent_error_has_x_should_retry_false(refused: Callable[..., Raw], name: str) -> None:
    with refused(name) as answer:
        assert "false" == answer.head().headers["x-should-retry"]
        assert (name == "queue full") == ("retry-after" in answer.headers)


def test_rule_13_error_of_missing_quota_is_not_retried(system: System, key: str) -> None:
    with Raw(system.api.port, PATH, chat("[[fake:status=429;kind=quota]]"), key) as answer:
        assert (429, "false") == (answer.head().status, answer.headers["x-should-retry"])
