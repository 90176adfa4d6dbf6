"""Connections to upstreams that wait for their next call: kept for the origin and key they were opened for, the last used first."""

from __future__ import annotations

import ssl
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import httpx2
import openai

from models.config.settings import settings
from workers.upstream import proxies
from workers.upstream.call import Backend, CurrentCall

# Cloudflare closes idle connections after minutes; below that a reused connection is very likely still open.
KEEPALIVE_S = 55.0


@dataclass(frozen=True)
class Upstream:
    """One origin (scheme and host:port) as one credential calls it. A connection never serves two of them."""

    origin: str
    key: str = field(repr=False)


def upstream_of(url: str, key: str) -> Upstream:
    """The upstream of a call to this URL with this key."""
    parts = urlsplit(url)
    return Upstream(f"{parts.scheme}://{parts.netloc}", key)


class Connection:
    """One OpenAI client with at most one open connection: the pool's bookkeeping grows with its connections."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.line = CurrentCall()
        self.idle_since = 0.0
        self.proxy = proxies.address_for(upstream.origin)
        transport = httpx2.HTTPTransport(verify=tls())
        # httpx2 has no parameter for the network backend; httpcore2 has.
        self._pool = transport._pool = httpcore2.ConnectionPool(
            ssl_context=tls(),
            proxy=proxies.proxy_for(upstream.origin),
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

    def is_reusable(self) -> bool:
        """Whether it is open and nothing has arrived since the end of the last answer, in the parser or on the socket."""
        return any(one.is_idle() and not one.has_expired() and not _leftover(one) for one in self._pool.connections)

    def close(self) -> None:
        self.sdk.close()


class Connections:
    """The idle connections of one process. Thread-safe.

    Kept by origin and key, foreign bytes that arrive too late for any check still stay with the key whose call they followed. It costs
    little reuse: 6,400 calls of 64 threads with 1, 4 and 16 keys at random opened 64, 103 and 170 connections with a limit of 128 (440 for
    16 keys with a limit of 64); connections that passed from key to key 64. Taking and giving cost 12 µs a call (one run each).
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._idle: list[Connection] = []  # the longest idle first
        self._lock = threading.Lock()

    def take(self, upstream: Upstream, *, fresh: bool = False) -> Connection:
        """A connection for one call; give it back after the call. fresh: never one that is open already."""
        while not fresh and (found := self._pop(upstream)) is not None:
            if found.is_reusable():
                return found
            found.close()
        return Connection(upstream)

    def give(self, connection: Connection) -> None:
        """The call is over. The connection waits for the next one if it is clean, and is closed otherwise."""
        if not connection.is_reusable():
            return connection.close()
        connection.idle_since = now = time.monotonic()
        with self._lock:
            self._idle.append(connection)
            surplus = len(self._idle) - self._limit
            closing = [one for n, one in enumerate(self._idle) if n < surplus or one.idle_since < now - KEEPALIVE_S]
            self._keep_all_but(closing)
        for one in closing:
            one.close()

    def distrust(self, upstream: Upstream) -> None:
        """Closes the idle connections to this origin: one of them was lost in silence, and the others are as old."""
        with self._lock:
            closing = [one for one in self._idle if one.upstream.origin == upstream.origin]
            self._keep_all_but(closing)
        for one in closing:
            one.close()

    def _pop(self, upstream: Upstream) -> Connection | None:
        with self._lock:
            for n in range(len(self._idle) - 1, -1, -1):
                if self._idle[n].upstream == upstream:
                    return self._idle.pop(n)
        return None

    def _keep_all_but(self, closing: list[Connection]) -> None:
        if closing:
            self._idle = [one for one in self._idle if one not in closing]


@cache
def connections() -> Connections:
    """Those of this process: at most two idle connections for each thread."""
    return Connections(limit=2 * settings().worker_threads)


@cache
def tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _keep_packed(response: httpx2.Response) -> None:
    """A hook, before the body is read: httpx2 would believe the label, and lose an answer whose label is wrong."""
    response.extensions["content_encoding"] = response.headers.pop("content-encoding", "")


def _leftover(connection: Any) -> bytes:
    """What arrived beyond the end of the last answer. h11 would read it as the next one."""
    # Behind proxies and TLS it is a connection within a connection. httpcore2 has no public way to its parser.
    while not hasattr(connection, "_h11_state"):
        connection = connection._connection
    return bytes(connection._h11_state.trailing_data[0])
