"""A streamed answer as its reader gets it: where it stands, every event once and in order, and always an end that is seen."""

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
from api.openai import sse_frames, stream_response
from api.openai.stream_response import Relay
from api.waiting.registry import Registry, waiter_registry
from api.waiting.waiter import Waiter
from models.database import db
from models.jobs import completion, requeue
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import wire
from models.platform.errors import LineFull
from tests.api.server.test_api_server import Api, read_until, serving
from tests.support.http_tools import Caller, error_of
from tests.support.programs.processes import until
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
    """Somebody who reads a stream of this process, write by write, on a clock that only moves when it is told to."""

    def __init__(self, caller: Caller, job_id: UUID, **how: Any) -> None:
        self.now, self._room = 0.0, ExitStack()
        self.waiter: Waiter = self._room.enter_context(waiter_registry.wait_for(job_id, caller.key.id, chunks=True, places=True))
        self.relay = Relay(caller.key, self.waiter, clock=lambda: self.now, **how)
        self.writes = self.relay.events()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.writes.close()  # type: ignore[attr-defined]  # a generator
        self._room.close()

    def next(self) -> str:
        return next(self.writes).decode()

    def until_event(self) -> str:
        while (said := self.next()).startswith(":"):
            pass
        return said

    def rest(self) -> list[str]:
        """Everything to the end, without comments."""
        return [said for write in self.writes if not (said := write.decode()).startswith(":")]


def event(n: int, *, name: str = "chatcmpl-up", text: str = "") -> bytes:
    said = {"id": name, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text or f"w{n} "}}]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def streamed(caller: Caller, **more: Any) -> UUID:
    return submit(caller.key, **{"streamed": True, **more})


def say(job_id: UUID, dispatch_id: UUID, *numbers: int) -> None:
    """A worker has read these events."""
    token_stream.add([Chunk(dispatch_id, n, event(n)) for n in numbers], job_id=job_id)


def end(job_id: UUID, dispatch_id: UUID, *numbers: int, status: Status = Status.SUCCEEDED, error: dict[str, Any] | None = None) -> None:
    """Its stream is over, after these events."""
    said = b"".join(event(n) for n in numbers)
    result = JobResult(status, http_status=200, response=b"{}", transcript=said, error=error)
    with db.begin() as session:
        assert completion.finish(session, job_id, dispatch_id, result, AttemptResult(Outcome.SUCCEEDED, 200, "req_1"))
    notify.job(job_id, "ended")


def data(said: str) -> dict[str, Any]:
    """What an event carries; its lines must be one."""
    assert re.fullmatch(r"(event: error\n)?data: [^\n]+\n\n", said), said
    found: dict[str, Any] = json.loads(said.partition("data: ")[2])
    return found


def texts(events: list[str]) -> list[str]:
    return [data(one)["choices"][0]["delta"]["content"] for one in events if one != DONE]


def look(caller: Caller, job_id: UUID) -> str:
    """The whole stream as a late reader gets it, comments left out."""
    answer = caller.get(f"/v1/jobs/{wire.public_id(job_id)}/stream")
    assert ("text/event-stream", "no-cache", "no") == (
        answer.mimetype,
        answer.headers["Cache-Control"],
        answer.headers["X-Accel-Buffering"],
    )
    return re.sub(r"^:.*\n", "", answer.text, flags=re.M)


# Waiting


def test_the_first_bytes_come_before_anything_is_known(caller: Caller) -> None:
    with Reader(caller, streamed(caller)) as reader:
        assert ": waiting\n" == reader.next()


def test_who_waits_is_told_its_place_in_one_line(caller: Caller) -> None:
    streamed(caller)
    query("UPDATE lane SET rpm = 2")
    with Reader(caller, streamed(caller)) as reader:
        reader.next()

        assert ": queued position=2 eta_s=30\n" == reader.next()


