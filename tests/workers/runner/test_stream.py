"""One stream, byte by byte: a server sends the bytes that a test sets, and this process reads the relayed events."""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from models.database import db
from models.jobs import claims
from tests.support.programs.process import until
from tests.support.queue_tools import known, query, reap, row, start, submit
from tests.support.stream_tools import content, heard
from tests.upstream.answer import END_OF_CHUNKS, chunk
from workers.answers.retry_policy import NextStep
from workers.channels import notify, token_stream
from workers.runner import stream
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream.call import CallControl
from workers.upstream.exchange import Lost, Request

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
ONE = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
TWO = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"b"},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
CHUNKED = HEAD.replace(b"connection: close", b"transfer-encoding: chunked")


class Speaker(threading.Thread):
    """Answers one call with these parts; each waits until the one before it was relayed. stays: keeps the connection open."""

    def __init__(self, *parts: bytes, waits: Callable[[int], object] | None = None, stays: bool = False) -> None:
        super().__init__(daemon=True)
        self.parts, self.waits, self.stays = parts, waits, stays
        self.server = socket.create_server(("127.0.0.1", 0))
        self.asked = b""
        self.is_over = threading.Event()
        self.start()

    def run(self) -> None:
        with self.server, self.server.accept()[0] as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self.asked.endswith(b"}"):
                self.asked += connection.recv(65_536)
            for n, part in enumerate(self.parts):
                if n and self.waits:
                    self.waits(n)
                connection.sendall(part)
            if self.stays:
                self.is_over.wait(10)


@pytest.fixture
def running(database: None) -> Any:
    who = known()
    job_id = submit(who, request=b'{"model":"m","stream":true}', streamed=True)
    dispatch_id = start(who, job_id)
    found = row(job_id)
    return SimpleNamespace(**{**found._asdict(), "dispatch_id": dispatch_id})


def hear(running: Any, speaker: Speaker, *, publisher: StreamPublisher | None = None) -> tuple[Any, Any]:
    """Runs the stream; returns the parsed answer and the verdict."""
    answer, verdict = heard_raw(running, speaker, publisher=publisher)
    return json.loads(answer.body) if answer.body else None, verdict


def heard_raw(running: Any, speaker: Speaker, *, publisher: StreamPublisher | None = None) -> tuple[Any, Any]:
    """Runs the stream; returns the answer and the verdict."""
    request = Request(f"http://127.0.0.1:{speaker.server.getsockname()[1]}/", key="k", headers={}, content=b"{}")
    call = CallControl(deadline=time.monotonic() + 10)
    try:
        return stream.call_streamed(running, request, call=call, publisher=publisher or StreamPublisher(running))
    finally:
        speaker.is_over.set()
        speaker.join(5)


def content_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_events_of_one_read_are_relayed_together(running: Any) -> None:
    messages: list[Any] = []
    with notify.client().pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(token_stream.channel(running.id))
        listener.get_message(timeout=1)
        counts = {1: 3, 2: 4}
        speaker = Speaker(
            HEAD + ONE + TWO + ONE, TWO, LAST + DONE,
            waits=lambda n: until(lambda: len(heard(running.id)) == counts[n], what="relayed"),
        )  # fmt: skip
        answer, verdict = hear(running, speaker)
        while (message := listener.get_message(timeout=0.2)) is not None or not messages:
            messages.append(message)

    assert ("abab", NextStep.SUCCEED) == (content_of(answer), verdict.next)
    assert 3 == len(messages)


def test_a_stream_that_came_at_once_is_only_in_its_transcript(running: Any) -> None:
    publisher = StreamPublisher(running)
    answer, _ = hear(running, Speaker(CHUNKED + chunk(ONE + LAST + DONE) + END_OF_CHUNKS), publisher=publisher)

    assert ("a", ONE + LAST) == (content_of(answer), publisher.transcript)
    assert (False, []) == (publisher.has_published, heard(running.id))


def test_open_connection_after_the_end_delays_no_job(running: Any) -> None:
    began = time.monotonic()
    answer, verdict = hear(running, Speaker(HEAD + ONE + LAST + DONE, stays=True))

    assert ("a", NextStep.SUCCEED) == (content_of(answer), verdict.next)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("end", [LAST, LAST + USE, LAST + USE + DONE, TWO + DONE])
def test_a_stream_may_end_with_its_last_choice_or_by_saying_so(running: Any, end: bytes) -> None:
    answer, verdict = hear(running, Speaker(HEAD + ONE + end))

    assert NextStep.SUCCEED == verdict.next
    assert (USE in end) == ("usage" in answer)


@pytest.mark.parametrize("sent", [ONE, ONE + TWO, USE])
def test_a_stream_that_ends_before_its_answer_is_lost(running: Any, sent: bytes) -> None:
    with pytest.raises(Lost):
        hear(running, Speaker(HEAD + sent))


PAGE = b"<html>busy</html>"
GARBLED = b"data: not json\n\n"


@pytest.mark.parametrize("sent", [DONE, b": nothing\n\n" + ONE[:20], PAGE, GARBLED + ONE + LAST, ONE + GARBLED + TWO + LAST, b"oops"])
def test_a_stream_that_cannot_be_read_is_kept_whole(running: Any, sent: bytes) -> None:
    answer, verdict = heard_raw(running, Speaker(HEAD + sent))

    assert (sent, NextStep.UNREADABLE, "upstream_invalid_response") == (answer.body, verdict.next, verdict.error["code"])


