"""Pictures stand in a stored answer as short marks; their bytes are stored once, beside it.

A mark is the whole of a JSON string, `art_<32 hex digits>.b64`, at `data[].b64_json`. Pictures are cut out of the answer's bytes and
put back into them, so that what is read is to the byte what the upstream sent.
"""

from __future__ import annotations

import binascii
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

log = logging.getLogger(__name__)

KEY = b'"b64_json"'
_VALUE = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*"')
_MARK = re.compile(rb'"(art_[0-9a-f]{32}\.b64)"')
_END = b'.b64"'
# A multiple of three: its base64 has no padding.
_COMPARED_BYTES = 3 * 2**16


@dataclass(frozen=True)
class ExtractedImage:
    """One picture of an answer. n: its place in `data`."""

    id: UUID
    n: int
    content: bytes


@dataclass(frozen=True)
class Extracted:
    """An answer, and its stream if it was one, with marks for pictures; and the pictures."""

    response: bytes
    transcript: bytes | None
    pictures: Sequence[ExtractedImage]


@dataclass(frozen=True)
class StoredImage:
    """A picture as storage knows it, or an attached file. size: in bytes. name: of the file."""

    id: UUID
    n: int
    content_type: str
    size: int
    name: str | None = None


# Where an answer's base64 stands, without its quotes.
_Span = tuple[int, int]


def placeholder_for(picture_id: UUID) -> str:
    """What stands where the base64 of this picture stood."""
    return f"art_{picture_id.hex}.b64"


def may_have_placeholders(content: bytes) -> bool:
    """Whether there may be marks in these bytes; False is certain."""
    return _END in content


def extract_images(response: bytes, transcript: bytes | None = None) -> Extracted:
    """A mark for each picture in the answer's `data`, the same in its stream, and the pictures.

    Base64 that would not come out the same again stays where it is, though its bytes are a picture too; what is not base64 just stays.
    """
    if KEY not in response:
        return Extracted(response, transcript, [])
    found = {span: content for span in _spans(response) if (content := _decode(response, span)) is not None}
    names = _name(found, _replace(response, dict.fromkeys(found, b"")), transcript or b"")
    marked = _replace(response, {span: placeholder_for(name).encode() for span, name in names.items()})
    pictures = list(
        _number(marked, {placeholder_for(names[span]): ExtractedImage(names[span], 0, content) for span, content in found.items()})
    )
    if not pictures:
        return Extracted(response, transcript, [])
    numbered = {picture.id for picture in pictures}
    kept = {span: placeholder_for(name).encode() for span, name in names.items() if name in numbered}
    if len(kept) < len(found):
        marked = _replace(response, kept)
    return Extracted(marked, _cut_again(transcript, response, kept), pictures)


def strip_images(response: bytes) -> bytes:
    """The answer with empty texts where its base64 stands."""
    return _replace(response, dict.fromkeys(_spans(response), b""))


def split_at_placeholders(content: bytes, stored: Sequence[StoredImage]) -> list[bytes | StoredImage]:
    """The content in order, and for each mark the picture whose base64 belongs there. Marks of other pictures are none."""
    known = {placeholder_for(one.id).encode(): one for one in stored}
    made: list[bytes | StoredImage] = []
    at = 0
    for found in _MARK.finditer(content):
        if one := known.get(found[1]):
            made += [content[at : found.start(1)], one]
            at = found.end(1)
    return [*made, content[at:]]


def encode_base64(content: bytes | memoryview) -> bytes:
    """Base64 as a picture's mark stands for it."""
    return binascii.b2a_base64(content, newline=False)


def base64_length(size: int) -> int:
    """How many characters of base64 so many bytes make."""
    return -(-size // 3) * 4


def _spans(content: bytes) -> Iterator[_Span]:
    """What may be the values of members named b64_json; of a large answer's bytes nearly all are only stepped over."""
    at = content.find(KEY)
    while at >= 0:
        after = at + len(KEY)
        if value := _VALUE.match(content, after):
            end = content.find(b'"', value.end())
            if end > value.end():
                yield value.end(), end
                after = end + 1
        at = content.find(KEY, after)


def _decode(content: bytes, span: _Span) -> bytes | None:
    """The picture in this base64; None where encoding it gives other characters."""
    start, end = span
    try:
        found = binascii.a2b_base64(memoryview(content)[start:end], strict_mode=True)
    except binascii.Error:
        return None
    return found if base64_length(len(found)) == end - start and _encodes_to(found, content, start) else None


def _encodes_to(picture: bytes, content: bytes, start: int) -> bool:
    """Whether its base64 is what stands at `start`; compared piece by piece, for a whole one would be a copy more."""
    view = memoryview(picture)
    return all(
        content.startswith(encode_base64(view[at : at + _COMPARED_BYTES]), start + base64_length(at))
        for at in range(0, len(picture), _COMPARED_BYTES)
    )


def _name(spans: Mapping[_Span, bytes], *rests: bytes) -> dict[_Span, UUID]:
    """A new id for each; one that the rest of the answer and its stream do not hold, by chance or by intent."""
    made = {}
    for span in spans:
        made[span] = uuid7()
        while any(made[span].hex.encode() in rest for rest in rests):
            made[span] = uuid7()
    return made


def _replace(content: bytes, spans: Mapping[_Span, bytes]) -> bytes:
    pieces: list[bytes | memoryview] = []
    at = 0
    for (start, end), instead in spans.items():
        pieces += [memoryview(content)[at:start], instead]
        at = end
    return b"".join([*pieces, memoryview(content)[at:]])


def _number(marked: bytes, found: Mapping[str, ExtractedImage]) -> Iterator[ExtractedImage]:
    """The pictures of `data` with their places: those that were found, and those in base64 that was not."""
    try:
        data = json.loads(marked)["data"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return
    for n, item in enumerate(data if isinstance(data, list) else []):
        said: Any = item.get("b64_json") if isinstance(item, dict) else None
        if not isinstance(said, str) or not said:
            continue
        if (one := found.get(said)) is not None:
            yield ExtractedImage(one.id, n, one.content)
            continue
        try:
            yield ExtractedImage(uuid7(), n, binascii.a2b_base64("".join(said.split()).encode(), strict_mode=True))
        except (binascii.Error, UnicodeEncodeError):
            log.warning("a picture in an answer is not base64; the answer itself is kept")


def _cut_again(transcript: bytes | None, response: bytes, kept: Mapping[_Span, bytes]) -> bytes | None:
    """The stream with the marks of the answer that it adds up to."""
    if transcript is None or not kept:
        return transcript
    marks = {response[start:end]: instead for (start, end), instead in kept.items()}
    return _replace(transcript, {(start, end): one for start, end in _spans(transcript) if (one := marks.get(transcript[start:end]))})
