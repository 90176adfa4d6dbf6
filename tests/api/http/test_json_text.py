"""JSON of requests: the fast reader answers as the standard library does, and what is written again says the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.http import json_limits, json_text
from models.platform.errors import Invalid

TEXTS = st.text(st.characters(codec=None) | st.sampled_from('\0"\\:,[]{}\ud800\udc00😀'), max_size=8)
NUMBERS = st.sampled_from(
    ["0", "-0", "-0.0", "1.0", "1e5", "1E-7", "1e22", "0.1", "1e400", "-1e400", "5e-324", "2e308", "NaN", "Infinity", "01", "1."]
)
INTEGERS = st.integers(-(10**400) + 1, 10**400 - 1) | st.sampled_from([2**53 + 1, 2**63, 2**64, 2**64 - 1, -(2**63) - 1])
LEAVES = (
    TEXTS.map(json.dumps) | NUMBERS | INTEGERS.map(str) | st.sampled_from(["null", "true", "false", "", '"\t"', "'x'", '"\\x"', '"\\u00"'])
)
BLANKS = st.sampled_from(["", " ", "\n\t"])


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '"\\u0061"', '"\\ud800"', '":"']), inner), max_size=3)
    return st.builds(lambda items: f"[{','.join(items)}]", st.lists(inner, max_size=3)) | st.builds(
        lambda pairs, blank: "{" + ",".join(f"{name}{blank}:{value}" for name, value in pairs) + "}", members, BLANKS
    )


JSONS = st.recursive(LEAVES, _nested, max_leaves=12).map(lambda text: f'{{"x":{text}}}'.encode("utf-8", "replace"))


def exactly(content: bytes) -> Any:
    """Parses the text with the standard library alone."""
    try:
        return json_text._decode_strictly(content)
    except Invalid as error:
        return error.code, str(error)


def fast(content: bytes) -> Any:
    try:
        return json_text.parse(content)
    except Invalid as error:
        return error.code, str(error)


@given(JSONS | st.binary(max_size=30).map(lambda junk: b'{"x":"' + junk + b'"}'))
@example(b'{"a":":","a":"\\u003a"}')
@example(b'{"a":1,"\\u0061":2}')
@example(b'{"x":"\\ud83d\\ude00\\ud83d"}')
@settings(max_examples=1_500, deadline=None)
def test_both_readers_take_the_same_and_refuse_the_same(content: bytes) -> None:
    expected = exactly(content)

    assert repr(expected) == repr(fast(content))


@given(JSONS)
@settings(max_examples=500, deadline=None)
def test_rewritten_json_is_equal(content: bytes) -> None:
    value = fast(content)
    if isinstance(value, dict):
        assert repr(value) == repr(json_text.parse(json_text.dump(value)))
        assert json_text.canonical(value) == json_text.canonical(json_text.parse(json_text.dump(value)))
        assert b"\n" not in json_text.canonical(value)


@pytest.mark.parametrize("digits", ["9223372036854775807", "18446744073709551616", "-" + "9" * 400, "1.0", "-0.0", "0.1", "1e+22"])
def test_numbers_survive_being_written_again(digits: str) -> None:
    again = json.loads(json_text.dump(json_text.parse(f'{{"a":{digits}}}'.encode())))["a"]

    assert repr(json.loads(digits)) == repr(again)


@pytest.mark.parametrize("depth", [128, 129])
def test_nesting_is_taken_to_128_levels(depth: int) -> None:
    content = b'{"a":' + b"[" * (depth - 1) + b'"]]]]{{{{ \\" ]"' + b"]" * (depth - 1) + b"}"

    if depth == 128:
        assert json_text.parse(content) == json.loads(json_text.dump(json_text.parse(content)))
    else:
        assert "too_deep" == fast(content)[0]


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text('a\\"', max_size=4), max_size=3), max_size=5))
def test_structure_outside_of_strings_is_counted(value: list[dict[str, str]]) -> None:
    content = json.dumps(value).encode()

    outside = json_limits.strip_strings(content)

    assert sum(map(len, value)) == outside.count(b":") == json_text._count_members(value)
    assert b"a" not in outside and b"\\" not in outside


@given(st.lists(st.sampled_from(["\\", '"', "a", "{", ","]), max_size=40).map("".join), st.integers(1, 6))
def test_blocks_of_any_size_find_the_same_outside_of_strings(result: str, block: int) -> None:
    content = result.encode()
    found = []
    for size in (block, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_limits, "BLOCK_BYTES", size)
            found.append(json_limits.strip_strings(content))

    assert found[0] == found[1]
