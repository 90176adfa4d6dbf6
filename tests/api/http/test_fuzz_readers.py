"""Fuzz tests of the parsers of untrusted input: streams split anywhere, headers, URLs, addresses, bodies. None may crash."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import socket
from contextlib import suppress
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from api.http import json_text
from models.platform.errors import ServingError
from models.webhooks import url_policy
from workers.answers import rate_limit_headers
from workers.answers.rate_limit_headers import DAY_MS, MAX_PAUSE_MS
from workers.answers.sse import Event, EventParser
from workers.webhooks import safe_http
from workers.webhooks.safe_http import Unreachable

MANY = settings(max_examples=20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 150, deadline=None)
# Bytes of which streams are made, and others.
STREAM = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"data", b"event", b"id", b":", b" ", b"[DONE]", b"{", b"\xef\xbb\xbf", b"\xf0\x9f", b"\x00"])
    | st.binary(max_size=4),
    max_size=40,
).map(b"".join)  # fmt: skip
NUMBER = st.floats(allow_nan=True).map(str) | st.integers().map(str) | st.text(max_size=6) | st.sampled_from(["9" * 400, "", "-0", "1_0"])
DURATION = st.lists(st.tuples(NUMBER, st.sampled_from(["h", "m", "s", "ms", "us", "µs", "ns", "d", ""])), max_size=4).map(
    lambda parts: "".join(number + unit for number, unit in parts)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=4), inside, max_size=4), max_leaves=20,
)  # fmt: skip


def split(*parts: bytes) -> list[Event]:
    splitter = EventParser()
    return [event for part in parts for event in splitter.feed(part)]


@MANY
@given(STREAM, st.lists(st.integers(0, 200), max_size=10))
def test_any_bytes_make_the_same_events_however_they_are_torn(sent: bytes, tears: list[int]) -> None:
    places = sorted({min(tear, len(sent)) for tear in tears} | {0, len(sent)})
    whole = split(sent)

    assert whole == split(*(sent[begin:end] for begin, end in pairwise(places)))
    assert whole == split(*(sent[n : n + 1] for n in range(len(sent))))


@MANY
@given(STREAM)
def test_relayed_event_is_ascii_and_parses_the_same(sent: bytes) -> None:
    for event in split(sent):
        assert event.encoded().isascii()
        assert [event] == split(event.encoded())


@MANY
@given(DURATION, NUMBER, NUMBER)
def test_parsed_limit_headers_are_sane_numbers_or_none(reset: str, limit: str, left: str) -> None:
    result = {f"x-ratelimit-{name}-{of}": value for of in ("requests", "tokens")
            for name, value in (("limit", limit), ("remaining", left), ("reset", reset))}  # fmt: skip
    shown = rate_limit_headers.parse_headers(result)

    assert rate_limit_headers.duration_ms(reset) is None or 0 < rate_limit_headers.duration_ms(reset) <= DAY_MS  # type: ignore[operator]  # no None here
    assert all(each is None or 0 < each < 2**31 for each in (shown.limit_requests, shown.limit_tokens))
    assert all(each is None or 0 < each <= rate_limit_headers.MINUTE_MS for each in (shown.reset_requests_ms, shown.reset_tokens_ms))


@MANY
@given(NUMBER | st.datetimes().map("{:%a, %d %b %Y %H:%M:%S GMT}".format), NUMBER, st.floats(0, 4e9))
def test_no_pause_is_longer_than_one_may_be(after: str, after_ms: str, now: float) -> None:
    for result in ({"retry-after": after}, {"retry-after": after, "retry-after-ms": after_ms}):
        pause_ms = rate_limit_headers.retry_after_ms(result, now=now)
        assert pause_ms is None or 100 <= pause_ms <= MAX_PAUSE_MS


def spellings(address: ipaddress.IPv4Address) -> list[str]:
    """One IPv4 address as people who mean harm write it."""
    number, (a, b, c, d) = int(address), address.packed
    return [
        str(address), f"{address}.", str(number), hex(number), f"0{number:o}", f"{a}.{b}.{c * 256 + d}", f"{a}.{number % 2**24}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"[::ffff:{address}]", f"[::{address}]", f"[64:ff9b::{address}]",
        f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::]", f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]", f"x@{address}",
        str(address).translate({ord(str(n)): chr(0xFF10 + n) for n in range(10)}), str(address).replace(".", "\u3002"),
    ]  # fmt: skip


NETWORKS = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "0.0.0.0/8")
INSIDE = st.sampled_from(NETWORKS).flatmap(lambda network: st.ip_addresses(v=4, network=network))


class Connected(BaseException):
    """A socket was opened to this address."""


@pytest.fixture
def wall(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to open a connection raises Connected."""

    def connect(self: socket.socket, address: Any) -> None:
        raise Connected(address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.mark.usefixtures("wall")
def test_no_inner_address_is_reached_however_it_is_written() -> None:
    @MANY
    @given(INSIDE, st.integers(0, 16), st.sampled_from(["", ":443", ":80"]))
    def holds(address: ipaddress.IPv4Address, which: int, port: str) -> None:
        with pytest.raises(Unreachable):
            safe_http.post(f"https://{spellings(address)[which]}{port}/", headers={}, body=b"", timeout_s=60)

    holds()


@pytest.mark.usefixtures("wall")
def test_a_name_whose_answers_change_leads_to_a_public_address_or_nowhere() -> None:
    public = st.sampled_from(["8.8.8.8", "1.1.1.1", "93.184.216.34"])

    @MANY
    @given(st.lists(st.lists(INSIDE.map(str) | public, min_size=1, max_size=3), min_size=2, max_size=3))
    def holds(answers: list[list[str]]) -> None:
        asked = iter([*answers, *[["127.0.0.1"]] * 9])

        def resolver(host: str, port: int, *_: object, **__: object) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in next(asked)]

        is_public = all(ipaddress.ip_address(each).is_global for each in answers[0])
        try:
            safe_http.post("https://example.com/", headers={}, body=b"", timeout_s=60, resolver=resolver)
        except Connected as error:
            assert is_public
            assert error.args[0][0] in answers[0], "the address that was checked"
        except Unreachable:
            assert not is_public

    holds()


@pytest.mark.usefixtures("environment")
def test_a_url_is_refused_or_becomes_one_that_means_the_same_again() -> None:
    @MANY
    @given(
        st.text(max_size=30)
        | st.lists(st.sampled_from([*"/:@#?%[]\\.", "https", "http", "//", "a.com", "127.0.0.1", "\u3002", "\t", " "])).map("".join)
    )
    def holds(text: str) -> None:
        for url in (text, f"https://{text}", f"https://example.com/{text}"):
            with suppress(url_policy.NotAllowed):
                cleaned = url_policy.normalize(url)
                assert cleaned.isascii() and cleaned.isprintable() and " " not in cleaned
                assert cleaned == url_policy.normalize(cleaned)

    holds()


@pytest.mark.usefixtures("environment")
def test_a_body_is_read_as_json_has_it_or_refused() -> None:
    @MANY
    @given(st.dictionaries(st.text(max_size=4), JSON, max_size=4).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
    def holds(content: bytes) -> None:
        try:
            value = json_text.parse(content)
        except ServingError as error:
            assert 400 <= error.status < 500
        else:
            assert json.loads(content.decode("utf-8-sig")) == value
            assert all(math.isfinite(each) for each in value.values() if isinstance(each, float))

    holds()
