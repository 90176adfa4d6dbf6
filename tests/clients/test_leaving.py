"""Clients that disconnect, and clients whose connection breaks: no call without a client, and no repeated call."""

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
from tests.clients.conftest import System, chat, fresh_key
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
def calling(client: Client, call: Call) -> Iterator[list[Seen]]:
    """The client makes this call in the background; afterwards the list holds its result."""
    seen: list[Seen] = []
    thread = threading.Thread(target=lambda: seen.append(client.make_one(call)))
    thread.start()
    try:
        yield seen
    finally:
        thread.join(60)


def test_killed_waiting_clients_cause_no_upstream_call(system: System) -> None:
    calls = [(program, Call(system.base, fresh_key(), uuid4().hex, kind)) for program, kind in PROGRAMS]
    for _, call in calls:
        system.block(call.key)
    clients = [start(program, call) for program, call in calls]
    for _, call in calls:
        system.wait_jobs(call.key, "queued", "running")
    kill(clients)
    for _, call in calls:
        system.wait_jobs(call.key, "cancelled", "running")
    system.upstream.release()
    for _, call in calls:
        system.wait_jobs(call.key, "cancelled", "succeeded")

    assert [] == [call for _, call in calls if system.calls(call.say)]


def test_killed_streaming_clients_end_their_upstream_calls(system: System) -> None:
    streams = [program for program, kind in PROGRAMS if kind == STREAM]
    calls = [Call(system.base, fresh_key(), f"[[fake:hold_after=3]] {uuid4().hex}", STREAM) for _ in streams]
    held = system.upstream.waiting()
    clients = [start(program, call) for program, call in zip(streams, calls, strict=True)]
    system.upstream.wait_for_held(held + len(calls))
    kill(clients)
    for call in calls:
        system.wait_jobs(call.key, "cancelled")

    gone = [["client_gone"]] * len(calls)
    until(
        lambda: gone == [[upstream_call.outcome for upstream_call in system.calls(call.say)] for call in calls],
        what="the upstream's connections closed",
    )


def test_closed_stream_ends_its_upstream_call(system: System, key: str) -> None:
    prompt = f"[[fake:hold_after=3]] {uuid4().hex}"
    with openai.OpenAI(base_url=system.base, api_key=key) as sdk, sdk.chat.completions.create(stream=True, **chat(prompt)) as stream:
        next(stream)
    system.wait_jobs(key, "cancelled")

    until(lambda: ["client_gone"] == [call.outcome for call in system.calls(prompt)], what="the upstream's connection closed")


def kill(clients: list[subprocess.Popen[bytes]]) -> None:
    for client in clients:
        client.kill()
        client.wait()


def waiter_of(prompt: str) -> object:
    """The waiter id of the job with these words in its request."""
    (row,) = query("SELECT reader FROM job WHERE position(convert_to(:prompt, 'UTF8') IN request) > 0", prompt=prompt)
    return row.reader


@pytest.mark.parametrize("client", params(SDKS))
def test_retry_after_a_broken_connection_finds_its_queued_job(system: System, key: str, client: Client) -> None:
    system.block(key)
    prompt = uuid4().hex
    with Cutter(system.api.port) as network, calling(client, Call(f"http://127.0.0.1:{network.port}/v1", key, prompt)) as seen:
        system.wait_jobs(key, "queued", "running")
        before = waiter_of(prompt)
        network.cut()
        # A connection is not enough: the answer must not be ready before the API has read the retry.
        until(lambda: waiter_of(prompt) != before, what="the retry of the SDK")
        system.upstream.release()

    assert (None, echo(prompt)) == (seen[0].error, seen[0].text)
    assert 1 == len(system.calls(prompt))
    assert ["succeeded", "succeeded"] == system.jobs(key)


@pytest.mark.parametrize("client", params(SDKS))
def test_retry_after_a_broken_connection_finds_its_running_job(system: System, key: str, client: Client) -> None:
    prompt = f"[[fake:hold]] {uuid4().hex}"
    held = system.upstream.waiting()
    with Cutter(system.api.port) as network, calling(client, Call(f"http://127.0.0.1:{network.port}/v1", key, prompt)) as seen:
        system.upstream.wait_for_held(held + 1)
        before = waiter_of(prompt)
        network.cut()
        # As above: wait until the API has read the retry.
        until(lambda: waiter_of(prompt) != before, what="the retry of the SDK")
        system.upstream.release()

    assert (None, echo(prompt)) == (seen[0].error, seen[0].text)
    assert 1 == len(system.calls(prompt))


@pytest.mark.parametrize("client", params(SDKS[:2]))
def test_retry_finds_its_job_after_the_status_was_sent(system: System, key: str, client: Client) -> None:
    system.block(key)
    prompt = uuid4().hex
    with Cutter(system.narrow.port) as network, calling(client, Call(f"http://127.0.0.1:{network.port}/v1", key, prompt)) as seen:
        until(lambda: network.answered, what="the status sent")
        before = waiter_of(prompt)
        network.cut()
        # As above: wait until the API has read the retry.
        until(lambda: waiter_of(prompt) != before, what="the retry of the SDK")
        system.upstream.release()

    assert (None, echo(prompt)) == (seen[0].error, seen[0].text)
    assert 1 == len(system.calls(prompt))


@pytest.mark.parametrize("client", params(SDKS[:2]))
def test_python_raises_the_right_class_for_a_failure_after_the_status(system: System, key: str, client: Client) -> None:
    call = Call("", key, f"[[fake:hold;status=403]] {uuid4().hex}")
    with Cutter(system.narrow.port) as network, calling(client, replace(call, base=f"http://127.0.0.1:{network.port}/v1")) as seen:
        until(lambda: network.answered, what="the status sent")
        system.upstream.release()

    assert ("PermissionDeniedError", 403) == (seen[0].error, seen[0].status)
    assert 1 == len(system.calls(call.say))
