"""Jobs that are asked for a stream, with a real pacer and worker: relayed as it comes, and kept as a plain call would have answered."""

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
    with processes.running(tmp_path_factory.mktemp("stack"), retry_base_s=0.05, pause_s=0.3) as made:
        made.pacer()
        made.worker(threads=8)
        yield made


def streamed(stack: Stack, said: str, **body: Any) -> Any:
    """The ended job of a key that nobody else uses."""
    stack.upstream.reset()
    (ended,) = wait_ended([_ask(said, **body)], stack=stack)
    assert [] == violations([ended.id], stack.upstream.calls())
    return ended


def _ask(said: str, **body: Any) -> UUID:
    return ask(caller(f"sk-{time.monotonic_ns()}"), said, streamed=True, body={"stream": True, **body})


def usage(job_id: UUID) -> list[tuple[int, int, int]]:
    found = query("SELECT input_tokens, output_tokens, images FROM usage WHERE job_id = :id", id=job_id)
    return [(one.input_tokens, one.output_tokens, one.images) for one in found]


def test_a_stream_can_be_read_before_it_has_ended(stack: Stack) -> None:
    stack.upstream.reset()
    job_id = _ask("a long answer to a question [[fake:hold_after=3]]")
    until(lambda: len(heard(job_id)) == 3, what="three chunks")
    during = row(job_id)
    stack.upstream.release()
    (ended,) = wait_ended([job_id], stack=stack)
    read = heard(job_id)

    assert ("running", None, "fail") == (during.status, during.transcript, during.on_lost)
    assert "succeeded" == ended.status
    assert bytes(ended.transcript) == b"".join(chunk.event for chunk in read)
    assert list(range(len(read))) == [chunk.n for chunk in read]
    assert {ended.dispatch_id} == {chunk.dispatch_id for chunk in read}
    assert echo("a long answer to a question [[fake:hold_after=3]]") == content(ended.transcript)


def test_redis_soon_forgets_a_stream_that_has_its_transcript(stack: Stack) -> None:
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
    told = json.loads(streamed(stack, "twice", n=2).response)
    (ended,) = wait_ended([ask(caller("sk-plain"), "twice", body={"n": 2})], stack=stack)
    plain = json.loads(ended.response)

    for choice in plain["choices"]:
        choice["message"].pop("annotations")  # no stream says it
    assert {**plain, "id": told["id"], "created": told["created"]} == told


def test_stream_usage_is_recorded_without_being_requested(stack: Stack) -> None:
    ended = streamed(stack, "count")

    said = json.loads(ended.response)["usage"]
    assert [(said["prompt_tokens"], said["completion_tokens"], 0)] == usage(ended.id)
    assert [] == [one for one in events(ended.transcript) if not one["choices"]]
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


def test_the_upstreams_own_end_is_not_relayed(stack: Stack) -> None:
    assert b"[DONE]" not in bytes(streamed(stack, "done").transcript)


def test_a_picture_is_streamed_and_stored(stack: Stack) -> None:
    body = {"model": "m", "prompt": "a fox", "stream": True, "partial_images": 2}
    who = caller("sk-streamed-picture")
    job_id = submit(who, endpoint="/v1/images/generations", images=1, request=json.dumps(body).encode(), streamed=True)
    wake_lane(who)
    (ended,) = wait_ended([job_id], stack=stack)

    names = [event.name.decode() for event in EventParser().feed(ended.transcript)]
    assert ["image_generation.partial_image"] * 2 + ["image_generation.completed"] == names
    (stored,) = query("SELECT content FROM artifact WHERE job_id = :id", id=job_id)
    assert png("a fox") == bytes(stored.content)
    said = json.loads(ended.response)["usage"]
    assert [(said["input_tokens"], said["output_tokens"], 1)] == usage(job_id)


def test_an_edit_is_streamed_from_a_form(stack: Stack) -> None:
    who = caller("sk-streamed-edit")
    wanted = {"request": FORM, "content_type": "multipart/form-data; boundary=x", "streamed": True, "images": 1}
    job_id = submit(who, endpoint="/v1/images/edits", **wanted)
    wake_lane(who)
    (ended,) = wait_ended([job_id], stack=stack)

    assert ["image_edit.completed"] == [said["type"] for said in events(ended.transcript)]
    assert 1 == len(json.loads(ended.response)["data"])


@pytest.mark.parametrize("asked", [False, True])
def test_an_upstream_that_does_not_stream_serves_readers_all_the_same(stack: Stack, asked: bool) -> None:
    ended = streamed(stack, "plain [[fake:plain]]", stream_options={"include_usage": asked})

    answer = json.loads(ended.response)
    assert echo("plain [[fake:plain]]") == content(ended.transcript)
    assert ("chat.completion", asked) == (answer["object"], events(ended.transcript)[-1]["choices"] == [])
    assert [(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"], 0)] == usage(ended.id)


def test_a_cancelled_stream_is_closed_at_once_and_its_beginning_kept(stack: Stack) -> None:
    stack.upstream.reset()
    job_id = _ask("cancel me, please, I am long [[fake:hold_after=2]]")
    until(lambda: len(heard(job_id)) == 2, what="two chunks")
    cancel(job_id)
    (ended,) = wait_ended([job_id])
    stack.upstream.wait_for_calls(1, outcome="client_gone")

    assert ("cancelled", ["cancelled"]) == (ended.status, attempts(job_id))
    assert bytes(ended.transcript) == b"".join(chunk.event for chunk in heard(job_id))
