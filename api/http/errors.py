"""Every error in the one envelope, with the headers by which clients decide whether to come back."""

from __future__ import annotations

import errno
import logging
import math
import re
import time
import traceback
from contextlib import suppress
from http import HTTPStatus
from uuid import uuid4

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from api.http import access_log, encodings, render
from models.platform import ids, wire
from models.platform.errors import Invalid, NotFound, ServingError, Unavailable
from models.telemetry import logs

log = logging.getLogger(__name__)

# openai-node ignores a longer Retry-After and comes back at once, unless it is told not to come back at all.
WAIT_MOST_S = 60
AWAY_S = 2.0
_SANE_ID = re.compile(r"[!-~]{1,512}")


class ConnectionAborted(ConnectionResetError):
    """Raised by the iterator of a response that has begun: the server closes the connection without the end of the body.

    The client sees that the response is incomplete. gunicorn handles the exception as a connection reset by the client: it sends no other
    byte and logs no line.
    """

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "response aborted")


class MethodNotAllowed(Invalid):
    """This address does not take this method. See /docs for those it takes."""

    code = "method_not_allowed"
    status = 405


def register(app: Flask) -> None:
    """Nothing leaves this app without a request id, and no error in any other shape."""
    app.before_request(_begin)
    app.after_request(_sign)
    app.register_error_handler(ServingError, _answer_ours)
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_unforeseen)


def error_response(error: ServingError) -> Response:
    """The error as its caller sees it."""
    wait_s = error.retry_after_s if error.retry_after_s is not None else (AWAY_S if isinstance(error, Unavailable) else None)
    made = render.json_response({"error": error.view()}, error.status)
    if wait_s is not None:
        made.headers["Retry-After"] = str(math.ceil(wait_s))
        made.headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    if not error.retryable or (wait_s or 0) > WAIT_MOST_S:
        made.headers["x-should-retry"] = "false"
    if error.status == HTTPStatus.UNAUTHORIZED:
        made.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, encodings.UnknownEncoding):
        made.headers["Accept-Encoding"] = encodings.ACCEPTED  # RFC 7694
    return made


def log_error(error: BaseException, *, event: str) -> None:
    """The log knows the kinds of the error and where it happened. Never its message: that may quote a prompt or a key."""
    kinds: list[str] = []
    where: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(kinds) < 5:
        kinds.append(type(cause).__name__)
        where += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(cause.__traceback__)[-8:]]
        cause = cause.__cause__ or cause.__context__
    log.error(event, extra={"kinds": kinds, "where": where})


def _begin() -> None:
    g.began_ns, g.request_number = time.time_ns(), uuid4()
    g.request_id = ids.show("req_", g.request_number)
    route = request.url_rule.rule if request.url_rule else ""
    request.environ[access_log.ROUTE] = route or None
    logs.bind(request_id=g.request_id)
    if "/jobs/<name>" in route:
        with suppress(NotFound):
            logs.extend(job=wire.public_id(wire.parse_id((request.view_args or {})["name"])))


def _sign(made: Response) -> Response:
    made.headers["X-Request-Id"] = g.request_id
    theirs = request.headers.get("X-Client-Request-Id", "")
    if _SANE_ID.fullmatch(theirs):
        made.headers["X-Client-Request-Id"] = theirs
    return made


def _answer_ours(error: ServingError) -> Response:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log_error(error, event="request failed")
    return error_response(error)


def _answer_http(error: HTTPException) -> Response:
    if error.code == HTTPStatus.METHOD_NOT_ALLOWED:
        made = error_response(MethodNotAllowed())
        made.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return made
    if error.code == HTTPStatus.NOT_FOUND:
        return error_response(NotFound("There is nothing at this address. See /docs for what there is.", code="unknown_url"))
    told = Invalid() if (error.code or 500) < HTTPStatus.INTERNAL_SERVER_ERROR else ServingError()
    told.status = error.code or 500
    return error_response(told)


def _answer_unforeseen(error: Exception) -> Response:
    log_error(error, event="unforeseen error")
    return error_response(ServingError())
