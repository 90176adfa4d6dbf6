"""What the programs see of a failure that comes after the grace time: a clear end, and one call."""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import pytest

from tests.clients.calls import CHAT, Call, Seen
from tests.clients.conftest import World
from tests.clients.programs import CLIENTS, Client, javascript, params

PYTHON, PYTHON_ASYNC, NODE, CURL = (CLIENTS[number] for number in (0, 1, 2, 6))
AI_SDK = Client("AI SDK", (CHAT,), partial(javascript, "ai_sdk"))


def fail_late(world: World, client: Client, key: str, status: int = 400) -> tuple[Seen, str]:
    """What this client saw of a call that failed late with this status, and the words that were asked."""
    asked = f"[[fake:delay=1;status={status}]] {uuid4().hex}"
    return client.one(Call(f"http://127.0.0.1:{world.narrow.port}/v1", key, asked)), asked


@pytest.mark.parametrize("client", params([PYTHON, PYTHON_ASYNC]))
def test_openai_python_raises_what_it_would_have_raised_in_time(world: World, client: Client, key: str) -> None:
    seen, asked = fail_late(world, client, key)

    assert ("BadRequestError", 400) == (seen.error, seen.status)
    assert (1, ["failed"]) == (len(world.calls(asked)), world.jobs(key))


def test_openai_node_raises_instead_of_handing_out_an_answer_without_choices(world: World, key: str) -> None:
    seen, asked = fail_late(world, NODE, key)

    assert ("TypeError", "terminated") == (seen.error, seen.message)
    assert (1, ["failed"]) == (len(world.calls(asked)), world.jobs(key))


def test_the_ai_sdk_asks_again_without_saying_so_and_is_told_the_failure_with_its_status(world: World, key: str) -> None:
    seen, asked = fail_late(world, AI_SDK, key)

    assert "AI_RetryError" in str(seen.error) or "RetryError" == seen.error
    assert "non-retryable" in str(seen.message)
    assert (1, ["failed"]) == (len(world.calls(asked)), world.jobs(key))


@pytest.mark.parametrize("client", params([CURL]))
def test_curl_prints_the_error(world: World, client: Client, key: str) -> None:
    seen, asked = fail_late(world, client, key)

    assert ("shown", 200) == (seen.error, seen.status)
    assert (1, ["failed"]) == (len(world.calls(asked)), world.jobs(key))
