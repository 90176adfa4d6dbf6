"""End-to-end tests of the OpenAI routes: gunicorn, the queue, a worker, and a fake OpenAI."""

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

# Not the fixture `database`: the stack of this module runs across tests.
pytestmark = pytest.mark.usefixtures("environment")

SETTINGS = {"retry_base_s": 0.05, "retry_most_s": 0.1, "abandoned_after_s": 300, "max_attempts": 2}
# Settings of an API that sends its status of 200 early.
EARLY_STATUS = {"NOWSERVING_STATUS_GRACE_S": "0.3", "NOWSERVING_KEEPALIVE_EVERY_S": "0.2"}
SDK = {"x-stainless-retry-count": "0"}
RETRY = {"x-stainless-retry-count": "1"}
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na hat\r\n'
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ng\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n\r\n'
    b"--b--\r\n"
)


@dataclass
class System:
    """A running stack.

    early: a second API of the same stack, which sends its status of 200 early.
    """

    stack: Stack
    api: Api
    early: Api
    key: str = ""

    @property
    def upstream(self) -> FakeUpstream:
        return self.stack.upstream

    def ask(
        self, prompt: str = "hi", *, path: str = "/v1/chat/completions", api: Api | None = None, stream: bool = False, **headers: str
    ) -> Raw:
        """Send a chat call."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return Raw((api or self.api).port, path, chat(prompt, stream=stream), self.key, more=more)

    def calls(self, words: str) -> list[Call]:
        """The upstream's calls whose text contains these words."""
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


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}


