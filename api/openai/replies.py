"""HTTP responses of ended jobs: the upstream's answer byte for byte, its own error and status, or our error where it sent none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from flask import Response

from api.http import render
from api.submit import images
from models.jobs.states import Status

# Status of an error that the upstream did not send, by error code; any other code is a bad gateway.
STATUSES: Mapping[object, int] = {
    "invalid_api_key": HTTPStatus.UNAUTHORIZED,
    "request_exceeds_limit": HTTPStatus.BAD_REQUEST,
    "server_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "upstream_timeout": HTTPStatus.GATEWAY_TIMEOUT,
}
# Foreign markup must not run scripts under our origin.
UNTRUSTED: Mapping[str, str] = MappingProxyType(
    {"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
)
CANCELLED: Mapping[str, object] = {
    "message": "The job was cancelled. Send the request again to run it.",
    "type": "invalid_request_error",
    "param": None,
    "code": "cancelled",
}
DELETED: Mapping[str, object] = {
    "message": "The answer of this job was deleted. Send the request with another Idempotency-Key to have it answered again.",
    "type": "invalid_request_error",
    "param": None,
    "code": "answer_deleted",
}


@dataclass(frozen=True)
class Failure:
    """The HTTP error of an ended job without an answer. error: has at least the four keys of OpenAI's error object."""

    status: int
    error: dict[str, object]


def failure(row: Any) -> Failure:
    """Returns the HTTP error of a job that failed, was cancelled or expired, or whose answer was deleted."""
    if row.status == Status.SUCCEEDED:
        return Failure(HTTPStatus.CONFLICT, dict(DELETED))
    if row.status == Status.CANCELLED:
        return Failure(HTTPStatus.CONFLICT, {**CANCELLED, **(row.error or {})})
    error = {"message": "The job failed.", "type": "server_error", "param": None, "code": None, **(row.error or {})}
    if row.status == Status.EXPIRED:
        return Failure(HTTPStatus.GATEWAY_TIMEOUT, error)
    if _is_refusal(row.http_status):
        return Failure(row.http_status, error)
    return Failure(STATUSES.get(error["code"], HTTPStatus.BAD_GATEWAY), error)


def raw(row: Any, *, name: str) -> Response:
    """Returns the bytes of a response that is not a result, as a download. row: has response and response_type."""
    response = Response(bytes(row.response), content_type="application/octet-stream")
    response.headers["X-Nowserving-Content-Type"] = row.response_type
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.bin"'
    response.headers.update(UNTRUSTED)
    return response


def of_job(row: Any, *, origin: str = "") -> Response:
    """Returns the ended job as the response to its request. row: from job_rows.find_job. origin: prefix of the links to its images.

    Errors carry `x-should-retry: false`: the queue already retried as often as makes sense, and an SDK's two retries would multiply that.
    """
    if has_answer(row):
        body = images.response_body(row, origin=origin)
        response = Response(iter(body), row.http_status or HTTPStatus.OK, mimetype="application/json")
        response.content_length = body.length
    else:
        response = _failed(row)
        response.headers["x-should-retry"] = "false"
    response.headers.update(timing(row))
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _failed(row: Any) -> Response:
    """Returns the upstream's status and unchanged bytes if the upstream refused the call; otherwise our own error."""
    status = failure(row).status
    if not _is_upstream_refusal(row):
        return Response(error_body(row), status, mimetype="application/json")
    response = Response(bytes(row.response), status, content_type=row.response_type or "application/json")
    if row.response_type is not None:
        response.headers.update(UNTRUSTED)
    return response


def has_answer(row: Any) -> bool:
    """Returns whether the job succeeded and its answer was not deleted."""
    return row.status == Status.SUCCEEDED and row.response is not None


def timing(row: Any) -> dict[str, str]:
    """Returns headers with the queue time and the call time, as far as the job has come."""
    headers: dict[str, str] = {}
    if row.started_at is not None and row.status in (Status.RUNNING, Status.SUCCEEDED, Status.FAILED):
        headers["X-Nowserving-Waited-Ms"] = _ms(row.started_at - row.created_at)
        if row.ended_at is not None:
            headers["openai-processing-ms"] = _ms(row.ended_at - row.started_at)
    return headers


def error_body(row: Any) -> bytes:
    """Returns the error body that SDKs read: the upstream's own bytes where they hold an error object, otherwise ours."""
    if _is_upstream_refusal(row) and _is_error_object(row.response):
        return bytes(row.response)
    return f"{render.dump({'error': failure(row).error})}\n".encode()


def _ms(span: timedelta) -> str:
    return str(round(span.total_seconds() * 1000))


def _is_upstream_refusal(row: Any) -> bool:
    return row.status == Status.FAILED and _is_refusal(row.http_status) and row.response is not None


def _is_refusal(status: int | None) -> bool:
    return status is not None and status >= HTTPStatus.BAD_REQUEST


def _is_error_object(body: bytes | None) -> bool:
    """Returns whether the body is `{"error": {…}}` with a message, which is what SDKs read."""
    try:
        value = json.loads(body or b"")
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("error"), dict) and isinstance(value["error"].get("message"), str)
