"""The rules for a stream that had to wait in line, each measured at a real client once, looked at byte by byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from tests.clients.conftest import World, chat
from tests.clients.raw import Raw
from tests.upstream.chat import echo

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
# A comment is one line with one newline: after an empty one some readers fire an empty message.
COMMENTS = re.compile(rb"(?::[^\n]*\n)*")
QUEUED = re.compile(rb": queued position=(\d+) eta_s=\d+(?:\.\d+)?\n")
EVENT = re.compile(rb"data: [^\n]*\n\n")
FAILURES = ("status=403", "error_after=2", "cut_after=2", "reset=body")


@pytest.fixture
def ask(world: World, key: str) -> Callable[..., Raw]:
    """A streamed chat, asked for on a socket of its own."""

    def make(say: str = "hello", **more: Any) -> Raw:
        return Raw(world.api.port, PATH, chat(say, stream=True, **more), key)

    return make


@pytest.fixture
def refused(world: World, key: str) -> Callable[..., Raw]:
    """A streamed call that is refused before it stands in line, by name."""
    wrong = {
        "no key": partial(Raw, world.api.port, PATH, chat("hello", stream=True)),
        "bad key": partial(Raw, world.api.port, PATH, chat("hello", stream=True), "ns-unknown"),
        "bad body": partial(Raw, world.api.port, PATH, chat("hello", stream=True) | {"messages": 7}, key),
        "not JSON": partial(Raw, world.api.port, PATH, b'{"stream": true', key),
        "line full": partial(Raw, world.narrow.port, PATH, chat("hello", stream=True), key),
    }

    def make(name: str) -> Raw:
        if name == "line full":
            fill(world, key)
        return wrong[name]()

    return make


def fill(world: World, key: str) -> None:
    """Nobody else fits into this key's line at the narrow API."""
    world.block(key)
    while True:
        with Raw(world.narrow.port, "/v1/jobs", {"endpoint": PATH, "body": chat("filler")}, key) as made:
            if made.head().status == 429:
                return
            assert 202 == made.status, made.whole()


def test_rule_1_the_headers_come_before_the_job_leaves_the_line(world: World, key: str, ask: Callable[..., Raw]) -> None:
    world.block(key)
    said = uuid4().hex
    with ask(said) as stream:
        stream.until(b"\n")

        assert 200 == stream.status
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert ("no-cache", "no") == (stream.headers["cache-control"], stream.headers["x-accel-buffering"])
        assert [] == world.calls(said)
        world.upstream.release()
        assert DONE in stream.until(DONE)


def test_rule_2_waiting_stream_gets_its_position_in_comments_of_one_newline(world: World, key: str, ask: Callable[..., Raw]) -> None:
    world.block(key)
    with ask() as first:
        assert QUEUED.search(first.until(b"position="))
        with ask() as second:
            assert b": queued position=2 " in second.until(b"position=")
        world.upstream.release()
        whole = first.whole()

        before, _, _ = whole.partition(b"data: ")
        assert COMMENTS.fullmatch(before), before
        assert b"\n\n:" not in before


@pytest.mark.parametrize("how", ["", *FAILURES])
def test_rule_3_no_line_names_an_id_an_event_or_a_retry(world: World, key: str, ask: Callable[..., Raw], how: str) -> None:
    world.block(key)
    with ask(f"[[fake:{how}]]" if how else "hello") as stream:
        stream.until(b"\n")
        world.upstream.release()
        names = {line.partition(b":")[0] for line in stream.whole().split(b"\n") if line}

        assert {b"", b"data"} == names


@pytest.mark.parametrize("how", ["", *FAILURES])
def test_rule_4_the_last_words_are_done_whatever_happened(ask: Callable[..., Raw], how: str) -> None:
    with ask(f"[[fake:{how}]]" if how else "hello") as stream:
        whole = stream.whole()

        assert whole.endswith(DONE)
        assert 1 == whole.count(DONE)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*", "text/html"])
def test_rule_5_accept_header_does_not_change_a_stream(world: World, key: str, accept: str) -> None:
    with Raw(world.api.port, PATH, chat("hello", stream=True), key, more={"Accept": accept}) as stream:
        whole = stream.whole()

        assert stream.headers["content-type"].startswith("text/event-stream")
        assert whole.endswith(DONE)


@pytest.mark.parametrize(("name", "status"), [("no key", 401), ("bad key", 401), ("bad body", 400), ("not JSON", 400), ("line full", 429)])
def test_rule_6_an_error_before_the_line_has_its_status_and_four_keys(refused: Callable[..., Raw], name: str, status: int) -> None:
    with refused(name) as answer:
        error = answer.json["error"]

        assert (status, "application/json") == (answer.status, answer.headers["content-type"])
        assert {"message", "type", "param", "code"} == set(error)
        assert error["message"]


