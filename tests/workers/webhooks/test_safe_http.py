"""SSRF protection of webhooks: no URL, DNS answer or response of the receiver leads a request into the operator's network."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from models.webhooks import url_policy
from tests.support.servers import certificates as own_certificates
from tests.support.servers.nameserver import NameServer
from workers.webhooks import safe_http
from workers.webhooks.safe_http import Blocked, Response, Unreachable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Custom: yes\r\n\r\nok"
TIMEOUT_S = 20.0  # long: nothing here may depend on the machine being quick


@dataclass
class Listener:
    """A server on a port of loopback, of IPv4 and of IPv6 where there is one, that counts its connections."""

    answer: Callable[[socket.socket], None] | bytes = OK
    tls: ssl.SSLContext | None = None
    connections: int = 0
    received: list[bytes] = field(default_factory=list)
    port: int = 0
    host: str = "127.0.0.1"

    def __enter__(self) -> Self:
        self._sockets = [socket.create_server((self.host, self.port))]
        self.port = self._sockets[0].getsockname()[1]
        with suppress(OSError):
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self._threads = [threading.Thread(target=self._serve, args=(one,), daemon=True) for one in self._sockets]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(peer,), daemon=True).start()

    def _talk(self, peer: socket.socket) -> None:
        with suppress(OSError), peer, self.tls.wrap_socket(peer, server_side=True) if self.tls else peer as secured:
            self.received.append(_request(secured))
            if isinstance(self.answer, bytes):
                secured.sendall(self.answer)
            else:
                self.answer(secured)


def _request(peer: socket.socket) -> bytes:
    result = b""
    while b"\r\n\r\n" not in result:
        if not (piece := peer.recv(65536)):
            return result
        result += piece
        if result.startswith(b"\x16"):
            return result  # a TLS hello
    head, body = result.split(b"\r\n\r\n", 1)
    (length,) = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < length and (piece := peer.recv(65536)):
        body += piece
    return head + b"\r\n\r\n" + body


@pytest.fixture
def trap(override: Callable[..., None]) -> Iterator[Listener]:
    """A server that must never be reached: the settings allow http and its port, but not its address."""
    with Listener() as listener:
        override(webhook_allow_http=True, webhook_allow_ports=str(listener.port))
        yield listener


@contextmanager
def receiver(override: Callable[..., None], answer: Callable[[socket.socket], None] | bytes = OK, **more: object) -> Iterator[Listener]:
    """A server that may be reached: the settings allow loopback."""
    with Listener(answer) as listener:
        override(webhook_allow_http=True, webhook_allow_ports=str(listener.port), webhook_allow_networks="127.0.0.0/8,::1/128", **more)
        yield listener


def post(url: str, *, timeout_s: float = TIMEOUT_S, names: NameServer | None = None, body: bytes = b"{}") -> Response:
    return safe_http.post(url, headers={"X-Ours": "1"}, body=body, timeout_s=timeout_s, resolver=names.resolver() if names else None)


# Decimal, octal, hexadecimal and short; with dots and digits of other scripts; IPv6 that is or embeds it; dressed up with names.
LOOPBACKS = [
    "127.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0", "127.255.255.254", "2130706433", "017700000001", "0x7f000001", "0x7f.1",
    "0x7f.0x0.0x0.0x1", "0177.0.0.1", "0177.0.0.01", "127.0.0.1.", "00000177.1", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[::1%25lo]", "[::1%lo]", "localhost", "LOCALHOST", "localhost.", "user:pass@127.0.0.1",
    "example.com@127.0.0.1", "127.0.0.1#@example.com", "example.com\\@127.0.0.1", "127\u30020\u30020\u30021",
    "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "\uff11\uff12\uff17.\uff10.\uff10.\uff11",
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3", "127.0.0.1%2f.example.com", "127.0.0.1%00.example.com",
]  # fmt: skip
OTHERS = [
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "169.254.170.2", "100.100.100.200", "100.64.0.1",
    "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255", "0.1.2.3", "[fc00::1]", "[fd00:ec2::254]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[100::1]",
    "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[2001:0:a9fe:a9fe::]", "[2001:0:808:808::5601:5601]",
    "[::ffff:10.0.0.1]", "[5f00::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACKS)
def test_no_way_to_write_our_own_address_reaches_the_trap(trap: Listener, host: str) -> None:
    for url in (f"http://{host}:{trap.port}/", f"http://{host}:{trap.port}"):
        with pytest.raises(Unreachable):
            post(url)

    assert 0 == trap.connections


@pytest.mark.parametrize("host", OTHERS)
def test_no_address_that_is_not_public_is_connected_to(trap: Listener, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))

    with pytest.raises(Blocked):
        post(f"http://{host}:{trap.port}/")

    assert [] == tried


@pytest.mark.parametrize("answer", [*OTHERS, "127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"])
def test_no_name_leads_to_such_an_address(trap: Listener, answer: str) -> None:
    refusal = pytest.raises(Blocked, match="its address is not one")
    with NameServer({"inside.example": [[answer.strip("[]")]]}) as names, refusal as refused:
        post(f"http://inside.example:{trap.port}/", names=names)

    assert 0 == trap.connections
    assert answer.strip("[]") not in str(refused.value), "the caller does not learn where the name leads"
    assert "is not permitted" in refused.value.detail


def test_a_name_that_leads_inside_and_outside_is_refused_whole(trap: Listener) -> None:
    with NameServer({"both.example": [["93.184.216.34", "127.0.0.1"]], "six.example": [["93.184.216.34", "::1"]]}) as names:
        for name in ("both.example", "six.example"):
            with pytest.raises(Blocked):
                post(f"http://{name}:{trap.port}/", names=names)

    assert 0 == trap.connections


def test_a_name_that_moves_inside_after_it_was_checked_is_not_followed(override: Callable[..., None]) -> None:
    # Of loopback only 127.0.0.2 is "public" here; the trap listens beside it, on the same port.
    with Listener() as trap, Listener(host="127.0.0.2", port=trap.port) as server:
        override(webhook_allow_http=True, webhook_allow_ports=str(trap.port), webhook_allow_networks="127.0.0.2/32")
        with NameServer({"rebinds.example": [["127.0.0.2"], ["127.0.0.1"]]}) as names:
            assert 200 == post(f"http://rebinds.example:{trap.port}/", names=names).status
            with pytest.raises(Blocked):
                post(f"http://rebinds.example:{trap.port}/", names=names)

    assert ["rebinds.example"] * 2 == names.asked, "each delivery looks once"
    assert (1, 0) == (server.connections, trap.connections)


def test_it_connects_to_the_address_that_was_checked_and_looks_once(override: Callable[..., None]) -> None:
    with receiver(override) as server, NameServer({"moves.example": [["127.0.0.1"], ["127.0.0.2"]]}) as names:
        assert 200 == post(f"http://moves.example:{server.port}/", names=names).status

    assert ["moves.example"] == names.asked
    assert 1 == server.connections


def test_connection_to_another_peer_is_closed_before_the_first_byte(override: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "getpeername", lambda self: ("10.9.9.9", 80))
    with receiver(override) as server, pytest.raises(Blocked):
        post(f"http://127.0.0.1:{server.port}/")

    assert [] == [raw for raw in server.received if raw]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_not_a_way(override: Callable[..., None], status: int) -> None:
    with Listener() as trap:
        to = f"HTTP/1.1 {status} Moved\r\nLocation: http://127.0.0.1:{trap.port}/latest/meta-data\r\nContent-Length: 0\r\n\r\n"
        with receiver(override, to.encode()) as server:
            assert status == post(f"http://127.0.0.1:{server.port}/").status

    assert (1, 0) == (server.connections, trap.connections)


def test_proxies_of_the_environment_are_ignored(override: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(override) as server, Listener() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        post(f"http://127.0.0.1:{server.port}/")

    assert (1, 0) == (server.connections, proxy.connections)


BAD_URLS = [
    "http://example.com/", "https://example.com:8443/", "ftp://example.com/", "file:///etc/passwd", "//example.com/", "gopher://example.com:80/",
    "https:///x", "https://exa mple.com/", "https://example.com/\r\nX: y", "https://" + "a" * 300 + ".com/", "https://example.com:0/",
    "https://example.com:99999/", "https://example.com/" + "x" * 2048,
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_without_a_setting_only_https_on_its_own_ports_is_called(override: Callable[..., None], url: str) -> None:
    override()

    with pytest.raises(Blocked):
        post(url)
    with pytest.raises(url_policy.NotAllowed):
        url_policy.normalize(url)


@pytest.mark.parametrize(
    ("url", "cleaned"),
    [
        ("https://Example.COM:443", "https://example.com/"),
        ("https://example.com:80/a?b=c#d", "https://example.com:80/a?b=c"),
        ("https://bücher.example/ä?ö=%20", "https://xn--bcher-kva.example/%C3%A4?%C3%B6=%20"),
        ("https://example.com./x", "https://example.com/x"),
        ("https://[2606:4700:0:0::1111]/x", "https://[2606:4700:0:0::1111]/x"),
    ],
)
def test_a_url_is_stored_in_one_form(override: Callable[..., None], url: str, cleaned: str) -> None:
    override()

    assert cleaned == url_policy.normalize(url)
    assert cleaned == url_policy.normalize(cleaned)


def test_a_network_that_the_operator_allows_is_reached(override: Callable[..., None]) -> None:
    with receiver(override) as server:
        reply = post(f"http://127.0.0.1:{server.port}/path?q=1", body=b'{"a":1}')

    head, body = server.received[0].split(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert (200, b"ok", "yes") == (reply.status, reply.body, reply.headers["x-custom"])
    assert "POST /path?q=1 HTTP/1.1" == lines[0]
    assert {f"Host: 127.0.0.1:{server.port}", "Content-Length: 7", "X-Ours: 1", "Connection: close"} == set(lines[1:])
    assert b'{"a":1}' == body


def test_a_large_body_arrives_whole(override: Callable[..., None]) -> None:
    body = b"x" * 3_000_000
    with receiver(override) as server:
        post(f"http://127.0.0.1:{server.port}/", body=body)

    assert body == server.received[0].split(b"\r\n\r\n", 1)[1]


def test_no_more_than_the_first_64_kilobytes_of_an_answer_are_read(override: Callable[..., None]) -> None:
    sent: list[int] = []

    def flood(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(OSError):
            while True:
                sent.append(peer.send(b"x" * 10_000))

    with receiver(override, flood) as server:
        reply = post(f"http://127.0.0.1:{server.port}/")

    assert 200 == reply.status
    assert safe_http.MAX_ANSWER_BYTES - 100 < len(reply.body) <= safe_http.MAX_ANSWER_BYTES


def drip(piece: bytes, *, first: bytes = b"") -> Callable[[socket.socket], None]:
    """Sends `first`, then this repeatedly until the peer disconnects."""

    def run(peer: socket.socket) -> None:
        peer.sendall(first)
        with suppress(OSError):
            while True:
                peer.sendall(piece)
                time.sleep(0.01)

    return run


@pytest.mark.parametrize("piece", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_drip_does_not_extend_the_time(override: Callable[..., None], piece: bytes) -> None:
    first = b"" if len(piece) > 1 else b"HTTP/1.1 200 OK\r\nX: "
    with receiver(override, drip(piece, first=first)) as server, pytest.raises(Unreachable):
        post(f"http://127.0.0.1:{server.port}/", timeout_s=0.3)


def test_an_answer_that_never_ends_is_judged_by_its_status(override: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_http, "BODY_S", 0.1)
    with receiver(override, drip(b"x", first=b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n")) as server:
        reply = post(f"http://127.0.0.1:{server.port}/")

    assert (503, "7") == (reply.status, reply.headers["retry-after"])
    assert reply.body.startswith(b"x")


def test_silence_ends_at_the_deadline(override: Callable[..., None]) -> None:
    left = threading.Event()
    with (
        receiver(override, lambda peer: (peer.recv(1), left.set())[0]) as server,
        pytest.raises(Unreachable, match=r"no answer within 0\.2 s"),
    ):
        post(f"http://127.0.0.1:{server.port}/", timeout_s=0.2)

    assert left.wait(TIMEOUT_S), "the connection is closed"


def test_a_name_server_that_is_silent_does_not_hold_us(trap: Listener) -> None:
    with NameServer({"silent.example": [[]]}) as names, pytest.raises(Unreachable, match="no answer within"):
        post(f"http://silent.example:{trap.port}/", names=names, timeout_s=0.2)


def test_unknown_host_name_is_reported(trap: Listener) -> None:
    with NameServer({}) as names, pytest.raises(Unreachable, match="could not be resolved"):
        post(f"http://nowhere.example:{trap.port}/", names=names)


@pytest.mark.parametrize(
    "answer", [b"", b"hello\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, b"\x00" * 70_000]
)
def test_non_http_response_is_a_failure(override: Callable[..., None], answer: bytes) -> None:
    with receiver(override, answer) as server, pytest.raises(Unreachable):
        post(f"http://127.0.0.1:{server.port}/")


def test_refused_connection_is_reported(override: Callable[..., None]) -> None:
    with receiver(override) as server:
        pass
    with pytest.raises(Unreachable, match="Connection refused"):
        post(f"http://127.0.0.1:{server.port}/")


def test_response_before_the_end_of_the_request_is_read(override: Callable[..., None]) -> None:
    def hang_up(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass

    with receiver(override, hang_up) as server:
        assert 413 == post(f"http://127.0.0.1:{server.port}/", body=b"x" * 5_000_000).status


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem and, for `good.example`, signed by it, server.pem."""
    return own_certificates.write(tmp_path_factory.mktemp("tls"), "good.example")


