"""GET /v1/models from stored copies: the API in this process, the workers' refresh in a thread, the fake upstream."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from werkzeug.test import TestResponse

from api.openai import model_list_copies
from api.waiting import notify_queue
from models.database import db
from models.keys import model_lists as model_list
from models.keys.keys import Key
from tests.support.http_tools import Caller, error_of, stored, together
from tests.support.programs.in_process import InProcessStack, ask, mark_issued, pool_of
from tests.support.queue_tools import query
from tests.upstream.client import FakeUpstream, upstream
from tests.upstream.texts import MODELS as NAMES
from workers.runner.model_list_refresh import ModelListRefresher, refresh_next

__all__ = ["upstream"]
pytestmark = pytest.mark.usefixtures("database", "redis_client")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelListRefresher]:
    """Runs a worker's refresh thread; callers wait for it however slow the machine is."""
    monkeypatch.setattr(model_list_copies, "MAX_WAIT_S", 20.0)
    stop, lists = threading.Event(), ModelListRefresher()
    thread = threading.Thread(target=lists.listen, args=(stop,))
    thread.start()
    yield lists
    stop.set()
    notify_queue.refresh_model_lists()
    thread.join()


@pytest.fixture
def caller(upstream: FakeUpstream) -> Caller:
    return caller_of(upstream, "sk-lists")


def caller_of(upstream: FakeUpstream, *tokens: str) -> Caller:
    """Returns a caller whose pool has a credential for each of these upstream keys."""
    pool_of(upstream, *tokens)
    return Caller(tokens[0])


def ids(answer: TestResponse) -> list[str]:
    assert 200 == answer.status_code, answer.text
    return [model["id"] for model in answer.json["data"]]


def age(seconds: float) -> None:
    """Ages all copies and their last refreshes."""
    query("UPDATE model_list SET fetched_at = fetched_at - make_interval(secs => :s), tried_at = tried_at - make_interval(secs => :s)",
          s=seconds)  # fmt: skip


def copy_rows() -> list[Any]:
    return list(query("SELECT * FROM model_list ORDER BY credential_id, account"))


def list_of(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "from": "copy"} for name in names]}).encode()


def store_copies(caller: Key, *bodies: bytes) -> None:
    """Stores fresh copies for the pool's credentials, in their order."""
    credentials = query("SELECT id FROM credential WHERE pool_id = :id ORDER BY id", id=caller.pool_id)
    for credential, body in zip(credentials, bodies, strict=True):
        with db.begin() as session:
            model_list.request_refresh(session, [credential.id], account="")
            model_list.store_list(session, model_list.claim_refresh(session), body=body)


# The list


@pytest.mark.usefixtures("worker")
def test_first_list_has_upstream_bytes_and_makes_no_job(caller: Caller, upstream: FakeUpstream) -> None:
    answer = caller.get("/v1/models")

    assert list(NAMES) == ids(answer)
    assert {"kept": True} == answer.json["x_extra"]
    assert (0, "0") == (stored(), answer.headers["Age"])
    assert ["/v1/models"] == [call.path for call in upstream.calls()]


