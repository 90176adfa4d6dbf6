"""Stored chat completions: inserted for requests with store: true, served to the key that stored them, deleted with their job."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import wire
from models.sessions import stored_completions
from tests.support.http_tools import Caller, error_of, run
from tests.support.queue_tools import clean_up, query, row
from workers.results import finish, spool
from workers.results.attempt_record import AttemptRecord

pytestmark = pytest.mark.usefixtures("database")

HELLO = {"role": "user", "content": "hello"}
COMPLETIONS = "/v1/chat/completions"


@pytest.fixture
def caller() -> Caller:
    return Caller()


def answered(caller: Caller, completion_id: Any, *, path: str = COMPLETIONS, answer_model: str = "m-2026", **body: Any) -> UUID:
    """Runs a job with this body to an answer with this id. Returns the job's id."""
    more = body.pop("nowserving", {})
    name = caller.submit(endpoint=path, body={"model": "m", "messages": [HELLO], **body}, **more)
    return answer_job(caller, name, completion_id, answer_model=answer_model)


def answer_job(caller: Caller, name: str, completion_id: Any, *, answer_model: str = "m") -> UUID:
    job_id, dispatch_id = wire.parse_id(name), run(caller, name)
    answer = {
        "id": completion_id, "object": "chat.completion", "created": 1, "model": answer_model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    }  # fmt: skip
    result = JobResult(Status.SUCCEEDED, http_status=200, response=json.dumps(answer).encode())
    store_as = stored_completions.metadata_to_store(row(job_id).endpoint, bytes(row(job_id).request))
    found = AttemptResult(Outcome.SUCCEEDED, 200, "req_up")
    finish.commit(AttemptRecord(job_id, dispatch_id, caller.key.id, row(job_id).lane_id, "m", found, result, store_as=store_as))
    return job_id


def store(caller: Caller, completion_id: str, **body: Any) -> UUID:
    return answered(caller, completion_id, store=True, **body)


def listed(caller: Caller, query_text: str = "") -> list[str]:
    return [each["id"] for each in caller.get(f"{COMPLETIONS}{query_text}").json["data"]]


def test_retrieve_returns_the_answer_with_metadata_and_request_members(caller: Caller) -> None:
    store(caller, "chatcmpl-1", metadata={"topic": "tea"}, temperature=0.5, user="ann")
    found = caller.get(f"{COMPLETIONS}/chatcmpl-1")

    assert 200 == found.status_code
    expected = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m-2026", "metadata": {"topic": "tea"}, "temperature": 0.5,
                "input_user": "ann", "top_p": None, "request_id": "req_up"}  # fmt: skip
    assert expected == {name: found.json[name] for name in expected}
    assert "hi" == found.json["choices"][0]["message"]["content"]


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions", "/v1/v1/chat/completions"])
def test_routes_exist_at_every_base_path(caller: Caller, path: str) -> None:
    store(caller, "chatcmpl-1")

    assert 200 == caller.get(f"{path}/chatcmpl-1").status_code
    assert 1 == len(caller.get(path).json["data"])


@pytest.mark.parametrize(
    "body", [{}, {"store": False}, {"store": None}, {"store": "true"}, {"user": '"store"'}, {"metadata": {"store": "1"}}]
)
def test_requests_without_store_true_are_not_stored(caller: Caller, body: dict[str, Any]) -> None:
    answered(caller, "chatcmpl-1", **body)

    assert ([], 404) == (listed(caller), caller.get(f"{COMPLETIONS}/chatcmpl-1").status_code)


@pytest.mark.parametrize("bad", [None, 7, "", "a/b", "ü", "a b", "x" * 257])
def test_answers_with_an_id_unfit_for_a_path_succeed_and_are_not_stored(caller: Caller, bad: object) -> None:
    job_id = answered(caller, bad, store=True)

    assert ("succeeded", []) == (row(job_id).status, listed(caller))


@pytest.mark.parametrize("bad", [{"a": 1}, {"a": "x" * 513}, {"x" * 65: "a"}, {str(n): "a" for n in range(17)}, ["a"], "a", None])
def test_invalid_request_metadata_is_dropped(caller: Caller, bad: object) -> None:
    store(caller, "chatcmpl-1", metadata=bad)

    assert {} == caller.get(f"{COMPLETIONS}/chatcmpl-1").json["metadata"]


