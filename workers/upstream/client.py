"""The one place that speaks to the upstream: bytes in, bytes out, over a connection of workers/upstream/connections.py.

`send` waits for the whole answer, `listen` hands it out as it arrives. The SDK never retries here, no redirect is
followed, and three things hold whatever the upstream does (workers/upstream/call.py): the call ends at its deadline (a drip of bytes does
not extend it), `abort` from another thread ends it at once, and an answer over the size cap is cut.

A kept connection may have been closed by the other side. A call that could not be written on it in full is repeated on a fresh one,
here and uncounted: an incomplete request is never served. One that was written in full is Lost, and `on_lost` decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from typing import Any, cast

import httpx2
import openai

from models.config.settings import settings
from workers.upstream import answer_body, compression, connect_errors
from workers.upstream.call import CallControl
from workers.upstream.connections import Connection, connections, upstream_of

# Of a large request, handed to the connection at a time.
PIECE_BYTES = 256 * 1024


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


class Body:
    """A large request on its way: a byte stream that is freed, with its room in the budget, as soon as all of it was written.

    is_stored: it is what the job's row has, to the byte. Iterated again after a failed write, it begins anew.
    """

    def __init__(self, content: bytes, *, is_stored: bool, on_written: Callable[[], None]) -> None:
        self.size, self.is_stored = len(content), is_stored
        self._content, self._on_written = content, on_written

    def __iter__(self) -> Iterator[bytes]:
        view = memoryview(self._content)
        for at in range(0, self.size, PIECE_BYTES):
            yield view[at : at + PIECE_BYTES]  # type: ignore[misc]  # sockets and h11 take what is like bytes
        del view
        self._content = b""
        self._on_written()

    def content(self) -> bytes:
        """All of it. Empty once it was written."""
        return self._content


@dataclass(frozen=True)
class Request:
    """What is sent. content None: a GET without a body. key_header: carries the key, besides headers. fresh: on a new connection."""

    url: str
    key: str = field(repr=False)
    headers: Mapping[str, str]
    content: bytes | Body | None = field(repr=False)
    fresh: bool = False
    key_header: str = "Authorization"


@dataclass(frozen=True)
class Answer:
    """What came back. Header names are lower case; the body is not compressed. said: without the base64 of pictures, if it is large."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The JSON object that the body is; None for anything else."""
        return answer_body.parse_without_pictures(self.body)


@dataclass(frozen=True)
class IncomingAnswer:
    """An answer whose head is here. parts: its bytes as they arrive, not compressed; raises TimedOut, Lost or Aborted.

    Header names are lower case.
    """

    status: int
    headers: Mapping[str, str]
    parts: Iterator[bytes]

    def whole(self) -> Answer:
        """What is left of it, in one piece."""
        body = BytesIO()  # grows without a second copy, which a join would need
        for part in self.parts:
            body.write(part)
        return Answer(self.status, self.headers, body.getvalue())


def send(request: Request, *, call: CallControl) -> Answer:
    """The upstream's answer, whatever its status. Raises NotSent, TimedOut, Lost or Aborted."""
    with open_answer(request, call=call) as incoming:
        return incoming.whole()


@contextmanager
def open_answer(request: Request, *, call: CallControl) -> Iterator[IncomingAnswer]:
    """The upstream's answer from its head on, whatever its status. Raises NotSent, TimedOut, Lost or Aborted.

    A connection whose answer was not read to its end is closed.
    """
    connection, response = _opened(request, call)
    try:
        parts = _unpacked(_parts(response, call, connection), response, call)
        yield IncomingAnswer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, parts)
    finally:
        response.close()
        call.ends()
        connections().give(connection)


def _opened(request: Request, call: CallControl) -> tuple[Connection, httpx2.Response]:
    upstream = upstream_of(request.url, request.key)
    connection = connections().take(upstream, fresh=request.fresh)
    connection.line.call = call
    own = {request.key_header: f"Bearer {request.key}" if request.key_header == "Authorization" else request.key}
    connection.line.headers = {**request.headers, **own, "Accept-Encoding": "identity"}
    connection.line.body_bytes = request.content.size if isinstance(request.content, Body) else None
    try:
        with _naming(call, connection):
            response = _sent(connection, request)
        if connection.proxy and response.status_code == httpx2.codes.PROXY_AUTHENTICATION_REQUIRED:
            raise NotSent(connect_errors.describe(httpx2.ProxyError(_status(response)), origin=upstream.origin, proxy=connection.proxy))
        return connection, response
    except BaseException as error:
        call.ends()
        connection.close()
        if not call.is_on_kept_connection or not isinstance(error, NotSent | Lost) or _is_gone(request):
            raise
        connections().distrust(upstream)
        if isinstance(error, Lost):
            raise
    return _opened(replace(request, fresh=True), call)


def _is_gone(request: Request) -> bool:
    """Whether its body was written once, and freed: a proxy that wants a password has read all of it."""
    return isinstance(request.content, Body) and not request.content.content()


def _sent(connection: Connection, request: Request) -> httpx2.Response:
    try:
        if request.content is None:
            return connection.sdk.get(request.url, cast_to=httpx2.Response)
        opened = connection.sdk.post(
            request.url, content=request.content, cast_to=httpx2.Response, stream=True, stream_cls=openai.Stream[object]
        )
        # Asked for a response, the SDK hands out just that, unread, whatever its types say.
        return cast(httpx2.Response, opened)
    except openai.APIStatusError as error:
        return error.response


def _status(response: httpx2.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}"


def _parts(response: httpx2.Response, call: CallControl, connection: Connection) -> Iterator[bytes]:
    with _naming(call, connection):
        if response.is_stream_consumed:
            yield response.content
            return
        yield from response.iter_raw()


def _expected_bytes(response: httpx2.Response) -> int:
    """How long the answer says it is; 0: it does not say."""
    named = response.headers.get("content-length", "")
    return min(int(named), settings().max_answer_bytes) if named.isdecimal() else 0


def _unpacked(parts: Iterator[bytes], response: httpx2.Response, call: CallControl) -> Iterator[bytes]:
    label = response.extensions.get("content_encoding", "")
    expected = _expected_bytes(response)
    try:
        for part in compression.decompress(parts, label=label, limit=settings().max_answer_bytes):
            call.arrived(len(part), expected=expected)
            yield part
    except compression.Oversized as error:
        raise TooLarge("more than NOWSERVING_MAX_ANSWER_BYTES") from error


@contextmanager
def _naming(call: CallControl, connection: Connection) -> Iterator[None]:
    """What breaks in here is one of our own exceptions."""
    try:
        yield
    except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
        raise _named(call, error, connection) from error


def _named(call: CallControl, error: Exception, connection: Connection) -> Exception:
    if call.is_aborted:
        return Aborted()
    if not call.is_sent:
        return NotSent(connect_errors.describe(error, origin=connection.upstream.origin, proxy=connection.proxy))
    if call.received > settings().max_answer_bytes:
        return TooLarge("more than NOWSERVING_MAX_ANSWER_BYTES")
    if time.monotonic() >= call.deadline - 0.01:
        return TimedOut("no answer before timeout_s")
    return Lost(connect_errors.describe(error, origin=connection.upstream.origin, proxy=connection.proxy))
