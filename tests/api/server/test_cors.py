"""Programs in a browser, on pages of other origins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.http_tools import CHAT, Caller

pytestmark = pytest.mark.usefixtures("database")
PAGE = {"Origin": "https://chat.example"}
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}


@pytest.fixture(autouse=True)
def any_origin(override: Callable[..., None]) -> None:
    """Set, because open keys on loopback are for pages on this machine alone otherwise (tests/api/server/test_host_check.py)."""
    override(cors_origins="*")


def preflight(path: str, **more: Any) -> Any:
    return Caller().app.test_client().options(path, headers={**PAGE, **ASKING, **more})


@pytest.mark.parametrize("prefix", ["/v1", "", "/v1/v1", "/v1/"])
def test_a_preflight_needs_no_key_and_allows_what_it_asks_for(prefix: str) -> None:
    result = preflight(f"{prefix}/chat/completions")

    assert 200 == result.status_code
    assert "*" == result.headers["Access-Control-Allow-Origin"]
    assert ASKING["Access-Control-Request-Headers"] == result.headers["Access-Control-Allow-Headers"]
    assert {"GET", "POST", "DELETE", "OPTIONS"} <= set(result.headers["Access-Control-Allow-Methods"].split(", "))
    assert "86400" == result.headers["Access-Control-Max-Age"]


@pytest.mark.parametrize("origin", ["tauri://localhost", "chrome-extension://abcdef", "null"])
def test_any_origin_is_allowed_by_default(origin: str) -> None:
    assert "*" == preflight("/v1/jobs", Origin=origin).headers["Access-Control-Allow-Origin"]


def test_an_answer_can_be_read_with_its_headers() -> None:
    result = Caller().post("/v1/jobs", CHAT, headers=PAGE)

    assert 202 == result.status_code
    assert "*" == result.headers["Access-Control-Allow-Origin"]
    exposed = {name.strip().lower() for name in result.headers["Access-Control-Expose-Headers"].split(",")}
    assert {"retry-after", "x-request-id", "location", "x-ratelimit-remaining-tokens", "x-nowserving-job-id"} <= exposed
    assert "Access-Control-Allow-Credentials" not in result.headers


def test_response_without_origin_is_not_cached_for_origins() -> None:
    assert "Origin" in Caller().get("/healthz").headers["Vary"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nowhere", 404), ("DELETE", "/v1/chat/completions", 405), ("POST", "/v1/chat/completions", 415)],
)
def test_errors_can_be_read_too(method: str, path: str, status: int) -> None:
    result = Caller().send(method, path, headers=PAGE)

    assert status == result.status_code
    assert "*" == result.headers["Access-Control-Allow-Origin"]


def test_a_wrong_key_is_an_error_that_a_page_can_read() -> None:
    result = Caller("ns-unknown").get("/v1/jobs", headers=PAGE)

    assert 401 == result.status_code
    assert "*" == result.headers["Access-Control-Allow-Origin"]


def test_the_operator_narrows_the_origins(override: Callable[..., None]) -> None:
    override(cors_origins="https://chat.example, tauri://localhost")

    ours, other = preflight("/v1/jobs"), preflight("/v1/jobs", Origin="https://other.example")

    assert "https://chat.example" == ours.headers["Access-Control-Allow-Origin"]
    assert "Access-Control-Allow-Origin" not in other.headers
    assert "Origin" in ours.headers["Vary"] and "Origin" in other.headers["Vary"]


def test_clients_without_an_origin_get_no_cors_headers() -> None:
    result = Caller().post("/v1/jobs", CHAT)

    assert [] == [name for name, _ in result.headers if name.startswith("Access-Control")]
