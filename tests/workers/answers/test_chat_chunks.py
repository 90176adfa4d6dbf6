"""Accumulated stream events equal the answer of the same call without streaming."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.answers import answer_events
from workers.answers.chat_chunks import ChatAccumulator, ImageAccumulator, JsonObject
from workers.answers.sse import EventParser

FRAME = {"id": "chatcmpl-1", "created": 7, "model": "m", "system_fingerprint": "fp", "x_extra": {"kept": True}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def chunk(delta: object, *, index: int = 0, finish_reason: str | None = None, **more: object) -> JsonObject:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**FRAME, "object": "chat.completion.chunk", "choices": [{**choice, **more}], "usage": None}


def added(*result: JsonObject, n: int = 1) -> ChatAccumulator:
    chat = ChatAccumulator(n=n)
    for each in result:
        chat.add(each)
    return chat


def tool(place: int, name: str, arguments: str) -> JsonObject:
    return {"index": place, "id": f"call_{place}", "type": "function", "function": {"name": name, "arguments": arguments}}


def message(*deltas: object) -> Any:
    return added(*map(chunk, deltas)).answer()["choices"][0]["message"]


def test_a_stream_of_chunks_is_a_completion() -> None:
    chat = added(
        chunk({"role": "assistant", "content": "", "refusal": None}), chunk({"content": "Hel"}), chunk({"content": "lo"}),
        chunk({}, finish_reason="stop"), {**FRAME, "choices": [], "usage": USAGE},
    )  # fmt: skip

    result = {"role": "assistant", "content": "Hello", "refusal": None}
    choice = {"index": 0, "message": result, "logprobs": None, "finish_reason": "stop"}
    assert {**FRAME, "object": "chat.completion", "choices": [choice], "usage": USAGE} == chat.answer()


def test_choices_are_kept_apart_and_put_in_order() -> None:
    chat = added(chunk({"content": "b"}, index=1), chunk({"content": "a"}), chunk({"content": "B"}, index=1), n=2)

    assert [(0, "a"), (1, "bB")] == [(one["index"], one["message"]["content"]) for one in chat.answer()["choices"]]


def test_tool_calls_are_put_together_by_their_place() -> None:
    result = message(
        {"role": "assistant", "content": None, "tool_calls": [tool(0, "f", "")]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [tool(1, "g", "{}")]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}, {"index": 1, "id": "call_1", "type": "function"}]},
    )

    assert [
        {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ] == result["tool_calls"]
    assert result["content"] is None


@pytest.mark.parametrize(
    ("deltas", "found"),
    [
        ([{"refusal": "I "}, {"refusal": "won't"}], {"refusal": "I won't", "content": None}),
        ([{"function_call": {"name": "f"}}, {"function_call": {"arguments": "{}"}}], {"function_call": {"name": "f", "arguments": "{}"}}),
        ([{"reasoning_content": "let "}, {"reasoning_content": "me", "content": None}], {"reasoning_content": "let me"}),
        ([{"audio": {"id": "a", "data": "x"}}, {"audio": {"data": "y", "until": 5}}], {"audio": {"id": "a", "data": "xy", "until": 5}}),
        ([{"annotations": [{"type": "u"}]}, {"annotations": [{"type": "v"}]}], {"annotations": [{"type": "u"}, {"type": "v"}]}),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], {"role": "assistant", "content": "ab"}),
    ],
)  # fmt: skip
def test_message_in_pieces_equals_the_whole_message(deltas: list[JsonObject], found: JsonObject) -> None:
    assert found == {name: value for name, value in message(*deltas).items() if name in found}


def test_log_probabilities_grow() -> None:
    result = [chunk({}, logprobs={"content": [{"token": word, "logprob": -1.5}], "refusal": None}) for word in ("a", "b")]

    assert {"content": [{"token": "a", "logprob": -1.5}, {"token": "b", "logprob": -1.5}], "refusal": None} == (
        added(*result).answer()["choices"][0]["logprobs"]
    )


def test_the_last_word_on_a_field_of_the_frame_counts_unless_it_is_empty() -> None:
    chat = added({"id": "", "model": "", "choices": []}, chunk({}), {"choices": [], "id": "", "service_tier": "flex"})

    answer = chat.answer()
    assert ("chatcmpl-1", "m", "flex") == (answer["id"], answer["model"], answer["service_tier"])


def test_padding_against_listeners_is_no_part_of_the_answer() -> None:
    assert "obfuscation" not in added({**chunk({}), "obfuscation": "xyz"}).answer()


def test_it_is_whole_when_every_choice_that_was_asked_for_has_ended() -> None:
    chat = added(n=2)
    seen = []
    for result in (chunk({}), chunk({}, finish_reason="stop"), chunk({}, index=1), chunk({}, index=1, finish_reason="length")):
        chat.add(result)
        seen.append((chat.is_begun, chat.is_closed, chat.is_whole))

    assert [(True, False, False), (True, True, False), (True, False, False), (True, True, True)] == seen


@pytest.mark.parametrize(
    "odd", [{}, {"choices": None}, {"choices": [None, 1, {}]}, {"choices": [{"index": "x", "delta": []}]}, {"usage": 3}]
)
def test_unusual_chunks_do_no_harm(odd: JsonObject) -> None:
    chat = added(chunk({"content": "a"}), odd, chunk({"content": "b"}))

    assert "ab" == chat.answer()["choices"][0]["message"]["content"]


def test_pictures_that_are_completed_are_the_answer() -> None:
    pictures = ImageAccumulator(n=1)
    pictures.add({"type": "image_generation.partial_image", "b64_json": "aaaa", "partial_image_index": 0, "created_at": 6})
    assert not pictures.is_begun
    pictures.add({"type": "image_generation.completed", "b64_json": "bbbb", "created_at": 7, "size": "1x1", "usage": {"input_tokens": 1}})

    assert pictures.is_whole
    assert {"created": 7, "data": [{"b64_json": "bbbb"}], "size": "1x1", "usage": {"input_tokens": 1}} == pictures.answer()


TEXT = st.text(max_size=8)
TOOL = st.fixed_dictionaries(
    {"id": TEXT, "type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT})}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | TEXT, "refusal": st.none() | TEXT},
    optional={
        "tool_calls": st.lists(TOOL, max_size=3),
        "reasoning": TEXT,
        "annotations": st.lists(st.dictionaries(TEXT, TEXT, max_size=1)),
    },
)
TOKEN = st.fixed_dictionaries({"token": TEXT, "logprob": st.just(-1.5)})
LOGPROBS = st.none() | st.fixed_dictionaries({"content": st.lists(TOKEN)})


@given(st.lists(st.tuples(MESSAGE, LOGPROBS, st.sampled_from(["stop", "tool_calls"])), min_size=1, max_size=3), st.booleans())
def test_an_answer_taken_apart_adds_up_to_itself(result: list[tuple[JsonObject, Any, str]], with_usage: bool) -> None:
    choices = [{"index": n, "message": one, "logprobs": odds, "finish_reason": why} for n, (one, odds, why) in enumerate(result)]
    answer = {**FRAME, "object": "chat.completion", "choices": choices, **({"usage": USAGE} if with_usage else {})}
    chat = added(*_read(answer_events.events_from_answer(answer, kind="", with_usage=with_usage)), n=len(choices))

    assert chat.is_whole
    assert answer == chat.answer()


def test_pictures_taken_apart_add_up_to_themselves() -> None:
    answer = {"created": 7, "data": [{"b64_json": "aaaa"}, {"b64_json": "bbbb"}], "size": "1x1", "usage": {"input_tokens": 1}}
    pictures = ImageAccumulator(n=2)
    events = list(answer_events.events_from_answer(answer, kind="image_edit", with_usage=True))
    for result in _read(events):
        pictures.add(result)

    assert answer == pictures.answer()
    assert all(event.startswith(b"event: image_edit.completed\n") for event in events)


def test_an_answer_of_an_unknown_kind_is_one_event() -> None:
    assert [{"odd": ["é"]}] == _read(answer_events.events_from_answer({"odd": ["é"]}, kind="", with_usage=True))


def _read(events: Any) -> list[JsonObject]:
    splitter = EventParser()
    return [json.loads(event.data) for sent in events for event in splitter.feed(sent)]
