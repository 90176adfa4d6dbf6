"""HTTP on a plain socket, for tests about bytes: each write of the server arrives as one frame of its chunked response."""

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
    """One request and its response. frames: with their times of arrival; a response without chunks is one frame."""

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
        authorization = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **authorization, **self.more}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        self.socket.sendall(f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + body)

    def head(self) -> Self:
        """Wait for status and headers."""
        first, *lines = self._take_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return self

    def frame(self) -> bytes:
        """The next chunk; empty at the end. Raises ConnectionError when the response breaks off."""
        if not self.headers:
            self.head()
        if self.is_over:
            return b""
        if "chunked" in self.headers.get("transfer-encoding", ""):
            size = int(self._take_until(b"\r\n"), 16)
            chunk = self._take(size + 2)[:-2]
            self.is_over = size == 0
        else:
            chunk, self.is_over = self._take(int(self.headers.get("content-length", "0"))), True
        if chunk:
            self.frames.append((time.monotonic(), chunk))
        return chunk

    def until(self, marker: bytes) -> bytes:
        """The body so far, once it contains these bytes."""
        deadline = time.monotonic() + self.timeout_s
        while marker not in self.text:
            assert self.frame() and time.monotonic() < deadline, f"no {marker!r} in {self.text!r}"
        return self.text

    def whole(self) -> bytes:
        """The whole body."""
        while self.frame():
            pass
        return self.text

    @property
    def text(self) -> bytes:
        return b"".join(chunk for _, chunk in self.frames)

    @property
    def json(self) -> Any:
        return json.loads(self.whole())

    @property
    def chunks(self) -> list[Any]:
        """The JSON of each event of the stream, without `[DONE]`."""
        lines = self.whole().decode().split("\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take_until(self, marker: bytes) -> bytes:
        while marker not in self._buffer:
            self._receive()
        head, _, self._buffer = self._buffer.partition(marker)
        return head

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _receive(self) -> None:
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionError(f"broken off after {self.text!r}")
        self._buffer += received
