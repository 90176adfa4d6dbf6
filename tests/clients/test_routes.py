"""The routes that the three apps call, as a browser and as a person who pastes addresses call them."""

from __future__ import annotations

import openai
import pytest

from tests.clients.conftest import MODEL, World, chat
from tests.clients.raw import Raw
from tests.upstream.texts import MODELS as NAMES

ASKED = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
ORIGINS = ("https://chat.example", "tauri://localhost", "chrome-extension://abcdef")
ROUTES = ("/chat/completions", "/models", "/images/generations", "/images/edits", "/embeddings", "/moderations")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/v1"])
def test_a_preflight_is_answered_without_a_key(world: World, prefix: str, path: str) -> None:
    more = {"Origin": ORIGINS[0], "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ASKED}
    with Raw(world.api.port, prefix + path, method="OPTIONS", more=more) as answer:
        assert answer.head().status in (200, 204)
        assert "*" == answer.headers["access-control-allow-origin"]
        assert set(ASKED.split(", ")) == set(answer.headers["access-control-allow-headers"].lower().replace(" ", "").split(","))
        assert {"GET", "POST", "DELETE", "OPTIONS"} <= set(answer.headers["access-control-allow-methods"].replace(" ", "").split(","))
        assert "86400" == answer.headers["access-control-max-age"]


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_page_elsewhere_may_read_streams_and_errors(world: World, key: str, origin: str) -> None:
    path, more = "/v1/chat/completions", {"Origin": origin}
    with (
        Raw(world.api.port, path, chat("hi", stream=True), key, more=more) as stream,
        Raw(world.api.port, path, chat("hi"), more=more) as unauthorised,
        Raw(world.api.port, "/v1/nothing", more=more) as missing,
    ):
        assert [200, 401, 404] == [answer.head().status for answer in (stream, unauthorised, missing)]
        assert {"*"} == {answer.headers["access-control-allow-origin"] for answer in (stream, unauthorised, missing)}
        exposed = set(stream.headers["access-control-expose-headers"].lower().replace(" ", "").split(","))
        assert {"retry-after", "x-request-id", "location", "x-ratelimit-remaining-requests"} <= exposed


@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/v1"])
def test_the_models_are_listed_by_ids_that_are_strings(world: World, key: str, prefix: str) -> None:
    with Raw(world.api.port, f"{prefix}/models", key=key, method="GET") as answer:
        assert list(NAMES) == [model["id"] for model in answer.json["data"]]


def test_model_route_returns_one_model_or_404(world: World, key: str) -> None:
    with Raw(world.api.port, f"/v1/models/{NAMES[0]}", key=key, method="GET") as answer:
        assert NAMES[0] == answer.json["id"]
    with Raw(world.api.port, "/v1/models/gone/with:colon", key=key, method="GET") as answer:
        assert "model_not_found" == answer.json["error"]["code"]
        assert 404 == answer.status


def test_openai_python_lists_the_models_of_a_key_without_money(world: World, key: str) -> None:
    with openai.OpenAI(api_key=key, base_url=world.base) as client:
        first = [model.id for model in client.models.list()]
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "[[fake:status=429;kind=quota]]"}])
        later = [model.id for model in client.models.list()]
        one = client.models.retrieve(NAMES[0]).id
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no-such-model")

    assert "credit_balance_exhausted" == raised.value.code
    assert (list(NAMES), NAMES[0]) == (first, one) and first == later


def test_openai_python_raises_the_401_of_a_new_key(world: World, key: str) -> None:
    world.upstream.behave(key, status=401)
    with openai.OpenAI(api_key=key, base_url=world.base) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_images_are_links_when_requested(world: World, key: str) -> None:
    body = {"model": "gpt-image-2.6-flare", "prompt": "an otter", "n": 2, "response_format": "url"}
    with Raw(world.api.port, "/v1/images/generations", body, key) as answer:
        links = [picture["url"] for picture in answer.json["data"]]

    assert 2 == len(set(links))
    for link in links:
        # The name that the client called us by.
        assert link.startswith("http://localhost/v1/artifacts/")
        with Raw(world.api.port, link.removeprefix("http://x"), method="GET") as picture:
            assert picture.whole().startswith(b"\x89PNG")
