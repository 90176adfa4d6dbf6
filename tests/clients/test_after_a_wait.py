"""Every client waits in the queue for more than a minute, all at the same time, so that the tests wait only once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.clients.calls import CHAT, IMAGE, STREAM, Call, Seen
from tests.clients.conftest import System, chat, fresh_key
from tests.clients.programs import CLIENTS, Client, curl, readme
from tests.clients.raw import Raw
from tests.upstream.chat import echo

pytestmark = pytest.mark.slow

MINUTE_S = 60
# The upstream allows one request in this window and reports it in headers: the first call makes the second one wait.
WINDOW_S = 66.0
PROMPT = "after a minute: Übersetze 世界 😀"
README = Client("curl as in the README", (CHAT, STREAM, IMAGE), curl)
CHAT_MODEL, IMAGE_MODEL = "gpt-6-astra-mini", "gpt-image-2.6-flare"
# Shorter than the wait, so the SDK times out unless the keep-alive bytes reach it.
OPTIONS = {"openai-python": {"timeout": 45}, "openai-python, async": {"timeout": 45}, "openai-node": {"timeout": 45_000}}
WAITING = [(client, kind) for client in (*CLIENTS, README) for kind in client.kinds if kind in (CHAT, STREAM, IMAGE)]
PARAMS = [pytest.param(client, kind, id=f"{client.name}, {kind}", marks=client.marks) for client, kind in WAITING]


@dataclass
class Waited:
    """The results. calls, seen: by client and kind. stream: read byte by byte. began: when the stream was requested."""

    calls: dict[tuple[str, str], Call]
    seen: dict[tuple[str, str], Seen]
    stream: Raw
    began: float


@pytest.fixture(scope="module")
def waited(system: System) -> Iterator[Waited]:
    waiting = [(client, kind) for client, kind in WAITING if client.is_installed]
    calls = {(client.name, kind): call_of(system, client, kind) for client, kind in waiting}
    own = Call(system.base, fresh_key(), PROMPT, STREAM, CHAT_MODEL)
    with ThreadPoolExecutor(len(calls) + 1) as threads:
        list(threads.map(lambda call: use_up_request(system, call), [*calls.values(), own]))
        began = time.monotonic()
        with Raw(system.api.port, "/v1/chat/completions", chat(PROMPT, stream=True), own.key, timeout_s=30) as stream:
            answers = {(client.name, kind): threads.submit(client.make_one, calls[client.name, kind]) for client, kind in waiting}
            stream.whole()
            yield Waited(calls, {name: answer.result() for name, answer in answers.items()}, stream, began)


def call_of(system: System, client: Client, kind: str) -> Call:
    """A call of this kind with its own key."""
    if client is README:
        line = readme(system.base)[kind]
        (model,) = re.findall(r'"model": "([^"]+)"', line)
        (match,) = re.findall(r'"prompt": "([^"]+)"|"user", "content": "([^"]+)"', line)
        return Call(system.base, fresh_key(), "".join(match), kind, model, line=line)
    model, more = (IMAGE_MODEL, {"n": 2, "size": "512x512"}) if kind == IMAGE else (CHAT_MODEL, {})
    return Call(system.base, fresh_key(), f"{client.name}, {kind}: {PROMPT}", kind, model, more=more, options=OPTIONS.get(client.name, {}))


def use_up_request(system: System, call: Call) -> None:
    """Use up the one request that this key has per window."""
    system.upstream.limit(call.key, rpm=1, window_s=WINDOW_S)
    path, body = "/v1/chat/completions", chat("first", model=call.model)
    if call.kind == IMAGE:
        path, body = "/v1/images/generations", {"model": call.model, "prompt": "first"}
    with Raw(system.api.port, path, body, call.key) as answer:
        assert 200 == answer.head().status, answer.whole()
        answer.whole()


@pytest.mark.parametrize(("client", "kind"), PARAMS)
def test_client_gets_its_answer_after_a_minute_in_the_queue(system: System, waited: Waited, client: Client, kind: str) -> None:
    call, seen = waited.calls[client.name, kind], waited.seen[client.name, kind]

    assert (None, None) == (seen.error, seen.broken)
    assert seen.took_s > MINUTE_S
    if kind == IMAGE:
        assert 2 == len(set(seen.pictures))
    else:
        assert (echo(call.say), "stop") == (seen.text, seen.finish)
    assert [("first", "200"), (call.say, "200")] == [
        (upstream_call.text, upstream_call.outcome) for upstream_call in system.upstream.calls(key=call.key) if not upstream_call.is_refused
    ]


def test_rule_1_headers_and_a_comment_are_sent_at_once(waited: Waited) -> None:
    assert 200 == waited.stream.status
    assert waited.stream.frames[0][0] - waited.began < 20  # a third of the minute that it waits


def test_rule_2_waiting_client_receives_bytes_every_ten_seconds(waited: Waited) -> None:
    times = [waited.began, *(at for at, _ in waited.stream.frames)]

    assert times[-1] - waited.began > MINUTE_S
    # The rule requires ten seconds; a busy machine may be late.
    assert max(after - before for before, after in pairwise(times)) < 20
    assert len(re.findall(rb": queued position=\d+ eta_s=[\d.]+\n", waited.stream.text)) >= 4
