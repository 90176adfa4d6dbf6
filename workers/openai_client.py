"""The one place that speaks to the upstream: one OpenAI client and one connection per thread, bytes in, bytes out.

`send` waits for the whole answer, `listen` hands it out as it arrives. The SDK never retries here, no redirect is
followed, and three things hold whatever the upstream does (workers/call.py): the call ends at its deadline (a drip of bytes does
not extend it), `abort` from another thread ends it at once, and an answer over the size cap is cut.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, cast

import httpcore2
import httpx2
import openai

from models.settings import settings
from workers import answer_body, compression
from workers.call import Backend, Call, Line

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
class Request:
    """What is sent. content None: a GET without a body. headers: Authorization is added to them."""

    url: str
    key: str = field(repr=False)
    headers: Mapping[str, str]
    content: bytes | None = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What came back. Header names are lower case; the body is not compressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def said(self) -> dict[str, Any] | None:
        """The JSON object that the body is; None for anything else."""
        return answer_body.parse(self.body)


@dataclass(frozen=True)
class Incoming:
    """An answer whose head is here. parts: its bytes as they arrive, not compressed; raises TimedOut, Lost or Aborted.

    Header names are lower case.
    """

    status: int
    headers: Mapping[str, str]
    parts: Iterator[bytes]

    def whole(self) -> Answer:
        """What is left of it, in one piece."""
        return Answer(self.status, self.headers, b"".join(self.parts))


def send(request: Request, *, call: Call) -> Answer:
    """The upstream's answer, whatever its status. Raises NotSent, TimedOut, Lost or Aborted."""
    with listen(request, call=call) as incoming:
        return incoming.whole()


@contextmanager
def listen(request: Request, *, call: Call) -> Iterator[Incoming]:
    """The upstream's answer from its head on, whatever its status. Raises NotSent, TimedOut, Lost or Aborted.

    A connection whose answer was not read to its end is closed.
    """
    client = _client()
    client.line.call = call
    try:
        with _naming(call):
            response = _opened(client, request)
        try:
            parts = _unpacked(_parts(response, call), response)
            yield Incoming(response.status_code, {name.lower(): value for name, value in response.headers.items()}, parts)
        finally:
            response.close()
    finally:
        call.ends()
        client.line.call, client.line.headers = None, {}


def _opened(client: _Client, request: Request) -> httpx2.Response:
    client.line.headers = {**request.headers, "Authorization": f"Bearer {request.key}", "Accept-Encoding": "identity"}
    try:
        if request.content is None:
            return client.sdk.get(request.url, cast_to=httpx2.Response)
        opened = client.sdk.post(
            request.url, content=request.content, cast_to=httpx2.Response, stream=True, stream_cls=openai.Stream[object]
        )
        # Asked for a response, the SDK hands out just that, unread, whatever its types say.
        return cast(httpx2.Response, opened)
    except openai.APIStatusError as error:
        return error.response


def _parts(response: httpx2.Response, call: Call) -> Iterator[bytes]:
    with _naming(call):
        if response.is_stream_consumed:
            yield response.content
            return
        yield from response.iter_raw()


def _keep_packed(response: httpx2.Response) -> None:
    """A hook, before the body is read: httpx2 would believe the label, and lose an answer whose label is wrong."""
    response.extensions["content_encoding"] = response.headers.pop("content-encoding", "")


def _unpacked(parts: Iterator[bytes], response: httpx2.Response) -> Iterator[bytes]:
    label = response.extensions.get("content_encoding", "")
    try:
        yield from compression.unpacked(parts, label=label, limit=settings().max_answer_bytes)
    except compression.Oversized as error:
        raise TooLarge("more than NOWSERVING_MAX_ANSWER_BYTES") from error


@contextmanager
def _naming(call: Call) -> Iterator[None]:
    """What breaks in here is one of our own exceptions."""
    try:
        yield
    except (openai.APIConnectionError, httpx2.HTTPError, OSError) as error:
        # A broken connection is never used again, and what a pool thinks of it is not worth finding out.
        _forget_client()
        raise _named(call, error) from error


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


class _Client:
    """A thread's own client: the pool's bookkeeping grows with its connections, so one connection is the cheapest."""

    def __init__(self) -> None:
        self.line = Line()
        transport = httpx2.HTTPTransport(verify=_tls())
        # httpx2 has no parameter for the network backend; httpcore2 has.
        transport._pool = httpcore2.ConnectionPool(
            ssl_context=_tls(),
            max_connections=None,
            max_keepalive_connections=1,
            keepalive_expiry=KEEPALIVE_S,
            network_backend=Backend(self.line),
        )
        self.sdk = openai.OpenAI(
            api_key="set-per-call",
            base_url="http://unset.invalid",
            max_retries=0,
            timeout=None,
            http_client=httpx2.Client(transport=transport, event_hooks={"request": [self.line.label], "response": [_keep_packed]}),
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
