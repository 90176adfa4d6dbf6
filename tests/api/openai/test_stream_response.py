"""Streamed responses: the queue position, every event once and in order, and an end that the client can tell."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import openai
import pytest
import redis

from api.http.errors import ConnectionAborted
from api.openai import sse_frames, stream_events, stream_response
from api.openai.stream_events import StreamEvents
from api.waiting.registry import Registry, waiter_registry
from api.waiting.waiter import Waiter
from models.database import db
from models.jobs import completion, requeue
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import wire
from models.platform.errors import QueueFull
from tests.api.server.test_api_server import Api, read_until, serving
from tests.support.http_tools import Caller, error_of
from tests.support.programs.process import until
from tests.support.queue_tools import cancel, expire, known, query, row, start, submit
from workers.channels import notify, token_stream
from workers.channels.token_stream import Chunk

pytestmark = pytest.mark.usefixtures("database", "redis_client")

REFUSED = {"message": "Not with that prompt.", "type": "invalid_request_error", "param": "messages", "code": "content_policy"}
DONE = "data: [DONE]\n\n"


@pytest.fixture
def caller() -> Iterator[Caller]:
    yield Caller()
    assert (0, 0) == (waiter_registry.streams, len(waiter_registry))


class Reader:
    """Reads a stream of this process write by write, on a clock that the test moves."""

    def __init__(self, caller: Caller, job_id: UUID, **options: Any) -> None:
        self.now, self._resources = 0.0, ExitStack()
        self.waiter: Waiter = self._resources.enter_context(waiter_registry.wait_for(job_id, caller.key.id, chunks=True, places=True))
        self.stream = StreamEvents(caller.key, self.waiter, clock=lambda: self.now, **options)
        self.writes = self.stream.events()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.writes.close()  # type: ignore[attr-defined]  # a generator
        self._resources.close()

    def next(self) -> str:
        return next(self.writes).decode()

    def until_event(self) -> str:
        while (text := self.next()).startswith(":"):
            pass
        return text

    def rest(self) -> list[str]:
        """Returns the writes up to the end, without comments."""
        return [text for write in self.writes if not (text := write.decode()).startswith(":")]


def event(n: int, *, name: str = "chatcmpl-up", text: str = "") -> bytes:
    chunk = {"id": name, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text or f"w{n} "}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def streamed(caller: Caller, **more: Any) -> UUID:
    return submit(caller.key, **{"streamed": True, **more})


def publish(job_id: UUID, dispatch_id: UUID, *numbers: int) -> None:
    """Publishes these events, as a worker does."""
    token_stream.append([Chunk(dispatch_id, n, event(n)) for n in numbers], job_id=job_id)


def end(job_id: UUID, dispatch_id: UUID, *numbers: int, status: Status = Status.SUCCEEDED, error: dict[str, Any] | None = None) -> None:
    """Finishes the job with these events."""
    transcript = b"".join(event(n) for n in numbers)
    result = JobResult(status, http_status=200, response=b"{}", transcript=transcript, error=error)
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.SUCCEEDED, 200, "req_1"))
    notify.job_changed(job_id, "ended")


def data(text: str) -> dict[str, Any]:
    """Returns the data of an event; it must be on one line."""
    assert re.fullmatch(r"(event: error\n)?data: [^\n]+\n\n", text), text
    value: dict[str, Any] = json.loads(text.partition("data: ")[2])
    return value


def texts(events: list[str]) -> list[str]:
    return [data(item)["choices"][0]["delta"]["content"] for item in events if item != DONE]


def read_late(caller: Caller, job_id: UUID) -> str:
    """Returns the whole stream as a late client gets it, without comments."""
    answer = caller.get(f"/v1/jobs/{wire.public_id(job_id)}/stream")
    assert ("text/event-stream", "no-cache", "no") == (
        answer.mimetype,
        answer.headers["Cache-Control"],
        answer.headers["X-Accel-Buffering"],
    )
    return re.sub(r"^:.*\n", "", answer.text, flags=re.M)


# Waiting


def test_first_comment_is_sent_at_once(caller: Caller) -> None:
    with Reader(caller, streamed(caller)) as reader:
        assert ": waiting\n" == reader.next()


def test_waiting_comment_has_position(caller: Caller) -> None:
    streamed(caller)
    query("UPDATE lane SET rpm = 2")
    with Reader(caller, streamed(caller)) as reader:
        reader.next()

        assert ": queued position=2 eta_s=30\n" == reader.next()


def test_position_comment_comes_at_once_then_every_ten_seconds(caller: Caller) -> None:
    before = [streamed(caller) for _ in range(3)]
    with Reader(caller, streamed(caller)) as reader:
        assert [": waiting\n", ": queued position=4 eta_s=0\n"] == [reader.next(), reader.next()]
        for n, first in enumerate(before, 1):
            cancel(caller.key, first)
            until(lambda place=4 - n: reader.waiter.place and reader.waiter.place.position == place, what="seen to move")
            assert 10.0 == reader.stream._comment_at()
        reader.now = 10.0

        assert ": queued position=1 eta_s=0\n" == reader.next()
        assert 20.0 == reader.stream._comment_at()


def test_waiting_stream_sends_comment_every_ten_seconds(caller: Caller) -> None:
    with Reader(caller, streamed(caller)) as reader:
        writes = [reader.next(), reader.next()]
        reader.now = 10.0

        assert [*writes, writes[1]] == [": waiting\n", ": queued position=1 eta_s=0\n", reader.next()]


def test_running_call_without_events_sends_comments(caller: Caller) -> None:
    job_id = streamed(caller)
    start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        until(lambda: reader.waiter.status == Status.RUNNING, what="seen running")
        reader.now = 10.0

        assert ": running\n" == reader.next()


# Events


def test_each_event_is_one_write(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        publish(job_id, dispatch_id, 0, 1)

        assert [event(0).decode(), event(1).decode()] == [reader.until_event(), reader.until_event()]
        publish(job_id, dispatch_id, 2)
        assert event(2).decode() == reader.until_event()


def test_all_clients_get_every_event_in_order(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as early, Reader(caller, job_id) as second:
        assert ": waiting\n" == early.next() == second.next()
        publish(job_id, dispatch_id, 0, 1)
        begun = [early.until_event(), early.until_event()]
        with Reader(caller, job_id) as late:
            assert begun == [event(0).decode(), event(1).decode()] == [late.until_event(), late.until_event()]
            publish(job_id, dispatch_id, 2, 3)
            end(job_id, dispatch_id, 0, 1, 2, 3)

            rest = [event(2).decode(), event(3).decode(), DONE]
            assert [rest, rest, [*begun, *rest]] == [early.rest(), late.rest(), second.rest()]


def test_events_lost_by_redis_come_from_transcript(caller: Caller, redis_client: redis.Redis) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        publish(job_id, dispatch_id, 0, 1)
        assert [event(0).decode(), event(1).decode()] == [reader.until_event(), reader.until_event()]
        redis_client.flushall()
        with pytest.raises(redis.ResponseError):
            publish(job_id, dispatch_id, 2)
        end(job_id, dispatch_id, 0, 1, 2, 3, 4)

        assert [*(event(n).decode() for n in (2, 3, 4)), DONE] == reader.rest()


def test_gap_is_filled_from_transcript(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        publish(job_id, dispatch_id, 0, 2, 3)
        assert event(0).decode() == reader.until_event()
        end(job_id, dispatch_id, 0, 1, 2, 3)

        assert [*(event(n).decode() for n in (1, 2, 3)), DONE] == reader.rest()


def test_expired_stream_is_read_from_transcript(caller: Caller) -> None:
    job_id = streamed(caller)
    end(job_id, start(caller.key, job_id), 0, 1, 2)

    text = read_late(caller, job_id)

    assert ["w0 ", "w1 ", "w2 "] == texts([f"{item}\n\n" for item in text.split("\n\n")[:-2]])
    assert text.endswith(DONE)


def test_late_client_gets_new_completion_id(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    publish(job_id, dispatch_id, 0)
    end(job_id, dispatch_id, 0, 1)

    ids = [set(re.findall(r'"id":"(chatcmpl-\w+)"', read_late(caller, job_id))) for _ in range(2)]

    assert [1, 1] == [len(names) for names in ids]
    assert not ids[0] & ids[1]
    assert not {"chatcmpl-up"} & (ids[0] | ids[1])


@pytest.mark.parametrize("text", ["plain", 'data: {"id":"x"}', "\n\ndata: 1", "Ü😀"])
def test_new_completion_id_changes_nothing_else(text: str) -> None:
    original = event(0, text=text)

    renamed = sse_frames.renamed(original, "chatcmpl-new")

    assert {**data(original.decode()), "id": "chatcmpl-new"} == data(renamed.decode())


@pytest.mark.parametrize("frame", [b'event: image_generation.completed\ndata: {"type":"x"}\n\n', b"data: [1]\n\n", b"data: {\n\n"])
def test_other_events_keep_their_bytes(frame: bytes) -> None:
    assert frame == sse_frames.renamed(frame, "chatcmpl-new")


# A repeated upstream call


def test_repeated_call_before_first_event_goes_unnoticed(caller: Caller) -> None:
    job_id = streamed(caller)
    first, second = uuid4(), start(caller.key, job_id)
    token_stream.append([Chunk(first, 0, event(7)), Chunk(first, 1, event(8))], job_id=job_id)
    publish(job_id, second, 0, 1)
    with Reader(caller, job_id) as reader:
        assert event(0).decode() == reader.until_event()
        end(job_id, second, 0, 1)

        assert [event(1).decode(), DONE] == reader.rest()


def test_events_of_two_calls_are_never_mixed(caller: Caller) -> None:
    job_id = streamed(caller)
    second = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        publish(job_id, uuid4(), 0)
        assert event(0).decode() == reader.until_event()
        publish(job_id, second, 0, 1)

        failed, stopped, done = reader.rest()
        assert "stream_restarted" == data(failed)["error"]["code"]
        assert ("stop", DONE) == (data(stopped)["choices"][0]["finish_reason"], done)


def test_transcript_of_another_call_does_not_continue_stream(caller: Caller) -> None:
    job_id = streamed(caller)
    second = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        token_stream.append([Chunk(uuid4(), 0, event(9))], job_id=job_id)
        assert event(9).decode() == reader.until_event()
        end(job_id, second, 0, 1)

        assert "stream_restarted" == data(reader.rest()[0])["error"]["code"]


# Failures


@pytest.mark.parametrize("numbers", [(), (0, 1)])
def test_failure_is_visible_to_people_and_programs(caller: Caller, numbers: tuple[int, ...]) -> None:
    job_id = streamed(caller)
    end(job_id, start(caller.key, job_id), *numbers, status=Status.FAILED, error=REFUSED)

    *sent, failed, stopped, done = [f"{item}\n\n" for item in read_late(caller, job_id).split("\n\n")[:-1]]

    assert [f"w{n} " for n in numbers] == texts(sent)
    assert [("\n\n" if numbers else "") + "Not with that prompt."] == texts([failed])
    assert (REFUSED, None) == (data(failed)["error"], data(failed)["choices"][0]["finish_reason"])
    assert ({}, "stop") == (data(stopped)["choices"][0]["delta"], data(stopped)["choices"][0]["finish_reason"])
    assert 1 == len({data(item)["id"] for item in [*sent, failed, stopped]})
    assert DONE == done


def test_failure_without_transcript_follows_sent_events(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        publish(job_id, dispatch_id, 0)
        reader.until_event()
        end(job_id, dispatch_id, status=Status.FAILED, error=dict(requeue.LOST))

        failed, *_ = reader.rest()
        assert ("upstream_outcome_unknown", "chatcmpl-up") == (data(failed)["error"]["code"], data(failed)["id"])


@pytest.mark.parametrize(("act", "code"), [(cancel, "cancelled"), (lambda _, job_id: expire(job_id), "expired")])
def test_stream_of_job_that_never_ran_has_its_error(caller: Caller, act: Any, code: str) -> None:
    job_id = streamed(caller)
    act(caller.key, job_id)

    text = read_late(caller, job_id)

    assert code == data(text.split("\n\n")[0] + "\n\n")["error"]["code"]
    assert text.endswith(DONE)


def test_image_failure_is_an_error_event(caller: Caller) -> None:
    job_id = streamed(caller, endpoint="/v1/images/generations", images=1)
    end(job_id, start(caller.key, job_id), status=Status.FAILED, error=REFUSED)

    failed, done, _ = read_late(caller, job_id).partition(DONE)

    assert failed.startswith("event: error\n")
    assert {"type": "error", "error": REFUSED} == data(failed)
    assert DONE == done


def test_revoked_key_ends_stream_with_error(caller: Caller) -> None:
    with Reader(caller, streamed(caller)) as reader:
        reader.next()
        query("UPDATE key SET revoked_at = now()")

        assert "invalid_api_key" == data(reader.rest()[0])["error"]["code"]


# Disconnects


def closable_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the streams their own registry, which the test may close."""
    own = Registry()
    for module in (stream_response, stream_events):
        monkeypatch.setattr(module, "waiter_registry", own)


