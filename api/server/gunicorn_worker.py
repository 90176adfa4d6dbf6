"""gunicorn's gevent worker. It answers malformed requests (framing, too large headers) with our JSON errors and logs one line for each.

gunicorn's master loads this module too, before gevent patches anything: it must import nothing of ours that creates locks or metrics.
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

# When a response is sent before the request was read, the worker reads and drops the rest: a reset would lose the response.
MAX_DRAIN_BYTES = 128 * 1024 * 1024
MAX_DRAIN_S = 30.0
MAX_DRAIN_PAUSE_S = 5.0
# The chunk size of api/http/request_body.py. gunicorn would read 1 MiB ahead and copy the rest of it with each chunk that is taken: each
# upload would hold the event loop for that long.
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


#: Raised while a body is read: the view has answered the request already.
BODY_ERRORS = (http.InvalidChunkSize, http.ChunkMissingTerminator, http.InvalidChunkExtension)
CONFIGURATION_ERRORS = (http.ConfigurationProblem, http.InvalidResponseHeader, http.InvalidResponseHeaderName)


class Worker(GeventWorker):  # type: ignore[misc]  # its base is Any
    """Answers requests that never reach the application. After an error of a body it only closes the connection."""

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Handles a request; closes the connection when the response was sent before the body was read.

        gunicorn would read the rest in steps of 1 KiB and copy up to 1 MiB each time: 0.6 to 3.4 s of the event loop for 19 MB (measured).
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
        """Answers a request that gunicorn could not parse, and logs it."""
        if isinstance(exc, (*BODY_ERRORS, GreenletExit)):
            return
        error, request_id = error_for(exc), ids.format_id("req_", uuid4())
        level = logging.WARNING if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else logging.ERROR
        # Never the message of the exception: it quotes headers, which hold keys.
        extra = {"request_id": request_id, "status": error.status, "code": error.code, "address": (addr or "-")[0]}
        log.log(level, "request refused", extra={**extra, "kinds": [type(exc).__name__]})
        with suppress(Exception):
            self.wsgi.extensions["requests_total"].labels("other", str(error.status)).inc()
        with suppress(OSError):
            client.sendall(response_bytes(error, request_id=request_id))
            drain(client)
        logs.bind()


def error_for(exc: BaseException) -> ServingError:
    """Our error for an exception that gunicorn raised while it read the head of a request."""
    if isinstance(exc, CONFIGURATION_ERRORS) or not isinstance(exc, http.ParseException):
        return ServingError()
    if isinstance(exc, http.LimitRequestLine):
        return AddressTooLong()
    if isinstance(exc, http.LimitRequestHeaders):
        return HeadTooLarge()
    return UnknownExpectation() if isinstance(exc, http.ExpectationFailed) else BadFraming()


def response_bytes(error: ServingError, *, request_id: str) -> bytes:
    """The HTTP/1.1 response for this error; the worker closes the connection after it."""
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
    """Whether the application has not read all of the request's body."""
    reader = req.body.reader if req.body else None
    return bool(req.body and (req.body.failed or getattr(reader, "length", 0) or getattr(reader, "parser", None)))


def drain(client: socket.socket) -> None:
    """Reads the rest of the request. Closing the connection with unread bytes resets it, and the client loses the response."""
    client.shutdown(socket.SHUT_WR)
    client.settimeout(MAX_DRAIN_PAUSE_S)
    deadline, left = time.monotonic() + MAX_DRAIN_S, MAX_DRAIN_BYTES
    while left > 0 and time.monotonic() < deadline and (chunk := client.recv(65_536)):
        left -= len(chunk)
        time.sleep(0)
