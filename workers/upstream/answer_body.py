"""Reads the body of an answer: its charset, the JSON object in it, and the part of a failed answer that is stored."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

from models.content import image_placeholders
from models.platform import json_reading

JsonObject = dict[str, Any]
JSON_TYPE = "application/json"
UNNAMED_TYPE = "application/octet-stream"
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]{1,40})", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,80}/[\w.+-]{1,80}([ \t]*;[\x20-\x7e]{0,120})?", re.ASCII)
_EVENT_START = re.compile(rb"(data|event|id|retry)\s*:|:")
# The first bytes of an emoji whose last bytes are missing, as in answers that were cut off.
_CUT_CHARACTER = re.compile(rb"[\xf0-\xf4][\x80-\xbf]")
_ANY_BYTES = b"{" + bytes(range(128, 256)) + b"}"
_WHITE = " \t\r\n\x00"


def parse_without_images(body: bytes) -> JsonObject | None:
    """The JSON object of this body; in a large one, empty strings replace the base64 of images, which is most of its size."""
    if len(body) < json_reading.LARGE_BYTES or image_placeholders.KEY not in body:
        return json_reading.json_object(body)
    parsed = json_reading.json_object(image_placeholders.strip_images(body))
    return json_reading.json_object(body) if parsed is None else parsed


def json_object(body: bytes, content_type: str = "") -> bytes | None:
    """The one JSON object of this body, in UTF-8; None without one, or with more than one.

    Another charset is converted. A byte order mark, a list around the object, and bytes after it that are not JSON are removed.
    """
    if not is_marked(body) and json_reading.json_object(body) is not None:
        return body
    text = decode(body, content_type).strip(_WHITE)
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if text[end:].strip(_WHITE).startswith(("{", "[", ",")):
        return None
    if isinstance(value, dict):
        return text[:end].encode()
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return text[1 : end - 1].strip(_WHITE).encode()
    return None


def is_marked(body: bytes) -> bool:
    """Whether the body begins with a byte order mark, or is UTF-16 or UTF-32 without one."""
    return body.startswith(_BYTE_ORDER_MARKS) or b"\x00" in body[:4]


def decode(body: bytes, content_type: str = "", *, guesses: bool = True) -> str:
    """The text of this body. A byte order mark and the bytes take precedence over the charset of the content type.

    guesses: without a named charset, bytes that contain no UTF-8 sequence are read as Windows-1252; otherwise they become U+FFFD.
    """
    if is_marked(body):
        return body.decode(json.detect_encoding(body), "replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        text = body.decode(_charset(body, content_type, guesses=guesses), "replace")
    return text.encode(errors="replace").decode()  # some codecs produce lone surrogates


def is_event_stream(body: bytes) -> bool:
    """Whether the body begins with a server-sent event."""
    return _EVENT_START.match(body.lstrip()) is not None


def is_not_event_stream(head: bytes) -> bool:
    """Whether a body with this beginning is JSON, a page, or not ASCII. head: without leading blanks, not empty."""
    return head[:1] in (b"{", b"[", b'"', b"<", b"\x00") or not head[:1].isascii()


def body_to_store(body: bytes, headers: Mapping[str, str], *, is_unreadable: bool) -> tuple[bytes | None, str | None]:
    """The body of a failed answer to store, and its media type; None for a JSON object or list, which callers get as JSON."""
    if not body:
        return None, None
    if not is_unreadable and not is_marked(body) and isinstance(json_reading.parse_json(body), dict | list):
        return body, None
    return body, media_type(headers)


def media_type(headers: Mapping[str, str]) -> str:
    """The media type in the headers, or UNNAMED_TYPE where it is malformed or missing."""
    content_type = headers.get("content-type", "").strip()
    return content_type if _MEDIA_TYPE.fullmatch(content_type) else UNNAMED_TYPE


def _charset(body: bytes, content_type: str, *, guesses: bool) -> str:
    """The charset of a body that is not valid UTF-8. With a single valid UTF-8 sequence, it is broken UTF-8."""
    if not body.decode(errors="ignore").isascii():
        return "utf-8"
    named = _charset_of(content_type)
    if named in ("ascii", "iso8859-1"):
        return "cp1252"  # as browsers do
    if named and named != "utf-8":
        return named
    return "cp1252" if guesses and not _CUT_CHARACTER.search(body) else "utf-8"


def _charset_of(content_type: str) -> str:
    """Python's name of the charset in the content type; empty for a missing or unknown one."""
    match = _CHARSET.search(content_type)
    try:
        name = codecs.lookup(match[1]).name if match else ""
        # Some Python codecs are not charsets, and fail on other bytes whatever `errors` is.
        return name if not name or isinstance(_ANY_BYTES.decode(name, "replace"), str) else ""
    except (LookupError, ValueError):
        return ""
