"""Connection pooling: the connection that a call uses, and isolation between calls. Runs the real client against the fake upstream."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.support.servers import certificates
from tests.upstream import surplus
from tests.upstream.client import FakeUpstream, upstream
from workers.upstream import connections
from workers.upstream.call import CallControl
from workers.upstream.client import open_answer, send
from workers.upstream.exchange import Answer, Lost, NotSent, Request

__all__ = ["upstream"]
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def none_idle() -> Iterator[None]:
    """Closes idle connections, so that no test starts with those of another."""
    connections.connections.cache_clear()
    yield
    connections.connections.cache_clear()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeUpstream]:
    """An upstream over TLS whose certificate is trusted."""
    folder = certificates.write(tmp_path_factory.mktemp("tls"), "localhost")
    with pytest.MonkeyPatch.context() as patch, FakeUpstream(certificate=folder / "server.pem") as started:
        patch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        connections.tls.cache_clear()
        yield started
    connections.tls.cache_clear()


def asked(upstream: FakeUpstream, text: str, *, key: str = "sk-a", fresh: bool = False, stream: bool = False, tls: bool = False) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}
    headers = {"Content-Type": "application/json"}
    base_url = upstream.tls_base_url if tls else upstream.base_url
    return Request(f"{base_url}/chat/completions", key=key, headers=headers, content=json.dumps(body).encode(), fresh=fresh)


def call(upstream: FakeUpstream, text: str, *, timeout_s: float = 5, **how: Any) -> Answer:
    return send(asked(upstream, text, **how), call=CallControl(deadline=time.monotonic() + timeout_s))


def idle_socket() -> socket.socket:
    """The socket of the one idle connection."""
    (idle,) = connections.connections()._idle
    (opened,) = idle._pool.connections
    return opened._connection._network_stream.get_extra_info("socket")  # type: ignore[attr-defined, no-any-return]


def text_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["choices"][0]["message"]["content"])


@pytest.mark.parametrize("kind", surplus.KINDS)
@pytest.mark.parametrize("next_key", ["sk-a", "sk-b"])
def test_surplus_bytes_are_never_the_answer_of_the_next_call(upstream: FakeUpstream, kind: str, next_key: str) -> None:
    upstream.behave("sk-a", {"surplus": kind})
    first = call(upstream, "first")
    time.sleep(2 * surplus.LATE_S if kind == "late" else 0)
    second = call(upstream, "second", key=next_key)

    assert kind == "no_content" or "echo: first" == text_of(first)
    assert "echo: second" == text_of(second)
    assert 2 == len({one.connection for one in upstream.calls()})


@pytest.mark.parametrize("kind", ["twice", "late"])
def test_surplus_bytes_over_tls_are_never_the_answer_of_the_next_call(secure: FakeUpstream, kind: str) -> None:
    secure.reset()
    call(secure, "before", key="sk-b", tls=True)
    call(secure, "before", key="sk-b", tls=True)
    secure.behave("sk-a", {"surplus": kind})
    first = call(secure, "first", tls=True)
    time.sleep(2 * surplus.LATE_S if kind == "late" else 0)
    second = call(secure, "second", tls=True)

    assert ("echo: first", "echo: second") == (text_of(first), text_of(second))
    assert 1 == len({one.connection for one in secure.calls(key="sk-b")})
    assert 2 == len({one.connection for one in secure.calls(key="sk-a")})


def test_surplus_bytes_of_a_stream_are_never_the_answer_of_the_next_call(upstream: FakeUpstream) -> None:
    upstream.behave("sk-a", {"surplus": "twice"})
    with open_answer(asked(upstream, "first", stream=True), call=CallControl(deadline=time.monotonic() + 5)) as incoming:
        whole = incoming.whole()
    second = call(upstream, "second")

    assert b"foreign" not in whole.body
    assert "echo: second" == text_of(second)


def test_a_key_has_its_own_connections_and_uses_them_again(upstream: FakeUpstream) -> None:
    for n in range(6):
        call(upstream, f"turn {n}", key=f"sk-{n % 2}")

    first, second = ({one.connection for one in upstream.calls(key=key)} for key in ("sk-0", "sk-1"))
    assert (1, 1) == (len(first), len(second))
    assert first != second


def test_threads_share_the_idle_connections_of_a_key(upstream: FakeUpstream) -> None:
    with ThreadPoolExecutor(8) as threads:
        for _ in range(6):
            list(threads.map(lambda n: call(upstream, f"turn {n}"), range(4)))

    assert len({one.connection for one in upstream.calls()}) <= 4


def test_no_more_connections_stay_idle_than_are_allowed(upstream: FakeUpstream) -> None:
    kept = connections.Connections(limit=2)
    used = [kept.take(connections.upstream_of(upstream.base_url, f"sk-{n}")) for n in range(3)]
    for connection in used:
        connection.current.headers = {"Authorization": f"Bearer {connection.upstream.key}"}
        connection.sdk.get(f"{upstream.base_url}/models", cast_to=httpx2.Response)
    for connection in used:
        kept.give(connection)

    assert [False, True, True] == [connection.is_reusable() for connection in used]


@pytest.mark.parametrize("leaves", ["close", "reset"])
def test_a_connection_closed_while_idle_is_not_used_again(upstream: FakeUpstream, leaves: str) -> None:
    upstream.behave("sk-a", {"leaves": leaves})
    call(upstream, "first")
    time.sleep(0.05)

    assert "echo: second" == text_of(call(upstream, "second"))


def test_a_call_lost_on_a_kept_connection_takes_the_other_idle_ones_with_it(upstream: FakeUpstream) -> None:
    upstream.behave("sk-a", *[{"leaves": "reset_next", "delay": 0.1}] * 3)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda n: call(upstream, f"first {n}"), range(3)))
    before = {one.connection for one in upstream.calls()}
    with pytest.raises(Lost):
        call(upstream, "second")

    assert "echo: third" == text_of(call(upstream, "third"))
    assert upstream.calls()[-1].connection not in before


def test_a_call_that_a_kept_connection_never_answers_takes_the_other_idle_ones_with_it(upstream: FakeUpstream) -> None:
    upstream.behave("sk-a", *[{"leaves": "deaf", "delay": 0.1}] * 2)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda n: call(upstream, f"first {n}"), range(2)))
    with pytest.raises(Lost):
        call(upstream, "second", timeout_s=0.3)

    assert "echo: third" == text_of(call(upstream, "third"))


def test_a_call_after_a_failed_attempt_has_a_new_connection(upstream: FakeUpstream) -> None:
    call(upstream, "first")
    call(upstream, "second", fresh=True)

    assert 2 == len({one.connection for one in upstream.calls()})


def test_a_request_that_could_not_be_written_is_sent_again_on_a_new_connection() -> None:
    def answer_one_each(server: socket.socket) -> None:
        opened = []
        for _ in range(2):
            opened.append(server.accept()[0])
            opened[-1].recv(65_536)
            opened[-1].sendall(ANSWER)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_one_each, args=(server,), daemon=True).start()
        request = Request(f"http://127.0.0.1:{server.getsockname()[1]}/", key="k", headers={}, content=None)
        send(request, call=CallControl(deadline=time.monotonic() + 5))
        # There is nothing to read on the kept connection, and no byte goes out any more.
        idle_socket().shutdown(socket.SHUT_WR)
        done = CallControl(deadline=time.monotonic() + 5)
        answer = send(request, call=done)

    assert b"{}" == answer.body
    assert (True, False) == (done.is_sent, done.is_on_kept_connection)


def test_a_request_cut_off_while_it_is_written_was_not_sent() -> None:
    def refuse(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=refuse, args=(server,), daemon=True).start()
        request = Request(f"http://127.0.0.1:{server.getsockname()[1]}/", key="k", headers={}, content=b"x" * 50_000_000)
        done = CallControl(deadline=time.monotonic() + 5)
        with pytest.raises(NotSent):
            send(request, call=done)

    assert not done.is_sent


def test_connection_without_acknowledgements_is_probed_and_closed(upstream: FakeUpstream) -> None:
    call(upstream, "first")
    opened = idle_socket()

    assert 1 == opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert 15 == opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    assert 30_000 == opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