@pytest.fixture(scope="module")
def running_system(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("routes")
    with running(folder, **SETTINGS) as stack:
        stack.pacer()
        stack.worker(threads=16)
        env = stack.environment()
        with serving(folder / "api.log", **env) as api, serving(folder / "early.log", **env, **EARLY_STATUS) as early:
            yield System(stack, api, early)


@pytest.fixture
def system(running_system: System) -> Iterator[System]:
    running_system.key = fresh_key()
    yield running_system
    running_system.upstream.release()


def fresh_key() -> str:
    """A new key with several calls in flight allowed from the start."""
    key = f"sk-{uuid4().hex}"
    caller(key, max_in_flight=8)
    return key


@pytest.fixture
def word() -> str:
    """A unique text."""
    return uuid4().hex


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def backdate_leaving(system: System) -> None:
    """Wait for a client to leave, and backdate this: its job was left and the API processes have been up for an hour."""
    key_id = caller(system.key).id
    statement = "UPDATE job SET left_at = left_at - interval '1 h' WHERE key_id = :id AND left_at IS NOT NULL RETURNING id"
    until(lambda: query(statement, id=key_id), what="a job left")
    until(lambda: query("UPDATE api_process SET up_since = up_since - interval '1 h' RETURNING name"), what="a heartbeat")


def newest_job(system: System) -> Any:
    """The row of this key's last job."""
    (row,) = query("SELECT id, reader FROM job WHERE key_id = :id ORDER BY id DESC LIMIT 1", id=caller(system.key).id)
    return row


def call_upstream(upstream: FakeUpstream, method: str, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    """The upstream's own response, without nowserving."""
    with closing(http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)) as connection:
        connection.request(method, path, body or None, {"Authorization": "Bearer sk-direct", "Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, answer.read()


def mask_ids_and_times(body: bytes) -> bytes:
    """Mask ids and times, which differ between equal answers."""
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
def test_every_route_returns_the_upstreams_bytes(system: System, base: str, method: str, path: str, body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    content_type = "multipart/form-data; boundary=b" if body is FORM else "application/json"
    expected = call_upstream(system.upstream, method, f"/v1{path}", content, content_type)
    with Raw(system.api.port, f"{base}{path}", content, system.key, method=method, more={"Content-Type": content_type}) as response:
        answered = response.whole()

    assert (expected[0], mask_ids_and_times(expected[1])) == (response.status, mask_ids_and_times(answered))
    assert ("application/json", str(len(answered))) == (response.headers["content-type"], response.headers["content-length"])
    assert f"/v1{path}" == unquote(system.upstream.calls()[-1].path)


@pytest.mark.parametrize("stream", [False, True])
def test_azure_sdk_is_served(system: System, word: str, stream: bool) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=f"http://127.0.0.1:{system.api.port}", api_key=system.key, api_version="2024-10-21", organization="org-7"
    ) as client:
        asked = client.chat.completions.create(model="m", messages=[{"role": "user", "content": word}], stream=stream)
        if stream:
            answered = "".join(chunk.choices[0].delta.content or "" for chunk in asked if chunk.choices)
        else:
            answered = asked.choices[0].message.content
        vectors = client.embeddings.create(model="e", input="a").data
        models = client.models.list().data

    (call,) = system.calls(word)
    assert (f"echo: {word}", 1, True) == (answered, len(vectors), bool(models))
    assert ("/v1/chat/completions", "m", "org-7") == (call.path, call.model, call.headers.get("openai-organization"))


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_azure_credential_is_called_on_azure_paths(system: System, word: str, version: str | None) -> None:
    query(
        "UPDATE credential SET kind = 'azure', base_url = :url, api_version = :version WHERE pool_id = :pool RETURNING id",
        url=system.upstream.base_url.removesuffix("/v1"), version=version, pool=caller(system.key).pool_id,
    )  # fmt: skip
    answered = system.sdk().chat.completions.create(model="m", messages=[{"role": "user", "content": word}])

    (call,) = system.calls(word)
    path = "/openai/deployments/m/chat/completions" if version else "/openai/v1/chat/completions"
    assert (f"echo: {word}", path) == (answered.choices[0].message.content, call.path)
    assert f"api-version={version}" == call.query if version else call.query == ""
    assert call.key == fingerprint(system.key)


def test_response_headers_describe_the_job(system: System) -> None:
    with system.ask() as response:
        response.whole()
    (job,) = system.jobs()

    assert job["id"] == response.headers["x-nowserving-job-id"]
    assert response.headers["x-request-id"].startswith("req_")
    assert (job["started_at"] - job["created_at"]) * 1000 == pytest.approx(int(response.headers["x-nowserving-waited-ms"]), abs=2)
    assert (job["ended_at"] - job["started_at"]) * 1000 == pytest.approx(int(response.headers["openai-processing-ms"]), abs=2)
    assert "x-nowserving-resumed" not in response.headers
    assert "idempotent-replayed" not in response.headers


def test_response_has_headers_of_known_limits(system: System) -> None:
    caller(system.key, rpm=600, tpm=90_000)

    def headers_with_limits() -> dict[str, str] | None:
        with system.ask() as response:
            response.whole()
        return response.headers if "x-ratelimit-limit-requests" in response.headers else None

    headers = until(headers_with_limits, what="headers with limits")
    assert ("600", "90000") == (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-limit-tokens"])
    assert 500 < int(headers["x-ratelimit-remaining-requests"]) < 600
    assert re.fullmatch(r"([\d.]+(h|m|s|ms))+", headers["x-ratelimit-reset-requests"])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
def test_upstream_error_is_returned_unchanged(system: System, status: int) -> None:
    body = json.dumps(chat(f"[[fake:status={status}]]")).encode()
    expected = call_upstream(system.upstream, "POST", "/v1/chat/completions", body, "application/json")
    with system.ask(f"[[fake:status={status}]]") as response:
        answered = response.whole()

    assert expected == (response.status, answered)
    assert "false" == response.headers["x-should-retry"]
    assert (1 if status < 500 else 2) == len(system.upstream.calls(key=system.key))


def test_transient_failure_is_retried_before_the_client_sees_it(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:status=500;times=1]]") as response:
        assert f"echo: {word}" in response.json["choices"][0]["message"]["content"]

    assert (200, 2) == (response.status, len(system.calls(word)))


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("[[fake:reset=before]]", 502, "upstream_outcome_unknown"),
        ("[[fake:garbage=html]]", 502, "upstream_invalid_response"),
    ],
)
def test_outcome_of_a_broken_call_is_reported_once(system: System, prompt: str, status: int, code: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        system.sdk().chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])

    assert (status, code) == (caught.value.status_code, caught.value.code)
    assert 1 == len(system.jobs())


