"""Prometheus metrics: waiting jobs by reason, under few labels. Dashboard and alerts query only metrics that exist."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPConnection

import pytest
import redis
from prometheus_client import REGISTRY, generate_latest

from deploy.local.server_process import free_port
from models.access import operators
from models.access.wrong_tokens import WrongTokens
from models.database import db
from models.jobs import workers
from models.telemetry import metrics
from tests.deploy import monitoring
from tests.support.http_tools import Caller
from tests.support.queue_tools import admit_all
from workers.observe import counters, metrics_server
from workers.pacer.gauges import Gauges

pytestmark = pytest.mark.usefixtures("database")


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def look() -> None:
    Gauges().refresh(1.0)


def test_the_line_is_counted_by_model_and_all_own_keys_are_one(redis_client: redis.Redis) -> None:
    one, two = Caller("sk-one"), Caller("sk-two")
    for caller in (one, two, two):
        caller.submit()
    look()

    assert 3 == value("nowserving_waiting_jobs", pool="own", model="m")
    assert 0 < (value("nowserving_oldest_wait_seconds", pool="own", model="m") or 0) < 600


def test_a_line_that_is_served_leaves_the_gauges(redis_client: redis.Redis) -> None:
    caller = Caller()
    caller.submit()
    look()
    admit_all(caller.key, most=10)
    look()

    assert (0, 1) == tuple(value(f"nowserving_{what}_jobs", pool="own", model="m") for what in ("waiting", "running"))


def test_slots_and_servers_are_shown(redis_client: redis.Redis) -> None:
    with db.begin() as session:
        workers.record_heartbeat(session, "w", slots=7)
    look()

    assert 7 == value("nowserving_worker_slots")
    assert [1, 1] == [value("nowserving_server_up", server=name) for name in ("postgres", "redis")]


def test_models_without_end_make_no_series_without_end() -> None:
    seen = {metrics.model_label(f"made-up-{n}") for n in range(1_000)}

    assert metrics.OTHER in seen
    assert metrics.MAX_MODEL_LABELS + 1 >= len(seen)


def test_neither_keys_nor_users_nor_jobs_are_in_the_exposition(redis_client: redis.Redis) -> None:
    caller = Caller("sk-canary-metrics")
    job_id = caller.submit(user="canary-user")
    look()
    text = generate_latest(REGISTRY).decode()

    assert not [word for word in ("canary", job_id) if word in text]


def test_requests_are_counted_by_status() -> None:
    before = value("nowserving_http_requests_total", method="GET", status="404") or 0
    Caller().get("/v1/jobs/job_nothing")

    assert before + 1 == value("nowserving_http_requests_total", method="GET", status="404")


def test_unknown_methods_and_addresses_share_a_label() -> None:
    Caller().send("WHATEVER", "/nowhere")

    assert value("nowserving_http_requests_total", method="other", status="404")
    assert "WHATEVER" not in generate_latest(REGISTRY).decode()


def opens(authorization: str) -> bool:
    return metrics_server.check_token(WrongTokens(), "10.0.0.1", authorization) is None


def test_metrics_need_the_operators_token_where_there_is_one(override: object) -> None:
    assert 200 == Caller("none").get("/metrics").status_code
    override(ops_token="ops-secret-0123456789-abc")  # type: ignore[operator]  # a fixture

    assert [401, 200] == [Caller(token).get("/metrics").status_code for token in ("sk-client", "ops-secret-0123456789-abc")]
    assert [False, False, True] == [opens(result) for result in ("", "Bearer sk-client", "Bearer ops-secret-0123456789-abc")]


def test_metrics_require_a_token_once_there_is_an_operator() -> None:
    everybody = Caller("none").get("/metrics").status_code
    with db.begin() as session:
        token = operators.create(session, "prometheus", role="read")

    assert 200 == everybody
    assert [401, 401, 200] == [Caller(one).get("/metrics").status_code for one in ("none", "sk-client", token)]
    assert [False, True] == [opens(result) for result in ("", f"Bearer {token}")]
    with db.begin() as session:
        operators.revoke(session, "prometheus")
        operators.create(session, "another", role="write")
    assert 401 == Caller(token).get("/metrics").status_code


def test_metrics_access_is_unchanged_while_postgres_is_away(override: Callable[..., None]) -> None:
    with db.begin() as session:
        token = operators.create(session, "prometheus", role="read")
    before = [Caller(one).get("/metrics").status_code for one in (token, "sk-other")]
    override(database_url="postgresql+psycopg://unused@127.0.0.1:1/none")
    db.engine().dispose()
    db.engine.cache_clear()

    assert [200, 401] == before == [Caller(one).get("/metrics").status_code for one in (token, "sk-other")]


def test_metrics_server_serves_metrics_and_health(environment: dict[str, str]) -> None:
    port, states = free_port(), [False, True]
    server = metrics_server.serve(port, is_healthy=states.pop)

    def get(path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    try:
        assert "nowserving_waiting_jobs" in get("/metrics")[1]
        assert (200, "ok\n") == get("/healthz")
        assert (503, "unhealthy\n") == get("/healthz")
        assert [] == states, "each request reads the health once, so that status and body agree"
        assert 404 == get("/")[0]
    finally:
        server.shutdown()
        server.server_close()


def test_undelivered_webhook_is_counted() -> None:
    before = value("nowserving_webhook_attempts_total", result="unreachable") or 0
    counters.sent(has_arrived=False, http_status=None)

    assert before + 1 == value("nowserving_webhook_attempts_total", result="unreachable")


def test_dashboard_and_alerts_query_only_exposed_metrics() -> None:
    shown = {family.name for family in REGISTRY.collect()}
    series = shown | {f"{name}{end}" for name in shown for end in ("_total", "_bucket", "_sum", "_count")}
    named = monitoring.asked_for()

    assert named
    assert set() == named - series
