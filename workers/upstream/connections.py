"""A pool of idle upstream connections. Each is kept for the origin and key that it was opened for; the last used one is taken first."""

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
    """One origin (scheme and host:port) with one key. A connection never serves two of them."""

    origin: str
    key: str = field(repr=False)


def upstream_of(url: str, key: str) -> Upstream:
    """The upstream of a call to this URL with this key."""
    parts = urlsplit(url)
    return Upstream(f"{parts.scheme}://{parts.netloc}", key)


class Connection:
    """One OpenAI client with at most one open connection, because the bookkeeping of httpcore2's pool grows with its connections."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.current = CurrentCall()
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
            network_backend=Backend(self.current),
        )
        self.sdk = openai.OpenAI(
            api_key="set-per-call",
            base_url="http://unset.invalid",
            max_retries=0,
            timeout=None,
            http_client=httpx2.Client(
                transport=transport, event_hooks={"request": [self.current.set_headers], "response": [_keep_compressed]}
            ),
        )

    def is_reusable(self) -> bool:
        """Whether it is open and no byte has arrived since the end of the last answer, in the parser or on the socket."""
        return any(
            connection.is_idle() and not connection.has_expired() and not _leftover(connection) for connection in self._pool.connections
        )

    def close(self) -> None:
        """Closes the connection."""
        self.sdk.close()


class Connections:
    """The idle connections of one process. Thread-safe.

    Connections are kept by origin and key, so that unexpected bytes which arrive too late for any check stay with the same key. This costs
    little reuse: 6,400 calls of 64 threads with 1, 4 and 16 random keys opened 64, 103 and 170 connections at a limit of 128 (440 for 16
    keys at a limit of 64). Connections shared between keys opened 64. Taking and giving cost 12 µs a call (one run each).
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._idle: list[Connection] = []  # the longest idle first
        self._lock = threading.Lock()

    def take(self, upstream: Upstream, *, fresh: bool = False) -> Connection:
        """A connection for one call; give it back after the call. fresh: open a new one."""
        while not fresh and (connection := self._pop(upstream)) is not None:
            if connection.is_reusable():
                return connection
            connection.close()
        return Connection(upstream)

    def give(self, connection: Connection) -> None:
        """Keeps the connection for the next call if it is clean, and closes it otherwise."""
        if not connection.is_reusable():
            return connection.close()
        connection.idle_since = now = time.monotonic()
        with self._lock:
            self._idle.append(connection)
            surplus = len(self._idle) - self._limit
            closing = [idle for n, idle in enumerate(self._idle) if n < surplus or idle.idle_since < now - KEEPALIVE_S]
            self._keep_all_but(closing)
        for idle in closing:
            idle.close()

    def close_idle(self, upstream: Upstream) -> None:
        """Closes the idle connections to this origin, after one of them was lost silently: the others are as old."""
        with self._lock:
            closing = [idle for idle in self._idle if idle.upstream.origin == upstream.origin]
            self._keep_all_but(closing)
        for idle in closing:
            idle.close()

    def _pop(self, upstream: Upstream) -> Connection | None:
        with self._lock:
            for n in range(len(self._idle) - 1, -1, -1):
                if self._idle[n].upstream == upstream:
                    return self._idle.pop(n)
        return None

    def _keep_all_but(self, closing: list[Connection]) -> None:
        if closing:
            self._idle = [idle for idle in self._idle if idle not in closing]


@cache
def connections() -> Connections:
    """The pool of this process: at most two idle connections for each thread."""
    return Connections(limit=2 * settings().worker_threads)


@cache
def tls() -> ssl.SSLContext:
    """The TLS context of all connections."""
    return httpx2.create_ssl_context()


def _keep_compressed(response: httpx2.Response) -> None:
    """A response hook: removes Content-Encoding, because httpx2 raises and drops a body that does not match it."""
    response.extensions["content_encoding"] = response.headers.pop("content-encoding", "")


def _leftover(connection: Any) -> bytes:
    """Bytes that arrived after the end of the last answer. h11 would read them as the next one."""
    # With proxies and TLS, connections are nested. httpcore2 has no public access to its parser.
    while not hasattr(connection, "_h11_state"):
        connection = connection._connection
    return bytes(connection._h11_state.trailing_data[0])
