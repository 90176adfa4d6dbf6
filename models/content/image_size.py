"""The width and height of an image, from the first bytes of a PNG, GIF, WebP or JPEG; nothing is decoded."""

from __future__ import annotations

import base64
import binascii
import struct

Size = tuple[int, int]
# In a JPEG, segments with camera metadata, a colour profile and tables precede the size.
MAX_SEGMENTS = 100
# The markers `start of frame`; C4, C8 and CC are other markers.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def from_url(url: str) -> Size | None:
    """The size in pixels of a `data:` URL, which may be truncated after the image header; None for other URLs and content."""
    head, comma, encoded = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        return None
    try:
        return from_bytes(base64.b64decode(encoded[: len(encoded) // 4 * 4]))
    except (binascii.Error, ValueError):
        return None


def from_bytes(content: bytes) -> Size | None:
    """The size in pixels (width, height), both above 0; None if these are not the first bytes of an image of the four formats."""
    try:
        width, height = _read(content)
    except (struct.error, IndexError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _read(content: bytes) -> Size:
    """Raises struct.error or IndexError if bytes are missing; (0, 0) for another format."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return struct.unpack_from(">II", content, 16)
    if content.startswith((b"GIF87a", b"GIF89a")):
        return struct.unpack_from("<HH", content, 6)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    return _jpeg(content) if content.startswith(b"\xff\xd8") else (0, 0)


def _webp(content: bytes) -> Size:
    kind = content[12:16]
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg(content: bytes) -> Size:
    at = 2
    for _ in range(MAX_SEGMENTS):
        marker, length = content[at + 1], struct.unpack_from(">H", content, at + 2)[0]
        if content[at] != 0xFF:
            break
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return width, height
        at += 2 + length
    return 0, 0