@pytest.mark.parametrize(("code", "status", "raised"), [(400, 400, openai.BadRequestError), (500, 500, openai.InternalServerError)])
def test_error_in_a_200_is_returned_with_its_real_status(
    system: System, code: int, status: int, raised: type[openai.APIStatusError]
) -> None:
    with pytest.raises(raised) as caught:
        asked = chat(f"[[fake:status={code};shape=in_200]]")
        system.sdk().chat.completions.create(**asked, extra_body={"nowserving": {"max_attempts": 1}})

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
def test_error_in_another_shape_keeps_status_bytes_and_type(system: System, shape: str, content_type: str) -> None:
    prompt = f"[[fake:status=422;shape={shape}]]"
    expected = call_upstream(system.upstream, "POST", "/v1/chat/completions", json.dumps(chat(prompt)).encode(), "application/json")
    with system.ask(prompt) as response:
        answered = response.whole()

    assert expected == (response.status, answered)
    assert content_type == response.headers["content-type"]


def test_unreadable_answer_can_be_fetched_by_its_caller(system: System) -> None:
    with system.ask("[[fake:garbage=html]]") as response:
        code = response.json["error"]["code"]
    (job,) = system.jobs()
    with Raw(system.api.port, job["result_raw"]["url"], key=system.key, method="GET") as raw:
        assert PAGE == raw.whole()

    assert ("upstream_invalid_response", "text/html; charset=utf-8") == (code, raw.headers["x-nowserving-content-type"])


def test_call_over_its_timeout_is_a_gateway_timeout(system: System) -> None:
    with system.ask("[[fake:hold]]", X_Nowserving_Timeout="1") as response:
        assert "upstream_timeout" == response.json["error"]["code"]

    assert 504 == response.status


# Prefer


def test_prefer_respond_async_returns_the_job(system: System, word: str) -> None:
    with system.ask(word, Prefer="respond-async") as response:
        job = response.json

    assert (202, "job", f"/v1/jobs/{job['id']}") == (response.status, job["object"], response.headers["location"])
    assert ("respond-async", job["id"]) == (response.headers["preference-applied"], response.headers["x-nowserving-job-id"])
    with Raw(system.api.port, f"/v1/jobs/{job['id']}?wait=20", key=system.key, method="GET") as later:
        result = later.json["result"]
    with system.ask(word) as sync:
        assert mask_ids_and_times(json.dumps(result).encode()) == mask_ids_and_times(json.dumps(sync.json).encode())


def test_answer_within_the_preferred_wait_is_returned(system: System, word: str) -> None:
    with system.ask(word, Prefer="respond-async, wait=20") as response:
        assert f"echo: {word}" == response.json["choices"][0]["message"]["content"]

    assert (200, "respond-async, wait=20") == (response.status, response.headers["preference-applied"])


def test_error_within_the_preferred_wait_has_its_status(system: System) -> None:
    with system.ask("[[fake:status=404]]", Prefer="respond-async, wait=20") as response:
        response.whole()

    assert 404 == response.status


