"""The estimate of tokens: against exact counts of texts, pictures by their size, whole requests, and its time."""

from __future__ import annotations

import base64
import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.content import image_size, token_estimate
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES, MODELS, MODERATIONS

TEXTS = Path(__file__).parents[2] / "texts"
COUNTS: dict[str, dict[str, int]] = json.loads((TEXTS / "counts.json").read_text())
# A model that reads each encoding.
ENCODINGS = {"o200k_base": "gpt-5", "cl100k_base": "gpt-4-turbo"}
# English, Chinese and code: within 10 %. The others: as far as was seen, so that a change is seen too.
LANGUAGES = ("english.txt", "chat.txt", "chinese.txt", "chinese_technical.txt", "code_python.txt", "code_typescript.txt", "tools.json")
OTHERS = sorted(COUNTS.keys() - set(LANGUAGES))
PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 1024, 1024)).decode()


def fixture(name: str) -> str:
    return (TEXTS / name).read_text(encoding="utf-8")


def off(name: str, encoding: str) -> float:
    """By which part the estimate is above the exact count."""
    return token_estimate.estimate_text(fixture(name), model=ENCODINGS[encoding]) / COUNTS[name][encoding] - 1


def test_every_text_has_its_counts() -> None:
    stored = {path.name for path in TEXTS.iterdir()} - {"counts.json", "README.md"}

    assert stored == set(COUNTS)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", LANGUAGES)
def test_estimate_of_prose_and_code_is_within_a_tenth(name: str, encoding: str) -> None:
    assert -0.05 <= off(name, encoding) <= 0.1


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", OTHERS)
def test_estimate_of_other_texts_is_within_a_seventh(name: str, encoding: str) -> None:
    assert -0.15 <= off(name, encoding) <= 0.15


def test_estimates_of_all_texts_together_are_not_too_low() -> None:
    for encoding, model in ENCODINGS.items():
        exact = sum(counts[encoding] for counts in COUNTS.values())

        assert 0.97 <= sum(token_estimate.estimate_text(fixture(name), model=model) for name in COUNTS) / exact <= 1.05


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("gpt-4", "gpt-4-turbo"), ("gpt-3.5-turbo", "gpt-4-turbo"), ("ft:gpt-3.5-turbo:acme::x", "gpt-4-turbo"),
        ("openai/gpt-4", "gpt-4-turbo"), ("text-embedding-3-small", "gpt-4-turbo"), ("gpt-4o-mini", "gpt-5"), ("gpt-4.1", "gpt-5"),
        ("o3", "gpt-5"), ("qwen3-32b", "gpt-5"), ("", "gpt-5"),
    ],
)  # fmt: skip
def test_model_decides_the_encoding(model: str, like: str) -> None:
    text = fixture("chinese.txt")

    assert token_estimate.estimate_text(text, model=like) == token_estimate.estimate_text(text, model=model)


@given(st.text())
def test_every_text_has_an_estimate(text: str) -> None:
    estimate = token_estimate.estimate_text(text)

    assert bool(text) == bool(estimate)
    assert estimate <= 4 * len(text) + 1


def test_lone_surrogates_have_an_estimate() -> None:
    assert token_estimate.estimate_text("\ud800 half") > 0


@given(st.lists(st.text()))
def test_texts_weigh_no_more_together_than_one_by_one(texts: list[str]) -> None:
    """A conversation reserves its turns' weights one by one, and what goes out is all of them."""
    messages = [user(text) for text in texts]

    assert token_estimate.estimate_messages(messages) <= sum(token_estimate.estimate_messages([message]) for message in messages)


def hostile(kind: str, size: int) -> str:
    chosen = {
        "letters": "abcdefghijklmnopqrstuvwxyz",
        "mixed": "aA0. \n\u4e2d\u3042\U0001f600",
        "chinese": "".join(map(chr, range(0x4E00, 0x9FFF))),
    }
    return "".join(random.Random(7).choices(chosen[kind], k=size)) if kind in chosen else (kind * size)[:size]


@pytest.mark.parametrize("kind", ["a", " ", "\n", ".", "0", "aA", "a ", "0 ", "\\u0000", "letters", "mixed", "chinese"])
def test_time_grows_with_the_size_alone(kind: str) -> None:
    """Of this thread's processor alone, so that a busy machine is not taken for a slow function."""
    small, large = (min(_seconds(text) for _ in range(3)) for text in (hostile(kind, 100_000), hostile(kind, 1_000_000)))

    assert large < 0.25
    assert large < 0.01 + 40 * small


