"""Error responses: one JSON envelope for every error, with the headers by which clients decide whether to retry."""

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

# openai-node ignores a longer Retry-After and retries at once, unless x-should-retry is false.
MAX_RETRY_AFTER_S = 60
UNAVAILABLE_RETRY_AFTER_S = 2.0
_VALID_CLIENT_ID = re.compile(r"[!-~]{1,512}")


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
    """Adds a request id to every response, and answers every exception with an error response."""
    app.before_request(_start_request)
    app.after_request(_add_request_ids)
    app.register_error_handler(ServingError, _handle_serving_error)
    app.register_error_handler(HTTPException, _handle_http_exception)
    app.register_error_handler(Exception, _handle_unexpected)


def error_response(error: ServingError) -> Response:
    """The response for this error."""
    wait_s = (
        error.retry_after_s if error.retry_after_s is not None else (UNAVAILABLE_RETRY_AFTER_S if isinstance(error, Unavailable) else None)
    )
    response = render.json_response({"error": error.view()}, error.status)
    if wait_s is not None:
        response.headers["Retry-After"] = str(math.ceil(wait_s))
        response.headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    if not error.retryable or (wait_s or 0) > MAX_RETRY_AFTER_S:
        response.headers["x-should-retry"] = "false"
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, encodings.UnknownEncoding):
        response.headers["Accept-Encoding"] = encodings.ACCEPTED  # RFC 7694
    return response


def log_error(error: BaseException, *, event: str) -> None:
    """Logs the types of the error and its causes, and where they happened. Never the message: it may quote a prompt or a key."""
    kinds: list[str] = []
    where: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(kinds) < 5:
        kinds.append(type(cause).__name__)
        where += [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(cause.__traceback__)[-8:]]
        cause = cause.__cause__ or cause.__context__
    log.error(event, extra={"kinds": kinds, "where": where})


def _start_request() -> None:
    g.began_ns, g.request_number = time.time_ns(), uuid4()
    g.request_id = ids.format_id("req_", g.request_number)
    route = request.url_rule.rule if request.url_rule else ""
    request.environ[access_log.ROUTE] = route or None
    logs.bind(request_id=g.request_id)
    if "/jobs/<name>" in route:
        with suppress(NotFound):
            logs.extend(job=wire.public_id(wire.parse_id((request.view_args or {})["name"])))


def _add_request_ids(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    client_id = request.headers.get("X-Client-Request-Id", "")
    if _VALID_CLIENT_ID.fullmatch(client_id):
        response.headers["X-Client-Request-Id"] = client_id
    return response


def _handle_serving_error(error: ServingError) -> Response:
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log_error(error, event="request failed")
    return error_response(error)


def _handle_http_exception(error: HTTPException) -> Response:
    if error.code == HTTPStatus.METHOD_NOT_ALLOWED:
        response = error_response(MethodNotAllowed())
        response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return response
    if error.code == HTTPStatus.NOT_FOUND:
        return error_response(NotFound("There is nothing at this address. See /docs for what there is.", code="unknown_url"))
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    serving_error = Invalid() if status < HTTPStatus.INTERNAL_SERVER_ERROR else ServingError()
    serving_error.status = status
    return error_response(serving_error)


def _handle_unexpected(error: Exception) -> Response:
    log_error(error, event="unexpected error")
    return error_response(ServingError())
