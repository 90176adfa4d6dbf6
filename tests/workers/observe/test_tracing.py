"""Tracing and logs of a job across all processes: one trace, and log lines in every process that carry the job's id.

Jobs run unaffected while no collector receives the spans.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from models.config.settings import Settings
from models.platform import wire
from tests.api.server.test_api_server import Api, serving
from tests.support.http_tools import CHAT
from tests.support.programs import processes
from tests.support.programs.forks import ROOT
from tests.support.programs.live_jobs import attempts, caller, row, wait_ended
from tests.support.programs.process import Process, until
from tests.support.programs.processes import Stack
from tests.support.servers.otlp_receiver import Collector, Seen
from tests.support.servers.webhook_receiver import Receiver

SERVER, CLIENT = 2, 3
SERVED = ["submit", "wait", "attempt"]
PROMPT = "a-prompt-that-stays-private"


@dataclass
class Traced:
    """A whole stack that exports spans, and their collector. Tokens begin with sk-traced, so that a leaked one can be found."""

    stack: Stack
    api: Api
    collector: Collector
    hooks: Receiver
    worker: Process

    def submit(self, result: str = PROMPT, *, parent: str | None = None, token: str = "", **wanted: Any) -> UUID:
        """A chat job, submitted by HTTP."""
        body = {**CHAT, **wanted, "body": {"model": "m", "messages": [{"role": "user", "content": result}]}}
        self.api.token = token or f"sk-traced-{uuid4().hex}"
        headers = {"traceparent": parent} if parent else {}
        status, made, _ = self.api.call("POST", "/v1/jobs", json.dumps(body).encode(), **headers)
        assert 202 == status, made
        return wire.parse_id(made["id"])

    def trace_of(self, job_id: UUID) -> str:
        return str(row(job_id).traceparent[3:35])

    def served(self, job_id: UUID, names: list[str] | None = None) -> list[Seen]:
        """Waits until the job's spans have these names; returns them."""
        return self.collector.wait_for(self.trace_of(job_id), names or SERVED)

    def logs(self) -> dict[str, str]:
        """The log of each process."""
        return {**{process.name.split("-")[0]: process.log_text() for process in self.stack.processes}, "api": self.api.log.read_text()}