def test_answer_after_the_preferred_wait_is_a_job(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", Prefer="respond-async, wait=1") as response:
        assert "running" == response.json["status"]

    assert (202, "respond-async, wait=1") == (response.status, response.headers["preference-applied"])


def test_prefer_wait_without_respond_async_waits_for_the_answer(system: System, word: str) -> None:
    with system.ask(word, Prefer="wait=0") as response:
        assert f"echo: {word}" == response.json["choices"][0]["message"]["content"]

    assert "preference-applied" not in response.headers


def test_prefer_respond_async_client_may_disconnect(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", Prefer="respond-async, wait=30"):
        system.wait_held(word)
    with system.ask("[[fake:hold]] left", **SDK):
        until(lambda: 2 == len(system.jobs()), what="a second job")
    backdate_leaving(system)

    until(lambda: "cancelled" == system.jobs()[1]["status"], what="cancelled")
    assert "running" == system.jobs()[0]["status"]


# Reconnecting clients


def test_reconnection_causes_no_second_call(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", **SDK):
        system.wait_held(word)
    first = newest_job(system)
    with system.ask(f"{word} [[fake:hold]]", **RETRY) as retry:
        until(lambda: query("SELECT FROM job WHERE id = :id AND reader <> :reader", id=first.id, reader=first.reader), what="reconnected")
        system.upstream.release()
        retry.whole()

    assert (200, "true") == (retry.status, retry.headers["x-nowserving-resumed"])
    assert 1 == len(system.calls(word)) == len(system.jobs())


def test_unread_answer_is_returned_to_the_retry(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", **SDK):
        system.wait_held(word)
    until(lambda: query("SELECT FROM job WHERE left_at IS NOT NULL AND status = 'running'"), what="left")
    system.upstream.release()
    until(lambda: "succeeded" == system.jobs()[0]["status"], what="ended")
    with system.ask(f"{word} [[fake:hold]]", path="/chat/completions", **RETRY) as retry:
        retry.whole()

    assert (200, system.jobs()[0]["id"], 1) == (retry.status, retry.headers["x-nowserving-job-id"], len(system.calls(word)))


def test_retry_never_finds_another_keys_job(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]"):
        system.wait_held(word)
        system.key = fresh_key()
        with system.ask(f"{word} [[fake:hold]]", **RETRY) as other:
            until(lambda: 2 == len(system.calls(word)), what="called twice")
            system.upstream.release()

            assert "x-nowserving-resumed" not in other.head().headers


def test_first_try_never_finds_an_existing_job(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]"):
        system.wait_held(word)
        with system.ask(f"{word} [[fake:hold]]", x_stainless_retry_count="0"):
            until(lambda: 2 == len(system.calls(word)), what="called twice")


def test_absent_clients_job_is_cancelled_and_its_call_aborted(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", **SDK):
        system.wait_held(word)
    backdate_leaving(system)

    until(lambda: "cancelled" == system.jobs()[0]["status"], what="cancelled")
    until(lambda: "client_gone" == system.calls(word)[0].outcome, what="the upstream connection closed")


# Clients that disconnect and cannot reconnect


def close(raw: Raw) -> None:
    raw.close()


def reset(raw: Raw) -> None:
    """RST instead of FIN."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def close_half(raw: Raw) -> None:
    """FIN, while the client could still read."""
    raw.socket.shutdown(socket.SHUT_WR)


def close_after_more(raw: Raw) -> None:
    """FIN after bytes that the server has not read."""
    raw.socket.sendall(b"\r\n")
    raw.socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("is_stream", [False, True], ids=["held", "stream"])
@pytest.mark.parametrize("disconnect", [close, reset, close_half, close_after_more])
def test_disconnect_ends_the_running_call(system: System, word: str, disconnect: Callable[[Raw], None], is_stream: bool) -> None:
    prompt = f"{word} [[fake:hold_after=2]]" if is_stream else f"{word} [[fake:hold]]"
    with system.ask(prompt, stream=is_stream) as raw:
        system.wait_held(word)
        if is_stream:
            raw.until(b"data: ")
        disconnect(raw)

        until(lambda: "cancelled" == system.jobs()[0]["status"], what="cancelled")
    until(lambda: "client_gone" == system.calls(word)[0].outcome, what="the upstream connection closed")
    assert 1 == len(system.calls(word))


@pytest.mark.parametrize("is_stream", [False, True], ids=["held", "stream"])
def test_disconnect_cancels_a_waiting_job(system: System, word: str, is_stream: bool) -> None:
    pool_id = caller(system.key).pool_id
    query("UPDATE credential SET paused_at = now() WHERE pool_id = :id", id=pool_id)
    system.ask(f"{word} first", stream=is_stream).close()
    until(lambda: ["cancelled"] == [job["status"] for job in system.jobs()], what="cancelled")
    query("UPDATE credential SET paused_at = NULL WHERE pool_id = :id", id=pool_id)
    system.ask(f"{word} second").whole()

    assert [f"{word} second"] == [call.text for call in system.calls(word)]


def test_killed_client_counts_as_disconnected(system: System, word: str) -> None:
    body = json.dumps(chat(f"{word} [[fake:hold]]"))
    url = f"http://127.0.0.1:{system.api.port}/v1/chat/completions"
    program = (
        "import sys, urllib.request as r; "
        f"r.urlopen(r.Request({url!r}, {body.encode()!r}, {{'Authorization': 'Bearer {system.key}', 'Content-Type': 'application/json'}}))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as client:
        system.wait_held(word)
        client.kill()

    until(lambda: "client_gone" == system.calls(word)[0].outcome, what="the upstream connection closed")
    until(lambda: "cancelled" == system.jobs()[0]["status"], what="cancelled")


@pytest.mark.parametrize("header", ["x-stainless-lang", "X-Stainless-Retry-Count", "Idempotency-Key"])
def test_job_of_a_client_that_can_reconnect_is_kept_for_a_while(system: System, word: str, header: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", **{header: word}):
        system.wait_held(word)
    until(lambda: query("SELECT FROM job WHERE id = :id AND left_at IS NOT NULL", id=newest_job(system).id), what="left")
    with system.ask(f"{word} beside [[fake:hold]]"):
        system.wait_held(f"{word} beside")
    until(lambda: "cancelled" == system.jobs()[1]["status"], what="the job without retry header cancelled")

    assert "running" == system.jobs()[0]["status"]
    assert "open" == system.calls(word)[0].outcome


def test_idempotency_key_of_a_cancelled_job_creates_a_new_job(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", Idempotency_Key=word):
        system.wait_held(word)
    backdate_leaving(system)
    until(lambda: "cancelled" == system.jobs()[0]["status"], what="cancelled")
    system.upstream.release()

    response = system.ask(f"{word} [[fake:hold]]", Idempotency_Key=word)
    until(lambda: 2 == len(system.calls(word)), what="a new call")
    system.upstream.release()

    assert 200 == response.head().status
    assert "idempotent-replayed" not in response.headers


def test_same_idempotency_key_attaches_to_the_same_job(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:hold]]", Idempotency_Key=word):
        system.wait_held(word)
        first = newest_job(system)
        with system.ask(f"{word} [[fake:hold]]", path="/v1/v1/chat/completions", Idempotency_Key=word) as retry:
            until(
                lambda: query("SELECT FROM job WHERE id = :id AND reader <> :reader", id=first.id, reader=first.reader), what="taken over"
            )
            system.upstream.release()
            retry.whole()

    assert (200, "true", 1) == (retry.status, retry.headers["idempotent-replayed"], len(system.calls(word)))


def test_same_idempotency_key_with_another_body_is_refused(system: System, word: str) -> None:
    system.ask(word, Idempotency_Key=word).whole()

    assert 422 == system.ask(f"{word}!", Idempotency_Key=word).head().status


# Streams that fail before their first event, with the official SDK


@pytest.fixture(scope="module")
def slow_head(running_system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API whose streams wait for their first event longer than any call here takes."""
    env = running_system.stack.environment()
    with serving(tmp_path_factory.mktemp("slow_head") / "log", **env, NOWSERVING_STREAM_HEAD_S="60") as api:
        yield api


@pytest.mark.parametrize(
    ("prompt", "raised"),
    [
        ("status=400", openai.BadRequestError), ("status=401", openai.AuthenticationError), ("status=404", openai.NotFoundError),
        ("status=429;kind=quota", openai.RateLimitError),
    ],
)  # fmt: skip
def test_openai_python_raises_the_same_error_with_and_without_a_stream(
    system: System, slow_head: Api, word: str, prompt: str, raised: type[openai.APIStatusError]
) -> None:
    with pytest.raises(raised):
        messages: Any = [{"role": "user", "content": f"{word} [[fake:{prompt}]]"}]
        system.sdk(slow_head).chat.completions.create(model="m", messages=messages, stream=True)

    assert 1 == len(system.calls(word))


def test_first_event_is_relayed_at_once_with_a_long_head_wait(system: System, slow_head: Api, word: str) -> None:
    messages: Any = [{"role": "user", "content": f"{word} [[fake:hold_after=1]]"}]
    answer = system.sdk(slow_head).chat.completions.create(model="m", messages=messages, stream=True)
    first = next(iter(answer))

    assert first.choices
    assert ["open"] == [call.outcome for call in system.calls(word)], "the upstream has not gone on"
    answer.close()


# Late failures, with the official SDK


@pytest.mark.parametrize(
    ("status", "raised"),
    [(400, openai.BadRequestError), (404, openai.NotFoundError), (422, openai.UnprocessableEntityError), (503, openai.InternalServerError)],
)
def test_openai_python_raises_the_exception_of_a_late_failure(
    system: System, word: str, status: int, raised: type[openai.APIStatusError]
) -> None:
    prompt = f"{word} [[fake:delay=1;status={status}]]"
    with pytest.raises(raised) as caught:
        system.sdk(system.early).chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])

    assert status == caught.value.status_code
    assert "true" == caught.value.response.headers["x-nowserving-resumed"]
    assert 1 == len(system.jobs())
    assert (1 if status < 500 else 2) == len(system.calls(word))


async def _ask_async(system: System, prompt: str) -> None:
    async with openai.AsyncOpenAI(api_key=system.key, base_url=str(system.sdk(system.early).base_url)) as client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])


def test_asynchronous_openai_python_raises_the_exception_of_a_late_failure(system: System, word: str) -> None:
    with pytest.raises(openai.BadRequestError):
        asyncio.run(_ask_async(system, f"{word} [[fake:delay=1;status=400]]"))

    assert 1 == len(system.calls(word))


def test_openai_python_without_retries_sees_a_broken_connection(system: System, word: str) -> None:
    prompt = f"{word} [[fake:delay=1;status=400]]"
    with pytest.raises(openai.APIConnectionError):
        system.sdk(system.early, max_retries=0).chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])

    assert 1 == len(system.calls(word))


