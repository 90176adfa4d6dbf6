"""From an ended job to the wire: the upstream's own answer byte for byte, or its own error and status; ours where it gave none."""

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

# What the upstream never said, by what became of the call; everything else that went wrong out there is a bad gateway.
STATUSES: Mapping[object, int] = {
    "invalid_api_key": HTTPStatus.UNAUTHORIZED,
    "request_exceeds_limit": HTTPStatus.BAD_REQUEST,
    "server_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "upstream_timeout": HTTPStatus.GATEWAY_TIMEOUT,
}
# A page of somebody else's must not run scripts under our address.
UNTRUSTED: Mapping[str, str] = MappingProxyType(
    {"Content-Security-Policy": "default-src 'none'; sandbox", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
)
CANCELLED: Mapping[str, object] = {
    "message": "The job was cancelled. Send the request again to have it answered.",
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
    """How an ended job that has no answer is told: an HTTP status and the error object, with its four keys at least."""

    status: int
    error: dict[str, object]


def failure(row: Any) -> Failure:
    """The HTTP error of a job that failed, was cancelled or expired, or whose answer was deleted. row: its status, http_status, error."""
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
    """The bytes of an answer that is no result, to be saved and not shown. row: response and response_type."""
    made = Response(bytes(row.response), content_type="application/octet-stream")
    made.headers["X-Nowserving-Content-Type"] = row.response_type
    made.headers["Content-Disposition"] = f'attachment; filename="{name}.bin"'
    made.headers.update(UNTRUSTED)
    return made


def answer(row: Any, *, origin: str = "") -> Response:
    """The ended job as the answer to the request that made it. row: as view.find gives it. origin: of links to its pictures.

    An error says that a retry is useless: the line has already tried as often as makes sense, and an SDK's own two retries would
    multiply that.
    """
    if has_answer(row):
        body = images.content(row, origin=origin)
        made = Response(iter(body), row.http_status or HTTPStatus.OK, mimetype="application/json")
        made.content_length = body.length
    else:
        made = _failed(row)
        made.headers["x-should-retry"] = "false"
    made.headers.update(timing(row))
    made.headers["Cache-Control"] = "no-store"
    made.headers["X-Content-Type-Options"] = "nosniff"
    return made


def _failed(row: Any) -> Response:
    """The upstream's own status and bytes, whatever they are, where it refused; ours else."""
    told = failure(row)
    if not _is_theirs(row):
        return Response(told_of(row), told.status, mimetype="application/json")
    made = Response(bytes(row.response), told.status, content_type=row.response_type or "application/json")
    if row.response_type is not None:
        made.headers.update(UNTRUSTED)
    return made


def has_answer(row: Any) -> bool:
    """Whether the job succeeded and its answer was not deleted since."""
    return row.status == Status.SUCCEEDED and row.response is not None


def timing(row: Any) -> dict[str, str]:
    """How long the job waited for its call and how long that took, as far as there has been one."""
    told: dict[str, str] = {}
    if row.started_at is not None and row.status in (Status.RUNNING, Status.SUCCEEDED, Status.FAILED):
        told["X-Nowserving-Waited-Ms"] = _ms(row.started_at - row.created_at)
        if row.ended_at is not None:
            told["openai-processing-ms"] = _ms(row.ended_at - row.started_at)
    return told


def told_of(row: Any) -> bytes:
    """The body of an error as JSON that SDKs read: the upstream's own bytes where it sent an error object, ours else."""
    if _is_theirs(row) and _is_envelope(row.response):
        return bytes(row.response)
    return f"{render.text({'error': failure(row).error})}\n".encode()


def _ms(span: timedelta) -> str:
    return str(round(span.total_seconds() * 1000))


def _is_theirs(row: Any) -> bool:
    return row.status == Status.FAILED and _is_refusal(row.http_status) and row.response is not None


def _is_refusal(status: int | None) -> bool:
    return status is not None and status >= HTTPStatus.BAD_REQUEST


def _is_envelope(body: bytes | None) -> bool:
    """Whether this is `{"error": {…}}` with a message, which is what SDKs read."""
    try:
        said = json.loads(body or b"")
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and isinstance(said.get("error"), dict) and isinstance(said["error"].get("message"), str)