def test_a_moving_line_is_told_at_once_and_then_once_in_ten_seconds(caller: Caller) -> None:
    before = [streamed(caller) for _ in range(3)]
    with Reader(caller, streamed(caller)) as reader:
        assert [": waiting\n", ": queued position=4 eta_s=0\n"] == [reader.next(), reader.next()]
        for n, first in enumerate(before, 1):
            cancel(caller.key, first)
            until(lambda place=4 - n: reader.waiter.place and reader.waiter.place.position == place, what="seen to move")
            assert 10.0 == reader.relay._comment_at()
        reader.now = 10.0

        assert ": queued position=1 eta_s=0\n" == reader.next()
        assert 20.0 == reader.relay._comment_at()


def test_who_waits_long_hears_something_every_ten_seconds(caller: Caller) -> None:
    with Reader(caller, streamed(caller)) as reader:
        said = [reader.next(), reader.next()]
        reader.now = 10.0

        assert [*said, said[1]] == [": waiting\n", ": queued position=1 eta_s=0\n", reader.next()]


def test_a_call_that_says_nothing_yet_is_kept_alive(caller: Caller) -> None:
    job_id = streamed(caller)
    start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        until(lambda: reader.waiter.status == Status.RUNNING, what="seen running")
        reader.now = 10.0

        assert ": running\n" == reader.next()


# Events


