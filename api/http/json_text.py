"""JSON text of requests: parsed within limits, written compactly, and in one canonical form for fingerprints.

msgspec decodes several times faster than the standard library, and both hold the interpreter's lock. The two differ on a duplicate member
and on half a surrogate pair. There, and where msgspec refuses the text, the standard library decodes it again and decides.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from api.http import json_limits
from models.platform.errors import Invalid, UnsupportedMedia
from models.platform.wire import JsonObject

_DECODER = msgspec.json.Decoder()


def parse(content: bytes) -> JsonObject:
    """The JSON object in these bytes. Raises Invalid, or UnsupportedMedia for text that is not UTF-8."""
    content = without_bom(content)
    _check_text(content)
    outside = json_limits.strip_strings(content)
    json_limits.check_structure(outside)
    try:
        value = _DECODER.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        value = _decode_strictly(content)
    else:
        if outside.count(b":") != _count_members(value):  # msgspec keeps the last of duplicate members without an error
            value = _decode_strictly(content)
    if not isinstance(value, dict):
        raise Invalid('The body must be a JSON object: {"…": …}.', code="invalid_json")
    return value


def without_bom(content: bytes) -> bytes:
    """The text without the byte order mark that some editors put at its beginning."""
    return content.removeprefix(codecs.BOM_UTF8)


def dump(value: object) -> bytes:
    """Compact UTF-8 JSON for the upstream. Half a surrogate pair keeps the escape sequence in which it was sent."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def canonical(value: object) -> bytes:
    """The same bytes for equal JSON values, whatever their white space and order of members."""
    try:
        return msgspec.json.encode(value, order="sorted")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def check_storable(value: object, path: str = "") -> None:
    """Raises Invalid when Postgres cannot store a string in this value. For our own fields, not for a body that is passed through."""
    for at, text in _strings(value, path):
        if "\0" in text:
            raise Invalid("A text holds the character U+0000, which cannot be stored. Remove it.", param=at, code="invalid_text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Invalid(
                "A text holds half of a surrogate pair (\\ud800 to \\udfff). Send whole characters.", param=at, code="invalid_text"
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
            yield from _strings(item, f"{path}.{_printable(name)}" if path else _printable(name))


def _check_text(content: bytes) -> None:
    if not content.strip():
        raise Invalid("The body is empty. Send a JSON object.", code="invalid_json")
    if not json.detect_encoding(content[:4]).startswith("utf-8"):
        raise UnsupportedMedia("The body is UTF-16 or UTF-32. Send UTF-8.")


def _count_members(value: object) -> int:
    """The number of members of all objects in this value."""
    count, pending = 0, [value]
    while pending:
        item = pending.pop()
        if type(item) is dict:
            count += len(item)
            pending.extend(inner for inner in item.values() if type(inner) in (dict, list))
        elif type(item) is list:
            pending.extend(inner for inner in item if type(inner) in (dict, list))
    return count


def _decode_strictly(content: bytes) -> Any:
    """The value as the standard library decodes it. Raises Invalid with the place of the error and its cure."""
    try:
        text = content.decode()
        return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Invalid(f"The body is not UTF-8 at byte {error.start}. Encode it as UTF-8.", code="invalid_json") from error
    except json.JSONDecodeError as error:
        raise Invalid(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.", code="invalid_json"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add returns None
        raise Invalid(f"The member `{_printable(duplicate)}` stands twice in one object. Send it once.", code="duplicate_key")
    return members


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refuse_constant("A number too large for a double")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Invalid(f"{name} is not a JSON number. Send a finite number, null or a string.", code="number_out_of_range")


def _printable(name: str) -> str:
    """A member's name for an error message: short and printable."""
    return "".join(char if char.isprintable() else "?" for char in name[:40])
