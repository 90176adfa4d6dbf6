"""What callers do, over HTTP."""

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
from tests.stateful.records import ENDED, Endpoint, Talk, Tenant, Ticket
from tests.stateful.state_machine import Play

WHICH = st.integers(0, 1_000)
WHO = st.integers(0, 2)
FLOWS = ("f", "g")
TALKS = st.sampled_from(["x", "y", "stops"])
MODELS = {CHAT: "gpt-4o-mini", IMAGES: "gpt-image-1", EMBEDDINGS: "text-embedding-3-small"}
HOOK = "https://example.com/own"
KINDS = ("job.started", *(f"job.{status}" for status in sorted(ENDED)))
WANTED = st.fixed_dictionaries(
    {"endpoint": st.sampled_from([CHAT, CHAT, CHAT, IMAGES, EMBEDDINGS]), "size": st.sampled_from([1, 20, 300, 2_000]),
     "user": st.sampled_from([None, *FLOWS]), "conversation": st.none() | TALKS,
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


class Callers(Play):
    """Submit, look, list, cancel, try again; conversations and webhooks; and meddle with what is somebody else's."""

    @initialize(wanted=st.lists(st.tuples(WHO, WANTED), min_size=8, max_size=12), types=st.sets(st.sampled_from(KINDS), min_size=1))
    def begin(self, wanted: list[tuple[int, Mapping[str, Any]]], types: set[str]) -> None:
        """Some are there already: an empty line teaches nothing."""
        self.set_stage()
        self.make_a_session_that_stops(0)
        self.add_a_webhook(0, types)
        for n, (who, one) in enumerate(wanted):
            self.submit(who, one, token=n % 2 == 0)

    @rule(who=WHO, wanted=WANTED, token=st.booleans())
    def submit(self, who: int, wanted: Mapping[str, Any], token: bool) -> None:
        payload = self._payload(wanted)
        one = self._ticket(self.tenants[who], payload)
        headers = {"Idempotency-Key": f"t-{one.number}"} if token else {}
        self.join(one, lambda: self.callers[who].post("/v1/jobs", payload, headers=headers))
        if token and one.id:
            one.who.tokens[headers["Idempotency-Key"]] = (json.dumps(payload), one.id)

    @rule(who=WHO, wanted=WANTED)
    def submit_several(self, who: int, wanted: Mapping[str, Any]) -> None:
        for _ in range(3):
            self.submit(who, wanted, token=False)

    @rule(which=WHICH)
    def send_it_again(self, which: int) -> None:
        """The same Idempotency-Key, with another body and with the same."""
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
        for one in self.pick(self.picture.tickets, which):
            shown = self.caller(one.who).get(f"/v1/jobs/{one.id}").json
            self.expect_shown(one, shown)
            assert one.answer == shown["result"]
            assert {404} == {each.get(f"/v1/jobs/{one.id}").status_code for each in self.strangers(one.who)}

    @rule(which=WHICH)
    def read_its_events(self, which: int) -> None:
        for one in self.pick([one for one in self.picture.tickets if not one.is_open], which):
            told = self.caller(one.who).get(f"/v1/jobs/{one.id}/events").text

            types = [said.removeprefix("event: ") for said in told.splitlines() if said.startswith("event: ")]
            assert [f"job.{kind}" for kind in one.events] == types

    @rule(who=WHO, limit=st.integers(1, 4), status=st.sampled_from([None, "queued", "running", *sorted(ENDED)]))
    def page_through(self, who: int, limit: int, status: str | None) -> None:
        wanted, after, seen = {"limit": limit, **({"status": status} if status else {})}, {}, []
        while True:
            page = self.callers[who].get("/v1/jobs", query_string={**wanted, **after}).json
            seen += [one["id"] for one in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}

        assert [one.id for one in self.picture.of(self.tenants[who]) if status in (None, state_machine.seen(one.status))] == seen

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        for one in self.pick(self.picture.tickets, which):
            self.cancel_it(one)

    @rule(which=WHICH, is_operator=st.booleans())
    def try_again(self, which: int, is_operator: bool) -> None:
        """Its caller, or the operator for it."""
        for one in self.pick([each for each in self.picture.tickets if not each.is_open], which):
            path, who = (f"/ops/jobs/{one.id}/retry", self.ops) if is_operator else (f"/v1/jobs/{one.id}/retry", self.caller(one.who))
            if one.status == "succeeded" or one.is_erased:
                assert 409 == who.post(path).status_code
            else:
                self.join(self.again(one), lambda path=path, who=who: who.post(path))  # type: ignore[misc]  # mypy knows no such default

    @rule(who=WHO, name=TALKS)
    def forget_a_session(self, who: int, name: str) -> None:
        is_known = (self.tenants[who].name, name) in self.picture.talks

        assert (200 if is_known else 404) == self.callers[who].send("DELETE", f"/v1/sessions/{name}").status_code
        if is_known:
            self.picture.delete_talk(self.tenants[who], name)

    @rule(who=WHO)
    def make_a_session_that_stops(self, who: int) -> None:
        is_known = (self.tenants[who].name, "stops") in self.picture.talks
        made = self.callers[who].post("/v1/sessions", {"id": "stops", "on_failed_turn": "stop"})

        assert (409 if is_known else 201) == made.status_code, made.text
        if not is_known:
            self.picture.talk(self.tenants[who], "stops").stops = True

    @rule(who=WHO, name=TALKS)
    def read_a_session(self, who: int, name: str) -> None:
        talk = self.picture.talks.get((self.tenants[who].name, name))
        made = self.callers[who].get(f"/v1/sessions/{name}/messages?order=asc&limit=100")

        assert (200 if talk else 404) == made.status_code
        if talk:
            pairs = [((one.id, one.asked), (one.id, one.said if one.status == "succeeded" else None)) for one in talk.turns]
            assert [each for pair in pairs for each in pair][:100] == [(one["job_id"], one["text"]) for one in made.json["data"]]

    @precondition(lambda self: len(self.picture.endpoints) < 4)
    @rule(who=WHO, types=st.sets(st.sampled_from(KINDS), min_size=1))
    def add_a_webhook(self, who: int, types: set[str]) -> None:
        wanted = {"name": "hook", "url": "https://example.com/hook", "event_types": sorted(types)}
        made = self.callers[who].post("/v1/webhook_endpoints", wanted)

        assert 200 == made.status_code, made.text
        self.picture.endpoints.append(Endpoint(made.json["id"], self.tenants[who], frozenset(types)))

    @rule(which=WHICH)
    def remove_a_webhook(self, which: int) -> None:
        for one in self.pick(self.picture.endpoints, which):
            path = f"/v1/webhook_endpoints/{one.id}"

            assert {404} == {each.send("DELETE", path).status_code for each in self.strangers(one.who)}
            assert 200 == self.caller(one.who).send("DELETE", path).status_code
            self.picture.endpoints.remove(one)

    @rule(which=WHICH)
    def strangers_meddle(self, which: int) -> None:
        for one in self.pick(self.picture.tickets, which):
            for other in self.strangers(one.who):
                tried = [("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events"), ("GET", "/deliveries"), ("GET", "/stream")]
                # One by one: who gets through at the first would wait at the last for a stream to end.
                for method, rest in tried:
                    assert 404 == other.send(method, f"/v1/jobs/{one.id}{rest}").status_code

    # How it is done

    def cancel_it(self, one: Ticket) -> None:
        want = 202 if one.status == "running" else 409 if one.status in ENDED - {"cancelled"} else 200
        self.picture.cancel(one)

        assert want == self.caller(one.who).post(f"/v1/jobs/{one.id}/cancel").status_code

    def join(self, one: Ticket, ask: Any) -> None:
        """What the line must say to this job is what it says."""
        refusal, times = self.picture.refusal(one), self.own_times()
        made: TestResponse = ask()
        if refusal is not None:
            assert (429, refusal) == (made.status_code, made.json["error"]["code"]), made.text
            return
        assert 202 == made.status_code, made.text
        self.stand(one, made.json["id"], at=times[one.lane, one.who.key_id])

    def stand(self, one: Ticket, name: str, *, at: float) -> None:
        """The job was accepted under this id."""
        one.id = name
        if one.talk is not None:
            one.talk = self.picture.talks.setdefault((one.who.name, one.talk.name), one.talk)
        self.picture.join(one, at=at)

    def again(self, one: Ticket) -> Ticket:
        """A new job that asks the same as this one."""
        return replace(
            one, number=self.count(), talk=None if one.talk is None or one.talk.is_deleted else one.talk, retry_of=one, id="", held=False,
            delayed=False, status="queued", cancel_requested=False, failures=0, throttles=0, refusals=(), credential=0, maybe_twice=0,
            dispatch=None, lost=None, calls=[], events=["queued"], answer=None, said=None, error=None,
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

    def _ticket(self, who: Tenant, payload: Mapping[str, Any]) -> Ticket:
        endpoint, body, name = payload["endpoint"], payload["body"], payload.get("conversation")
        asked = body["messages"][0]["content"] if endpoint == CHAT else body.get("prompt") or body["input"]
        tokens, reply, images = estimate_request(endpoint, body), body.get("max_tokens", 0), body.get("n", 0)
        most = pricing.max_microusd(
            body["model"], input_tokens=tokens + (settings().session_context_tokens if name else 0), output_tokens=reply, images=images
        )
        return Ticket(
            number=self.asked, who=who, lane=(who.pool_id, body["model"]), endpoint=endpoint, flow=payload.get("user") or name or "key",
            priority=payload["priority"], cost=images * 1_000.0 or float(tokens + reply), asked=asked,
            reserved=most if who.counted else None, on_lost=payload["on_lost"], max_attempts=payload["max_attempts"],
            hook=payload.get("webhook_url"), talk=self.picture.talks.get((who.name, name), Talk(name)) if name else None,
        )  # fmt: skip