def test_each_event_is_a_write_of_its_own_while_the_call_runs(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        say(job_id, dispatch_id, 0, 1)

        assert [event(0).decode(), event(1).decode()] == [reader.until_event(), reader.until_event()]
        say(job_id, dispatch_id, 2)
        assert event(2).decode() == reader.until_event()


def test_several_readers_get_every_event_in_order_whenever_they_come(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as early, Reader(caller, job_id) as second:
        assert ": waiting\n" == early.next() == second.next()
        say(job_id, dispatch_id, 0, 1)
        heard = [early.until_event(), early.until_event()]
        with Reader(caller, job_id) as late:
            assert heard == [event(0).decode(), event(1).decode()] == [late.until_event(), late.until_event()]
            say(job_id, dispatch_id, 2, 3)
            end(job_id, dispatch_id, 0, 1, 2, 3)

            rest = [event(2).decode(), event(3).decode(), DONE]
            assert [rest, rest, [*heard, *rest]] == [early.rest(), late.rest(), second.rest()]


def test_what_redis_lost_comes_from_the_transcript(caller: Caller, redis_client: redis.Redis) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        say(job_id, dispatch_id, 0, 1)
        assert [event(0).decode(), event(1).decode()] == [reader.until_event(), reader.until_event()]
        redis_client.flushall()
        with pytest.raises(redis.ResponseError):
            say(job_id, dispatch_id, 2)
        end(job_id, dispatch_id, 0, 1, 2, 3, 4)

        assert [*(event(n).decode() for n in (2, 3, 4)), DONE] == reader.rest()


def test_a_gap_is_filled_from_the_transcript(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        say(job_id, dispatch_id, 0, 2, 3)
        assert event(0).decode() == reader.until_event()
        end(job_id, dispatch_id, 0, 1, 2, 3)

        assert [*(event(n).decode() for n in (1, 2, 3)), DONE] == reader.rest()


def test_a_stream_that_redis_has_forgotten_is_read_whole(caller: Caller) -> None:
    job_id = streamed(caller)
    end(job_id, start(caller.key, job_id), 0, 1, 2)

    told = look(caller, job_id)

    assert ["w0 ", "w1 ", "w2 "] == texts([f"{one}\n\n" for one in told.split("\n\n")[:-2]])
    assert told.endswith(DONE)


def test_a_late_reader_gets_another_id_in_all_chunks(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    say(job_id, dispatch_id, 0)
    end(job_id, dispatch_id, 0, 1)

    ids = [set(re.findall(r'"id":"(chatcmpl-\w+)"', look(caller, job_id))) for _ in range(2)]

    assert [1, 1] == [len(found) for found in ids]
    assert not ids[0] & ids[1]
    assert not {"chatcmpl-up"} & (ids[0] | ids[1])


@pytest.mark.parametrize("text", ["plain", 'data: {"id":"x"}', "\n\ndata: 1", "Ü😀"])
def test_another_id_changes_nothing_else(text: str) -> None:
    was = event(0, text=text)

    made = sse_frames.renamed(was, "chatcmpl-new")

    assert {**data(was.decode()), "id": "chatcmpl-new"} == data(made.decode())


@pytest.mark.parametrize("said", [b'event: image_generation.completed\ndata: {"type":"x"}\n\n', b"data: [1]\n\n", b"data: {\n\n"])
def test_what_is_no_chunk_of_a_chat_keeps_its_bytes(said: bytes) -> None:
    assert said == sse_frames.renamed(said, "chatcmpl-new")


# A call that was made again


def test_of_a_call_made_again_only_the_last_is_told_when_nothing_was(caller: Caller) -> None:
    job_id = streamed(caller)
    first, second = uuid4(), start(caller.key, job_id)
    token_stream.add([Chunk(first, 0, event(7)), Chunk(first, 1, event(8))], job_id=job_id)
    say(job_id, second, 0, 1)
    with Reader(caller, job_id) as reader:
        assert event(0).decode() == reader.until_event()
        end(job_id, second, 0, 1)

        assert [event(1).decode(), DONE] == reader.rest()


def test_two_calls_are_never_mixed(caller: Caller) -> None:
    job_id = streamed(caller)
    second = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        say(job_id, uuid4(), 0)
        assert event(0).decode() == reader.until_event()
        say(job_id, second, 0, 1)

        failed, stopped, done = reader.rest()
        assert "stream_restarted" == data(failed)["error"]["code"]
        assert ("stop", DONE) == (data(stopped)["choices"][0]["finish_reason"], done)


def test_a_transcript_of_another_call_is_not_gone_on_with(caller: Caller) -> None:
    job_id = streamed(caller)
    second = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        token_stream.add([Chunk(uuid4(), 0, event(9))], job_id=job_id)
        assert event(9).decode() == reader.until_event()
        end(job_id, second, 0, 1)

        assert "stream_restarted" == data(reader.rest()[0])["error"]["code"]


# Failures


@pytest.mark.parametrize("numbers", [(), (0, 1)])
def test_a_failure_is_said_so_that_people_and_programs_see_it(caller: Caller, numbers: tuple[int, ...]) -> None:
    job_id = streamed(caller)
    end(job_id, start(caller.key, job_id), *numbers, status=Status.FAILED, error=REFUSED)

    *told, failed, stopped, done = [f"{one}\n\n" for one in look(caller, job_id).split("\n\n")[:-1]]

    assert [f"w{n} " for n in numbers] == texts(told)
    assert [("\n\n" if numbers else "") + "Not with that prompt."] == texts([failed])
    assert (REFUSED, None) == (data(failed)["error"], data(failed)["choices"][0]["finish_reason"])
    assert ({}, "stop") == (data(stopped)["choices"][0]["delta"], data(stopped)["choices"][0]["finish_reason"])
    assert 1 == len({data(one)["id"] for one in [*told, failed, stopped]})
    assert DONE == done


def test_a_failed_call_of_which_nothing_was_kept_says_so_after_what_was_said(caller: Caller) -> None:
    job_id = streamed(caller)
    dispatch_id = start(caller.key, job_id)
    with Reader(caller, job_id) as reader:
        reader.next()
        say(job_id, dispatch_id, 0)
        reader.until_event()
        end(job_id, dispatch_id, status=Status.FAILED, error=dict(requeue.LOST))

        failed, *_ = reader.rest()
        assert ("upstream_outcome_unknown", "chatcmpl-up") == (data(failed)["error"]["code"], data(failed)["id"])


@pytest.mark.parametrize(("act", "code"), [(cancel, "cancelled"), (lambda _, job_id: expire(job_id), "expired")])
def test_a_job_that_never_ran_says_why(caller: Caller, act: Any, code: str) -> None:
    job_id = streamed(caller)
    act(caller.key, job_id)

    told = look(caller, job_id)

    assert code == data(told.split("\n\n")[0] + "\n\n")["error"]["code"]
    assert told.endswith(DONE)


def test_a_failure_of_pictures_is_an_error_event(caller: Caller) -> None:
    job_id = streamed(caller, endpoint="/v1/images/generations", images=1)
    end(job_id, start(caller.key, job_id), status=Status.FAILED, error=REFUSED)

    failed, done, _ = look(caller, job_id).partition(DONE)

    assert failed.startswith("event: error\n")
    assert {"type": "error", "error": REFUSED} == data(failed)
    assert DONE == done


def test_a_revoked_key_loses_its_stream_readably(caller: Caller) -> None:
    with Reader(caller, streamed(caller)) as reader:
        reader.next()
        query("UPDATE key SET revoked_at = now()")

        assert "invalid_api_key" == data(reader.rest()[0])["error"]["code"]


# Leaving


def ask(caller: Caller, job_id: UUID, who: UUID | None) -> Any:
    """The response to who has just sent this job, not yet read."""
    with caller.app.test_request_context():
        return stream_response.stream(job_id, caller.key, reader=who)


def has_left(job_id: UUID) -> bool:
    return row(job_id).left_at is not None


@pytest.mark.parametrize("writes", range(4))
def test_who_goes_before_the_end_has_left(caller: Caller, writes: int) -> None:
    who = uuid4()
    job_id = streamed(caller, reader=who)
    dispatch_id = start(caller.key, job_id)
    say(job_id, dispatch_id, 0)
    end(job_id, dispatch_id, 0)
    answer = ask(caller, job_id, who)
    reader = iter(answer.response)
    said = [next(reader) for _ in range(writes)]
    answer.close()

    assert [b": waiting\n", event(0), sse_frames.DONE][:writes] == said
    until(lambda: has_left(job_id), what="on record that it has left")


def test_who_was_told_everything_has_not_left(caller: Caller) -> None:
    who = uuid4()
    job_id = streamed(caller, reader=who)
    end(job_id, start(caller.key, job_id), 0)
    answer = ask(caller, job_id, who)

    assert sse_frames.DONE == list(answer.response)[-1]
    answer.close()
    other = submit(caller.key, reader=who)
    ask(caller, other, who).close()
    until(lambda: has_left(other), what="written, and all before it")
    assert not has_left(job_id)


def test_who_finds_too_many_streams_has_left(caller: Caller, override: Any) -> None:
    override(max_streams_per_key=1)
    who = uuid4()
    job_id = streamed(caller, reader=who)
    first = ask(caller, job_id, None)
    with pytest.raises(LineFull):
        ask(caller, job_id, who)
    first.close()

    until(lambda: has_left(job_id), what="on record that it has left")


def test_a_process_that_stops_breaks_its_streams_off(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_response, "waiter_registry", Registry())
    who = uuid4()
    job_id = streamed(caller, reader=who)
    answer = ask(caller, job_id, who)
    reader = iter(answer.response)
    next(reader)
    stream_response.waiter_registry.close()

    with pytest.raises(ConnectionAborted):
        list(reader)
    answer.close()
    assert has_left(job_id)


def test_a_stream_that_ended_is_told_to_its_end_even_then(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_response, "waiter_registry", Registry())
    job_id = streamed(caller)
    end(job_id, start(caller.key, job_id), 0)
    answer = ask(caller, job_id, None)
    until(lambda: stream_response.waiter_registry._waiters.all()[0].status == Status.SUCCEEDED, what="seen ended")  # type: ignore[index]
    stream_response.waiter_registry.close()

    assert [b": waiting\n", event(0), sse_frames.DONE] == list(answer.response)
    answer.close()


# The route


def test_a_job_without_a_stream_has_none(caller: Caller) -> None:
    answer = caller.get(f"/v1/jobs/{caller.submit()}/stream")

    assert (409, "wrong_state") == (answer.status_code, error_of(answer)["code"])


def test_another_key_does_not_find_it(caller: Caller) -> None:
    name = wire.public_id(streamed(caller))

    assert 404 == Caller("sk-two", caller.app).get(f"/v1/jobs/{name}/stream").status_code


def test_unread_stream_releases_its_slot(caller: Caller) -> None:
    assert 200 == caller.send("HEAD", f"/v1/jobs/{wire.public_id(streamed(caller))}/stream").status_code


# Over the wire


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api") / "log") as made:
        yield made


@pytest.fixture
def api(server: Api) -> Api:
    # The server remembers keys and lanes whose rows are gone with the test before.
    server.token = f"sk-{uuid4().hex}"
    return server


@contextmanager
def asked(api: Api) -> Iterator[tuple[socket.socket, UUID]]:
    """A chat that was asked for as a stream: its connection, after the headers and the welcome, and its job."""
    said = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {api.token}\r\n"
    with closing(api.connect(f"{head}Content-Length: {len(said)}\r\n\r\n{said}")) as connection:
        began = read_until(connection, b": waiting\n")
        found = re.search(rb"X-Nowserving-Job-Id: (\S+)", began)
        assert found and b"Content-Type: text/event-stream" in began, began
        yield connection, wire.parse_id(found[1].decode())


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the other side closes the connection."""
    seen = b""
    while more := connection.recv(65_536):
        seen += more
    return seen


def piece(said: bytes) -> bytes:
    """One write, as HTTP frames it."""
    return b"%X\r\n%b\r\n" % (len(said), said)


def test_each_event_goes_out_as_one_piece_when_it_comes(api: Api) -> None:
    with asked(api) as (connection, job_id):
        dispatch_id = start(known(api.token), job_id)
        for n in range(3):
            say(job_id, dispatch_id, n)
            assert piece(event(n)) in read_until(connection, b"\n\n\r\n")
        end(job_id, dispatch_id, 0, 1, 2)

        assert piece(sse_frames.DONE) in read_until(connection, b"\r\n0\r\n\r\n")
    assert not has_left(job_id)


@pytest.mark.parametrize("is_running", [False, True])
def test_a_client_that_hangs_up_has_left_its_job(api: Api, is_running: bool) -> None:
    with asked(api) as (_, job_id):
        if is_running:
            dispatch_id = start(known(api.token), job_id)
            say(job_id, dispatch_id, 0)

    until(lambda: has_left(job_id), what="on record that it has left")


def test_a_stopped_server_cuts_its_streams_so_that_nobody_takes_them_for_whole(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(tmp_path / "log") as api:
        api.token = f"sk-{uuid4().hex}"
        with asked(api) as (connection, job_id):
            api.process.terminate()
            last = rest_of(connection)
        api.process.wait(20)

    assert b"0\r\n\r\n" not in last
    assert b"[DONE]" not in last
    assert has_left(job_id)
    assert 0 == api.process.returncode


def test_the_sdk_raises_what_a_late_failure_says(api: Api) -> None:
    client = openai.OpenAI(api_key=api.token, base_url=f"http://127.0.0.1:{api.port}/v1", max_retries=0)
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
    (job_id,) = (one.id for one in query("SELECT id FROM job WHERE key_id = :id", id=known(api.token).id))
    end(job_id, start(known(api.token), job_id), 0, status=Status.FAILED, error=REFUSED)

    with pytest.raises(openai.APIError, match="Not with that prompt") as raised:
        list(answer)
    assert "content_policy" == raised.value.code
    assert not has_left(job_id)
