"""Every client makes the same calls to the fake OpenAI directly and through us, and its user sees the same of both."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from urllib.request import urlopen
from uuid import uuid4

import pytest

from tests.clients.calls import CHAT, EDIT, EMBED, IMAGE, MODEL, MODELS, MODERATE, PARTIALS, STREAM, Call, Seen
from tests.clients.conftest import World, fresh_key
from tests.clients.programs import CLIENTS, Client, params, readme
from tests.support.http_tools import together
from tests.upstream.ask import count_tokens
from tests.upstream.chat import echo
from tests.upstream.images import png
from tests.upstream.texts import FLAGGED, vector
from tests.upstream.texts import MODELS as NAMES

# Non-ASCII below and above the BMP, quotes, a line break, and long enough for many chunks.
SAID = 'Übersetze "世界" 😀\nins Deutsche. ' + "Zeile für Zeile. " * 8
# A form turns a line break into two characters.
EDITED = SAID.replace("\n", " ")
SAYS = {MODEL: NAMES[0], MODERATE: f"{SAID} {FLAGGED}", EDIT: EDITED}
PICTURES = {IMAGE: (0, 1), EDIT: (0,), PARTIALS: (-1, -2, 0)}
DATA = {
    EMBED: [vector(SAID), vector("second")], MODERATE: [[True, True]], MODELS: list(NAMES), MODEL: [NAMES[0]],
    PARTIALS: ["image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"],
}  # fmt: skip
# status at OpenAI: the class that openai-python and openai-node raise
CLASSES = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError", 422: "UnprocessableEntityError",
    429: "RateLimitError", 500: "InternalServerError",
}  # fmt: skip
SDKS = CLIENTS[:3]
APPS = CLIENTS[3:6]
CURL = CLIENTS[6]


def each(*, kind: str = "", among: Sequence[Client] = CLIENTS) -> pytest.MarkDecorator:
    chosen = [client for client in among if not kind or kind in client.kinds]
    return pytest.mark.parametrize("client", params(chosen))


def both(world: World, client: Client, calls: Sequence[Call]) -> list[tuple[Seen, Seen]]:
    """What was seen of each call at OpenAI and here. Each has a key of its own: what one does to its line is no other's affair."""
    once = {"maxRetries": 0} if client.name == "openai-node" else {"max_retries": 0}
    there = [replace(call, base=world.upstream.base_url, key=fresh_key(), options=once) for call in calls]
    here = [replace(call, base=world.base, key=fresh_key()) for call in calls]
    seen = together(lambda: client.make(there), lambda: client.make(here))
    return list(zip(*seen, strict=True))


def failing(status: int) -> str:
    kind = ";kind=quota" if status == 429 else ""
    return f"[[fake:status={status}{kind}]] {uuid4().hex}"


@each()
def test_every_response_equals_that_of_openai(world: World, client: Client) -> None:
    more = {IMAGE: {"n": 2, "size": "512x512"}}
    seen = both(world, client, [Call("", "", SAYS.get(kind, SAID), kind, more=more.get(kind, {})) for kind in client.kinds])

    assert [there.common for there, _ in seen] == [here.common for _, here in seen]
    for kind, (_, here) in zip(client.kinds, seen, strict=True):
        assert here.error is None
        if kind in (CHAT, STREAM):
            assert (echo(SAID).strip(), "stop") == (here.text.strip(), here.finish)
            assert (kind == STREAM) == (here.pieces > 4)
        assert [png(SAYS.get(kind, SAID), index) for index in PICTURES.get(kind, ())] == pictures(here)
        assert DATA.get(kind, []) == here.data


@each(kind=STREAM, among=SDKS)
def test_stream_ends_with_usage_only_when_requested(world: World, client: Client) -> None:
    asked, not_asked = both(
        world, client, [Call("", "", SAID, STREAM, more={"stream_options": {"include_usage": True}}), Call("", "", SAID, STREAM)]
    )

    assert asked[0].usage == asked[1].usage
    assert asked[1].usage
    assert not_asked[1].usage is None


@each(kind=CHAT, among=SDKS)
def test_the_sdks_raise_the_class_they_raise_at_openai(world: World, client: Client) -> None:
    calls = [Call("", "", failing(status)) for status in CLASSES]
    seen = both(world, client, calls)

    assert list(CLASSES.values()) == [here.error for _, here in seen]
    assert list(CLASSES) == [here.status for _, here in seen]
    assert [there.common for there, _ in seen] == [here.common for _, here in seen]
    # We have retried what a retry can cure: the SDK does not do it again.
    assert [4 if status == 500 else 1 for status in CLASSES] == [len(world.calls(call.say)) - 1 for call in calls]


