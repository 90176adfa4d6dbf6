"""Placeholders for the base64 images of a stored answer; the bytes of the images are stored once, as artifacts.

A placeholder is a whole JSON string, `art_<32 hex digits>.b64`, at `data[].b64_json`. Images are cut out of the bytes of the answer and
put back into them, so that a client reads byte for byte what the upstream sent.
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
_PLACEHOLDER = re.compile(rb'"(art_[0-9a-f]{32}\.b64)"')
_END = b'.b64"'
# A multiple of three: its base64 has no padding.
_COMPARED_BYTES = 3 * 2**16


@dataclass(frozen=True)
class ExtractedImage:
    """An image of an answer. n: its index in `data`."""

    id: UUID
    n: int
    content: bytes


@dataclass(frozen=True)
class Extracted:
    """An answer, and its stream if it was streamed, with placeholders for images; and the images."""

    response: bytes
    transcript: bytes | None
    pictures: Sequence[ExtractedImage]


@dataclass(frozen=True)
class StoredImage:
    """A stored image or attached file, without its content. size: in bytes. name: of the file."""

    id: UUID
    n: int
    content_type: str
    size: int
    name: str | None = None


# Start and end of a base64 string in an answer, without its quotes.
_Span = tuple[int, int]


def placeholder_for(picture_id: UUID) -> str:
    """The placeholder of this image."""
    return f"art_{picture_id.hex}.b64"


def may_have_placeholders(content: bytes) -> bool:
    """Whether these bytes may contain placeholders; False is certain."""
    return _END in content


def extract_images(response: bytes, transcript: bytes | None = None) -> Extracted:
    """Replaces each image in the answer's `data`, and the same image in its stream, by a placeholder.

    Base64 that would not be encoded the same way again stays in the answer, though its image is stored too. Other strings stay.
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
    """The answer with empty strings in place of its base64."""
    return _replace(response, dict.fromkeys(_spans(response), b""))


def split_at_placeholders(content: bytes, stored: Sequence[StoredImage]) -> list[bytes | StoredImage]:
    """The pieces of the content in order, and a StoredImage in place of each placeholder. Placeholders of other images stay text."""
    known = {placeholder_for(image.id).encode(): image for image in stored}
    pieces: list[bytes | StoredImage] = []
    at = 0
    for match in _PLACEHOLDER.finditer(content):
        if image := known.get(match[1]):
            pieces += [content[at : match.start(1)], image]
            at = match.end(1)
    return [*pieces, content[at:]]


def encode_base64(content: bytes | memoryview) -> bytes:
    """The base64 that a placeholder stands for."""
    return binascii.b2a_base64(content, newline=False)


def base64_length(size: int) -> int:
    """The length of the base64 of this many bytes."""
    return -(-size // 3) * 4


def _spans(content: bytes) -> Iterator[_Span]:
    """The possible values of members named b64_json. The scan skips nearly all bytes of a large answer."""
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
    """The image in this base64; None if encoding it gives other characters."""
    start, end = span
    try:
        found = binascii.a2b_base64(memoryview(content)[start:end], strict_mode=True)
    except binascii.Error:
        return None
    return found if base64_length(len(found)) == end - start and _encodes_to(found, content, start) else None


def _encodes_to(picture: bytes, content: bytes, start: int) -> bool:
    """Whether the base64 of the image is at `start`. Compared in pieces, to avoid another copy of the whole."""
    view = memoryview(picture)
    return all(
        content.startswith(encode_base64(view[at : at + _COMPARED_BYTES]), start + base64_length(at))
        for at in range(0, len(picture), _COMPARED_BYTES)
    )


def _name(spans: Mapping[_Span, bytes], *rests: bytes) -> dict[_Span, UUID]:
    """A new id for each span, which the rest of the answer and its stream do not contain, by chance or by intent."""
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


def _number(marked: bytes, extracted: Mapping[str, ExtractedImage]) -> Iterator[ExtractedImage]:
    """The images of `data` with their indexes: the extracted ones, and those in other base64."""
    try:
        data = json.loads(marked)["data"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return
    for n, item in enumerate(data if isinstance(data, list) else []):
        encoded: Any = item.get("b64_json") if isinstance(item, dict) else None
        if not isinstance(encoded, str) or not encoded:
            continue
        if (image := extracted.get(encoded)) is not None:
            yield ExtractedImage(image.id, n, image.content)
            continue
        try:
            yield ExtractedImage(uuid7(), n, binascii.a2b_base64("".join(encoded.split()).encode(), strict_mode=True))
        except (binascii.Error, UnicodeEncodeError):
            log.warning("a picture in an answer is not base64; the answer itself is kept")


def _cut_again(transcript: bytes | None, response: bytes, kept: Mapping[_Span, bytes]) -> bytes | None:
    """The stream with the placeholders of its answer."""
    if transcript is None or not kept:
        return transcript
    marks = {response[start:end]: instead for (start, end), instead in kept.items()}
    return _replace(transcript, {(start, end): mark for start, end in _spans(transcript) if (mark := marks.get(transcript[start:end]))})
