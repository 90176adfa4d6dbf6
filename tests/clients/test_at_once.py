"""Every client makes the same calls to the fake OpenAI directly and through nowserving: its user sees the same results."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from urllib.request import urlopen
from uuid import uuid4

import pytest

from tests.clients.calls import CHAT, EDIT, EMBED, IMAGE, MODEL, MODELS, MODERATE, PARTIALS, STREAM, Call, Seen
from tests.clients.conftest import System, fresh_key
from tests.clients.programs import CLIENTS, Client, params, readme
from tests.support.http_tools import together
from tests.upstream.ask import count_tokens
from tests.upstream.chat import echo
from tests.upstream.images import png
from tests.upstream.texts import FLAGGED, vector
from tests.upstream.texts import MODELS as NAMES

# Non-ASCII below and above the BMP, quotes, a line break, and long enough for many chunks.
PROMPT = 'Übersetze "世界" 😀\nins Deutsche. ' + "Zeile für Zeile. " * 8
# A form turns a line break into two characters.
EDITED = PROMPT.replace("\n", " ")
PROMPTS = {MODEL: NAMES[0], MODERATE: f"{PROMPT} {FLAGGED}", EDIT: EDITED}
PICTURES = {IMAGE: (0, 1), EDIT: (0,), PARTIALS: (-1, -2, 0)}
DATA = {
    EMBED: [vector(PROMPT), vector("second")], MODERATE: [[True, True]], MODELS: list(NAMES), MODEL: [NAMES[0]],
    PARTIALS: ["image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"],
}  # fmt: skip
# Status at OpenAI: the class that openai-python and openai-node raise.
CLASSES = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError", 422: "UnprocessableEntityError",
    429: "RateLimitError", 500: "InternalServerError",
}  # fmt: skip
SDKS = CLIENTS[:3]
APPS = CLIENTS[3:6]
CURL = CLIENTS[6]


def each_client(*, kind: str = "", among: Sequence[Client] = CLIENTS) -> pytest.MarkDecorator:
    chosen = [client for client in among if not kind or kind in client.kinds]
    return pytest.mark.parametrize("client", params(chosen))


def at_openai_and_here(system: System, client: Client, calls: Sequence[Call]) -> list[tuple[Seen, Seen]]:
    """The results of each call at OpenAI and here. Each call has its own key, so that calls do not share a lane."""
    once = {"maxRetries": 0} if client.name == "openai-node" else {"max_retries": 0}
    there = [replace(call, base=system.upstream.base_url, key=fresh_key(), options=once) for call in calls]
    here = [replace(call, base=system.base, key=fresh_key()) for call in calls]
    seen = together(lambda: client.make(there), lambda: client.make(here))
    return list(zip(*seen, strict=True))


def failing(status: int) -> str:
    kind = ";kind=quota" if status == 429 else ""
    return f"[[fake:status={status}{kind}]] {uuid4().hex}"


@each_client()
def test_every_response_equals_that_of_openai(system: System, client: Client) -> None:
    more = {IMAGE: {"n": 2, "size": "512x512"}}
    seen = at_openai_and_here(
        system, client, [Call("", "", PROMPTS.get(kind, PROMPT), kind, more=more.get(kind, {})) for kind in client.kinds]
    )

    assert [there.common for there, _ in seen] == [here.common for _, here in seen]
    for kind, (_, here) in zip(client.kinds, seen, strict=True):
        assert here.error is None
        if kind in (CHAT, STREAM):
            assert (echo(PROMPT).strip(), "stop") == (here.text.strip(), here.finish)
            assert (kind == STREAM) == (here.pieces > 4)
        assert [png(PROMPTS.get(kind, PROMPT), index) for index in PICTURES.get(kind, ())] == pictures(here)
        assert DATA.get(kind, []) == here.data


@each_client(kind=STREAM, among=SDKS)
def test_stream_ends_with_usage_only_when_requested(system: System, client: Client) -> None:
    with_usage, without_usage = at_openai_and_here(
        system, client, [Call("", "", PROMPT, STREAM, more={"stream_options": {"include_usage": True}}), Call("", "", PROMPT, STREAM)]
    )

    assert with_usage[0].usage == with_usage[1].usage
    assert with_usage[1].usage
    assert without_usage[1].usage is None


@each_client(kind=CHAT, among=SDKS)
def test_sdk_raises_the_same_class_as_at_openai(system: System, client: Client) -> None:
    calls = [Call("", "", failing(status)) for status in CLASSES]
    seen = at_openai_and_here(system, client, calls)

    assert list(CLASSES.values()) == [here.error for _, here in seen]
    assert list(CLASSES) == [here.status for _, here in seen]
    assert [there.common for there, _ in seen] == [here.common for _, here in seen]
    # nowserving has retried what a retry can cure, so the SDK does not retry.
    assert [4 if status == 500 else 1 for status in CLASSES] == [len(system.calls(call.say)) - 1 for call in calls]


@each_client(kind=CHAT, among=CLIENTS[3:])
def test_app_shows_the_same_error_as_at_openai(system: System, client: Client) -> None:
    seen = at_openai_and_here(system, client, [Call("", "", failing(status)) for status in CLASSES])

    assert list(CLASSES) == [here.status for _, here in seen]
    assert [there.common for there, _ in seen] == [here.common for _, here in seen]


@each_client(kind=STREAM, among=SDKS)
def test_sdk_raises_when_a_stream_fails_midway(system: System, client: Client) -> None:
    behaviours = ("error_after=3;chunk_delay=0.05", "cut_after=3;chunk_delay=0.05", "reset=body")
    seen = at_openai_and_here(system, client, [Call("", "", f"[[fake:{behaviour}]] {PROMPT}", STREAM) for behaviour in behaviours])

    assert ["APIError"] * len(behaviours) == [here.error for _, here in seen]
    assert all(here.text.startswith(there.text) for there, here in seen)
    assert all(there.text for there, _ in seen[:2])


@each_client(kind=STREAM, among=APPS)
def test_app_shows_why_a_stream_failed_and_ends(system: System, client: Client) -> None:
    """At OpenAI all three apps hide the same failures, and ChatGPT-Web waits forever."""
    shown = {"error_after=3": "had an error", "cut_after=3": "no whole answer", "status=403": "not supported"}
    seen = client.make([Call(system.base, fresh_key(), f"[[fake:{behaviour}]] {PROMPT}", STREAM) for behaviour in shown])

    assert [(None, None, "stop")] * len(shown) == [(result.error, result.broken, result.finish) for result in seen]
    assert [] == [result.text for result, text in zip(seen, shown.values(), strict=True) if text not in result.text]


@each_client(kind=CHAT, among=SDKS)
def test_bad_key_is_an_authentication_error(system: System, client: Client) -> None:
    calls = [Call(system.base, "ns-unknown", "hello", kind) for kind in client.kinds]

    assert {("AuthenticationError", 401)} == {(seen.error, seen.status) for seen in client.make(calls)}


@each_client(kind=STREAM, among=SDKS)
def test_bad_body_is_a_bad_request_with_and_without_stream(system: System, client: Client, key: str) -> None:
    calls = [Call(system.base, key, kind=kind, more={"messages": "none"}) for kind in (CHAT, STREAM)]
    seen = client.make(calls)

    assert {("BadRequestError", 400, "messages")} == {(result.error, result.status, result.param) for result in seen}


@each_client()
def test_base_url_works_with_and_without_v1(system: System, client: Client) -> None:
    bases = [f"http://127.0.0.1:{system.api.port}{pasted}" for pasted in ("", "/v1", "/v1/v1")]
    seen = client.make([Call(base, fresh_key(), PROMPTS.get(kind, PROMPT), kind) for base in bases for kind in client.kinds])

    assert [None] * len(seen) == [result.error for result in seen]
    assert all(result.text or result.data or result.pictures for result in seen)


@pytest.mark.skipif(not CURL.is_installed, reason="curl is not installed")
def test_readme_curl_calls_work_unchanged(system: System) -> None:
    lines = readme(system.base)
    chat, stream, image = CURL.make([Call(system.base, fresh_key(), kind=kind, line=lines[kind]) for kind in (CHAT, STREAM, IMAGE)])

    assert [None] * 3 == [seen.error for seen in (chat, stream, image)]
    assert echo("What is the capital of France?") == chat.text
    assert (echo("Say hi"), True) == (stream.text, stream.done)
    assert 2 == len(image.pictures)
    for link in image.pictures:
        with urlopen(link, timeout=10) as picture:
            assert picture.read().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", [CHAT, STREAM])
def test_chatgpt_keeps_its_history_by_answer_ids(system: System, kind: str) -> None:
    (client,) = (client for client in CLIENTS if client.name == "chatgpt")
    again = f"and then? {uuid4().hex}"
    prompt = "who are you?"
    seen = client.make_one(Call(system.base, fresh_key(), prompt, kind, again=again))

    assert (None, 3) == (seen.error, len(set(seen.ids)))
    assert [history_tokens(prompt, again), history_tokens(prompt, again, again)] == [call.tokens for call in system.calls(again)]


def pictures(seen: Seen) -> list[bytes]:
    return [base64.b64decode(picture) for picture in seen.pictures]


def history_tokens(*prompts: str) -> int:
    """The token estimate of a chat with these user messages, all but the last answered, and at most 1,000 tokens of answer."""
    messages = [*prompts, *map(echo, prompts[:-1])]
    return count_tokens(sum(map(len, messages))) + 4 * len(messages) + 1000