@pytest.fixture(scope="module")
def traced(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("traced")
    with Collector() as collector, Receiver(folder) as hooks, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        ours = {**hooks.settings(), "lease_s": 3, "heartbeat_s": 0.8, "retry_base_s": 0.05}
        with processes.running(folder, **ours) as stack, serving(folder / "api.log", **stack.environment()) as api:
            stack.pacer()
            worker = stack.worker()
            stack.sender()
            yield Traced(stack, api, collector, hooks, worker)


def parent() -> tuple[str, str, str]:
    """The span of a caller: its traceparent, trace and span id."""
    trace_id, span_id = uuid4().hex, uuid4().hex[:16]
    return f"00-{trace_id}-{span_id}-01", trace_id, span_id


def test_a_job_is_one_trace_under_that_of_its_caller(traced: Traced) -> None:
    sent, trace_id, span_id = parent()
    job_id = traced.submit(parent=sent, webhook_url=traced.hooks.url("/one"))
    spans = traced.collector.wait_for(trace_id, [*SERVED, "webhook"])
    submit, wait, attempt, webhook = spans

    assert ["submit", "wait", "attempt", "webhook"] == [one.name for one in spans]
    assert [span_id, submit.span_id, submit.span_id, submit.span_id] == [one.parent_id for one in spans]
    assert ["nowserving-api", "nowserving-pacer", "nowserving-worker", "nowserving-webhooks"] == [one.service for one in spans]
    assert [SERVER, CLIENT, CLIENT] == [submit.kind, attempt.kind, webhook.kind]
    assert {wire.public_id(job_id)} == {one.attributes["nowserving.job"] for one in spans}
    assert not [one.name for one in spans if one.is_error]
    assert wait.began_ns >= submit.began_ns and wait.over_ns <= attempt.over_ns <= webhook.began_ns


def test_attempt_span_has_the_genai_attributes(traced: Traced) -> None:
    job_id = traced.submit()
    attempt = traced.served(job_id)[2].attributes

    used = json.loads(row(job_id).response)["usage"]
    assert ("chat", "openai", "m") == tuple(attempt[f"gen_ai.{name}"] for name in ("operation.name", "provider.name", "request.model"))
    assert (used["prompt_tokens"], used["completion_tokens"]) == tuple(attempt[f"gen_ai.usage.{one}_tokens"] for one in ("input", "output"))
    assert ("127.0.0.1", traced.stack.upstream.port, 200) == tuple(
        attempt[name] for name in ("server.address", "server.port", "http.response.status_code")
    )


def test_a_webhook_carries_the_trace_on(traced: Traced) -> None:
    job_id = traced.submit(webhook_url=traced.hooks.url("/goes-on"))
    (got,) = traced.hooks.wait_got(1, "/goes-on")
    webhook = traced.served(job_id, [*SERVED, "webhook"])[3]

    assert ["00", webhook.trace_id, webhook.span_id] == got.headers["traceparent"].split("-")[:3]


def test_a_call_on_an_open_connection_is_traced_alike(traced: Traced) -> None:
    sent, trace_id, _ = parent()
    traced.api.token = "sk-traced-held"
    status, answer, headers = traced.api.call("POST", "/v1/chat/completions", json.dumps(CHAT["body"]).encode(), traceparent=sent)
    spans = traced.collector.wait_for(trace_id, SERVED)

    assert (200, "chat.completion") == (status, answer["object"])
    assert ("/v1/chat/completions", headers["X-Request-Id"], headers["X-Nowserving-Job-Id"]) == tuple(
        spans[0].attributes[name] for name in ("http.route", "nowserving.request_id", "nowserving.job")
    )


def test_a_second_attempt_has_a_wait_and_a_span_of_its_own(traced: Traced) -> None:
    job_id = traced.submit("once more [[fake:status=500;times=1]]")
    spans = traced.served(job_id, ["submit", "wait", "attempt", "wait", "attempt"])
    first, second = (one for one in spans if one.name == "attempt")
    before, between = (one for one in spans if one.name == "wait")

    assert [(1, True, "500"), (2, False, None)] == [
        (one.attributes["nowserving.attempt"], one.is_error, one.attributes.get("error.type")) for one in (first, second)
    ]
    assert before.over_ns <= first.over_ns <= between.began_ns <= between.over_ns <= second.over_ns
    assert ["backoff"] == between.attributes["nowserving.blocked_by"][:1]


def test_wait_log_names_its_limits_after_any_restart(traced: Traced) -> None:
    caller("sk-traced-narrow", max_in_flight=1)
    held = traced.submit("held [[fake:hold;times=1]]", token="sk-traced-narrow")
    traced.stack.upstream.wait_for_held(1)
    behind = traced.submit("behind", token="sk-traced-narrow")
    until(lambda: _blocked(behind), what="it waits for its key's one call in flight")
    traced.worker.kill()
    traced.worker = traced.stack.worker()
    wait_ended([held, behind], stack=traced.stack)
    (_, wait, _), lost = traced.served(behind), traced.served(held, ["submit", "wait", "attempt", "wait", "attempt"])

    assert "in_flight" in wait.attributes["nowserving.blocked_by"]
    assert ("blocked", {"nowserving.blocked_by": "in_flight"}) in wait.events
    # The killed worker could not end the span of its call: the reaper in the pacer writes it.
    assert [("nowserving-pacer", "unknown"), ("nowserving-worker", None)] == [
        (one.service, one.attributes.get("error.type")) for one in lost if one.name == "attempt"
    ]


def test_refused_submit_has_a_span_with_its_error(traced: Traced) -> None:
    sent, trace_id, _ = parent()
    traced.api.token = "sk-traced-narrow"
    body = {**CHAT, "conversation": "talk", "attachments": [f"art_{uuid4().hex}"]}
    status, _, _ = traced.api.call("POST", "/v1/jobs", json.dumps(body).encode(), traceparent=sent)
    (submit,) = traced.collector.wait_for(trace_id, ["submit"])

    assert (status, True) == (submit.attributes["http.response.status_code"], submit.is_error)


def test_expired_job_names_its_blocking_limit(traced: Traced) -> None:
    caller("sk-traced-small", tpm=10)
    caller("sk-traced-full", max_in_flight=1)
    refused = traced.submit("far more than ten tokens " * 10, token="sk-traced-small")
    held = traced.submit("held [[fake:hold]]", token="sk-traced-full")
    traced.stack.upstream.wait_for_held(1)
    expired = traced.submit("too late", token="sk-traced-full", expires_in_s=2)
    wait_ended([refused, expired], stack=traced.stack)
    traced.stack.upstream.release()

    waits = [traced.served(job_id, ["submit", "wait"])[1] for job_id in (refused, expired)]
    assert ["request_exceeds_limit", "expired"] == [one.attributes["error.type"] for one in waits]
    traced.served(held)


def test_unsampled_trace_records_no_span(traced: Traced) -> None:
    quiet = uuid4().hex
    silent = traced.submit(parent=f"00-{quiet}-{uuid4().hex[:16]}-00", webhook_url=traced.hooks.url("/quiet"))
    traced.hooks.wait_got(1, "/quiet")
    loud = traced.submit(webhook_url=traced.hooks.url("/loud"))
    traced.served(loud, [*SERVED, "webhook"])

    assert quiet == traced.trace_of(silent)
    assert [] == traced.collector.of(quiet)


def test_no_span_has_a_prompt_an_answer_a_user_or_a_key(traced: Traced) -> None:
    job_id = traced.submit(f"{PROMPT} again", user="user-canary", webhook_url=traced.hooks.url("/secret", fail=0), token="sk-traced-canary")
    traced.served(job_id, [*SERVED, "webhook"])

    result = str(traced.collector.spans)
    assert "succeeded" in result
    assert [] == [word for word in (PROMPT, "user-canary", "sk-traced", "/secret") if word in result]


def test_jobs_run_while_the_trace_endpoint_is_down(traced: Traced) -> None:
    before = {name: result.count("span export fails") for name, result in traced.logs().items()}
    traced.collector.stop()
    jobs = [traced.submit(f"unheard {n}", webhook_url=traced.hooks.url("/unheard")) for n in range(5)]
    ended = wait_ended(jobs, stack=traced.stack)
    traced.hooks.wait_got(5, "/unheard")
    until(lambda: _failed(traced) == {name: n + 1 for name, n in before.items()}, what=f"each reported it: {_failed(traced)}")
    more = [traced.submit(f"unheard too {n}", webhook_url=traced.hooks.url("/unheard")) for n in range(3)]
    wait_ended(more, stack=traced.stack)
    traced.hooks.wait_got(8, "/unheard")
    once = _failed(traced)
    traced.collector.start()
    later = traced.submit(webhook_url=traced.hooks.url("/heard"))
    traced.served(later, [*SERVED, "webhook"])

    assert {"succeeded"} == {one.status for one in ended}
    assert {name: n + 1 for name, n in before.items()} == once
    assert ["succeeded"] == attempts(jobs[0])
    assert {name for name, result in traced.logs().items() if "span export works again" in result} == set(once)


def test_recorded_spans_are_sent_before_the_process_ends(traced: Traced, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for one in traced.stack.processes:
        one.kill()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")  # an hour
    slow = [traced.stack.pacer(), traced.stack.worker(), traced.stack.sender()]
    with serving(tmp_path / "api.log", **traced.stack.environment()) as api:
        api.token = "sk-traced-slow"
        body = {**CHAT, "webhook_url": traced.hooks.url("/slow")}
        _, made, _ = api.call("POST", "/v1/jobs", json.dumps(body).encode())
        traced.hooks.wait_got(1, "/slow")
        sent_early = traced.collector.of(traced.trace_of(wire.parse_id(made["id"])))
        for one in slow:
            one.ask_to_stop()
        api.stop()
        for one in slow:
            one.wait_gone()
    monkeypatch.undo()
    traced.stack.pacer()
    traced.worker = traced.stack.worker()
    traced.stack.sender()

    assert [] == sent_early
    assert traced.served(wire.parse_id(made["id"]), [*SERVED, "webhook"])


def test_the_lines_of_a_job_are_found_by_its_id_in_every_log(traced: Traced) -> None:
    job_id = traced.submit(webhook_url=traced.hooks.url("/lines"))
    traced.served(job_id, [*SERVED, "webhook"])
    stored = row(job_id)
    request_id = f"req_{stored.request_id.hex}"
    of_job = {"lane": stored.lane_id, "key": stored.key_id, "request_id": request_id, "trace_id": traced.trace_of(job_id)}
    wanted = {"request": "api", "admitted": "pacer", "attempt over": "worker", "webhook arrived": "webhooks"}
    until(lambda: wanted.keys() <= {line["event"] for _, line in _lines(traced, job_id)}, what="a line of it in every log")

    # Other lines that a worker has logged for the job meanwhile have the same fields.
    lines = _lines(traced, job_id)
    assert wanted.items() <= {line["event"]: process for process, line in lines}.items()
    assert [of_job] * len(lines) == [{name: line[name] for name in of_job} for _, line in lines]
    assert {1} == {line["attempt"] for process, line in lines if process != "api"}


def test_access_log_has_the_route_and_no_content(traced: Traced) -> None:
    job_id = traced.submit()
    name = wire.public_id(job_id)
    _, _, headers = traced.api.call("GET", f"/v1/jobs/{name}?secret=in-the-query")
    traced.api.call("GET", "/nowhere/in-the-path")
    traced.api.call("GET", "/healthz")
    result = traced.api.log.read_text()
    (looked,) = [line for line in _parsed(result) if line.get("request_id") == headers["X-Request-Id"]]

    wanted = {"event": "request", "method": "GET", "route": "/v1/jobs/<name>", "status": 200, "job": name, "key": row(job_id).key_id}
    assert wanted == {name: looked[name] for name in wanted}
    assert 0 < looked["ms"] < 60_000
    assert [] == [word for word in ("in-the-query", "in-the-path", "/healthz") if word in result]
    assert any(line["event"] == "request" and line["status"] == 404 and "route" not in line for line in _parsed(result))


def test_no_line_has_a_prompt_an_answer_a_user_or_a_key(traced: Traced) -> None:
    words = "text that no log may show"
    job_id = traced.submit(words, user="user-canary", webhook_url=traced.hooks.url("/unread"), token="sk-traced-unread")
    failed = traced.submit(f"{words} [[fake:status=400]]", user="user-canary", token="sk-traced-unread")
    wait_ended([job_id, failed], stack=traced.stack)
    traced.hooks.wait_got(1, "/unread")

    result = "".join(traced.logs().values())
    assert wire.public_id(failed) in result
    assert [] == [word for word in (words, "user-canary", "sk-traced-unread") if word in result]


HERE = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("variables", "is_wanted"),
    [({}, False), ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False), ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE}, True),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": HERE}, True),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_SDK_DISABLED": "True"}, False),
     ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_TRACES_EXPORTER": "none"}, False)],
)  # fmt: skip
def test_standard_variables_turn_traces_on_and_off(variables: dict[str, str], is_wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert is_wanted == Settings().has_traces


def test_opentelemetry_is_loaded_only_when_traces_are_on(environment: dict[str, str]) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    code = f"""
import os, sys
import api.app, workers.pacer.__main__, workers.tasks, workers.webhook_tasks
from models.config import settings
from models.telemetry import tracing
def loaded():
    return [name for name in ("models.telemetry.otlp", "opentelemetry.sdk.trace.export", "opentelemetry.exporter") if name in sys.modules]
tracing.start("quiet")
print(loaded())
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "{HERE}"
settings.settings.cache_clear()
tracing.start("loud")
print(loaded())"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=plain, capture_output=True, text=True, check=True)
    quiet, loud = done.stdout.splitlines()

    assert ("[]", 3) == (quiet, loud.count("'") // 2)


def _parsed(result: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.splitlines() if line.startswith("{")]


def _lines(traced: Traced, job_id: UUID) -> list[tuple[str, dict[str, Any]]]:
    """The lines that have this job's id, each with the process that wrote it."""
    name = wire.public_id(job_id)
    return [(process, line) for process, result in traced.logs().items() for line in _parsed(result) if line.get("job") == name]


def _blocked(job_id: UUID) -> bool:
    with processes.db.begin() as session:
        found = session.execute(processes.text("SELECT blocked_by FROM lane WHERE id = :id"), {"id": row(job_id).lane_id})
        return bool(found.scalar_one() == "in_flight")


def _failed(traced: Traced) -> dict[str, int]:
    return {name: result.count("span export fails") for name, result in traced.logs().items()}
