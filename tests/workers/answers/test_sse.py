"""The SSE parser finds the same events in any chunking of the bytes, and relays them as ASCII."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.answers import sse
from workers.answers.sse import Event, EventParser

TALK = (
    b": a comment\r\n"
    b'data: {"text":"one"}\n\n'
    b'id: 7\r\nevent: image.partial\r\nretry: 10\r\ndata: {"text":"two"}\r\n\r\n'
    b'data:{"text":\rdata: "three"}\r\r'
    b"\n\n\nevent: nothing to say\n\n"
    b"data\n\n"
    b"data: [DONE]\n\n"
    b'data: {"text":"cut off"}\n'
)
EVENTS = [
    Event(b"", b'{"text":"one"}'),
    Event(b"image.partial", b'{"text":"two"}'),
    Event(b"", b'{"text": "three"}'),
    Event(b"", b"[DONE]"),
]


def split(*parts: bytes) -> list[Event]:
    splitter = EventParser()
    return [event for part in parts for event in splitter.feed(part)]


def test_comments_ids_and_incomplete_events_are_dropped() -> None:
    assert EVENTS == split(TALK)


@pytest.mark.parametrize("place", range(len(TALK) + 1))
def test_events_are_the_same_wherever_the_stream_is_torn(place: int) -> None:
    assert EVENTS == split(TALK[:place], TALK[place:])


def test_events_are_the_same_byte_by_byte() -> None:
    assert EVENTS == split(*(TALK[n : n + 1] for n in range(len(TALK))))


@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5),
    st.lists(st.integers(min_value=0, max_value=2000), max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_any_text_comes_through_however_the_stream_is_torn(texts: list[str], tears: list[int], line_end: str) -> None:
    sent = "".join(f"data: {json.dumps(each, ensure_ascii=False)}{line_end * 2}" for each in texts).encode()
    places = sorted({min(tear, len(sent)) for tear in tears} | {0, len(sent)})
    found = split(*(sent[a:b] for a, b in itertools.pairwise(places)))

    assert texts == [json.loads(event.data) for event in found]
    assert all(event.data.isascii() for event in found)


def test_an_event_is_complete_with_its_empty_line_and_not_a_byte_later() -> None:
    splitter = EventParser()

    assert [] == splitter.feed(b"data: 1\r\n\r"[:-1])
    assert [Event(b"", b"1")] == splitter.feed(b"\r")
    assert [] == splitter.feed(b"\n")
    assert [Event(b"", b"2")] == splitter.feed(b"data: 2\n\n")


def test_characters_are_passed_on_as_escapes() -> None:
    (event,) = split('data: {"é":"\u2028 😀 \\u00e9 \\n"}\n\n'.encode())

    assert b'data: {"\\u00e9":"\\u2028 \\ud83d\\ude00 \\u00e9 \\n"}\n\n' == event.encoded()
    assert {"é": "\u2028 😀 é \n"} == json.loads(event.data)


def test_a_character_torn_by_the_upstream_itself_is_replaced() -> None:
    (event,) = split(b'data: {"text":"\xf0\x9f\x98"}\n\n')

    assert {"text": "\ufffd"} == json.loads(event.data)


def test_a_mark_at_the_beginning_belongs_to_nothing() -> None:
    assert [Event(b"", b"1")] == split(b"\xef\xbb", b"\xbfdata: 1\n\n")


def test_a_name_is_passed_on_before_the_data() -> None:
    (event,) = split(b"data: {}\nevent: image_edit.completed\n\n")

    assert b"event: image_edit.completed\ndata: {}\n\n" == event.encoded()


def test_an_event_of_our_own_can_be_read_back() -> None:
    assert [Event(b"x", b'{"a":"\\u00e9"}')] == split(sse.encode_event({"a": "é"}, name="x"))
