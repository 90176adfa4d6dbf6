"""The OpenAI routes through everything: gunicorn, the line, a worker, and a fake OpenAI behind them."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import openai
import pytest

from tests.api.server.test_api_server import Api, serving
from tests.clients.raw import Raw
from tests.support.programs.live_jobs import caller
from tests.support.programs.process import until
from tests.support.programs.processes import Stack, running
from tests.support.queue_tools import query
from tests.upstream.client import FakeUpstream
from tests.upstream.errors import BY_STATUS
from tests.upstream.garbage import PAGE
from tests.upstream.journal import Call, fingerprint

# Not `database`: the stack of this module works on while tests come and go.
pytestmark = pytest.mark.usefixtures("environment")

SETTINGS = {"retry_base_s": 0.05, "retry_most_s": 0.1, "abandoned_after_s": 300, "max_attempts": 2}
# An API that soon says 200.
HASTY = {"NOWSERVING_STATUS_GRACE_S": "0.3", "NOWSERVING_KEEPALIVE_EVERY_S": "0.2"}
SDK = {"x-stainless-retry-count": "0"}
RETRY = {"x-stainless-retry-count": "1"}
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na hat\r\n'
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ng\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n\r\n'
    b"--b--\r\n"
)


@dataclass
class World:
    """hasty: a second API of the same stack."""

    stack: Stack
    api: Api
    hasty: Api
    key: str = ""

    @property
    def upstream(self) -> FakeUpstream:
        return self.stack.upstream

    def ask(
        self, said: str = "hi", *, path: str = "/v1/chat/completions", api: Api | None = None, stream: bool = False, **headers: str
    ) -> Raw:
        """A chat call that has been sent."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return Raw((api or self.api).port, path, chat(said, stream=stream), self.key, more=more)

    def calls(self, words: str) -> list[Call]:
        """What the upstream was asked with these words in it."""
        return [call for call in self.upstream.calls() if words in call.text]

    def wait_held(self, words: str) -> None:
        until(lambda: [call for call in self.calls(words) if call.outcome == "open"], what="held")

    def sdk(self, api: Api | None = None, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(api_key=self.key, base_url=f"http://127.0.0.1:{(api or self.api).port}/v1", **more)

    def jobs(self) -> list[Any]:
        """This key's jobs, oldest first."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.api.port, timeout=10)) as connection:
            connection.request("GET", "/v1/jobs", headers={"Authorization": f"Bearer {self.key}"})
            return list(reversed(json.loads(connection.getresponse().read())["data"]))


def chat(said: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": said}], **more}


@pytest.fixture(scope="module")
def whole(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("routes")
    with running(folder, **SETTINGS) as stack:
        stack.pacer()
        stack.worker(threads=16)
        env = stack.environment()
        with serving(folder / "api.log", **env) as api, serving(folder / "hasty.log", **env, **HASTY) as hasty:
            yield World(stack, api, hasty)


@pytest.fixture
def world(whole: World) -> Iterator[World]:
    whole.key = fresh_key()
    yield whole
    whole.upstream.release()


def fresh_key() -> str:
    """A key that nobody used yet, which may have several calls in flight from the beginning."""
    key = f"sk-{uuid4().hex}"
    caller(key, max_in_flight=8)
    return key


@pytest.fixture
def word() -> str:
    """Something nobody said before."""
    return uuid4().hex


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def long_ago(world: World) -> None:
    """This key's jobs that somebody left were left long ago, as soon as one is, and API processes were there since."""
    key_id = caller(world.key).id
    wanted = "UPDATE job SET left_at = left_at - interval '1 h' WHERE key_id = :id AND left_at IS NOT NULL RETURNING id"
    until(lambda: query(wanted, id=key_id), what="a job left")
    until(lambda: query("UPDATE api_process SET up_since = up_since - interval '1 h' RETURNING name"), what="a heartbeat")


def newest(world: World) -> Any:
    """The row of this key's last job."""
    (found,) = query("SELECT id, reader FROM job WHERE key_id = :id ORDER BY id DESC LIMIT 1", id=caller(world.key).id)
    return found


def directly(upstream: FakeUpstream, method: str, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    """What the upstream answers without us."""
    with closing(http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)) as connection:
        connection.request(method, path, body or None, {"Authorization": "Bearer sk-direct", "Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, answer.read()


def timeless(body: bytes) -> bytes:
    """The same for every answer to the same question."""
    return re.sub(rb'("(?:id|created)": ?)("[^"]*"|[0-9]+)', rb"\1-", body)


ROUTES = [
    ("POST", "/chat/completions", chat("hé \U0001f422", n=2, unknown={"x": [1.0, None]})),
    ("POST", "/images/generations", {"model": "gpt-image-2.6-flare", "prompt": "a cat", "n": 2, "size": "512x512"}),
    ("POST", "/images/edits", FORM),
    ("POST", "/embeddings", {"model": "e", "input": ["a", "b"], "encoding_format": "base64"}),
    ("POST", "/moderations", {"input": "fine"}),
    ("GET", "/models", b""),
]


@pytest.mark.parametrize("base", ["/v1", "", "/v1/v1"])
@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=[path for _, path, _ in ROUTES])
def test_every_route_answers_with_the_upstreams_own_bytes(world: World, base: str, method: str, path: str, body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    content_type = "multipart/form-data; boundary=b" if body is FORM else "application/json"
    expected = directly(world.upstream, method, f"/v1{path}", content, content_type)
    with Raw(world.api.port, f"{base}{path}", content, world.key, method=method, more={"Content-Type": content_type}) as made:
        answered = made.whole()

    assert (expected[0], timeless(expected[1])) == (made.status, timeless(answered))
    assert ("application/json", str(len(answered))) == (made.headers["content-type"], made.headers["content-length"])
    assert f"/v1{path}" == unquote(world.upstream.calls()[-1].path)


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_for_azure_is_served(world: World, word: str, stream: bool) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=f"http://127.0.0.1:{world.api.port}", api_key=world.key, api_version="2024-10-21", organization="org-7"
    ) as client:
        asked = client.chat.completions.create(model="m", messages=[{"role": "user", "content": word}], stream=stream)
        if stream:
            answered = "".join(chunk.choices[0].delta.content or "" for chunk in asked if chunk.choices)
        else:
            answered = asked.choices[0].message.content
        vectors = client.embeddings.create(model="e", input="a").data
        models = client.models.list().data

    (call,) = world.calls(word)
    assert (f"echo: {word}", 1, True) == (answered, len(vectors), bool(models))
    assert ("/v1/chat/completions", "m", "org-7") == (call.path, call.model, call.headers.get("openai-organization"))


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_a_credential_of_azure_is_called_as_azure_wants_it(world: World, word: str, version: str | None) -> None:
    query(
        "UPDATE credential SET kind = 'azure', base_url = :url, api_version = :version WHERE pool_id = :pool RETURNING id",
        url=world.upstream.base_url.removesuffix("/v1"), version=version, pool=caller(world.key).pool_id,
    )  # fmt: skip
    answered = world.sdk().chat.completions.create(model="m", messages=[{"role": "user", "content": word}])

    (call,) = world.calls(word)
    path = "/openai/deployments/m/chat/completions" if version else "/openai/v1/chat/completions"
    assert (f"echo: {word}", path) == (answered.choices[0].message.content, call.path)
    assert f"api-version={version}" == call.query if version else call.query == ""
    assert call.key == fingerprint(world.key)


def test_response_headers_describe_the_job(world: World) -> None:
    with world.ask() as made:
        made.whole()
    (one,) = world.jobs()

    assert one["id"] == made.headers["x-nowserving-job-id"]
    assert made.headers["x-request-id"].startswith("req_")
    assert (one["started_at"] - one["created_at"]) * 1000 == pytest.approx(int(made.headers["x-nowserving-waited-ms"]), abs=2)
    assert (one["ended_at"] - one["started_at"]) * 1000 == pytest.approx(int(made.headers["openai-processing-ms"]), abs=2)
    assert "x-nowserving-resumed" not in made.headers
    assert "idempotent-replayed" not in made.headers


def test_response_has_headers_of_known_limits(world: World) -> None:
    caller(world.key, rpm=600, tpm=90_000)

    def told_with_an_answer() -> dict[str, str] | None:
        with world.ask() as made:
            made.whole()
        return made.headers if "x-ratelimit-limit-requests" in made.headers else None

    told = until(told_with_an_answer, what="the limits told")
    assert ("600", "90000") == (told["x-ratelimit-limit-requests"], told["x-ratelimit-limit-tokens"])
    assert 500 < int(told["x-ratelimit-remaining-requests"]) < 600
    assert re.fullmatch(r"([\d.]+(h|m|s|ms))+", told["x-ratelimit-reset-requests"])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
def test_an_error_of_the_upstream_comes_through_as_it_is(world: World, status: int) -> None:
    body = json.dumps(chat(f"[[fake:status={status}]]")).encode()
    expected = directly(world.upstream, "POST", "/v1/chat/completions", body, "application/json")
    with world.ask(f"[[fake:status={status}]]") as made:
        answered = made.whole()

    assert expected == (made.status, answered)
    assert "false" == made.headers["x-should-retry"]
    assert (1 if status < 500 else 2) == len(world.upstream.calls(key=world.key))


def test_transient_failure_is_retried_before_the_client_sees_it(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:status=500;times=1]]") as made:
        assert f"echo: {word}" in made.json["choices"][0]["message"]["content"]

    assert (200, 2) == (made.status, len(world.calls(word)))


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ("[[fake:reset=before]]", 502, "upstream_outcome_unknown"),
        ("[[fake:garbage=html]]", 502, "upstream_invalid_response"),
    ],
)
def test_outcome_of_a_broken_call_is_reported_once(world: World, said: str, status: int, code: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        world.sdk().chat.completions.create(model="m", messages=[{"role": "user", "content": said}])

    assert (status, code) == (caught.value.status_code, caught.value.code)
    assert 1 == len(world.jobs())


@pytest.mark.parametrize(("code", "status", "raised"), [(400, 400, openai.BadRequestError), (500, 500, openai.InternalServerError)])
def test_an_error_in_a_200_reaches_the_caller_with_the_status_that_it_means(
    world: World, code: int, status: int, raised: type[openai.APIStatusError]
) -> None:
    with pytest.raises(raised) as caught:
        asked = chat(f"[[fake:status={code};shape=in_200]]")
        world.sdk().chat.completions.create(**asked, extra_body={"nowserving": {"max_attempts": 1}})

    assert (status, True) == (caught.value.status_code, BY_STATUS[code][2] in str(caught.value))


@pytest.mark.parametrize(
    ("shape", "content_type"),
    [
        ("detail_list", "application/json"),
        ("list", "application/json"),
        ("html", "text/html; charset=utf-8"),
        ("text", "text/plain; charset=utf-8"),
    ],
)
def test_an_error_in_another_shape_has_the_upstreams_status_bytes_and_type(world: World, shape: str, content_type: str) -> None:
    said = f"[[fake:status=422;shape={shape}]]"
    expected = directly(world.upstream, "POST", "/v1/chat/completions", json.dumps(chat(said)).encode(), "application/json")
    with world.ask(said) as made:
        answered = made.whole()

    assert expected == (made.status, answered)
    assert content_type == made.headers["content-type"]


def test_unreadable_answer_can_be_fetched_by_its_caller(world: World) -> None:
    with world.ask("[[fake:garbage=html]]") as made:
        code = made.json["error"]["code"]
    (job,) = world.jobs()
    with Raw(world.api.port, job["result_raw"]["url"], key=world.key, method="GET") as raw:
        assert PAGE == raw.whole()

    assert ("upstream_invalid_response", "text/html; charset=utf-8") == (code, raw.headers["x-nowserving-content-type"])


def test_a_call_that_takes_too_long_is_a_gateway_timeout(world: World) -> None:
    with world.ask("[[fake:hold]]", X_Nowserving_Timeout="1") as made:
        assert "upstream_timeout" == made.json["error"]["code"]

    assert 504 == made.status


# Prefer


def test_prefer_respond_async_returns_the_job(world: World, word: str) -> None:
    with world.ask(word, Prefer="respond-async") as made:
        told = made.json

    assert (202, "job", f"/v1/jobs/{told['id']}") == (made.status, told["object"], made.headers["location"])
    assert ("respond-async", told["id"]) == (made.headers["preference-applied"], made.headers["x-nowserving-job-id"])
    with Raw(world.api.port, f"/v1/jobs/{told['id']}?wait=20", key=world.key, method="GET") as later:
        result = later.json["result"]
    with world.ask(word) as sync:
        assert timeless(json.dumps(result).encode()) == timeless(json.dumps(sync.json).encode())


def test_an_answer_that_comes_soon_enough_is_preferred(world: World, word: str) -> None:
    with world.ask(word, Prefer="respond-async, wait=20") as made:
        assert f"echo: {word}" == made.json["choices"][0]["message"]["content"]

    assert (200, "respond-async, wait=20") == (made.status, made.headers["preference-applied"])


def test_an_error_that_comes_soon_enough_has_its_status(world: World) -> None:
    with world.ask("[[fake:status=404]]", Prefer="respond-async, wait=20") as made:
        made.whole()

    assert 404 == made.status


def test_an_answer_that_takes_longer_than_preferred_is_a_job(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", Prefer="respond-async, wait=1") as made:
        assert "running" == made.json["status"]

    assert (202, "respond-async, wait=1") == (made.status, made.headers["preference-applied"])


def test_a_wait_without_respond_async_is_for_the_answer(world: World, word: str) -> None:
    with world.ask(word, Prefer="wait=0") as made:
        assert f"echo: {word}" == made.json["choices"][0]["message"]["content"]

    assert "preference-applied" not in made.headers


def test_prefer_respond_async_client_may_disconnect(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", Prefer="respond-async, wait=30"):
        world.wait_held(word)
    with world.ask("[[fake:hold]] left", **SDK):
        until(lambda: 2 == len(world.jobs()), what="a second job")
    long_ago(world)

    until(lambda: "cancelled" == world.jobs()[1]["status"], what="cancelled")
    assert "running" == world.jobs()[0]["status"]


# Who comes back


def test_a_lost_connection_costs_no_second_call(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", **SDK):
        world.wait_held(word)
    first = newest(world)
    with world.ask(f"{word} [[fake:hold]]", **RETRY) as again:
        until(lambda: query("SELECT FROM job WHERE id = :id AND reader <> :who", id=first.id, who=first.reader), what="come back")
        world.upstream.release()
        again.whole()

    assert (200, "true") == (again.status, again.headers["x-nowserving-resumed"])
    assert 1 == len(world.calls(word)) == len(world.jobs())


def test_unread_answer_is_returned_to_the_retry(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", **SDK):
        world.wait_held(word)
    until(lambda: query("SELECT FROM job WHERE left_at IS NOT NULL AND status = 'running'"), what="left")
    world.upstream.release()
    until(lambda: "succeeded" == world.jobs()[0]["status"], what="ended")
    with world.ask(f"{word} [[fake:hold]]", path="/chat/completions", **RETRY) as again:
        again.whole()

    assert (200, world.jobs()[0]["id"], 1) == (again.status, again.headers["x-nowserving-job-id"], len(world.calls(word)))


def test_retry_never_finds_another_keys_job(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]"):
        world.wait_held(word)
        world.key = fresh_key()
        with world.ask(f"{word} [[fake:hold]]", **RETRY) as other:
            until(lambda: 2 == len(world.calls(word)), what="called twice")
            world.upstream.release()

            assert "x-nowserving-resumed" not in other.head().headers


def test_a_first_try_is_never_taken_for_a_second(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]"):
        world.wait_held(word)
        with world.ask(f"{word} [[fake:hold]]", x_stainless_retry_count="0"):
            until(lambda: 2 == len(world.calls(word)), what="called twice")


def test_absent_clients_job_is_cancelled_and_its_call_aborted(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", **SDK):
        world.wait_held(word)
    long_ago(world)

    until(lambda: "cancelled" == world.jobs()[0]["status"], what="cancelled")
    until(lambda: "client_gone" == world.calls(word)[0].outcome, what="the upstream connection closed")


# Clients that hang up and cannot come back


def close(raw: Raw) -> None:
    raw.close()


def reset(raw: Raw) -> None:
    """RST instead of FIN."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def close_half(raw: Raw) -> None:
    """FIN, and the client could still read."""
    raw.socket.shutdown(socket.SHUT_WR)


def close_after_more(raw: Raw) -> None:
    """FIN behind bytes that the server has not read."""
    raw.socket.sendall(b"\r\n")
    raw.socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("is_stream", [False, True], ids=["held", "stream"])
@pytest.mark.parametrize("hang_up", [close, reset, close_half, close_after_more])
def test_a_hang_up_ends_the_running_call(world: World, word: str, hang_up: Callable[[Raw], None], is_stream: bool) -> None:
    said = f"{word} [[fake:hold_after=2]]" if is_stream else f"{word} [[fake:hold]]"
    with world.ask(said, stream=is_stream) as raw:
        world.wait_held(word)
        if is_stream:
            raw.until(b"data: ")
        hang_up(raw)

        until(lambda: "cancelled" == world.jobs()[0]["status"], what="cancelled")
    until(lambda: "client_gone" == world.calls(word)[0].outcome, what="the upstream connection closed")
    assert 1 == len(world.calls(word))


@pytest.mark.parametrize("is_stream", [False, True], ids=["held", "stream"])
def test_a_hang_up_takes_a_waiting_job_out_of_the_line(world: World, word: str, is_stream: bool) -> None:
    pool_id = caller(world.key).pool_id
    query("UPDATE credential SET paused_at = now() WHERE pool_id = :id", id=pool_id)
    world.ask(f"{word} first", stream=is_stream).close()
    until(lambda: ["cancelled"] == [one["status"] for one in world.jobs()], what="cancelled")
    query("UPDATE credential SET paused_at = NULL WHERE pool_id = :id", id=pool_id)
    world.ask(f"{word} second").whole()

    assert [f"{word} second"] == [call.text for call in world.calls(word)]


def test_a_client_that_is_killed_has_hung_up(world: World, word: str) -> None:
    body = json.dumps(chat(f"{word} [[fake:hold]]"))
    url = f"http://127.0.0.1:{world.api.port}/v1/chat/completions"
    program = (
        "import sys, urllib.request as r; "
        f"r.urlopen(r.Request({url!r}, {body.encode()!r}, {{'Authorization': 'Bearer {world.key}', 'Content-Type': 'application/json'}}))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as client:
        world.wait_held(word)
        client.kill()

    until(lambda: "client_gone" == world.calls(word)[0].outcome, what="the upstream connection closed")
    until(lambda: "cancelled" == world.jobs()[0]["status"], what="cancelled")


@pytest.mark.parametrize("header", ["x-stainless-lang", "X-Stainless-Retry-Count", "Idempotency-Key"])
def test_a_client_that_can_come_back_keeps_its_job_for_a_while(world: World, word: str, header: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", **{header: word}):
        world.wait_held(word)
    until(lambda: query("SELECT FROM job WHERE id = :id AND left_at IS NOT NULL", id=newest(world).id), what="left")
    with world.ask(f"{word} beside [[fake:hold]]"):
        world.wait_held(f"{word} beside")
    until(lambda: "cancelled" == world.jobs()[1]["status"], what="the one beside it cancelled")

    assert "running" == world.jobs()[0]["status"]
    assert "open" == world.calls(word)[0].outcome


def test_a_job_of_an_idempotency_key_that_was_given_up_is_made_anew(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", Idempotency_Key=word):
        world.wait_held(word)
    long_ago(world)
    until(lambda: "cancelled" == world.jobs()[0]["status"], what="cancelled")
    world.upstream.release()

    made = world.ask(f"{word} [[fake:hold]]", Idempotency_Key=word)
    until(lambda: 2 == len(world.calls(word)), what="called anew")
    world.upstream.release()

    assert 200 == made.head().status
    assert "idempotent-replayed" not in made.headers


def test_the_same_idempotency_key_gives_the_same_job_and_a_new_reader(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:hold]]", Idempotency_Key=word):
        world.wait_held(word)
        first = newest(world)
        with world.ask(f"{word} [[fake:hold]]", path="/v1/v1/chat/completions", Idempotency_Key=word) as again:
            until(lambda: query("SELECT FROM job WHERE id = :id AND reader <> :who", id=first.id, who=first.reader), what="taken over")
            world.upstream.release()
            again.whole()

    assert (200, "true", 1) == (again.status, again.headers["idempotent-replayed"], len(world.calls(word)))


def test_another_body_under_the_same_idempotency_key_is_refused(world: World, word: str) -> None:
    world.ask(word, Idempotency_Key=word).whole()

    assert 422 == world.ask(f"{word}!", Idempotency_Key=word).head().status


# Streams that fail at once, as the official SDK meets them


@pytest.fixture(scope="module")
def patient(whole: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API whose streams wait for their first event for longer than any call here takes."""
    env = whole.stack.environment()
    with serving(tmp_path_factory.mktemp("patient") / "log", **env, NOWSERVING_STREAM_HEAD_S="60") as api:
        yield api


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        ("status=400", openai.BadRequestError), ("status=401", openai.AuthenticationError), ("status=404", openai.NotFoundError),
        ("status=429;kind=quota", openai.RateLimitError),
    ],
)  # fmt: skip
def test_openai_python_raises_the_same_error_with_and_without_a_stream(
    world: World, patient: Api, word: str, said: str, raised: type[openai.APIStatusError]
) -> None:
    with pytest.raises(raised):
        messages: Any = [{"role": "user", "content": f"{word} [[fake:{said}]]"}]
        world.sdk(patient).chat.completions.create(model="m", messages=messages, stream=True)

    assert 1 == len(world.calls(word))


def test_a_first_event_comes_at_once_however_long_a_head_may_wait(world: World, patient: Api, word: str) -> None:
    messages: Any = [{"role": "user", "content": f"{word} [[fake:hold_after=1]]"}]
    answer = world.sdk(patient).chat.completions.create(model="m", messages=messages, stream=True)
    first = next(iter(answer))

    assert first.choices
    assert ["open"] == [call.outcome for call in world.calls(word)], "the upstream has not gone on"
    answer.close()


# Late failures, as the official SDK meets them


@pytest.mark.parametrize(
    ("status", "raised"),
    [(400, openai.BadRequestError), (404, openai.NotFoundError), (422, openai.UnprocessableEntityError), (503, openai.InternalServerError)],
)
def test_openai_python_raises_the_exception_of_a_late_failure(
    world: World, word: str, status: int, raised: type[openai.APIStatusError]
) -> None:
    said = f"{word} [[fake:delay=1;status={status}]]"
    with pytest.raises(raised) as caught:
        world.sdk(world.hasty).chat.completions.create(model="m", messages=[{"role": "user", "content": said}])

    assert status == caught.value.status_code
    assert "true" == caught.value.response.headers["x-nowserving-resumed"]
    assert 1 == len(world.jobs())
    assert (1 if status < 500 else 2) == len(world.calls(word))


async def _ask_async(world: World, said: str) -> None:
    async with openai.AsyncOpenAI(api_key=world.key, base_url=str(world.sdk(world.hasty).base_url)) as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": said}])


def test_asynchronous_openai_python_raises_the_exception_of_a_late_failure(world: World, word: str) -> None:
    with pytest.raises(openai.BadRequestError):
        asyncio.run(_ask_async(world, f"{word} [[fake:delay=1;status=400]]"))

    assert 1 == len(world.calls(word))


def test_openai_python_without_retries_sees_a_broken_connection(world: World, word: str) -> None:
    said = f"{word} [[fake:delay=1;status=400]]"
    with pytest.raises(openai.APIConnectionError):
        world.sdk(world.hasty, max_retries=0).chat.completions.create(model="m", messages=[{"role": "user", "content": said}])

    assert 1 == len(world.calls(word))


def test_openai_python_reads_a_late_answer(world: World, word: str) -> None:
    said = f"{word} [[fake:delay=1]]"
    made = world.sdk(world.hasty).chat.completions.create(model="m", messages=[{"role": "user", "content": said}])

    assert f"echo: {said}" == made.choices[0].message.content
    assert 1 == len(world.calls(word))


def test_other_clients_read_a_late_failure_in_the_body(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:delay=1;status=400]]", api=world.hasty) as made:
        assert "invalid_request_error" == made.json["error"]["type"]

    assert (200, "chunked", b" ") == (made.status, made.headers["transfer-encoding"], made.frames[0][1])
    assert "connection" not in made.headers or made.headers["connection"] != "close"


def test_spaces_come_one_by_one_and_then_the_answer(world: World, word: str) -> None:
    with world.ask(f"{word} [[fake:delay=1]]", api=world.hasty) as made:
        made.whole()
    pieces = [piece for _, piece in made.frames]

    assert len(pieces) > 2
    assert {b" "} == set(pieces[:-1])
    assert f"echo: {word}" in json.loads(pieces[-1])["choices"][0]["message"]["content"]


# Restarts


def test_waiting_client_finds_its_job_after_a_restart_of_the_server(
    world: World, word: str, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    env = world.stack.environment()
    said = f"{word} [[fake:hold]]"
    with serving(tmp_path / "log", **env) as api:
        client = world.sdk(api, max_retries=9)
        waiting = threads.submit(partial(client.chat.completions.create, model="m", messages=[{"role": "user", "content": said}]))
        world.wait_held(word)
        port = api.port
        api.stop()
    with serving(tmp_path / "log", **env, NOWSERVING_PORT=str(port)):
        until(lambda: query("SELECT FROM job WHERE left_at IS NULL AND status = 'running'"), what="come back")
        world.upstream.release()

        assert f"echo: {said}" == waiting.result(30).choices[0].message.content
    assert 1 == len(world.calls(word))


def test_a_restart_in_the_middle_of_an_answer_breaks_it_off(world: World, word: str, tmp_path: Path) -> None:
    with serving(tmp_path / "log", **world.stack.environment(), **HASTY) as api, world.ask(f"{word} [[fake:hold]]", api=api) as made:
        made.until(b"  ")
        api.stop()

        with pytest.raises(ConnectionError):
            made.whole()