@pytest.mark.parametrize("junk", [GARBLED, b"data: <!-- x -->\n\n", b'data: {"error": {"message": "late"}}\n\n', b"data: [1, 2]\n\n"])
def test_junk_after_the_last_choice_loses_nothing(running: Any, junk: bytes) -> None:
    publisher = StreamPublisher(running)
    answer, verdict = hear(running, Speaker(HEAD + ONE + LAST + junk + USE + DONE), publisher=publisher)

    assert ("a", NextStep.SUCCEED, True) == (content_of(answer), verdict.next, "usage" in answer)
    assert ONE + LAST == publisher.transcript


@pytest.mark.parametrize("done", [b"data: [DONE] \n\n", b"data:[DONE]\n\n", b"data: [DONE]"])
def test_the_end_is_seen_however_it_is_written(running: Any, done: bytes) -> None:
    answer, verdict = hear(running, Speaker(HEAD + ONE + done))

    assert ("a", NextStep.SUCCEED) == (content_of(answer), verdict.next)


def test_a_compressed_stream_is_relayed_as_it_comes(running: Any) -> None:
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(ONE) + packer.flush(zlib.Z_SYNC_FLUSH)
    speaker = Speaker(
        HEAD + first, packer.compress(LAST + DONE) + packer.flush(), waits=lambda n: until(lambda: heard(running.id), what="one")
    )
    answer, _ = hear(running, speaker)

    assert "a" == content_of(answer)


def test_an_event_with_a_list_around_it_is_relayed_without(running: Any) -> None:
    publisher = StreamPublisher(running)
    answer, _ = hear(running, Speaker(HEAD + b"data: [" + ONE[6:-2] + b"]\n\n" + LAST), publisher=publisher)

    assert ("a", ONE + LAST) == (content_of(answer), publisher.transcript)


def test_a_cut_after_the_last_choice_loses_nothing(running: Any) -> None:
    answer, verdict = hear(running, Speaker(CHUNKED + chunk(ONE + LAST)))

    assert ("a", NextStep.SUCCEED) == (content_of(answer), verdict.next)


def test_a_ping_is_not_relayed(running: Any) -> None:
    publisher = StreamPublisher(running)
    hear(running, Speaker(HEAD + b"event: ping\ndata: {}\n\n" + ONE + LAST), publisher=publisher)

    assert ONE + LAST == publisher.transcript


def test_json_is_recognised_whatever_it_is_called(running: Any) -> None:
    publisher = StreamPublisher(running)
    body = json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]})
    answer, _ = hear(running, Speaker(HEAD + b" \n" + body.encode()), publisher=publisher)

    assert "hi" == content_of(answer) == content(publisher.transcript or b"")


def test_an_error_in_place_of_a_stream_is_an_error(running: Any) -> None:
    publisher = StreamPublisher(running)
    head = HEAD.replace(b"text/event-stream", b"application/json")
    _, verdict = hear(running, Speaker(head + b'{"error":{"message":"slow down","code":"slow_down"}}'), publisher=publisher)

    assert (NextStep.WAIT, "slow down", None) == (verdict.next, verdict.error["message"], publisher.transcript)


def test_nothing_is_relayed_without_the_lease(running: Any) -> None:
    query("UPDATE job SET dispatch_id = gen_random_uuid() WHERE id = :id", id=running.id)
    publisher = StreamPublisher(running)
    publisher.add(ONE)
    publisher.flush()

    assert (False, []) == (publisher.has_published, heard(running.id))


def test_a_stream_that_redis_lost_is_not_begun_again_in_its_middle(running: Any) -> None:
    publisher = StreamPublisher(running)
    for event in (ONE, TWO, LAST):
        publisher.add(event)
        publisher.flush()
        if event == ONE:
            notify.client().delete(f"ns:stream:{running.id}")

    assert (True, [], ONE + TWO + LAST) == (publisher.has_published, heard(running.id), publisher.transcript)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        ({"include_usage": True}, {"include_usage": True}),
    ],
)
def test_usage_is_requested_beside_the_clients_options(environment: dict[str, str], asked: Any, sent: Any) -> None:
    body = {"model": "m", "stream": True, "temperature": 0.1, **({"stream_options": asked} if asked else {})}
    content = json.dumps(body).encode()
    row = SimpleNamespace(endpoint="/v1/chat/completions", request=content, streamed=True)

    assert {**body, "stream_options": sent} == json.loads(stream.with_usage_requested(row, content))
    assert stream.reader_options(row).with_usage == bool(asked and asked.get("include_usage"))


def test_use_is_not_asked_for_of_an_upstream_that_refuses_it(override: Callable[..., None]) -> None:
    override(stream_usage=False)
    body = b'{"model":"m",  "stream":true}'

    assert body == stream.with_usage_requested(SimpleNamespace(endpoint="/v1/chat/completions", streamed=True), body)


def test_a_lost_call_of_a_stream_that_had_begun_is_not_made_again(database: None) -> None:
    who = known()
    job_id = submit(who, streamed=True)
    dispatch_id = start(who, job_id)
    with db.begin() as session:
        assert claims.mark_streaming(session, job_id, dispatch_id)
        assert not claims.mark_streaming(session, job_id, UUID(int=1))
    reap()

    assert ("failed", "upstream_outcome_unknown") == (row(job_id).status, row(job_id).error["code"])
