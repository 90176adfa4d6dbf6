"""Controls a call in progress: its connection obeys a deadline, an abort from another thread, and a size limit."""

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
# Bytes for a proxy that precede the request do not match: CONNECT, or the bytes of SOCKS.
_REQUEST_LINE = re.compile(rb"(?!CONNECT )[A-Z]+ ")
# When a request could not be written, an answer that the upstream sent before it closed has already arrived.
EARLY_ANSWER_S = 1.0
# TCP probes an idle peer after 15 s and closes the connection after 30 s without an ACK. A connection that a firewall has dropped is thus
# closed before it is reused, and bytes without an ACK for 30 s end the call. The names are Linux's; other systems have some of them.
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
    """One call in progress. Other threads may abort it.

    room: the answer's reservation in the process's memory budget. on_wait: called by the call's thread before it waits for more bytes.

    is_sent: the whole request may have reached the upstream. is_cut: the request was written in part. is_on_kept_connection: the call
    uses a connection that was already open.
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
        """Closes the upstream connection; the calling thread gets Aborted."""
        with self._lock:
            self.is_aborted = True
            if self._socket is not None:
                _shut_down(self._socket)

    def bind(self, connected: socket.socket) -> None:
        """Takes the socket that `abort` closes."""
        with self._lock:
            self._socket = connected
            if self.is_aborted:
                _shut_down(connected)

    def unbind(self) -> None:
        """Releases the socket, which may serve another call."""
        with self._lock:
            self._socket = None

    def arrived(self, size: int, *, expected: int) -> None:
        """Counts bytes of the answer. Waits for room in the memory budget, and extends the deadline by that time."""
        if self.room is not None:
            self.deadline += self.room.arrive(size, expected=expected, is_over=lambda: self.is_aborted)

    def hurry(self, within_s: float) -> None:
        """Moves the deadline forward, so that the call ends within this time."""
        self.deadline = min(self.deadline, time.monotonic() + within_s)

    def left_s(self) -> float:
        """Seconds until the deadline, at least a millisecond."""
        return max(0.001, self.deadline - time.monotonic())


class CurrentCall:
    """The call that a connection serves now. body_bytes: the size of a request that is written in pieces."""

    call: CallControl | None = None
    body_bytes: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})

    def set_headers(self, request: httpx2.Request) -> None:
        """A request hook that sets the call's headers. The SDK itself refuses bytes with the content type of a form."""
        request.headers.pop("Authorization", None)
        request.headers.update(self.headers)
        if self.body_bytes is not None:
            # httpx2 would send a body in pieces with chunked encoding, which not every upstream accepts.
            request.headers.pop("Transfer-Encoding", None)
            request.headers["Content-Length"] = str(self.body_bytes)


class _Stream(httpcore2.NetworkStream):
    """A network stream whose reads and writes end at the deadline of its current call."""

    def __init__(self, stream: httpcore2.NetworkStream, current: CurrentCall) -> None:
        self._stream = stream
        self._current = current

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        call = self._current.call
        if call is None:
            return self._stream.read(max_bytes, timeout)
        if call.on_wait is not None:
            call.on_wait()
        if time.monotonic() >= call.deadline:
            raise httpcore2.ReadTimeout("deadline")
        part = self._stream.read(max_bytes, self._timeout_s(call))
        call.received += len(part)
        if call.received > settings().max_answer_bytes:
            raise httpcore2.ReadError("the answer is larger than NOWSERVING_MAX_ANSWER_BYTES")
        return part

    def _timeout_s(self, call: CallControl) -> float:
        if call.is_sent:
            return call.left_s()
        return min(EARLY_ANSWER_S if call.is_cut else CONNECT_TIMEOUT_S, call.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        call = self._current.call
        if call is None:
            return self._stream.write(buffer, timeout)
        call.bind(self.get_extra_info("socket"))
        call.is_sent, call.is_cut = call.is_sent or _REQUEST_LINE.match(buffer) is not None, False
        try:
            self._stream.write(buffer, call.left_s())
        except Exception:
            # The request is incomplete, which its Content-Length tells the upstream.
            call.is_sent, call.is_cut = False, True
            raise

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, CONNECT_TIMEOUT_S), self._current)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._is_readable()
        return self._stream.get_extra_info(info)

    def _is_readable(self) -> bool:
        """Whether bytes have arrived, also inside TLS: a decrypted record is no longer on the socket."""
        tls = self._stream.get_extra_info("ssl_object")
        return bool(tls is not None and tls.pending()) or bool(self._stream.get_extra_info("is_readable"))


class Backend(httpcore2.SyncBackend):
    """Opens network streams that obey the current call."""

    def __init__(self, current: CurrentCall) -> None:
        super().__init__()
        self._current = current

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        if self._current.call is not None:
            self._current.call.is_on_kept_connection = False
        options = [*(socket_options or ()), *LIVENESS]
        return _Stream(super().connect_tcp(host, port, self._timeout_s(), local_address, options), self._current)

    def _timeout_s(self) -> float:
        call = self._current.call
        return min(CONNECT_TIMEOUT_S, call.left_s()) if call is not None else CONNECT_TIMEOUT_S


def _shut_down(connected: socket.socket) -> None:
    try:
        # SSLSocket.shutdown would remove the TLS object that the reading thread uses, so the plain socket is shut down.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
    except OSError:
        return