@pytest.fixture
def secure(certificates: Path, override: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A receiver over TLS with a certificate for good.example, whose CA is trusted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    safe_http._tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    with Listener(OK, tls=context) as listener:
        override(webhook_allow_ports=str(listener.port), webhook_allow_networks="127.0.0.0/8")
        yield listener
    safe_http._tls.cache_clear()


def test_tls_is_verified_by_the_name_though_the_socket_goes_to_an_address(secure: Listener) -> None:
    with NameServer({"good.example": [["127.0.0.1"]], "bad.example": [["127.0.0.1"]]}) as names:
        assert 200 == post(f"https://good.example:{secure.port}/", names=names).status
        with pytest.raises(Unreachable, match="its certificate is not valid: Hostname mismatch"):
            post(f"https://bad.example:{secure.port}/", names=names)
    with pytest.raises(Unreachable, match="its certificate is not valid"):
        post(f"https://127.0.0.1:{secure.port}/")

    assert [b"POST / HTTP/1.1"] == [raw.split(b"\r\n")[0] for raw in secure.received]


def test_a_certificate_of_a_stranger_is_not_taken(secure: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    safe_http._tls.cache_clear()
    with NameServer({"good.example": [["127.0.0.1"]]}) as names, pytest.raises(Unreachable, match="its certificate is not valid"):
        post(f"https://good.example:{secure.port}/", names=names)


def test_receiver_without_tls_gets_no_request(override: Callable[..., None]) -> None:
    with receiver(override, b"HTTP/1.1 400 Bad\r\n\r\n") as server, pytest.raises(Unreachable, match="no TLS connection"):
        post(f"https://127.0.0.1:{server.port}/")
