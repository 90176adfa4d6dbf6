"""Isolation of jobs by key: foreign, unknown and malformed ids get the same response."""

from __future__ import annotations

import pytest

from models.platform import wire
from models.queue import submission
from tests.support.http_tools import Caller, end, error_of

pytestmark = pytest.mark.usefixtures("database")

ROUTES = (("GET", ""), ("GET", "?wait=1"), ("GET", "/events"), ("GET", "/events?last_event_id=9"), ("POST", "/cancel"), ("POST", "/retry"))
STRANGE = (
    "job_",
    "job_xyz",
    "x",
    "job_" + "g" * 32,
    "job_" + "0" * 31,
    "JOB_" + "0" * 32,
    "job_" + "\u0660" * 32,
    "%00",
    "job_" + "0" * 5000,
    "..",
)


@pytest.fixture
def owner() -> Caller:
    return Caller("sk-owner")


@pytest.fixture
def stranger(owner: Caller) -> Caller:
    return Caller("sk-stranger", owner.app)


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_a_strangers_job_is_not_there(owner: Caller, stranger: Caller, method: str, route: str) -> None:
    waiting, ended = owner.submit(), owner.submit()
    end(owner, waiting)
    never = wire.public_id(submission.new_job_id())

    answers = [stranger.send(method, f"/v1/jobs/{name}{route}") for name in (waiting, ended, never, *STRANGE[:-1])]

    assert {404} == {answer.status_code for answer in answers}
    assert 1 == len({answer.data for answer in answers})
    assert "not_found" == error_of(answers[0])["code"]


def test_a_list_holds_only_ones_own(owner: Caller, stranger: Caller) -> None:
    name = owner.submit()

    assert [] == stranger.get("/v1/jobs").json["data"]
    assert [] == stranger.get(f"/v1/jobs?after={wire.public_id(submission.new_job_id())}").json["data"]
    assert [name] == [job["id"] for job in owner.get("/v1/jobs").json["data"]]


def test_a_strange_cursor_is_no_other_than_a_strange_id(owner: Caller) -> None:
    assert {404} == {owner.get("/v1/jobs", query_string={"after": name}).status_code for name in STRANGE}


def test_a_cancel_by_a_stranger_changes_nothing(owner: Caller, stranger: Caller) -> None:
    name = owner.submit()
    stranger.post(f"/v1/jobs/{name}/cancel")

    assert ("queued", False) == tuple(owner.get(f"/v1/jobs/{name}").json[field] for field in ("status", "cancel_requested"))


def test_a_conversation_of_the_same_name_is_another_one(owner: Caller, stranger: Caller) -> None:
    owner.submit(conversation="c")
    name = stranger.submit(conversation="c")

    assert None is stranger.get(f"/v1/jobs/{name}").json["queue"]["blocked_by"]
