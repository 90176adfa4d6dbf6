"""JSON of upstreams and callers, read with one copy of its texts: the standard library makes another of the whole first."""

from __future__ import annotations

import json
from typing import Any

import msgspec

# Below, the standard library is as good, and the one whose reading is proven.
LARGE_BYTES = 64 * 1024
_FAST = msgspec.json.Decoder()


def parse_json(content: bytes) -> Any:
    """The JSON value that this is; None for what is none, however it is broken, and for `null`.

    Where msgspec refuses it (NaN, half a surrogate pair, another charset), the standard library decides.
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