def test_list_paginates_in_both_orders(caller: Caller) -> None:
    for number in range(5):
        store(caller, f"chatcmpl-{number}")
    first = caller.get(f"{COMPLETIONS}?limit=2").json

    assert ("list", "chatcmpl-0", "chatcmpl-1", True) == (first["object"], first["first_id"], first["last_id"], first["has_more"])
    assert ["chatcmpl-2", "chatcmpl-3"] == listed(caller, "?limit=2&after=chatcmpl-1")
    assert ["chatcmpl-4"] == listed(caller, "?limit=2&after=chatcmpl-3")
    assert ["chatcmpl-2", "chatcmpl-1", "chatcmpl-0"] == listed(caller, "?order=desc&after=chatcmpl-3")


def test_list_filters_by_model_and_metadata(caller: Caller) -> None:
    store(caller, "chatcmpl-1", metadata={"topic": "tea", "for": "ann"})
    store(caller, "chatcmpl-2", metadata={"topic": "tea"})
    store(caller, "chatcmpl-3", answer_model="m-2027")

    assert ["chatcmpl-1", "chatcmpl-2"] == listed(caller, "?metadata[topic]=tea")
    assert ["chatcmpl-1"] == listed(caller, "?metadata%5Btopic%5D=tea&metadata[for]=ann")
    assert [] == listed(caller, "?metadata[topic]=te")
    assert ["chatcmpl-3"] == listed(caller, "?model=m-2027")
    assert 3 == len(listed(caller, "?model=m"))


@pytest.mark.parametrize("bad", [
    "?limit=0", "?limit=101", "?order=up", "?after=chatcmpl-none", "?model=%00", "?metadata[a]=%00", "?metadata[%00]=a", "?metadata[]=a",
    f"?metadata[a]={'x' * 513}",
])  # fmt: skip
def test_list_rejects_invalid_parameters(caller: Caller, bad: str) -> None:
    assert 400 == caller.get(COMPLETIONS + bad).status_code


def test_update_replaces_all_metadata(caller: Caller) -> None:
    store(caller, "chatcmpl-1", metadata={"topic": "tea"})

    changed = caller.post(f"{COMPLETIONS}/chatcmpl-1", {"metadata": {"for": "bob"}})
    assert (200, {"for": "bob"}) == (changed.status_code, changed.json["metadata"])
    assert ["chatcmpl-1"] == listed(caller, "?metadata[for]=bob")
    assert {} == caller.post(f"{COMPLETIONS}/chatcmpl-1", {"metadata": None}).json["metadata"]


@pytest.mark.parametrize("bad", [{}, {"metadata": {"a": 1}}, {"metadata": {"a": "x" * 513}}, {"metadata": {"": "a"}}, {"store": False}])
def test_update_rejects_invalid_bodies(caller: Caller, bad: dict[str, Any]) -> None:
    store(caller, "chatcmpl-1")

    assert 400 == caller.post(f"{COMPLETIONS}/chatcmpl-1", bad).status_code


def test_delete_empties_the_job_and_keeps_its_usage(caller: Caller) -> None:
    job_id = store(caller, "chatcmpl-1", metadata={"topic": "tea"})
    deleted = caller.send("DELETE", f"{COMPLETIONS}/chatcmpl-1")

    assert {"object": "chat.completion.deleted", "id": "chatcmpl-1", "deleted": True} == deleted.json
    assert ([], 404) == (listed(caller), caller.get(f"{COMPLETIONS}/chatcmpl-1").status_code)
    assert (b"", None) == (bytes(row(job_id).request), row(job_id).response)
    assert ([], 1) == (query("SELECT FROM stored_answer"), len(query("SELECT FROM usage")))
    assert 404 == caller.send("DELETE", f"{COMPLETIONS}/chatcmpl-1").status_code


