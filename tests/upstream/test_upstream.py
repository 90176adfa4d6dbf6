"""Tests of the fake upstream, on which the other tests rely."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from PIL import Image

from tests.upstream.client import ROOT, FakeUpstream, upstream
from tests.upstream.images import png
from tests.upstream.journal import fingerprint
from tests.upstream.limits import Limits, Rule, duration
from tests.upstream.texts import vector

__all__ = ["upstream"]
KEY = "sk-test"


@pytest.fixture
def sdk(upstream: FakeUpstream) -> Iterator[openai.OpenAI]:
    with client_of(upstream) as client:
        yield client


def client_of(upstream: FakeUpstream, *, key: str = KEY, is_strict: bool = True, timeout_s: float = 5) -> openai.OpenAI:
    return openai.OpenAI(
        api_key=key, base_url=upstream.base_url, max_retries=0, timeout=timeout_s, _strict_response_validation=is_strict
    )  # fmt: skip


def say(client: openai.OpenAI, text: str, **more: Any) -> ChatCompletion:
    done: ChatCompletion = client.chat.completions.create(model="gpt-6-astra", messages=[{"role": "user", "content": text}], **more)
    return done


def raw(upstream: FakeUpstream, *sent: bytes) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", upstream.port), timeout=5)
    for piece in sent:
        opened.sendall(piece)
    return opened


def chat_bytes(text: str, *, headers: str = "", **more: object) -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class TestShapes:
    def test_chat_says_the_last_user_message_back(self, sdk: openai.OpenAI) -> None:
        messages = [
            {"role": "system", "content": "12345678"},
            {"role": "user", "content": [{"type": "text", "text": "hé"}, {"type": "text", "text": "llo 😀"}]},
        ]
        done = sdk.chat.completions.create(model="gpt-6-astra", messages=messages, n=2)  # type: ignore[arg-type]  # plain dicts

        assert ["echo: héllo 😀"] * 2 == [choice.message.content for choice in done.choices]
        assert done.usage is not None
        assert (4 + 2 * 4, 4 * 2) == (done.usage.prompt_tokens, done.usage.completion_tokens)
        assert {"kept": True} == done.to_dict()["x_extra"]

    def test_every_answer_has_its_own_id_and_the_headers_of_openai(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        messages: Any = [{"role": "user", "content": "hi"}]
        responses = [sdk.chat.completions.with_raw_response.create(model="m", messages=messages) for _ in range(2)]

        assert 2 == len({response.parse().id for response in responses})
        assert [call.request_id for call in upstream.calls()] == [response.headers["x-request-id"] for response in responses]
        assert {"openai-processing-ms", "openai-version"} <= set(responses[0].headers)

    def test_a_streamed_chat_adds_up_to_the_plain_one(self, sdk: openai.OpenAI) -> None:
        messages: Any = [{"role": "user", "content": "a text of more than one piece"}]
        options: Any = {"include_usage": True}
        chunks = list(sdk.chat.completions.create(model="m", messages=messages, stream=True, stream_options=options))

        assert "echo: a text of more than one piece" == "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert [] == chunks[-1].choices
        assert chunks[-1].usage == say(sdk, "a text of more than one piece").usage

    def test_images_are_real_and_decided_by_their_prompt(self, sdk: openai.OpenAI) -> None:
        made = sdk.images.generate(prompt="otter", n=2, model="gpt-image-2.6-flare")

        assert made.data is not None and made.usage is not None
        images = [base64.b64decode(image.b64_json or "") for image in made.data]
        assert [png("otter", 0), png("otter", 1)] == images
        assert (8, 8) == Image.open(BytesIO(images[0])).size

    def test_a_streamed_image_comes_in_parts(self, sdk: openai.OpenAI) -> None:
        events = list(sdk.images.generate(prompt="o", model="gpt-image-2.6-flare", stream=True, partial_images=2))

        assert ["image_generation.partial_image"] * 2 + ["image_generation.completed"] == [event.type for event in events]

    def test_an_edit_takes_several_images(self, sdk: openai.OpenAI) -> None:
        made = sdk.images.edit(prompt="hat", image=[png("a"), png("b")], model="gpt-image-2.6-flare")

        assert made.data is not None
        assert png("hat", 0) == base64.b64decode(made.data[0].b64_json or "")

    def test_embeddings_are_the_same_in_both_encodings(self, upstream: FakeUpstream) -> None:
        with client_of(upstream, is_strict=False) as loose:
            as_base64 = loose.embeddings.create(model="e", input=["a", "b"])
            as_float = loose.embeddings.create(model="e", input=["a", "b"], encoding_format="float")

        assert [vector("a"), vector("b")] == [row.embedding for row in as_float.data] == [row.embedding for row in as_base64.data]

    def test_moderations_and_models_validate(self, sdk: openai.OpenAI) -> None:
        assert [False, True] == [result.flagged for result in sdk.moderations.create(input=["kind", "flag-me"]).results]
        assert "gpt-6-astra" == sdk.models.retrieve(sdk.models.list().data[0].id).id
        with pytest.raises(openai.NotFoundError):
            sdk.models.retrieve("no-such-model")

    def test_wrong_calls_are_400_401_and_404(self, upstream: FakeUpstream) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", upstream.port)) as connection:
            for key, path, body, expected in (
                (KEY, "/v1/chat/completions", "{", 400),
                (KEY, "/v1/chat/completions", '{"model": "m", "messages": [], "n": 1}', 400),
                (KEY, "/v1/chat/completions", '{"model": "m", "messages": ["x"]}', 400),
                ("", "/v1/chat/completions", "{}", 401),
                (KEY, "/v1/nowhere", "{}", 404),
            ):
                connection.request("POST", path, body, {"Authorization": f"Bearer {key}"} if key else {})
                response = connection.getresponse()
                assert {"message", "type", "param", "code"} == set(json.loads(response.read())["error"])
                assert expected == response.status


class TestWire:
    def test_chunked_pipelined_and_closing_requests_are_understood(self, upstream: FakeUpstream) -> None:
        plain, closing_one = chat_bytes("one"), chat_bytes("three", headers="Connection: close\r\n")
        head, _, body = chat_bytes("two").partition(b"\r\n\r\n")
        head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head) + b"\r\n\r\n"
        chunked = head + b"5\r\n" + body[:5] + b"\r\n" + b"%x;x=y\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n"
        with raw(upstream, plain + chunked[:-30]) as opened:
            opened.sendall(chunked[-30:] + closing_one)
            got = b"".join(iter(lambda: opened.recv(65536), b""))

        assert ["one", "two", "three"] == re.findall(r'"content":"echo: (\w+)"', got.decode())

    def test_expect_100_continue_is_answered(self, upstream: FakeUpstream) -> None:
        head, _, body = chat_bytes("hi", headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        with raw(upstream, head + b"\r\n\r\n") as opened:
            assert opened.recv(1000).startswith(b"HTTP/1.1 100")
            opened.sendall(body)
            assert opened.recv(1000).startswith(b"HTTP/1.1 200")

    def test_it_dies_with_its_parent(self) -> None:
        program = (
            "import signal; from tests.upstream.client import FakeUpstream; print(FakeUpstream().start().pid, flush=True); signal.pause()"
        )
        with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            parent.send_signal(signal.SIGKILL)
        until = time.monotonic() + 5
        while is_alive(pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with Path(f"/proc/{pid}/stat").open() as stat:  # a zombie counts as dead
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestLimits:
    @given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60)), max_size=60), st.booleans())
    def test_a_window_never_admits_more_than_the_limit_in_any_minute(self, asked: list[tuple[float, int]], counts: bool) -> None:
        limits, now, admitted = Limits(Rule({"rpm": 5, "tpm": 100}, "window", count_refused=counts)), 0.0, []
        for pause_s, tokens in asked:
            now += pause_s
            if limits.admit(now, tokens=tokens, images=0) is None:
                admitted.append((now, tokens))

        for start, _ in admitted:
            inside = [tokens for at, tokens in admitted if start <= at < start + 60]
            assert len(inside) <= 5
            assert sum(inside) <= 100

    @given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 60)), max_size=60), st.sampled_from(["bucket", "window"]))
    def test_client_that_follows_retry_after_is_served(self, asked: list[tuple[float, int]], mode: str) -> None:
        limits, now = Limits(Rule({"rpm": 5, "tpm": 100, "ipm": 3}, mode)), 0.0
        for pause_s, tokens in asked:
            now += pause_s
            refusal = limits.admit(now, tokens=tokens, images=tokens % 3)
            if refusal is not None:
                assert refusal.retry_after_s
                now += refusal.retry_after_s + 1e-6  # rounded up, as in the header; the clock never goes back
                assert limits.admit(now, tokens=tokens, images=tokens % 3) is None

    def test_a_bucket_refills_evenly(self) -> None:
        limits = Limits(Rule({"rpm": 60}, count_refused=False))
        first = [limits.admit(0.0, tokens=1, images=0) for _ in range(61)]
        later = [limits.admit(2.0, tokens=1, images=0) for _ in range(3)]

        assert [60, 2] == [first.count(None), later.count(None)]

    def test_whoever_hammers_a_bucket_starves(self) -> None:
        limits = Limits(Rule({"rpm": 2}))
        admitted = [limits.admit(second, tokens=1, images=0) is None for second in range(60)]

        assert 2 == sum(admitted)

    def test_durations_are_written_as_go_does(self) -> None:
        written = {0: "0s", 0.012: "12ms", 1: "1s", 8.64: "8.64s", 59.9999: "1m0s", 360: "6m0s", 86391: "23h59m51s"}
        assert list(written.values()) == [duration(seconds) for seconds in written]

    def test_over_the_limit_is_a_rate_limit_error_that_says_when(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.limit(KEY, rpm=2, mode="bucket")
        for _ in range(2):
            say(sdk, "hi")
        with pytest.raises(openai.RateLimitError) as caught:
            say(sdk, "hi")

        error = caught.value
        assert ("requests", "rate_limit_exceeded") == (error.type, error.code)
        assert "30" == error.response.headers["retry-after"]
        assert 29_900 < int(error.response.headers["retry-after-ms"]) <= 30_000
        assert {"2", "0", "1m0s"} == {error.response.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")}
        assert 1 == upstream.stats(KEY)["refused"]

    def test_tokens_are_charged_at_admission(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.limit(KEY, tpm=1000, mode="window")
        say(sdk, "x" * 40, max_completion_tokens=300, n=3)
        with pytest.raises(openai.RateLimitError) as caught:
            say(sdk, "x", max_tokens=82)
        say(sdk, "x", max_tokens=81)

        assert "tokens" == caught.value.type
        assert [914, 87, 86] == [call.tokens for call in upstream.calls()]

    def test_call_larger_than_the_limit_gets_no_retry_after(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.limit(KEY, tpm=1000)
        with pytest.raises(openai.RateLimitError, match="Request too large") as caught:
            say(sdk, "hi")

        assert "retry-after" not in caught.value.response.headers

    def test_images_are_limited_by_their_number(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.limit("*", ipm=3, mode="window", hide_headers=True)
        sdk.images.generate(prompt="o", n=2)
        with pytest.raises(openai.RateLimitError, match="images per min"):
            sdk.images.generate(prompt="o", n=2)

        assert 2 == upstream.stats(KEY)["max_window"]["images"]
        assert 4 == upstream.stats(KEY)["max_window_sent"]["images"]

    def test_a_window_is_exact_under_a_crowd(self, upstream: FakeUpstream) -> None:
        upstream.limit(KEY, rpm=3, mode="window", window_s=0.25)
        until = time.monotonic() + 0.8

        def hammer(client: openai.OpenAI) -> None:
            while time.monotonic() < until:
                try:
                    say(client, "hi")
                except openai.RateLimitError as error:
                    time.sleep(min(0.01, int(error.response.headers["retry-after-ms"]) / 1000))

        with client_of(upstream) as client, ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(hammer, client) for _ in range(4)]:
                done.result()

        stats = upstream.stats(KEY)
        assert 3 == stats["max_window"]["requests"]
        assert 3 < stats["max_window_sent"]["requests"]
        assert 6 <= stats["outcomes"]["200"] <= 12

    def test_models_may_have_limits_of_their_own(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.limit(KEY, rpm=1, per_model=True)
        upstream.limit(KEY, model="big", rpm=2)
        statuses = []
        for model in ("a", "b", "a", "big", "big", "big"):
            try:
                sdk.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
                statuses.append(200)
            except openai.RateLimitError:
                statuses.append(429)

        assert [200, 200, 429, 200, 200, 429] == statuses

    def test_calls_in_flight_are_limited_and_counted(self, upstream: FakeUpstream) -> None:
        upstream.limit(KEY, in_flight=2)
        upstream.behave(KEY, hold=True)
        with client_of(upstream) as client, ThreadPoolExecutor(2) as pool:
            held = [pool.submit(say, client, f"{number}") for number in range(2)]
            upstream.wait_for_held(2)
            with pytest.raises(openai.RateLimitError, match="concurrent"):
                say(client, "one too many")
            assert 2 == upstream.release()
            answers = {done.result().choices[0].message.content for done in held}

        assert {"echo: 0", "echo: 1"} == answers
        assert [0, 1, 2] == [call.in_flight_at_start for call in upstream.calls()]
        assert 0 == upstream.stats(KEY)["in_flight"]


class TestBehaviours:
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 502, 503, 504])
    def test_any_status_can_be_asked_for(self, sdk: openai.OpenAI, status: int) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            say(sdk, f"[[fake:status={status}]]")

        assert status == caught.value.status_code

    def test_the_kinds_of_429_differ(self, sdk: openai.OpenAI) -> None:
        caught = {}
        for kind in ("rate", "rate_no_retry_after", "quota"):
            with pytest.raises(openai.RateLimitError) as error:
                say(sdk, f"[[fake:status=429;kind={kind};retry_after=7]]" if kind == "rate" else f"[[fake:status=429;kind={kind}]]")
            caught[kind] = (error.value.type, error.value.code, error.value.response.headers.get("retry-after"))

        assert ("requests", "rate_limit_exceeded", "7") == caught["rate"]
        assert ("requests", "rate_limit_exceeded", None) == caught["rate_no_retry_after"]
        assert ("insufficient_quota", "credit_balance_exhausted", None) == caught["quota"]

    def test_a_script_is_used_up_in_order_and_then_all_is_well(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.behave(KEY, {"status": 500, "times": 2}, {"status": 503})
        for _ in range(3):
            with pytest.raises(openai.InternalServerError):
                say(sdk, "hi")
        say(sdk, "hi")

        assert ["500", "500", "503", "200"] == [call.outcome for call in upstream.calls()]

    def test_a_probability_is_never_used_up(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.behave("*", {"status": 500, "probability": 0.5})
        for _ in range(40):
            with suppress(openai.InternalServerError):
                say(sdk, "hi")

        assert 8 < upstream.stats()["all"]["outcomes"]["500"] < 32

    def test_a_marker_counts_calls_with_the_same_text(self, sdk: openai.OpenAI) -> None:
        with pytest.raises(openai.InternalServerError):
            say(sdk, "job 1 [[fake:status=500;times=1]]")

        assert "echo: job 1 [[fake:status=500;times=1]]" == say(sdk, "job 1 [[fake:status=500;times=1]]").choices[0].message.content

    def test_a_typo_is_not_silently_good_behaviour(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        with pytest.raises(openai.BadRequestError, match="unknown fake behaviour"):
            say(sdk, "[[fake:statsu=500]]")
        with pytest.raises(ValueError, match="unknown fake behaviour"):
            upstream.behave(KEY, statsu=500)
        with pytest.raises(ValueError, match="unexpected keyword"):
            upstream.limit(KEY, rmp=5)

    @pytest.mark.parametrize("garbage", ["html", "truncated", "long", "short", "empty", "binary", "not_http"])
    def test_garbage_is_not_an_answer(self, sdk: openai.OpenAI, garbage: str) -> None:
        with pytest.raises((openai.APIError, json.JSONDecodeError, UnicodeDecodeError)):
            say(sdk, f"[[fake:garbage={garbage}]]")

    @pytest.mark.parametrize(
        ("garbage", "inside"), [("nul", rb'"\u0000"'), ("surrogate", rb'"\ud800"'), ("nan", b"NaN"), ("type", b"echo")]
    )
    def test_some_garbage_looks_like_an_answer(self, upstream: FakeUpstream, garbage: str, inside: bytes) -> None:
        with raw(upstream, chat_bytes(f"[[fake:garbage={garbage}]]", headers="Connection: close\r\n")) as opened:
            got = b"".join(iter(lambda: opened.recv(65536), b""))

        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert inside in got

    @pytest.mark.parametrize(("how", "outcome"), [("reset", "reset"), ("reset=body", "reset"), ("cut_after=2", "cut")])
    def test_connections_break(self, sdk: openai.OpenAI, upstream: FakeUpstream, how: str, outcome: str) -> None:
        messages: Any = [{"role": "user", "content": f"[[fake:{how}]]"}]
        with pytest.raises(openai.APIConnectionError):
            list(sdk.chat.completions.create(model="m", messages=messages, stream=True))

        assert outcome == upstream.calls()[0].outcome

    def test_a_stream_may_end_with_an_error(self, sdk: openai.OpenAI) -> None:
        messages: Any = [{"role": "user", "content": "[[fake:error_after=2]]"}]
        with pytest.raises(openai.APIError, match="The server had an error"):
            list(sdk.chat.completions.create(model="m", messages=messages, stream=True))

    @pytest.mark.parametrize(
        ("how", "ends"), [("garble_after=1", b"\n\n\r\n0\r\n\r\n"), ("end_after=1", b"\n\n\r\n0\r\n\r\n"), ("plain", b"}")]
    )
    def test_a_stream_may_be_spoiled(self, upstream: FakeUpstream, how: str, ends: bytes) -> None:
        with raw(upstream, chat_bytes(f"[[fake:{how}]]", headers="Connection: close\r\n", stream=True)) as opened:
            got = b"".join(iter(lambda: opened.recv(65536), b""))

        assert got.endswith(ends)
        assert b"[DONE]" not in got

    def test_a_stream_can_be_held_between_two_events(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        messages: Any = [{"role": "user", "content": "[[fake:hold_after=1]]"}]
        chunks = iter(sdk.chat.completions.create(model="m", messages=messages, stream=True))
        next(chunks)
        assert "open" == upstream.calls()[0].outcome
        upstream.wait_for_held(1)
        upstream.release()

        assert "echo: [[fake:hold_after=1]]" == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    @pytest.mark.parametrize("how", ["hang", "hang=headers", "hold", "delay=60", "drip=10"])
    def test_a_client_that_leaves_is_noticed(self, upstream: FakeUpstream, how: str) -> None:
        opened = raw(upstream, chat_bytes(f"[[fake:{how}]]"))
        upstream.wait_for_calls(1)
        left_at = time.time()
        opened.close()
        upstream.wait_for_calls(1, outcome="client_gone")

        [call] = upstream.calls()
        assert call.ended_at is not None
        assert 0 <= call.ended_at - left_at < 20, "long before the minute of the delay"

    def test_a_delay_delays(self, sdk: openai.OpenAI, upstream: FakeUpstream) -> None:
        upstream.behave(KEY, {"delay": [0.05, 0.1]}, {"drip": 5_000})
        for _ in range(2):
            say(sdk, "hi")

        spent_s = [(call.ended_at or 0) - call.at for call in upstream.calls()]
        assert 0.05 <= min(spent_s)
        assert max(spent_s) < 20

    def test_a_body_may_be_huge_and_an_early_hint_come_first(self, sdk: openai.OpenAI) -> None:
        done = say(sdk, "[[fake:huge_mb=2;informational=103]]")

        assert 2_000_000 == len(done.to_dict()["x_padding"])  # type: ignore[arg-type]  # an extra field

    def test_a_redirect_shows_who_followed_it(self, upstream: FakeUpstream) -> None:
        with client_of(upstream, is_strict=False) as loose:
            say(loose, "[[fake:redirect]]")

        assert [("/v1/chat/completions", "307"), ("/elsewhere", "200")] == [(call.path, call.outcome) for call in upstream.calls()]


class TestJournal:
    def test_a_call_is_written_down_before_it_is_answered(self, upstream: FakeUpstream) -> None:
        upstream.behave(KEY, hold=True)
        with raw(upstream, chat_bytes("who?", headers="X-Nowserving-Attempt: 7\r\nX-Other: no\r\n")):
            upstream.wait_for_held(1)
            [call] = upstream.calls()

        assert ("open", None, "who?") == (call.outcome, call.ended_at, call.text)
        assert {"x-nowserving-attempt": "7"} == call.headers
        assert fingerprint(KEY) == call.key

    def test_calls_are_found_by_key_and_number(self, upstream: FakeUpstream) -> None:
        for key in ("sk-a", "sk-b", "sk-b"):
            with client_of(upstream, key=key) as client:
                say(client, key)

        assert [1, 2] == [call.n for call in upstream.calls(key="sk-b")]
        assert [2] == [call.n for call in upstream.calls(since=2)]
        assert 2 == upstream.stats("sk-b")["calls"]

    def test_a_reset_forgets_and_cuts_off_what_is_open(self, upstream: FakeUpstream) -> None:
        upstream.limit("*", rpm=1)
        upstream.behave("*", hang=True)
        failed = threading.Event()

        def ask() -> None:
            with client_of(upstream) as client, pytest.raises(openai.APIConnectionError):
                say(client, "hi")
            failed.set()

        thread = threading.Thread(target=ask)
        thread.start()
        upstream.wait_for_calls(1)
        upstream.reset()
        thread.join(5)

        assert failed.is_set()
        assert [] == upstream.calls()
        with client_of(upstream) as client:
            for _ in range(2):
                say(client, "hi")
