"""A page elsewhere that rebinds its name to this machine, and one of another origin that sends requests to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from models.access import host_names
from tests.support.http_tools import CHAT, Caller, error_of, stored

pytestmark = pytest.mark.usefixtures("database")
REBOUND = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
SIMPLE = {"Content-Type": "text/plain;charset=UTF-8", "Origin": "https://evil.example"}
EVERYWHERE = ["/", "/docs", "/openapi.json", "/ops/", "/ops/lanes", "/v1/jobs", "/v1/models", "/models", "/pro/balance", "/nowhere"]


def bare(method: str, path: str, **more: Any) -> Any:
    """Without a key."""
    return Caller().app.test_client().open(path, method=method, **more)


class TestHost:
    @pytest.mark.parametrize("path", EVERYWHERE)
    def test_a_rebinding_page_gets_nothing_while_keys_are_open_on_loopback(self, path: str) -> None:
        for method in ("GET", "POST", "OPTIONS"):
            answer = Caller().send(method, path, headers={"Host": "evil.example:8000"}, data="{}", content_type="application/json")

            assert (421, "host_not_allowed") == (answer.status_code, error_of(answer)["code"]), (method, path)
            assert "NOWSERVING_ALLOWED_HOSTS=evil.example " in error_of(answer)["message"]
            assert "Access-Control-Allow-Origin" not in answer.headers

    def test_a_rebinding_page_submits_no_job_and_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            assert 421 == Caller().post("/v1/jobs", CHAT, headers=REBOUND).status_code

        assert 0 == stored()
        assert ["evil.example:8000"] == [record.host for record in caplog.records if hasattr(record, "host")]

    @pytest.mark.parametrize(
        "host",
        [
            "localhost", "LOCALHOST:8000", "localhost.:8000", "queue.localhost", "127.0.0.1:1", "127.8.9.1", "[::1]:8000", "[::1]",
            "0.0.0.0:8", "192.168.1.5:8000", "[fe80::1]:8000", "host.docker.internal:8000", "host.containers.internal", "",
        ],
    )  # fmt: skip
    def test_names_of_this_machine_and_addresses_are_served(self, host: str) -> None:
        assert 202 == Caller().post("/v1/jobs", CHAT, headers={"Host": host}).status_code

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost", "evil.internal", "localhost:80@evil.example",
            "127.0.0.1/evil", "[::1", "localhost evil.example", "1.2.3.4.5", ".", "[evil.example]", "localhost\\.evil.example",
        ],
    )  # fmt: skip
    def test_names_that_only_look_like_ours_are_not_served(self, host: str) -> None:
        assert 421 == Caller().post("/v1/jobs", CHAT, headers={"Host": host}).status_code

    @pytest.mark.parametrize(
        ("setting", "value", "host"),
        [
            ("allowed_hosts", "Queue.example", "queue.EXAMPLE.:443"), ("allowed_hosts", "a.example, .queue.example", "x.y.queue.example"),
            ("allowed_hosts", "*.queue.example", "queue.example"), ("allowed_hosts", "*", "anything.example"),
            ("public_url", "https://queue.example/under", "queue.example"),
        ],
    )  # fmt: skip
    def test_the_operator_names_more(self, override: Callable[..., None], setting: str, value: str, host: str) -> None:
        override(**{setting: value})

        assert 202 == Caller().post("/v1/jobs", CHAT, headers={"Host": host}).status_code
        assert (value == "*") == host_names.is_allowed("queue.example.evil.example")

    def test_the_name_that_the_server_listens_on_is_served(self, override: Callable[..., None]) -> None:
        override(host="Queue.example", allowed_hosts="other.example")

        assert host_names.is_allowed("queue.example:8000") and not host_names.is_allowed("evil.example")

    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/healthz/deep", "/metrics"])
    def test_health_checks_and_metrics_take_any_name(self, path: str) -> None:
        assert 421 != bare("GET", path, headers={"Host": "10-0-0-7.nowserving.pod:8000"}).status_code

    @pytest.mark.parametrize("token", ["ns-unknown", "nsop-unknown"])
    def test_tokens_of_the_operator_are_judged_by_themselves(self, token: str) -> None:
        assert 401 == Caller(token).post("/v1/jobs", CHAT, headers={"Host": "queue.example"}).status_code

    @pytest.mark.parametrize(
        ("settings", "is_checked"),
        [
            ({"host": "0.0.0.0"}, True), ({"host": "::"}, True), ({"host": ""}, True), ({"host": "localhost"}, True),
            ({"host": "10.0.0.5"}, False), ({"open_keys": "false"}, False), ({"host": "0.0.0.0", "allowed_hosts": "*"}, False),
        ],
    )  # fmt: skip
    def test_open_keys_are_guarded_wherever_loopback_is_served(
        self, override: Callable[..., None], settings: dict[str, str], is_checked: bool
    ) -> None:
        override(**settings)

        assert is_checked == (421 == Caller().get("/v1/jobs", headers={"Host": "evil.example"}).status_code)
        assert is_checked == (403 == Caller().get("/v1/jobs", headers={"Origin": "https://evil.example"}).status_code)


class TestVisitors:
    @pytest.fixture(autouse=True)
    def page_key(self, override: Callable[..., None]) -> None:
        override(open_keys="false", page_key="ns-page")

    def test_the_page_gives_no_cookie_under_a_foreign_name(self) -> None:
        answer = bare("GET", "/", headers={"Host": "evil.example"})

        assert (421, None) == (answer.status_code, answer.headers.get("Set-Cookie"))
        assert bare("GET", "/").status_code != 421

    def test_a_visitor_is_not_served_under_a_foreign_name(self) -> None:
        assert 421 == bare("GET", "/v1/models", headers={"Host": "evil.example", "X-Nowserving-Page": "1"}).status_code
        assert 401 == bare("GET", "/v1/models", headers={"X-Nowserving-Page": "1"}).status_code

    def test_callers_with_a_key_may_use_any_name(self) -> None:
        assert 401 == Caller("sk-x").get("/v1/jobs", headers={"Host": "queue.example"}).status_code


class TestOrigin:
    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", "http://6.6.6.6:8000", "http://localhost.evil.example", "app://evil", "x"]
    )
    def test_a_page_elsewhere_submits_nothing_with_an_open_key(self, origin: str) -> None:
        result = json.dumps({"apiKey": "sk-any", "sessionId": "s", "content": "hi"})
        simple = bare("POST", "/pro/chat/completions", data=result, headers={**SIMPLE, "Origin": origin})
        preflight = bare("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        asked = Caller().post("/v1/jobs", CHAT, headers={"Origin": origin})

        for answer in (simple, preflight, asked):
            assert (403, "origin_not_allowed") == (answer.status_code, error_of(answer)["code"])
            assert "NOWSERVING_CORS_ORIGINS" in error_of(answer)["message"]
            assert [] == [name for name, _ in answer.headers if name.startswith("Access-Control")]
        assert 0 == stored()

    @pytest.mark.parametrize(
        "origin", ["http://localhost:3000", "http://127.0.0.1:8000", "https://[::1]:1", "tauri://localhost", "http://app.localhost"]
    )
    def test_pages_on_this_machine_are_served(self, origin: str) -> None:
        answer = Caller().post("/v1/jobs", CHAT, headers={"Origin": origin})

        assert (202, origin) == (answer.status_code, answer.headers["Access-Control-Allow-Origin"])

    @pytest.mark.parametrize(("host", "origin"), [("192.168.1.5:8000", "http://192.168.1.5:8000"), ("10.0.0.1", "http://10.0.0.1:80")])
    def test_our_own_page_is_served_at_every_address(self, host: str, origin: str) -> None:
        assert 202 == Caller().post("/v1/jobs", CHAT, headers={"Host": host, "Origin": origin}).status_code
        assert 403 == Caller().post("/v1/jobs", CHAT, headers={"Host": host, "Origin": f"{origin}1"}).status_code

    def test_a_page_at_a_configured_name_is_served(self, override: Callable[..., None]) -> None:
        override(public_url="https://queue.example", allowed_hosts=".chat.example")

        for origin in ("https://queue.example", "https://my.chat.example:444"):
            assert 202 == Caller().post("/v1/jobs", CHAT, headers={"Origin": origin}).status_code

    @pytest.mark.parametrize(("origins", "status"), [("*", 202), ("https://evil.example", 202), ("https://other.example", 202)])
    def test_the_operator_decides_with_the_setting(self, override: Callable[..., None], origins: str, status: int) -> None:
        override(cors_origins=origins)
        answer = Caller().post("/v1/jobs", CHAT, headers={"Origin": "https://evil.example"})

        assert status == answer.status_code
        assert (origins != "https://other.example") == ("Access-Control-Allow-Origin" in answer.headers)
