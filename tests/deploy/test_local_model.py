"""The local upstream, called through the openai SDK."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import openai
import pytest
from PIL import Image

from deploy.local import probe
from deploy.local.server_process import free_port, last_lines
from tests.support.time_limits import seconds


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    log = tmp_path_factory.mktemp("model") / "log"
    number = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "deploy.local_model", "--port", str(number)], stdout=output, stderr=output)
    deadline = time.monotonic() + 60
    while not probe.http_ok("/v1/models", port=number):
        assert process.poll() is None and time.monotonic() < deadline, last_lines(log)
        time.sleep(0.05)
    yield number
    process.terminate()
    process.wait(10)
    assert b"Traceback" not in log.read_bytes()


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="any", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as sdk:
        yield sdk


def test_both_models_are_listed(client: openai.OpenAI) -> None:
    assert ["smollm2-135m", "drawing-card"] == [model.id for model in client.models.list()]


def test_chat_respects_max_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2-135m", messages=[{"role": "user", "content": "Say hello."}], max_tokens=6)

    assert answer.choices[0].message.content
    assert answer.usage
    assert answer.usage.completion_tokens <= 6


def test_chat_can_be_streamed(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="smollm2-135m",
            messages=[{"role": "user", "content": "Count to three."}],
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    assert chunks[-1].usage


def test_image_has_requested_size(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="drawing-card", prompt="an otter — 北京", size="512x256", n=2)

    assert answer.data
    assert [(512, 256)] * 2 == [Image.open(io.BytesIO(base64.b64decode(each.b64_json or ""))).size for each in answer.data]
    assert ("png", "512x256", "low") == (answer.output_format, answer.size, answer.quality)
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/images/generations", {}, 400, "prompt"),
        ("/images/generations", {"prompt": "x", "size": "9x9"}, 400, "size"),
        ("/images/generations", {"prompt": "x", "n": 11}, 400, "n"),
        ("/chat/completions", {"model": "smollm2-135m", "messages": "not a list"}, 400, None),
        ("/chat/completions", {"model": "gpt-6-astra", "messages": []}, 404, "model"),
        ("/chat/completions", [1], 400, None),
        ("/embeddings", {}, 404, None),
    ],
)
def test_unsupported_request_returns_openai_error(client: openai.OpenAI, path: str, body: object, status: int, param: str | None) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.post(path, body=body, cast_to=object)

    assert (status, param) == (caught.value.status_code, caught.value.param)
    assert {"message", "type", "param", "code"} == set(caught.value.body or {})  # type: ignore[call-overload]  # a dict, typed object


def answer(client: openai.OpenAI, *, tokens: int) -> None:
    """Requests an answer of exactly this many tokens."""
    client.chat.completions.create(
        model="smollm2-135m", messages=[{"role": "user", "content": "Hello."}], max_tokens=tokens, extra_body={"ignore_eos": True}
    )


def test_disconnect_frees_model(client: openai.OpenAI, port: int) -> None:
    # As many as the model has places: were they not freed, the next would wait for 4 x 1,900 tokens.
    long = b'{"model":"smollm2-135m","messages":[{"role":"user","content":"Tell a long story."}],"max_tokens":1900,"ignore_eos":true}'
    for _ in range(4):
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/chat/completions", long)
        connection.close()

    waited_s = seconds(lambda: answer(client, tokens=2))
    token_s = seconds(lambda: answer(client, tokens=50)) / 50
    # By this machine's own speed of now: one of the stories alone would take about twice as long.
    assert waited_s < 1_000 * token_s


def test_dead_front_is_not_ready(tmp_path: Path) -> None:
    assert not probe.http_ok("/v1/models", port=free_port())
