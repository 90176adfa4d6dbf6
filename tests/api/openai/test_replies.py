"""HTTP responses of ended jobs: the upstream's own status and bytes where it sent any."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from api.openai import replies
from models.jobs.cancellation import EXPIRED
from models.jobs.requeue import LOST
from models.jobs.states import Status

NOBODY = UUID(int=0)
CREATED = datetime(2026, 11, 23, tzinfo=UTC)
BUSY = {"message": "overloaded", "type": "server_error", "param": None, "code": "server_is_overloaded"}


@dataclass
class Row:
    """The columns of a job that a response needs."""

    status: Status = Status.FAILED
    http_status: int | None = None
    error: dict[str, Any] | None = None
    response: bytes | None = None
    response_type: str | None = None
    wants_urls: bool = False
    id: UUID = NOBODY
    created_at: datetime = CREATED
    started_at: datetime | None = None
    ended_at: datetime | None = None


def own(code: str) -> dict[str, Any]:
    return {"message": "m", "type": "server_error", "param": None, "code": code}


def test_answer_has_upstream_bytes() -> None:
    body = b'{ "id":"x",\r\n "caf\xc3\xa9": 1.10, "b": [] }\n\n'
    response = replies.of_job(Row(Status.SUCCEEDED, 200, response=body))

    assert (200, body, "application/json") == (response.status_code, response.data, response.content_type)
    assert "x-should-retry" not in response.headers


@pytest.mark.parametrize(
    ("status", "started", "ended", "expected"),
    [
        (Status.SUCCEEDED, 1.5, 3.75, ("1500", "2250")),
        (Status.FAILED, 1.5, 3.75, ("1500", "2250")),
        (Status.RUNNING, 1.5, None, ("1500", None)),
        (Status.QUEUED, 1.5, None, (None, None)),
        (Status.EXPIRED, 1.5, 9.0, (None, None)),
        (Status.FAILED, None, 9.0, (None, None)),
    ],
)
def test_timing_headers_need_a_started_call(
    status: Status, started: float | None, ended: float | None, expected: tuple[str | None, str | None]
) -> None:
    times = [None if seconds is None else CREATED + timedelta(seconds=seconds) for seconds in (started, ended)]
    headers = replies.timing(Row(status, started_at=times[0], ended_at=times[1]))

    assert expected == (headers.get("X-Nowserving-Waited-Ms"), headers.get("openai-processing-ms"))


def test_upstream_error_is_forwarded_and_not_retried() -> None:
    body = b'{"error": {"message": "overloaded", "more": [1.0]}, "x":  1}'
    response = replies.of_job(Row(http_status=503, error=BUSY, response=body))

    assert (503, body) == (response.status_code, response.data)
    assert "false" == response.headers["x-should-retry"]


@pytest.mark.parametrize("body", [b'{"detail": "no"}', b'{"error": "no"}', b'{"error": {"code": 1}}', b"[]"])
def test_unusual_upstream_error_is_forwarded_unchanged(body: bytes) -> None:
    response = replies.of_job(Row(http_status=418, error=BUSY, response=body))

    assert (418, body, "application/json") == (response.status_code, response.data, response.content_type)


def test_upstream_html_is_forwarded_without_scripts() -> None:
    response = replies.of_job(Row(http_status=502, error=BUSY, response=b"<script>", response_type="text/html; charset=utf-8"))

    assert (502, b"<script>", "text/html; charset=utf-8") == (response.status_code, response.data, response.content_type)
    assert ("default-src 'none'; sandbox", "nosniff", "false") == (
        response.headers["Content-Security-Policy"], response.headers["X-Content-Type-Options"], response.headers["x-should-retry"],
    )  # fmt: skip


def test_unreadable_answer_is_our_502() -> None:
    row = Row(http_status=200, error=own("upstream_invalid_response"), response=b"<html>", response_type="text/html")
    response = replies.of_job(row)

    assert (502, {"error": own("upstream_invalid_response")}, "application/json") == (
        response.status_code, json.loads(response.data), response.content_type,
    )  # fmt: skip


@pytest.mark.parametrize("body", [None, b'{"detail": "no"}', b'{"error": "no"}', b'{"error": {"code": 1}}', b"[]", b"<html>"])
def test_unreadable_error_becomes_error_object_in_begun_json(body: bytes | None) -> None:
    row = Row(http_status=418, error=BUSY, response=body)

    assert {"error": BUSY} == json.loads(replies.error_body(row))


@pytest.mark.parametrize(
    ("row", "status", "code"),
    [
        (Row(error=own("upstream_unreachable")), 502, "upstream_unreachable"),
        (Row(error=LOST), 502, "upstream_outcome_unknown"),
        (Row(error=own("upstream_timeout")), 504, "upstream_timeout"),
        (Row(http_status=200, error=own("upstream_invalid_response")), 502, "upstream_invalid_response"),
        (Row(error=own("upstream_answer_too_large")), 502, "upstream_answer_too_large"),
        (Row(http_status=307, error=own("upstream_error")), 502, "upstream_error"),
        (Row(http_status=200, error=BUSY), 502, "server_is_overloaded"),
        (Row(error=own("invalid_api_key")), 401, "invalid_api_key"),
        (Row(error=own("request_exceeds_limit")), 400, "request_exceeds_limit"),
        (Row(error=own("server_error")), 500, "server_error"),
        (Row(), 502, None),
        (Row(Status.EXPIRED, error=EXPIRED), 504, "expired"),
        (Row(Status.CANCELLED), 409, "cancelled"),
    ],
)
def test_failure_without_upstream_response_has_our_status(row: Row, status: int, code: str | None) -> None:
    failure = replies.failure(row)

    assert (status, code) == (failure.status, failure.error["code"])
    assert {"message", "type", "param", "code"} == set(failure.error)
    assert failure.error["message"]
