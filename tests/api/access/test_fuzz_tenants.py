"""Routes with an id: a foreign, a deleted and an unknown id get equal responses.

Status, body and headers are equal. The SQL statements are the same too, so the time gives no hint.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
import redis
from sqlalchemy import TextClause
from werkzeug.test import TestResponse

from api.document import openapi
from models.database import db
from models.platform import ids, wire
from models.queue import submission
from models.webhooks import delivery_log, endpoints
from tests.support.http_tools import CHAT, Caller, end

PER_ANSWER = {"X-Request-Id", "Date"}
# Ids that belong to no key: models are the upstream's; a signed link opens an artifact.
NOT_OURS = {"retrieveModel", "getArtifact"}
# Named by the upstream's ids: tests/api/stored/test_views.py has their isolation.
STORED = {"getChatCompletion", "updateChatCompletion", "deleteChatCompletion", "listChatCompletionMessages"}
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in openapi.document()["paths"].items()
    for method, operation in methods.items()
    if operation["security"] == [{"bearer": []}]
}
WITH_ID = [name for name, (_, path, _) in OPERATIONS.items() if "{" in path and name not in NOT_OURS | STORED]
WITH_CURSOR = [
    name for name, (*_, operation) in OPERATIONS.items()
    if name not in STORED and any(one["name"] == "after" for one in operation["parameters"])
]  # fmt: skip
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n--b--\r\n'
KINDS = {"/v1/jobs/": "job", "/v1/sessions/": "session", "/v1/webhook_endpoints/": "endpoint"}


@dataclass
class Things:
    """One id of each kind. delivery: to the endpoint; of_job: to the job's own address."""

    job: str
    session: str
    endpoint: str
    delivery: str
    of_job: str
    message: str

    def of(self, path: str) -> dict[str, str]:
        """The values of the parameters in this path."""
        kind = next((kind for start, kind in KINDS.items() if path.startswith(start)), "job")
        return {"id": getattr(self, kind), "delivery": self.of_job if kind == "job" else self.delivery, "message_name": self.message}


@dataclass
class Asked:
    """The SQL statements that this thread executed."""

    statements: list[str] = field(default_factory=list)


@pytest.fixture
def owner(database: None, redis_client: redis.Redis) -> Caller:
    return Caller("sk-owner")


@pytest.fixture
def stranger(owner: Caller) -> Caller:
    """A caller with another key, which the API has cached already."""
    other = Caller("sk-stranger", owner.app)
    assert 200 == other.get("/v1/jobs").status_code
    return other


def make_things(caller: Caller, session: str) -> Things:
    """Creates one row of each kind for this caller."""
    hook = {"name": "x", "url": "https://example.com/hook", "event_types": ["job.succeeded"]}
    endpoint = caller.post("/v1/webhook_endpoints", hook).json["id"]
    assert 201 == caller.post("/v1/sessions", {"id": session}).status_code
    job = caller.submit(webhook_url="https://example.com/own", conversation=session)
    end(caller, job)
    (delivery,) = caller.get(f"/v1/webhook_endpoints/{endpoint}/deliveries").json["data"]
    of_job = caller.get(f"/v1/jobs/{job}/deliveries").json["data"][0]
    message = caller.get(f"/v1/sessions/{session}/messages").json["data"][0]
    return Things(job, session, endpoint, delivery["id"], of_job["id"], message["id"])


def never() -> Things:
    """Well-formed ids of rows that do not exist."""
    delivery = ids.format_id(delivery_log.PREFIX, submission.new_job_id())
    return Things(
        wire.public_id(submission.new_job_id()),
        f"s-{uuid4()}",
        ids.format_id(endpoints.PREFIX, submission.new_job_id()),
        delivery,
        delivery,
        "msg_1",
    )


def malformed() -> Things:
    return Things("job_x", "x" * 5_000, "whe_x", "wh_x", "wh_x", "msg_1")


def call(caller: Caller, name: str, given: Mapping[str, str], **more: Any) -> TestResponse:
    """Calls the operation with these path parameters and a valid body."""
    method, path, operation = OPERATIONS[name]
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        more |= {"data": json.dumps(content["application/json"].get("example", {})), "content_type": "application/json"}
    elif content:
        more |= {"data": FILE, "content_type": "multipart/form-data; boundary=b"}
    return caller.send(method, re.sub(r"{(\w+)}", lambda found: given[found[1]], path), **more)


