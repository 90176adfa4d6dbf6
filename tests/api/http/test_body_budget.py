"""Bodies in memory: all of one process together have a budget, and one key has a share of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from uuid import uuid4

import pytest
from flask import request

from api.http import request_body
from api.http.body_budget import BodyBudget, budget
from models.platform.errors import Unavailable
from tests.support.http_tools import CHAT, Caller, error_of, new_app, stored
from tests.support.programs.process import until

MIB = 2**20

pytestmark = pytest.mark.usefixtures("environment")


@contextmanager
def sending(size: int, *, key: str | None = None) -> Iterator[bytes]:
    """A request in chunks, whose length is not known before, and whose body is held. key: None: one of its own."""
    environ = {"wsgi.input_terminated": True, "wsgi.input": BytesIO(b"x" * size)}
    headers = {"Authorization": f"Bearer {key or uuid4()}"}
    with new_app().test_request_context(method="POST", headers=headers, environ_overrides=environ):
        yield request_body.read_bytes(request, limit=100 * MIB)


def test_large_bodies_share_the_memory_there_is_and_small_ones_always_fit(override: Callable[..., None]) -> None:
    override(max_intake_bytes=3 * MIB)

    with sending(3 * MIB):
        with sending(2 * MIB), sending(MIB):
            assert 3 * MIB == budget.held_bytes
            with pytest.raises(Unavailable) as refused, sending(MIB + 1):
                pass
        assert 2 * MIB == budget.held_bytes
        with sending(2 * MIB) as content:
            assert 2 * MIB == len(content)

    assert (0, 503) == (budget.held_bytes, refused.value.status)
    assert refused.value.retry_after_s


def test_one_key_holds_half_of_the_memory_or_a_single_body(override: Callable[..., None]) -> None:
    override(max_intake_bytes=4 * MIB)

    with sending(4 * MIB, key="large"), pytest.raises(Unavailable), sending(MIB + 1, key="large"):
        pass
    with sending(2 * MIB, key="a"), sending(2 * MIB, key="a"):
        with pytest.raises(Unavailable), sending(MIB + 1, key="a"):
            pass
        with sending(MIB, key="a"), sending(3 * MIB, key="b"):
            assert 4 * MIB == budget.held_bytes
    assert 0 == budget.held_bytes


def test_waiter_behind_a_key_at_its_share_is_not_delayed(override: Callable[..., None]) -> None:
    override(max_intake_bytes=4 * MIB)
    own, order = BodyBudget(), []
    own.reserve(2 * MIB, key="a")
    waits = threading.Thread(target=lambda: (own.reserve(MIB, key="a"), order.append("a")))
    waits.start()
    until(lambda: own._waiting, what="the key's second body in line")
    own.reserve(MIB, key="b", wait_s=0)
    order.append("b")
    own.release(2 * MIB, key="a")
    waits.join(20)

    assert ["b", "a"] == order


def test_bodies_of_known_length_wait_for_room_in_the_order_they_came(override: Callable[..., None]) -> None:
    override(max_intake_bytes=3 * MIB)
    own, order = BodyBudget(), []
    own.reserve(2 * MIB)
    threads = [threading.Thread(target=lambda size=size: (own.reserve(size), order.append(size))) for size in (3 * MIB, MIB)]
    for n, thread in enumerate(threads):
        thread.start()
        until(lambda n=n: len(own._waiting) > n, what="in line")

    own.release(2 * MIB)
    until(lambda: order == [3 * MIB], what="the first")
    own.release(3 * MIB)
    for thread in threads:
        thread.join()

    assert ([3 * MIB, MIB], MIB) == (order, own.held_bytes)


def test_a_body_for_which_there_is_no_room_in_time_is_refused(override: Callable[..., None]) -> None:
    override(max_intake_bytes=3 * MIB)
    own = BodyBudget()
    own.reserve(3 * MIB)

    for size, wait_s in ((1, 0), (3 * MIB + 1, 60)):
        with pytest.raises(Unavailable):
            own.reserve(size, wait_s=wait_s)
    own.release(3 * MIB)
    own.reserve(3 * MIB, wait_s=0)


TRICKLE = """
from gevent import monkey; monkey.patch_all()
import socket, time, gevent
from flask import request
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.unreader import SocketUnreader
from api.http import request_body as body
from tests.support.http_tools import new_app
body.GRACE_S, body.MIN_BYTES_PER_S = 0.5, 1024 * 1024
ours, theirs = socket.socketpair()
def trickle():
    while True:
        theirs.sendall(b" ")
        gevent.sleep(0.1)
gevent.spawn(trickle)
environ = {
    "wsgi.input": Body(LengthReader(SocketUnreader(ours), 1_000_000)), "gunicorn.socket": ours, "CONTENT_LENGTH": "1000000"
}
with new_app().test_request_context(method="POST", environ_overrides=environ), gevent.Timeout(10):
    try:
        body.read_bytes(request, limit=2_000_000)
    except body.Timeout:
        print("too slow")
"""


def test_a_body_that_trickles_is_given_up(environment: dict[str, str]) -> None:
    """Each byte comes within the longest pause, but the whole body would take a day, and hold its room for that long."""
    done = subprocess.run([sys.executable, "-c", TRICKLE], capture_output=True, text=True, timeout=60)

    assert "too slow\n" == done.stdout, done.stderr


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("padding", [0, 3, 5])
def test_body_budget_is_released_after_any_request(padding: int, override: Callable[..., None]) -> None:
    override(max_intake_bytes=3 * MIB, max_body_bytes=4 * MIB)
    caller = Caller()

    statuses = [
        caller.post("/v1/jobs", data=content + b" " * padding * MIB, content_type="application/json").status_code
        for content in (json.dumps(CHAT).encode(), b"{", b"\xff")
    ]

    assert 0 == budget.held_bytes
    assert [413] * 3 == statuses if padding == 5 else [202, 400, 400] == statuses


@pytest.mark.usefixtures("database")
def test_a_refusal_for_lack_of_room_asks_to_come_back(override: Callable[..., None]) -> None:
    override(max_intake_bytes=MIB)

    answer = Caller().post("/v1/jobs", data=json.dumps(CHAT).encode() + b" " * 3 * MIB, content_type="application/json")

    assert (503, "unavailable", "5", 0) == (answer.status_code, error_of(answer)["code"], answer.headers["Retry-After"], stored())
