"""Width and height, read from the first bytes of a picture."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.content import image_size

JPEG = b"\xff\xd8"


def drawn(kind: str, how: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (37, 1200)).save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "how"),
    [("PNG", {}), ("GIF", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True}),
     ("WEBP", {"exif": b"Exif\0\0" + b"x" * 50}), ("JPEG", {"exif": b"Exif\0\0" + b"x" * 60_000})],
)  # fmt: skip
def test_size_is_read_from_the_header(kind: str, how: dict[str, Any]) -> None:
    content = drawn(kind, how)

    assert (37, 1200) == image_size.from_bytes(content)
    assert (37, 1200) == image_size.from_url(f"data:image/x;base64,{base64.b64encode(content).decode()[:131_000]}")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"RIFF", b"RIFF....WEBPVP9 ", b"GIF89a\0\0\0\0", b"<svg/>", b"\x89PNG\r\n\x1a\n" + b"\0" * 16,
        JPEG, JPEG + b"\xff\xe0\0\0" * 1_000, JPEG + b"\xff\xc4\0\x02" * 1_000,
    ],
)  # fmt: skip
def test_other_bytes_have_no_image_size(content: bytes) -> None:
    assert image_size.from_bytes(content) is None


@given(st.binary(max_size=200), st.sampled_from([b"", JPEG, b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF....WEBPVP8X", b"RIFF....WEBPVP8L"]))
def test_no_bytes_break_the_reader(content: bytes, begins: bytes) -> None:
    size = image_size.from_bytes(begins + content)

    assert size is None or min(size) > 0


@pytest.mark.parametrize(
    "url", ["", "https://x.y/a,b", "data:image/png,abc", "data:image/png;base64,", "data:;base64,\u00e9\u00e9\u00e9\u00e9"]
)
def test_other_urls_have_no_size(url: str) -> None:
    assert image_size.from_url(url) is None


def test_large_sizes_are_taken_as_they_are() -> None:
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 2**31, 1)

    assert (2**31, 1) == image_size.from_bytes(header)
