"""JSON text of requests: parsed behind guards, written compactly, and in one canonical form for fingerprints.

msgspec decodes several times faster than the standard library, which matters because both hold the interpreter's lock. Where msgspec
refuses, or reads otherwise (a member that stands twice, half a surrogate pair), the standard library reads once more and decides.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NoReturn

import msgspec

from models.platform.errors import Invalid, UnsupportedMedia
from models.platform.wire import JsonObject

DEPTH_MOST = 128
DIGITS_MOST = 400
# Long texts are read at once, values one by one: 0.1 s for so many. The upstream takes 300,000 tokens in a request.
PIECES_MOST = 500_000
# Of all that is no string: 32 for each of them.
OUTSIDE_MOST_BYTES = 16_000_000
# Numbers beyond 64 bits are read digit by digit: a few hundred would be a strange request, 100,000 take 0.3 s.
LONG_NUMBERS_MOST = 10_000

_STRUCTURE_ONLY = bytes(set(range(256)) - set(b"[]{}"))
_STEP = [0] * 256
for _byte, _by in zip(b"[{]}", (1, 1, -1, -1), strict=True):
    _STEP[_byte] = _by
_ESCAPES = re.compile(rb"\\*+.?", re.DOTALL)
# Of a body that is looked through at a time.
BLOCK_BYTES = 256 * 1024
_LONG_NUMBER = re.compile(rb"[0-9]{20,}+")
_FAST = msgspec.json.Decoder()


def parse(content: bytes) -> JsonObject:
    """The JSON object in these bytes. Raises Invalid, or UnsupportedMedia for what is not UTF-8."""
    content = without_bom(content)
    _expect_text(content)
    outside = _strip_strings(content)
    _refuse_sprawling(outside)
    try:
        value = _FAST.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        value = _decode_strictly(content)
    else:
        if outside.count(b":") != _count_members(value):
            value = _decode_strictly(content)
    if not isinstance(value, dict):
        raise Invalid('The body must be a JSON object: {"…": …}.', code="invalid_json")
    return value


def without_bom(content: bytes) -> bytes:
    """The text without the byte order mark that some editors put before it."""
    return content.removeprefix(codecs.BOM_UTF8)


def dump(value: object) -> bytes:
    """Compact UTF-8 JSON: what goes to the upstream. Half a surrogate pair stays the escape that it came as."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def canonical(value: object) -> bytes:
    """The same bytes for the same JSON, whatever its spaces and the order of its members."""
    try:
        return msgspec.json.encode(value, order="sorted")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def check_storable(value: object, at: str = "") -> None:
    """Raises Invalid when a text in this value cannot be stored as text: of our own fields, not of a request that passes through."""
    for path, text in _strings(value, at):
        if "\0" in text:
            raise Invalid("A text holds the character U+0000, which cannot be stored. Remove it.", param=path, code="invalid_text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Invalid(
                "A text holds half of a surrogate pair (\\ud800 to \\udfff). Send whole characters.", param=path, code="invalid_text"
            ) from None


def _strings(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from _strings(item, f"{path}[{n}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield path or "a member's name", name
            yield from _strings(item, f"{path}.{_plain(name)}" if path else _plain(name))


def _expect_text(content: bytes) -> None:
    if not content.strip():
        raise Invalid("The body is empty. Send a JSON object.", code="invalid_json")
    if not json.detect_encoding(content[:4]).startswith("utf-8"):
        raise UnsupportedMedia("The body is UTF-16 or UTF-32. Send UTF-8.")


def _strip_strings(content: bytes) -> bytes:
    """What stands outside of strings. Raises Invalid for more strings than are read.

    With its escaped backslashes and quotes taken out, every second piece between quotes is a string. All in a few passes over the bytes:
    a regular expression takes ten times as long. Block by block, so that other threads get the interpreter's lock in between.
    """
    outside: list[bytes] = []
    quotes, at = 0, 0
    while at < len(content):
        end = _block_end(content, at + BLOCK_BYTES)
        block, at = content[at:end], end
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = block.split(b'"')
        outside += pieces[quotes % 2 :: 2]
        quotes += len(pieces) - 1
        if quotes > 2 * PIECES_MOST:
            raise _sprawling()
    return b"".join(outside)


def _block_end(content: bytes, end: int) -> int:
    """The end, or the next that divides no escape: backslashes stay with the character behind them."""
    if end >= len(content) or content[end - 1 : end] != b"\\":
        return end
    run = _ESCAPES.match(content, end)
    return run.end() if run else end


def _refuse_sprawling(outside: bytes) -> None:
    """Raises Invalid for what is nested too deep, made of too many values, or of numbers that are too long."""
    if len(outside) > OUTSIDE_MOST_BYTES or sum(map(outside.count, (b",", b"[", b"{"))) > PIECES_MOST:
        raise _sprawling()
    depth = max(accumulate(map(_STEP.__getitem__, outside.translate(None, _STRUCTURE_ONLY))), default=0)
    if depth > DEPTH_MOST:
        raise Invalid(f"The body is nested {depth} levels deep; at most {DEPTH_MOST} are accepted. Flatten it.", code="too_deep")
    long_ones = _LONG_NUMBER.findall(outside)
    if len(long_ones) > LONG_NUMBERS_MOST or max(map(len, long_ones), default=0) > DIGITS_MOST:
        raise Invalid(
            f"A number in the body has over {DIGITS_MOST} digits, or over {LONG_NUMBERS_MOST:,} have more than 19. Send them as strings.",
            code="number_out_of_range",
        )


def _sprawling() -> Invalid:
    return Invalid(f"The body is made of more than {PIECES_MOST:,} values. Send fewer in one request.", code="too_many_values")


def _count_members(value: object) -> int:
    """How many members all objects in this value have."""
    number, ahead = 0, [value]
    while ahead:
        one = ahead.pop()
        if type(one) is dict:
            number += len(one)
            ahead.extend(item for item in one.values() if type(item) in (dict, list))
        elif type(one) is list:
            ahead.extend(item for item in one if type(item) in (dict, list))
    return number


def _decode_strictly(content: bytes) -> Any:
    """The value as the standard library reads it. Raises Invalid, with where and what to do."""
    try:
        text = content.decode()
        return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Invalid(f"The body is not UTF-8 at byte {error.start}. Encode it as UTF-8.", code="invalid_json") from error
    except json.JSONDecodeError as error:
        raise Invalid(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.", code="invalid_json"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add says None
        raise Invalid(f"The member `{_plain(twice)}` stands twice in one object. Send it once.", code="duplicate_key")
    return made


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _no_constant("A number too large for a double")
    return value


def _no_constant(name: str) -> NoReturn:
    raise Invalid(f"{name} is not a JSON number. Send a finite number, null or a string.", code="number_out_of_range")


def _plain(name: str) -> str:
    """A member's name as it may stand in an answer: short, printable."""
    return "".join(char if char.isprintable() else "?" for char in name[:40])
