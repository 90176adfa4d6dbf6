"""Whatever the document allows, and much that it forbids, is answered as the document says: never with a fault of ours.

Schemathesis reads /openapi.json and sends what it can think of, also along the links from one answer to the next, while a crew ends the
jobs. HYPOTHESIS_PROFILE=nightly sends 20,000 requests or more.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis
import schemathesis
from schemathesis import engine
from schemathesis.engine.events import EngineEvent, FatalError, NonFatalError, ScenarioFinished

from api.app import create_app
from tests.crew import Crew

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
AT_LEAST = 20_000 if NIGHTLY else 200
PER_OPERATION = 280 if NIGHTLY else 6
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

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.slow]


def test_every_answer_is_one_that_the_document_names(redis_client: redis.Redis, override: Callable[..., None]) -> None:
    # A minute is as long as the crew may take on a busy machine.
    override(long_poll_most_s=60, pro_wait_s=60, webhook_timeout_s=60, max_queued_per_key=1_000_000, max_streams_per_key=100_000)
    schema = schemathesis.openapi.from_wsgi("/openapi.json", create_app(), config=schemathesis.Config.from_dict(CONFIG))
    # Here are no pacer and no worker that beat, and it says so, with 503.
    schema = schema.exclude(path="/healthz/deep")
    asked: Counter[str] = Counter()
    wrong: dict[str, str] = {}

    with Crew() as crew:
        for event in engine.from_schema(schema).execute():
            before, found = asked.total(), _wrong(event)
            asked.update(_asked(event))
            for what in found.keys() - wrong.keys():
                print(found[what], flush=True)
            wrong |= found
            if before // SAY_EVERY < asked.total() // SAY_EVERY:
                print(f"seed {SEED}, so far {asked.total():,} requests: {dict(asked)}; {len(wrong)} kinds of failure", flush=True)
    print(f"seed {SEED}, {asked.total():,} requests: {dict(asked)}; {crew.ended:,} jobs ended; {len(wrong)} kinds of failure")

    assert [] == crew.failures
    assert "" == "\n\n".join(wrong.values())
    assert PHASES <= {phase for phase, count in asked.items() if count}
    assert asked.total() >= AT_LEAST


def _asked(event: EngineEvent) -> dict[str, int]:
    return {event.phase.value: len(event.recorder.interactions)} if isinstance(event, ScenarioFinished) else {}


def _wrong(event: EngineEvent) -> dict[str, str]:
    """What failed, by what kind of failure at which operation."""
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
            said = answer and f"{answer.status_code} {answer.text[:500]}"
            found[f"{where} {failed.failure.title}"] = f"{where}: {failed.failure}\n{failed.code_sample}\n{said}"
    return found