def test_messages_are_those_of_the_request(caller: Caller) -> None:
    parts = [{"type": "text", "text": "what is this?"}]
    sent = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts, "name": "ann"}, HELLO]
    store(caller, "chatcmpl-1", messages=sent)
    found = caller.get(f"{COMPLETIONS}/chatcmpl-1/messages").json

    assert ("list", "chatcmpl-1-0", "chatcmpl-1-2", False) == (found["object"], found["first_id"], found["last_id"], found["has_more"])
    assert {"id": "chatcmpl-1-0", "role": "system", "content": "be brief", "name": None, "content_parts": None} == found["data"][0]
    assert {"id": "chatcmpl-1-1", "role": "user", "content": None, "name": "ann", "content_parts": parts} == found["data"][1]
    page = caller.get(f"{COMPLETIONS}/chatcmpl-1/messages?limit=1&order=desc&after=chatcmpl-1-2").json
    assert (["chatcmpl-1-1"], True) == ([each["id"] for each in page["data"]], page["has_more"])
    assert 400 == caller.get(f"{COMPLETIONS}/chatcmpl-1/messages?after=chatcmpl-2-0").status_code


def test_completions_of_another_key_are_not_found(caller: Caller) -> None:
    store(caller, "chatcmpl-1")
    other = Caller("sk-two", app=caller.app)

    assert [] == listed(other)
    for method, path, more in (("GET", "", {}), ("GET", "/messages", {}), ("DELETE", "", {}), ("POST", "", {"json": {"metadata": {}}})):
        refused = other.send(method, f"{COMPLETIONS}/chatcmpl-1{path}", **more)
        assert (404, "invalid_request_error") == (refused.status_code, error_of(refused)["type"])
    assert ["chatcmpl-1"] == listed(caller)


@pytest.mark.parametrize("name", ["chatcmpl-2", "%00", "%F0%9F%98%80", "x" * 300])
def test_unknown_ids_are_not_found(caller: Caller, name: str) -> None:
    refused = caller.get(f"{COMPLETIONS}/{name}")

    assert (404, "completion_id") == (refused.status_code, error_of(refused)["param"])


def test_duplicate_ids_resolve_to_the_newest(caller: Caller) -> None:
    store(caller, "chatcmpl-1", metadata={"n": "1"})
    store(caller, "chatcmpl-1", metadata={"n": "2"})

    assert "2" == caller.get(f"{COMPLETIONS}/chatcmpl-1").json["metadata"]["n"]
    caller.send("DELETE", f"{COMPLETIONS}/chatcmpl-1")
    assert "1" == caller.get(f"{COMPLETIONS}/chatcmpl-1").json["metadata"]["n"]


def test_deleting_a_session_deletes_its_stored_completions(caller: Caller) -> None:
    store(caller, "chatcmpl-1", nowserving={"conversation": "tea"})
    assert ["chatcmpl-1"] == listed(caller)

    assert 200 == caller.send("DELETE", "/v1/sessions/tea").status_code
    assert [] == query("SELECT FROM stored_answer")


def test_retention_deletes_stored_completions_with_their_jobs(caller: Caller) -> None:
    store(caller, "chatcmpl-1")
    clean_up(later_days=40)

    assert [] == query("SELECT FROM stored_answer")


def test_spooled_endings_keep_their_metadata(caller: Caller) -> None:
    kept = AttemptRecord(UUID(int=1), UUID(int=2), 1, 1, "m", AttemptResult(Outcome.SUCCEEDED), store_as={"topic": "tea"})

    assert kept == spool.decode(spool.encode(kept))


@pytest.mark.parametrize("stream", [False, True])
def test_idempotency_key_of_a_deleted_completion_returns_a_conflict(caller: Caller, stream: bool) -> None:
    body, once = {"model": "m", "messages": [HELLO], "store": True, "stream": stream}, {"Idempotency-Key": "once"}
    name = caller.post(COMPLETIONS, body, headers={**once, "Prefer": "respond-async"}).json["id"]
    answer_job(caller, name, "chatcmpl-1")
    caller.send("DELETE", f"{COMPLETIONS}/chatcmpl-1")
    again = caller.post(COMPLETIONS, body, headers=once)

    assert 409 == again.status_code
    assert "answer_deleted" in again.text
