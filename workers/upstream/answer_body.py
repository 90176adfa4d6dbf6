"""Reads the body of an answer: its charset, the JSON object in it, and what is kept of a body that holds none."""

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
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]{1,40})", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,80}/[\w.+-]{1,80}([ \t]*;[\x20-\x7e]{0,120})?", re.ASCII)
_EVENT_START = re.compile(rb"(data|event|id|retry)\s*:|:")
# The beginning of an emoji whose end is missing: models that are cut off say that.
_TORN = re.compile(rb"[\xf0-\xf4][\x80-\xbf]")
_ANY_BYTES = b"{" + bytes(range(128, 256)) + b"}"
_WHITE = " \t\r\n\x00"


def parse_without_pictures(body: bytes) -> JsonObject | None:
    """As `parse`, but with empty texts instead of the base64 of pictures, of which an answer is mostly made where it is large."""
    if len(body) < json_reading.LARGE_BYTES or image_placeholders.KEY not in body:
        return json_reading.json_object(body)
    found = json_reading.json_object(image_placeholders.without_pictures(body))
    return json_reading.json_object(body) if found is None else found


def json_object(body: bytes, content_type: str = "") -> bytes | None:
    """The one JSON object of this body, in UTF-8; None when there is none, or more than one.

    Undone are: another charset, a byte order mark, a list around the object, and bytes behind its end that are no JSON.
    """
    if not is_marked(body) and json_reading.json_object(body) is not None:
        return body
    text = decode(body, content_type).strip(_WHITE)
    try:
        found, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if text[end:].strip(_WHITE).startswith(("{", "[", ",")):
        return None
    if isinstance(found, dict):
        return text[:end].encode()
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict):
        return text[1 : end - 1].strip(_WHITE).encode()
    return None


def is_marked(body: bytes) -> bool:
    """Whether it begins with a byte order mark, or is UTF-16 or UTF-32 without one."""
    return body.startswith(_MARKS) or b"\x00" in body[:4]


def decode(body: bytes, content_type: str = "", *, guesses: bool = True) -> str:
    """The text of this body. Byte order mark and bytes decide before the charset that the content type names.

    guesses: bytes that are no UTF-8 anywhere are Windows-1252 when no charset is named; else they become U+FFFD.
    """
    if is_marked(body):
        return body.decode(json.detect_encoding(body), "replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        text = body.decode(_charset(body, content_type, guesses=guesses), "replace")
    return text.encode(errors="replace").decode()  # some codecs make halves of surrogate pairs


def is_event_stream(body: bytes) -> bool:
    """Whether server-sent events begin here."""
    return _EVENT_START.match(body.lstrip()) is not None


def is_not_event_stream(head: bytes) -> bool:
    """Whether a body that begins so is no stream of events: JSON, a page, or not ASCII. head: without blanks before it, not empty."""
    return head[:1] in (b"{", b"[", b'"', b"<", b"\x00") or not head[:1].isascii()


def body_to_store(body: bytes, headers: Mapping[str, str], *, is_unreadable: bool) -> tuple[bytes | None, str | None]:
    """What is stored of a failed call's answer, and its media type; that is None for a JSON object or list, which callers get as JSON."""
    if not body:
        return None, None
    if not is_unreadable and not is_marked(body) and isinstance(json_reading.value(body), dict | list):
        return body, None
    return body, media_type(headers)


def media_type(headers: Mapping[str, str]) -> str:
    """The media type that the upstream named, if it is one."""
    named = headers.get("content-type", "").strip()
    return named if _MEDIA_TYPE.fullmatch(named) else UNNAMED_TYPE


def _charset(body: bytes, content_type: str, *, guesses: bool) -> str:
    """The charset of a body that is not UTF-8 throughout. A single UTF-8 sequence in it: it is broken UTF-8."""
    if not body.decode(errors="ignore").isascii():
        return "utf-8"
    named = _labelled(content_type)
    if named in ("ascii", "iso8859-1"):
        return "cp1252"  # as browsers do
    if named and named != "utf-8":
        return named
    return "cp1252" if guesses and not _TORN.search(body) else "utf-8"


def _labelled(content_type: str) -> str:
    """The charset that the content type names, as Python does; empty when it names none that there is."""
    found = _CHARSET.search(content_type)
    try:
        name = codecs.lookup(found[1]).name if found else ""
        # Some codecs of Python are no charsets, and fail at what is none of theirs whatever `errors` says.
        return name if not name or isinstance(_ANY_BYTES.decode(name, "replace"), str) else ""
    except (LookupError, ValueError):
        return ""
