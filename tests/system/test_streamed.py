"""Streamed jobs with a real pacer and worker: relayed as events arrive, and stored like the answer of a plain call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from tests.support.programs import processes
from tests.support.programs.live_jobs import ask, attempts, caller, cancel, row, violations, wait_ended, wake_lane
from tests.support.programs.process import until
from tests.support.programs.processes import Stack
from tests.support.queue_tools import query, submit
from tests.support.stream_tools import content, events, heard
from tests.upstream.chat import echo
from tests.upstream.images import png
from workers.answers.sse import EventParser
from workers.channels import notify, token_stream

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na fox\r\n'
    b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="f.png"\r\n\r\n\x89PNG\r\n--x--\r\n'
)


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack"), retry_base_s=0.05, pause_s=0.3) as stack:
        stack.pacer()
        stack.worker(threads=8)
        yield stack


def streamed(stack: Stack, prompt: str, **body: Any) -> Any:
    """The ended job of a new key."""
    stack.upstream.reset()
    (ended,) = wait_ended([_ask(prompt, **body)], stack=stack)
    assert [] == violations([ended.id], stack.upstream.calls())
    return ended


def _ask(prompt: str, **body: Any) -> UUID:
    return ask(caller(f"sk-{time.monotonic_ns()}"), prompt, streamed=True, body={"stream": True, **body})


def usage(job_id: UUID) -> list[tuple[int, int, int]]:
    rows = query("SELECT input_tokens, output_tokens, images FROM usage WHERE job_id = :id", id=job_id)
    return [(row.input_tokens, row.output_tokens, row.images) for row in rows]


def test_stream_can_be_read_before_it_ends(stack: Stack) -> None:
    stack.upstream.reset()
    job_id = _ask("a long answer to a question [[fake:hold_after=3]]")
    until(lambda: len(heard(job_id)) == 3, what="three chunks")
    during = row(job_id)
    stack.upstream.release()
    (ended,) = wait_ended([job_id], stack=stack)
    chunks = heard(job_id)

    assert ("running", None, "fail") == (during.status, during.transcript, during.on_lost)
    assert "succeeded" == ended.status
    assert bytes(ended.transcript) == b"".join(chunk.event for chunk in chunks)
    assert list(range(len(chunks))) == [chunk.n for chunk in chunks]
    assert {ended.dispatch_id} == {chunk.dispatch_id for chunk in chunks}
    assert echo("a long answer to a question [[fake:hold_after=3]]") == content(ended.transcript)


def test_ended_stream_expires_early_in_redis(stack: Stack) -> None:
    stack.upstream.reset()
    job_id = _ask("short [[fake:hold_after=1]]")
    until(lambda: heard(job_id), what="a chunk")
    key = f"ns:stream:{job_id}"
    during = notify.client().ttl(key)
    stack.upstream.release()
    wait_ended([job_id], stack=stack)
    until(lambda: notify.client().ttl(key) <= token_stream.ENDED_TTL_S, what="a shorter life")

    assert token_stream.ENDED_TTL_S < during <= token_stream.TTL_S


def test_stored_stream_equals_a_plain_answer(stack: Stack) -> None:
    from_stream = json.loads(streamed(stack, "twice", n=2).response)
    (ended,) = wait_ended([ask(caller("sk-plain"), "twice", body={"n": 2})], stack=stack)
    plain = json.loads(ended.response)

    for choice in plain["choices"]:
        choice["message"].pop("annotations")  # no stream contains it
    assert {**plain, "id": from_stream["id"], "created": from_stream["created"]} == from_stream


def test_stream_usage_is_recorded_without_being_requested(stack: Stack) -> None:
    ended = streamed(stack, "count")

    usage_field = json.loads(ended.response)["usage"]
    assert [(usage_field["prompt_tokens"], usage_field["completion_tokens"], 0)] == usage(ended.id)
    assert [] == [event for event in events(ended.transcript) if not event["choices"]]
    assert b"stream_options" not in bytes(ended.request)


def test_stream_includes_usage_when_requested(stack: Stack) -> None:
    ended = streamed(stack, "count", stream_options={"include_usage": True})

    assert json.loads(ended.response)["usage"] == events(ended.transcript)[-1]["usage"]


@pytest.mark.parametrize("kind", ["missing", "null", "empty"])
def test_missing_stream_usage_is_estimated(stack: Stack, kind: str) -> None:
    ended = streamed(stack, f"one two three four five [[fake:usage={kind}]]")

    ((asked, answered, _),) = usage(ended.id)
    assert 10 < asked < 25
    assert 10 < answered < 25
    assert query("SELECT 1 FROM usage WHERE job_id = :id AND estimated", id=ended.id)


def test_relayed_events_are_ascii(stack: Stack) -> None:
    ended = streamed(stack, "größer 😀\u2028")

    assert bytes(ended.transcript).isascii()
    assert echo("größer 😀\u2028") == content(ended.transcript) == json.loads(ended.response)["choices"][0]["message"]["content"]


def test_done_event_of_the_upstream_is_not_relayed(stack: Stack) -> None:
    assert b"[DONE]" not in bytes(streamed(stack, "done").transcript)


def test_streamed_image_is_stored(stack: Stack) -> None:
    body = {"model": "m", "prompt": "a fox", "stream": True, "partial_images": 2}
    key = caller("sk-streamed-picture")
    job_id = submit(key, endpoint="/v1/images/generations", images=1, request=json.dumps(body).encode(), streamed=True)
    wake_lane(key)
    (ended,) = wait_ended([job_id], stack=stack)

    names = [event.name.decode() for event in EventParser().feed(ended.transcript)]
    assert ["image_generation.partial_image"] * 2 + ["image_generation.completed"] == names
    (stored,) = query("SELECT content FROM artifact WHERE job_id = :id", id=job_id)
    assert png("a fox") == bytes(stored.content)
    usage_field = json.loads(ended.response)["usage"]
    assert [(usage_field["input_tokens"], usage_field["output_tokens"], 1)] == usage(job_id)


def test_image_edit_form_can_be_streamed(stack: Stack) -> None:
    key = caller("sk-streamed-edit")
    job = {"request": FORM, "content_type": "multipart/form-data; boundary=x", "streamed": True, "images": 1}
    job_id = submit(key, endpoint="/v1/images/edits", **job)
    wake_lane(key)
    (ended,) = wait_ended([job_id], stack=stack)

    assert ["image_edit.completed"] == [event["type"] for event in events(ended.transcript)]
    assert 1 == len(json.loads(ended.response)["data"])


@pytest.mark.parametrize("asked", [False, True])
def test_plain_answer_to_a_stream_is_relayed_as_events(stack: Stack, asked: bool) -> None:
    ended = streamed(stack, "plain [[fake:plain]]", stream_options={"include_usage": asked})

    answer = json.loads(ended.response)
    assert echo("plain [[fake:plain]]") == content(ended.transcript)
    assert ("chat.completion", asked) == (answer["object"], events(ended.transcript)[-1]["choices"] == [])
    assert [(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"], 0)] == usage(ended.id)


def test_cancelled_stream_is_closed_at_once_and_keeps_its_beginning(stack: Stack) -> None:
    stack.upstream.reset()
    job_id = _ask("cancel me, please, I am long [[fake:hold_after=2]]")
    until(lambda: len(heard(job_id)) == 2, what="two chunks")
    cancel(job_id)
    (ended,) = wait_ended([job_id])
    stack.upstream.wait_for_calls(1, outcome="client_gone")

    assert ("cancelled", ["cancelled"]) == (ended.status, attempts(job_id))
    assert bytes(ended.transcript) == b"".join(chunk.event for chunk in heard(job_id))
