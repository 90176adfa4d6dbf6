"""What is being sent is held in memory, all bodies of a process together: large ones are refused before that is too much."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from flask import request

from api import body
from api.app import create_app
from api.intake import intake
from models.errors import Unavailable
from tests.http_tools import CHAT, Caller, error_of, stored

MIB = 2**20

pytestmark = pytest.mark.usefixtures("environment")


@contextmanager
def sending(size: int) -> Iterator[bytes]:
    """A request whose body is held."""
    with create_app().test_request_context(method="POST", data=b"x" * size):
        yield body.receive(request, most=100 * MIB)


def test_large_bodies_share_the_memory_there_is_and_small_ones_always_fit(override: Callable[..., None]) -> None:
    override(max_intake_bytes=3 * MIB)

    with sending(3 * MIB):
        with sending(2 * MIB), sending(MIB):
            assert 3 * MIB == intake.held_bytes
            with pytest.raises(Unavailable) as refused, sending(MIB + 1):
                pass
        assert 2 * MIB == intake.held_bytes
        with sending(2 * MIB) as content:
            assert 2 * MIB == len(content)

    assert (0, 503) == (intake.held_bytes, refused.value.status)
    assert refused.value.retry_after_s


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("padding", [0, 3, 5])
def test_what_was_taken_is_given_back_whatever_becomes_of_the_request(padding: int, override: Callable[..., None]) -> None:
    override(max_intake_bytes=3 * MIB, max_body_bytes=4 * MIB)
    caller = Caller()

    statuses = [
        caller.post("/v1/jobs", data=content + b" " * padding * MIB, content_type="application/json").status_code
        for content in (json.dumps(CHAT).encode(), b"{", b"\xff")
    ]

    assert 0 == intake.held_bytes
    assert [413] * 3 == statuses if padding == 5 else [202, 400, 400] == statuses


@pytest.mark.usefixtures("database")
def test_a_refusal_for_lack_of_room_asks_to_come_back(override: Callable[..., None]) -> None:
    override(max_intake_bytes=MIB)

    answer = Caller().post("/v1/jobs", data=json.dumps(CHAT).encode() + b" " * 3 * MIB, content_type="application/json")

    assert (503, "unavailable", "5", 0) == (answer.status_code, error_of(answer)["code"], answer.headers["Retry-After"], stored())
