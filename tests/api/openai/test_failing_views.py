"""A request that fails after its job was stored releases its waiter, and its disconnect is recorded."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from api.jobs import event_stream
from api.openai import rate_limit_headers, stream_response
from api.waiting.registry import waiter_registry
from tests.support.http_tools import CHAT, Caller
from tests.support.programs.process import until
from tests.support.queue_tools import query

pytestmark = pytest.mark.usefixtures("database", "redis_client")


def fail(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("as the test wants it")


def is_left() -> bool:
    return all(row.left_at for row in query("SELECT left_at FROM job"))


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_error_of_the_rate_limit_headers_releases_the_waiter(is_stream: bool, monkeypatch: pytest.MonkeyPatch, override: Any) -> None:
    override(status_grace_s=0)
    monkeypatch.setattr(rate_limit_headers, "of_lane", fail)

    answer = Caller().post("/v1/chat/completions", {**CHAT["body"], "stream": is_stream})

    assert (500, 0, 0) == (answer.status_code, len(waiter_registry), waiter_registry.streams)
    until(is_left, what="the disconnect recorded")


def test_an_error_of_the_stream_releases_the_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_response, "StreamEvents", fail)

    answer = Caller().post("/v1/chat/completions", {**CHAT["body"], "stream": True})

    assert (500, 0, 0) == (answer.status_code, len(waiter_registry), waiter_registry.streams)
    until(is_left, what="the disconnect recorded")


def test_an_error_of_the_event_stream_releases_the_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller()
    name = caller.submit()
    monkeypatch.setattr(event_stream, "EventStream", fail)

    answer = caller.get(f"/v1/jobs/{name}/events")

    assert (500, 0, 0) == (answer.status_code, len(waiter_registry), waiter_registry.streams)