def respond(caller: Caller, job_id: UUID, reader: UUID | None) -> Any:
    """Returns the unread response to the client that submitted this job."""
    with caller.app.test_request_context():
        return stream_response.respond(job_id, caller.key, reader=reader)


def has_left(job_id: UUID) -> bool:
    return row(job_id).left_at is not None


@pytest.mark.parametrize("count", range(4))
def test_disconnect_before_end_is_recorded(caller: Caller, count: int) -> None:
    reader = uuid4()
    job_id = streamed(caller, reader=reader)
    dispatch_id = start(caller.key, job_id)
    publish(job_id, dispatch_id, 0)
    end(job_id, dispatch_id, 0)
    answer = respond(caller, job_id, reader)
    chunks = iter(answer.response)
    writes = [next(chunks) for _ in range(count)]
    answer.close()

    assert [b": waiting\n", event(0), sse_frames.DONE][:count] == writes
    until(lambda: has_left(job_id), what="on record that it has left")


def test_complete_stream_records_no_disconnect(caller: Caller) -> None:
    reader = uuid4()
    job_id = streamed(caller, reader=reader)
    end(job_id, start(caller.key, job_id), 0)
    answer = respond(caller, job_id, reader)

    assert sse_frames.DONE == list(answer.response)[-1]
    answer.close()
    other = submit(caller.key, reader=reader)
    respond(caller, other, reader).close()
    until(lambda: has_left(other), what="written, and all before it")
    assert not has_left(job_id)


