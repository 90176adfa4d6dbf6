"""Streamed tool calls, in the various deltas of other servers, accumulate to the answer of a call without streaming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers.answers.chat_chunks import ChatAccumulator, JsonObject
from workers.answers.tool_calls import joined_name

NAMES = st.from_regex(r"[a-z_]{1,10}", fullmatch=True)
VALUES = st.none() | st.integers(-9, 9) | st.text(max_size=4) | st.just({"b": [{}, "}"]})
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=2).map(lambda one: json.dumps(one, separators=(",", ":")))
# Ten dialects share the examples of a test.
FEW = settings(max_examples=max(1, settings.default.max_examples // 5)) if settings.default else settings()
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=4).map(
    lambda made: [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(made)
    ]
)


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


def taken_apart(calls: list[JsonObject], size: int, **how: Any) -> Iterator[list[JsonObject]]:
    """The deltas, one call after another. how: index (n, zero, none), id and name (first, each, never), and more below."""
    for n, call in enumerate(calls):
        function = call["function"]
        for k, piece in enumerate(pieces(function["arguments"], size)):
            delta: JsonObject = {"function": {"arguments": piece}}
            if how["index"] != "none":
                delta["index"] = n if how["index"] == "n" else 0
            if how["id"] == "each" or (how["id"] == "first" and k == 0):
                delta |= {"id": call["id"], "type": "function"}
            elif how.get("empty_ids"):
                delta["id"] = ""
            if how["name"] == "each" or k == 0:
                delta["function"]["name"] = function["name"]
            elif how.get("empty_names"):
                delta["function"]["name"] = ""
            yield [delta]


DIALECTS: dict[str, JsonObject] = {
    "OpenAI": {"index": "n", "id": "first", "name": "first"},
    "empty ids and names": {"index": "n", "id": "first", "name": "first", "empty_ids": True, "empty_names": True},
    "id with each delta": {"index": "n", "id": "each", "name": "first"},
    "names with each delta": {"index": "n", "id": "first", "name": "each"},
    "all with each delta": {"index": "n", "id": "each", "name": "each"},
    "index always 0": {"index": "zero", "id": "first", "name": "first"},
    "index always 0, all with each": {"index": "zero", "id": "each", "name": "each"},
    "no index": {"index": "none", "id": "first", "name": "first"},
    "no index, names with each": {"index": "none", "id": "first", "name": "each"},
    "no index, all with each": {"index": "none", "id": "each", "name": "each"},
}  # fmt: skip


def added(deltas: Iterator[list[JsonObject]]) -> Any:
    chat = ChatAccumulator(n=1)
    for tool_calls in deltas:
        chat.add({"choices": [{"index": 0, "delta": {"tool_calls": tool_calls}, "finish_reason": None}]})
    return chat.answer()["choices"][0]["message"]["tool_calls"]


@pytest.mark.parametrize("dialect", DIALECTS)
@FEW
@given(calls=CALLS, size=st.integers(1, 8))
def test_calls_taken_apart_add_up_to_themselves(dialect: str, calls: list[JsonObject], size: int) -> None:
    assert calls == added(taken_apart(calls, size, **DIALECTS[dialect]))


@FEW
@given(calls=CALLS, size=st.integers(1, 8), seed=st.randoms(use_true_random=False))
def test_calls_with_ids_or_places_may_come_interleaved(calls: list[JsonObject], size: int, seed: Any) -> None:
    parts = [list(taken_apart([call], size, index="none", id="each", name="each")) for call in calls]
    order = [n for n, part in enumerate(parts) for _ in part]
    seed.shuffle(order)
    found = added(parts[n].pop(0) for n in order)

    assert sorted(calls, key=lambda call: str(call["id"])) == sorted(found, key=lambda call: str(call["id"]))


@pytest.mark.parametrize("place", [{"index": 0}, {}])
@FEW
@given(calls=CALLS)
def test_whole_tool_calls_without_ids_are_kept_apart(place: JsonObject, calls: list[JsonObject]) -> None:
    found = added([{**place, "type": "function", "function": dict(call["function"])}] for call in calls)

    assert [call["function"] for call in calls] == [call["function"] for call in found]


@FEW
@given(calls=CALLS)
def test_arguments_sent_as_an_object_are_kept_as_text(calls: list[JsonObject]) -> None:
    deltas = [{**call, "index": n, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
              for n, call in enumerate(calls)]  # fmt: skip

    assert calls == added(iter([deltas]))


@given(NAMES, st.integers(1, 9))
@example("get_weather", 3)
def test_a_name_cut_in_two_is_put_together(name: str, cut: int) -> None:
    first, second = name[:cut], name[cut:]
    if second and not second.startswith(first):
        assert name == joined_name(first, second)
    assert name == joined_name(name, name) == joined_name(name, "") == joined_name(first, name)


def test_a_repeated_name_of_a_function_call_of_old_is_no_longer_name() -> None:
    chat = ChatAccumulator(n=1)
    for arguments in ('{"a"', ":1}"):
        delta = {"function_call": {"name": "f", "arguments": arguments}}
        chat.add({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    assert {"name": "f", "arguments": '{"a":1}'} == chat.answer()["choices"][0]["message"]["function_call"]


@pytest.mark.parametrize("odd", [None, 1, [], {"function": None}, {"id": 3}, {"id": ["x"]}, {"index": "x"}, {"function": {"name": 1}}])
def test_unusual_deltas_do_no_harm(odd: Any) -> None:
    assert "f" in json.dumps(added(iter([[{"index": 0, "id": "a", "function": {"name": "f"}}], [odd]])))
