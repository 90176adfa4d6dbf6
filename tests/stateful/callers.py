"""Rules for callers: HTTP requests to the job API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import initialize, precondition, rule
from werkzeug.test import TestResponse

from models.billing import pricing
from models.config.settings import settings
from models.content.endpoints import CHAT, EMBEDDINGS, IMAGES
from models.content.token_estimate import estimate_request
from tests.stateful import state_machine
from tests.stateful.records import ENDED, Conversation, Endpoint, ModelJob, Tenant
from tests.stateful.state_machine import StateMachine

WHICH = st.integers(0, 1_000)
WHO = st.integers(0, 2)
FLOWS = ("f", "g")
CONVERSATIONS = st.sampled_from(["x", "y", "stops"])
MODELS = {CHAT: "gpt-4o-mini", IMAGES: "gpt-image-1", EMBEDDINGS: "text-embedding-3-small"}
HOOK = "https://example.com/own"
KINDS = ("job.started", *(f"job.{status}" for status in sorted(ENDED)))
WANTED = st.fixed_dictionaries(
    {"endpoint": st.sampled_from([CHAT, CHAT, CHAT, IMAGES, EMBEDDINGS]), "size": st.sampled_from([1, 20, 300, 2_000]),
     "user": st.sampled_from([None, *FLOWS]), "conversation": st.none() | CONVERSATIONS,
     "priority": st.sampled_from(["low", "normal", "high"]), "on_lost": st.sampled_from(["retry", "fail"]),
     "on_unreadable": st.sampled_from(["retry", "fail"]),
     "max_attempts": st.sampled_from([1, 2, 4]), "webhook_url": st.sampled_from([None, None, HOOK])}
)  # fmt: skip
TEXTS = {"endpoint": EMBEDDINGS, "body": {"model": "m", "input": "x"}}
BAD: list[dict[str, Any]] = [
    {"endpoint": CHAT},
    {"endpoint": "/v1/nothing", "body": {}},
    {"endpoint": CHAT, "body": []},
    {"endpoint": CHAT, "body": {"model": 5, "messages": [{"role": "user", "content": "hi"}]}},
    {"endpoint": CHAT, "body": {"model": "m", "messages": [], "stream": "yes"}},
    {**TEXTS, "priority": "urgent"},
    {**TEXTS, "expires_in_s": 0},
    {**TEXTS, "user": ""},
    {**TEXTS, "metadata": {"a": 1}},
    {**TEXTS, "unknown": 1},
    {**TEXTS, "max_attempts": 0},
    {**TEXTS, "conversation": "a/b"},
    {**TEXTS, "webhook_url": "http://127.0.0.1/"},
    {**TEXTS, "attachments": ["att_x"]},
]


class Callers(StateMachine):
    """Callers submit, read, list, cancel and retry jobs, use conversations and webhooks, and try to use jobs of other keys."""

    @initialize(wanted=st.lists(st.tuples(WHO, WANTED), min_size=8, max_size=12), types=st.sets(st.sampled_from(KINDS), min_size=1))
    def begin(self, wanted: list[tuple[int, Mapping[str, Any]]], types: set[str]) -> None:
        """Begins with some jobs: an empty queue tests little."""
        self.reset()
        self.create_stopping_session(0)
        self.add_webhook(0, types)
        for n, (who, fields) in enumerate(wanted):
            self.submit(who, fields, token=n % 2 == 0)

    @rule(who=WHO, wanted=WANTED, token=st.booleans())
    def submit(self, who: int, wanted: Mapping[str, Any], token: bool) -> None:
        payload = self._payload(wanted)
        job = self._ticket(self.tenants[who], payload)
        headers = {"Idempotency-Key": f"t-{job.number}"} if token else {}
        self.enqueue(job, lambda: self.callers[who].post("/v1/jobs", payload, headers=headers))
        if token and job.id:
            job.who.tokens[headers["Idempotency-Key"]] = (json.dumps(payload), job.id)

    @rule(who=WHO, wanted=WANTED)
    def submit_several(self, who: int, wanted: Mapping[str, Any]) -> None:
        for _ in range(3):
            self.submit(who, wanted, token=False)

    @rule(which=WHICH)
    def send_it_again(self, which: int) -> None:
        """Repeats an Idempotency-Key, with another body and with the same body."""
        known = [(who, token) for who in self.tenants for token in who.tokens]
        for who, token in self.pick(known, which):
            body, name = who.tokens[token]
            headers = {"Idempotency-Key": token}
            changed = self.caller(who).post("/v1/jobs", {**json.loads(body), "metadata": {"is": "another"}}, headers=headers)
            assert 422 == changed.status_code, changed.text
            made = self.caller(who).post("/v1/jobs", json.loads(body), headers=headers)

            assert 202 == made.status_code, made.text
            assert (name, "true") == (made.json["id"], made.headers["Idempotent-Replayed"])

    @rule(who=WHO, bad=st.sampled_from(BAD))
    def submit_what_is_wrong(self, who: int, bad: dict[str, Any]) -> None:
        assert 400 == self.callers[who].post("/v1/jobs", bad).status_code

    @rule(which=WHICH)
    def look(self, which: int) -> None:
        for job in self.pick(self.model.jobs, which):
            shown = self.caller(job.who).get(f"/v1/jobs/{job.id}").json
            self.check_shown(job, shown)
            assert job.answer == shown["result"]
            assert {404} == {each.get(f"/v1/jobs/{job.id}").status_code for each in self.other_callers(job.who)}

    @rule(which=WHICH)
    def read_its_events(self, which: int) -> None:
        for job in self.pick([job for job in self.model.jobs if not job.is_open], which):
            stream = self.caller(job.who).get(f"/v1/jobs/{job.id}/events").text

            types = [line.removeprefix("event: ") for line in stream.splitlines() if line.startswith("event: ")]
            assert [f"job.{kind}" for kind in job.events] == types

    @rule(who=WHO, limit=st.integers(1, 4), status=st.sampled_from([None, "queued", "running", *sorted(ENDED)]))
    def page_through(self, who: int, limit: int, status: str | None) -> None:
        wanted, after, seen = {"limit": limit, **({"status": status} if status else {})}, {}, []
        while True:
            page = self.callers[who].get("/v1/jobs", query_string={**wanted, **after}).json
            seen += [row["id"] for row in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}

        assert [row.id for row in self.model.of(self.tenants[who]) if status in (None, state_machine.public_status(row.status))] == seen

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        for job in self.pick(self.model.jobs, which):
            self.cancel_job(job)

    @rule(which=WHICH, is_operator=st.booleans())
    def try_again(self, which: int, is_operator: bool) -> None:
        """Retries as the caller, or as the operator for the caller."""
        for job in self.pick([each for each in self.model.jobs if not each.is_open], which):
            path, who = (f"/ops/jobs/{job.id}/retry", self.ops) if is_operator else (f"/v1/jobs/{job.id}/retry", self.caller(job.who))
            if job.status == "succeeded" or job.is_erased:
                assert 409 == who.post(path).status_code
            else:
                self.enqueue(self.again(job), lambda path=path, who=who: who.post(path))  # type: ignore[misc]  # mypy knows no such default

    @rule(who=WHO, name=CONVERSATIONS)
    def delete_session(self, who: int, name: str) -> None:
        is_known = (self.tenants[who].name, name) in self.model.conversations

        assert (200 if is_known else 404) == self.callers[who].send("DELETE", f"/v1/sessions/{name}").status_code
        if is_known:
            self.model.delete_talk(self.tenants[who], name)

    @rule(who=WHO)
    def create_stopping_session(self, who: int) -> None:
        is_known = (self.tenants[who].name, "stops") in self.model.conversations
        made = self.callers[who].post("/v1/sessions", {"id": "stops", "on_failed_turn": "stop"})

        assert (409 if is_known else 201) == made.status_code, made.text
        if not is_known:
            self.model.conversation(self.tenants[who], "stops").stops = True

    @rule(who=WHO, name=CONVERSATIONS)
    def read_session(self, who: int, name: str) -> None:
        conversation = self.model.conversations.get((self.tenants[who].name, name))
        made = self.callers[who].get(f"/v1/sessions/{name}/messages?order=asc&limit=100")

        assert (200 if conversation else 404) == made.status_code
        if conversation:
            pairs = [((job.id, job.asked), (job.id, job.answer_text if job.status == "succeeded" else None)) for job in conversation.turns]
            assert [each for pair in pairs for each in pair][:100] == [(job["job_id"], job["text"]) for job in made.json["data"]]

    @precondition(lambda self: len(self.model.endpoints) < 4)
    @rule(who=WHO, types=st.sets(st.sampled_from(KINDS), min_size=1))
    def add_webhook(self, who: int, types: set[str]) -> None:
        wanted = {"name": "hook", "url": "https://example.com/hook", "event_types": sorted(types)}
        made = self.callers[who].post("/v1/webhook_endpoints", wanted)

        assert 200 == made.status_code, made.text
        self.model.endpoints.append(Endpoint(made.json["id"], self.tenants[who], frozenset(types)))

    @rule(which=WHICH)
    def remove_webhook(self, which: int) -> None:
        for endpoint in self.pick(self.model.endpoints, which):
            path = f"/v1/webhook_endpoints/{endpoint.id}"

            assert {404} == {each.send("DELETE", path).status_code for each in self.other_callers(endpoint.who)}
            assert 200 == self.caller(endpoint.who).send("DELETE", path).status_code
            self.model.endpoints.remove(endpoint)

    @rule(which=WHICH)
    def use_foreign_jobs(self, which: int) -> None:
        for job in self.pick(self.model.jobs, which):
            for other in self.other_callers(job.who):
                tried = [("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events"), ("GET", "/deliveries"), ("GET", "/stream")]
                # One by one: if the first request succeeded, the last would wait for a stream to end.
                for method, rest in tried:
                    assert 404 == other.send(method, f"/v1/jobs/{job.id}{rest}").status_code

    # Steps of the rules

    def cancel_job(self, job: ModelJob) -> None:
        expected_status = 202 if job.status == "running" else 409 if job.status in ENDED - {"cancelled"} else 200
        self.model.cancel(job)

        assert expected_status == self.caller(job.who).post(f"/v1/jobs/{job.id}/cancel").status_code

    def enqueue(self, job: ModelJob, ask: Any) -> None:
        """Submits the job; the response must be the one that the model expects."""
        refusal, times = self.model.refusal(job), self.key_times()
        made: TestResponse = ask()
        if refusal is not None:
            assert (429, refusal) == (made.status_code, made.json["error"]["code"]), made.text
            return
        assert 202 == made.status_code, made.text
        self.stand(job, made.json["id"], at=times[job.lane, job.who.key_id])

    def stand(self, job: ModelJob, name: str, *, at: float) -> None:
        """Enqueues an accepted job in the model."""
        job.id = name
        if job.conversation is not None:
            job.conversation = self.model.conversations.setdefault((job.who.name, job.conversation.name), job.conversation)
        self.model.enqueue(job, at=at)

    def again(self, job: ModelJob) -> ModelJob:
        """A new job with the same request as this one."""
        conversation = None if job.conversation is None or job.conversation.is_deleted else job.conversation
        return replace(
            job, number=self.count(), conversation=conversation, retry_of=job, id="", held=False, delayed=False,
            status="queued", cancel_requested=False, failures=0, throttles=0, refusals=(), credential=0, possible_duplicates=0,
            dispatch=None, lost=None, calls=[], events=["queued"], answer=None, answer_text=None, error=None,
        )  # fmt: skip

    def _payload(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        endpoint, size = wanted["endpoint"], wanted["size"]
        asked = f"question {self.count()} " + "x" * (size % 7)
        body: dict[str, Any] = {
            CHAT: {"messages": [{"role": "user", "content": asked}], "max_tokens": size},
            IMAGES: {"prompt": asked, "n": 1 + size % 3},
            EMBEDDINGS: {"input": asked},
        }[endpoint]
        names = (
            "user",
            "priority",
            "on_lost",
            "on_unreadable",
            "max_attempts",
            "webhook_url",
            *(["conversation"] if endpoint == CHAT else []),
        )
        more = {name: wanted[name] for name in names if wanted[name] is not None}
        return {"endpoint": endpoint, "body": {"model": MODELS[endpoint], **body}, **more}

    def _ticket(self, who: Tenant, payload: Mapping[str, Any]) -> ModelJob:
        endpoint, body, name = payload["endpoint"], payload["body"], payload.get("conversation")
        asked = body["messages"][0]["content"] if endpoint == CHAT else body.get("prompt") or body["input"]
        tokens, reply, images = estimate_request(endpoint, body), body.get("max_tokens", 0), body.get("n", 0)
        most = pricing.max_microusd(
            body["model"], input_tokens=tokens + (settings().session_context_tokens if name else 0), output_tokens=reply, images=images
        )
        return ModelJob(
            number=self.asked, who=who, lane=(who.pool_id, body["model"]), endpoint=endpoint, flow=payload.get("user") or name or "key",
            priority=payload["priority"], cost=images * 1_000.0 or float(tokens + reply), asked=asked,
            reserved=most if who.counted else None, on_lost=payload["on_lost"], max_attempts=payload["max_attempts"],
            hook=payload.get("webhook_url"),
            conversation=self.model.conversations.get((who.name, name), Conversation(name)) if name else None,
        )  # fmt: skip
