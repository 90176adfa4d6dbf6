"""The one place that speaks to the upstream: one OpenAI client and one connection per thread, bytes in, bytes out.

The SDK never retries here, no redirect is followed, and three things hold whatever the upstream does: the call ends at its
deadline (a drip of bytes does not extend it), `abort` from another thread ends it at once, and an answer over the size cap is cut.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpcore2
import httpx2
import openai

from models.settings import settings

CONNECT_TIMEOUT_S = 10.0
# Cloudflare closes idle connections after minutes; below that a reused connection is very likely still open.
KEEPALIVE_S = 55.0


class NotSent(Exception):
    """No byte of the request left this machine: provably not called."""


class Lost(Exception):
    """The request went out and no whole answer came back: nobody knows whether it was served and paid for."""


class TooLarge(Lost):
    """The answer was cut at NOWSERVING_MAX_ANSWER_BYTES."""


class TimedOut(Lost):
    """The deadline passed while waiting for the answer."""


class Aborted(Exception):
    """Cancelled from our side; the connection was closed."""


@dataclass(frozen=True)
class Answer:
    """What came back. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Call:
    """One call on its way, as another thread may see it."""

    deadline: float
    is_sent: bool = False
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

    def left_s(self) -> float:
        return max(0.001, self.deadline - time.monotonic())


def post(url: str, *, key: str, content: bytes, headers: Mapping[str, str], call: Call) -> Answer:
    """The upstream's answer, whatever its status. Raises NotSent, TimedOut, Lost or Aborted."""
    client = _client()
    client.line.call = call
    try:
        response = client.sdk.post(
            url,
            content=content,
            cast_to=httpx2.Response,
            options={
                "headers": {**headers, "Authorization": f"Bearer {key}", "Content-Type": "application/json", "Accept-Encoding": "identity"}
            },
        )
    except openai.APIStatusError as error:
        response = error.response
    except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
        # A broken connection is never used again, and what a pool thinks of it is not worth finding out.
        _forget_client()
        raise _named(call, error) from error
    finally:
        call.ends()
        client.line.call = None
    return Answer(
        status=response.status_code, headers={name.lower(): value for name, value in response.headers.items()}, body=response.content
    )


def _named(call: Call, error: Exception) -> Exception:
    if call.is_aborted:
        return Aborted()
    if not call.is_sent:
        return NotSent(type(error.__cause__ or error).__name__)
    if call.received > settings().max_answer_bytes:
        return TooLarge("more than NOWSERVING_MAX_ANSWER_BYTES")
    if time.monotonic() >= call.deadline - 0.01:
        return TimedOut("no answer before timeout_s")
    return Lost(type(error.__cause__ or error).__name__)


class _Line:
    """What a thread's connection is used for right now."""

    call: Call | None = None


class _Stream(httpcore2.NetworkStream):
    """A connection whose reads and writes end at the deadline of the call it carries."""

    def __init__(self, stream: httpcore2.NetworkStream, line: _Line) -> None:
        self._stream = stream
        self._line = line

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        call = self._line.call
        if call is None:
            return self._stream.read(max_bytes, timeout)
        if time.monotonic() >= call.deadline:
            raise httpcore2.ReadTimeout("deadline")
        part = self._stream.read(max_bytes, call.left_s())
        call.received += len(part)
        if call.received > settings().max_answer_bytes:
            raise httpcore2.ReadError("the answer is larger than NOWSERVING_MAX_ANSWER_BYTES")
        return part

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        call = self._line.call
        if call is not None:
            call.uses(self.get_extra_info("socket"))
            call.is_sent = True
            timeout = call.left_s()
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, CONNECT_TIMEOUT_S), self._line)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore2.SyncBackend):
    def __init__(self, line: _Line) -> None:
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
        return _Stream(super().connect_tcp(host, port, self._patience_s(), local_address, socket_options), self._line)

    def _patience_s(self) -> float:
        call = self._line.call
        return min(CONNECT_TIMEOUT_S, call.left_s()) if call is not None else CONNECT_TIMEOUT_S


class _Client:
    """A thread's own client: the pool's bookkeeping grows with its connections, so one connection is the cheapest."""

    def __init__(self) -> None:
        self.line = _Line()
        transport = httpx2.HTTPTransport(verify=_tls())
        # httpx2 has no parameter for the network backend; httpcore2 has.
        transport._pool = httpcore2.ConnectionPool(
            ssl_context=_tls(),
            max_connections=None,
            max_keepalive_connections=1,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=_Backend(self.line),
        )
        self.sdk = openai.OpenAI(
            api_key="set-per-call",
            base_url="http://unset.invalid",
            max_retries=0,
            timeout=None,
            http_client=httpx2.Client(transport=transport),
        )


_here = threading.local()


def _client() -> _Client:
    if not hasattr(_here, "client"):
        _here.client = _Client()
    return _here.client  # type: ignore[no-any-return]  # threading.local has no types


def _forget_client() -> None:
    client = _here.__dict__.pop("client", None)
    if client is not None:
        client.sdk.close()


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _shut(used: socket.socket) -> None:
    try:
        # Of the plain socket: SSLSocket.shutdown would take the TLS object away from the thread that reads with it.
        socket.socket.shutdown(used, socket.SHUT_RDWR)
    except OSError:
        return
