"""HTTP on a bare socket, for promises about bytes: what a server wrote at once arrives as one frame of its chunked answer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self


@dataclass
class Raw:
    """One request and its answer. frames: each with the time it came at; a plain answer is one frame."""

    port: int
    path: str
    body: bytes | Mapping[str, Any] = b""
    key: str = ""
    method: str = "POST"
    more: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 20
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    frames: list[tuple[float, bytes]] = field(default_factory=list)
    is_over: bool = False

    def __post_init__(self) -> None:
        self._buffer = b""
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=self.timeout_s)
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        given = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        usual = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **given, **self.more}
        lines = "".join(f"{name}: {value}\r\n" for name, value in usual.items() if value)
        self.socket.sendall(f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + body)

    def head(self) -> Self:
        """The status and the headers have come."""
        first, *lines = self._take_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return self

    def frame(self) -> bytes:
        """The next piece; empty at the end. Raises ConnectionError when the answer breaks off."""
        if not self.headers:
            self.head()
        if self.is_over:
            return b""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            size = int(self._take_until(b"\r\n"), 16)
            piece = self._take(size + 2)[:-2]
            self.is_over = size == 0
        else:
            piece, self.is_over = self._take(int(self.headers.get("content-length", "0"))), True
        if piece:
            self.frames.append((time.monotonic(), piece))
        return piece

    def until(self, words: bytes) -> bytes:
        """All that came, as soon as these words are in it."""
        deadline = time.monotonic() + self.timeout_s
        while words not in self.text:
            assert self.frame() and time.monotonic() < deadline, f"no {words!r} in {self.text!r}"
        return self.text

    def whole(self) -> bytes:
        """All of the body."""
        while self.frame():
            pass
        return self.text

    @property
    def text(self) -> bytes:
        return b"".join(piece for _, piece in self.frames)

    @property
    def json(self) -> Any:
        return json.loads(self.whole())

    @property
    def chunks(self) -> list[Any]:
        """The JSON of each event of the stream, `[DONE]` left out."""
        lines = self.whole().decode().split("\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take_until(self, words: bytes) -> bytes:
        while words not in self._buffer:
            self._receive()
        found, _, self._buffer = self._buffer.partition(words)
        return found

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _receive(self) -> None:
        more = self.socket.recv(65536)
        if not more:
            raise ConnectionError(f"broken off after {self.text!r}")
        self._buffer += more
