"""One POST to somebody else's server, which can reach only what the operator allows: the guard is in the connection itself.

The name is looked up once, every address it has is checked (loopback, private, link-local, metadata, multicast, shared, and those
that embed one), and the socket goes to the very address that was checked; TLS still verifies the name. No redirects, no proxies, no
second lookup. However slowly the other side drips, everything ends at the deadline.
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

# Of the whole answer, its headers too. What comes after is not read.
MAX_ANSWER_BYTES = 64 * 1024
# Once the status is known the rest of the answer decides nothing.
BODY_S = 2.0
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Response:
    """What was answered. headers: names in lower case; body: as much of it as came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Unreachable(Exception):
    """There is no answer. The message says why, and nothing about networks that its reader has no business with."""


class Blocked(Unreachable):
    """We do not connect there. `detail` is for the operator: the address and the rule."""

    def __init__(self, message: str, *, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


def post(url: str, *, headers: Mapping[str, str], body: bytes, timeout_s: float, resolver: Resolver | None = None) -> Response:
    """The answer to this POST, whatever its status, within `timeout_s`. Raises Unreachable or Refused.

    resolver: in place of the system's, shaped like socket.getaddrinfo; what it answers is checked just the same.
    """
    until = _Deadline(timeout_s)
    with _named(timeout_s):
        cleaned = url_policy.normalize(url)
        target = url_policy.check_origin(cleaned)
        addresses = _resolve(target, resolver, until)
        each_s = until.left_s() / min(len(addresses), url_policy.MAX_ADDRESSES)
        with connect(addresses, policy=url_policy.current_policy(), timeout=each_s) as plain:
            plain.settimeout(until.left_s())
            with _secure(plain, target) as secured:
                return _exchange(_Wire(secured, until), _head(target, cleaned, headers, body) + body)


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds, more than 0. Raises TimeoutError."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def shorten(self, seconds: float) -> None:
        self._at = min(self._at, time.monotonic() + seconds)


class _Wire(io.RawIOBase):
    """A socket of which each read and write may take what is left of the time, and which ends after READ_MOST_BYTES."""

    def __init__(self, sock: socket.socket, until: _Deadline) -> None:
        self._sock, self.until, self._left = sock, until, MAX_ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)[: self._left]
        if not wanted:
            return 0
        self._sock.settimeout(self.until.left_s())
        got = self._sock.recv_into(wanted)
        self._left -= got
        return got

    def send(self, said: bytes) -> None:
        rest = memoryview(said)
        while rest:
            self._sock.settimeout(self.until.left_s())
            rest = rest[self._sock.send(rest[:PIECE_BYTES]) :]

    def makefile(self, *_: object) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return io.BufferedReader(self)


def _resolve(target: Target, resolver: Resolver | None, until: _Deadline) -> tuple[Address, ...]:
    """The checked addresses. The system's lookup knows no deadline, so it is left alone in a thread when ours has passed."""
    policy = url_policy.current_policy()
    if target.is_literal_address:
        return resolve(target, policy=policy)
    said: queue.SimpleQueue[tuple[Address, ...] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            said.put(resolve(target, policy=policy, resolver=resolver))
        except Exception as error:
            said.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = said.get(timeout=until.left_s())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found


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


def _exchange(wire: _Wire, said: bytes) -> Response:
    # Who has heard enough may answer and hang up before we are done: the answer counts.
    with suppress(BrokenPipeError, ConnectionResetError):
        wire.send(said)
    answer = http.client.HTTPResponse(wire, method="POST")  # type: ignore[arg-type]  # it needs only makefile()
    answer.begin()
    wire.until.shorten(BODY_S)
    body = b"".join(_pieces(answer.read1))
    return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    with suppress(OSError, http.client.HTTPException, ValueError):
        while piece := read(PIECE_BYTES):
            yield piece


@contextmanager
def _named(timeout_s: float) -> Iterator[None]:
    """Whatever goes wrong inside is Unreachable, with a name for it."""
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
        raise Unreachable("what it answered is not HTTP") from None
    except OSError as error:
        # Of several addresses the last is the cause; its name is ours to say, the addresses are not.
        raise Unreachable(error.strerror or getattr(error.__cause__, "strerror", None) or "could not connect") from None
    except ValueError:
        raise Unreachable("its host name or its answer makes no sense") from None