@pytest.mark.parametrize("how", FAILURES)
def test_rule_7_a_late_error_is_a_chunk_with_text_and_an_error_then_a_stop(ask: Callable[..., Raw], how: str) -> None:
    with ask(f"[[fake:{how}]]") as stream:
        *_, failed, stopped = stream.chunks

        assert failed["error"]["message"] in failed["choices"][0]["delta"]["content"]
        assert {"message", "type", "param", "code"} <= set(failed["error"])
        assert None is failed["choices"][0]["finish_reason"]
        assert ("stop", {}) == (stopped["choices"][0]["finish_reason"], stopped["choices"][0]["delta"])
        assert {"chat.completion.chunk"} == {chunk["object"] for chunk in stream.chunks}


@pytest.mark.parametrize("said", ["plain", "Ü 世界 😀 \u2028 \x7f"])
def test_rule_8_each_event_is_one_write_and_ascii(world: World, key: str, ask: Callable[..., Raw], said: str) -> None:
    world.block(key)
    with ask(said) as stream:
        stream.until(b"\n")
        world.upstream.release()
        whole = stream.whole()

        assert whole.isascii()
        assert echo(said) == "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in stream.chunks)
        written = [piece for _, piece in stream.frames if b"data:" in piece]
        assert [] == [piece for piece in written if not EVENT.fullmatch(piece[COMMENTS.match(piece).end() :])]  # type: ignore[union-attr]


def test_rule_9_every_answer_has_an_id_of_its_own(world: World, key: str, ask: Callable[..., Raw]) -> None:
    replay = {"Idempotency-Key": uuid4().hex}
    streams = [
        ask("hello"), ask("hello"),
        Raw(world.api.port, PATH, chat("again", stream=True), key, more=replay),
        Raw(world.api.port, PATH, chat("again", stream=True), key, more=replay),
    ]  # fmt: skip
    ids = [{chunk["id"] for chunk in stream.chunks} for stream in streams]

    assert [1] * 4 == [len(found) for found in ids]
    assert 4 == len(set.union(*ids))
    assert 1 == len(world.calls("again"))
    assert all(re.fullmatch(r"chatcmpl-\w+", found.pop()) for found in ids)


@pytest.mark.parametrize("how", ["", *FAILURES])
def test_rule_10_every_choice_has_a_delta(ask: Callable[..., Raw], how: str) -> None:
    with ask(f"[[fake:{how}]]" if how else "hello", n=2, stream_options={"include_usage": True}) as stream:
        chunks = stream.chunks

        assert all("delta" in choice for chunk in chunks for choice in chunk["choices"])
        assert how or [] == chunks[-1]["choices"]
        assert how or chunks[-1]["usage"]["total_tokens"]


def test_rule_11_a_body_in_chunks_without_a_length_is_taken(world: World, key: str) -> None:
    said = json.dumps(chat("hello", stream=True)).encode()
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (said[:9], said[9:])) + b"0\r\n\r\n"
    with Raw(world.api.port, PATH, body, key, more={"Content-Length": "", "Transfer-Encoding": "chunked"}) as stream:
        assert stream.whole().endswith(DONE)


def test_rule_12_a_long_wait_without_a_stream_drips_spaces_before_the_body(world: World, key: str) -> None:
    world.block(key)
    with Raw(world.narrow.port, PATH, chat("hello"), key) as answer:
        dripped = answer.until(b" ")
        world.upstream.release()

        assert (200, "application/json") == (answer.status, answer.headers["content-type"])
        assert b"" == dripped.strip(b" ")
        assert echo("hello") == answer.json["choices"][0]["message"]["content"]


def test_rule_12_an_early_failure_without_a_stream_has_its_status(world: World, key: str) -> None:
    with Raw(world.api.port, PATH, chat("[[fake:status=404]]"), key) as answer:
        assert "model_not_found" == answer.json["error"]["code"]
        assert 404 == answer.status


@pytest.mark.parametrize("name", ["no key", "bad key", "bad body", "line full"])
def test_rule_13_permanent_error_has_x_should_retry_false(refused: Callable[..., Raw], name: str) -> None:
    with refused(name) as answer:
        assert "false" == answer.head().headers["x-should-retry"]
        assert (name == "line full") == ("retry-after" in answer.headers)


def test_rule_13_no_money_is_not_asked_for_again(world: World, key: str) -> None:
    with Raw(world.api.port, PATH, chat("[[fake:status=429;kind=quota]]"), key) as answer:
        assert (429, "false") == (answer.head().status, answer.headers["x-should-retry"])