def seen_by_caller(answer: TestResponse) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All parts of the response that a caller can compare."""
    return answer.status_code, answer.data, sorted((key, value) for key, value in answer.headers if key not in PER_ANSWER)


@contextmanager
def watched() -> Iterator[Asked]:
    asked, here, execute = Asked(), threading.get_ident(), db.Transaction.execute

    def note(session: db.Transaction, statement: TextClause, *parameters: Any) -> db.Rows:
        if threading.get_ident() == here:
            asked.statements.append(statement.text)
        return execute(session, statement, *parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db.Transaction, "execute", note)
        yield asked


def test_every_route_that_takes_an_id_is_asked() -> None:
    assert 20 <= len(WITH_ID)
    assert all(OPERATIONS[name][1].startswith(tuple(KINDS)) for name in WITH_ID)


def test_foreign_ids_look_like_unknown_ids(owner: Caller, stranger: Caller) -> None:
    foreign, nothing = make_things(owner, "tea"), never()
    for name in WITH_ID:
        path = OPERATIONS[name][1]
        call(stranger, name, never().of(path))  # fills the caches, so both calls below execute the same statements
        answers, asked = [], []
        for things in (foreign, nothing):
            with watched() as seen:
                answers.append(call(stranger, name, things.of(path)))
            asked.append(seen.statements)

        assert 404 == answers[0].status_code, name
        assert seen_by_caller(answers[0]) == seen_by_caller(answers[1]), name
        assert asked[0] and asked[0] == asked[1], name
        assert seen_by_caller(answers[0]) == seen_by_caller(call(stranger, name, malformed().of(path))), name

    for name in ("getJob", "getSession", "getWebhookEndpoint", "listDeliveries", "listJobDeliveries"):
        assert 200 == call(owner, name, foreign.of(OPERATIONS[name][1])).status_code, "the owner's rows are there, unchanged"


def test_deleted_ids_look_like_unknown_ids(owner: Caller) -> None:
    gone, nothing = make_things(owner, "tea"), never()
    assert 200 == call(owner, "deleteSession", {"id": gone.session}).status_code
    assert 200 == call(owner, "deleteWebhookEndpoint", {"id": gone.endpoint}).status_code

    for name in [name for name in WITH_ID if not OPERATIONS[name][1].startswith("/v1/jobs/")]:
        path = OPERATIONS[name][1]
        answers = [call(owner, name, things.of(path)) for things in (gone, nothing)]

        assert 404 == answers[0].status_code, name
        assert seen_by_caller(answers[0]) == seen_by_caller(answers[1]), name


@pytest.mark.parametrize("name", ["redeliver", "redeliverOfJob"])
def test_delivery_is_found_only_below_its_own_endpoint_or_job(owner: Caller, stranger: Caller, name: str) -> None:
    theirs, mine, nothing = make_things(owner, "tea"), make_things(stranger, "tea"), never()
    path = OPERATIONS[name][1]

    answers = [call(stranger, name, {**mine.of(path), "delivery": things.of(path)["delivery"]}) for things in (theirs, nothing)]

    assert 404 == answers[0].status_code
    assert seen_by_caller(answers[0]) == seen_by_caller(answers[1])


@pytest.mark.parametrize("name", WITH_CURSOR)
def test_foreign_cursor_looks_like_an_unknown_cursor(owner: Caller, stranger: Caller, name: str) -> None:
    mine, foreign, nothing = make_things(stranger, "coffee"), make_things(owner, "tea"), never()
    path = OPERATIONS[name][1]
    kind = {"listJobs": "job", "listMessages": "job", "listSessions": "session", "listWebhookEndpoints": "endpoint"}.get(name, "delivery")
    given = mine.of(path) if "{" in path else {}

    answers = [call(stranger, name, given, query_string={"after": getattr(things, kind)}) for things in (foreign, nothing)]

    assert seen_by_caller(answers[0]) == seen_by_caller(answers[1])


@pytest.mark.parametrize("name", OPERATIONS)
def test_balance_requires_a_key(owner: Caller, name: str) -> None:
    things = [never(), malformed()]
    path = OPERATIONS[name][1]
    givens = [each.of(path) if name in WITH_ID else {"id": "x", "model": "m"} for each in things]

    answers = [call(owner, name, given, headers={"Authorization": value}) for given in givens for value in ("", "Bearer ", "Basic eDp4")]

    assert {401} == {answer.status_code for answer in answers}
    assert 1 == len({answer.data for answer in answers})


def test_owner_gets_the_answer(owner: Caller) -> None:
    """The bodies sent above are ones that the routes take: it is the id that is refused."""
    things = make_things(owner, "tea")

    for name in ("updateSession", "attachFiles", "updateWebhookEndpoint", "rotateWebhookSecret", "redeliverSince"):
        answer = call(owner, name, things.of(OPERATIONS[name][1]))
        assert answer.status_code in (200, 201, 202), f"{name}: {answer.text}"
    assert 202 == owner.post("/v1/jobs", CHAT).status_code
