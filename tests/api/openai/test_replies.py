"""Ended jobs on the wire: the upstream's own words where it said any."""

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
    """What a reply reads of a job."""

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


def test_an_answer_is_the_upstreams_byte_for_byte() -> None:
    body = b'{ "id":"x",\r\n "caf\xc3\xa9": 1.10, "b": [] }\n\n'
    made = replies.answer(Row(Status.SUCCEEDED, 200, response=body))

    assert (200, body, "application/json") == (made.status_code, made.data, made.content_type)
    assert "x-should-retry" not in made.headers


@pytest.mark.parametrize(
    ("status", "started", "ended", "told"),
    [
        (Status.SUCCEEDED, 1.5, 3.75, ("1500", "2250")),
        (Status.FAILED, 1.5, 3.75, ("1500", "2250")),
        (Status.RUNNING, 1.5, None, ("1500", None)),
        (Status.QUEUED, 1.5, None, (None, None)),
        (Status.EXPIRED, 1.5, 9.0, (None, None)),
        (Status.FAILED, None, 9.0, (None, None)),
    ],
)
def test_how_long_it_waited_and_ran_is_told_when_it_ran(
    status: Status, started: float | None, ended: float | None, told: tuple[str | None, str | None]
) -> None:
    at = [None if one is None else CREATED + timedelta(seconds=one) for one in (started, ended)]
    found = replies.timing(Row(status, started_at=at[0], ended_at=at[1]))

    assert told == (found.get("X-Nowserving-Waited-Ms"), found.get("openai-processing-ms"))


def test_an_error_of_the_upstream_is_passed_on_byte_for_byte_and_not_retried() -> None:
    body = b'{"error": {"message": "overloaded", "more": [1.0]}, "x":  1}'
    made = replies.answer(Row(http_status=503, error=BUSY, response=body))

    assert (503, body) == (made.status_code, made.data)
    assert "false" == made.headers["x-should-retry"]


@pytest.mark.parametrize("body", [b'{"detail": "no"}', b'{"error": "no"}', b'{"error": {"code": 1}}', b"[]"])
def test_an_error_in_another_shape_is_passed_on_byte_for_byte(body: bytes) -> None:
    made = replies.answer(Row(http_status=418, error=BUSY, response=body))

    assert (418, body, "application/json") == (made.status_code, made.data, made.content_type)


def test_a_page_of_the_upstreams_is_passed_on_with_its_type_and_runs_no_scripts() -> None:
    made = replies.answer(Row(http_status=502, error=BUSY, response=b"<script>", response_type="text/html; charset=utf-8"))

    assert (502, b"<script>", "text/html; charset=utf-8") == (made.status_code, made.data, made.content_type)
    assert ("default-src 'none'; sandbox", "nosniff", "false") == (
        made.headers["Content-Security-Policy"], made.headers["X-Content-Type-Options"], made.headers["x-should-retry"],
    )  # fmt: skip


def test_an_answer_that_cannot_be_read_is_a_bad_gateway_in_our_words() -> None:
    row = Row(http_status=200, error=own("upstream_invalid_response"), response=b"<html>", response_type="text/html")
    made = replies.answer(row)

    assert (502, {"error": own("upstream_invalid_response")}, "application/json") == (
        made.status_code, json.loads(made.data), made.content_type,
    )  # fmt: skip


@pytest.mark.parametrize("body", [None, b'{"detail": "no"}', b'{"error": "no"}', b'{"error": {"code": 1}}', b"[]", b"<html>"])
def test_an_error_that_no_sdk_could_read_is_in_the_envelope_where_json_has_begun(body: bytes | None) -> None:
    row = Row(http_status=418, error=BUSY, response=body)

    assert {"error": BUSY} == json.loads(replies.told_of(row))


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
def test_what_the_upstream_never_said_has_a_status_of_ours(row: Row, status: int, code: str | None) -> None:
    told = replies.failure(row)

    assert (status, code) == (told.status, told.error["code"])
    assert {"message", "type", "param", "code"} == set(told.error)
    assert told.error["message"]
