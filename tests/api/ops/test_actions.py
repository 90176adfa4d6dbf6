"""Operator actions take effect at once, are audited, and keep the queue positions of other jobs."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import redis

from models.access import operators
from models.database import db
from models.keys.keys import Key
from models.platform import wire
from tests.support.http_tools import CHAT, Caller, error_of, new_app
from tests.support.queue_tools import admit_all, at_once, finish, heads, known, query, row, start, submit
from tests.workers.pacer.test_step import PacerHarness, finish_all, make_lanes_due, report_slots, set_limits

pytestmark = pytest.mark.usefixtures("database")
CALLER = "sk-test"


@pytest.fixture
def stage(redis_client: redis.Redis) -> PacerHarness:
    report_slots(100)
    return PacerHarness(redis_client)


@pytest.fixture
def caller() -> Key:
    made = known(CALLER)
    set_limits(made, max_in_flight=1_000)
    return made


@pytest.fixture
def ops() -> Caller:
    with db.begin() as session:
        return Caller(operators.create(session, "day-shift", role="write"), new_app())


def pull(ops: Caller, path: str, want: int = 200, **result: Any) -> dict[str, Any]:
    made = ops.post(f"/ops/{path}", result)
    assert want == made.status_code, made.text
    return dict(made.json)


def lane_id(one: UUID) -> int:
    return int(row(one).lane_id)


def things(caller: Key, one: UUID) -> dict[str, str]:
    (credential,) = query("SELECT id FROM credential WHERE pool_id = :id", id=caller.pool_id)
    number = lane_id(one)
    return {
        "pools": str(caller.pool_id), "lanes": str(number), "keys": str(caller.id), "flows": f"{number}.{caller.id}:{row(one).flow}",
        "credentials": str(credential.id),
    }  # fmt: skip


def steps(stage: PacerHarness) -> list[UUID]:
    make_lanes_due()
    return stage.steps()


def blocked_by(one: UUID) -> str | None:
    queue = Caller(CALLER).get(f"/v1/jobs/{wire.public_id(one)}").json["queue"]
    return None if queue is None else queue["blocked_by"]


def log(ops: Caller) -> list[tuple[str, str]]:
    return [(one["action"], one["target"]) for one in reversed(ops.get("/ops/audit?limit=100").json["data"])]


# Pause, resume, drain


@pytest.mark.parametrize("kind", ["pools", "lanes", "keys", "flows", "credentials"])
def test_paused_target_starts_no_job_and_resumes_in_order(kind: str, caller: Key, stage: PacerHarness, ops: Caller) -> None:
    jobs = [submit(caller, flow="ann") for _ in range(5)]
    at = f"{kind}/{things(caller, jobs[0])[kind]}"
    paused = pull(ops, f"{at}/pause", reason="the bill")

    assert ("the bill", True) == (paused["paused_reason"], paused["paused_at"] is not None)
    assert [] == steps(stage)
    assert kind == "credentials" or "paused" == blocked_by(jobs[0])
    assert None is pull(ops, f"{at}/resume")["paused_at"]
    assert jobs == steps(stage)
    target = at.replace("s/", ":", 1)
    assert [("pause", target), ("resume", target)] == log(ops)


@pytest.mark.parametrize("name", ["{lane}:ann", "{lane}.{key}:ann"])
def test_pause_of_flow_without_key_is_resumed(name: str, caller: Key, stage: PacerHarness, ops: Caller) -> None:
    one = submit(caller, flow="ann")
    query("INSERT INTO cap (scope, owner_id, flow, endpoint, paused_at) VALUES ('flow', :lane, 'ann', '', now())", lane=lane_id(one))
    assert [] == steps(stage)

    pull(ops, f"flows/{name.format(lane=lane_id(one), key=caller.id)}/resume")
    assert [one] == steps(stage)
    assert [] == query("SELECT FROM cap")


def test_cap_of_flow_without_key_is_removed_for_one_key(caller: Key, ops: Caller) -> None:
    one, other = submit(caller, flow="ann"), Key(query(
        "INSERT INTO key (fingerprint, kind, pool_id) VALUES ('\\x01', 'issued', :pool) RETURNING id", pool=caller.pool_id
    )[0].id, caller.pool_id, "issued")  # fmt: skip
    submit(other, flow="ann")
    query("INSERT INTO cap (scope, owner_id, flow, endpoint, rpm) VALUES ('flow', :lane, 'ann', '', 5)", lane=lane_id(one))

    pull(ops, f"flows/{lane_id(one)}.{caller.id}:ann/caps", rpm=None)
    assert [(f"{other.id}:ann", other.id, 5)] == query("SELECT flow, key_id, rpm FROM cap")


@pytest.mark.parametrize("kind", ["keys", "flows"])
def test_others_pass_paused_key_or_user(kind: str, caller: Key, stage: PacerHarness, ops: Caller) -> None:
    mine = [submit(caller, flow="ann") for _ in range(200)]
    other = query(
        "INSERT INTO key (fingerprint, kind, pool_id) VALUES ('\\x01', 'issued', :pool) RETURNING id", pool=caller.pool_id
    )[0].id  # fmt: skip
    pull(ops, f"{kind}/{things(caller, mine[0])[kind]}/pause")
    theirs = [submit(Key(other, caller.pool_id, "issued"), flow="bob") for _ in range(3)]

    assert theirs == steps(stage)
    assert {"queued"} == {row(one).status for one in mine}


def test_pause_lets_running_job_end(caller: Key, ops: Caller) -> None:
    one = submit(caller)
    dispatch_id = start(caller, one)
    pull(ops, f"pools/{caller.pool_id}/pause")

    assert finish(one, dispatch_id)


@pytest.mark.parametrize("kind", ["pools", "lanes", "keys", "flows"])
def test_drain_refuses_new_jobs_and_serves_waiting_jobs(kind: str, caller: Key, stage: PacerHarness, ops: Caller) -> None:
    jobs = [submit(caller, flow="ann") for _ in range(3)]
    at = f"{kind}/{things(caller, jobs[0])[kind]}"
    pull(ops, f"{at}/drain")
    refused = Caller(CALLER).post("/v1/jobs", {**CHAT, "user": "ann"})

    assert (429, "draining", "60") == (refused.status_code, error_of(refused)["code"], refused.headers["Retry-After"])
    assert jobs == steps(stage)
    pull(ops, f"{at}/resume")
    assert [submit(caller, flow="ann")] == steps(stage)


@pytest.mark.parametrize("path", ["pools/999999/pause", "lanes/x/pause", "flows/7/pause", "flows/999999:ann/pause", "keys/-1/drain"])
def test_unknown_target_cannot_be_paused(path: str, ops: Caller) -> None:
    pull(ops, path, want=404)
    assert [] == log(ops)


def test_read_token_and_caller_key_change_nothing(caller: Key) -> None:
    with db.begin() as session:
        reader = Caller(operators.create(session, "reader", role="read"))
    for who, status in ((reader, 403), (Caller(CALLER), 401)):
        assert status == who.post(f"/ops/pools/{caller.pool_id}/pause", {}).status_code
    assert None is query("SELECT paused_at FROM pool WHERE id = :id", id=caller.pool_id)[0].paused_at
    assert 0 == query("SELECT count(*) AS n FROM audit")[0].n


# Caps


@pytest.mark.parametrize("kind", ["keys", "flows"])
def test_in_flight_cap_lets_others_pass_until_slot_is_free(kind: str, caller: Key, stage: PacerHarness, ops: Caller) -> None:
    mine = [submit(caller, flow="ann") for _ in range(5)]
    pull(ops, f"{kind}/{things(caller, mine[0])[kind]}/caps", max_in_flight=2)

    assert mine[:2] == steps(stage)
    assert f"{kind[:-1]}_max_in_flight" == blocked_by(mine[2])
    assert [] == steps(stage)
    if kind == "flows":
        assert [submit(caller, flow="bob")] == steps(stage)
    finish_all()
    assert mine[2:4] == steps(stage)


def test_rpm_cap_holds_over_the_minute(caller: Key, stage: PacerHarness, ops: Caller) -> None:
    mine = [submit(caller, flow="ann") for _ in range(4)]
    pull(ops, f"keys/{caller.id}/caps", rpm=2)
    assert mine[:2] == steps(stage)
    finish_all()

    assert [] == steps(stage)
    assert "key_rpm" == blocked_by(mine[2])
    query("UPDATE cap_use SET at = at - interval '61 s'")
    assert mine[2:] == steps(stage)


def test_cap_applies_to_one_endpoint(caller: Key, stage: PacerHarness, ops: Caller) -> None:
    pull(ops, f"keys/{caller.id}/caps", endpoint="/v1/embeddings", max_in_flight=1)
    capped = [submit(caller, endpoint="/v1/embeddings") for _ in range(3)]
    free = [submit(caller) for _ in range(2)]

    assert {capped[0], *free} == set(steps(stage))


def test_jobs_above_max_queued_are_refused(caller: Key, ops: Caller) -> None:
    pull(ops, f"keys/{caller.id}/caps", max_queued=2)
    client = Caller(CALLER)
    client.submit()
    client.submit()
    refused = client.post("/v1/jobs", CHAT)

    assert (429, "key_max_queued") == (refused.status_code, error_of(refused)["code"])
    assert 2 == query("SELECT count(*) AS n FROM job")[0].n


def test_two_pacers_never_exceed_cap(caller: Key, stage: PacerHarness, ops: Caller, redis_client: redis.Redis) -> None:
    other = PacerHarness(redis_client)
    for model in ("m", "p", "q", "r"):
        for _ in range(5):
            submit(caller, model=model, flow="ann")
    pull(ops, f"keys/{caller.id}/caps", max_in_flight=3)
    for _ in range(3):  # the first finds that the limiter has to be rebuilt
        make_lanes_due()
        at_once(stage.steps, other.steps)

    assert 3 == query("SELECT count(*) AS n FROM job WHERE status = 'admitted'")[0].n


def test_cap_without_values_is_deleted(caller: Key, ops: Caller) -> None:
    pull(ops, f"keys/{caller.id}/caps", rpm=2)
    pull(ops, f"keys/{caller.id}/caps", rpm=None)

    assert 0 == query("SELECT count(*) AS n FROM cap")[0].n


# Credentials


def test_limit_change_is_audited_and_keeps_other_limits(caller: Key, ops: Caller) -> None:
    one = things(caller, submit(caller))["credentials"]
    pull(ops, f"credentials/{one}/limits", rpm=100, tpm=5_000)
    made = pull(ops, f"credentials/{one}/limits", rpm=7)

    assert (7, 5_000, 1_000) == (made["rpm"], made["tpm"], made["max_in_flight"])
    entry = ops.get("/ops/audit").json["data"][0]
    assert (100, 7, "day-shift") == (entry["before"]["rpm"], entry["after"]["rpm"], entry["operator"])
    assert entry["request_id"].startswith("req_")


def test_added_credential_replaces_retired_one(caller: Key, stage: PacerHarness, ops: Caller) -> None:
    first = things(caller, submit(caller))["credentials"]
    second = pull(ops, f"pools/{caller.pool_id}/credentials", want=201, key="sk-second", base_url="https://example.com/v1", weight=2.5)
    pull(ops, f"credentials/{first}/retire")

    assert 1 == len(steps(stage))
    assert int(second["id"]) == query("SELECT credential_id FROM job")[0].credential_id
    assert "sk-second" not in ops.get("/ops/audit").text


def test_azure_credential_shows_its_api_version(caller: Key, ops: Caller) -> None:
    address = "https://house.openai.azure.com"
    made = pull(
        ops, f"pools/{caller.pool_id}/credentials", want=201, key="azure-key", kind="azure", base_url=f"{address}/openai/v1/",
        api_version="2024-10-21",
    )  # fmt: skip
    changed = pull(ops, f"credentials/{made['id']}/change", api_version="")
    seen = {one["id"]: one for one in ops.get("/ops/credentials").json["data"]}[int(made["id"])]

    assert ("azure", address, "2024-10-21") == (made["kind"], made["base_url"], made["api_version"])
    assert ("azure", address, None) == (changed["kind"], changed["base_url"], changed["api_version"])
    assert ("azure", address, None) == (seen["kind"], seen["base_url"], seen["api_version"])


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"base_url": "https://api.openai.com/v1/chat/completions"}, "base_url"),
        ({"base_url": "api.openai.com"}, "base_url"),
        ({"kind": "azure"}, "base_url"),
        ({"kind": "azure", "base_url": "https://house.openai.azure.com/openai/deployments/gpt"}, "base_url"),
        ({"kind": "azure", "base_url": "https://house.openai.azure.com?api-version=1"}, "base_url"),
        ({"kind": "else"}, "kind"),
        ({"api_version": "2024-10-21"}, "api_version"),
        ({"kind": "azure", "base_url": "https://house.openai.azure.com", "api_version": "1&x=2"}, "api_version"),
    ],
)
def test_credential_with_invalid_address_is_refused(caller: Key, ops: Caller, given: dict[str, str], param: str) -> None:
    refused = ops.post(f"/ops/pools/{caller.pool_id}/credentials", {"key": "sk-x", **given})

    assert (400, param) == (refused.status_code, refused.json["error"]["param"])


def test_heavier_credential_is_tried_first(caller: Key, stage: PacerHarness, ops: Caller) -> None:
    heavy = int(pull(ops, f"pools/{caller.pool_id}/credentials", want=201, key="sk-second", weight=50)["id"])
    set_limits(caller, credential_id=heavy, max_in_flight=10, rpm=6_000)
    for _ in range(4):
        submit(caller)
        steps(stage)

    assert [heavy] * 4 == [one.credential_id for one in query("SELECT credential_id FROM job WHERE status = 'admitted'")]


# Who stands where


def test_boosted_job_is_admitted_first(caller: Key, ops: Caller) -> None:
    jobs = [submit(caller, flow="ann") for _ in range(4)]
    admit_all(caller, most=1)
    pull(ops, f"jobs/{wire.public_id(jobs[3])}/boost")

    assert [jobs[3], jobs[1], jobs[2]] == heads()


def test_weight_applies_to_waiting_jobs(caller: Key, ops: Caller) -> None:
    ann, bob = ([submit(caller, flow=name) for _ in range(9)] for name in ("ann", "bob"))
    pull(ops, f"flows/{lane_id(ann[0])}:bob/weight", weight=3)
    first = heads()[:8]

    assert 6 == sum(one in bob for one in first)
    assert [one for one in heads() if one in bob] == bob
    more = submit(caller, flow="bob")
    assert row(more).start_tag == pytest.approx(row(bob[-1]).start_tag + row(bob[-1]).share)


def test_high_priority_job_moves_its_flow_up(caller: Key, ops: Caller) -> None:
    jobs = [submit(caller, flow="ann") for _ in range(3)]
    before = [row(one).start_tag for one in jobs]
    pull(ops, f"jobs/{wire.public_id(jobs[0])}/priority", priority="high")

    assert "high" == row(jobs[0]).priority
    assert before[0] == row(jobs[0]).start_tag
    assert (before[1] - before[0]) / 4 == pytest.approx(row(jobs[1]).start_tag - row(jobs[0]).start_tag)
    assert jobs == heads()


def test_running_job_cannot_be_moved(caller: Key, ops: Caller) -> None:
    one = submit(caller)
    start(caller, one)
    pull(ops, f"jobs/{wire.public_id(one)}/boost", want=409)


# Many at once


def test_purge_cancels_jobs_of_one_user_only(caller: Key, ops: Caller) -> None:
    mine = [submit(caller, flow="ann") for _ in range(120)]
    theirs = [submit(caller, flow="bob") for _ in range(3)]
    running = submit(caller, flow="ann")
    start(caller, running)

    assert 120 == pull(ops, "jobs/purge", user="ann")["cancelled"]
    assert {"cancelled"} == {row(one).status for one in mine}
    assert ["queued"] * 3 + ["running"] == [row(one).status for one in [*theirs, running]]
    assert {("purge", "jobs")} == set(log(ops))
    pull(ops, "jobs/purge", user="ann", status="running")
    assert row(running).cancel_requested


def test_purge_without_filter_is_refused(caller: Key, ops: Caller) -> None:
    one = submit(caller)
    assert 400 == ops.post("/ops/jobs/purge", {}).status_code
    assert "queued" == row(one).status


def test_failed_jobs_are_retried_once(caller: Key, ops: Caller) -> None:
    jobs = [submit(caller) for _ in range(3)]
    query("UPDATE job SET status = 'failed', ended_at = now() WHERE id = ANY(:ids)", ids=jobs[:2])

    assert 2 == ops.post("/ops/jobs/retry", {}).json["retried"]
    assert 0 == ops.post("/ops/jobs/retry", {}).json["retried"]
    again = query("SELECT retry_of, key_id FROM job WHERE retry_of IS NOT NULL ORDER BY id")
    assert [(one, caller.id) for one in jobs[:2]] == [(one.retry_of, one.key_id) for one in again]


def test_operator_cancels_and_retries_job_of_caller(caller: Key, ops: Caller) -> None:
    name = wire.public_id(submit(caller))
    assert "cancelled" == pull(ops, f"jobs/{name}/cancel")["status"]
    made = pull(ops, f"jobs/{name}/retry", want=202)

    assert (name, "queued") == (made["retry_of"], made["status"])
    assert ["cancel", "retry"] == [action for action, _ in log(ops)]


def test_rebuild_recounts_lane(caller: Key, ops: Caller) -> None:
    one = submit(caller)
    query("UPDATE lane SET queued = 77")
    query("UPDATE key_share SET queued = 77, low_water = 1e9")
    pull(ops, f"lanes/{lane_id(one)}/rebuild", want=202)

    assert [one] == heads()
    assert 1 == query("SELECT queued FROM lane")[0].queued


@pytest.mark.parametrize(
    ("path", "result", "param"),
    [
        ("keys/1/caps", {"rpm": 0}, "rpm"), ("credentials/1/limits", {"rpm": "many"}, "rpm"),
        ("credentials/1/limits", {"speed": 1}, "speed"),
        ("flows/1:a/weight", {"weight": 0}, "weight"), ("pools/1/credentials", {"key": ""}, "key"),
        ("pools/1/credentials", {"key": "sk", "base_url": "file:///etc"}, "base_url"), ("pools/1/pause", {"reason": 5}, "reason"),
    ],
)  # fmt: skip
def test_invalid_request_is_refused(path: str, result: dict[str, Any], param: str, ops: Caller) -> None:
    refused = ops.post(f"/ops/{path}", result)

    assert (400, param) == (refused.status_code, error_of(refused)["param"])


def test_actions_accept_missing_body(caller: Key, ops: Caller) -> None:
    assert 200 == ops.post(f"/ops/pools/{caller.pool_id}/pause").status_code
