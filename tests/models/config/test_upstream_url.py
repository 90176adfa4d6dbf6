"""The address of an upstream is looked at before it is used; an upstream that cannot be reached is named with the kind of failure."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
from pydantic import ValidationError

from deploy.local.server_process import free_port
from models.config import setting_errors, upstream_url
from models.config.settings import Settings
from tests.support.servers import certificates
from tests.upstream.client import FakeUpstream
from tests.workers.upstream.test_connections import none_idle
from workers.answers import retry_policy
from workers.upstream import call as call_module
from workers.upstream.call import CallControl
from workers.upstream.client import send
from workers.upstream.exchange import Lost, NotSent, Request

__all__ = ["none_idle"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        ("  http://127.0.0.1:8080//\n", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("https://gateway.example/models/v1", "https://gateway.example/models/v1"),
    ],
)
def test_an_address_is_kept_without_blanks_and_slashes_at_its_end(given: str, kept: str) -> None:
    assert kept == upstream_url.base_url(given, setting="OPENAI_BASE_URL")


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("", "must begin with http"),
        ("api.openai.com/v1", "must begin with http"),
        ("htps://api.openai.com/v1", "must begin with http"),
        ("https:///v1", "must name a host"),
        ("https://api.openai.com:0/v1", "must name a host"),
        ("https://api.openai.com:port/v1", "host or port cannot be read"),
        ("https://api.openai.com:70000/v1", "host or port cannot be read"),
        ("https://[::1/v1", "host or port cannot be read"),
        ("https://api.openai.com /v1", "blanks"),
        ("https://api.openai.com\n/v1", "blanks"),
        ("https://user:sesame@api.openai.com/v1", "user or password"),
        ("https://api.openai.com/v1?api-version=1", "query or fragment"),
        ("https://api.openai.com/v1#x", "query or fragment"),
        ("https://api.openai.com/v1/chat/completions", "Set https://api.openai.com/v1$"),
        ("https://api.openai.com/v1/chat/completions/", "Set https://api.openai.com/v1$"),
        ("https://api.openai.com/v1/completions", "Set https://api.openai.com/v1$"),
        ("https://api.openai.com/v1/responses", "Set https://api.openai.com/v1$"),
        ("https://api.openai.com/v1/models", "Set https://api.openai.com/v1$"),
    ],
)
def test_a_wrong_address_is_refused_with_the_setting_and_an_example(given: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong) as raised:
        upstream_url.base_url(given, setting="OPENAI_BASE_URL")

    result = str(raised.value)
    assert result.startswith("OPENAI_BASE_URL ") and "https://" in result and "\n" not in result and "sesame" not in result


def test_an_empty_address_is_none_and_openai_is_called() -> None:
    assert "https://api.openai.com/v1" == Settings(openai_base_url=" ").openai_base_url


def test_wrong_setting_is_named_in_one_line() -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(openai_base_url="api.openai.com")

    assert setting_errors.explain(raised.value).startswith("OPENAI_BASE_URL must begin with")


def test_a_part_does_not_start_with_a_wrong_address(environment: dict[str, str]) -> None:
    env = {**os.environ, "OPENAI_BASE_URL": "https://api.openai.com/v1/chat/completions"}
    result = subprocess.run([sys.executable, "-m", "workers.pacer"], env=env, capture_output=True, text=True, timeout=60, check=False)

    assert (2, 1) == (result.returncode, len(result.stderr.splitlines()))
    assert result.stderr.startswith("error: OPENAI_BASE_URL must not end in /chat/completions")


def serve_once(server: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    with server.accept()[0] as peer:
        peer.recv(65_536)
        answer(peer)


def unsent(url: str) -> str:
    with pytest.raises(NotSent) as raised:
        send(Request(f"{url}/models", key="k", headers={}, content=None), call=CallControl(deadline=time.monotonic() + 5))
    return str(retry_policy.classify_not_sent(raised.value).error["message"])  # type: ignore[index]  # there is one


def test_refused_connection_names_its_host() -> None:
    port = free_port()

    assert f"The upstream cannot be reached: 127.0.0.1:{port} refuses connections." in unsent(f"http://127.0.0.1:{port}/v1")


def test_a_name_without_an_address_is_named() -> None:
    assert "the name nowhere.invalid cannot be resolved" in unsent("http://nowhere.invalid/v1")


def test_a_certificate_that_is_not_trusted_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = certificates.write(tmp_path_factory.mktemp("tls"), "localhost")
    with FakeUpstream(certificate=folder / "server.pem") as upstream:
        result = unsent(upstream.tls_base_url)

    assert f"the TLS certificate of localhost:{upstream.tls_port} is not accepted: " in result


def test_tls_error_names_its_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        serving = partial(serve_once, server, lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        threading.Thread(target=serving, daemon=True).start()
        origin = f"127.0.0.1:{server.getsockname()[1]}"

        assert f"no TLS connection to {origin}: " in unsent(f"https://{origin}/v1")


def test_connect_timeout_names_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module, "CONNECT_TIMEOUT_S", 0.2)
    # A full backlog: the kernel drops the next SYN.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        knocks = []
        for _ in range(3):
            knocks.append(socket.socket())
            knocks[-1].setblocking(False)
            knocks[-1].connect_ex(("127.0.0.1", port))
        result = unsent(f"http://127.0.0.1:{port}/v1")
        for knock in knocks:
            knock.close()

    assert f"connecting to 127.0.0.1:{port} timed out" in result


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda peer: None, "closed the connection before its answer was whole"),
        (lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), "closed the connection before its answer was whole"),
        (lambda peer: peer.sendall(b"\x16\x03 not HTTP\r\n\r\n"), "is not HTTP"),
    ],
)
def test_broken_answer_names_its_host(answer: Callable[[socket.socket], None], why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve_once, args=(server, answer), daemon=True).start()
        origin = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Lost, match=why) as raised:
            send(Request(f"http://{origin}/", key="k", headers={}, content=None), call=CallControl(deadline=time.monotonic() + 5))

    assert origin in str(raised.value)