def test_of_a_huge_text_a_part_is_counted() -> None:
    prose = fixture("english.txt")
    text = prose * (20_000_000 // len(prose))

    assert _seconds(text) < 1.5
    assert token_estimate.estimate_text(text) == pytest.approx(len(text) / len(prose) * token_estimate.estimate_text(prose), rel=0.02)


def _seconds(text: str) -> float:
    began = time.thread_time()
    token_estimate.estimate_text(text)
    return time.thread_time() - began


def user(content: object, **more: object) -> dict[str, object]:
    return {"role": "user", "content": content, **more}


def picture(url: object, **more: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (picture(PICTURE), 85 + 4 * 170),
        (picture(PICTURE, detail="high"), 85 + 4 * 170),
        (picture(PICTURE, detail="low"), 85),
        (picture("https://x.y/z.png"), token_estimate.DEFAULT_IMAGE_TOKENS),
        (picture("https://x.y/z.png", detail="low"), 85),
        (picture("data:image/png;base64,AAAA"), token_estimate.DEFAULT_IMAGE_TOKENS),
        (picture("data:image/png;base64,é\ud800"), token_estimate.DEFAULT_IMAGE_TOKENS),
        (picture(7), token_estimate.DEFAULT_IMAGE_TOKENS),
        ({"image_url": PICTURE}, 85 + 4 * 170),
        ({"file_id": "file-1"}, token_estimate.DEFAULT_IMAGE_TOKENS),
        ({"type": "input_image", "image_url": PICTURE, "detail": "low"}, 85),
        (None, token_estimate.DEFAULT_IMAGE_TOKENS),
    ],
)  # fmt: skip
def test_picture_has_the_tokens_of_its_tiles(part: object, expected: int) -> None:
    assert expected == token_estimate.image_tokens(part)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((1, 1), 1), ((512, 512), 1), ((513, 512), 2), ((1024, 1024), 4), ((2048, 4096), 6), ((4096, 8192), 6), ((1920, 1080), 6),
     ((10_000, 1), 4), ((2**31, 2**31), 4), (None, 6)],
)  # fmt: skip
def test_large_pictures_are_scaled_as_openai_documents(size: image_size.Size | None, tiles: int) -> None:
    assert 85 + 170 * tiles == token_estimate.sized_image_tokens(size)


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        (CHAT, {"messages": [user("hi there"), user(None)]}, 2 + 2 * 4),
        (CHAT, {"messages": [user([{"type": "text", "text": "hi there"}, picture(PICTURE)])]}, 2 + 4 + 765),
        (CHAT, {"messages": []}, 0),
        (CHAT, {}, 0),
        (IMAGES, {"prompt": "a cat", "n": 3}, 2),
        (EDITS, {"prompt": "a cat", "images": [{"image_url": PICTURE}, {"file_id": "x"}]}, 2 + 765 + token_estimate.DEFAULT_IMAGE_TOKENS),
        (EMBEDDINGS, {"input": ["hi there", "you"]}, 3),
        (EMBEDDINGS, {"input": [1, 2, 3]}, 3),
        (EMBEDDINGS, {"input": [[1, 2], [3]]}, 3),
        (MODERATIONS, {"input": [{"type": "text", "text": "hi there"}, picture("u")]}, 2 + token_estimate.DEFAULT_IMAGE_TOKENS),
        (MODELS, {}, 0),
    ],
)
def test_request_has_the_tokens_that_its_model_reads(endpoint: str, body: dict[str, Any], expected: int) -> None:
    assert expected == token_estimate.estimate_request(endpoint, body)


@pytest.mark.parametrize("name", ["tools", "functions", "response_format"])
def test_estimate_counts_fields_beside_the_messages(name: str) -> None:
    asked = {"messages": [user("hi there")]}
    schema = json.loads(fixture("tools.json"))

    more = token_estimate.estimate_request(CHAT, {**asked, name: schema}) - token_estimate.estimate_request(CHAT, asked)
    assert -0.05 <= more / COUNTS["tools.json"]["o200k_base"] - 1 <= 0.1


@pytest.mark.parametrize(
    ("part", "least", "most"),
    [
        ({"type": "input_audio", "input_audio": {"data": "A" * 640_000, "format": "mp3"}}, 500, 700),  # a minute
        ({"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 100_000}}, 1_400, 1_600),  # a page
        ({"type": "file", "file": {"file_id": "file-1"}}, 1_000, 1_200),
        ({"type": "new", "x": "hi there"}, 5, 15),
    ],
)  # fmt: skip
def test_sound_and_files_count_by_their_size(part: dict[str, object], least: int, most: int) -> None:
    assert least <= token_estimate.estimate_messages([user([part])]) <= most


def test_answer_has_the_tokens_of_all_that_was_written() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Bonn"}'}}
    written = {"role": "assistant", "content": "hi there", "reasoning_content": "one two three", "tool_calls": [call]}
    audio = {"role": "assistant", "content": None, "audio": {"data": "A" * 100_000}}

    assert 5 + 20 <= token_estimate.estimate_answer({"choices": [{"message": written}]}) <= 5 + 45
    assert 4 == token_estimate.estimate_answer({"choices": [{"message": user("hi there")}, {"message": user("hi there")}]})
    assert (
        0
        == token_estimate.estimate_answer({"choices": [{"message": audio}, None, {"message": 3}]})
        == token_estimate.estimate_answer({"data": []})
    )
