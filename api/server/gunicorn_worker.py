"""gunicorn's gevent worker, whose own refusals (framing, head too large) are JSON in our envelope and one log line.

Loaded in gunicorn's master too, before gevent has patched anything: it imports nothing of ours that makes locks or counters.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from gevent import GreenletExit
from gunicorn.http import errors as http
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.ggevent import GeventWorker

from models.platform import ids
from models.platform.errors import Invalid, ServingError
from models.telemetry import logs

log = logging.getLogger(__name__)

# A client that still sends when its answer is written: so much is read and dropped, or the answer would be lost in a reset.
DRAIN_MOST_BYTES = 128 * 1024 * 1024
DRAIN_MOST_S = 30.0
DRAIN_IDLE_S = 5.0
# As much as api/http/request_body.py reads at a time. gunicorn's 1 MiB ahead of that would be copied again with each piece that is taken
# of it, and
# each upload would hold the event loop for that long in every turn.
SocketUnreader.max_body_chunk = 256 * 1024


class BadFraming(Invalid):
    """The request is not well-formed HTTP/1.1, or its length is ambiguous. Send one Host, and one Content-Length or chunks."""

    code = "bad_framing"


class AddressTooLong(Invalid):
    """The address is longer than this server reads. Send its query in the body, or shorten it."""

    code = "address_too_long"
    status = 414


class HeadTooLarge(Invalid):
    """The headers are more or longer than this server reads. Send fewer of them; cookies are not needed."""

    code = "headers_too_large"
    status = 431


class UnknownExpectation(Invalid):
    """This server knows `Expect: 100-continue` alone. Leave the header out."""

    code = "expectation_failed"
    status = 417


#: Raised while a body is read: its request has been answered, by a view that saw the same error or did not read it.
OF_BODIES = (http.InvalidChunkSize, http.ChunkMissingTerminator, http.InvalidChunkExtension)
OF_CONFIGURATION = (http.ConfigurationProblem, http.InvalidResponseHeader, http.InvalidResponseHeaderName)


class Worker(GeventWorker):  # type: ignore[misc]  # its base is Any
    """Answers what never reaches the application. An error of a body that was answered closes the connection without a word."""

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """A connection whose request was answered before its body was read is closed.

        gunicorn would read the rest by 1 KiB and copy up to 1 MiB each time: 0.6 to 3.4 s of the event loop for 19 MB, as measured.
        """
        closes = req.should_close
        req.should_close = lambda: closes() or is_unread(req)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            if is_unread(req):
                with suppress(OSError):
                    drain(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        if isinstance(exc, (*OF_BODIES, GreenletExit)):
            return
        error, number = refusal(exc), ids.format_id("req_", uuid4())
        level = logging.WARNING if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else logging.ERROR
        # Never the error's text: it quotes headers, and they hold keys.
        about = {"request_id": number, "status": error.status, "code": error.code, "address": (addr or "-")[0]}
        log.log(level, "request refused", extra={**about, "kinds": [type(exc).__name__]})
        with suppress(Exception):
            self.wsgi.extensions["requests_total"].labels("other", str(error.status)).inc()
        with suppress(OSError):
            client.sendall(answer(error, request_id=number))
            drain(client)
        logs.bind()


def refusal(exc: BaseException) -> ServingError:
    """The error of ours for one that gunicorn raised while it read a request's head."""
    if isinstance(exc, OF_CONFIGURATION) or not isinstance(exc, http.ParseException):
        return ServingError()
    if isinstance(exc, http.LimitRequestLine):
        return AddressTooLong()
    if isinstance(exc, http.LimitRequestHeaders):
        return HeadTooLarge()
    return UnknownExpectation() if isinstance(exc, http.ExpectationFailed) else BadFraming()


def answer(error: ServingError, *, request_id: str) -> bytes:
    """The whole HTTP/1.1 answer, after which the connection is closed."""
    content = json.dumps({"error": error.view()}, separators=(",", ":")).encode() + b"\n"
    status = HTTPStatus(error.status)
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}", "Connection: close", "Content-Type: application/json",
        f"Content-Length: {len(content)}", "Cache-Control: no-store", "X-Content-Type-Options: nosniff", f"X-Request-Id: {request_id}",
    ]  # fmt: skip
    if not error.retryable:
        head.append("x-should-retry: false")
    return "\r\n".join([*head, "", ""]).encode() + content


def is_unread(req: Any) -> bool:
    """Whether some of the request's body has not been read by the application."""
    reader = req.body.reader if req.body else None
    return bool(req.body and (req.body.failed or getattr(reader, "length", 0) or getattr(reader, "parser", None)))


def drain(client: socket.socket) -> None:
    """Reads what the client still sends, while it sends: closing with unread bytes resets the connection and loses the answer."""
    client.shutdown(socket.SHUT_WR)
    client.settimeout(DRAIN_IDLE_S)
    ends, left = time.monotonic() + DRAIN_MOST_S, DRAIN_MOST_BYTES
    while left > 0 and time.monotonic() < ends and (piece := client.recv(65_536)):
        left -= len(piece)
        time.sleep(0)
