"""Usage is read in every form that upstreams write, and estimated where it cannot be read."""

from __future__ import annotations

import json
import logging
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.billing import usage
from models.billing.usage import MAX_COUNT, Usage
from models.content import token_estimate

ASKED = 40
TEXT = "one two three four five six seven eight nine ten"
WRITTEN = token_estimate.estimate_text(TEXT)
PICTURES = {"created": 1, "data": [{"b64_json": "x"}, {"b64_json": "y"}]}


def chat(result: object = None, *, content: object = TEXT, **more: object) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"message": {"role": "assistant", "content": content, **more}}], "usage": result}


def read(answer: object) -> Usage:
    return usage.usage_of(answer, asked=lambda: ASKED)


def never() -> NoReturn:
    raise AssertionError("a prompt was counted although the answer says its tokens")


@pytest.mark.parametrize(
    "result",
    [
        {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17},
        {"input_tokens": 12, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 3}, "output_tokens_details": None},
        {"prompt_tokens": 12.0, "completion_tokens": 5.0},
        {"prompt_tokens": 11.5, "completion_tokens": 4.2},
        {"prompt_tokens": "12", "completion_tokens": " 5 "},
        {"prompt_tokens": "12.0", "completion_tokens": "5.0"},
        {"prompt_tokens": 12, "total_tokens": 17},
        {"completion_tokens": 5, "total_tokens": "17"},
        {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 17},
        {"prompt_tokens": 0, "input_tokens": 12, "completion_tokens": None, "output_tokens": 5},
        {"input_tokens": -3, "prompt_tokens": 12, "completion_tokens": 5},
    ],
)
def test_usage_that_can_be_read_is_read(result: dict[str, object]) -> None:
    assert Usage(12, 5) == usage.usage_of(chat(result), asked=never)


def test_only_a_total_is_split_by_our_count_of_the_prompt() -> None:
    assert Usage(ASKED, 60, estimated=True) == read(chat({"total_tokens": 100}))
    assert Usage(30, 0, estimated=True) == read(chat({"total_tokens": 30}))


@pytest.mark.parametrize(
    "result",
    [
        None, {}, [], "12", 7, {"total_tokens": None}, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": -1, "completion_tokens": -5}, {"prompt_tokens": True, "completion_tokens": [1]},
        {"prompt_tokens": "many", "completion_tokens": "1e9999"}, {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
        {"prompt_tokens": "9" * 5_000, "completion_tokens": {"tokens": 1}}, {"usage": {"input_tokens": 12, "output_tokens": 5}},
    ],
)  # fmt: skip
def test_usage_that_cannot_be_read_is_estimated(result: object) -> None:
    assert Usage(ASKED, WRITTEN, estimated=True) == read(chat(result))


def test_an_answer_without_usage_is_estimated() -> None:
    answer = chat()
    del answer["usage"]

    assert Usage(ASKED, WRITTEN, estimated=True) == read(answer)


def test_each_count_is_estimated_by_itself() -> None:
    assert Usage(12, WRITTEN, estimated=True) == read(chat({"prompt_tokens": 12}))
    assert Usage(12, WRITTEN, estimated=True) == read(chat({"prompt_tokens": 12, "completion_tokens": 0}))
    assert Usage(ASKED, 5, estimated=True) == read(chat({"completion_tokens": 5, "prompt_tokens": -1}))


@pytest.mark.parametrize(
    "more", [{"tool_calls": [{"function": {"name": "f", "arguments": TEXT}}]}, {"reasoning_content": TEXT}, {"refusal": TEXT}]
)
def test_all_that_was_written_is_estimated(more: dict[str, object]) -> None:
    assert WRITTEN <= read(chat({}, content=None, **more)).output_tokens <= WRITTEN + 15


def test_an_empty_answer_may_say_that_it_used_nothing() -> None:
    assert Usage(12, 0) == usage.usage_of(chat({"prompt_tokens": 12, "completion_tokens": 0}, content=""), asked=never)


def test_embeddings_are_estimated_by_their_prompt() -> None:
    vectors = {"object": "list", "data": [{"embedding": [0.1]}], "model": "m"}

    assert Usage(12, 0) == usage.usage_of({**vectors, "usage": {"prompt_tokens": 12, "total_tokens": 12}}, asked=never)
    for result in ({}, {"prompt_tokens": 0, "total_tokens": 0}, None):
        assert Usage(ASKED, 0, estimated=True) == read({**vectors, "usage": result})


def test_pictures_without_tokens_are_counted_as_pictures() -> None:
    assert Usage(0, 0, 2) == usage.usage_of(PICTURES, asked=never)
    assert Usage(0, 0, 2) == usage.usage_of({**PICTURES, "usage": {}}, asked=never)
    assert Usage(12, 5, 2) == usage.usage_of({**PICTURES, "usage": {"input_tokens": 12, "output_tokens": 5}}, asked=never)
    assert Usage(ASKED, 60, 2, estimated=True) == read({**PICTURES, "usage": {"total_tokens": 100}})


@pytest.mark.parametrize("answer", [{"object": "list", "data": [{"id": "gpt-5"}]}, {"results": []}, None, [], "text"])
def test_free_requests_are_not_estimated(answer: object) -> None:
    assert (0, 0, 0, False, False) == (
        (used := usage.usage_of(answer)).input_tokens, used.output_tokens, used.images, used.is_known, used.estimated
    )  # fmt: skip


@pytest.mark.parametrize("large", [2**31, 2**63, 1e300, "9999999999"])
def test_more_than_can_be_stored_is_the_most_and_logged(large: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "models.billing.usage"):
        found = read(chat({"prompt_tokens": large, "completion_tokens": 5}))

    assert Usage(MAX_COUNT, 5, estimated=True) == found
    assert 1 == len(caplog.records)


def test_unreadable_bytes_are_estimated_as_text() -> None:
    assert Usage(ASKED, WRITTEN, estimated=True) == usage.usage_of_unreadable(ASKED, TEXT.encode())
    assert Usage(ASKED, 0, estimated=True) == usage.usage_of_unreadable(ASKED, b"")
    assert 50 < usage.usage_of_unreadable(ASKED, bytes(range(256))).output_tokens < 1_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
NAMES = st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"])


@given(result=st.dictionaries(NAMES, JSON) | JSON, message=JSON, is_picture=st.booleans())
def test_every_usage_fits_its_columns(result: object, message: object, is_picture: bool) -> None:
    answer = {**PICTURES, "usage": result} if is_picture else {"choices": [{"message": message}], "usage": result}

    for found in (read(answer), usage.usage_of(answer)):
        assert 0 <= found.input_tokens <= MAX_COUNT
        assert 0 <= found.output_tokens <= MAX_COUNT
        assert json.dumps(vars(found))