def test_openai_python_reads_a_late_answer(system: System, word: str) -> None:
    prompt = f"{word} [[fake:delay=1]]"
    response = system.sdk(system.early).chat.completions.create(model="m", messages=[{"role": "user", "content": prompt}])

    assert f"echo: {prompt}" == response.choices[0].message.content
    assert 1 == len(system.calls(word))


def test_other_clients_read_a_late_failure_in_the_body(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:delay=1;status=400]]", api=system.early) as response:
        assert "invalid_request_error" == response.json["error"]["type"]

    assert (200, "chunked", b" ") == (response.status, response.headers["transfer-encoding"], response.frames[0][1])
    assert "connection" not in response.headers or response.headers["connection"] != "close"


def test_keepalive_spaces_are_sent_one_by_one_before_the_answer(system: System, word: str) -> None:
    with system.ask(f"{word} [[fake:delay=1]]", api=system.early) as response:
        response.whole()
    chunks = [chunk for _, chunk in response.frames]

    assert len(chunks) > 2
    assert {b" "} == set(chunks[:-1])
    assert f"echo: {word}" in json.loads(chunks[-1])["choices"][0]["message"]["content"]


# Restarts


def test_waiting_client_finds_its_job_after_a_restart_of_the_server(
    system: System, word: str, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    env = system.stack.environment()
    prompt = f"{word} [[fake:hold]]"
    with serving(tmp_path / "log", **env) as api:
        client = system.sdk(api, max_retries=9)
        waiting = threads.submit(partial(client.chat.completions.create, model="m", messages=[{"role": "user", "content": prompt}]))
        system.wait_held(word)
        port = api.port
        api.stop()
    with serving(tmp_path / "log", **env, NOWSERVING_PORT=str(port)):
        until(lambda: query("SELECT FROM job WHERE left_at IS NULL AND status = 'running'"), what="reconnected")
        system.upstream.release()

        assert f"echo: {prompt}" == waiting.result(30).choices[0].message.content
    assert 1 == len(system.calls(word))


def test_restart_during_an_answer_breaks_the_connection(system: System, word: str, tmp_path: Path) -> None:
    with (
        serving(tmp_path / "log", **system.stack.environment(), **EARLY_STATUS) as api,
        system.ask(f"{word} [[fake:hold]]", api=api) as response,
    ):
        response.until(b"  ")
        api.stop()

        with pytest.raises(ConnectionError):
            response.whole()
