"""Parses JSON of upstreams and callers with one copy of its strings: the standard library first copies the whole."""

from __future__ import annotations

import json
from typing import Any

import msgspec

# Smaller content is parsed by the standard library, the reference for what is valid.
LARGE_BYTES = 64 * 1024
_FAST = msgspec.json.Decoder()


def parse_json(content: bytes) -> Any:
    """The JSON value of this content; None for invalid JSON, however it is broken, and for `null`.

    If msgspec rejects it (NaN, half a surrogate pair, another charset), the standard library decides.
    """
    if len(content) >= LARGE_BYTES:
        try:
            return _FAST.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def json_object(content: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes; None for anything else, however it is broken."""
    value = parse_json(content)
    return value if isinstance(value, dict) else None
