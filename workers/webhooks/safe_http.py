"""SSRF-safe HTTP POST to a caller's server. The guard checks the addresses of the connection itself.

The host name is resolved once and every address is checked (loopback, private, link-local, metadata, multicast, shared, and addresses
that embed one). The socket connects to a checked address; TLS still verifies the name. There are no redirects, no proxies and no second
lookup. The deadline ends the exchange, however slowly the server sends.
"""

from __future__ import annotations

import http.client
import io
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from ssrfguard import Address, BlockedAddressError, Resolver, Target, connect, resolve

from models.webhooks import url_policy

# Limit of the whole answer, headers included; the rest is not read.
MAX_ANSWER_BYTES = 64 * 1024
# After the status line the body matters to the log only, so it gets this much time.
BODY_S = 2.0
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Response:
    """HTTP response. headers: names in lower case; body: the part that arrived."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Unreachable(Exception):
    """No response. The message gives the reason without any detail of the operator's network, because callers read it."""


class Blocked(Unreachable):
    """The policy forbids the connection. detail: the address and the rule, for the operator."""

    def __init__(self, message: str, *, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


def post(url: str, *, headers: Mapping[str, str], body: bytes, timeout_s: float, resolver: Resolver | None = None) -> Response:
    """Sends a POST; returns the response, whatever its status, within `timeout_s`. Raises Unreachable or Blocked.

    resolver: replaces the system's, with the signature of socket.getaddrinfo; its answers are checked too.
    """
    deadline = _Deadline(timeout_s)
    with _translated_errors(timeout_s):
        normalized = url_policy.normalize(url)
        target = url_policy.check_origin(normalized)
        addresses = _resolve(target, resolver, deadline)
        connect_s = deadline.left_s() / min(len(addresses), url_policy.MAX_ADDRESSES)
        with connect(addresses, policy=url_policy.current_policy(), timeout=connect_s) as plain:
            plain.settimeout(deadline.left_s())
            with _secure(plain, target) as secured:
                return _exchange(_DeadlineSocket(secured, deadline), _head(target, normalized, headers, body) + body)


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Returns the seconds left, more than 0. Raises TimeoutError."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def shorten(self, seconds: float) -> None:
        self._at = min(self._at, time.monotonic() + seconds)


class _DeadlineSocket(io.RawIOBase):
    """A socket whose reads and writes time out at the deadline, and which ends after MAX_ANSWER_BYTES."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock, self.deadline, self._left = sock, deadline, MAX_ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        if not view:
            return 0
        self._sock.settimeout(self.deadline.left_s())
        received = self._sock.recv_into(view)
        self._left -= received
        return received

    def send(self, request: bytes) -> None:
        rest = memoryview(request)
        while rest:
            self._sock.settimeout(self.deadline.left_s())
            rest = rest[self._sock.send(rest[:CHUNK_BYTES]) :]

    def makefile(self, *_: object) -> io.BufferedReader:
        """The one method that http.client calls on a socket."""
        return io.BufferedReader(self)


def _resolve(target: Target, resolver: Resolver | None, deadline: _Deadline) -> tuple[Address, ...]:
    """Returns the checked addresses. The system's lookup has no timeout, so it runs in a thread that is abandoned at the deadline."""
    policy = url_policy.current_policy()
    if target.is_literal_address:
        return resolve(target, policy=policy)
    results: queue.SimpleQueue[tuple[Address, ...] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            results.put(resolve(target, policy=policy, resolver=resolver))
        except Exception as error:
            results.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        result = results.get(timeout=deadline.left_s())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, Exception):
        raise result
    return result


def _secure(plain: socket.socket, target: Target) -> socket.socket:
    return plain if target.scheme == "http" else _tls().wrap_socket(plain, server_hostname=target.host)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _head(target: Target, url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    split = urlsplit(url)
    path = split.path + (f"?{split.query}" if split.query else "")
    lines = {"Host": url_policy.authority(target), "Content-Length": str(len(body)), "Connection": "close", **headers}
    return "".join([f"POST {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "\r\n"]).encode("ascii")


def _exchange(sock: _DeadlineSocket, request: bytes) -> Response:
    # A server may answer and close before it has read the whole request: its answer counts.
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.send(request)
    response = http.client.HTTPResponse(sock, method="POST")  # type: ignore[arg-type]  # it needs only makefile()
    response.begin()
    sock.deadline.shorten(BODY_S)
    body = b"".join(_chunks(response.read1))
    return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    with suppress(OSError, http.client.HTTPException, ValueError):
        while chunk := read(CHUNK_BYTES):
            yield chunk


@contextmanager
def _translated_errors(timeout_s: float) -> Iterator[None]:
    """Turns every error of the exchange into Unreachable with a readable message."""
    try:
        yield
    except url_policy.NotAllowed as error:
        raise Blocked(f"its URL {error}", detail=str(error)) from None
    except BlockedAddressError as error:
        raise Blocked("its address is not one that webhooks may be sent to", detail=str(error)) from None
    except TimeoutError:
        raise Unreachable(f"no answer within {timeout_s:g} s") from None
    except socket.gaierror:
        raise Unreachable("its host name could not be resolved") from None
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(f"its certificate is not valid: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise Unreachable(f"no TLS connection: {error.reason or 'the other side hung up'}") from None
    except http.client.HTTPException:
        raise Unreachable("its answer is not HTTP") from None
    except OSError as error:
        # With several addresses the cause is the error of the last one. The message may contain its name and no address.
        raise Unreachable(error.strerror or getattr(error.__cause__, "strerror", None) or "could not connect") from None
    except ValueError:
        raise Unreachable("its host name or its answer is malformed") from None
