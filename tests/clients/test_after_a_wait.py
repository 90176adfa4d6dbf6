"""Every client in line for more than a minute, all at the same time, so that the minute is waited for once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.clients.calls import CHAT, IMAGE, STREAM, Call, Seen
from tests.clients.conftest import World, chat, fresh_key
from tests.clients.programs import CLIENTS, Client, curl, readme
from tests.clients.raw import Raw
from tests.upstream.chat import echo

pytestmark = pytest.mark.slow

MINUTE_S = 60
# One request in so many seconds at the upstream, who says so in its headers: the first call makes the second wait.
WINDOW_S = 66.0
SAID = "after a minute: Übersetze 世界 😀"
README = Client("curl as in the README", (CHAT, STREAM, IMAGE), curl)
CHAT_MODEL, IMAGE_MODEL = "gpt-6-astra-mini", "gpt-image-2.6-flare"
# Shorter than the wait: what keeps the connection alive must reach the SDK in time.
OPTIONS = {"openai-python": {"timeout": 45}, "openai-python, async": {"timeout": 45}, "openai-node": {"timeout": 45_000}}
WAITERS = [(client, kind) for client in (*CLIENTS, README) for kind in client.kinds if kind in (CHAT, STREAM, IMAGE)]
PARAMS = [pytest.param(client, kind, id=f"{client.name}, {kind}", marks=client.marks) for client, kind in WAITERS]


@dataclass
class Waited:
    """calls, seen: by client and kind. stream: one that was read byte by byte; began: when it was asked for."""

    calls: dict[tuple[str, str], Call]
    seen: dict[tuple[str, str], Seen]
    stream: Raw
    began: float


@pytest.fixture(scope="module")
def waited(world: World) -> Iterator[Waited]:
    waiters = [(client, kind) for client, kind in WAITERS if client.is_here]
    calls = {(client.name, kind): call_of(world, client, kind) for client, kind in waiters}
    own = Call(world.base, fresh_key(), SAID, STREAM, CHAT_MODEL)
    with ThreadPoolExecutor(len(calls) + 1) as threads:
        list(threads.map(lambda call: spend(world, call), [*calls.values(), own]))
        began = time.monotonic()
        with Raw(world.api.port, "/v1/chat/completions", chat(SAID, stream=True), own.key, timeout_s=30) as stream:
            answers = {(client.name, kind): threads.submit(client.one, calls[client.name, kind]) for client, kind in waiters}
            stream.whole()
            yield Waited(calls, {name: answer.result() for name, answer in answers.items()}, stream, began)


def call_of(world: World, client: Client, kind: str) -> Call:
    """A call of this kind with a key of its own."""
    if client is README:
        line = readme(world.base)[kind]
        (model,) = re.findall(r'"model": "([^"]+)"', line)
        (said,) = re.findall(r'"prompt": "([^"]+)"|"user", "content": "([^"]+)"', line)
        return Call(world.base, fresh_key(), "".join(said), kind, model, line=line)
    model, more = (IMAGE_MODEL, {"n": 2, "size": "512x512"}) if kind == IMAGE else (CHAT_MODEL, {})
    return Call(world.base, fresh_key(), f"{client.name}, {kind}: {SAID}", kind, model, more=more, options=OPTIONS.get(client.name, {}))


def spend(world: World, call: Call) -> None:
    """This key's one request of the minute is made."""
    world.upstream.limit(call.key, rpm=1, window_s=WINDOW_S)
    path, body = "/v1/chat/completions", chat("first", model=call.model)
    if call.kind == IMAGE:
        path, body = "/v1/images/generations", {"model": call.model, "prompt": "first"}
    with Raw(world.api.port, path, body, call.key) as answer:
        assert 200 == answer.head().status, answer.whole()
        answer.whole()


@pytest.mark.parametrize(("client", "kind"), PARAMS)
def test_a_client_is_answered_after_more_than_a_minute_in_line(world: World, waited: Waited, client: Client, kind: str) -> None:
    call, seen = waited.calls[client.name, kind], waited.seen[client.name, kind]

    assert (None, None) == (seen.error, seen.broken)
    assert seen.took_s > MINUTE_S
    if kind == IMAGE:
        assert 2 == len(set(seen.pictures))
    else:
        assert (echo(call.say), "stop") == (seen.text, seen.finish)
    assert [("first", "200"), (call.say, "200")] == [
        (one.text, one.outcome) for one in world.upstream.calls(key=call.key) if not one.is_refused
    ]


def test_rule_1_the_headers_and_a_comment_came_at_once(waited: Waited) -> None:
    assert 200 == waited.stream.status
    assert waited.stream.frames[0][0] - waited.began < 20  # a third of the minute that it waits


def test_rule_2_waiting_client_receives_bytes_every_ten_seconds(waited: Waited) -> None:
    times = [waited.began, *(at for at, _ in waited.stream.frames)]

    assert times[-1] - waited.began > MINUTE_S
    # The rule says ten; a busy machine may be late.
    assert max(after - before for before, after in pairwise(times)) < 20
    assert len(re.findall(rb": queued position=\d+ eta_s=[\d.]+\n", waited.stream.text)) >= 4
