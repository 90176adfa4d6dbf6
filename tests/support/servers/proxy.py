"""A corporate-style proxy on 127.0.0.1: CONNECT tunnels, plain requests in absolute form, SOCKS5, and an optional password."""

from __future__ import annotations

import base64
import select
import socket
import socketserver
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
WANTS_PASSWORD = b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'


class Proxy(socketserver.ThreadingTCPServer):
    """asked: the first line of each request, or `SOCKS host:port`. refuses: answers this status line instead of serving."""

    daemon_threads = True

    def __init__(self, *, login: str = "", refuses: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.login, self.refuses = login, refuses
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.port = self.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://{f'{self.login}@' if self.login else ''}127.0.0.1:{self.port}"


class _Handler(socketserver.BaseRequestHandler):
    server: Proxy
    request: socket.socket

    def handle(self) -> None:
        with suppress(OSError):
            first = self.request.recv(1, socket.MSG_PEEK)
            if first == b"\x05":
                return self._socks()
            self._http()

    def _http(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (part := self.request.recv(65_536)):
                return
            head += part
        head, _, rest = head.partition(b"\r\n\r\n")
        line, *headers = head.decode("latin-1").split("\r\n")
        self.server.asked.append(line)
        self.server.heads.append(head.decode("latin-1"))
        if self.server.refuses:
            return self.request.sendall(f"HTTP/1.1 {self.server.refuses}\r\nContent-Length: 0\r\n\r\n".encode())
        wanted = f"proxy-authorization: basic {base64.b64encode(self.server.login.encode()).decode()}".lower()
        if self.server.login and wanted not in [one.lower() for one in headers]:
            return self.request.sendall(WANTS_PASSWORD)
        method, target, version = line.split(" ")
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            return self._tunnel(host, int(port), greeting=ESTABLISHED)
        parts = urlsplit(target)
        kept = [one for one in headers if not one.lower().startswith("proxy-")]
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        forwarded = "\r\n".join([f"{method} {path} {version}", *kept]).encode("latin-1") + b"\r\n\r\n" + rest
        self._tunnel(parts.hostname or "", parts.port or 80, first=forwarded)

    def _socks(self) -> None:
        self.request.recv(64)
        if self.server.login:
            self.request.sendall(b"\x05\x02")
            user, _, password = self.server.login.partition(":")
            wanted = bytes([1, len(user)]) + user.encode() + bytes([len(password)]) + password.encode()
            is_good = self.request.recv(600) == wanted
            self.request.sendall(b"\x01\x00" if is_good else b"\x01\x01")
            if not is_good:
                return
        else:
            self.request.sendall(b"\x05\x00")
        asked = self.request.recv(600)
        host = asked[5 : 5 + asked[4]].decode() if asked[3] == 3 else socket.inet_ntoa(asked[4:8])
        port = int.from_bytes(asked[-2:], "big")
        self.server.asked.append(f"SOCKS {host}:{port}")
        self._tunnel(host, port, greeting=b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")

    def _tunnel(self, host: str, port: int, *, greeting: bytes = b"", first: bytes = b"") -> None:
        with socket.create_connection((host, port), 5) as other:
            other.sendall(first)
            self.request.sendall(greeting)
            ends = {self.request: other, other: self.request}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    if not (part := end.recv(65_536)):
                        return
                    ends[end].sendall(part)
