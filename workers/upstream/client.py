"""Calls the upstream over a connection of workers/upstream/connections.py: bytes in, bytes out.

`send` waits for the whole answer; `open_answer` passes it on as it arrives. The SDK never retries here, and no redirect is followed.
Three things hold whatever the upstream does (workers/upstream/call.py): the call ends at its deadline, which slow bytes do not extend;
`abort` from another thread ends it at once; and an answer over the size limit is cut.

The other side may have closed a kept connection. A call that could not be written on it completely is repeated on a fresh one, here and
uncounted, because an incomplete request is never served. A call that was written completely is Lost, and `on_lost` decides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import httpx2
import openai

from models.config.settings import settings
from workers.upstream import compression, connect_errors
from workers.upstream.call import CallControl
from workers.upstream.connections import Connection, connections, upstream_of
from workers.upstream.exchange import Aborted, Answer, Body, IncomingAnswer, Lost, NotSent, Request, TimedOut, TooLarge


def send(request: Request, *, call: CallControl) -> Answer:
    """The upstream's answer, whatever its status. Raises NotSent, TimedOut, Lost or Aborted."""
    with open_answer(request, call=call) as incoming:
        return incoming.whole()


@contextmanager
def open_answer(request: Request, *, call: CallControl) -> Iterator[IncomingAnswer]:
    """The upstream's answer once its head is here, whatever its status. Raises NotSent, TimedOut, Lost or Aborted.

    A connection whose answer was not read to its end is closed.
    """
    connection, response = _open(request, call)
    try:
        parts = _decompressed(_raw_parts(response, call, connection), response, call)
        yield IncomingAnswer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, parts)
    finally:
        response.close()
        call.unbind()
        connections().give(connection)


def _open(request: Request, call: CallControl) -> tuple[Connection, httpx2.Response]:
    upstream = upstream_of(request.url, request.key)
    connection = connections().take(upstream, fresh=request.fresh)
    connection.current.call = call
    key = {request.key_header: f"Bearer {request.key}" if request.key_header == "Authorization" else request.key}
    connection.current.headers = {**request.headers, **key, "Accept-Encoding": "identity"}
    connection.current.body_bytes = request.content.size if isinstance(request.content, Body) else None
    try:
        with _errors_translated(call, connection):
            response = _send_on(connection, request)
        if connection.proxy and response.status_code == httpx2.codes.PROXY_AUTHENTICATION_REQUIRED:
            status = f"{response.status_code} {response.reason_phrase}"
            raise NotSent(connect_errors.describe(httpx2.ProxyError(status), origin=upstream.origin, proxy=connection.proxy))
        return connection, response
    except BaseException as error:
        call.unbind()
        connection.close()
        if not call.is_on_kept_connection or not isinstance(error, NotSent | Lost) or _is_freed(request):
            raise
        connections().close_idle(upstream)
        if isinstance(error, Lost):
            raise
    return _open(replace(request, fresh=True), call)


def _is_freed(request: Request) -> bool:
    """Whether the body was written once and freed: a proxy that requires a password has read all of it."""
    return isinstance(request.content, Body) and not request.content.content()


def _send_on(connection: Connection, request: Request) -> httpx2.Response:
    try:
        if request.content is None:
            return connection.sdk.get(request.url, cast_to=httpx2.Response)
        response = connection.sdk.post(
            request.url, content=request.content, cast_to=httpx2.Response, stream=True, stream_cls=openai.Stream[object]
        )
        # With cast_to=httpx2.Response, the SDK returns the unread response, whatever its types say.
        return cast(httpx2.Response, response)
    except openai.APIStatusError as error:
        return error.response


def _raw_parts(response: httpx2.Response, call: CallControl, connection: Connection) -> Iterator[bytes]:
    with _errors_translated(call, connection):
        if response.is_stream_consumed:
            yield response.content
            return
        yield from response.iter_raw()


def _decompressed(parts: Iterator[bytes], response: httpx2.Response, call: CallControl) -> Iterator[bytes]:
    label = response.extensions.get("content_encoding", "")
    length = response.headers.get("content-length", "")
    expected = min(int(length), settings().max_answer_bytes) if length.isdecimal() else 0
    try:
        for part in compression.decompress(parts, label=label, limit=settings().max_answer_bytes):
            call.arrived(len(part), expected=expected)
            yield part
    except compression.Oversized as error:
        raise TooLarge("more than NOWSERVING_MAX_ANSWER_BYTES") from error


@contextmanager
def _errors_translated(call: CallControl, connection: Connection) -> Iterator[None]:
    """Translates errors of the network and the SDK into the exceptions of exchange.py."""
    try:
        yield
    except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
        raise _translated(call, error, connection) from error


def _translated(call: CallControl, error: Exception, connection: Connection) -> Exception:
    if call.is_aborted:
        return Aborted()
    if not call.is_sent:
        return NotSent(connect_errors.describe(error, origin=connection.upstream.origin, proxy=connection.proxy))
    if call.received > settings().max_answer_bytes:
        return TooLarge("more than NOWSERVING_MAX_ANSWER_BYTES")
    if time.monotonic() >= call.deadline - 0.01:
        return TimedOut("no answer before timeout_s")
    return Lost(connect_errors.describe(error, origin=connection.upstream.origin, proxy=connection.proxy))
