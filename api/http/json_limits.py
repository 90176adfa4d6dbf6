"""Limits on the JSON text of a request, checked before it is parsed: number of values, depth, length of numbers.

The checks count bytes in a few passes, because a regular expression over the whole body takes ten times as long.
"""

from __future__ import annotations

import re
from itertools import accumulate

from models.platform.errors import Invalid

MAX_DEPTH = 128
MAX_DIGITS = 400
# The decoder reads long strings at once and values one by one: 0.1 s for this many. OpenAI takes 300,000 tokens in a request.
MAX_VALUES = 500_000
# Bytes outside of strings: 32 for each value.
MAX_BYTES_OUTSIDE = 16_000_000
# Python reads numbers beyond 64 bits digit by digit: 100,000 of them take 0.3 s. A valid request has a few hundred at most.
MAX_LONG_NUMBERS = 10_000
# Bytes that are searched at a time.
BLOCK_BYTES = 256 * 1024

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DEPTH_CHANGE = [0] * 256
for _byte, _change in zip(b"[{]}", (1, 1, -1, -1), strict=True):
    _DEPTH_CHANGE[_byte] = _change
_ESCAPES = re.compile(rb"\\*+.?", re.DOTALL)
_LONG_NUMBER = re.compile(rb"[0-9]{20,}+")


def strip_strings(content: bytes) -> bytes:
    """The JSON text without its strings. Raises Invalid for more than MAX_VALUES strings.

    After the escaped backslashes and quotes are removed, every second part between quotes is a string. The function works block by block,
    so that other threads get the interpreter's lock between two blocks.
    """
    outside: list[bytes] = []
    quotes, start = 0, 0
    while start < len(content):
        end = _block_end(content, start + BLOCK_BYTES)
        block, start = content[start:end], end
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = block.split(b'"')
        outside += parts[quotes % 2 :: 2]
        quotes += len(parts) - 1
        if quotes > 2 * MAX_VALUES:
            raise _too_many_values()
    return b"".join(outside)


def check_structure(outside: bytes) -> None:
    """Raises Invalid for too much nesting, too many values or too long numbers. outside: the result of `strip_strings`."""
    if len(outside) > MAX_BYTES_OUTSIDE or sum(map(outside.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise _too_many_values()
    depth = max(accumulate(map(_DEPTH_CHANGE.__getitem__, outside.translate(None, _NOT_BRACKETS))), default=0)
    if depth > MAX_DEPTH:
        raise Invalid(f"The body is nested {depth} levels deep; at most {MAX_DEPTH} are accepted. Flatten it.", code="too_deep")
    long_numbers = _LONG_NUMBER.findall(outside)
    if len(long_numbers) > MAX_LONG_NUMBERS or max(map(len, long_numbers), default=0) > MAX_DIGITS:
        raise Invalid(
            f"A number in the body has over {MAX_DIGITS} digits, or over {MAX_LONG_NUMBERS:,} have more than 19. Send them as strings.",
            code="number_out_of_range",
        )


def _block_end(content: bytes, end: int) -> int:
    """The first position from `end` on that divides no escape sequence."""
    if end >= len(content) or content[end - 1 : end] != b"\\":
        return end
    run = _ESCAPES.match(content, end)
    return run.end() if run else end


def _too_many_values() -> Invalid:
    return Invalid(f"The body is made of more than {MAX_VALUES:,} values. Send fewer in one request.", code="too_many_values")
