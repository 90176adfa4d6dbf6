"""Failures after the grace time, with the real clients: each raises or prints the error, and the upstream is called once."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import pytest

from tests.clients.calls import CHAT, Call, Seen
from tests.clients.conftest import System
from tests.clients.programs import CLIENTS, Client, javascript, params

PYTHON, PYTHON_ASYNC, NODE, CURL = (CLIENTS[number] for number in (0, 1, 2, 6))
AI_SDK = Client("AI SDK", (CHAT,), partial(javascript, "ai_sdk"))


def fail_late(system: System, client: Client, key: str, status: int = 400) -> tuple[Seen, str]:
    """Returns the result of a call that failed late with this status, and its prompt."""
    prompt = f"[[fake:delay=1;status={status}]] {uuid4().hex}"
    return client.make_one(Call(f"http://127.0.0.1:{system.narrow.port}/v1", key, prompt)), prompt


@pytest.mark.parametrize("client", params([PYTHON, PYTHON_ASYNC]))
def test_openai_python_raises_the_exception_of_the_real_status(system: System, client: Client, key: str) -> None:
    seen, prompt = fail_late(system, client, key)

    assert ("BadRequestError", 400) == (seen.error, seen.status)
    assert (1, ["failed"]) == (len(system.calls(prompt)), system.jobs(key))


def test_openai_node_raises_instead_of_returning_an_answer_without_choices(system: System, key: str) -> None:
    seen, prompt = fail_late(system, NODE, key)

    assert ("TypeError", "terminated") == (seen.error, seen.message)
    assert (1, ["failed"]) == (len(system.calls(prompt)), system.jobs(key))


def test_ai_sdk_retries_and_receives_the_stored_failure(system: System, key: str) -> None:
    seen, prompt = fail_late(system, AI_SDK, key)

    assert "AI_RetryError" in str(seen.error) or "RetryError" == seen.error
    assert "non-retryable" in str(seen.message)
    assert (1, ["failed"]) == (len(system.calls(prompt)), system.jobs(key))


@pytest.mark.parametrize("client", params([CURL]))
def test_curl_prints_the_error(system: System, client: Client, key: str) -> None:
    seen, prompt = fail_late(system, client, key)

    assert ("shown", 200) == (seen.error, seen.status)
    assert (1, ["failed"]) == (len(system.calls(prompt)), system.jobs(key))
