"""Clients that go away and clients whose connection breaks: nothing is called for nobody, and nothing is called twice."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import openai
import pytest

from tests.clients.calls import CHAT, STREAM, Call, Seen
from tests.clients.conftest import World, chat, fresh_key
from tests.clients.cutter import Cutter
from tests.clients.programs import CLIENTS, Client, params, start
from tests.support.programs.process import until
from tests.support.queue_tools import query
from tests.upstream.chat import echo

PROGRAMS = [
    ("openai", CHAT), ("openai", STREAM), ("chatgpt", CHAT), ("chatgpt", STREAM), ("fetch_event_source", CHAT),
    ("fetch_event_source", STREAM),
    ("eventsource_parser", STREAM),
    *([("curl", CHAT), ("curl", STREAM)] if shutil.which("curl") else []),
]  # fmt: skip
SDKS = CLIENTS[:3]


@contextmanager
def asking(client: Client, call: Call) -> Iterator[list[Seen]]:
    """The client makes this call meanwhile; afterwards what it saw is in the list."""
    seen: list[Seen] = []
    thread = threading.Thread(target=lambda: seen.append(client.one(call)))
    thread.start()
    try:
        yield seen
    finally:
        thread.join(60)


def test_clients_killed_in_line_are_never_called_for(world: World) -> None:
    calls = [(program, Call(world.base, fresh_key(), uuid4().hex, kind)) for program, kind in PROGRAMS]
    for _, call in calls:
        world.block(call.key)
    clients = [start(program, call) for program, call in calls]
    for _, call in calls:
        world.wait_jobs(call.key, "queued", "running")
    kill(clients)
    for _, call in calls:
        world.wait_jobs(call.key, "cancelled", "running")
    world.upstream.release()
    for _, call in calls:
        world.wait_jobs(call.key, "cancelled", "succeeded")

    assert [] == [call for _, call in calls if world.calls(call.say)]


def test_clients_killed_in_their_streams_free_the_upstream(world: World) -> None:
    streams = [program for program, kind in PROGRAMS if kind == STREAM]
    calls = [Call(world.base, fresh_key(), f"[[fake:hold_after=3]] {uuid4().hex}", STREAM) for _ in streams]
    held = world.upstream.waiting()
    clients = [start(program, call) for program, call in zip(streams, calls, strict=True)]
    world.upstream.wait_for_held(held + len(calls))
    kill(clients)
    for call in calls:
        world.wait_jobs(call.key, "cancelled")

    gone = [["client_gone"]] * len(calls)
    until(lambda: gone == [[one.outcome for one in world.calls(call.say)] for call in calls], what="the upstream's connections closed")


def test_client_that_stops_reading_a_stream_frees_the_upstream(world: World, key: str) -> None:
    said = f"[[fake:hold_after=3]] {uuid4().hex}"
    with openai.OpenAI(base_url=world.base, api_key=key) as sdk, sdk.chat.completions.create(stream=True, **chat(said)) as stream:
        next(stream)
    world.wait_jobs(key, "cancelled")

    until(lambda: ["client_gone"] == [call.outcome for call in world.calls(said)], what="the upstream's connection closed")


def kill(clients: list[subprocess.Popen[bytes]]) -> None:
    for client in clients:
        client.kill()
        client.wait()


def reader_of(said: str) -> object:
    """The reader of the job with these words in its request."""
    (row,) = query("SELECT reader FROM job WHERE position(convert_to(:said, 'UTF8') IN request) > 0", said=said)
    return row.reader


@pytest.mark.parametrize("client", params(SDKS))
def test_a_retry_after_a_broken_connection_finds_its_job_in_line(world: World, key: str, client: Client) -> None:
    world.block(key)
    said = uuid4().hex
    with Cutter(world.api.port) as network, asking(client, Call(f"http://127.0.0.1:{network.port}/v1", key, said)) as seen:
        world.wait_jobs(key, "queued", "running")
        before = reader_of(said)
        network.cut()
        # Not only connected: an answer that is ready before the API has read the retry would be one for nobody yet.
        until(lambda: reader_of(said) != before, what="the SDK asking again")
        world.upstream.release()

    assert (None, echo(said)) == (seen[0].error, seen[0].text)
    assert 1 == len(world.calls(said))
    assert ["succeeded", "succeeded"] == world.jobs(key)


@pytest.mark.parametrize("client", params(SDKS))
def test_a_retry_after_a_broken_connection_finds_its_running_call(world: World, key: str, client: Client) -> None:
    said = f"[[fake:hold]] {uuid4().hex}"
    held = world.upstream.waiting()
    with Cutter(world.api.port) as network, asking(client, Call(f"http://127.0.0.1:{network.port}/v1", key, said)) as seen:
        world.upstream.wait_for_held(held + 1)
        before = reader_of(said)
        network.cut()
        # Not only connected: an answer that is ready before the API has read the retry would be one for nobody yet.
        until(lambda: reader_of(said) != before, what="the SDK asking again")
        world.upstream.release()

    assert (None, echo(said)) == (seen[0].error, seen[0].text)
    assert 1 == len(world.calls(said))


@pytest.mark.parametrize("client", params(SDKS[:2]))
def test_a_connection_that_breaks_after_the_status_was_sent_is_found_again(world: World, key: str, client: Client) -> None:
    world.block(key)
    said = uuid4().hex
    with Cutter(world.narrow.port) as network, asking(client, Call(f"http://127.0.0.1:{network.port}/v1", key, said)) as seen:
        until(lambda: network.answered, what="the status sent")
        before = reader_of(said)
        network.cut()
        # Not only connected: an answer that is ready before the API has read the retry would be one for nobody yet.
        until(lambda: reader_of(said) != before, what="the SDK asking again")
        world.upstream.release()

    assert (None, echo(said)) == (seen[0].error, seen[0].text)
    assert 1 == len(world.calls(said))


@pytest.mark.parametrize("client", params(SDKS[:2]))
def test_python_raises_the_right_class_for_a_failure_after_the_status_was_sent(world: World, key: str, client: Client) -> None:
    call = Call("", key, f"[[fake:hold;status=403]] {uuid4().hex}")
    with Cutter(world.narrow.port) as network, asking(client, replace(call, base=f"http://127.0.0.1:{network.port}/v1")) as seen:
        until(lambda: network.answered, what="the status sent")
        world.upstream.release()

    assert ("PermissionDeniedError", 403) == (seen[0].error, seen[0].status)
    assert 1 == len(world.calls(call.say))
