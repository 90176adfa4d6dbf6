"""Pictures are cut out of an answer's bytes and put back into them without a trace."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.content import image_placeholders
from models.content.image_placeholders import Extracted, StoredImage

PNG = b"\x89PNG\r\n\x1a\n picture"


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def answer(*contents: bytes) -> bytes:
    return json.dumps({"created": 1, "data": [{"b64_json": b64(each), "revised_prompt": "a"} for each in contents]}).encode()


def whole(cut: Extracted, content: bytes | None = None) -> bytes:
    """What is read of it, by default of its response."""
    known = {one.id: one.content for one in cut.pictures}
    stored = [StoredImage(one.id, one.n, "", len(one.content)) for one in cut.pictures]
    found = image_placeholders.split_at_placeholders(cut.response if content is None else content, stored)
    made = [one if isinstance(one, bytes) else image_placeholders.encode_base64(known[one.id]) for one in found]
    assert [image_placeholders.base64_length(one.size) for one in found if isinstance(one, StoredImage)] == [
        len(text) for one, text in zip(found, made, strict=True) if isinstance(one, StoredImage)
    ]
    return b"".join(made)


@pytest.mark.parametrize("n", range(1, 11))
def test_pictures_are_taken_out_and_put_back(n: int) -> None:
    pictures = [PNG + os.urandom(1000 + each) for each in range(n)]
    body = answer(*pictures)
    cut = image_placeholders.extract_images(body)

    assert body == whole(cut)
    assert [(each, content) for each, content in enumerate(pictures)] == [(one.n, one.content) for one in cut.pictures]
    assert len(cut.response) < 200 * n
    assert json.loads(cut.response)["data"][-1]["b64_json"] == image_placeholders.placeholder_for(cut.pictures[-1].id)


A = b64(PNG)
ODD: dict[str, tuple[str, int, int]] = {  # what was answered, how many pictures are in it, how many of them are cut out
    "whitespace": (f'{{ "data" :\r\n [ {{ "b64_json"\t:\n "{A}" }} ]\n}}\n', 1, 1),
    "duplicates": (f'{{"data":[{{"b64_json":"{A}"}},{{"b64_json":"{A}"}}]}}', 2, 2),
    "one byte": ('{"data":[{"b64_json":"AA=="}]}', 1, 1),
    "the same text elsewhere": (f'{{"preview":{{"b64_json":"{A}"}},"x":"{A}","data":[{{"b64_json":"{A}","y":"{A}"}}]}}', 1, 1),
    "escaped slashes": ('{"data":[{"b64_json":"\\/\\/\\/\\/"}]}', 1, 0),
    "a name in escapes": (f'{{"data":[{{"b64\\u005fjson":"{A}"}}]}}', 0, 0),
    "lines": (f'{{"data":[{{"b64_json":"{A[:8]}\\n{A[8:]}"}}]}}', 1, 0),
    "bits beyond the end": ('{"data":[{"b64_json":"AB=="}]}', 1, 0),
    "no padding": ('{"data":[{"b64_json":"AA"}]}', 0, 0),
    "the other alphabet": ('{"data":[{"b64_json":"-_-_"}]}', 0, 0),
    "not base64": ('{"data":[{"b64_json":"nö"}]}', 0, 0),
    "empty": ('{"data":[{"b64_json":""}]}', 0, 0),
    "null": (f'{{"data":[{{"b64_json":null}},{{"b64_json":"{A}"}},{{"url":"https://example.com"}}]}}', 1, 1),
    "named twice": (f'{{"data":[{{"b64_json":"{A}","b64_json":"AA=="}}]}}', 1, 1),
    "quoted": (f'{{"data":[{{"revised_prompt":"\\"b64_json\\":\\"{A}\\"","b64_json":"{A}"}}]}}', 1, 1),
    "a name that ends like it": (f'{{"data":[{{"x\\"b64_json":"{A}"}}]}}', 0, 0),
    "a mark": ('{"data":[{"b64_json":"art_0192f0c1a5b87c3d9e4f0123456789ab.b64"}]}', 0, 0),
    "no list": (f'{{"data":{{"b64_json":"{A}"}}}}', 0, 0),
    "no object": (f'[{{"b64_json":"{A}"}}]', 0, 0),
    "items that are none": (f'{{"data":[1,null,"x",[],{{"b64_json":1}},{{"b64_json":"{A}"}}]}}', 1, 1),
    "cut off": (f'{{"data":[{{"b64_json":"{A}', 0, 0),
    "broken": (f'{{"data":[{{"b64_json":"{A}"}}', 0, 0),
    "a number that is none": (f'{{"x":NaN,"data":[{{"b64_json":"{A}"}}]}}', 1, 1),
    "half a surrogate": (f'{{"x":"\\ud800","data":[{{"b64_json":"{A}"}},{{"b64_json":"\\ud800"}}]}}', 1, 1),
    "deep": ("[" * 20_000 + f'{{"b64_json":"{A}"}}' + "]" * 20_000, 0, 0),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_answers_are_the_same_again(name: str) -> None:
    body, pictures, out = ODD[name][0].encode(), *ODD[name][1:]
    cut = image_placeholders.extract_images(body)

    assert body == whole(cut)
    assert (pictures, out) == (
        len(cut.pictures),
        sum(isinstance(one, StoredImage) for one in image_placeholders.split_at_placeholders(cut.response, _stored(cut))),
    )


def test_a_picture_has_the_number_of_its_place() -> None:
    cut = image_placeholders.extract_images(ODD["items that are none"][0].encode())

    assert [(5, PNG)] == [(one.n, one.content) for one in cut.pictures]


def test_base64_that_is_not_cut_out_is_a_picture_all_the_same() -> None:
    assert [b"\xff\xff\xff"] == [one.content for one in image_placeholders.extract_images(ODD["escaped slashes"][0].encode()).pictures]
    assert [PNG] == [one.content for one in image_placeholders.extract_images(ODD["lines"][0].encode()).pictures]


def test_bytes_that_are_not_text_stay() -> None:
    body = b'{"data":[{"b64_json":"\xff\xfe"}]}'

    assert (body, []) == (image_placeholders.extract_images(body).response, image_placeholders.extract_images(body).pictures)


def test_the_mark_of_another_answer_is_only_text() -> None:
    other = image_placeholders.extract_images(answer(PNG))
    body = json.dumps({"data": [{"b64_json": A}], "x": image_placeholders.placeholder_for(other.pictures[0].id)}).encode()
    cut = image_placeholders.extract_images(body)

    assert body == whole(cut)


def test_the_completed_event_of_a_stream_is_marked_like_its_answer() -> None:
    early = f'event: image_generation.partial_image\ndata: {{"b64_json":"{b64(b"early")}","partial_image_index":0}}\n\n'
    last = f'event: image_generation.completed\ndata: {{"type":"image_generation.completed","b64_json":"{A}","usage":{{}}}}\n\n'
    transcript = (early + last).encode()
    cut = image_placeholders.extract_images(answer(PNG), transcript)

    assert cut.transcript is not None
    assert (transcript, answer(PNG)) == (whole(cut, cut.transcript), whole(cut))
    assert cut.transcript == transcript.replace(A.encode(), image_placeholders.placeholder_for(cut.pictures[0].id).encode())


def test_answers_without_pictures_are_left_alone() -> None:
    body, transcript = b'{"choices":[{"message":{"content":"b64_json"}}]}', b"data: {}\n\n"
    cut = image_placeholders.extract_images(body, transcript)

    assert body is cut.response
    assert transcript is cut.transcript
    assert not image_placeholders.may_have_placeholders(body)


TEXT = st.text(max_size=20) | st.sampled_from(['"b64_json":"AAAA"', '\\"b64_json', "art_", "AAAA", "a/b"])
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "b64_json": st.binary(max_size=40).map(b64) | TEXT | st.none(),
        "revised_prompt": TEXT,
        'x"b64_json': st.binary(max_size=9).map(b64),
        "more": st.dictionaries(TEXT, st.binary(max_size=6).map(b64), max_size=2),
    },
)


@given(data=st.lists(ITEM | TEXT, max_size=6), ascii=st.booleans(), indent=st.none() | st.just(1), slashes=st.booleans(), rest=TEXT)
def test_whatever_was_answered_is_read_again(data: list[Any], ascii: bool, indent: int | None, slashes: bool, rest: str) -> None:
    result = json.dumps({"rest": rest, "data": data, "b64_json": rest}, ensure_ascii=ascii, indent=indent)
    body = (result.replace("/", "\\/") if slashes else result).encode(errors="surrogatepass")
    cut = image_placeholders.extract_images(body, body)

    assert (body, body) == (whole(cut), whole(cut, cut.transcript))
    assert [one.n for one in cut.pictures] == sorted({one.n for one in cut.pictures})


@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_again(content: bytes) -> None:
    body = content[:100] + b'"b64_json":"' + content[100:]

    assert body == whole(image_placeholders.extract_images(body))


def _stored(cut: Extracted) -> list[StoredImage]:
    return [StoredImage(one.id, one.n, "", len(one.content)) for one in cut.pictures]