def test_stream_limit_records_disconnect(caller: Caller, override: Any) -> None:
    override(max_streams_per_key=1)
    reader = uuid4()
    job_id = streamed(caller, reader=reader)
    first = respond(caller, job_id, None)
    with pytest.raises(QueueFull):
        respond(caller, job_id, reader)
    first.close()

    until(lambda: has_left(job_id), what="on record that it has left")


def test_stopping_process_cuts_streams(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    closable_registry(monkeypatch)
    reader = uuid4()
    job_id = streamed(caller, reader=reader)
    answer = respond(caller, job_id, reader)
    chunks = iter(answer.response)
    next(chunks)
    stream_response.waiter_registry.close()

    with pytest.raises(ConnectionAborted):
        list(chunks)
    answer.close()
    assert has_left(job_id)


def test_stopping_process_completes_ended_stream(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    closable_registry(monkeypatch)
    job_id = streamed(caller)
    end(job_id, start(caller.key, job_id), 0)
    answer = respond(caller, job_id, None)
    until(lambda: stream_response.waiter_registry._waiters.all()[0].status == Status.SUCCEEDED, what="seen ended")  # type: ignore[index]
    stream_response.waiter_registry.close()

    assert [b": waiting\n", event(0), sse_frames.DONE] == list(answer.response)
    answer.close()


# The route


def test_unstreamed_job_has_no_stream(caller: Caller) -> None:
    answer = caller.get(f"/v1/jobs/{caller.submit()}/stream")

    assert (409, "wrong_state") == (answer.status_code, error_of(answer)["code"])


def test_stream_of_another_key_is_not_found(caller: Caller) -> None:
    name = wire.public_id(streamed(caller))

    assert 404 == Caller("sk-two", caller.app).get(f"/v1/jobs/{name}/stream").status_code


def test_unread_stream_releases_its_slot(caller: Caller) -> None:
    assert 200 == caller.send("HEAD", f"/v1/jobs/{wire.public_id(streamed(caller))}/stream").status_code


# Over the wire


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api") / "log") as api:
        yield api


@pytest.fixture
def api(server: Api) -> Api:
    # The server caches keys and lanes whose rows the test before deleted.
    server.token = f"sk-{uuid4().hex}"
    return server


@contextmanager
def open_stream(api: Api) -> Iterator[tuple[socket.socket, UUID]]:
    """Yields the connection of a streamed chat, after the headers and the first comment, and its job."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {api.token}\r\n"
    with closing(api.connect(f"{head}Content-Length: {len(body)}\r\n\r\n{body}")) as connection:
        received = read_until(connection, b": waiting\n")
        match = re.search(rb"X-Nowserving-Job-Id: (\S+)", received)
        assert match and b"Content-Type: text/event-stream" in received, received
        yield connection, wire.parse_id(match[1].decode())


def rest_of(connection: socket.socket) -> bytes:
    """Returns the bytes up to the end of the connection."""
    received = b""
    while more := connection.recv(65_536):
        received += more
    return received


def piece(content: bytes) -> bytes:
    """Frames one write as an HTTP chunk."""
    return b"%X\r\n%b\r\n" % (len(content), content)


def test_each_event_is_one_http_chunk(api: Api) -> None:
    with open_stream(api) as (connection, job_id):
        dispatch_id = start(known(api.token), job_id)
        for n in range(3):
            publish(job_id, dispatch_id, n)
            assert piece(event(n)) in read_until(connection, b"\n\n\r\n")
        end(job_id, dispatch_id, 0, 1, 2)

        assert piece(sse_frames.DONE) in read_until(connection, b"\r\n0\r\n\r\n")
    assert not has_left(job_id)


@pytest.mark.parametrize("is_running", [False, True])
def test_disconnect_of_client_is_recorded(api: Api, is_running: bool) -> None:
    with open_stream(api) as (_, job_id):
        if is_running:
            dispatch_id = start(known(api.token), job_id)
            publish(job_id, dispatch_id, 0)

    until(lambda: has_left(job_id), what="on record that it has left")


def test_stopped_server_cuts_streams_without_end_marker(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path / "log") as api:
        api.token = f"sk-{uuid4().hex}"
        with open_stream(api) as (connection, job_id):
            api.process.terminate()
            last = rest_of(connection)
        api.process.wait(20)

    assert b"0\r\n\r\n" not in last
    assert b"[DONE]" not in last
    assert has_left(job_id)
    assert 0 == api.process.returncode


def test_sdk_raises_late_failure(api: Api) -> None:
    client = openai.OpenAI(api_key=api.token, base_url=f"http://127.0.0.1:{api.port}/v1", max_retries=0)
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
    (job_id,) = (item.id for item in query("SELECT id FROM job WHERE key_id = :id", id=known(api.token).id))
    end(job_id, start(known(api.token), job_id), 0, status=Status.FAILED, error=REFUSED)

    with pytest.raises(openai.APIError, match="Not with that prompt") as raised:
        list(answer)
    assert "content_policy" == raised.value.code
    assert not has_left(job_id)
