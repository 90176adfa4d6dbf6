"""HTTP/1.1 on a socket: parses whole requests one after another, and writes bytes unchanged. Independent of OpenAI."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

LINGER_0 = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = b""


_numbers = itertools.count(1)
Serve = Callable[["Connection", Request], Coroutine[Any, Any, None] | None]


class Connection(asyncio.Protocol):
    """One client connection.

    `serve` answers at once, or returns a coroutine that answers. The coroutine is cancelled when the client
    disconnects.
    """

    def __init__(self, serve: Serve, connections: set[Connection]) -> None:
        self._serve = serve
        self._connections = connections
        self._buffer = bytearray()
        self._request: Request | None = None
        self._body = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self.number = next(_numbers)
        self._is_deaf = self._resets = False
        self.transport: asyncio.Transport
        self.task: asyncio.Task[None] | None = None

    def write(self, sent: bytes) -> None:
        self.transport.write(sent)

    async def drain(self) -> None:
        await self._writable.wait()

    def abort(self) -> None:
        """Close the connection with a TCP reset."""
        opened = self.transport.get_extra_info("socket")
        if opened is not None and not self.transport.is_closing():
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.transport.abort()

    def close(self) -> None:
        self.transport.close()

    def goes_deaf(self, *, resets: bool) -> None:
        """From now on read requests without answering. resets: the next whole request causes a TCP reset."""
        self._is_deaf, self._resets = True, resets

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._writable.set()
        if self.task:
            self.task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._is_deaf:
            return self.abort() if self._resets and self._next() is not None else None
        if self.task is None:
            self._advance()

    def _advance(self) -> None:
        while self.task is None and not self.transport.is_closing():
            try:
                request = self._next()
            except ValueError:
                self.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return self.close()
            if request is None:
                return
            self._closing = request.headers.get("connection", "").lower() == "close"
            running = self._serve(self, request)
            if running is not None:
                self.task = asyncio.get_running_loop().create_task(running)
                self.task.add_done_callback(self._ended)
            elif self._closing:
                self.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and (error := task.exception()):
            print(f"upstream: {error!r}", file=sys.stderr, flush=True)
            self.abort()
        elif self._closing:
            self.close()
        self._advance()

    def _next(self) -> Request | None:
        """The next whole request; None until more bytes arrive. Raises ValueError on invalid HTTP."""
        if self._request is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._request = _head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if self._request.headers.get("expect", "").lower() == "100-continue":
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = self._request
        if "chunked" in request.headers.get("transfer-encoding", ""):
            if not self._chunks():
                return None
            request.body, self._body = bytes(self._body), bytearray()
        else:
            length = int(request.headers.get("content-length", "0"))
            if len(self._buffer) < length:
                return None
            request.body = bytes(self._buffer[:length])
            del self._buffer[:length]
        self._request = None
        return request

    def _chunks(self) -> bool:
        """Whether the last chunk is in `_body`. Trailers are not supported."""
        while (end := self._buffer.find(b"\r\n", 0, 64)) >= 0:
            size = int(bytes(self._buffer[:end]).split(b";")[0], 16)
            if len(self._buffer) < end + 2 + size + 2:
                return False
            self._body += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
            if size == 0:
                return True
        return False


def _head(text: bytes) -> Request:
    first, *lines = text.decode("latin-1").split("\r\n")
    method, target, _version = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    path, _, query = target.partition("?")
    return Request(method, path, query, headers)