@pytest.mark.usefixtures("worker")
def test_concurrent_and_later_callers_cost_one_call(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behave("sk-lists", {"delay": 0.2})
    answers = together(*[lambda: caller.get("/v1/models")] * 6)
    answers.append(caller.get("/v1/models"))

    assert [list(NAMES)] * 7 == [ids(answer) for answer in answers]
    assert 1 == len(upstream.calls())


def test_stale_copy_is_returned_and_refreshed_once(caller: Caller, upstream: FakeUpstream) -> None:
    store_copies(caller.key, list_of("old"))
    age(400)
    answers = [caller.get("/v1/models") for _ in range(3)]

    assert [["old"]] * 3 == [ids(answer) for answer in answers]
    assert int(answers[0].headers["Age"]) >= 400
    assert [True, False] == [refresh_next(), refresh_next()]
    assert list(NAMES) == ids(caller.get("/v1/models"))
    assert 1 == len(upstream.calls())


def test_fresh_copy_is_not_refreshed(caller: Caller, override: Callable[..., None]) -> None:
    override(models_age_s=1_000)
    store_copies(caller.key, list_of("old"))
    age(900)

    assert ["old"] == ids(caller.get("/v1/models"))
    assert not refresh_next()


def test_copy_is_claimed_by_one_worker(caller: Caller) -> None:
    with db.begin() as session:
        model_list.request_refresh(session, [row.id for row in query("SELECT id FROM credential")], account="")
    with db.begin() as first:
        claimed = model_list.claim_refresh(first)
    with db.begin() as second:
        assert claimed is not None and model_list.claim_refresh(second) is None

    query("UPDATE model_list SET claimed_until = now() - interval '1 s'")
    with db.begin() as session:
        assert model_list.claim_refresh(session) is not None, "the claim of a dead worker expires"


@pytest.mark.usefixtures("worker")
def test_pool_lists_union_of_its_credentials(upstream: FakeUpstream) -> None:
    caller = caller_of(upstream, "sk-union-a", "sk-union-b")
    mark_issued(caller.key)
    store_copies(
        caller.key, list_of("a", "both"), json.dumps({"data": [{"id": "both", "from": "b"}, {"id": "b"}, {"id": 7}, None]}).encode()
    )
    answer = caller.get("/v1/models")

    assert ["a", "both", "b"] == ids(answer)
    assert "copy" == answer.json["data"][1]["from"]
    assert "b" == caller.get("/v1/models/b").json["id"]


@pytest.mark.usefixtures("worker")
def test_pool_with_one_refused_credential_lists_the_rest(upstream: FakeUpstream) -> None:
    caller = caller_of(upstream, "sk-half-a", "sk-half-b")
    mark_issued(caller.key)
    upstream.behave("sk-half-a", status=401)
    answer = caller.get("/v1/models")

    assert list(NAMES) == ids(answer)
    assert "401 invalid_api_key" == answer.headers["X-Nowserving-Refresh-Error"]


@pytest.mark.usefixtures("worker")
def test_named_account_has_its_own_copy(caller: Caller, upstream: FakeUpstream) -> None:
    caller.get("/v1/models")
    caller.get("/v1/models", headers={"OpenAI-Organization": "org-7", "X-Title": "not an account"})

    assert [None, "org-7"] == [call.headers.get("openai-organization") for call in upstream.calls()]
    assert 2 == len(copy_rows())


def test_accounts_beyond_limit_replace_the_oldest(caller: Caller) -> None:
    (credential,) = query("SELECT id FROM credential")
    for n in range(model_list.MAX_ACCOUNTS + 3):
        with db.begin() as session:
            model_list.request_refresh(session, [credential.id], account=model_list.account_name({"openai-project": f"p{n}"}))

    accounts = [json.loads(row.account)["openai-project"] for row in copy_rows()]
    assert model_list.MAX_ACCOUNTS == len(accounts)
    assert "p18" in accounts and "p0" not in accounts


def test_changed_credential_invalidates_copies(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_list_copies, "MAX_WAIT_S", 0.0)
    store_copies(caller.key, list_of("old"))
    query("UPDATE credential SET base_url = 'http://127.0.0.1:1/v1'")

    assert 503 == caller.get("/v1/models").status_code


def test_accounts_of_credential_are_refreshed_in_sequence(caller: Caller) -> None:
    (credential,) = query("SELECT id FROM credential")
    for name in ("a", "b"):
        with db.begin() as session:
            model_list.request_refresh(session, [credential.id], account=model_list.account_name({"openai-project": name}))
    with db.begin() as session:
        first = model_list.claim_refresh(session)
    with db.begin() as session:
        assert first is not None and model_list.claim_refresh(session) is None
        model_list.store_list(session, first, body=list_of("m"))
    with db.begin() as session:
        second = model_list.claim_refresh(session)

    assert second is not None and first.account != second.account


# Failures

REFUSALS: list[tuple[dict[str, object], str]] = [
    ({"status": 401}, "401 invalid_api_key"), ({"status": 429, "kind": "quota"}, "429 credit_balance_exhausted"), ({"status": 500}, "500"),
    ({"garbage": "html"}, "502 upstream_invalid_response"), ({"garbage": "truncated"}, "502 upstream_invalid_response"),
    ({"garbage": "binary"}, "502 upstream_invalid_response"), ({"reset": "before"}, "502 upstream_unreachable"),
    ({"redirect": True}, "307 upstream_error"),
]  # fmt: skip


@pytest.mark.parametrize(("behaviour", "error"), REFUSALS, ids=lambda param: str(param) if isinstance(param, str) else "")
def test_refused_refresh_keeps_copy_and_parks_nothing(
    caller: Caller, upstream: FakeUpstream, behaviour: dict[str, object], error: str
) -> None:
    store_copies(caller.key, list_of("old"))
    age(400)
    upstream.behave("sk-lists", **behaviour)
    caller.get("/v1/models")
    assert refresh_next()
    answer = caller.get("/v1/models")

    assert ["old"] == ids(answer)
    assert answer.headers["X-Nowserving-Refresh-Error"].startswith(error)
    assert not refresh_next(), "no second try within a few seconds"
    assert [(None, None)] == [(row.parked_at, row.paused_at) for row in query("SELECT parked_at, paused_at FROM credential")]
    assert [] == list(query("SELECT * FROM meter WHERE cooldown_until IS NOT NULL"))


def test_hanging_refresh_times_out_and_keeps_copy(caller: Caller, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.runner.model_list_refresh.TIMEOUT_S", 0.2)
    store_copies(caller.key, list_of("old"))
    age(400)
    upstream.behave("sk-lists", hang="before")
    caller.get("/v1/models")
    assert refresh_next()

    assert "502 upstream_timeout" == caller.get("/v1/models").headers["X-Nowserving-Refresh-Error"]


@pytest.mark.usefixtures("worker")
def test_own_key_refused_by_upstream_gets_401(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behave("sk-lists", status=401)
    answers = [caller.get("/v1/models"), caller.get("/v1/models/any")]

    assert [(401, "invalid_api_key")] * 2 == [(answer.status_code, error_of(answer)["code"]) for answer in answers]
    assert 1 == len(upstream.calls())


@pytest.mark.usefixtures("worker")
def test_refused_pool_credential_returns_503(caller: Caller, upstream: FakeUpstream) -> None:
    mark_issued(caller.key)
    upstream.behave("sk-lists", status=401)
    answer = caller.get("/v1/models")

    assert (503, "models_unavailable", "10") == (answer.status_code, error_of(answer)["code"], answer.headers["Retry-After"])
    assert "ask the operator" in error_of(answer)["message"]


@pytest.mark.usefixtures("worker")
def test_upstream_without_list_returns_404(caller: Caller, upstream: FakeUpstream) -> None:
    mark_issued(caller.key)
    upstream.behave("sk-lists", status=404)

    assert 404 == caller.get("/v1/models").status_code


def test_pool_without_credentials_returns_503(caller: Caller) -> None:
    query("UPDATE credential SET retired_at = now()")
    answer = caller.get("/v1/models")

    assert (503, "60") == (answer.status_code, answer.headers["Retry-After"])
    assert "Ask the operator" in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/any", "/openai/models"])
def test_missing_copy_without_worker_returns_retry_after(caller: Caller, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_list_copies, "MAX_WAIT_S", 0.1)
    answer = caller.get(path)

    assert (503, "models_unavailable") == (answer.status_code, error_of(answer)["code"])
    assert answer.headers["Retry-After"] and "x-should-retry" not in answer.headers
    assert 0 == stored()


@pytest.mark.usefixtures("worker")
def test_lost_wake_up_is_published_again(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(model_list_copies, "PUBLISH_AGAIN_S", 0.05)
    real = notify_queue.refresh_model_lists
    monkeypatch.setattr(notify_queue, "refresh_model_lists", lambda: (sent.append(1), len(sent) > 2 and real()))

    assert list(NAMES) == ids(caller.get("/v1/models"))
    assert len(sent) > 2


@pytest.mark.parametrize(
    "state", ["parked_at = now(), parked_reason = 'r'", "paused_at = now()"], ids=["parked", "paused"]
)  # fmt: skip
def test_copy_is_returned_while_credential_is_parked_or_paused(caller: Caller, state: str) -> None:
    store_copies(caller.key, list_of("old"))
    query(f"UPDATE credential SET {state}")
    age(400)

    assert ["old"] == ids(caller.get("/v1/models"))
    assert state.startswith("parked") == refresh_next(), "a paused credential is not called"


def test_model_list_does_not_queue(caller: Caller, upstream: FakeUpstream) -> None:
    for n in range(20):
        ask(caller.key, f"job {n}")
    store_copies(caller.key, list_of("old"))
    query("UPDATE pool SET draining_at = now()")

    assert ["old"] == ids(caller.get("/v1/models"))
    assert [] == upstream.calls()


# One model


@pytest.mark.usefixtures("worker")
def test_one_model_has_upstream_fields(caller: Caller) -> None:
    answer = caller.get(f"/v1/models/{NAMES[0]}")

    assert (200, NAMES[0], "fake") == (answer.status_code, answer.json["id"], answer.json["owned_by"])


@pytest.mark.parametrize("name", ["ft:m:acme/x", "a/b:free"])
def test_model_name_may_contain_slashes_and_colons(caller: Caller, name: str) -> None:
    store_copies(caller.key, list_of("other", name))

    assert name == caller.get(f"/v1/models/{name}").json["id"]


@pytest.mark.usefixtures("worker")
def test_model_missing_from_fresh_list_returns_404(caller: Caller, upstream: FakeUpstream) -> None:
    store_copies(caller.key, list_of("old"))
    answer = caller.get("/v1/models/new")

    assert (404, "model_not_found", "model") == (answer.status_code, error_of(answer)["code"], error_of(answer)["param"])
    assert [] == upstream.calls()


@pytest.mark.usefixtures("worker")
def test_model_missing_from_older_list_triggers_refresh(caller: Caller, upstream: FakeUpstream) -> None:
    store_copies(caller.key, list_of("old"))
    age(60)
    found, missing = caller.get(f"/v1/models/{NAMES[0]}"), caller.get("/v1/models/new")

    assert (200, 404, 1) == (found.status_code, missing.status_code, len(upstream.calls()))


def test_model_missing_from_stale_list_returns_503(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_list_copies, "MAX_WAIT_S", 0.05)
    store_copies(caller.key, list_of("old"))
    age(400)

    assert [200, 503] == [caller.get(f"/v1/models/{name}").status_code for name in ("old", "new")]


# A good list and a parked key


def test_successful_refresh_lets_parked_credential_be_probed(
    redis_client: redis.Redis, caller: Caller, upstream: FakeUpstream, override: Callable[..., None]
) -> None:
    override(probe_s=600)
    store_copies(caller.key, list_of("old"))
    age(400)
    mark_issued(caller.key)
    workshop = InProcessStack(redis_client, upstream)
    upstream.behave("sk-lists", {"status": 401})
    waiting = ask(caller.key, "waits")
    workshop.run(lambda: bool(query("SELECT FROM credential WHERE parked_at IS NOT NULL")))
    caller.get("/v1/models")
    assert refresh_next()
    workshop.run(lambda: "succeeded" == query("SELECT status FROM job WHERE id = :id", id=waiting)[0].status)

    assert [None] == [row.parked_at for row in query("SELECT parked_at FROM credential")]
