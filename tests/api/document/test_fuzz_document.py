"""Fuzzed requests, valid and invalid, get only responses that the document describes, and never our own failure.

Schemathesis reads /openapi.json and sends what it can think of, also along the links from one answer to the next, while a crew ends the
jobs. HYPOTHESIS_PROFILE=nightly sends 20,000 requests or more.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import schemathesis
from flask import Flask
from schemathesis import engine
from schemathesis.engine.events import EngineEvent, FatalError, NonFatalError, ScenarioFinished

from api.app import create_app
from api.openai import model_lists
from api.server import health
from tests.api.openai.test_model_lists import list_of, store_copies
from tests.support.http_tools import Caller
from tests.support.programs.fake_workers import FakeWorkers

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
AT_LEAST = 20_000 if NIGHTLY else 200
PER_OPERATION = 280 if NIGHTLY else 6
# Along links at least. What a link leads to changes while the crew works, which Hypothesis calls flaky: such a walk ends early, without a
# word, and another begins.
LINKED_AT_LEAST = 5_000 if NIGHTLY else 20
# A night's run says where it is after so many requests: who ends it early knows what was asked.
SAY_EVERY = 1_000
PHASES = {"examples", "fuzzing", "stateful"} | ({"coverage"} if NIGHTLY else set())
# The same requests each time in the ordinary suite, others each night.
SEED = int(os.environ.get("NOWSERVING_FUZZ_SEED") or (random.randrange(2**31) if NIGHTLY else 1))
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "unsupported_method", "allow_header_conformance",
)  # fmt: skip
# Of its checks, `ignored_auth` and `use_after_free` cannot call an application in this process: test_fuzz_tenants.py asks
# most of what they ask.
CONFIG: dict[str, Any] = {
    "seed": SEED,
    "headers": {"Authorization": "Bearer sk-fuzz"},
    "continue-on-failure": True,
    "generation": {"max-examples": PER_OPERATION, "database": "none", "no-shrink": True},
    "phases": {"coverage": {"enabled": NIGHTLY}, "stateful": {"max-steps": 6}},
    "checks": {
        "enabled": False,
        **{name: {"enabled": True} for name in CHECKS},
        # A receiver that cannot be reached is no fault of ours.
        "not_a_server_error": {"enabled": True, "expected-statuses": ["2xx", "3xx", "4xx", "502"]},
    },
}
# Along links only, with bodies as they should be, from callers who want the job: of others nothing comes that a link could lead on from.
WALKS: dict[str, Any] = {
    "headers": {**CONFIG["headers"], "Prefer": "respond-async"},
    "phases": {name: {"enabled": False} for name in ("examples", "coverage", "fuzzing")} | {
        # By the links of the document: those that Schemathesis guesses from names led to other things of the same name.
        "stateful": {"max-steps": 8, "generation": {**CONFIG["generation"], "mode": "positive"}, "inference": {"algorithms": []}},
    },
}  # fmt: skip

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.slow]


def test_fuzzed_responses_match_document(redis_client: redis.Redis, override: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    # A minute is as long as the crew may take on a busy machine.
    override(long_poll_most_s=60, pro_wait_s=60, webhook_timeout_s=60, max_queued_per_key=1_000_000, max_streams_per_key=100_000)
    app = create_app()
    # No worker refreshes lists of models here.
    store_copies(Caller("sk-fuzz", app).key, list_of("m"))
    monkeypatch.setattr(model_lists, "MISSING_AGE_S", 3_600.0)
    # No pacer and no worker runs here: as in a process that has waited long enough for them.
    app.extensions["first_reports"] = health.Latch({}, now=0.0)
    asked: Counter[str] = Counter()
    led: Counter[int] = Counter()
    wrong: dict[str, str] = {}

    with FakeWorkers() as crew:
        for event in _events(app, is_enough=lambda: asked["stateful"] >= LINKED_AT_LEAST):
            before, found = asked.total(), _wrong(event)
            asked.update(_asked(event))
            led.update(_led(event))
            for what in found.keys() - wrong.keys():
                print(found[what], flush=True)
            wrong |= found
            if before // SAY_EVERY < asked.total() // SAY_EVERY:
                print(f"seed {SEED}, so far {asked.total():,} requests: {dict(asked)}; {len(wrong)} kinds of failure", flush=True)
    print(f"seed {SEED}, {asked.total():,} requests: {dict(asked)}; {crew.ended:,} jobs ended; {len(wrong)} kinds of failure")
    print(f"where links led: {dict(led)}")

    assert [] == crew.failures
    assert "" == "\n\n".join(wrong.values())
    assert PHASES <= {phase for phase, count in asked.items() if count}
    assert asked.total() >= AT_LEAST
    assert led[200] > 200 if NIGHTLY else led, "links lead somewhere"


def _events(app: Flask, *, is_enough: Callable[[], bool]) -> Iterator[EngineEvent]:
    """Yields the events of one run with every phase, and then of runs along links until there are enough."""
    yield from engine.from_schema(_schema(app, CONFIG)).execute()
    for n in itertools.count(1):
        if is_enough():
            return
        yield from engine.from_schema(_schema(app, {**CONFIG, **WALKS, "seed": SEED + n})).execute()


def _schema(app: Flask, config: dict[str, Any]) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app, config=schemathesis.Config.from_dict(config))
    # Here are no pacer and no worker that beat, and it says so, with 503.
    return schema.exclude(path="/healthz/deep")


def _asked(event: EngineEvent) -> dict[str, int]:
    return {event.phase.value: len(event.recorder.interactions)} if isinstance(event, ScenarioFinished) else {}


def _led(event: EngineEvent) -> Counter[int]:
    """Counts the statuses of the requests that followed a link."""
    if not isinstance(event, ScenarioFinished) or event.phase.value != "stateful":
        return Counter()
    answers = {name: made.response for name, made in event.recorder.interactions.items() if made.response is not None}
    return Counter(
        answers[name].status_code for name, case in event.recorder.cases.items() if case.parent_id is not None and name in answers
    )


def _wrong(event: EngineEvent) -> dict[str, str]:
    """Returns the failures by kind and operation."""
    if isinstance(event, FatalError):
        raise event.exception
    if isinstance(event, NonFatalError):
        return {f"{event.label} {type(event.value).__name__}": f"{event.label}: {event.value!r}"}
    if not isinstance(event, ScenarioFinished):
        return {}
    recorder, found = event.recorder, {}
    for case_id, nodes in recorder.checks.items():
        where, answer = recorder.cases[case_id].value.operation.label, recorder.interactions[case_id].response
        for failed in [node.failure_info for node in nodes if node.failure_info is not None]:
            result = answer and f"{answer.status_code} {answer.text[:500]}"
            found[f"{where} {failed.failure.title}"] = f"{where}: {failed.failure}\n{failed.code_sample}\n{result}"
    return found