@each(kind=CHAT, among=CLIENTS[3:])
def test_the_apps_show_the_error_they_show_at_openai(world: World, client: Client) -> None:
    seen = both(world, client, [Call("", "", failing(status)) for status in CLASSES])

    assert list(CLASSES) == [here.status for _, here in seen]
    assert [there.common for there, _ in seen] == [here.common for _, here in seen]


@each(kind=STREAM, among=SDKS)
def test_the_sdks_raise_when_a_stream_fails_in_the_middle(world: World, client: Client) -> None:
    hows = ("error_after=3;chunk_delay=0.05", "cut_after=3;chunk_delay=0.05", "reset=body")
    seen = both(world, client, [Call("", "", f"[[fake:{how}]] {SAID}", STREAM) for how in hows])

    assert ["APIError"] * len(hows) == [here.error for _, here in seen]
    assert all(here.text.startswith(there.text) for there, here in seen)
    assert all(there.text for there, _ in seen[:2])


@each(kind=STREAM, among=APPS)
def test_the_apps_show_why_a_stream_failed_and_end(world: World, client: Client) -> None:
    """At OpenAI the same failures are invisible in all three of them, and ChatGPT-Web waits for ever."""
    shown = {"error_after=3": "had an error", "cut_after=3": "no whole answer", "status=403": "not supported"}
    seen = client.make([Call(world.base, fresh_key(), f"[[fake:{how}]] {SAID}", STREAM) for how in shown])

    assert [(None, None, "stop")] * len(shown) == [(one.error, one.broken, one.finish) for one in seen]
    assert [] == [one.text for one, words in zip(seen, shown.values(), strict=True) if words not in one.text]


@each(kind=CHAT, among=SDKS)
def test_a_bad_key_is_an_authentication_error(world: World, client: Client) -> None:
    calls = [Call(world.base, "ns-unknown", "hello", kind) for kind in client.kinds]

    assert {("AuthenticationError", 401)} == {(seen.error, seen.status) for seen in client.make(calls)}


@each(kind=STREAM, among=SDKS)
def test_a_bad_body_is_a_bad_request_streamed_or_not(world: World, client: Client, key: str) -> None:
    calls = [Call(world.base, key, kind=kind, more={"messages": "none"}) for kind in (CHAT, STREAM)]
    seen = client.make(calls)

    assert {("BadRequestError", 400, "messages")} == {(one.error, one.status, one.param) for one in seen}


@each()
def test_the_base_url_may_be_pasted_with_or_without_v1(world: World, client: Client) -> None:
    bases = [f"http://127.0.0.1:{world.api.port}{pasted}" for pasted in ("", "/v1", "/v1/v1")]
    seen = client.make([Call(base, fresh_key(), SAYS.get(kind, SAID), kind) for base in bases for kind in client.kinds])

    assert [None] * len(seen) == [one.error for one in seen]
    assert all(one.text or one.data or one.pictures for one in seen)


@pytest.mark.skipif(not CURL.is_here, reason="curl is not installed")
def test_the_curl_calls_of_the_readme_work_as_they_stand(world: World) -> None:
    lines = readme(world.base)
    chat, stream, image = CURL.make([Call(world.base, fresh_key(), kind=kind, line=lines[kind]) for kind in (CHAT, STREAM, IMAGE)])

    assert [None] * 3 == [seen.error for seen in (chat, stream, image)]
    assert echo("What is the capital of France?") == chat.text
    assert (echo("Say hi"), True) == (stream.text, stream.done)
    assert 2 == len(image.pictures)
    for link in image.pictures:
        with urlopen(link, timeout=10) as picture:
            assert picture.read().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", [CHAT, STREAM])
def test_chatgpt_keeps_its_history_by_the_answers_ids(world: World, kind: str) -> None:
    (client,) = (client for client in CLIENTS if client.name == "chatgpt")
    again = f"and then? {uuid4().hex}"
    said = "who are you?"
    seen = client.one(Call(world.base, fresh_key(), said, kind, again=again))

    assert (None, 3) == (seen.error, len(set(seen.ids)))
    assert [history_tokens(said, again), history_tokens(said, again, again)] == [call.tokens for call in world.calls(again)]


def pictures(seen: Seen) -> list[bytes]:
    return [base64.b64decode(one) for one in seen.pictures]


def history_tokens(*said: str) -> int:
    """What a chat costs in which all this was said, all but the last of it answered, and whose answer has at most 1,000 tokens."""
    messages = [*said, *map(echo, said[:-1])]
    return count_tokens(sum(map(len, messages))) + 4 * len(messages) + 1000
