"""The routes that the three apps call: from browsers, and with base URLs in every pasted form."""

from __future__ import annotations

import openai
import pytest

from tests.clients.conftest import MODEL, System, chat
from tests.clients.raw import Raw
from tests.upstream.texts import MODELS as NAMES

REQUEST_HEADERS = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
ORIGINS = ("https://chat.example", "tauri://localhost", "chrome-extension://abcdef")
ROUTES = ("/chat/completions", "/models", "/images/generations", "/images/edits", "/embeddings", "/moderations")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/v1"])
def test_preflight_needs_no_key(system: System, prefix: str, path: str) -> None:
    more = {"Origin": ORIGINS[0], "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": REQUEST_HEADERS}
    with Raw(system.api.port, prefix + path, method="OPTIONS", more=more) as answer:
        assert answer.head().status in (200, 204)
        assert "*" == answer.headers["access-control-allow-origin"]
        assert set(REQUEST_HEADERS.split(", ")) == set(answer.headers["access-control-allow-headers"].lower().replace(" ", "").split(","))
        assert {"GET", "POST", "DELETE", "OPTIONS"} <= set(answer.headers["access-control-allow-methods"].replace(" ", "").split(","))
        assert "86400" == answer.headers["access-control-max-age"]


@pytest.mark.parametrize("origin", ORIGINS)
def test_other_origins_may_read_streams_and_errors(system: System, key: str, origin: str) -> None:
    path, more = "/v1/chat/completions", {"Origin": origin}
    with (
        Raw(system.api.port, path, chat("hi", stream=True), key, more=more) as stream,
        Raw(system.api.port, path, chat("hi"), more=more) as unauthorised,
        Raw(system.api.port, "/v1/nothing", more=more) as missing,
    ):
        assert [200, 401, 404] == [answer.head().status for answer in (stream, unauthorised, missing)]
        assert {"*"} == {answer.headers["access-control-allow-origin"] for answer in (stream, unauthorised, missing)}
        exposed = set(stream.headers["access-control-expose-headers"].lower().replace(" ", "").split(","))
        assert {"retry-after", "x-request-id", "location", "x-ratelimit-remaining-requests"} <= exposed


@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/v1"])
def test_model_list_has_string_ids(system: System, key: str, prefix: str) -> None:
    with Raw(system.api.port, f"{prefix}/models", key=key, method="GET") as answer:
        assert list(NAMES) == [model["id"] for model in answer.json["data"]]


def test_model_route_returns_one_model_or_404(system: System, key: str) -> None:
    with Raw(system.api.port, f"/v1/models/{NAMES[0]}", key=key, method="GET") as answer:
        assert NAMES[0] == answer.json["id"]
    with Raw(system.api.port, "/v1/models/gone/with:colon", key=key, method="GET") as answer:
        assert "model_not_found" == answer.json["error"]["code"]
        assert 404 == answer.status


def test_openai_python_lists_the_models_of_a_key_without_quota(system: System, key: str) -> None:
    with openai.OpenAI(api_key=key, base_url=system.base) as client:
        first = [model.id for model in client.models.list()]
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "[[fake:status=429;kind=quota]]"}])
        later = [model.id for model in client.models.list()]
        retrieved = client.models.retrieve(NAMES[0]).id
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no-such-model")

    assert "credit_balance_exhausted" == raised.value.code
    assert (list(NAMES), NAMES[0]) == (first, retrieved) and first == later


def test_openai_python_raises_the_401_of_a_new_key(system: System, key: str) -> None:
    system.upstream.behave(key, status=401)
    with openai.OpenAI(api_key=key, base_url=system.base) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_images_are_links_when_requested(system: System, key: str) -> None:
    body = {"model": "gpt-image-2.6-flare", "prompt": "an otter", "n": 2, "response_format": "url"}
    with Raw(system.api.port, "/v1/images/generations", body, key) as answer:
        links = [picture["url"] for picture in answer.json["data"]]

    assert 2 == len(set(links))
    for link in links:
        # The host name that the client used.
        assert link.startswith("http://localhost/v1/artifacts/")
        with Raw(system.api.port, link.removeprefix("http://x"), method="GET") as picture:
            assert picture.whole().startswith(b"\x89PNG")
