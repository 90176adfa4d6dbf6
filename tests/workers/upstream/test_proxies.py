"""Calls to the upstream through a proxy: the choice of the proxy, the data that it sees, and the error when it refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.server_process import free_port
from models.config.settings import Settings, settings
from models.telemetry import logs
from tests.support.servers import certificates
from tests.support.servers.nameserver import NameServer
from tests.support.servers.proxy import Proxy
from tests.upstream.client import FakeUpstream, upstream
from tests.workers.upstream.test_connections import call, none_idle, text_of
from tests.workers.webhooks.test_safe_http import OK, Listener, post
from workers.upstream import connections, proxies
from workers.upstream.call import CallControl
from workers.upstream.client import send
from workers.upstream.exchange import Aborted, NotSent, Request, TimedOut

__all__ = ["none_idle", "upstream"]
PROXY = "http://proxy.example:3128"
Override = Callable[..., None]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeUpstream]:
    folder = certificates.write(tmp_path_factory.mktemp("tls"), "localhost")
    with pytest.MonkeyPatch.context() as patch, FakeUpstream(certificate=folder / "server.pem") as started:
        patch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        connections.tls.cache_clear()
        yield started
    connections.tls.cache_clear()


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Iterator[Override]:
    """environ(HTTPS_PROXY="…"): the environment has these and no other proxies."""

    def change(**values: str) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NOWSERVING_UPSTREAM_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()

    yield change
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize(
    ("environment_has", "origin", "taken"),
    [
        ({}, "https://api.openai.com", None),
        ({"HTTPS_PROXY": PROXY}, "https://api.openai.com", PROXY),
        ({"https_proxy": PROXY}, "https://api.openai.com", PROXY),
        ({"HTTPS_PROXY": "proxy.example:3128"}, "https://api.openai.com", PROXY),
        ({"HTTPS_PROXY": PROXY}, "http://model.example", None),
        ({"HTTP_PROXY": PROXY}, "http://model.example:8000", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://api.openai.com", None),
        ({"ALL_PROXY": PROXY}, "https://api.openai.com", PROXY),
        ({"ALL_PROXY": "socks5h://proxy.example:1080", "HTTPS_PROXY": PROXY}, "https://api.openai.com", PROXY),
        ({"ALL_PROXY": PROXY}, "http://127.0.0.1:8080", None),
        ({"ALL_PROXY": PROXY}, "http://localhost:8080", None),
        ({"ALL_PROXY": PROXY}, "http://[::1]:8080", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "*"}, "https://api.openai.com", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "example.com, openai.com"}, "https://api.openai.com", None),
        ({"ALL_PROXY": PROXY, "no_proxy": ".openai.com"}, "https://api.openai.com", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "*.openai.com"}, "https://api.openai.com", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "openai.com"}, "https://notopenai.com", PROXY),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "model.lan:8000"}, "http://model.lan:8000", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "model.lan:8000"}, "http://model.lan:8001", PROXY),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3:8000", None),
        ({"ALL_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "http://11.1.2.3:8000", PROXY),
        ({"ALL_PROXY": PROXY, "NO_PROXY": ""}, "https://api.openai.com", PROXY),
        ({"NOWSERVING_UPSTREAM_PROXY": PROXY}, "https://api.openai.com", PROXY),
        ({"NOWSERVING_UPSTREAM_PROXY": PROXY}, "http://127.0.0.1:8080", PROXY),
        ({"NOWSERVING_UPSTREAM_PROXY": PROXY, "NO_PROXY": "127.0.0.1"}, "http://127.0.0.1:8080", None),
        ({"NOWSERVING_UPSTREAM_PROXY": PROXY, "HTTPS_PROXY": "http://other"}, "https://api.openai.com", PROXY),
        ({"NOWSERVING_UPSTREAM_PROXY": "none", "HTTPS_PROXY": PROXY}, "https://api.openai.com", None),
        ({"NOWSERVING_UPSTREAM_PROXY": "", "HTTPS_PROXY": PROXY}, "https://api.openai.com", None),
    ],
)
def test_proxy_follows_the_environment(environ: Override, environment_has: dict[str, str], origin: str, taken: str | None) -> None:
    environ(**environment_has)

    assert taken == proxies.address_for(origin)


@pytest.mark.parametrize("wrong", ["ftp://proxy.example", "http://", "http://a b", "http://proxy.example:99999999"])
def test_a_wrong_proxy_is_refused_at_the_start_without_its_password(wrong: str) -> None:
    hidden = wrong.replace("://", "://user:sesame@")
    with pytest.raises(ValueError, match="NOWSERVING_UPSTREAM_PROXY") as raised:
        Settings(upstream_proxy=hidden)

    assert "sesame" not in str(raised.value)


def test_an_https_upstream_is_called_through_a_tunnel(secure: FakeUpstream, override: Override) -> None:
    secure.reset()
    with Proxy(login="user:p%40ss") as proxy:
        proxy.login = "user:p@ss"
        override(upstream_proxy=f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        first, second = call(secure, "first", tls=True), call(secure, "second", tls=True)

    assert ("echo: first", "echo: second") == (text_of(first), text_of(second))
    assert [f"CONNECT localhost:{secure.tls_port} HTTP/1.1"] == proxy.asked
    assert 1 == len({one.connection for one in secure.calls()})
    assert "sk-a" not in "".join(proxy.heads)


def test_an_http_upstream_is_called_in_absolute_form(upstream: FakeUpstream, override: Override) -> None:
    with Proxy() as proxy:
        override(upstream_proxy=proxy.url)
        answer = call(upstream, "hello")

    assert "echo: hello" == text_of(answer)
    assert [f"POST {upstream.base_url}/chat/completions HTTP/1.1"] == proxy.asked


@pytest.mark.parametrize("login", ["", "user:secret"])
@pytest.mark.parametrize("tls", [True, False])
def test_socks_is_a_proxy_too(secure: FakeUpstream, override: Override, login: str, tls: bool) -> None:
    secure.reset()
    with Proxy(login=login) as proxy:
        override(upstream_proxy=proxy.url.replace("http:", "socks5h:"))
        answer = call(secure, "hello", tls=tls)

    assert "echo: hello" == text_of(answer)
    assert [f"SOCKS {f'localhost:{secure.tls_port}' if tls else f'127.0.0.1:{secure.port}'}"] == proxy.asked


@pytest.mark.parametrize("tls", [True, False])
def test_a_proxy_that_wants_a_password_is_named_and_nothing_was_sent(secure: FakeUpstream, override: Override, tls: bool) -> None:
    secure.reset()
    with Proxy(login="user:right") as proxy:
        override(upstream_proxy=proxy.url.replace("right", "wrong-sesame"))
        with pytest.raises(NotSent, match=f"the proxy 127.0.0.1:{proxy.port} refuses .*407") as raised:
            call(secure, "hello", tls=tls)

    assert "sesame" not in str(raised.value)
    assert [] == secure.calls()


def test_a_proxy_that_refuses_the_host_is_named(secure: FakeUpstream, override: Override) -> None:
    with Proxy(refuses="403 Not on the list") as proxy:
        override(upstream_proxy=proxy.url)
        with pytest.raises(NotSent, match=f"the proxy 127.0.0.1:{proxy.port} refuses to connect to localhost:.*403 Not on the list"):
            call(secure, "hello", tls=True)


def test_a_proxy_that_is_not_there_is_named(upstream: FakeUpstream, override: Override) -> None:
    port = free_port()
    override(upstream_proxy=f"http://user:sesame@127.0.0.1:{port}")
    with pytest.raises(NotSent, match=f"the proxy 127.0.0.1:{port} refuses connections") as raised:
        call(upstream, "hello")

    assert "sesame" not in str(raised.value)


def test_a_call_through_a_proxy_ends_at_its_deadline_or_when_it_is_cancelled(secure: FakeUpstream, override: Override) -> None:
    secure.reset()
    secure.behave("sk-a", hang="before")
    with Proxy() as proxy:
        override(upstream_proxy=proxy.url)
        with pytest.raises(TimedOut):
            call(secure, "hello", tls=True, timeout_s=3)
        request = Request(f"{secure.tls_base_url}/models", key="sk-a", headers={}, content=None)
        running = CallControl(deadline=time.monotonic() + 20)
        threading.Timer(0.3, running.abort).start()
        secure.behave("sk-a", hang="before")
        began = time.monotonic()
        with pytest.raises(Aborted):
            send(request, call=running)

    assert time.monotonic() - began < 15  # its deadline is in 20 s


def test_a_webhook_takes_no_proxy(environ: Override, override: Override) -> None:
    with Proxy() as proxy, Listener(OK) as listener, NameServer({"receiver.example": [["127.0.0.1"]]}) as names:
        environ(HTTP_PROXY=proxy.url, ALL_PROXY=proxy.url, NOWSERVING_UPSTREAM_PROXY=proxy.url)
        override(webhook_allow_ports=str(listener.port), webhook_allow_networks="127.0.0.0/8", webhook_allow_http="true")
        reply = post(f"http://receiver.example:{listener.port}/", names=names)

    assert (200, []) == (reply.status, proxy.asked)


def test_the_password_of_a_proxy_reaches_no_log(tmp_path: Path) -> None:
    assert "http://…@proxy.example:3128" == logs.redact("http://user:sesame@proxy.example:3128")
    assert "sesame" not in repr(Settings(upstream_proxy="http://user:sesame@proxy.example:3128"))
