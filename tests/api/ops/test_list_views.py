"""The operator lists show waiting jobs, reasons, times and limits, and never requests, results or keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from models.access.audit_log import Act
from models.database import db
from models.jobs import workers
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys import keys, limits, listing, parking
from models.keys.keys import Key, Limits
from models.ops import limits_and_caps, pause
from models.ops.pause import Target
from models.platform import wire
from models.queue import enqueue, lane_maintenance
from models.queue.lane_maintenance import LaneMaintenance
from tests.api.document.test_openapi import validate
from tests.support.http_tools import Caller
from tests.support.queue_tools import ANSWER, credential_of, finish, known, put_back, query, start, store_limits, submit

pytestmark = pytest.mark.usefixtures("database")

TOKEN = "ops-token-of-this-test-0123456789"


@pytest.fixture
def operator(override: Callable[..., None]) -> Caller:
    override(ops_token=TOKEN)
    return Caller(token=TOKEN)


def seen(operator: Caller, path: str) -> list[dict[str, Any]]:
    """Reads a list and validates it against the document."""
    answer = operator.get(path)
    assert 200 == answer.status_code, answer.text
    operation = operator.get("/openapi.json").json["paths"][path.partition("?")[0]]["get"]
    named = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    validate(operator.get("/openapi.json").json, named.rpartition("/")[2], answer.json)
    return list(answer.json["data"])


def limit(who: Key, **limits: int) -> None:
    with db.begin() as session:
        store_limits(session, credential_of(session, who), Limits(**limits))


# Lanes


def test_lane_shows_waiting_running_and_oldest_wait(operator: Caller) -> None:
    who = known()
    first = submit(who)
    submit(who)
    submit(who)
    start(who, first)
    query("UPDATE job SET created_at = now() - interval '90 s' WHERE status = 'queued'")
    (lane,) = seen(operator, "/ops/lanes")

    assert ("m", 2, 1) == (lane["model"], lane["waiting"], lane["running"])
    assert 90 <= lane["oldest_wait_s"] < 190
    assert 3 == lane["arrivals_per_min"]
    assert 1 == lane["calls_per_min"]


def test_lane_shows_rest_of_each_limit(operator: Caller) -> None:
    who = known()
    limit(who, rpm=10, tpm=1_000, rpd=500, max_in_flight=4)
    for n in range(3):
        dispatch = start(who, job_id := submit(who))
        if n:
            finish(job_id, dispatch)
    (lane,) = seen(operator, "/ops/lanes")

    assert {"limit": 10, "used": 3, "left": 7} == lane["limits"]["rpm"]
    assert {"limit": 1_000, "used": 300, "left": 700} == lane["limits"]["tpm"]
    assert {"limit": 500, "used": 3, "left": 497} == lane["limits"]["rpd"]
    assert {"limit": 4, "used": 1, "left": 3} == lane["limits"]["max_in_flight"]
    assert {"limit": None, "used": 0, "left": None} == lane["limits"]["ipm"]


def test_unsent_attempt_uses_no_limit(operator: Caller) -> None:
    who = known()
    limit(who, rpm=10)
    put_back(job_id := submit(who), start(who, job_id), AttemptResult(Outcome.NOT_SENT))
    (lane,) = seen(operator, "/ops/lanes")

    assert 10 == lane["limits"]["rpm"]["left"]


def test_lane_shows_eta_of_last_job(operator: Caller) -> None:
    who = known()
    for _ in range(31):
        submit(who)
    query("UPDATE lane SET rpm = 60, wake_at = NULL")
    (lane,) = seen(operator, "/ops/lanes")

    assert 30 == lane["eta_last_s"]


@pytest.mark.parametrize("what", ["pool", "lane"])
def test_paused_lane_shows_reason(operator: Caller, what: str) -> None:
    submit(known())
    query(f"UPDATE {what} SET paused_at = now(), paused_reason = 'too dear'")
    (lane,) = seen(operator, "/ops/lanes")

    assert "paused" == lane["blocked_by"]
    assert "too dear" == lane["paused"]["reason"]
    assert lane["eta_last_s"] is None


def test_long_lane_shows_counted_number(operator: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.ops.lane_report.MAX_SCANNED", 3)
    who = known()
    for _ in range(8):
        submit(who, priority="low")
    oldest = query("SELECT id FROM job ORDER BY start_tag DESC, id DESC LIMIT 1")[0].id
    # The one that stands last came in 2024, by its id, which is where the count finds it.
    query("UPDATE job SET id = overlay(id::text PLACING '0190' FROM 1 FOR 4)::uuid WHERE id = :id", id=oldest)
    care = LaneMaintenance()
    with db.begin() as session:
        (row,) = session.execute(lane_maintenance._ACTIVE, {"after": 0, "limit": 2})
        care.refresh(session, row, now=0.0)
    (lane,) = seen(operator, "/ops/lanes")

    assert 8 == lane["waiting"]
    assert lane["oldest_wait_s"] > 365 * 86_400


def test_lanes_can_be_ordered_by_waiting_jobs(operator: Caller) -> None:
    for n, model in enumerate(("a", "b", "c")):
        submit(known(), model=model)
        query("UPDATE lane SET queued = :n WHERE model = :model", n=(5, 9, 7)[n], model=model)
    first = operator.get("/ops/lanes?order=waiting&limit=2").json
    rest = operator.get(f"/ops/lanes?order=waiting&limit=2&after={first['last_id']}").json

    assert ["b", "c"] == [lane["model"] for lane in first["data"]]
    assert ["a"] == [lane["model"] for lane in rest["data"]]
    assert (True, False) == (first["has_more"], rest["has_more"])


def test_lanes_filter_by_pool_model_and_busy(operator: Caller) -> None:
    who = known()
    submit(who, model="a")
    submit(who, model="b")
    submit(known("sk-other"), model="b")
    query("UPDATE lane SET wake_at = NULL WHERE model = 'a'")
    pool = query("SELECT name FROM pool WHERE id = :id", id=who.pool_id)[0].name

    assert 2 == len(seen(operator, f"/ops/lanes?pool={pool}"))
    assert 2 == len(seen(operator, "/ops/lanes?model=b"))
    assert 2 == len(seen(operator, "/ops/lanes?busy=true"))


# Flows


def test_flows_show_waiting_jobs_by_user(operator: Caller) -> None:
    who = known()
    for flow in ("anna", "anna", "bert"):
        submit(who, flow=flow)
    start(who, submit(who, flow="bert"))
    flows = seen(operator, "/ops/flows")

    assert [("anna", 2, 0), ("bert", 1, 1)] == [(one["user"], one["waiting"], one["running"]) for one in flows]
    assert all(one["is_whole"] for one in flows)
    assert ["bert"] == [one["user"] for one in seen(operator, f"/ops/flows?lane={flows[0]['lane']}&user=bert")]


def test_flows_are_listed_in_pages(operator: Caller) -> None:
    for n in range(5):
        submit(known(), flow=f"user{n}")
    first = operator.get("/ops/flows?limit=3").json
    rest = operator.get(f"/ops/flows?limit=3&after={first['last_id']}").json

    assert (3, True, 2, False) == (len(first["data"]), first["has_more"], len(rest["data"]), rest["has_more"])
    assert 5 == len({one["id"] for one in first["data"] + rest["data"]})


# Jobs


@pytest.fixture
def some(database: None) -> dict[str, Any]:
    """Jobs of two keys, waiting, running and failed."""
    one, two = known("sk-one"), known("sk-two")
    query("UPDATE key SET name = 'second' WHERE id = :id", id=two.id)
    made = {"waits": submit(one, flow="anna"), "runs": submit(one, flow="bert"), "fails": submit(two, flow="anna", model="n")}
    start(one, made["runs"])
    error = {"message": "canary in the message", "type": "invalid_request_error", "param": None, "code": "bad"}
    finish(
        made["fails"],
        start(two, made["fails"]),
        JobResult(Status.FAILED, http_status=400, error=error),
        AttemptResult(Outcome.REFUSED, 400),
    )
    return {**made, "key": one}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("", ["fails", "runs", "waits"]),
        ("?user=anna", ["fails", "waits"]),
        ("?status=failed", ["fails"]),
        ("?status=running", ["runs"]),
        ("?status=running&user=anna", []),
        ("?caller=second", ["fails"]),
        ("?caller=second&user=bert", []),
        ("?caller=unknown", []),
        ("?model=m", ["runs", "waits"]),
        ("?model=unknown", []),
        ("?since=2100-01-01T00:00:00Z", []),
        ("?since=1000000000&until=2100-01-01T00:00:00Z", ["fails", "runs", "waits"]),
        ("?until=1000000000", []),
    ],
)
def test_job_search_filters(operator: Caller, some: dict[str, Any], wanted: str, names: list[str]) -> None:
    found = seen(operator, f"/ops/jobs{wanted}")

    assert [wire.public_id(some[name]) for name in names] == [one["id"] for one in found]


def test_job_search_by_id_shows_queue_position(operator: Caller, some: dict[str, Any]) -> None:
    (found,) = seen(operator, f"/ops/jobs?id={wire.public_id(some['waits'])}")

    assert (1, "anna", some["key"].id) == (found["queue"]["position"], found["user"], found["key"]["id"])


def test_jobs_of_all_keys_are_listed_in_pages(operator: Caller, some: dict[str, Any]) -> None:
    first = operator.get("/ops/jobs?limit=2").json
    rest = operator.get(f"/ops/jobs?limit=2&after={first['last_id']}").json

    assert (2, True, 1, False) == (len(first["data"]), first["has_more"], len(rest["data"]), rest["has_more"])
    assert 3 == len({one["id"] for one in first["data"] + rest["data"]})


def test_long_search_continues_after_its_cursor(operator: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.ops.job_search.FIRST_SCAN", 2)
    monkeypatch.setattr("models.ops.job_search.MAX_SCANNED", 4)
    who = known()
    wanted = submit(who, flow="rare")
    for _ in range(9):
        submit(who)
    found, pages, after = [], 0, ""
    while True:
        page = operator.get(f"/ops/jobs?user=rare{after}").json
        found, pages = found + page["data"], pages + 1
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"

    assert [wire.public_id(wanted)] == [one["id"] for one in found]
    assert 3 == pages


def test_prompts_answers_and_secrets_are_never_listed(operator: Caller) -> None:
    who = known("sk-canary-secret")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "canary prompt"}]}).encode()
    done = submit(who, request=body, metadata={"note": "canary note"}, webhook_url="https://canary.example/hook?token=canary")
    finish(done, start(who, done), JobResult(Status.SUCCEEDED, 200, response=b'{"result": "canary answer"}'))
    error = {
        "message": "canary: Incorrect API key provided: sk-canary-secret",
        "type": "invalid_request_error",
        "code": "bad",
        "param": None,
    }
    failed = submit(who, request=body)
    finish(failed, start(who, failed), JobResult(Status.FAILED, 400, error=error), AttemptResult(Outcome.REFUSED, 400))
    submit(who, request=body)
    query("UPDATE credential SET base_url = 'https://user:canary@upstream.example/v1?key=canary'")
    result = "".join(operator.get(f"/ops/{what}").text for what in ("lanes", "pools", "keys", "flows", "jobs", "credentials", "workers"))

    assert "https://upstream.example/v1" in result
    assert "canary" not in result


# Pools, credentials and workers


def test_pool_shows_keys_and_waiting_jobs(operator: Caller) -> None:
    who = known()
    submit(who)
    start(who, submit(who))
    query("UPDATE lane SET queued = 1")
    (pool,) = seen(operator, "/ops/pools?kind=own")

    assert (1, 1, 0, 1, 1, 1) == tuple(pool[name] for name in ("keys", "credentials", "parked", "lanes", "waiting", "running"))
    assert [] == seen(operator, "/ops/pools?kind=issued")


def test_key_shows_pause_caps_and_waiting_jobs(operator: Caller) -> None:
    who, other = known(), known("sk-other")
    submit(who)
    submit(who)
    start(who, submit(who))
    with db.begin() as session:
        act, on = Act(reason="the bill"), Target("key", who.id)
        pause.apply(session, act, "pause", on)
        limits_and_caps.set_caps(session, act, on, {"rpm": 5}, endpoint="/v1/embeddings")
    one, two = seen(operator, "/ops/keys")

    assert (who.id, 2, 1, "own") == tuple(one[name] for name in ("id", "waiting", "running", "kind"))
    assert "the bill" == one["paused"]["reason"]
    assert [{"endpoint": "/v1/embeddings", "max_queued": None, "max_in_flight": None, "rpm": 5}] == one["caps"]
    assert (other.id, 0, 0, None, []) == tuple(two[name] for name in ("id", "waiting", "running", "paused", "caps"))


def test_keys_filter_by_name_and_kind(operator: Caller) -> None:
    known()
    with db.begin() as session:
        keys.create_pool(session, "team")
        made, token = keys.issue(session, name="shop", pool="team")

    assert [made.id] == [one["id"] for one in seen(operator, "/ops/keys?name=shop")]
    assert [made.id] == [one["id"] for one in seen(operator, "/ops/keys?kind=issued")]
    assert 1 == len(seen(operator, "/ops/keys?kind=own"))
    assert token not in operator.get("/ops/keys").text


def test_credential_shows_call_outcomes(operator: Caller) -> None:
    who = known()
    for finding in (None, None, AttemptResult(Outcome.FAILED, 500), AttemptResult(Outcome.THROTTLED, 429)):
        job_id = submit(who)
        dispatch = start(who, job_id)
        finish(job_id, dispatch) if finding is None else put_back(job_id, dispatch, finding)
    (credential,) = seen(operator, "/ops/credentials")
    (model,) = credential["models"]

    assert {"succeeded": 2, "failed": 1, "throttled": 1} == model["recent"]["outcomes"]
    assert 0.5 == model["recent"]["error_rate"]


def test_credential_shows_learned_limits_and_pause(operator: Caller) -> None:
    who = known()
    submit(who)
    limit(who, rpm=7)
    with db.begin() as session:
        number = credential_of(session, who)
        until = session.execute(enqueue.text("SELECT now() + interval '1 hour'")).scalar_one()
        limits.store_learned(session, number, "m", learned_rpm=99, learned_tpm=5_000, window_size=3.5, cooldown_until=until)
    (model,) = seen(operator, "/ops/credentials")[0]["models"]

    assert {"rpm": 99, "tpm": 5_000, "window": 3.5} == model["learned"]
    assert 7 == model["operator_limits"]["rpm"]
    assert (7, 5_000, 3.5) == tuple(model["limits"][name]["limit"] for name in ("rpm", "tpm", "max_in_flight"))
    assert until.timestamp() == pytest.approx(model["paused_until"], abs=0.01)


def test_parked_credentials_show_reason(operator: Caller) -> None:
    who = known()
    known("sk-other")
    with db.begin() as session:
        parking.park(session, credential_of(session, who), reason="401 from the upstream", error=None)
    (parked,) = seen(operator, "/ops/credentials?parked=true")

    assert "401 from the upstream" == parked["parked"]["reason"]
    assert 1 == len(seen(operator, "/ops/credentials?parked=false"))


def test_parked_model_is_shown_until_resumed(operator: Caller) -> None:
    caller = known("sk-partly")
    with db.begin() as session:
        number = credential_of(session, caller)
        keys.add_credential(session, pool_id=caller.pool_id, upstream_key="sk-other")
        assert parking.record_refusal(
            session, job_id=uuid4(), credential_id=number, model="m", endpoint="/v1/chat/completions", reason="404: no such model",
            refused_by=[],
        )  # fmt: skip
    (parked,) = seen(operator, "/ops/credentials?parked=true")
    (found,) = parked["parked_models"]
    assert [1] == [one["parked"] for one in seen(operator, "/ops/pools")]
    with db.begin() as session:
        assert [[f"{number}: m: 404: no such model"]] == [row.parked for row in listing.list_pools(session)]
    operator.post(f"/ops/credentials/{number}/resume", json={"reason": "access was granted"})

    assert ("m", "/v1/chat/completions", "404: no such model") == (found["model"], found["endpoint"], found["reason"])
    assert [] == seen(operator, "/ops/credentials?parked=true")


def test_worker_shows_jobs_and_last_report(operator: Caller) -> None:
    who = known()
    runs, ended = submit(who), submit(who)
    start(who, runs)
    finish(ended, start(who, ended), ANSWER)
    with db.begin() as session:
        workers.record_heartbeat(session, "worker0@here", slots=8, jobs=[runs, ended])
        workers.record_heartbeat(session, "worker1@here", slots=0)
        workers.record_heartbeat(session, "worker2@here", slots=8)
    query("UPDATE worker SET seen_at = now() - interval '1 hour' WHERE name = 'worker2@here'")
    shown = seen(operator, "/ops/workers")

    assert ["working", "draining", "silent"] == [one["state"] for one in shown]
    assert [wire.public_id(runs)] == [one["id"] for one in shown[0]["jobs"]]


# Refusals


@pytest.mark.parametrize(
    "path",
    ["lanes?limit=0", "lanes?after=x", "lanes?order=size", "lanes?busy=1", "flows?lane=x", "flows?user=%00", "jobs?status=lost",
     "jobs?since=yesterday", "jobs?since=2026-11-25", "jobs?caller=%00", "pools?kind=any", "keys?kind=any", "keys?name=%00",
     "credentials?after=99999999999999999999"],
)  # fmt: skip
def test_invalid_request_is_refused(operator: Caller, path: str) -> None:
    assert 400 == operator.get(f"/ops/{path}").status_code


@pytest.mark.parametrize("what", ["lanes", "pools", "keys", "flows", "jobs", "credentials", "workers"])
def test_lists_need_an_operator_token(operator: Caller, what: str) -> None:
    submit(known("sk-client"))

    assert 401 == operator.get(f"/ops/{what}", headers={"Authorization": ""}).status_code
    assert Caller(token="sk-client", app=operator.app).get(f"/ops/{what}").status_code in (401, 403)
