"""One call on its way to the upstream, and the connection that obeys it: a deadline, an end from another thread, a size."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import httpcore2
import httpx2

from models.config.settings import settings
from workers.upstream.body_budget import BodyReservation

CONNECT_TIMEOUT_S = 10.0
# What goes to a proxy before the request is none: CONNECT, or the bytes of SOCKS.
_REQUEST_LINE = re.compile(rb"(?!CONNECT )[A-Z]+ ")
# After a request that could not be written, an answer that the upstream gave before it closed is here already.
EARLY_ANSWER_S = 1.0
# An idle peer is probed after 15 s and given up after 30 s without an ACK, so a connection that a firewall has forgotten is found closed
# before it is reused; bytes that nobody acknowledges for 30 s end the call. Linux names; others have a part of them.
LIVENESS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))
        if hasattr(socket, name)
    ),
]


@dataclass
class CallControl:
    """One call on its way, as another thread may see it.

    room: of its answer in the process's memory budget. on_wait: what its own thread does before it waits for more bytes.

    is_sent: the whole request may have reached the upstream. is_cut: it could not be written to its end. is_on_kept_connection: nothing
    was connected for it.
    """

    deadline: float
    room: BodyReservation | None = field(default=None, repr=False)
    on_wait: Callable[[], None] | None = field(default=None, repr=False)
    is_sent: bool = False
    is_cut: bool = False
    is_on_kept_connection: bool = True
    is_aborted: bool = False
    received: int = 0
    _socket: socket.socket | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def abort(self) -> None:
        """The upstream connection is closed and the calling thread gets Aborted."""
        with self._lock:
            self.is_aborted = True
            if self._socket is not None:
                _shut(self._socket)

    def uses(self, used: socket.socket) -> None:
        with self._lock:
            self._socket = used
            if self.is_aborted:
                _shut(used)

    def ends(self) -> None:
        with self._lock:
            self._socket = None

    def arrived(self, size: int, *, expected: int) -> None:
        """So many bytes more of its answer are here. Waits for room in the memory budget; that time is not the upstream's."""
        if self.room is not None:
            self.deadline += self.room.arrive(size, expected=expected, is_over=lambda: self.is_aborted)

    def hurry(self, within_s: float) -> None:
        """The call ends within this time, if not earlier."""
        self.deadline = min(self.deadline, time.monotonic() + within_s)

    def left_s(self) -> float:
        return max(0.001, self.deadline - time.monotonic())


class CurrentCall:
    """What a thread's connection is used for right now. body_bytes: of a request that is written in pieces."""

    call: CallControl | None = None
    body_bytes: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})

    def label(self, request: httpx2.Request) -> None:
        # Behind the SDK's back: it refuses ready bytes whose content type is that of a form.
        request.headers.pop("Authorization", None)
        request.headers.update(self.headers)
        if self.body_bytes is not None:
            # A body in pieces would go out in chunks, which not every upstream takes.
            request.headers.pop("Transfer-Encoding", None)
            request.headers["Content-Length"] = str(self.body_bytes)


class _Stream(httpcore2.NetworkStream):
    """A connection whose reads and writes end at the deadline of the call it carries."""

    def __init__(self, stream: httpcore2.NetworkStream, line: CurrentCall) -> None:
        self._stream = stream
        self._line = line

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        call = self._line.call
        if call is None:
            return self._stream.read(max_bytes, timeout)
        if call.on_wait is not None:
            call.on_wait()
        if time.monotonic() >= call.deadline:
            raise httpcore2.ReadTimeout("deadline")
        part = self._stream.read(max_bytes, self._patience_s(call))
        call.received += len(part)
        if call.received > settings().max_answer_bytes:
            raise httpcore2.ReadError("the answer is larger than NOWSERVING_MAX_ANSWER_BYTES")
        return part

    def _patience_s(self, call: CallControl) -> float:
        if call.is_sent:
            return call.left_s()
        return min(EARLY_ANSWER_S if call.is_cut else CONNECT_TIMEOUT_S, call.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        call = self._line.call
        if call is None:
            return self._stream.write(buffer, timeout)
        call.uses(self.get_extra_info("socket"))
        call.is_sent, call.is_cut = call.is_sent or _REQUEST_LINE.match(buffer) is not None, False
        try:
            self._stream.write(buffer, call.left_s())
        except Exception:
            # The request is incomplete, and its Content-Length says so to the upstream.
            call.is_sent, call.is_cut = False, True
            raise

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, CONNECT_TIMEOUT_S), self._line)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._is_readable()
        return self._stream.get_extra_info(info)

    def _is_readable(self) -> bool:
        """Whether anything has arrived, also within TLS: a decrypted record is no longer on the socket."""
        tls = self._stream.get_extra_info("ssl_object")
        return bool(tls is not None and tls.pending()) or bool(self._stream.get_extra_info("is_readable"))


class Backend(httpcore2.SyncBackend):
    def __init__(self, line: CurrentCall) -> None:
        super().__init__()
        self._line = line

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        if self._line.call is not None:
            self._line.call.is_on_kept_connection = False
        options = [*(socket_options or ()), *LIVENESS]
        return _Stream(super().connect_tcp(host, port, self._patience_s(), local_address, options), self._line)

    def _patience_s(self) -> float:
        call = self._line.call
        return min(CONNECT_TIMEOUT_S, call.left_s()) if call is not None else CONNECT_TIMEOUT_S


def _shut(used: socket.socket) -> None:
    try:
        # Of the plain socket: SSLSocket.shutdown would take the TLS object away from the thread that reads with it.
        socket.socket.shutdown(used, socket.SHUT_RDWR)
    except OSError:
        return
